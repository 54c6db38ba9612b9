//! How a key is had: from the cache, under a group key, or by a call that one makes and others wait for.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::access::Access;
use super::flight::{Flight, here};
use super::landing::{Aim, Landing};
use super::options::{KeyError, failure};
use super::state::{Known, State};
use super::{GRACE, Inner, group};
use crate::crypto::envelope::EnvelopeKey;
use crate::format::FileId;
use crate::format::slots::{KeySlot, Via};
use crate::provider::{Reason, Verdict};

/// What stands between a file's slots and its key.
pub(super) enum Target {
    /// Nothing: it is here.
    Known(Known),
    /// It is sealed in these bytes under a group key that is here.
    Sealed(Arc<EnvelopeKey>, Vec<u8>),
    /// A call. With bytes, it brings the group key that they are sealed under.
    Call(Aim, Option<Vec<u8>>),
}

/// How one key is to be had that the customer key wrapped.
pub(super) enum Way {
    Known(Known),
    Join(Arc<Flight<Known>>),
    Fly(Arc<Access>, Arc<Flight<Known>>),
}

impl Inner {
    /// Finds what a file's key needs. Looks, and waits for nothing.
    pub fn target(&self, state: &mut State, file: &FileId, slots: &[KeySlot]) -> Result<Target, KeyError> {
        let access = Arc::clone(state.access.as_ref().ok_or(KeyError::Locked)?);
        if let Some(known) = state.cache.get(file) {
            return Ok(Target::Known(known.clone()));
        }
        // A group key first: where it is here it needs no call, else its call opens the whole group.
        let mut group = None;
        for sealed in slots {
            let Via::Group(id) = sealed.via else { continue };
            if let Some(key) = state.groups.get(&id) {
                return Ok(Target::Sealed(Arc::clone(key), sealed.wrapped.clone()));
            }
            let Some(wrapped) = group::wrapped_key(slots, self.options.slot, id) else { continue };
            let place = group::place_of(id, wrapped);
            if let Some(known) = state.cache.get(&place) {
                return Ok(Target::Sealed(
                    Arc::new(EnvelopeKey::shared(Arc::clone(&known.key))),
                    sealed.wrapped.clone(),
                ));
            }
            let aim = Aim { place, bound: FileId(id), wrapped: wrapped.to_vec() };
            group.get_or_insert((aim, Some(sealed.wrapped.clone())));
        }
        let own = || {
            let slot = slots.iter().find(|slot| slot.via == Via::Provider(self.options.slot))?;
            Some((Aim { place: *file, bound: *file, wrapped: slot.wrapped.clone() }, None))
        };
        match group.or_else(own) {
            Some((aim, sealed)) => Ok(Target::Call(aim, sealed)),
            None => {
                let message = format!(
                    "file {file} has no key that {} wrapped: finish `hyokfs rewrap`, or mount with the key it was \
                     written under",
                    access.provider.uri()
                );
                Err(failure(Verdict::Misconfigured, "NoKeySlot", message).into())
            }
        }
    }

    /// Decides how a wrapped key is to be had; begins a flight where nobody has.
    pub fn way(&self, state: &mut State, aim: &Aim, background: bool, now: Instant) -> Result<Way, KeyError> {
        let access = Arc::clone(state.access.as_ref().ok_or(KeyError::Locked)?);
        if let Some(known) = state.cache.get(&aim.place) {
            return Ok(Way::Known(known.clone()));
        }
        if let Some(flight) = state.flights.get(&aim.place) {
            return Ok(Way::Join(Arc::clone(flight)));
        }
        // A local keystore answers at once, so a no is asked anew each time.
        if access.provider.is_remote()
            && let Some(error) = state.refusal(&aim.place, &aim.wrapped, now)
        {
            return Err(error);
        }
        let flight = Flight::new(background);
        state.flights.insert(aim.place, Arc::clone(&flight));
        Ok(Way::Fly(access, flight))
    }

    /// Gets a wrapped key by a call, its own or another thread's; blocks up to the deadline.
    pub fn fetch(self: &Arc<Self>, aim: &Aim) -> Result<Known, KeyError> {
        let until = std::time::Instant::now() + self.options.deadline;
        loop {
            let way = {
                let now = self.now();
                let mut state = self.state();
                let way = self.way(&mut state, aim, false, now)?;
                match &way {
                    Way::Fly(..) => state.window.missed(now),
                    Way::Known(_) | Way::Join(_) => state.window.used(&aim.place, now),
                }
                way
            };
            match way {
                Way::Known(known) => return Ok(known),
                Way::Fly(access, flight) => {
                    self.counters.misses.fetch_add(1, Ordering::Relaxed);
                    Arc::clone(self).take_off(access, aim.clone(), &flight);
                    return self.await_landing(&flight);
                }
                Way::Join(flight) => {
                    let was_background = flight.join();
                    match self.await_landing(&flight) {
                        // It may have failed before it knew that somebody waits; who needs the key tries on.
                        Err(KeyError::Unreachable(_)) if was_background && std::time::Instant::now() < until => {}
                        outcome => return outcome,
                    }
                }
            }
        }
    }

    /// Gets the call of a new flight going: on this thread where the provider answers at once.
    fn take_off(self: Arc<Self>, access: Arc<Access>, aim: Aim, flight: &Arc<Flight<Known>>) {
        let runtime = self.runtime.clone();
        let remote = access.provider.is_remote();
        let landing = Landing { inner: self, access, aim, flight: Arc::clone(flight), landed: false };
        if remote {
            runtime.spawn(landing.fly(Reason::Open));
        } else {
            here(landing.fly_here());
        }
    }

    pub fn await_landing(&self, flight: &Flight<Known>) -> Result<Known, KeyError> {
        flight.wait(self.options.deadline + GRACE).unwrap_or_else(|| Err(self.too_late()))
    }
}
