//! File keys under a group key: made and opened here, without a call to the key service.
//!
//! A slot holds `nonce 24 | sealed key 32 | tag 16`, bound to volume and file. Two kinds of group keys differ in where
//! they come from. The volume's (granularity `volume`) is given by [`super::Keyring::set_group`]. A directory's
//! (granularity `directory`) is made by the key service, bound to the directory's id, and stands wrapped in the header of
//! every file that it wraps; here it is cached like a file's key, under a name that its wrapped bytes give it. So two
//! group keys of one directory, made by two mounts, get along.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};

use super::access::Access;
use super::flight::{Flight, here};
use super::landing::Aim;
use super::options::{KeyError, failure};
use super::state::{Home, Known, Ready, State};
use super::{Inner, NewKey};
use crate::crypto::Secret;
use crate::crypto::envelope::{EnvelopeError, EnvelopeKey};
use crate::crypto::secret::SecretError;
use crate::format::slots::{KeySlot, Via};
use crate::format::{DirId, FileId};
use crate::provider::{Reason, Verdict};

/// The wrapped group key `group` among a file's slots, for the customer key of slot `slot`.
pub(super) fn wrapped_key(slots: &[KeySlot], slot: u8, group: [u8; 16]) -> Option<&[u8]> {
    let via = Via::GroupKey { slot, group };
    slots.iter().find(|slot| slot.via == via).map(|slot| slot.wrapped.as_slice())
}

/// Under which a directory's group key is cached: half of a hash, so that it meets no file's id.
pub(super) fn place_of(group: [u8; 16], wrapped: &[u8]) -> FileId {
    let mut hash = Context::new(&SHA256);
    hash.update(b"hyokfs group key");
    hash.update(&group);
    hash.update(wrapped);
    let mut place = [0; 16];
    place.copy_from_slice(&hash.finish().as_ref()[..16]);
    FileId(place)
}

impl Inner {
    /// Opens a file's key that is sealed under `group`.
    pub fn open_grouped(&self, file: &FileId, group: &EnvelopeKey, sealed: &[u8]) -> Result<Known, KeyError> {
        let access = self.access()?;
        let _running = access.tally.enter();
        let place = self.group_place(file);
        let mut opened = group.open_secret(&place, sealed);
        if matches!(opened, Err(EnvelopeError::Arena(_))) && self.make_room() {
            opened = group.open_secret(&place, sealed);
        }
        let key = match opened {
            Ok(key) => key,
            // A lock wiped the group key under our hands.
            Err(_) if group.is_wiped() => return Err(KeyError::Locked),
            Err(EnvelopeError::Arena(full)) => return Err(KeyError::ArenaFull(full)),
            Err(EnvelopeError::Forged | EnvelopeError::Library) => return Err(KeyError::Damaged(*file)),
        };
        let known = self.known(file, key)?;
        self.admit(&access, *file, &known)?;
        Ok(known)
    }

    /// A new file's key under the volume's group key.
    pub fn new_in_volume(&self, access: &Arc<Access>, group: [u8; 16]) -> Result<NewKey, KeyError> {
        let key = self.state().groups.get(&group).map(Arc::clone);
        let key = key.ok_or_else(|| {
            let message = "the volume's group key is not unwrapped: unlock the volume again".to_owned();
            KeyError::from(failure(Verdict::Misconfigured, "NoGroupKey", message))
        })?;
        self.new_grouped(access, group, &key)
    }

    /// A new file's key under the group key of the directory it is made in, which is made where there is none.
    pub fn new_in_directory(self: &Arc<Self>, access: &Arc<Access>, dir: &DirId) -> Result<NewKey, KeyError> {
        let group = *dir.as_bytes();
        let until = std::time::Instant::now() + self.options.deadline;
        let home = loop {
            if let Some(home) = self.home(&group) {
                break home;
            }
            self.make_home(access, dir)?;
            if std::time::Instant::now() > until {
                return Err(self.too_late());
            }
        };
        let aim = Aim { place: home.place, bound: FileId(group), wrapped: home.wrapped };
        let known = self.fetch(&aim)?;
        let mut new = self.new_grouped(access, group, &EnvelopeKey::shared(known.key))?;
        let via = Via::GroupKey { slot: self.options.slot, group };
        new.slots.push(KeySlot { via, wrapped: aim.wrapped });
        Ok(new)
    }

    pub fn home(&self, group: &[u8; 16]) -> Option<Home> {
        self.state().homes.get(group).cloned()
    }

