//! Unwrapped keys and the only bridge from the filesystem's threads to the async key services.
//!
//! - A key that is in the cache is given at once, whatever the key service does meanwhile: the one mutex is held for
//!   look-ups only, never over a call.
//! - Threads that want the same key wait for one call. A remote provider is called by a task of the runtime while the
//!   thread waits, at most until the deadline; a local one answers on the thread itself.
//! - Between two locks everything runs under one `Access`. A lock closes it: calls in flight are dropped, and
//!   what they still bring is wiped.
//!
//! Lock order: `state` alone; flights, tally and rate have their own mutexes, which are never held together with it.

mod access;
mod ahead;
mod flight;
mod group;
mod landing;
mod limits;
mod make;
mod options;
mod pool;
mod rate;
mod state;
mod way;
mod window;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::crypto::Secret;
use crate::crypto::envelope::EnvelopeKey;
use crate::format::slots::{KeySlot, Via};
use crate::format::{DirId, FileId, VolumeId};
use crate::provider::{Observer, Provider};
use access::{Access, Wanted};
use options::too_late;
use pool::Pool;
use state::State;
use way::Target;

pub use ahead::Suggested;
pub use limits::Limits;
pub use options::{KeyError, KeyringOptions, MAX_POOL};

/// How much longer than the deadline a thread waits for the task that keeps it.
const GRACE: Duration = Duration::from_secs(1);
/// How long a lock waits for calls in flight to let go of what they hold.
const LET_GO: Duration = Duration::from_millis(80);

/// The keys of one volume.
pub struct Keyring {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Handle,
    volume: VolumeId,
    options: KeyringOptions,
    observer: Arc<dyn Observer>,
    state: Mutex<State>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    dropped: AtomicU64,
}

/// How the keyring fares, for `status` and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyringStats {
    /// Whether it is locked.
    pub locked: bool,
    /// Unwrapped keys in the cache.
    pub cached: usize,
    /// Ready keys for new files.
    pub ready: usize,
    /// Keys that are being unwrapped now.
    pub in_flight: usize,
    /// Keys that were asked for and there, since the start.
    pub hits: u64,
    /// Keys that were asked for and had to be unwrapped.
    pub misses: u64,
    /// Prefetches that were dropped because too many waited.
    pub prefetches_dropped: u64,
}

/// The key of a new file.
pub struct NewKey {
    /// The file's id, which the wrapping is bound to.
    pub file: FileId,
    /// Its key.
    pub key: Arc<Secret>,
    /// The wrapped key, for the file's header; with a directory's group key, that one wrapped, too.
    pub slots: Vec<KeySlot>,
    /// What commits the header to the key.
    pub commitment: [u8; 32],
}

impl Keyring {
    /// An unlocked keyring. `runtime` runs the calls; it must go on while this exists.
    pub fn new(
        provider: Arc<dyn Provider>,
        runtime: Handle,
        volume: VolumeId,
        options: KeyringOptions,
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        let state = Mutex::new(State::new(options.cache, Pool::new(options.pool, options.reserve, options.limits)));
        let counters = Counters::default();
        let keyring = Keyring { inner: Arc::new(Inner { runtime, volume, options, observer, state, counters }) };
        keyring.unlock(provider);
        Arc::new(keyring)
    }

    /// The key, if it is here. Never blocks.
    ///
    /// Whoever derives something from it must ask [`Secret::is_wiped`] afterwards: a lock may have come between.
    pub fn cached(&self, file: &FileId) -> Option<Arc<Secret>> {
        self.inner.state().cache.get(file).map(|known| Arc::clone(&known.key))
    }

    /// Whether [`Keyring::get`] would wait for the key service.
    pub fn would_wait(&self, file: &FileId, slots: &[KeySlot]) -> bool {
        let mut state = self.inner.state();
        let remote = state.access.as_ref().is_some_and(|access| access.provider.is_remote());
        remote && matches!(self.inner.target(&mut state, file, slots), Ok(Target::Call(..)))
    }

