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

/// A flight's end, which comes whatever happens to its task.
pub(super) struct Landing {
    pub inner: Arc<Inner>,
    pub access: Arc<Access>,
    pub file: FileId,
    pub wrapped: Vec<u8>,
    pub flight: Arc<Flight<Known>>,
    pub landed: bool,
}

impl Landing {
    pub async fn fly(mut self, reason: Reason) {
        let _running = self.access.tally.enter();
        let access = Arc::clone(&self.access);
        let call = async {
            let mut got = access.unwrap(self.file, &self.wrapped, reason, || self.flight.is_background()).await;
            if matches!(got, Err(KeyError::ArenaFull(_))) && self.inner.make_room() {
                got = access.unwrap(self.file, &self.wrapped, reason, || self.flight.is_background()).await;
            }
            got
        };
        let got = access.while_open(call).await.unwrap_or(Err(KeyError::Locked));
        self.land(got);
    }

    pub async fn fly_here(mut self) {
        let _running = self.access.tally.enter();
        let mut got = self.access.unwrap_now(self.file, &self.wrapped).await;
        if matches!(got, Err(KeyError::ArenaFull(_))) && self.inner.make_room() {
            got = self.access.unwrap_now(self.file, &self.wrapped).await;
        }
        self.land(got);
    }

    fn land(&mut self, got: Result<Secret, KeyError>) {
        self.landed = true;
        let mut known = got.and_then(|key| self.inner.known(&self.file, key));
        let now = self.inner.now();
        let mut state = self.inner.state();
        if state.is_current(&self.access) {
            match &known {
                Ok(known) => self.inner.keep(&mut state, self.file, known),
                Err(error) => {
                    state.refuse(self.file, &self.wrapped, error, now);
                    if self.flight.is_background() {
                        state.hush(now);
                    }
                }
            }
            if state.flights.get(&self.file).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
                state.flights.remove(&self.file);
            }
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
