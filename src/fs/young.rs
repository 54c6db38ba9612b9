//! The mark of a file that has not been synced yet.
//!
//! A name is journalled, the first page of a new file is not: after a power cut a file may be there without its header.
//! An attribute is journalled with the inode, so it is there whenever the name is, and tells such a file from one whose
//! first page somebody took away. Programs then find what any filesystem would give them, a file of zeros, instead of an
//! error that lasts: SQLite, for one, opens no database beside whose file lies an index that cannot be opened.

use std::os::fd::AsFd;

use rustix::fs::XattrFlags;

use crate::crypto::kdf::MacKey;
use crate::format::small::{MARK, new_mark};
use crate::format::{DirId, VolumeId};

/// Marks a new, nameless file. The mark is a convenience: a store that keeps no attributes, or has no room for one, makes
/// no creation fail.
pub(super) fn mark(file: impl AsFd, inode: u64, mac: &MacKey, volume: VolumeId, dir: DirId) {
    let marked = rustix::fs::fsetxattr(file, MARK, &new_mark(mac, volume, dir, inode), XattrFlags::empty());
    if let Err(error) = marked {
        tracing::debug!(inode, %error, "a new file carries no mark");
    }
}

/// Whether the file was made in one of `dirs` and never synced.
pub(super) fn is_marked(file: impl AsFd, inode: u64, mac: &MacKey, volume: VolumeId, dirs: &[DirId]) -> bool {
    let mut found = [0; 32];
    let Ok(length) = rustix::fs::fgetxattr(file, MARK, &mut found[..]) else { return false };
    dirs.iter().any(|dir| {
        let want = new_mark(mac, volume, *dir, inode);
        aws_lc_rs::constant_time::verify_slices_are_equal(&want, &found[..length]).is_ok()
    })
}

/// The file was synced: whoever takes its first page away from now on is found out.
pub(super) fn unmark(file: impl AsFd) {
    if rustix::fs::fgetxattr(&file, MARK, &mut [0_u8; 0][..]).is_ok()
        && let Err(error) = rustix::fs::fremovexattr(&file, MARK)
    {
        tracing::debug!(%error, "the mark of a new file stays");
    }
}
