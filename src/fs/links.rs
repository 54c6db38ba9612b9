//! Symlink targets: sealed, as the text of the store's symlink.

use super::Fs;
use super::error::FsError;
use super::types::{Ino, Kind};
use crate::crypto::kdf::VolumeKeys;
use crate::format::small;
use rustix::io::Errno;

pub(super) use crate::format::small::target_len;

/// The longest text of a symlink that any filesystem takes (`PATH_MAX` without its NUL).
const TEXT_MAX: usize = 4095;

impl Fs {
    /// The store's text for `target`.
    pub(super) fn seal_target(&self, keys: &VolumeKeys, target: &[u8]) -> Result<String, FsError> {
        if target.is_empty() {
            return Err(FsError::NotFound);
        }
        if target.len() > TEXT_MAX || target.contains(&0) {
            return Err(FsError::NameTooLong);
        }
        let text = small::seal_target(&keys.small, self.volume, target).map_err(|_| FsError::Crypto)?;
        if text.len() > TEXT_MAX { Err(FsError::NameTooLong) } else { Ok(text) }
    }

    /// The target of a symlink.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let keys = self.enter()?;
        let inode = self.inode(ino)?;
        if inode.kind != Kind::Symlink {
            return Err(FsError::os(Errno::INVAL));
        }
        let text = rustix::fs::readlinkat(self.path_fd(&inode)?, "", Vec::new())?;
        let plain = small::open_target(&keys.small, self.volume, text.to_bytes());
        plain.map(|plain| plain.to_vec()).ok_or_else(|| {
            FsError::damaged(format!("the target of symlink inode {ino} was altered or belongs to another volume"))
        })
    }
}
