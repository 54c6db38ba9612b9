//! What the keyring holds under its one mutex. Nothing here waits, calls out or touches the disk.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::access::Access;
use super::flight::Flight;
use super::options::{KeyError, MAX_POOL};
use crate::crypto::Secret;
use crate::crypto::envelope::EnvelopeKey;
use crate::format::FileId;
use crate::format::slots::KeySlot;

/// How long a no is repeated without asking again.
const REFUSAL: Duration = Duration::from_secs(1);
/// Refusals remembered at most.
const REFUSALS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// How long a ready key may wait for its file.
pub(super) const READY_FOR: Duration = Duration::from_secs(300);
/// How many ready keys there are at first and at least.
const SMALL_POOL: usize = 8;
/// How long nothing is made or fetched ahead after it failed.
const QUIET: Duration = Duration::from_secs(1);

/// A file's key and what it commits the header to.
#[derive(Clone)]
pub(super) struct Known {
    pub key: Arc<Secret>,
    pub commitment: [u8; 32],
}

/// A key for a file to come.
pub(super) struct Ready {
    pub file: FileId,
    pub known: Known,
    pub slot: KeySlot,
    pub born: Instant,
}

struct Refusal {
    until: Instant,
    wrapped: Vec<u8>,
    error: KeyError,
}

pub(super) struct State {
    /// `None`: locked.
    pub access: Option<Arc<Access>>,
    pub cache: LruCache<FileId, Known>,
    pub flights: HashMap<FileId, Arc<Flight<Known>>>,
    pub groups: HashMap<[u8; 16], Arc<EnvelopeKey>>,
    refused: LruCache<FileId, Refusal>,
    refused_new: Option<(Instant, KeyError)>,
    pool: VecDeque<Ready>,
    pool_most: usize,
    pool_target: usize,
    quiet_until: Option<Instant>,
}

impl State {
    pub fn new(cache: usize, pool: usize) -> Self {
        let pool_most = pool.min(MAX_POOL);
        State {
            access: None,
            cache: LruCache::sparse(NonZeroUsize::new(cache).unwrap_or(NonZeroUsize::MIN)),
            flights: HashMap::new(),
            groups: HashMap::new(),
            refused: LruCache::sparse(REFUSALS),
            refused_new: None,
            pool: VecDeque::new(),
            pool_most,
            pool_target: SMALL_POOL.min(pool_most),
            quiet_until: None,
        }
    }

    /// Whether `access` is still the one that counts.
    pub fn is_current(&self, access: &Arc<Access>) -> bool {
        self.access.as_ref().is_some_and(|current| Arc::ptr_eq(current, access))
    }

    /// The no that this very wrapped key got a moment ago.
    pub fn refusal(&mut self, file: &FileId, wrapped: &[u8], now: Instant) -> Option<KeyError> {
        let refusal = self.refused.peek(file).filter(|refusal| refusal.wrapped == wrapped)?;
        (now < refusal.until).then(|| refusal.error.clone())
    }

    /// Remembers a definite no; other errors are asked again.
    pub fn refuse(&mut self, file: FileId, wrapped: &[u8], error: &KeyError, now: Instant) {
        if is_definite(error) {
            let refusal = Refusal { until: now + REFUSAL, wrapped: wrapped.to_vec(), error: error.clone() };
            self.refused.put(file, refusal);
        }
    }

    /// The no that a new key got a moment ago.
    pub fn refusal_new(&self, now: Instant) -> Option<KeyError> {
        self.refused_new.as_ref().filter(|(until, _)| now < *until).map(|(_, error)| error.clone())
    }

    /// Remembers a definite no to a new key.
    pub fn refuse_new(&mut self, error: &KeyError, now: Instant) {
        if is_definite(error) {
            self.refused_new = Some((now + REFUSAL, error.clone()));
        }
    }

    /// A key for a new file, with whether the pool wants filling; `None` when it is dry, and then it grows.
    pub fn take_ready(&mut self, now: Instant) -> Option<Ready> {
        self.drop_expired(now);
        let ready = self.pool.pop_front();
        if ready.is_none() {
            self.pool_target = (self.pool_target * 2).min(self.pool_most);
        }
        ready
    }

    pub fn has_ready(&self, now: Instant) -> bool {
        self.pool.back().is_some_and(|youngest| now < youngest.born + READY_FOR)
    }

    pub fn put_ready(&mut self, ready: Ready) {
        if self.pool.len() < self.pool_most {
            self.pool.push_back(ready);
        }
    }

    /// How many keys to make now (none above half of the target), and when to look again without being asked to.
    pub fn pool_plan(&mut self, now: Instant) -> (usize, Option<Instant>) {
        if self.drop_expired(now) > 0 {
            // Nobody came for them: fewer the next time, and none until somebody creates a file.
            self.pool_target = (self.pool_target / 2).max(SMALL_POOL.min(self.pool_most));
        }
        let expiry = self.pool.front().map(|oldest| oldest.born + READY_FOR);
        if self.is_quiet(now) {
            return (0, expiry);
        }
        let low = self.pool.len() * 2 < self.pool_target;
        (if low { self.pool_target - self.pool.len() } else { 0 }, expiry)
    }

    fn drop_expired(&mut self, now: Instant) -> usize {
        let before = self.pool.len();
        self.pool.retain(|ready| now < ready.born + READY_FOR);
        before - self.pool.len()
    }

    pub fn ready(&self) -> usize {
        self.pool.len()
    }

    pub fn hush(&mut self, now: Instant) {
        self.quiet_until = Some(now + QUIET);
    }

    pub fn is_quiet(&self, now: Instant) -> bool {
        self.quiet_until.is_some_and(|until| now < until)
    }

    /// Frees the older half of the cache's slots in the arena.
    pub fn evict_half(&mut self) -> Vec<Known> {
        let half = self.cache.len().div_ceil(2);
        (0..half).filter_map(|_| self.cache.pop_lru().map(|(_, known)| known)).collect()
    }

    /// Takes everything out; the keyring is locked from then on. The caller wipes outside of the mutex.
    pub fn close(&mut self) -> Closed {
        let cached = std::iter::from_fn(|| self.cache.pop_lru()).map(|(_, known)| known.key);
        let mut keys: Vec<Arc<Secret>> = cached.collect();
        keys.extend(self.pool.drain(..).map(|ready| ready.known.key));
        self.refused.clear();
        self.refused_new = None;
        self.quiet_until = None;
        self.pool_target = SMALL_POOL.min(self.pool_most);
        Closed {
            access: self.access.take(),
            keys,
            groups: self.groups.drain().map(|(_, group)| group).collect(),
            flights: self.flights.drain().map(|(_, flight)| flight).collect(),
        }
    }
}

/// What a lock took out of the keyring.
pub(super) struct Closed {
    pub access: Option<Arc<Access>>,
    pub keys: Vec<Arc<Secret>>,
    pub groups: Vec<Arc<EnvelopeKey>>,
    pub flights: Vec<Arc<Flight<Known>>>,
}

fn is_definite(error: &KeyError) -> bool {
    matches!(error, KeyError::Denied(_) | KeyError::Misconfigured(_))
}
