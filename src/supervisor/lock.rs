//! Locking, step by step (DESIGN §4): gate, write back, purge, wipe, leave. Bounded by the flush deadline, and nothing
//! in it can be held up by a process that uses the mount.

use std::ffi::OsString;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::status::LockReport;
use crate::fs::Fs;
use crate::fuse::session::Session;
use crate::fuse::{mount, purge::Purge};
use crate::keyring::Keyring;

/// How long the kernel may take to end the connection after the abort.
const END: Duration = Duration::from_secs(2);

/// A volume that is mounted and unlocked.
pub struct Mounted {
    /// The filesystem.
    pub fs: Arc<Fs>,
    /// Its keys.
    pub keyring: Arc<Keyring>,
    /// Its connection to the kernel.
    pub session: Session,
    /// Counts the mounts of this daemon.
    pub number: u64,
}

/// How a lock leaves the mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Put the placeholder there: the volume will come back.
    Placeholder,
    /// Leave the bare directory: the daemon ends.
    Bare,
}

/// Runs the whole lock. `mounted` is gone afterwards, with every key that it had.
pub fn lock(mut mounted: Mounted, leave: Leave, flush_deadline: Duration) -> LockReport {
    let begun = Instant::now();
    let mut report = LockReport::default();
    let at = |begun: Instant| u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);

    mounted.fs.gate();
    report.gated_ms = at(begun);

    let before = mounted.fs.bytes_written();
    report.flush_complete = write_back(&mounted, begun + flush_deadline, &mut report);
    // The disk gets what is left of the deadline, and a moment in any case.
    let left = (begun + flush_deadline).saturating_duration_since(Instant::now()).max(Duration::from_millis(500));
    let settled = mounted.fs.settle(left);
    report.problems.extend(settled.errors);
    report.bytes_flushed = mounted.fs.bytes_written().saturating_sub(before);
    report.flushed_ms = at(begun);

    let inodes: Vec<u64> = mounted.fs.known_inodes().into_iter().map(|(ino, _)| ino).collect();
    let dentries = mounted.fs.known_dentries();
    (report.inodes, report.dentries) = (inodes.len(), dentries.len());
    let (inodes, dentries) = (Arc::new(inodes), Arc::new(dentries));
    let limit = flush_deadline.max(Duration::from_secs(2));
    if !purge_all(&mounted.session, &inodes, &dentries, limit) {
        report
            .problems
            .push("the kernel's caches were not empty in time; the connection is aborted all the same".into());
    }
    report.purged_ms = at(begun);

    mounted.fs.close_writes();
    report.keys = mounted.keyring.lock();
    mounted.fs.wipe();
    report.wiped_ms = at(begun);
    // A read that was under way while the first purge ran may have put a page back.
    purge_all(&mounted.session, &inodes, &dentries, limit);

    leave_mount(&mut mounted.session, leave, &mut report);
    report.unmounted_ms = at(begun);
    report
}

/// Writes the kernel's dirty pages back to us. `syncfs` from a process of its own starts large WRITEs but is no barrier
/// on FUSE; the notification per inode is one, in small WRITEs. So first the one, then the other.
fn write_back(mounted: &Mounted, deadline: Instant, report: &mut LockReport) -> bool {
    let dirty = mounted.fs.dirty_inodes();
    report.dirty = dirty.len();
    if dirty.is_empty() || mounted.session.has_ended() {
        return true;
    }
    let path = mounted.session.attached().path().to_owned();
    match syncfs_helper(&path) {
        Ok(mut child) => wait_for(&mut child, deadline),
        Err(error) => {
            report.problems.push(format!("no helper for syncfs ({error}); files are written back one by one"))
        }
    }
    let purge = mounted.session.purge();
    let complete = bounded(deadline, move || dirty.into_iter().all(|ino| purge.inode(ino)));
    if complete != Some(true) {
        report.problems.push("not everything was written back within the flush deadline; see --flush-deadline".into());
    }
    complete == Some(true)
}

/// The hidden command that the helper runs.
pub const SYNCFS_COMMAND: &str = "internal-syncfs";

fn syncfs_helper(mountpoint: &std::path::Path) -> std::io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg(SYNCFS_COMMAND)
        .arg(mountpoint)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

fn wait_for(child: &mut Child, deadline: Instant) {
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(Some(_)) | Err(_) => return,
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    let _ = child.kill();
    // Not waited for: a process in the middle of a request cannot end before the connection does.
}

fn purge_all(session: &Session, inodes: &Arc<Vec<u64>>, dentries: &Arc<Vec<(u64, OsString)>>, limit: Duration) -> bool {
    if session.has_ended() {
        return true;
    }
    let (purge, inodes, dentries): (Purge, _, _) = (session.purge(), inodes.clone(), dentries.clone());
    bounded(Instant::now() + limit, move || {
        dentries.iter().all(|(parent, name)| purge.dentry(*parent, name)) && inodes.iter().all(|ino| purge.inode(*ino))
    })
    .is_some()
}

/// Runs `work` on a thread of its own and waits for it until `deadline`. A notification that hangs keeps its thread,
/// which ends with the connection.
fn bounded<T: Send + 'static>(deadline: Instant, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, finished) = mpsc::channel();
    std::thread::Builder::new()
        .name("notify".into())
        .spawn(move || {
            let _ = done.send(work());
        })
        .ok()?;
    finished.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}

fn leave_mount(session: &mut Session, leave: Leave, report: &mut LockReport) {
    let wants = leave == Leave::Placeholder && rustix::process::geteuid().is_root();
    let gone = session.has_ended();
    if wants {
        // After the first lock one is there already: the volume came back on top of it.
        report.placeholder =
            mount::has_placeholder(session.attached().path()) || !gone && session.attached().place_beneath();
    }
    report.ended = session.end(END);
    if !report.ended {
        report.problems.push("the FUSE connection has not ended; it answers nothing but ENOKEY".into());
    }
    if wants && !report.placeholder {
        match mount::place_on(session.attached().path()) {
            Ok(()) => report.placeholder = true,
            Err(error) => report.problems.push(format!(
                "no placeholder on {} ({error}): until the volume is back, programs can write into the bare directory",
                session.attached().path().display()
            )),
        }
    }
}
