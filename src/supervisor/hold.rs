//! A volume that is locked in place: the mount stays, everything is answered with `ENOKEY`, and nothing of it is left in
//! memory.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::bounded::wait_for;
use super::caches::{self, Known};
use super::lock::Mounted;
use super::status::LockReport;
use crate::fs::Fs;
use crate::fuse::purge::Purge;

/// The hidden command of the helper that asks.
pub const STATFS_COMMAND: &str = "internal-statfs";

/// How long the session's threads may take to clean themselves.
const CLEANING: Duration = Duration::from_secs(1);
/// How long the helper may take to end when all threads have answered, or when it is no longer waited for.
const FAREWELL: Duration = Duration::from_millis(100);
/// Pauses between two sweeps of a held volume: soon after the lock, then seldom.
const SWEEPS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];
/// How long one sweep may take.
const SWEEP: Duration = Duration::from_secs(10);

/// A process that has `statfs` asked on the mount when it is told to, by many threads at once. It is started at the
/// beginning of a lock, so that the lock does not wait for its start; it is a process of its own because the daemon
/// must never touch its own mount.
pub(super) struct Asker {
    child: Child,
}

impl Asker {
    /// Starts it.
    pub fn start(mountpoint: &Path, threads: usize) -> std::io::Result<Asker> {
        let child = Command::new("/proc/self/exe")
            .arg(STATFS_COMMAND)
            .arg(mountpoint)
            .arg(threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Asker { child })
    }

    fn ask(&mut self) {
        if let Some(mut stdin) = self.child.stdin.take() {
            let _ = stdin.write_all(b"\n");
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        // Without a word on its standard input it ends by itself.
        drop(self.child.stdin.take());
        wait_for(&mut self.child, Instant::now() + FAREWELL);
    }
}

/// Takes what requests have left behind off the session's threads. The filesystem is closed.
pub(super) fn clean(mounted: &Mounted, asker: std::io::Result<Asker>, report: &mut LockReport) {
    let mut asker = match asker {
        Ok(asker) => asker,
        Err(error) => {
            report.problems.push(format!(
                "no helper to reach the threads with ({error}): the last requests' plaintext may be in their buffers \
                 until the next request"
            ));
            return;
        }
    };
    let cleaned = mounted.session.clean(CLEANING, || asker.ask());
    report.threads_cleaned = cleaned.clean;
    if cleaned.clean < cleaned.threads {
        report.problems.push(format!(
            "{} of {} threads hang in a request or were not reached: plaintext of their last request is in their buffers \
             until they have answered",
            cleaned.threads - cleaned.clean,
            cleaned.threads
        ));
    }
    if cleaned.unknown > 0 {
        report.problems.push(format!(
            "the receive buffers of {} threads were not found and may hold plaintext of their last request; unmount the \
             volume to wipe them, and report this as a defect",
            cleaned.unknown
        ));
    }
}

/// Empties the kernel's caches again from time to time while a volume is held, until it is dropped. Nothing should be in
/// them: a request that hung in the store during the lock, or a kernel that takes writes into its cache without asking,
/// would show here.
pub(super) struct Sweeper {
    _stop: Sender<()>,
}

impl Sweeper {
    /// Starts it. Without a thread for it the volume stays locked all the same.
    pub fn start(mounted: &Mounted) -> Sweeper {
        let (stop, stopped) = mpsc::channel();
        let (fs, purge) = (Arc::downgrade(&mounted.fs), mounted.session.purge());
        let sweep = move || {
            let mut pauses = SWEEPS.into_iter();
            let mut pause = SWEEPS[0];
            loop {
                pause = pauses.next().unwrap_or(pause);
                if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) || !sweep_once(&fs, &purge) {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("sweep".into()).spawn(sweep) {
            tracing::warn!(%error, "no thread to look after the held volume's caches");
        }
        Sweeper { _stop: stop }
    }
}

fn sweep_once(fs: &Weak<Fs>, purge: &Purge) -> bool {
    let Some(fs) = fs.upgrade() else { return false };
    if !fs.is_closed() {
        return false;
    }
    let refused = fs.bytes_refused();
    caches::empty(purge.clone(), &Known::of(&fs), SWEEP);
    let late = fs.bytes_refused() - refused;
    if late > 0 {
        tracing::warn!(bytes = late, "the kernel had taken writes while the volume was locked; they were refused");
    }
    true
}
