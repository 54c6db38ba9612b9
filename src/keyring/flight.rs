//! One call that many threads wait for.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::options::KeyError;

/// Where the outcome of a call will be.
pub(super) struct Flight<T> {
    outcome: Mutex<Option<Result<T, KeyError>>>,
    landed: Condvar,
    /// Whether nobody waits for it yet.
    background: AtomicBool,
}

impl<T: Clone> Flight<T> {
    pub fn new(background: bool) -> Arc<Self> {
        Arc::new(Flight { outcome: Mutex::new(None), landed: Condvar::new(), background: AtomicBool::new(background) })
    }

    /// Whether nobody waits for it yet.
    pub fn is_background(&self) -> bool {
        self.background.load(Ordering::Relaxed)
    }

    /// Somebody waits from now on; gives whether they are the first.
    pub fn join(&self) -> bool {
        self.background.swap(false, Ordering::Relaxed)
    }

    /// Sets the outcome and wakes everyone; the first outcome stays.
    pub fn land(&self, outcome: Result<T, KeyError>) {
        let mut place = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            *place = Some(outcome);
            self.landed.notify_all();
        }
    }

    /// Blocks this thread until there is an outcome; `None` after `longest`.
    pub fn wait(&self, longest: Duration) -> Option<Result<T, KeyError>> {
        let until = Instant::now() + longest;
        let mut place = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = &*place {
                return Some(outcome.clone());
            }
            let left = until.checked_duration_since(Instant::now())?;
            place = self.landed.wait_timeout(place, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Work that a lock waits for before it says that nothing is left.
#[derive(Default)]
pub(super) struct Tally {
    running: Mutex<usize>,
    changed: Condvar,
}

/// One running piece of work; drop it last.
pub(super) struct Running(Arc<Tally>);

impl Tally {
    pub fn enter(self: &Arc<Self>) -> Running {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Running(Arc::clone(self))
    }

    /// Waits until nothing runs, at most `longest`; gives whether that was reached.
    pub fn wait_idle(&self, longest: Duration) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(running, longest, |running| *running > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.changed.notify_all();
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread: for providers that answer at once.
pub(super) fn here<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(outcome) => return outcome,
            Poll::Pending => std::thread::park(),
        }
    }
}
