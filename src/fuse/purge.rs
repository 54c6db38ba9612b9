//! Takes plaintext out of the kernel: dirty pages back to us, then pages, attributes and names out of its caches.
//!
//! `FUSE_NOTIFY_INVAL_INODE` writes dirty pages back synchronously and then drops them, also from open files and
//! mappings (`fs/fuse/inode.c`, `invalidate_inode_pages2_range`). It blocks while the workers answer those writes, so it
//! must be called from a thread that is no worker and holds no lock.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuser::{INodeNo, Notifier};

/// `FUSE_NOTIFY_INC_EPOCH` (`include/uapi/linux/fuse.h`, protocol 7.44, Linux 6.16).
const INC_EPOCH: i32 = 8;
/// `FUSE_NOTIFY_INVAL_INODE`.
const INVAL_INODE: i32 = 2;

/// Sends notifications for one connection.
#[derive(Clone)]
pub struct Purge {
    notifier: Notifier,
    device: Arc<OwnedFd>,
}

impl Purge {
    pub(super) fn new(notifier: Notifier, device: Arc<OwnedFd>) -> Self {
        Purge { notifier, device }
    }

    /// Writes back and drops everything the kernel has of this inode: data, cached directory, link target, attributes.
    /// False if the connection is gone.
    pub fn inode(&self, ino: u64) -> bool {
        match self.notifier.inval_inode(INodeNo(ino), 0, 0) {
            Ok(()) => true,
            Err(error) => error.raw_os_error() == Some(libc::ENOENT),
        }
    }

    /// Drops one name from the kernel's dentry cache, with what hangs below it. False if the connection is gone.
    pub fn dentry(&self, parent: u64, name: &OsString) -> bool {
        match self.notifier.inval_entry(INodeNo(parent), name) {
            Ok(()) => true,
            // ENOTEMPTY and EBUSY: something is mounted there or in use; it is unhashed or goes with the mount.
            Err(error) => !matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOTCONN)),
        }
    }

    /// Has the kernel ask again before it uses any name that it knows by now, also those of files that are not there and
    /// those that requests under way are about to bring. False where the kernel has no such notification (before Linux
    /// 6.16): there names that are not there are remembered for a second only.
    pub fn all_names(&self) -> bool {
        all_names(&*self.device)
    }
}

/// Has the kernel ask again before it uses any name: [`Purge::all_names`] without a session.
pub(super) fn all_names(device: impl AsFd) -> bool {
    rustix::io::write(device, &notification::<16>(INC_EPOCH)).is_ok()
}

/// Drops what the kernel has of an inode: [`Purge::inode`] without a session. One that it does not know is no mistake.
pub(super) fn inode(device: impl AsFd, ino: u64) {
    // `struct fuse_notify_inval_inode_out`: the inode, from byte 0, to the end.
    let mut message = notification::<40>(INVAL_INODE);
    message[16..24].copy_from_slice(&ino.to_ne_bytes());
    let _ = rustix::io::write(device, &message);
}

/// `struct fuse_out_header`: length, code of the notification, 0 for "no request"; and room for what follows.
fn notification<const LENGTH: usize>(code: i32) -> [u8; LENGTH] {
    let mut message = [0_u8; LENGTH];
    message[..4].copy_from_slice(&(LENGTH as u32).to_ne_bytes());
    message[4..8].copy_from_slice(&code.to_ne_bytes());
    message
}
