//! Takes plaintext out of the kernel when the daemon was killed.
//!
//! The kernel ends a connection when the last descriptor of it is closed, but keeps the page cache: programs that have a
//! file open or mapped go on reading cached plaintext from a dead mount, and a revocation that comes later can no longer
//! take it away. So a second process, started with the mount, holds a descriptor of the connection. It sleeps in a
//! `read(2)` of a pipe whose other end the daemon holds. At its end it ends the connection, and then drops pages,
//! attributes and names: notifications are accepted on a connection that was aborted, as long as somebody has it open.
//!
//! It has no key and never had one. It does not know the inodes that the daemon knew; it asks about all that can matter:
//! those that any process has open, mapped or as its directory (they come first, and are among them files without a name
//! any more), then all of the store. The kernel ignores those that it does not know.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::mount::Attached;
use super::purge;
use crate::sys::harden;

/// The hidden command of the process.
pub const COMMAND: &str = "internal-guard";

/// The node id of the mount's root (`FUSE_ROOT_ID`).
const ROOT: u64 = 1;
/// How long the process may take to end when it is no longer needed; it is not waited for after that.
const FAREWELL: Duration = Duration::from_millis(100);

/// The process, as the daemon sees it. Dropped, it ends without doing anything.
pub(super) struct Guard {
    child: Child,
}

impl Guard {
    /// Starts it; none where the connection cannot be aborted (without root, and without the control filesystem), for
    /// there it would keep a dead connection alive.
    pub fn start(attached: &Attached, device: &OwnedFd) -> io::Result<Option<Guard>> {
        let (Some(minor), Some(abort)) = (attached.minor, attached.abort_handle()) else { return Ok(None) };
        let child = Command::new("/proc/self/exe")
            .arg(COMMAND)
            .arg(&attached.store)
            .arg(attached.path())
            .arg(minor.to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::from(device.try_clone()?))
            .stderr(Stdio::from(OwnedFd::from(abort)))
            .spawn()?;
        Ok(Some(Guard { child }))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A line is the word that all is well; the mere end of the pipe is not.
        if let Some(mut stdin) = self.child.stdin.take() {
            let _ = io::Write::write_all(&mut stdin, b"\n");
        }
        let pause = Duration::from_millis(1);
        for _ in 0..FAREWELL.as_millis() {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(pause);
        }
    }
}

/// The process itself: standard input is the pipe, standard output the connection, standard error its abort file.
pub fn watch(store: &Path, minor: u32) {
    // Not ended with the daemon: neither by its terminal nor by the one who ends all processes of a service.
    harden::ignore_terminate();
    let _ = rustix::process::setsid();
    let Ok((device, abort)) = take_descriptors() else { return };
    let mut byte = [0];
    loop {
        match io::stdin().read(&mut byte) {
            Ok(0) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
    // First: requests of the killed daemon hold pages, and nobody would answer those that a purge brings about.
    let _ = rustix::io::write(&abort, b"1");
    purge::all_names(&device);
    purge::inode(&device, ROOT);
    let mut inodes = Vec::new();
    in_use(minor, &mut inodes);
    inodes.sort_unstable();
    inodes.dedup();
    inodes.iter().for_each(|ino| purge::inode(&device, *ino));
    of_store(store, &device);
}

/// Moves the descriptors out of the way: whatever is printed must not end the connection.
fn take_descriptors() -> io::Result<(OwnedFd, OwnedFd)> {
    let device = io::stdout().as_fd().try_clone_to_owned()?;
    let abort = io::stderr().as_fd().try_clone_to_owned()?;
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok((device, abort))
}

/// The inodes of the mount that processes hold, as far as they can be seen from here.
fn in_use(minor: u32, inodes: &mut Vec<u64>) {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let dir = process.path();
        let files = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        for link in files.chain([dir.join("cwd"), dir.join("root")]) {
            // What the kernel knows by itself: neither this mount nor any other network or FUSE filesystem is asked.
            if let Ok(stat) = statx(CWD, &link, AtFlags::STATX_DONT_SYNC, StatxFlags::INO)
                && (stat.stx_dev_major, stat.stx_dev_minor) == (0, minor)
            {
                inodes.push(stat.stx_ino);
            }
        }
        let maps = fs::read_to_string(dir.join("maps")).unwrap_or_default();
        inodes.extend(maps.lines().filter_map(|line| mapped(line, minor)));
    }
}

/// The inode of a line of `/proc/PID/maps` (proc(5)) if it is one of the device `0:minor`.
fn mapped(line: &str, minor: u32) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let (major, number) = fields.next()?.split_once(':')?;
    let here = u32::from_str_radix(major, 16) == Ok(0) && u32::from_str_radix(number, 16) == Ok(minor);
    here.then(|| fields.next()?.parse().ok()).flatten()
}

/// Every inode of the store: the mount's have the same numbers.
fn of_store(store: &Path, device: &OwnedFd) {
    let mut dirs: Vec<PathBuf> = vec![store.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            purge::inode(device, entry.ino());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::mapped;

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f2c8a400000-7f2c8a800000 rw-s 00001000 00:2f 10060034                   /mnt/a file (deleted)";
        assert_eq!(mapped(line, 0x2f), Some(10_060_034));
        assert_eq!(mapped(line, 0x30), None);
        assert_eq!(mapped("7ffc1000-7ffc2000 rw-p 00000000 00:00 0 [stack]", 0x2f), None);
        assert_eq!(mapped("7ffc1000-7ffc2000 rw-p 00000000 08:2f 77 /usr/lib/x", 0x2f), None);
        assert_eq!(mapped("nonsense", 0x2f), None);
    }
}
