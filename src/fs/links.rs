//! Symlink targets: sealed, as the text of the store's symlink.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Fs;
use super::error::FsError;
use super::types::{Ino, Kind};
use crate::crypto::envelope::OVERHEAD;
use crate::crypto::kdf::VolumeKeys;
use rustix::io::Errno;

const LABEL: &[u8] = b"hyokfs/1 symlink";
/// The longest text of a symlink that any filesystem takes (`PATH_MAX` without its NUL).
const TEXT_MAX: usize = 4095;

/// Plaintext bytes of a target, from the length of the store symlink's text alone.
pub(super) fn target_len(text: u64) -> u64 {
    (text * 3 / 4).saturating_sub(OVERHEAD as u64)
}

impl Fs {
    fn target_aad(&self) -> Vec<u8> {
        [LABEL, self.volume.as_bytes()].concat()
    }

    /// The store's text for `target`.
    pub(super) fn seal_target(&self, keys: &VolumeKeys, target: &[u8]) -> Result<String, FsError> {
        if target.is_empty() {
            return Err(FsError::NotFound);
        }
        if target.len() > TEXT_MAX || target.contains(&0) {
            return Err(FsError::NameTooLong);
        }
        let sealed = keys.small.seal(&self.target_aad(), target).map_err(|_| FsError::Crypto)?;
        let text = URL_SAFE_NO_PAD.encode(sealed);
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
        let sealed = URL_SAFE_NO_PAD.decode(text.to_bytes()).ok();
        let plain = sealed.and_then(|sealed| keys.small.open(&self.target_aad(), &sealed).ok());
        plain.map(|plain| plain.to_vec()).ok_or_else(|| {
            FsError::damaged(format!("the target of symlink inode {ino} was altered or belongs to another volume"))
        })
    }
}