    /// The key of a file, from its authentic header's slots; blocks the calling thread (never one of the runtime's) up to the
    /// deadline where the key service must be asked. See [`Keyring::cached`] for what to ask afterwards.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn get(&self, file: &FileId, slots: &[KeySlot], commitment: &[u8; 32]) -> Result<Arc<Secret>, KeyError> {
        let inner = &self.inner;
        let target = {
            let now = inner.now();
            let mut state = inner.state();
            let target = inner.target(&mut state, file, slots)?;
            if matches!(target, Target::Known(_)) {
                state.window.used(file, now);
            }
            target
        };
        let known = match target {
            Target::Known(known) => {
                inner.counters.hits.fetch_add(1, Ordering::Relaxed);
                known
            }
            Target::Sealed(group, sealed) => inner.open_grouped(file, &group, &sealed)?,
            Target::Call(aim, None) => inner.fetch(&aim)?,
            Target::Call(aim, Some(sealed)) => {
                let group = EnvelopeKey::shared(inner.fetch(&aim)?.key);
                inner.open_grouped(file, &group, &sealed)?
            }
        };
        if known.commitment != *commitment {
            return Err(KeyError::Damaged(*file));
        }
        self.followed(slots);
        alive(known.key)
    }

    /// A file under a directory's group key was opened: if that key had been fetched ahead, it was worth it. And new
    /// files of that directory can use it.
    fn followed(&self, slots: &[KeySlot]) {
        let now = self.inner.now();
        for slot in slots {
            let Via::GroupKey { slot: number, group } = slot.via else { continue };
            if number == self.inner.options.slot {
                let mut state = self.inner.state();
                state.window.used(&group::place_of(group, &slot.wrapped), now);
                self.inner.learn(&mut state, group, &slot.wrapped);
            }
        }
    }

    /// Says that a file will be opened soon. Never blocks; dropped when too many wait, when the provider is local, or
    /// when the key service has just failed.
    pub fn prefetch(&self, file: FileId, slots: Vec<KeySlot>) {
        let now = self.inner.now();
        let access = {
            let state = self.inner.state();
            match &state.access {
                Some(access) if access.provider.is_remote() && !state.cache.contains(&file) && !state.is_quiet(now) => {
                    Arc::clone(access)
                }
                _ => return,
            }
        };
        if access.prefetch.try_send(Wanted { file, slots }).is_err() {
            self.inner.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Says that a file may be opened soon, as a listing suggests; its header is authentic. Never blocks. How many keys are fetched on
    /// suggestions depends on how many such keys were used.
    pub fn suggest(&self, file: FileId, slots: Vec<KeySlot>) -> Suggested {
        let now = self.inner.now();
        let mut state = self.inner.state();
        let access = match &state.access {
            Some(access) if access.provider.is_remote() && !state.is_quiet(now) => Arc::clone(access),
            _ => return Suggested::NotNow,
        };
        let place = match self.inner.target(&mut state, &file, &slots) {
            Ok(Target::Call(aim, _)) => aim.place,
            _ => return Suggested::Needless,
        };
        for slot in &slots {
            if let Via::GroupKey { slot: number, group } = slot.via
                && number == self.inner.options.slot
            {
                self.inner.learn(&mut state, group, &slot.wrapped);
            }
        }
        if state.window.awaits(&place) || state.flights.contains_key(&place) {
            return Suggested::Needless;
        }
        if !state.window.send(place, now) {
            return Suggested::Full;
        }
        match access.prefetch.try_send(Wanted { file, slots }) {
            Ok(()) => Suggested::Taken,
            Err(_) => {
                state.window.failed(&place);
                self.inner.counters.dropped.fetch_add(1, Ordering::Relaxed);
                Suggested::Full
            }
        }
    }

    /// A key for a new file of the directory `dir`; from the pool of ready keys where there is one, else made now
    /// (blocks like [`Keyring::get`]). Ask [`Secret::is_wiped`] after deriving from it.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn new_file_key(&self, dir: &DirId) -> Result<NewKey, KeyError> {
        let inner = &self.inner;
        let access = inner.access()?;
        match inner.options.new_in_group {
            Some(group) => inner.new_in_volume(&access, group),
            None if inner.options.per_directory => inner.new_in_directory(&access, dir),
            None => inner.new_own(access),
        }
    }

    /// An id for a new directory whose group key is ready, where files are wrapped per directory and one is at hand:
    /// then its first file waits for nothing. Never blocks.
    pub fn new_directory(&self) -> Option<DirId> {
        let inner = &self.inner;
        if !inner.options.per_directory {
            return None;
        }
        let access = inner.access().ok().filter(|access| access.provider.is_remote())?;
        let (ready, low) = inner.state().pool.take(inner.now());
        if low {
            access.pool.notify_one();
        }
        let ready = ready?;
        let dir = DirId(ready.file.0);
        inner.settle(&access, ready).ok().map(|()| dir)
    }

    /// Whether new files of `dir` need a group key that is not known here yet: then a file of `dir` may show one
    /// ([`Keyring::adopt`]).
    pub fn wants_group_of(&self, dir: &DirId) -> bool {
        self.inner.options.per_directory && self.inner.home(dir.as_bytes()).is_none()
    }

    /// Has new files of `dir` use the group key in `slots`, of an authentic header, if it is that directory's. Costs no
    /// call; the key is unwrapped when it is needed.
    pub fn adopt(&self, dir: &DirId, slots: &[KeySlot]) -> bool {
        let group = *dir.as_bytes();
        let Some(wrapped) = group::wrapped_key(slots, self.inner.options.slot, group) else { return false };
        self.inner.learn(&mut self.inner.state(), group, wrapped);
        true
    }

    /// Whether [`Keyring::new_file_key`] would answer without waiting for the key service (also with a refusal).
    pub fn has_ready(&self, dir: &DirId) -> bool {
        let now = self.inner.now();
        let state = self.inner.state();
        let Some(access) = &state.access else { return true };
        let options = &self.inner.options;
        if options.new_in_group.is_some() || !access.provider.is_remote() || state.refusal_new(now).is_some() {
            return true;
        }
        match options.per_directory {
            true => state.homes.peek(dir.as_bytes()).is_some_and(|home| state.cache.contains(&home.place)),
            false => state.pool.has_ready(now),
        }
    }

    /// Gives the keyring a group key: files whose slot says [`Via::Group`] of this id are opened by it, without a call.
    /// A lock wipes it.
    ///
    /// # Errors
    /// The volume is locked; the key is wiped.
    pub fn set_group(&self, id: [u8; 16], key: Secret) -> Result<(), KeyError> {
        let mut state = self.inner.state();
        if state.access.is_none() {
            return Err(KeyError::Locked);
        }
        let old = state.groups.insert(id, Arc::new(EnvelopeKey::new(key)));
        drop(state);
        drop(old);
        Ok(())
    }

    /// Drops a key from the cache; it is wiped when its last holder lets go.
    pub fn forget(&self, file: &FileId) {
        let forgotten = self.inner.state().cache.pop(file);
        drop(forgotten);
    }

    /// How it fares.
    pub fn stats(&self) -> KeyringStats {
        let state = self.inner.state();
        let counters = &self.inner.counters;
        KeyringStats {
            locked: state.access.is_none(),
            cached: state.cache.len(),
            ready: state.pool.len(),
            in_flight: state.flights.len(),
            hits: counters.hits.load(Ordering::Relaxed),
            misses: counters.misses.load(Ordering::Relaxed),
            prefetches_dropped: counters.dropped.load(Ordering::Relaxed),
        }
    }

    /// Ends all calls to the key service and lets go of everyone who waits for one, with [`KeyError::Locked`]; none is made
    /// from now on. Keys that are here go on to be used, until [`Keyring::lock`].
    pub fn gate(&self) {
        let access = self.inner.state().access.clone();
        if let Some(access) = access {
            access.close();
        }
    }

    /// Wipes every key, also those that someone still holds, and drops the provider; from now on every call is
    /// [`KeyError::Locked`], also those that wait. Gives the number of keys wiped.
    ///
    /// It waits up to 80 ms until calls in flight have let go of what they hold. Not to be called on the only thread of
    /// a runtime.
    pub fn lock(&self) -> usize {
        let closed = self.inner.state().close();
        if let Some(access) = &closed.access {
            access.close();
        }
        closed.keys.iter().for_each(|key| key.wipe());
        closed.groups.iter().for_each(|group| group.wipe());
        closed.flights.iter().for_each(|flight| flight.land(Err(KeyError::Locked)));
        if let Some(access) = &closed.access
            && !access.tally.wait_idle(LET_GO)
        {
            tracing::warn!("calls to the key service were still ending when the keys were wiped");
        }
        closed.keys.len() + closed.groups.len()
    }

    /// Starts anew with `provider`; keys follow as they are needed. An unlocked keyring is locked first.
    pub fn unlock(&self, provider: Arc<dyn Provider>) {
        self.lock();
        let inner = &self.inner;
        let observer = Arc::clone(&inner.observer);
        let (access, queue) = Access::new(provider, inner.volume, &inner.options, observer, inner.now());
        inner.state().access = Some(Arc::clone(&access));
        if access.provider.is_remote() {
            inner.runtime.spawn(ahead::prefetch(Arc::clone(inner), Arc::clone(&access), queue));
            inner.runtime.spawn(ahead::fill(Arc::clone(inner), access));
        }
    }
}

/// A key that no lock has wiped on its way here.
fn alive(key: Arc<Secret>) -> Result<Arc<Secret>, KeyError> {
    if key.is_wiped() { Err(KeyError::Locked) } else { Ok(key) }
}

impl Drop for Keyring {
    fn drop(&mut self) {
        self.lock();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime's time, also on threads that are not its own.
    fn now(&self) -> Instant {
        let _inside = self.runtime.enter();
        Instant::now()
    }

    fn too_late(&self) -> KeyError {
        too_late(self.options.deadline).into()
    }

    fn access(&self) -> Result<Arc<Access>, KeyError> {
        self.state().access.clone().ok_or(KeyError::Locked)
    }
}
