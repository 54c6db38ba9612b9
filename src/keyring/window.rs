//! How far ahead of the reader keys are fetched: as far as the reader proves to follow.
//!
//! Listings suggest files; whether they are opened nobody knows. So a few keys are fetched on a suggestion, one more for
//! each that is then used, and fewer and fewer where none is: `find` over a million files costs a handful of calls a
//! minute, `grep -r` over them runs with as many keys ahead as it can use.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::format::FileId;

/// Keys that are fetched before any was used.
const START: usize = 64;
/// Keys that are fetched in vain at most in each [`STALE`] where nobody follows.
const LEAST: usize = 16;
/// The most keys that wait for their use.
const MOST: usize = 1024;
/// Keys that were not used for so long are not waited for any more.
const STALE: Duration = Duration::from_secs(30);
/// What an open that had to wait adds: whoever opens files that nobody fetched ahead would have liked it.
const MISSED: usize = 2;

/// Which keys were fetched on a suggestion and not used yet, and how many may be.
pub(super) struct Window {
    waiting: HashSet<FileId>,
    limit: usize,
    most: usize,
    moved: Option<Instant>,
}

impl Window {
    /// `cache`: how many keys are kept; what is fetched ahead must not push out what is used.
    pub fn new(cache: usize) -> Self {
        let most = (cache / 4).clamp(1, MOST);
        Window { waiting: HashSet::new(), limit: START.min(most), most, moved: None }
    }

    /// Whether `key` waits for its use already.
    pub fn awaits(&self, key: &FileId) -> bool {
        self.waiting.contains(key)
    }

    /// Whether one key more may be fetched; then it counts.
    pub fn send(&mut self, key: FileId, now: Instant) -> bool {
        let moved = *self.moved.get_or_insert(now);
        let idle = now.saturating_duration_since(moved).as_secs() / STALE.as_secs();
        if idle > 0 {
            self.waiting.clear();
            self.limit = (self.limit >> idle.min(16)).max(LEAST.min(self.most));
            self.moved = Some(now);
        }
        self.waiting.len() < self.limit && self.waiting.insert(key)
    }

    /// A key was used; if it had been fetched ahead, the reader follows.
    pub fn used(&mut self, key: &FileId, now: Instant) {
        if !self.waiting.is_empty() && self.waiting.remove(key) {
            self.grow(1, now);
        }
    }

    /// Somebody had to wait for a key.
    pub fn missed(&mut self, now: Instant) {
        self.grow(MISSED, now);
    }

    /// A key that was asked for did not come.
    pub fn failed(&mut self, key: &FileId) {
        self.waiting.remove(key);
    }

    fn grow(&mut self, by: usize, now: Instant) {
        self.limit = (self.limit + by).min(self.most);
        self.moved = Some(now);
    }

    /// Forgets everything, as after a lock.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.limit = START.min(self.most);
        self.moved = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> FileId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        FileId(id)
    }

    #[test]
    fn a_listing_that_nobody_follows_costs_little_and_less_with_time() {
        let start = Instant::now();
        let mut window = Window::new(16_384);
        let mut sent = Vec::new();
        for minute in 0..10_u64 {
            let now = start + Duration::from_secs(60 * minute);
            sent.push((0..10_000).filter(|n| window.send(key(minute as usize * 10_000 + n), now)).count());
        }
        assert_eq!(sent, [64, 16, 16, 16, 16, 16, 16, 16, 16, 16]);
    }

    #[test]
    fn a_reader_that_follows_is_run_ahead_of_and_bounded_by_the_cache() {
        let now = Instant::now();
        for (cache, most) in [(16_384, 1024), (400, 100), (1, 1)] {
            let mut window = Window::new(cache);
            let (mut next, mut read) = (0, 0);
            for _ in 0..10_000 {
                while window.send(key(next), now) {
                    next += 1;
                }
                window.used(&key(read), now);
                read += 1;
            }
            while window.send(key(next), now) {
                next += 1;
            }
            assert_eq!(next - read, most, "cache {cache}");
        }
    }

    #[test]
    fn misses_open_a_window_that_was_wasted() {
        let now = Instant::now();
        let mut window = Window::new(16_384);
        assert_eq!((0..1000).filter(|n| window.send(key(*n), now)).count(), 64);
        (0..10).for_each(|_| window.missed(now));
        assert_eq!((1000..2000).filter(|n| window.send(key(*n), now)).count(), 20);
        // The same key twice is one; one that failed makes room.
        assert!(window.awaits(&key(0)) && !window.send(key(0), now));
        window.failed(&key(0));
        assert!(window.send(key(5000), now));
    }
}
