//! The kernel's caches of a mount: written back, then emptied.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bounded::{each, wait_for};
use super::lock::Mounted;
use super::status::LockReport;
use crate::fs::Fs;
use crate::fuse::purge::Purge;

/// How long a purge waits for notifications that hang, when all others are done: a request that hangs in the store
/// holds its page, and the notification waits for the page.
const HANGING: Duration = Duration::from_millis(500);

/// The hidden command of the helper that starts write-back.
pub const SYNCFS_COMMAND: &str = "internal-syncfs";

/// Everything that the kernel may know of a volume.
pub(super) struct Known {
    inodes: Vec<u64>,
    dentries: Vec<(u64, OsString)>,
}

impl Known {
    /// What it may know now.
    pub fn of(fs: &Fs) -> Arc<Known> {
        let inodes = fs.known_inodes().into_iter().map(|(ino, _)| ino).collect();
        Arc::new(Known { inodes, dentries: fs.known_dentries() })
    }

    /// Files and directories.
    pub fn inodes(&self) -> usize {
        self.inodes.len()
    }

    /// Names.
    pub fn dentries(&self) -> usize {
        self.dentries.len()
    }
}

/// Writes the kernel's dirty pages back to us. `syncfs` from a process of its own starts large WRITEs but is no barrier
/// on FUSE; the notification per inode is one, in small WRITEs. So first the one, then the other.
pub(super) fn write_back(mounted: &Mounted, deadline: Instant, report: &mut LockReport) -> bool {
    let dirty = mounted.fs.dirty_inodes();
    report.dirty = dirty.len();
    if dirty.is_empty() || mounted.session.has_ended() {
        return true;
    }
    match syncfs_helper(mounted.session.attached().path()) {
        Ok(mut child) => wait_for(&mut child, deadline),
        Err(error) => {
            report.problems.push(format!("no helper for syncfs ({error}); files are written back one by one"))
        }
    }
    let purge = mounted.session.purge();
    let left = deadline.saturating_duration_since(Instant::now());
    let progress = each(dirty.len(), deadline, left, move |index| purge.inode(dirty[index]));
    if !progress.is_complete() {
        report.problems.push("not everything was written back within the flush deadline; see --flush-deadline".into());
    }
    progress.is_complete()
}

/// Writes back what became dirty while the caches were emptied.
pub(super) fn write_back_late(mounted: &Mounted) {
    let dirty = mounted.fs.dirty_inodes();
    if dirty.is_empty() || mounted.session.has_ended() {
        return;
    }
    let purge = mounted.session.purge();
    each(dirty.len(), Instant::now() + HANGING, HANGING, move |index| purge.inode(dirty[index]));
}

fn syncfs_helper(mountpoint: &Path) -> std::io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg(SYNCFS_COMMAND)
        .arg(mountpoint)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Takes everything out of the kernel's caches; false if something hung.
pub(super) fn empty(purge: Purge, known: &Arc<Known>, limit: Duration) -> bool {
    let known = known.clone();
    purge.all_names();
    let (names, all) = (known.dentries.len(), known.dentries.len() + known.inodes.len());
    let progress = each(all, Instant::now() + limit, HANGING, move |index| match known.dentries.get(index) {
        Some((parent, name)) => purge.dentry(*parent, name),
        None => purge.inode(known.inodes[index - names]),
    });
    progress.is_complete()
}
