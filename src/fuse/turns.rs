//! Who waits for the next request: one thread as long as one can keep up, all of them when requests come side by side.
//!
//! The kernel hands a request to whichever thread has waited longest, and waking a thread that sleeps on another
//! processor costs more than most requests do: 40 to 60 µs, against 2.5 µs for a thread that is awake. A program that
//! does one thing after the other (`tar`, `git`, a compiler) pays that for every request. So while requests come one by
//! one, one thread alone takes them all, and looks out for the next for a moment before it sleeps; the others rest.
//!
//! What must not happen is that a request waits because the one thread is busy with another. Three things see to it:
//!
//! - a thread that has answered looks whether a request waited meanwhile. The longer it waited the sooner all threads
//!   take requests again, until for a while none was answered beside another;
//! - before an operation that is known to be slow ([`Turns::slow`]) a resting thread is sent to take its place;
//! - one of the resting threads keeps watch, and takes requests as soon as nobody has for two milliseconds.
//!
//! The watch costs a timer per millisecond while requests come, and nothing when the mount is idle.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a thread looks out for the next request before it sleeps: longer than a program takes between two requests
/// that follow from one system call or from one line of its loop.
const LOOK_OUT: Duration = Duration::from_micros(100);
/// Other programs had this thread's processor for longer than this when it offered it to them: they need it more.
const OUTVOTED: Duration = Duration::from_micros(25);
/// The watch looks this often whether requests are being taken.
const TICK: Duration = Duration::from_millis(1);
/// After so many ticks without a request the watch sleeps until there is one.
const QUIET: u32 = 64;
/// Looking out is given up after so many times in vain, and tried again once in [`RETRY`] requests.
const PATIENCE: i32 = 8;
const RETRY: u64 = 32;
/// The pressure at which all threads take requests, the one at which one alone does again, and the most there can be.
const ALL: i32 = 32;
const ONE: i32 = 4;
const MOST: i32 = 64;

#[derive(Default)]
struct Rest {
    /// Whether one of the resting threads keeps watch.
    watched: bool,
    /// Threads that rest.
    resting: usize,
    /// Threads that are to take requests again.
    called: usize,
}

/// Shared by the threads of a session.
pub(super) struct Turns {
    device: OwnedFd,
    threads: i32,
    look_out: bool,
    /// Threads that wait for a request, or look out for one.
    waiting: AtomicI32,
    /// Requests taken so far.
    taken: AtomicU64,
    pressure: AtomicI32,
    /// The last request may have been a part of one.
    part: AtomicBool,
    patience: AtomicI32,
    /// All threads take requests.
    together: AtomicBool,
    rest: Mutex<Rest>,
    changed: Condvar,
}

/// A request that a thread has taken.
pub(super) struct Turn {
    begun: Instant,
    number: u64,
}

