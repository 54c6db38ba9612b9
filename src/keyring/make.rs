//! Keys that do not exist yet: made by the key service, now or ahead.

use std::sync::Arc;

use tokio::time::Instant;

use super::access::Access;
use super::flight::{Flight, here};
use super::options::{KeyError, unanswered};
use super::state::{Known, Ready, State};
use super::{GRACE, Inner, NewKey, alive};
use crate::crypto::Secret;
use crate::crypto::kdf::{self, DeriveError};
use crate::crypto::secret::SecretError;
use crate::format::FileId;
use crate::format::slots::{KeySlot, Via};
use crate::provider::Reason;

impl Inner {
    /// A file's own key: a ready one, or one that is made now.
    pub fn new_own(self: &Arc<Self>, access: Arc<Access>) -> Result<NewKey, KeyError> {
        let now = self.now();
        let made = if access.provider.is_remote() {
            if let Some(ready) = self.take_ready(&access, now)? {
                return Ok(self.with_own_slot(ready));
            }
            let flight = Flight::new(false);
            Arc::clone(self).make_remotely(access, &flight);
            flight.wait(self.options.deadline + GRACE).unwrap_or_else(|| Err(self.too_late()))?
        } else {
            let _running = access.tally.enter();
            let file = self.new_id()?;
            let (key, wrapped) = here(access.generate_now(file))?;
            let made = self.ready(file, key, wrapped.blob, now)?;
            self.admit(&access, file, &made.known)?;
            made
        };
        let made = self.with_own_slot(made);
        Ok(NewKey { key: alive(made.key)?, ..made })
    }

    /// A ready key, which is cached from now on; asks for more. An error is a no that was given a moment ago.
    fn take_ready(&self, access: &Arc<Access>, now: Instant) -> Result<Option<Ready>, KeyError> {
        let mut state = self.state();
        let (ready, low) = state.pool.take(now);
        if let Some(ready) = &ready {
            self.keep(&mut state, ready.file, &ready.known);
        }
        if low {
            access.pool.notify_one();
        }
        match (ready, state.refusal_new(now)) {
            (None, Some(error)) => Err(error),
            (ready, _) => Ok(ready),
        }
    }

    fn with_own_slot(&self, ready: Ready) -> NewKey {
        let slot = KeySlot { via: Via::Provider(self.options.slot), wrapped: ready.wrapped };
        NewKey { file: ready.file, key: ready.known.key, slots: vec![slot], commitment: ready.known.commitment }
    }

    pub fn known(&self, bound: &FileId, key: Secret) -> Result<Known, KeyError> {
        let commitment = kdf::commitment(&key, bound.as_bytes()).map_err(|error| match error {
            DeriveError::Arena(full) => KeyError::ArenaFull(full),
            DeriveError::Library => unanswered().into(),
        })?;
        Ok(Known { key: Arc::new(key), commitment })
    }

    pub fn ready(&self, file: FileId, key: Secret, wrapped: Vec<u8>, born: Instant) -> Result<Ready, KeyError> {
        Ok(Ready { file, known: self.known(&file, key)?, wrapped, born })
    }

    pub fn new_id(&self) -> Result<FileId, KeyError> {
        FileId::random().map_err(|_| SecretError::NoRandom.into())
    }

    pub fn keep(&self, state: &mut State, place: FileId, known: &Known) {
        // What falls out at the other end is wiped when its last holder lets go.
        state.cache.push(place, known.clone());
    }

    /// Puts a key into the cache, unless a lock came between.
    pub fn admit(&self, access: &Arc<Access>, place: FileId, known: &Known) -> Result<(), KeyError> {
        let mut state = self.state();
        if !state.is_current(access) {
            return Err(KeyError::Locked);
        }
        self.keep(&mut state, place, known);
        Ok(())
    }

    /// Makes room in the arena at the cost of keys that were not used lately.
    pub fn make_room(&self) -> bool {
        let evicted = self.state().evict_half();
        !evicted.is_empty()
    }

    /// Makes a new file's key by a task of the runtime.
    fn make_remotely(self: Arc<Self>, access: Arc<Access>, flight: &Arc<Flight<Ready>>) {
        let flight = Arc::clone(flight);
        let runtime = self.runtime.clone();
        runtime.spawn(async move {
            let _running = access.tally.enter();
            let made = match self.new_id() {
                Ok(file) => access.while_open(self.make(&access, file, Reason::Create)).await,
                Err(error) => Some(Err(error)),
            };
            let made = made.unwrap_or(Err(KeyError::Locked));
            let made = made.and_then(|ready| self.admit(&access, ready.file, &ready.known).map(|()| ready));
            if let Err(error) = &made {
                self.note_refusal(&access, error);
            }
            flight.land(made);
        });
    }

    /// Remembers for a moment that no key is made.
    pub fn note_refusal(&self, access: &Arc<Access>, error: &KeyError) {
        let mut state = self.state();
        if state.is_current(access) {
            state.refuse_new(error, Instant::now());
        }
    }

    /// Makes a key that is bound to `file`.
    pub async fn make(&self, access: &Access, file: FileId, reason: Reason) -> Result<Ready, KeyError> {
        let mut made = access.generate(file, reason).await;
        // A key for nobody yet is not worth those that were used.
        if reason != Reason::Pool && matches!(made, Err(KeyError::ArenaFull(_))) && self.make_room() {
            made = access.generate(file, reason).await;
        }
        let (key, wrapped) = made?;
        self.ready(file, key, wrapped.blob, Instant::now())
    }
}
