//! Locking, step by step (DESIGN §4): gate, write back, purge, wipe, leave. Bounded by the flush deadline, and nothing
//! in it can be held up by a process that uses the mount.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bounded::bounded;
use super::caches::{self, Known};
use super::hold::{self, Asker};
use super::status::LockReport;
use super::urgent::Urgent;
use crate::fs::Fs;
use crate::fuse::mount;
use crate::fuse::session::Session;
use crate::keyring::Keyring;
use crate::sys::step;

/// How long the kernel may take to end the connection after the abort.
const END: Duration = Duration::from_secs(2);
/// What the disk gets in any case, even if the flush deadline is over.
const DISK: Duration = Duration::from_millis(500);

/// A volume that is mounted, unlocked or held.
pub struct Mounted {
    /// The filesystem.
    pub fs: Arc<Fs>,
    /// Its keys.
    pub keyring: Arc<Keyring>,
    /// Its connection to the kernel.
    pub session: Session,
    /// Counts the mounts of this daemon.
    pub number: u64,
    /// The key slot that opened it.
    pub slot: u8,
}

/// What a lock does with the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRevoke {
    /// Takes it away, and puts the placeholder in its place.
    Unmount,
    /// Leaves it; everything is answered with `ENOKEY`, and open descriptors work again after the restore.
    Hold,
}

/// How a lock leaves the mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Put the placeholder there: the volume will come back.
    Placeholder,
    /// Leave the bare directory: the daemon ends.
    Bare,
    /// Leave the mount as it is.
    Held,
}

/// Runs the whole lock. Every key that `mounted` had is gone afterwards; it comes back if it is to be held.
pub fn lock(mut mounted: Mounted, leave: Leave, flush_deadline: Duration) -> (LockReport, Option<Mounted>) {
    let begun = Instant::now();
    let _urgent = Urgent::begin();
    let mut report = LockReport::default();
    let at = |begun: Instant| u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let hold = leave == Leave::Held && !mounted.session.has_ended();

    step::reached("lock: begun");
    mounted.fs.gate();
    // A program that makes a file and waits for its key keeps the kernel's lock of the directory, and the purge would wait
    // for that.
    mounted.keyring.gate();
    step::reached("lock: gated");
    report.gated_ms = at(begun);
    let asker = hold.then(|| Asker::start(mounted.session.attached().path(), mounted.session.threads()));

    let (written, refused) = (mounted.fs.bytes_written(), mounted.fs.bytes_refused());
    report.flush_complete = caches::write_back(&mounted, begun + flush_deadline, &mut report);
    step::reached("lock: written back");
    settle(&mounted.fs, (begun + flush_deadline).saturating_duration_since(Instant::now()).max(DISK), &mut report);
    report.bytes_flushed = mounted.fs.bytes_written().saturating_sub(written);
    report.flushed_ms = at(begun);

    step::reached("lock: settled");
    let known = Known::of(&mounted.fs);
    (report.inodes, report.dentries) = (known.inodes(), known.dentries());
    let limit = flush_deadline.max(Duration::from_secs(2));
    let mut empty = mounted.session.has_ended() || caches::empty(mounted.session.purge(), &known, limit);
    // The purge has taken the attributes back, and without them the kernel takes no more writes into its cache. One that
    // had got past that check just before is written back now, while the keys are here.
    caches::write_back_late(&mounted);
    report.purged_ms = at(begun);
    step::reached("lock: purged");

    mounted.fs.close_writes();
    step::reached("lock: closed");
    report.keys = mounted.keyring.lock();
    step::reached("lock: keys wiped");
    let busy = mounted.fs.wipe();
    if busy > 0 {
        report
            .problems
            .push(format!("{busy} files are in use by requests that hang; their keys are wiped when these end"));
    }
    report.wiped_ms = at(begun);
    step::reached("lock: wiped");
    // What requests under way have brought back in the meantime. Should a page be dirty now, it is refused, and dropped.
    empty &= mounted.session.has_ended() || caches::empty(mounted.session.purge(), &known, limit);
    step::reached("lock: purged again");
    if !empty {
        report.problems.push(
            "the kernel's caches were not empty in time: a request hangs in the store, and its page stays until it ends"
                .into(),
        );
    }
    report.bytes_given_up = mounted.fs.bytes_refused().saturating_sub(refused);
    match asker {
        Some(asker) => {
            hold::clean(&mounted, asker, &mut report);
            report.held = !mounted.session.has_ended();
        }
        None => leave_mount(&mut mounted.session, leave, &mut report),
    }
    report.unmounted_ms = at(begun);
    step::reached("lock: left");
    let held = report.held;
    (report, held.then_some(mounted))
}

/// Puts sizes and times to the store, and everything on its disk, as far as the time goes.
fn settle(fs: &Arc<Fs>, limit: Duration, report: &mut LockReport) {
    let shared = fs.clone();
    match bounded(Instant::now() + limit + DISK, move || shared.settle(limit)) {
        Some(settled) => report.problems.extend(settled.errors),
        None => report.problems.push(
            "the store hangs: sizes of open files may not be in it; what was not synced may be lost if the power fails"
                .into(),
        ),
    }
}

/// Ends a mount whose volume is locked, at the end of the daemon.
pub fn end_held(mut mounted: Mounted) {
    if !mounted.session.end(END) {
        tracing::warn!("the FUSE connection has not ended; it answers nothing but ENOKEY until this process is gone");
    }
}

fn leave_mount(session: &mut Session, leave: Leave, report: &mut LockReport) {
    let wants = leave == Leave::Placeholder && rustix::process::geteuid().is_root();
    let gone = session.has_ended();
    if wants {
        // After the first lock one is there already: the volume came back on top of it.
        report.placeholder =
            mount::has_placeholder(session.attached().path()) || !gone && session.attached().place_beneath();
    }
    step::reached("lock: placeholder beneath");
    report.ended = session.end(END);
    step::reached("lock: ended");
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
