//! What the keyring holds under its one mutex. Nothing here waits, calls out or touches the disk.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::access::Access;
use super::flight::Flight;
use super::options::KeyError;
use super::pool::{Plan, Pool};
use super::window::Window;
use crate::crypto::Secret;
use crate::crypto::envelope::EnvelopeKey;
use crate::format::FileId;

/// How long a no is repeated without asking again.
const REFUSAL: Duration = Duration::from_secs(1);
/// Refusals remembered at most.
const REFUSALS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// How long nothing is made or fetched ahead after it failed.
const QUIET: Duration = Duration::from_secs(1);

/// A file's key and what it commits the header to.
#[derive(Clone)]
pub(super) struct Known {
    pub key: Arc<Secret>,
    pub commitment: [u8; 32],
}

/// A key for a file or directory to come.
#[derive(Clone)]
pub(super) struct Ready {
    /// What it is bound to.
    pub file: FileId,
    pub known: Known,
    pub wrapped: Vec<u8>,
    pub born: Instant,
}

struct Refusal {
    until: Instant,
    wrapped: Vec<u8>,
    error: KeyError,
}

/// The group key that new files of a directory are wrapped by.
#[derive(Clone)]
pub(super) struct Home {
    /// Wrapped by the customer key, for the files' headers.
    pub wrapped: Vec<u8>,
    /// Under which it is cached.
    pub place: FileId,
}

pub(super) struct State {
    /// `None`: locked.
    pub access: Option<Arc<Access>>,
    pub cache: LruCache<FileId, Known>,
    pub flights: HashMap<FileId, Arc<Flight<Known>>>,
    pub groups: HashMap<[u8; 16], Arc<EnvelopeKey>>,
    /// By the directory's id, which is the group's.
    pub homes: LruCache<[u8; 16], Home>,
    pub window: Window,
    refused: LruCache<FileId, Refusal>,
    refused_new: Option<(Instant, KeyError)>,
    pub pool: Pool,
    quiet_until: Option<Instant>,
}

impl State {
    pub fn new(cache: usize, pool: Pool) -> Self {
        let room = NonZeroUsize::new(cache).unwrap_or(NonZeroUsize::MIN);
        State {
            access: None,
            cache: LruCache::sparse(room),
            flights: HashMap::new(),
            groups: HashMap::new(),
            homes: LruCache::sparse(room),
            window: Window::new(cache),
            refused: LruCache::sparse(REFUSALS),
            refused_new: None,
            pool,
            quiet_until: None,
        }
    }

    /// Whether `access` is still the one that counts.
    pub fn is_current(&self, access: &Arc<Access>) -> bool {
        self.access.as_ref().is_some_and(|current| Arc::ptr_eq(current, access))
    }

    /// A call has come to its end: nobody joins it any more.
    pub fn flown(&mut self, place: &FileId, flight: &Arc<Flight<Known>>) {
        if self.flights.get(place).is_some_and(|current| Arc::ptr_eq(current, flight)) {
            self.flights.remove(place);
        }
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

    /// What to make for the pool besides the `making` that are being made.
    pub fn pool_plan(&mut self, making: usize, now: Instant) -> Plan {
        if self.is_quiet(now) { self.pool.wait(now) } else { self.pool.plan(making, now) }
    }

    pub fn hush(&mut self, now: Instant) {
        self.quiet_until = Some(now + QUIET);
        self.pool.pause(now);
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
        keys.extend(self.pool.drain().map(|ready| ready.known.key));
        self.refused.clear();
        self.refused_new = None;
        self.quiet_until = None;
        self.homes.clear();
        self.window.clear();
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