impl Turns {
    /// For a session of so many threads, all of which wait for requests at `device` at first.
    pub(super) fn new(device: OwnedFd, threads: usize) -> Turns {
        let threads = i32::try_from(threads).unwrap_or(i32::MAX);
        Turns {
            device,
            threads,
            look_out: std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1),
            waiting: AtomicI32::new(threads),
            taken: AtomicU64::new(0),
            pressure: AtomicI32::new(0),
            part: AtomicBool::new(false),
            patience: AtomicI32::new(PATIENCE),
            together: AtomicBool::new(false),
            rest: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The calling thread has got a request.
    pub(super) fn begin(&self) -> Turn {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Turn { begun: Instant::now(), number: self.taken.fetch_add(1, Ordering::SeqCst) }
    }

    /// The calling thread's request will take long: another one is to take the next.
    pub(super) fn slow(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 || self.together.load(Ordering::SeqCst) {
            return;
        }
        let mut rest = self.lock();
        if rest.resting > rest.called {
            rest.called += 1;
            drop(rest);
            self.changed.notify_all();
        }
    }

    /// The calling thread has answered, and goes to take the next request when this returns. `closed`: the volume is
    /// being locked in place, which every thread must hear of by a request. `part`: it may have been one of many parts of
    /// one request, between which a thread must not rest, and looks out for another request after the first only.
    pub(super) fn end(&self, turn: &Turn, closed: bool, part: bool) {
        let queued = self.queued();
        let together = self.judge(turn, queued) || closed;
        if !self.together.swap(together, Ordering::SeqCst) && together {
            self.release();
        }
        let alone = !together && !queued;
        if alone && !part && self.waiting.load(Ordering::SeqCst) > 0 {
            self.rest();
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let first = !(self.part.swap(part, Ordering::Relaxed) && part);
        if alone && first && self.look_out {
            self.look_out(turn.number);
        }
    }

    /// Sends all threads to take requests: a connection that ends, or a lock, needs each of them.
    pub(super) fn release(&self) {
        let mut rest = self.lock();
        rest.called = rest.resting;
        drop(rest);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request waits to be taken (or the connection has ended).
    fn queued(&self) -> bool {
        !self.poll(Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_empty()
    }

    /// Whether the connection has ended, so that waiting for requests ends at once, too.
    fn has_ended(&self) -> bool {
        let ended = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        self.poll(Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).intersects(ended)
    }

    /// What the device has for whoever reads it, once it has something or `limit` has passed.
    fn poll(&self, limit: Option<&Timespec>) -> PollFlags {
        let mut device = [PollFd::new(&self.device, PollFlags::IN)];
        match poll(&mut device, limit) {
            Ok(_) => device[0].revents(),
            // Interrupted, or no memory: whoever reads will see.
            Err(_) => PollFlags::IN,
        }
    }

    /// Whether all threads should take requests, after one that was answered.
    fn judge(&self, turn: &Turn, queued: bool) -> bool {
        let now = self.pressure.load(Ordering::Relaxed);
        let together = self.together.load(Ordering::SeqCst);
        // A thread that waits for requests among others cannot see them queue, but sees the others at work.
        let beside = together && self.waiting.load(Ordering::SeqCst) < self.threads - 1;
        let change = if queued || beside {
            let waited = i32::try_from(turn.begun.elapsed().as_micros() / 16).unwrap_or(MOST).min(MOST);
            1 + waited
        } else {
            -1
        };
        let then = (now + change).clamp(0, MOST);
        // Lost updates of other threads are of no consequence.
        self.pressure.store(then, Ordering::Relaxed);
        if together { then > ONE } else { then >= ALL }
    }

    /// Stays awake for a moment, because the next request of a busy program is near.
    fn look_out(&self, number: u64) {
        let patience = self.patience.load(Ordering::Relaxed);
        if patience == 0 && !number.is_multiple_of(RETRY) {
            return;
        }
        let begun = Instant::now();
        let mut last = begun;
        let seen = loop {
            if self.queued() {
                break true;
            }
            std::thread::yield_now();
            let now = Instant::now();
            if now - begun > LOOK_OUT || now - last > OUTVOTED {
                break false;
            }
            last = now;
        };
        let patience = if seen { PATIENCE } else { (patience - 1).max(0) };
        self.patience.store(patience, Ordering::Relaxed);
    }

    /// Returns when the calling thread is to take requests.
    fn rest(&self) {
        let mut rest = self.lock();
        rest.resting += 1;
        loop {
            if rest.called > 0 {
                rest.called -= 1;
                break;
            }
            if rest.watched {
                rest = self.changed.wait(rest).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            rest.watched = true;
            let (guard, needed) = self.watch(rest);
            rest = guard;
            rest.watched = false;
            if needed {
                // Somebody else may have been called at the same time; one thread more does no harm.
                rest.called = rest.called.saturating_sub(1);
                break;
            }
        }
        rest.resting -= 1;
        drop(rest);
        // The watch, if it was this thread's, goes to another.
        self.changed.notify_all();
    }

    /// Watches until some resting thread is called (false), or this one is needed (true).
    fn watch<'a>(&'a self, mut rest: MutexGuard<'a, Rest>) -> (MutexGuard<'a, Rest>, bool) {
        let mut last = None;
        let mut quiet = 0;
        loop {
            if rest.called > 0 {
                return (rest, false);
            }
            let taken = self.taken.load(Ordering::SeqCst);
            let busy = self.waiting.load(Ordering::SeqCst) <= 0;
            if last == Some(taken) && busy {
                return (rest, true);
            }
            quiet = if last == Some(taken) { quiet + 1 } else { 0 };
            last = Some(taken);
            if quiet == QUIET {
                quiet = 0;
                drop(rest);
                self.poll(None);
                rest = self.lock();
            }
            if self.has_ended() {
                // Nobody else will hear of it: the threads that waited for requests are gone.
                rest.called = rest.resting;
                return (rest, true);
            }
            rest = self.changed.wait_timeout(rest, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests;
