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
mod options;
mod rate;
mod state;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::crypto::Secret;
use crate::crypto::envelope::EnvelopeKey;
use crate::crypto::kdf::{self, DeriveError};
use crate::crypto::secret::SecretError;
use crate::format::slots::{KeySlot, Via};
use crate::format::{FileId, VolumeId};
use crate::provider::{Observer, Provider, Reason, Verdict};
use access::{Access, Wanted};
use flight::{Flight, here};
use landing::Landing;
use options::{failure, too_late, unanswered};
use state::{Known, Ready, State};

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
    /// The wrapped key, for the file's header.
    pub slot: KeySlot,
    /// What commits the header to the key.
    pub commitment: [u8; 32],
}

/// How a file's key is to be had.
enum Way {
    Known(Known),
    Join(Arc<Flight<Known>>),
    Fly(Arc<Access>, Arc<Flight<Known>>, Vec<u8>),
    Group(Arc<Access>, Arc<EnvelopeKey>, Vec<u8>),
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
        let state = Mutex::new(State::new(options.cache, options.pool));
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
        let state = self.inner.state();
        let Some(access) = &state.access else { return false };
        let grouped = |slot: &KeySlot| matches!(slot.via, Via::Group(id) if state.groups.contains_key(&id));
        access.provider.is_remote() && !state.cache.contains(file) && !slots.iter().any(grouped)
    }

    /// The key of a file, from its header's slots; blocks the calling thread (never one of the runtime's) up to the
    /// deadline where the key service must be asked. See [`Keyring::cached`] for what to ask afterwards.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn get(&self, file: &FileId, slots: &[KeySlot], commitment: &[u8; 32]) -> Result<Arc<Secret>, KeyError> {
        let inner = &self.inner;
        let until = std::time::Instant::now() + inner.options.deadline;
        loop {
            let known = match inner.way(file, slots, false)? {
                Way::Known(known) => {
                    inner.counters.hits.fetch_add(1, Ordering::Relaxed);
                    known
                }
                Way::Group(access, group, wrapped) => inner.open_grouped(&access, file, &group, &wrapped)?,
                Way::Fly(access, flight, wrapped) => {
                    inner.counters.misses.fetch_add(1, Ordering::Relaxed);
                    Arc::clone(inner).take_off(access, *file, wrapped, &flight);
                    inner.await_landing(&flight)?
                }
                Way::Join(flight) => {
                    let was_background = flight.join();
                    match inner.await_landing(&flight) {
                        // It may have failed before it knew that somebody waits; who needs the key tries on.
                        Err(KeyError::Unreachable(_)) if was_background && std::time::Instant::now() < until => {
                            continue;
                        }
                        outcome => outcome?,
                    }
                }
            };
            if known.commitment != *commitment {
                return Err(KeyError::Damaged(*file));
            }
            return alive(known.key);
        }
    }

    /// Says that a file may be opened soon. Never blocks; dropped when too many wait, when the provider is local, or
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

    /// A key for a new file; from the pool of ready keys where there is one, else made now (blocks like
    /// [`Keyring::get`]). Ask [`Secret::is_wiped`] after deriving from it.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn new_file_key(&self) -> Result<NewKey, KeyError> {
        let inner = &self.inner;
        let now = inner.now();
        let access = {
            let mut state = inner.state();
            let access = Arc::clone(state.access.as_ref().ok_or(KeyError::Locked)?);
            if let Some(id) = inner.options.new_in_group {
                let group = state.groups.get(&id).map(Arc::clone);
                drop(state);
                return inner.new_grouped(&access, id, group);
            }
            if access.provider.is_remote() {
                let ready = state.take_ready(now);
                if let Some(ready) = &ready {
                    inner.keep(&mut state, ready.file, &ready.known);
                }
                access.pool.notify_one();
                if let Some(Ready { file, known, slot, .. }) = ready {
                    return Ok(NewKey { file, key: known.key, slot, commitment: known.commitment });
                }
                if let Some(error) = state.refusal_new(now) {
                    return Err(error);
                }
            }
            access
        };
        let made = if access.provider.is_remote() {
            let flight = Flight::new(false);
            Arc::clone(inner).make_remotely(access, &flight);
            flight.wait(inner.options.deadline + GRACE).unwrap_or_else(|| Err(inner.too_late()))?
        } else {
            let _running = access.tally.enter();
            let file = inner.new_id()?;
            let (key, wrapped) = here(access.generate_now(file))?;
            let made = inner.ready(file, key, wrapped.blob, now)?;
            inner.admit(&access, file, &made.known)?;
            made.parts()
        };
        let (file, known, slot) = made;
        Ok(NewKey { file, key: alive(known.key)?, slot, commitment: known.commitment })
    }

    /// Whether [`Keyring::new_file_key`] would answer without waiting for the key service (also with a refusal).
    pub fn has_ready(&self) -> bool {
        let now = self.inner.now();
        let state = self.inner.state();
        let Some(access) = &state.access else { return true };
        self.inner.options.new_in_group.is_some()
            || !access.provider.is_remote()
            || state.has_ready(now)
            || state.refusal_new(now).is_some()
    }

    /// Begins to fill the pool of ready keys, before the first file is created.
    pub fn warm(&self) {
        if let Some(access) = &self.inner.state().access {
            access.pool.notify_one();
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
            ready: state.ready(),
            in_flight: state.flights.len(),
            hits: counters.hits.load(Ordering::Relaxed),
            misses: counters.misses.load(Ordering::Relaxed),
            prefetches_dropped: counters.dropped.load(Ordering::Relaxed),
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

    /// Decides under the mutex how the key is to be had; begins a flight where nobody has.
    fn way(&self, file: &FileId, slots: &[KeySlot], background: bool) -> Result<Way, KeyError> {
        let now = self.now();
        let mut state = self.state();
        let access = Arc::clone(state.access.as_ref().ok_or(KeyError::Locked)?);
        if let Some(known) = state.cache.get(file) {
            return Ok(Way::Known(known.clone()));
        }
        if let Some(flight) = state.flights.get(file) {
            return Ok(Way::Join(Arc::clone(flight)));
        }
        // A group key first: it needs no call.
        let grouped = slots.iter().find_map(|slot| match slot.via {
            Via::Group(id) => state.groups.get(&id).map(|group| (Arc::clone(group), slot.wrapped.clone())),
            Via::Provider(_) => None,
        });
        if let Some((group, wrapped)) = grouped {
            return Ok(Way::Group(access, group, wrapped));
        }
        let Some(slot) = slots.iter().find(|slot| slot.via == Via::Provider(self.options.slot)) else {
            let message = format!(
                "file {file} has no key that {} wrapped: finish `hyokfs rewrap`, or mount with the key it was written under",
                access.provider.uri()
            );
            return Err(failure(Verdict::Misconfigured, "NoKeySlot", message).into());
        };
        // A local keystore answers at once, so a no is asked anew each time.
        if access.provider.is_remote()
            && let Some(error) = state.refusal(file, &slot.wrapped, now)
        {
            return Err(error);
        }
        let flight = Flight::new(background);
        state.flights.insert(*file, Arc::clone(&flight));
        Ok(Way::Fly(access, flight, slot.wrapped.clone()))
    }

    /// Gets the call of a new flight going: on this thread where the provider answers at once.
    fn take_off(self: Arc<Self>, access: Arc<Access>, file: FileId, wrapped: Vec<u8>, flight: &Arc<Flight<Known>>) {
        let runtime = self.runtime.clone();
        let remote = access.provider.is_remote();
        let landing = Landing { inner: self, access, file, wrapped, flight: Arc::clone(flight), landed: false };
        if remote {
            runtime.spawn(landing.fly(Reason::Open));
        } else {
            here(landing.fly_here());
        }
    }

    fn await_landing(&self, flight: &Flight<Known>) -> Result<Known, KeyError> {
        flight.wait(self.options.deadline + GRACE).unwrap_or_else(|| Err(self.too_late()))
    }

    fn known(&self, file: &FileId, key: Secret) -> Result<Known, KeyError> {
        let commitment = kdf::commitment(&key, file.as_bytes()).map_err(|error| match error {
            DeriveError::Arena(full) => KeyError::ArenaFull(full),
            DeriveError::Library => unanswered().into(),
        })?;
        Ok(Known { key: Arc::new(key), commitment })
    }

    fn ready(&self, file: FileId, key: Secret, wrapped: Vec<u8>, born: Instant) -> Result<Ready, KeyError> {
        let slot = KeySlot { via: Via::Provider(self.options.slot), wrapped };
        Ok(Ready { file, known: self.known(&file, key)?, slot, born })
    }

    fn new_id(&self) -> Result<FileId, KeyError> {
        FileId::random().map_err(|_| SecretError::NoRandom.into())
    }

    fn keep(&self, state: &mut State, file: FileId, known: &Known) {
        // What falls out at the other end is wiped when its last holder lets go.
        state.cache.push(file, known.clone());
    }

    /// Puts a key into the cache, unless a lock came between.
    fn admit(&self, access: &Arc<Access>, file: FileId, known: &Known) -> Result<(), KeyError> {
        let mut state = self.state();
        if !state.is_current(access) {
            return Err(KeyError::Locked);
        }
        self.keep(&mut state, file, known);
        Ok(())
    }

    /// Makes room in the arena at the cost of keys that were not used lately.
    fn make_room(&self) -> bool {
        let evicted = self.state().evict_half();
        !evicted.is_empty()
    }

    /// Makes a new file's key by a task of the runtime.
    fn make_remotely(self: Arc<Self>, access: Arc<Access>, flight: &Arc<Flight<(FileId, Known, KeySlot)>>) {
        let flight = Arc::clone(flight);
        let runtime = self.runtime.clone();
        runtime.spawn(async move {
            let _running = access.tally.enter();
            let made = access.while_open(self.make(&access, Reason::Create)).await.unwrap_or(Err(KeyError::Locked));
            let made = made.and_then(|ready| self.admit(&access, ready.file, &ready.known).map(|()| ready));
            if let Err(error) = &made {
                let mut state = self.state();
                if state.is_current(&access) {
                    state.refuse_new(error, Instant::now());
                }
            }
            flight.land(made.map(Ready::parts));
        });
    }

    async fn make(&self, access: &Access, reason: Reason) -> Result<Ready, KeyError> {
        let file = self.new_id()?;
        let mut made = access.generate(file, reason).await;
        if matches!(made, Err(KeyError::ArenaFull(_))) && self.make_room() {
            made = access.generate(file, reason).await;
        }
        let (key, wrapped) = made?;
        self.ready(file, key, wrapped.blob, Instant::now())
    }
}

impl Ready {
    fn parts(self) -> (FileId, Known, KeySlot) {
        (self.file, self.known, self.slot)
    }
}
