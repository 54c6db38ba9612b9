//! The keystore file: TOML, one table a key.
//!
//! ```toml
//! version = 1
//! check = "base64"                 # 32 zero bytes sealed under the keystore's secret: tells a wrong one at once
//! [protection]
//! kind = "secret-file"             # or "argon2id" with salt, memory-kib, passes, lanes (RFC 9106)
//! [[key]]
//! name = "default"
//! id = "32 hexadecimal digits"
//! state = "enabled"                # or "disabled", "destroyed"
//! created = 1767225600             # seconds since 1970
//! sealed = "base64"                # the key, sealed under the secret; gone when destroyed
//! ```
//!
//! The state is plain text on purpose: who owns the file may disable a key with any editor and without its secret.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::error::KeystoreError;
use crate::format::FileId;

/// The only version there is.
const VERSION: u32 = 1;
/// A keystore is smaller than this.
pub(super) const MAX_BYTES: u64 = 4 << 20;
const HEAD: &str = "# Keys of hyokfs. `hyokfs key create|disable|enable|destroy|show` edits this file.\n\
                    # state = \"disabled\" here locks every volume under that key within seconds.\n";

/// Whether a key may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyState {
    /// It may.
    Enabled,
    /// Not now.
    Disabled,
    /// Never again: the key's bytes are gone.
    Destroyed,
}

/// What protects the keys in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub(super) enum Protection {
    /// 32 random bytes in a file of their own.
    SecretFile,
    /// A passphrase through Argon2id.
    Argon2id {
        /// 16 random bytes, base64.
        salt: String,
        /// Memory, in KiB.
        memory_kib: u32,
        /// Passes over the memory.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub name: String,
    pub id: String,
    pub state: KeyState,
    pub created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    version: u32,
    pub check: String,
    pub protection: Protection,
    #[serde(default, rename = "key")]
    pub keys: Vec<Entry>,
}

pub(super) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn decode(text: &str, what: &str, path: &Path) -> Result<Vec<u8>, KeystoreError> {
    STANDARD.decode(text).map_err(|error| damaged(path, format!("{what} is not base64: {error}")))
}

pub(super) fn damaged(path: &Path, why: impl Into<String>) -> KeystoreError {
    KeystoreError::Damaged { path: path.to_owned(), why: why.into() }
}

impl Document {
    pub fn new(protection: Protection, check: &[u8]) -> Self {
        Document { version: VERSION, check: encode(check), protection, keys: Vec::new() }
    }

    pub fn parse(text: &str, path: &Path) -> Result<Self, KeystoreError> {
        let document: Document = toml::from_str(text).map_err(|error| damaged(path, error.message()))?;
        if document.version != VERSION {
            return Err(damaged(path, format!("version {} is not known to this hyokfs", document.version)));
        }
        for (index, entry) in document.keys.iter().enumerate() {
            check_name(&entry.name)?;
            if entry.id.parse::<FileId>().is_err() {
                return Err(damaged(path, format!("the id of key `{}` is not 32 hexadecimal digits", entry.name)));
            }
            if document.keys[..index].iter().any(|other| other.name == entry.name) {
                return Err(damaged(path, format!("the key `{}` stands twice", entry.name)));
            }
        }
        Ok(document)
    }

    pub fn to_text(&self, path: &Path) -> Result<String, KeystoreError> {
        let body = toml::to_string(self).map_err(|error| damaged(path, error.to_string()))?;
        Ok(format!("{HEAD}{body}"))
    }

    pub fn entry(&self, name: &str, path: &Path) -> Result<&Entry, KeystoreError> {
        let found = self.keys.iter().find(|entry| entry.name == name);
        found.ok_or_else(|| KeystoreError::NoKey { path: path.to_owned(), name: name.to_owned() })
    }
}

/// A name that needs no quoting anywhere.
pub(super) fn check_name(name: &str) -> Result<(), KeystoreError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=64).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(KeystoreError::BadName(name.chars().take(80).collect()))
}
