//! What is still to be looked at, shared by all threads. Files go first, in order, so that directories are read no
//! faster than their files are checked, and a key that was asked for ahead has had time to come.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Files that may wait at most; a thread that finds more checks them itself.
const ROOM: usize = 2048;

/// One piece of work.
pub enum Job<D, F> {
    /// Read a directory.
    Directory(D),
    /// Check a file, or help with one.
    File(F),
}

struct State<D, F> {
    directories: Vec<D>,
    files: VecDeque<F>,
    busy: usize,
    stopped: bool,
}

/// The queue.
pub struct Queue<D, F> {
    state: Mutex<State<D, F>>,
    wake: Condvar,
}

impl<D, F> Queue<D, F> {
    pub fn new() -> Self {
        let state = State { directories: Vec::new(), files: VecDeque::new(), busy: 0, stopped: false };
        Queue { state: Mutex::new(state), wake: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State<D, F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push_directory(&self, job: D) {
        self.state().directories.push(job);
        self.wake.notify_one();
    }

    /// Takes a file, or gives it back where too many wait.
    pub fn push_file(&self, job: F) -> Option<F> {
        let mut state = self.state();
        if state.files.len() >= ROOM {
            return Some(job);
        }
        state.files.push_back(job);
        drop(state);
        self.wake.notify_one();
        None
    }

    /// Puts something before everything else that waits.
    pub fn push_first(&self, job: F) {
        self.state().files.push_front(job);
        self.wake.notify_one();
    }

    /// Ends the work: what waits is dropped.
    pub fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        state.directories.clear();
        state.files.clear();
        drop(state);
        self.wake.notify_all();
    }

    /// Whether the work was ended.
    pub fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Does everything, together with the other threads that call this; returns when nothing is left.
    pub fn work(&self, each: impl Fn(Job<D, F>)) {
        /// Also when `each` panics: the other threads must not wait for ever.
        struct Busy<'a, D, F>(&'a Queue<D, F>);
        impl<D, F> Drop for Busy<'_, D, F> {
            fn drop(&mut self) {
                let mut state = self.0.state();
                state.busy -= 1;
                if state.busy == 0 {
                    self.0.wake.notify_all();
                }
            }
        }
        loop {
            let job = {
                let mut state = self.state();
                let found = loop {
                    if let Some(file) = state.files.pop_front() {
                        break Some(Job::File(file));
                    }
                    if let Some(directory) = state.directories.pop() {
                        break Some(Job::Directory(directory));
                    }
                    if state.busy == 0 || state.stopped {
                        break None;
                    }
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                };
                state.busy += usize::from(found.is_some());
                found
            };
            let Some(job) = job else { return };
            let _busy = Busy(self);
            each(job);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{Job, Queue, ROOM};

    #[test]
    fn everything_is_done_once_by_many_threads() {
        let queue = Queue::<u64, u64>::new();
        let (directories, files) = (AtomicU64::new(0), AtomicU64::new(0));
        queue.push_directory(6);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    queue.work(|job| match job {
                        Job::Directory(depth) => {
                            directories.fetch_add(1, Ordering::Relaxed);
                            for file in 0..100 {
                                if queue.push_file(file).is_some() {
                                    files.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                            if depth > 0 {
                                (0..3).for_each(|_| queue.push_directory(depth - 1));
                            }
                        }
                        Job::File(_) => {
                            files.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                });
            }
        });
        let all = (0..=6).map(|level| 3_u64.pow(level)).sum::<u64>();
        assert_eq!((directories.into_inner(), files.into_inner()), (all, all * 100));
    }

    #[test]
    fn a_full_queue_gives_files_back_and_a_stopped_one_ends() {
        let queue = Queue::<(), usize>::new();
        assert!((0..ROOM).all(|n| queue.push_file(n).is_none()));
        assert_eq!(queue.push_file(7), Some(7));
        queue.stop();
        queue.work(|_| panic!("nothing is left"));
        assert!(queue.is_stopped());
    }
}
