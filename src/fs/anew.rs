//! After a lock in place nothing of the time before is believed: an inode is compared with the store before its first
//! use. (Directories are compared where their record is read, `Fs::dir_id`.)

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::Fs;
use super::error::FsError;
use super::inode::{Inode, Place, lock, read};
use super::types::Kind;
use crate::file::plain_size;

impl Fs {
    /// Gives `ESTALE` for a file that was changed or removed behind hyokfs's back while the volume was locked. The kernel
    /// never learns a new size of a file that it still refers to (it owns sizes, for its write-back), so such a file
    /// stays stale until every program has let go of it; then it is found anew.
    pub(super) fn compare(&self, inode: &Arc<Inode>) -> Result<(), FsError> {
        let epoch = self.table.epoch();
        if inode.kind != Kind::File || inode.epoch.load(Ordering::Acquire) == epoch {
            return Ok(());
        }
        let _opening = lock(&inode.opening);
        if inode.epoch.load(Ordering::Acquire) == epoch {
            return Ok(());
        }
        if !inode.stale.load(Ordering::Acquire) {
            if self.is_as_left(inode)? {
                inode.epoch.store(epoch, Ordering::Release);
                return Ok(());
            }
            inode.stale.store(true, Ordering::Release);
            tracing::warn!(
                inode = inode.ino,
                "the ciphertext file was changed or removed while the volume was locked: what is still open of it gives \
                 ESTALE, close it and open it again"
            );
        }
        Err(FsError::os(Errno::STALE))
    }

    fn is_as_left(&self, inode: &Arc<Inode>) -> Result<bool, FsError> {
        if let Some(live) = inode.live() {
            return Ok(live.file.is_as_left()? && self.stands(inode)?);
        }
        match self.stat(inode) {
            Ok(stat) => {
                let length = u64::try_from(stat.st_size).unwrap_or(0);
                Ok(plain_size(length, self.header_len).unwrap_or(0) == inode.told.load(Ordering::Acquire))
            }
            Err(FsError::NotFound) => Ok(false),
            Err(error) if error.is(Errno::STALE) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether one of its names still leads to the inode; one that had lost all names before needs none.
    fn stands(&self, inode: &Arc<Inode>) -> Result<bool, FsError> {
        let places: Vec<Place> = read(&inode.places).list.clone();
        for place in &places {
            match self.dir_fd(&place.parent).and_then(|dir| self.stat_entry(&dir, place.entry.as_bytes())) {
                Ok(stat) if inode.is(&stat) => return Ok(true),
                Ok(_) | Err(FsError::NotFound) => {}
                Err(error) if error.is(Errno::STALE) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(places.is_empty())
    }
}
