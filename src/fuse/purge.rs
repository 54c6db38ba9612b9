//! Takes plaintext out of the kernel: dirty pages back to us, then pages, attributes and names out of its caches.
//!
//! `FUSE_NOTIFY_INVAL_INODE` writes dirty pages back synchronously and then drops them, also from open files and
//! mappings (`fs/fuse/inode.c`, `invalidate_inode_pages2_range`). It blocks while the workers answer those writes, so it
//! must be called from a thread that is no worker and holds no lock.

use std::ffi::OsString;

use fuser::{INodeNo, Notifier};

/// Sends notifications for one connection.
#[derive(Clone)]
pub struct Purge {
    notifier: Notifier,
}

impl Purge {
    pub(super) fn new(notifier: Notifier) -> Self {
        Purge { notifier }
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
}
