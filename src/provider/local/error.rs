//! Why the keystore said no, and how that sounds as a verdict.

use std::io;
use std::path::PathBuf;

use super::super::{ProviderError, Verdict};
use crate::crypto::envelope::EnvelopeError;
use crate::crypto::secret::{ArenaFull, SecretError};

/// Why the embedded keystore gave no key, or was not edited.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// There is no keystore.
    #[error("there is no keystore at {0}: make one with `hyokfs key create {0}`, or give the right path")]
    Missing(PathBuf),
    /// The keystore or its secret is there but cannot be read.
    #[error("cannot read {path}: {source}; check its owner, mode and disk")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The keystore was not written by hyokfs, or was altered.
    #[error("{path} is no intact keystore ({why}): restore it from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The keystore's secret file is gone.
    #[error("the keystore's secret {0} is missing: restore it, or name it with --local-secret-file")]
    SecretMissing(PathBuf),
    /// The secret file can be read by everybody.
    #[error("{path} may be read by others (mode {mode:04o}): run `chmod 600 {path}`")]
    SecretExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The secret or passphrase is not this keystore's.
    #[error("the secret or passphrase does not open the keystore {0}: give the one it was created with")]
    WrongSecret(PathBuf),
    /// The keystore needs a passphrase and there is none.
    #[error(
        "the keystore {0} is protected by a passphrase: set HYOKFS_PASSPHRASE, or name a file that holds it with --local-secret-file"
    )]
    NoPassphrase(PathBuf),
    /// The keystore has no such key.
    #[error("the keystore {path} has no key `{name}`: see `hyokfs key show {path}`")]
    NoKey {
        /// The keystore.
        path: PathBuf,
        /// The key's name.
        name: String,
    },
    /// The key is disabled.
    #[error(
        "the key `{name}` in {path} is disabled: its owner can bring it back with `hyokfs key enable {path}#{name}`"
    )]
    Disabled {
        /// The keystore.
        path: PathBuf,
        /// The key's name.
        name: String,
    },
    /// The key is destroyed, for ever.
    #[error("the key `{name}` in {path} is destroyed and cannot come back: what only it wrapped is lost")]
    Destroyed {
        /// The keystore.
        path: PathBuf,
        /// The key's name.
        name: String,
    },
    /// There is a key of this name already.
    #[error("the keystore {path} already has a key `{name}`: choose another name (a destroyed key's name stays taken)")]
    Exists {
        /// The keystore.
        path: PathBuf,
        /// The key's name.
        name: String,
    },
    /// The name has a character that does not fit into a key's name.
    #[error("`{0}` is no name for a key: use 1 to 64 letters, digits, `.`, `_` or `-`")]
    BadName(String),
    /// Another process edits the keystore.
    #[error("another process is editing the keystore {0}: try again when it is done")]
    Busy(PathBuf),
    /// The keystore could not be written; the old one is still in place.
    #[error("cannot write {path}: {source}; the keystore is unchanged")]
    Unwritable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A wrapped key was altered, or belongs to another key, volume, file or tenant.
    #[error("the wrapped key was altered, or was wrapped by another key, or for another volume, file or tenant ({0})")]
    WrongBlob(&'static str),
    /// See [`ArenaFull`].
    #[error(transparent)]
    Full(#[from] ArenaFull),
    /// The random generator failed.
    #[error(transparent)]
    NoRandom(SecretError),
}

impl From<SecretError> for KeystoreError {
    fn from(error: SecretError) -> Self {
        match error {
            SecretError::Full(full) => KeystoreError::Full(full),
            other => KeystoreError::NoRandom(other),
        }
    }
}

impl KeystoreError {
    /// An envelope's error; `forged` says what it means in this place.
    pub(super) fn sealing(error: EnvelopeError, forged: impl FnOnce() -> KeystoreError) -> KeystoreError {
        match error {
            EnvelopeError::Forged => forged(),
            EnvelopeError::Arena(full) => KeystoreError::Full(full),
            EnvelopeError::Library => KeystoreError::NoRandom(SecretError::NoRandom),
        }
    }

    /// The code that stands in logs.
    pub fn code(&self) -> &'static str {
        match self {
            KeystoreError::Missing(_) => "KeystoreNotFound",
            KeystoreError::Unreadable { .. } => "KeystoreUnreadable",
            KeystoreError::Damaged { .. } => "KeystoreDamaged",
            KeystoreError::SecretMissing(_) => "SecretNotFound",
            KeystoreError::SecretExposed { .. } => "SecretExposed",
            KeystoreError::WrongSecret(_) => "WrongSecret",
            KeystoreError::NoPassphrase(_) => "NoPassphrase",
            KeystoreError::NoKey { .. } => "KeyNotFound",
            KeystoreError::Disabled { .. } => "KeyDisabled",
            KeystoreError::Destroyed { .. } => "KeyDestroyed",
            KeystoreError::Exists { .. } => "KeyExists",
            KeystoreError::BadName(_) => "BadName",
            KeystoreError::Busy(_) => "KeystoreBusy",
            KeystoreError::Unwritable { .. } => "KeystoreUnwritable",
            KeystoreError::WrongBlob(_) => "InvalidCiphertext",
            KeystoreError::Full(_) => "ArenaFull",
            KeystoreError::NoRandom(_) => "NoRandom",
        }
    }

    /// The error as the provider gives it. Whatever takes the key away from where it used to be is its owner's no.
    pub(super) fn judged(self, worked_before: bool) -> ProviderError {
        let verdict = match self {
            KeystoreError::Disabled { .. } | KeystoreError::Destroyed { .. } => Verdict::Denied,
            KeystoreError::Missing(_) | KeystoreError::SecretMissing(_) | KeystoreError::NoKey { .. } => {
                if worked_before {
                    Verdict::Denied
                } else {
                    Verdict::Misconfigured
                }
            }
            KeystoreError::Unreadable { .. }
            | KeystoreError::Unwritable { .. }
            | KeystoreError::Busy(_)
            | KeystoreError::Full(_)
            | KeystoreError::NoRandom(_) => Verdict::Unreachable,
            KeystoreError::Damaged { .. }
            | KeystoreError::SecretExposed { .. }
            | KeystoreError::WrongSecret(_)
            | KeystoreError::NoPassphrase(_)
            | KeystoreError::Exists { .. }
            | KeystoreError::BadName(_)
            | KeystoreError::WrongBlob(_) => Verdict::Misconfigured,
        };
        ProviderError { verdict, code: self.code().to_owned(), message: self.to_string(), request_id: None }
    }
}
