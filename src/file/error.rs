//! What can go wrong with a page file.

use std::io;

use crate::crypto::suite::CipherError;
use crate::format::page::{BadHeaderLen, PageError};

/// Why an operation on a file was not, or not wholly, done.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The store failed; the kernel's own error number is inside.
    #[error("the store failed: {0}")]
    Io(#[from] io::Error),
    /// A page is not what was written there. Only operations on this page fail.
    #[error("page {page} of the file is damaged: {why}; restore the ciphertext file from a backup of the store")]
    Damaged {
        /// The page's index: it starts at 4096 times this in the ciphertext file.
        page: u64,
        /// What is wrong with it.
        why: Damage,
    },
    /// The ciphertext file is shorter than a page, or its first page is zero: its creation never ended.
    #[error("the file's creation was interrupted before it held anything: delete it, or run `hyokfs verify --repair`")]
    Unfinished,
    /// The keys were dropped, because the volume is locked.
    #[error("the volume is locked: it opens again when the customer's key allows it")]
    Locked,
    /// No ciphertext file can be as long.
    #[error("the file would become larger than the store's filesystem can hold")]
    TooBig,
    /// The header has another length than the volume's files have.
    #[error(transparent)]
    Header(#[from] BadHeaderLen),
    /// A new file was to be made over bytes that are already there.
    #[error("the ciphertext file is not empty: remove it before another is made in its place")]
    NotEmpty,
    /// Sealing failed: the system gave no randomness or no memory.
    #[error("sealing failed: the system gave no randomness or memory; nothing was written, try again")]
    Seal(#[from] CipherError),
}

/// What is wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It doesn't open.
    #[error(transparent)]
    Page(#[from] PageError),
    /// It is a hole or too short, although an earlier sync recorded it as full.
    #[error("it was cut or zeroed after a sync had recorded it")]
    BelowFloor,
    /// The file is shorter than an earlier sync recorded.
    #[error("the file was truncated below the size that a sync had recorded")]
    Truncated,
    /// More bytes follow the last page than it can hold.
    #[error("its size tail is longer than a page holds")]
    Tail,
}
