//! Takes what requests have left behind off the session's threads, which live on when the volume is locked in place:
//! plaintext in the buffer that they receive requests into and in the one that they read files into, states of keys on
//! their stacks.
//!
//! A thread that waits for a request sits in `read(2)` with its buffer in the kernel's hands; nobody else can wipe it
//! without racing with the kernel. So each thread cleans itself, at the one moment when its buffer is surely dead: when
//! it has answered a request. For that every thread must get one. [`Cleaner::gather`] has as many questions asked at once
//! as there are threads, by a process of its own (`statfs` on the mount), and each thread, when it has answered and
//! cleaned itself, waits until all others have: so none gets a second question before the last has had its first.
//!
//! Other ways were weighed. Zeroing the buffers from outside can destroy a request that is just arriving. Ending the
//! threads and starting new ones would wipe the buffers by freeing them, but fuser ends a thread only with the
//! connection, and starts one only with a handshake that the kernel makes once.
//!
//! Once locked, each thread goes on to clean its buffer after every answer, so that neither names nor data which programs
//! send in vain stay there.

use std::cell::{Cell, RefCell};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::session::MAX_REQUEST;
use crate::sys::{receive, stack};

/// Header, names and a link target: what any request but those with data brings.
const SMALL: usize = 16 << 10;
/// Any request: the data of the largest, and its header.
const WHOLE: usize = MAX_REQUEST as usize + (64 << 10);

thread_local! {
    /// Where READ puts plaintext before it goes to the kernel; wiped by the allocator when the thread ends.
    pub(super) static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// The last round in which this thread cleaned itself.
    static CLEANED: Cell<u64> = const { Cell::new(0) };
}

#[derive(Default)]
struct Round {
    number: u64,
    /// Whether threads that have cleaned themselves wait for the others.
    gathering: bool,
    /// Threads that have cleaned themselves in this round.
    clean: usize,
    /// Those of them whose receive buffer was not found.
    unknown: usize,
}

/// What a round has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleaned {
    /// Threads of the session.
    pub threads: usize,
    /// Threads that have wiped everything.
    pub clean: usize,
    /// Threads that have, but whose receive buffer is not known.
    pub unknown: usize,
}

/// Shared by the session's threads and whoever locks.
pub struct Cleaner {
    threads: usize,
    round: Mutex<Round>,
    changed: Condvar,
}

impl Cleaner {
    /// For a session of so many threads.
    pub(super) fn new(threads: usize) -> Cleaner {
        Cleaner { threads, round: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Threads of the session.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Has every thread clean itself: `ask` must make the kernel send at least one request to each. Waits at most `limit`;
    /// a thread that hangs in the store cleans itself when it has answered. To be called when the filesystem is closed.
    pub fn gather(&self, limit: Duration, ask: impl FnOnce()) -> Cleaned {
        {
            let mut round = self.lock();
            *round = Round { number: round.number + 1, gathering: true, ..Round::default() };
        }
        ask();
        let until = Instant::now() + limit;
        let mut round = self.lock();
        while round.clean < self.threads {
            let Some(left) = until.checked_duration_since(Instant::now()) else { break };
            round = self.changed.wait_timeout(round, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        round.gathering = false;
        self.changed.notify_all();
        Cleaned { threads: self.threads, clean: round.clean, unknown: round.unknown }
    }

    /// The calling thread of the session has answered a request on a closed filesystem. `large`: the request brought data.
    pub(super) fn after_answer(&self, large: bool) {
        let number = self.lock().number;
        if CLEANED.get() == number {
            receive::wipe_own(if large { WHOLE } else { SMALL });
            return;
        }
        // Dropped, and with that wiped: it is made anew when it is needed.
        READ_BUFFER.with(|buffer| {
            if let Ok(mut buffer) = buffer.try_borrow_mut() {
                *buffer = Vec::new();
            }
        });
        let known = receive::wipe_own(WHOLE);
        stack::scrub();
        CLEANED.set(number);
        let mut round = self.lock();
        if round.number != number {
            return;
        }
        round.clean += 1;
        round.unknown += usize::from(!known);
        self.changed.notify_all();
        while round.gathering && round.number == number && round.clean < self.threads {
            round = self.changed.wait(round).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::Cleaner;

    /// Threads that answer `questions` in all, whoever is free first.
    fn session(cleaner: &Arc<Cleaner>, threads: usize, questions: usize) -> Vec<std::thread::JoinHandle<()>> {
        let left = Arc::new(AtomicUsize::new(questions));
        (0..threads)
            .map(|_| {
                let (cleaner, left) = (cleaner.clone(), left.clone());
                std::thread::spawn(move || {
                    while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                        cleaner.after_answer(false);
                    }
                })
            })
            .collect()
    }

    #[test]
    fn no_thread_gets_a_second_question_before_the_last_has_had_its_first() {
        for _ in 0..50 {
            let cleaner = Arc::new(Cleaner::new(8));
            let mut threads = Vec::new();
            let cleaned = cleaner.gather(Duration::from_secs(60), || threads = session(&cleaner, 8, 8));
            assert_eq!((cleaned.clean, cleaned.threads), (8, 8));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
    }

    #[test]
    fn a_thread_that_hangs_holds_nobody_up_for_longer_than_the_limit() {
        let cleaner = Arc::new(Cleaner::new(3));
        let mut threads = Vec::new();
        let cleaned = cleaner.gather(Duration::from_millis(50), || threads = session(&cleaner, 2, 2));
        assert_eq!(cleaned.clean, 2);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // It comes back, and does not wait for anybody.
        session(&cleaner, 1, 5).into_iter().for_each(|thread| thread.join().unwrap());
    }
}
