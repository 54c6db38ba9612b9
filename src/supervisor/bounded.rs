//! Work that may hang in the kernel, and must not hold the lock up.

use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// An item that takes this long may hang: the others go on beside it.
const SLOW: Duration = Duration::from_millis(50);
/// Threads that may hang at once.
const MOST: usize = 16;

/// Runs `work` on a thread of its own and waits for it until `deadline`. A thread that hangs in a notification or in the
/// store is left to itself; it ends with what it hangs in.
pub(super) fn bounded<T: Send + 'static>(deadline: Instant, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, finished) = mpsc::channel();
    std::thread::Builder::new()
        .name("notify".into())
        .spawn(move || {
            let _ = done.send(work());
        })
        .ok()?;
    finished.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}

/// How far [`each`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Items that were finished.
    pub done: usize,
    /// All items.
    pub all: usize,
}

impl Progress {
    /// Whether nothing is left.
    pub fn is_complete(self) -> bool {
        self.done == self.all
    }
}

struct Shared<F> {
    work: F,
    all: usize,
    next: AtomicUsize,
    done: AtomicUsize,
    over: AtomicBool,
    finished: mpsc::Sender<()>,
}

impl<F: Fn(usize) -> bool> Shared<F> {
    fn run(&self) {
        while !self.over.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.all {
                break;
            }
            if !(self.work)(index) {
                // Nothing is left to be done: as if the rest were.
                self.over.store(true, Ordering::Relaxed);
                self.done.store(self.all, Ordering::Relaxed);
                break;
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        let _ = self.finished.send(());
    }
}

/// Does `work` for every index below `all`, until `deadline`. While one item hangs, further threads do the others; when
/// nothing but hanging items is left and none of them has come to an end for `patience`, it gives up. `work` says
/// whether there is anything left to be done at all (false: the connection has gone).
pub(super) fn each<F>(all: usize, deadline: Instant, patience: Duration, work: F) -> Progress
where
    F: Fn(usize) -> bool + Send + Sync + 'static,
{
    let (finished, ended) = mpsc::channel();
    let shared = Arc::new(Shared {
        work,
        all,
        next: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        finished,
    });
    let start = || {
        let shared = shared.clone();
        std::thread::Builder::new().name("notify".into()).spawn(move || shared.run()).is_ok()
    };
    let progress = || Progress { done: shared.done.load(Ordering::Relaxed).min(all), all };
    let mut threads = usize::from(start());
    let (mut seen, mut since) = (0, Instant::now());
    while !progress().is_complete() && threads > 0 && Instant::now() < deadline {
        // Wakes at the end of a thread, which is the end of all work where none hangs.
        let _ = ended.recv_timeout(SLOW.min(deadline.saturating_duration_since(Instant::now())));
        let done = progress().done;
        if done != seen {
            (seen, since) = (done, Instant::now());
        } else if shared.next.load(Ordering::Relaxed) >= all {
            if since.elapsed() >= patience {
                break;
            }
        } else if threads < MOST && since.elapsed() >= SLOW && start() {
            threads += 1;
        }
    }
    shared.over.store(true, Ordering::Relaxed);
    progress()
}

/// Waits for a helper process until `deadline`; then kills it. It is not waited for after that: a process in the middle
/// of a request cannot end before the connection does.
pub(super) fn wait_for(child: &mut Child, deadline: Instant) {
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(Some(_)) | Err(_) => return,
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    let _ = child.kill();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[test]
    fn everything_is_done_once() {
        let seen: Arc<Vec<AtomicUsize>> = Arc::new((0..1000).map(|_| AtomicUsize::new(0)).collect());
        let work = {
            let seen = seen.clone();
            move |index: usize| {
                seen[index].fetch_add(1, Ordering::SeqCst);
                true
            }
        };
        assert!(each(1000, soon(60_000), Duration::from_secs(60), work).is_complete());
        assert!(seen.iter().all(|count| count.load(Ordering::SeqCst) == 1));
        assert!(each(0, soon(60_000), Duration::from_secs(60), |_| true).is_complete());
    }

    #[test]
    fn what_hangs_keeps_nothing_else_from_being_done() {
        let (hold, held) = mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let begun = Instant::now();
        let progress = each(200, soon(60_000), Duration::from_millis(300), move |index| {
            if index == 3 {
                let _ = held.lock().map(|held| held.recv());
            }
            true
        });
        assert_eq!(progress, Progress { done: 199, all: 200 });
        assert!(begun.elapsed() < Duration::from_secs(50), "it waits for what hangs");
        drop(hold);
    }

    #[test]
    fn a_connection_that_has_gone_ends_it() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let progress = each(1000, soon(60_000), Duration::from_secs(60), move |index| {
            count.fetch_add(1, Ordering::SeqCst);
            index != 5
        });
        assert!(progress.is_complete());
        assert_eq!(asked.load(Ordering::SeqCst), 6);
    }
}
