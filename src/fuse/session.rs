//! A running connection: worker threads that read requests until the mount is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{Config, Notifier, SessionACL};

use super::adapter::Adapter;
use super::clean::{Cleaned, Cleaner};
use super::guard::Guard;
use super::mount::{Attached, Device};
use super::purge::Purge;
use super::tune;
use super::turns::Turns;
use crate::fs::Fs;
use crate::sys::step;

/// The largest READ and WRITE, in bytes: what the kernel's default of `fs.fuse.max_pages_limit` (256 pages) allows.
pub const MAX_REQUEST: u32 = 1 << 20;

/// Worker threads: one per processor, but two at least, so that a slow disk read does not hold up the rest.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16)
}

/// A mounted volume that answers. Dropping it without [`Session::end`] leaves the mount to the kernel.
pub struct Session {
    attached: Attached,
    notifier: Notifier,
    /// The connection itself, for notifications that fuser does not know.
    device: Arc<OwnedFd>,
    cleaner: Arc<Cleaner>,
    turns: Arc<Turns>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    over: Receiver<()>,
    /// Last, so that it goes when everything else of the session has gone.
    _guard: Option<Guard>,
}

impl Session {
    /// Shakes hands with the kernel and starts the workers. `on_end` runs on a worker's thread when the connection has
    /// ended, whoever ended it.
    pub fn start(device: Device, fs: Arc<Fs>, on_end: impl FnOnce() + Send + 'static) -> io::Result<Session> {
        let Device { fd, mountpoint: attached } = device;
        let mut config = Config::default();
        let device = Arc::new(fd.try_clone()?);
        let cleaner = Arc::new(Cleaner::new(workers()));
        config.n_threads = Some(cleaner.threads());
        config.clone_fd = true;
        // Who may enter is decided by the kernel (`allow_other` or not); fuser's own check would ask again.
        config.acl = SessionACL::All;
        let turns = Arc::new(Turns::new(fd.try_clone()?, cleaner.threads()));
        let adapter = Adapter::new(fs, cleaner.clone(), turns.clone());
        let session = fuser::Session::from_fd(adapter, fd, SessionACL::All, config)?;
        if let Some(minor) = attached.minor {
            tune::tune(minor);
        }
        let guard = Guard::start(&attached, &device)
            .inspect_err(|error| {
                tracing::warn!(
                    "no guard for the case that this daemon is killed ({error}): pages that programs have open would stay \
                     readable for them until they close them; raise the limit of processes (ulimit -u, TasksMax=)"
                );
            })
            .ok()
            .flatten();
        let notifier = session.notifier();
        let ended = Arc::new(AtomicBool::new(false));
        let (say_over, over) = mpsc::channel();
        let flag = ended.clone();
        let thread = std::thread::Builder::new().name("fuse-session".into()).spawn(move || {
            if let Err(error) = session.run() {
                tracing::debug!(%error, "the FUSE connection ended");
            }
            flag.store(true, Ordering::SeqCst);
            let _ = say_over.send(());
            on_end();
        })?;
        Ok(Session { attached, notifier, device, cleaner, turns, ended, thread: Some(thread), over, _guard: guard })
    }

    /// Where the volume is mounted.
    pub fn attached(&self) -> &Attached {
        &self.attached
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// What takes plaintext out of the kernel's caches.
    pub fn purge(&self) -> Purge {
        Purge::new(self.notifier.clone(), self.device.clone())
    }

    /// Takes the remains of requests off the session's threads: see [`Cleaner::gather`].
    pub fn clean(&self, limit: Duration, ask: impl FnOnce()) -> Cleaned {
        // Threads that rest would not hear of it.
        self.turns.release();
        self.cleaner.gather(limit, ask)
    }

    /// Threads that answer.
    pub fn threads(&self) -> usize {
        self.cleaner.threads()
    }

    /// Waits until the connection has ended; false when `limit` passed first.
    pub fn wait_ended(&self, limit: Duration) -> bool {
        self.has_ended()
            || match self.over.recv_timeout(limit) {
                Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
                Err(RecvTimeoutError::Timeout) => self.has_ended(),
            }
    }

    /// Ends the connection by force: abort, then lazy unmount. The caches must have been purged before. Gives whether
    /// the connection is known to have ended within `limit`.
    pub fn end(&mut self, limit: Duration) -> bool {
        if self.has_ended() {
            return true;
        }
        let aborted = self.attached.abort();
        step::reached("lock: aborted");
        if let Err(error) = self.attached.detach() {
            // EINVAL: somebody else has already unmounted it.
            tracing::debug!(%error, aborted, "detaching the mount");
        }
        self.turns.release();
        let ended = self.wait_ended(limit);
        if ended && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        ended
    }
}
