//! How an unwrap ends: in the cache and with everyone who waited, or nowhere when a lock came between.

use std::sync::Arc;

use super::Inner;
use super::access::Access;
use super::flight::Flight;
use super::options::{KeyError, unanswered};
use super::state::Known;
use crate::crypto::Secret;
use crate::format::FileId;
use crate::provider::Reason;

/// One key to be unwrapped: a file's, or the group key of a directory.
#[derive(Clone)]
pub(super) struct Aim {
    /// Under which it is cached, and its call known: the file's id, or what [`super::group::place_of`] gives.
    pub place: FileId,
    /// What the wrapping is bound to: the file's id, or the group's.
    pub bound: FileId,
    pub wrapped: Vec<u8>,
}

/// A flight's end, which comes whatever happens to its task.
pub(super) struct Landing {
    pub inner: Arc<Inner>,
    pub access: Arc<Access>,
    pub aim: Aim,
    pub flight: Arc<Flight<Known>>,
    pub landed: bool,
}

impl Landing {
    pub async fn fly(mut self, reason: Reason) {
        let _running = self.access.tally.enter();
        let access = Arc::clone(&self.access);
        let call = async {
            let aim = &self.aim;
            let background = || self.flight.is_background();
            let mut got = access.unwrap(aim.bound, &aim.wrapped, reason, background).await;
            if matches!(got, Err(KeyError::ArenaFull(_))) && self.inner.make_room() {
                got = access.unwrap(aim.bound, &aim.wrapped, reason, background).await;
            }
            got
        };
        let got = access.while_open(call).await.unwrap_or(Err(KeyError::Locked));
        self.land(got);
    }

    pub async fn fly_here(mut self) {
        let _running = self.access.tally.enter();
        let mut got = self.access.unwrap_now(self.aim.bound, &self.aim.wrapped).await;
        if matches!(got, Err(KeyError::ArenaFull(_))) && self.inner.make_room() {
            got = self.access.unwrap_now(self.aim.bound, &self.aim.wrapped).await;
        }
        self.land(got);
    }

    fn land(&mut self, got: Result<Secret, KeyError>) {
        self.landed = true;
        let mut known = got.and_then(|key| self.inner.known(&self.aim.bound, key));
        let now = self.inner.now();
        let place = self.aim.place;
        let mut state = self.inner.state();
        if state.is_current(&self.access) {
            match &known {
                Ok(known) => self.inner.keep(&mut state, place, known),
                Err(error) => {
                    state.refuse(place, &self.aim.wrapped, error, now);
                    state.window.failed(&place);
                    if self.flight.is_background() {
                        state.hush(now);
                    }
                }
            }
            state.flown(&place, &self.flight);
        } else {
            // A lock came between: what the call brought is wiped here.
            known = Err(KeyError::Locked);
        }
        drop(state);
        self.flight.land(known);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // The task was dropped with its runtime, or it panicked: nobody shall wait for it.
        if !self.landed {
            self.land(Err(unanswered().into()));
        }
    }
}