    /// Has new files of a directory use a group key that its files have, unless one is known.
    pub fn learn(&self, state: &mut State, group: [u8; 16], wrapped: &[u8]) {
        if self.options.per_directory && state.access.is_some() && state.homes.get(&group).is_none() {
            state.homes.push(group, Home { wrapped: wrapped.to_vec(), place: place_of(group, wrapped) });
        }
    }

    /// Has new files of a directory use this key.
    pub fn settle(&self, access: &Arc<Access>, ready: Ready) -> Result<(), KeyError> {
        let group = ready.file.0;
        let place = place_of(group, &ready.wrapped);
        let mut state = self.state();
        if !state.is_current(access) {
            return Err(KeyError::Locked);
        }
        self.keep(&mut state, place, &ready.known);
        state.homes.push(group, Home { wrapped: ready.wrapped, place });
        Ok(())
    }

    /// Makes a directory's group key, or waits for who does. When it is there, [`Inner::home`] has it.
    fn make_home(self: &Arc<Self>, access: &Arc<Access>, dir: &DirId) -> Result<(), KeyError> {
        let id = FileId(*dir.as_bytes());
        let now = self.now();
        if !access.provider.is_remote() {
            let _running = access.tally.enter();
            let (key, wrapped) = here(access.generate_now(id))?;
            let made = self.ready(id, key, wrapped.blob, now)?;
            return self.settle(access, made);
        }
        let (flight, begins) = {
            let mut state = self.state();
            if let Some(error) = state.refusal_new(now) {
                return Err(error);
            }
            match state.flights.get(&id) {
                Some(flight) => (Arc::clone(flight), false),
                None => {
                    let flight = Flight::new(false);
                    state.flights.insert(id, Arc::clone(&flight));
                    (flight, true)
                }
            }
        };
        if begins {
            let (inner, access, flight) = (Arc::clone(self), Arc::clone(access), Arc::clone(&flight));
            self.runtime.spawn(async move {
                let landing = HomeLanding { inner, access, id, flight };
                let _running = landing.access.tally.enter();
                let access = &landing.access;
                let made = access.while_open(landing.inner.make(access, id, Reason::Create)).await;
                let made = made.unwrap_or(Err(KeyError::Locked)).and_then(|ready| {
                    let known = ready.known.clone();
                    landing.inner.settle(access, ready).map(|()| known)
                });
                if let Err(error) = &made {
                    landing.inner.note_refusal(access, error);
                }
                landing.land(made);
            });
        }
        self.await_landing(&flight).map(drop)
    }

    /// A new file's key, sealed under `group`.
    fn new_grouped(&self, access: &Arc<Access>, id: [u8; 16], group: &EnvelopeKey) -> Result<NewKey, KeyError> {
        let _running = access.tally.enter();
        let file = self.new_id()?;
        let key = match Secret::random() {
            Err(SecretError::Full(_)) if self.make_room() => Secret::random()?,
            made => made?,
        };
        let known = self.known(&file, key)?;
        let sealed = group.seal(&self.group_place(&file), known.key.expose());
        // Sealed under a key that a lock was wiping: never let that reach the disk.
        if group.is_wiped() {
            return Err(KeyError::Locked);
        }
        let wrapped = sealed.map_err(|error| match error {
            EnvelopeError::Arena(full) => KeyError::ArenaFull(full),
            EnvelopeError::Forged | EnvelopeError::Library => SecretError::NoRandom.into(),
        })?;
        self.admit(access, file, &known)?;
        let slots = vec![KeySlot { via: Via::Group(id), wrapped }];
        Ok(NewKey { file, key: known.key, slots, commitment: known.commitment })
    }

    /// What a file key under a group key is bound to: volume and file.
    fn group_place(&self, file: &FileId) -> [u8; 32] {
        let mut place = [0; 32];
        place[..16].copy_from_slice(self.volume.as_bytes());
        place[16..].copy_from_slice(file.as_bytes());
        place
    }
}

/// The end of making a directory's group key, which comes whatever happens to its task.
struct HomeLanding {
    inner: Arc<Inner>,
    access: Arc<Access>,
    id: FileId,
    flight: Arc<Flight<Known>>,
}

impl HomeLanding {
    fn land(&self, made: Result<Known, KeyError>) {
        self.inner.state().flown(&self.id, &self.flight);
        self.flight.land(made);
    }
}

impl Drop for HomeLanding {
    fn drop(&mut self) {
        // The first outcome stays: this one is for a task that was dropped with its runtime.
        self.land(Err(super::options::unanswered().into()));
    }
}
