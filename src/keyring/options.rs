//! What a keyring can be told, and what it says when it gives no key.

use std::time::Duration;

use super::limits::Limits;
use crate::crypto::ArenaFull;
use crate::crypto::secret::SecretError;
use crate::format::FileId;
use crate::provider::{ARENA_FULL, ProviderError, Verdict};

/// How a keyring behaves.
#[derive(Debug, Clone)]
pub struct KeyringOptions {
    /// The number of this customer key's slot in the volume record.
    pub slot: u8,
    /// The vendor's name for the customer, part of every context.
    pub tenant: Option<String>,
    /// Unwrapped keys kept at most; 32 bytes of locked memory each.
    pub cache: usize,
    /// Calls to the key service at most, over all reasons.
    pub limits: Limits,
    /// Calls to the key service at one time at most: at 20 ms a call, 64 are 3,200 a second. A quarter of them is kept for
    /// opens and creates.
    pub concurrency: usize,
    /// Ready keys for new files at most; never above [`MAX_POOL`].
    pub pool: usize,
    /// Ready keys that are kept from the start, whether files are made or not; never more than `pool`.
    pub reserve: usize,
    /// How long one open or create waits for its key at most, all tries included.
    pub deadline: Duration,
    /// Keys of new files are wrapped by this group key ([`super::Keyring::set_group`]) instead of by the customer key
    /// itself: granularity `volume`.
    pub new_in_group: Option<[u8; 16]>,
    /// Keys of new files are wrapped by a group key of the directory that they are made in: granularity `directory`.
    pub per_directory: bool,
}

/// The most keys that are ever made ahead.
pub const MAX_POOL: usize = 4096;

impl Default for KeyringOptions {
    fn default() -> Self {
        KeyringOptions {
            slot: 0,
            tenant: None,
            cache: 16_384,
            limits: Limits { per_second: 200, burst: 40 },
            concurrency: 64,
            pool: MAX_POOL,
            reserve: 0,
            deadline: Duration::from_secs(10),
            new_in_group: None,
            per_directory: false,
        }
    }
}

/// Why there is no key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeyError {
    /// The volume is locked.
    #[error("the volume is locked: it comes back when the customer allows the key again, or with `hyokfs unlock`")]
    Locked,
    /// The customer said no.
    #[error(transparent)]
    Denied(ProviderError),
    /// Nobody knows.
    #[error(transparent)]
    Unreachable(ProviderError),
    /// Wrong key, region or ciphertext.
    #[error(transparent)]
    Misconfigured(ProviderError),
    /// No locked memory is left, even after keys were evicted.
    #[error(transparent)]
    ArenaFull(#[from] ArenaFull),
    /// The unwrapped key is not the one that the file was written with.
    #[error("the header of file {0} was altered: its wrapped key is not the key it was written with; restore the file")]
    Damaged(FileId),
}

impl From<ProviderError> for KeyError {
    fn from(error: ProviderError) -> Self {
        match error.verdict {
            _ if error.code == ARENA_FULL => KeyError::ArenaFull(ArenaFull),
            Verdict::Denied => KeyError::Denied(error),
            Verdict::Misconfigured => KeyError::Misconfigured(error),
            Verdict::Unreachable | Verdict::Live => KeyError::Unreachable(error),
        }
    }
}

impl From<SecretError> for KeyError {
    fn from(error: SecretError) -> Self {
        match error {
            SecretError::Full(full) => KeyError::ArenaFull(full),
            other => KeyError::Unreachable(failure(Verdict::Unreachable, "NoRandom", other.to_string())),
        }
    }
}

pub(super) fn failure(verdict: Verdict, code: &str, message: String) -> ProviderError {
    ProviderError { verdict, code: code.to_owned(), message, request_id: None }
}

pub(super) fn too_late(deadline: Duration) -> ProviderError {
    let message = format!(
        "the key service gave no key within {deadline:?}: check the network to it, its quota, --kms-max-rps and --key-wait; try again"
    );
    failure(Verdict::Unreachable, "Timeout", message)
}

pub(super) fn unanswered() -> ProviderError {
    let message = "the call to the key service ended without an answer: try again, and see the log".to_owned();
    failure(Verdict::Unreachable, "NoAnswer", message)
}
