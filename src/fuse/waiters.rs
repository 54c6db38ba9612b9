//! Threads for the few requests that must wait for the key service, so that those who serve cached keys never do.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// As many requests wait at once; more of them queue.
const MOST: usize = 64;
/// A thread without work goes after this long.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

/// A pool that grows with its work and shrinks without it.
#[derive(Clone, Default)]
pub(super) struct Waiters {
    shared: Arc<Shared>,
}

impl Waiters {
    /// Runs `job` on a thread of the pool. If no thread can be had it runs here: late is better than never.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() || state.threads >= MOST {
            drop(state);
            self.shared.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = self.shared.clone();
        let spawned = std::thread::Builder::new().name("key-waiter".into()).spawn(move || shared.serve());
        if spawned.is_err() {
            let job = {
                let mut state = self.shared.lock();
                state.threads -= 1;
                if state.threads == 0 { state.jobs.pop_front() } else { None }
            };
            if let Some(job) = job {
                job();
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                // The thread waits for more, also through a lock: nothing of this request's keys may stay on its stack.
                crate::sys::stack::scrub();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (guard, timeout) = self
                .work
                .wait_timeout_while(state, IDLE, |state| state.jobs.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::{MOST, Waiters};

    #[test]
    fn every_job_runs_although_more_wait_than_threads_are_allowed() {
        let waiters = Waiters::default();
        let (hold, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let (done, finished) = mpsc::channel();
        for i in 0..MOST + 20 {
            let (held, done) = (held.clone(), done.clone());
            waiters.run(move || {
                held.lock().unwrap().recv().unwrap();
                done.send(i).unwrap();
            });
        }
        assert!(finished.try_recv().is_err(), "nobody was let go yet");
        for _ in 0..MOST + 20 {
            hold.send(()).unwrap();
        }
        let mut seen: Vec<usize> = finished.iter().take(MOST + 20).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..MOST + 20).collect::<Vec<_>>());
    }

    #[test]
    fn a_waiting_job_does_not_hold_up_the_next() {
        let waiters = Waiters::default();
        let (hold, held) = mpsc::channel::<()>();
        waiters.run(move || held.recv().unwrap_or_default());
        let (done, finished) = mpsc::channel();
        waiters.run(move || done.send(()).unwrap());
        finished.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        drop(hold);
    }
}
