//! The one error of the filesystem layer. The FUSE adapter turns each variant into one errno.

use std::io;

use rustix::io::Errno;

use crate::file::FileError;
use crate::keyring::KeyError;

/// Why an operation was not done.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The volume is locked (or about to be).
    #[error("the volume is locked: it opens again when the customer's key allows it")]
    Locked,
    /// No such name.
    #[error("there is no such file or directory")]
    NotFound,
    /// A plaintext name of more than 255 bytes, or a symlink target that does not fit.
    #[error("the name or link target is too long: names hold 255 bytes, link targets what the README's table says")]
    NameTooLong,
    /// What the kernel would say of a plain filesystem: its own error number is inside.
    #[error("{0}")]
    Io(io::Error),
    /// Something in the store is not what was written there.
    #[error("{what}; restore it from a backup of the store, or run `hyokfs verify` to see all that is damaged")]
    Damaged {
        /// What, in terms of the store.
        what: String,
    },
    /// The creation of the file was interrupted before it held anything.
    #[error("the file's creation was interrupted before it held anything: delete it, or run `hyokfs verify --repair`")]
    Unfinished,
    /// The key of the file is not to be had.
    #[error("{0}")]
    NoKey(KeyError),
    /// No ciphertext file can be as long.
    #[error("the file would become larger than the store's filesystem can hold")]
    TooBig,
    /// The cryptographic library gave no randomness or memory.
    #[error("sealing failed: the system gave no randomness or memory; nothing was changed, try again")]
    Crypto,
}

impl FsError {
    pub(super) fn os(errno: Errno) -> FsError {
        FsError::Io(errno.into())
    }

    pub(super) fn damaged(what: impl Into<String>) -> FsError {
        FsError::Damaged { what: what.into() }
    }

    pub(super) fn is(&self, errno: Errno) -> bool {
        matches!(self, FsError::Io(error) if error.raw_os_error() == Some(errno.raw_os_error()))
    }
}

impl From<KeyError> for FsError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Locked => FsError::Locked,
            KeyError::Damaged(_) => FsError::Damaged { what: error.to_string() },
            other => FsError::NoKey(other),
        }
    }
}

impl From<io::Error> for FsError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(code) if code == Errno::NOENT.raw_os_error() => FsError::NotFound,
            _ => FsError::Io(error),
        }
    }
}

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

impl From<FileError> for FsError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io(error) => FsError::Io(error),
            FileError::Locked => FsError::Locked,
            FileError::TooBig => FsError::TooBig,
            FileError::Unfinished => FsError::Unfinished,
            FileError::Seal(_) => FsError::Crypto,
            other @ (FileError::Damaged { .. } | FileError::Header(_) | FileError::NotEmpty) => {
                FsError::Damaged { what: other.to_string() }
            }
        }
    }
}
