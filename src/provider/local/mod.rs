//! The embedded keystore: a file of keys, playing the customer.
//!
//! For a laptop, a test, an air-gapped node, and for trying the whole story without a cloud account. It answers at
//! once, and every call looks at the file's stamp first, so that an edit counts from the next call on.
//!
//! A wrapped key is `version 1 | key tag 16 | nonce 24 | sealed key 32 | tag 16` (89 bytes), sealed with
//! XChaCha20-Poly1305 and bound to the volume, the file and the tenant.

mod document;
mod error;
mod store;
mod unlock;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{Context, KeyInfo, KeySettings, KeyUri, Provider, ProviderError, Wrapped};
use crate::crypto::Secret;
use crate::crypto::envelope::{EnvelopeKey, OVERHEAD};
use crate::format::FileId;
use document::{Document, KeyState, Protection, damaged, decode};
use store::Stamp;

pub use document::KeyState as State;
pub use error::KeystoreError;
pub use store::{KeyRecord, Keystore, Protect};
pub use unlock::PASSPHRASE;

/// The key that a name without `#NAME` means.
pub const DEFAULT_KEY: &str = "default";
const BLOB_VERSION: u8 = 1;
const TAG: usize = 16;
const SEALED: usize = 32 + OVERHEAD;

/// Where the keystore is: `path`, else `$XDG_DATA_HOME/hyokfs/keys`, else `~/.local/share/hyokfs/keys`, and without a
/// home (a service) `/var/lib/hyokfs/keys`.
pub fn place(path: Option<&Path>) -> PathBuf {
    path.map_or_else(|| default_place(|name| std::env::var_os(name)), Path::to_owned)
}

fn default_place(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> PathBuf {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    data.unwrap_or_else(|| PathBuf::from("/var/lib")).join("hyokfs/keys")
}

/// Makes the keystore with the named key where there is no keystore at all; gives whether it did. `hyokfs init
/// --key local` begins with this.
///
/// # Errors
/// The disk refuses, or the name is none.
pub fn ensure(path: Option<&Path>, name: Option<&str>, settings: &KeySettings) -> Result<bool, KeystoreError> {
    let keystore = Keystore::at(path, settings);
    if keystore.exists() {
        return Ok(false);
    }
    match keystore.create(name.unwrap_or(DEFAULT_KEY), Protect::SecretFile) {
        Ok(_) => Ok(true),
        // Another process was quicker.
        Err(KeystoreError::Exists { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// One key of an embedded keystore.
pub struct LocalKey {
    uri: KeyUri,
    name: String,
    keystore: Keystore,
    worked: AtomicBool,
    state: Mutex<Cached>,
}

/// What the last read of the files gave.
#[derive(Default)]
struct Cached {
    key: Option<Arc<Ready>>,
    /// A passphrase is slow on purpose; its outcome is kept until the salt changes.
    derived: Option<(Protection, Arc<EnvelopeKey>)>,
}

struct Ready {
    stamps: [Option<Stamp>; 2],
    tag: [u8; TAG],
    key: EnvelopeKey,
}

impl LocalKey {
    /// The key `name` (`None`: [`DEFAULT_KEY`]) of the keystore at `path` (`None`: the default place). Reads nothing yet.
    pub fn new(path: Option<&Path>, name: Option<&str>, settings: &KeySettings) -> Self {
        LocalKey {
            uri: KeyUri::Local { path: path.map(Path::to_owned), name: name.map(str::to_owned) },
            name: name.unwrap_or(DEFAULT_KEY).to_owned(),
            keystore: Keystore::at(path, settings),
            worked: AtomicBool::new(settings.worked_before),
            state: Mutex::new(Cached::default()),
        }
    }

    /// The key, if its owner still allows it: as read last where nothing changed since, unless `afresh`.
    fn key(&self, afresh: bool) -> Result<Arc<Ready>, KeystoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = self.keystore.stamps();
        if let Some(ready) = state.key.as_ref().filter(|ready| !afresh && ready.stamps == stamps) {
            return Ok(Arc::clone(ready));
        }
        // Whatever comes now, the old answer no longer counts.
        state.key = None;
        let (document, stamp) = self.keystore.read()?;
        let path = self.keystore.path();
        let entry = document.entry(&self.name, path)?;
        match entry.state {
            KeyState::Enabled => (),
            KeyState::Disabled => {
                return Err(KeystoreError::Disabled { path: path.to_owned(), name: self.name.clone() });
            }
            KeyState::Destroyed => {
                return Err(KeystoreError::Destroyed { path: path.to_owned(), name: self.name.clone() });
            }
        }
        let id: FileId = entry.id.parse().map_err(|_| damaged(path, "a key's id"))?;
        let sealed = entry.sealed.as_deref().ok_or_else(|| damaged(path, "an enabled key without its bytes"))?;
        let sealed = decode(sealed, "a sealed key", path)?;
        let secret = self.secret(&mut state, &document)?;
        let key = secret.open_secret(&store::place_of(&self.name, &id), &sealed).map_err(|error| {
            KeystoreError::sealing(error, || damaged(path, format!("the key `{}` was altered", self.name)))
        })?;
        let key = EnvelopeKey::new(key);
        let ready = Arc::new(Ready { stamps: [Some(stamp), stamps[1]], tag: tag(&self.name, &id), key });
        state.key = Some(Arc::clone(&ready));
        Ok(ready)
    }

    fn secret(&self, state: &mut Cached, document: &Document) -> Result<Arc<EnvelopeKey>, KeystoreError> {
        if let Some((protection, secret)) = &state.derived
            && *protection == document.protection
        {
            return Ok(Arc::clone(secret));
        }
        state.derived = None;
        let secret = Arc::new(self.keystore.secret(document)?);
        if document.protection != Protection::SecretFile {
            state.derived = Some((document.protection.clone(), Arc::clone(&secret)));
        }
        Ok(secret)
    }

    /// Judges the outcome, and remembers that the key has worked: from then on its disappearance is its owner's no.
    fn judged<T>(&self, outcome: Result<T, KeystoreError>) -> Result<T, ProviderError> {
        match outcome {
            Ok(done) => {
                self.worked.store(true, Ordering::Relaxed);
                Ok(done)
            }
            Err(error) => Err(error.judged(self.worked.load(Ordering::Relaxed))),
        }
    }

    fn seal(&self, context: &Context<'_>, key: &Secret) -> Result<Wrapped, KeystoreError> {
        let ready = self.key(false)?;
        let mut blob = Vec::with_capacity(1 + TAG + SEALED);
        blob.push(BLOB_VERSION);
        blob.extend_from_slice(&ready.tag);
        let sealed = ready.key.seal(&bound(context, &ready.tag), key.expose());
        let library = || KeystoreError::WrongBlob("sealing failed");
        blob.extend_from_slice(&sealed.map_err(|error| KeystoreError::sealing(error, library))?);
        Ok(Wrapped { blob, request_id: None })
    }

    fn open(&self, context: &Context<'_>, blob: &[u8], afresh: bool) -> Result<Secret, KeystoreError> {
        // The key's state first: a denial must not hide behind a bad blob.
        let ready = self.key(afresh)?;
        let Some((&version, rest)) = blob.split_first() else {
            return Err(KeystoreError::WrongBlob("it is empty"));
        };
        if version != BLOB_VERSION || rest.len() != TAG + SEALED {
            return Err(KeystoreError::WrongBlob("it is no wrapped key of the local keystore"));
        }
        let (tag, sealed) = rest.split_at(TAG);
        if tag != ready.tag {
            return Err(KeystoreError::WrongBlob("another key wrapped it"));
        }
        ready
            .key
            .open_secret(&bound(context, &ready.tag), sealed)
            .map_err(|error| KeystoreError::sealing(error, || KeystoreError::WrongBlob("the seal does not fit")))
    }
}

/// Names the key in a wrapped key: the first 16 bytes of SHA-256 over its place.
fn tag(name: &str, id: &FileId) -> [u8; TAG] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &store::place_of(name, id));
    let mut tag = [0; TAG];
    tag.copy_from_slice(&digest.as_ref()[..TAG]);
    tag
}

/// What a wrapped key is bound to. Every part has a fixed length or stands last.
fn bound(context: &Context<'_>, tag: &[u8; TAG]) -> Vec<u8> {
    let mut bytes = b"hyokfs local wrap v1".to_vec();
    bytes.extend_from_slice(tag);
    bytes.extend_from_slice(context.volume.as_bytes());
    bytes.push(u8::from(context.file.is_some()));
    bytes.extend_from_slice(context.file.as_ref().map_or(&[0; 16], |file| file.as_bytes()));
    bytes.push(u8::from(context.tenant.is_some()));
    bytes.extend_from_slice(context.tenant.unwrap_or_default().as_bytes());
    bytes
}

#[async_trait]
impl Provider for LocalKey {
    fn uri(&self) -> &KeyUri {
        &self.uri
    }

    fn is_remote(&self) -> bool {
        false
    }

    async fn generate(&self, context: &Context<'_>) -> Result<(Secret, Wrapped), ProviderError> {
        self.judged(Secret::random().map_err(KeystoreError::from).and_then(|key| {
            let wrapped = self.seal(context, &key)?;
            Ok((key, wrapped))
        }))
    }

    async fn wrap(&self, context: &Context<'_>, key: &Secret) -> Result<Wrapped, ProviderError> {
        self.judged(self.seal(context, key))
    }

    async fn unwrap(&self, context: &Context<'_>, blob: &[u8]) -> Result<(Secret, Option<String>), ProviderError> {
        self.judged(self.open(context, blob, false).map(|key| (key, None)))
    }

    async fn probe(&self, context: &Context<'_>, canary: &[u8]) -> Result<Option<String>, ProviderError> {
        self.judged(self.open(context, canary, true).map(|_| None))
    }

    async fn describe(&self) -> Result<KeyInfo, ProviderError> {
        let path = self.keystore.path();
        let entry = self.keystore.read().and_then(|(document, _)| document.entry(&self.name, path).cloned());
        let entry = entry.map_err(|error| error.judged(self.worked.load(Ordering::Relaxed)))?;
        let state = match entry.state {
            KeyState::Enabled => "Enabled",
            KeyState::Disabled => "Disabled",
            KeyState::Destroyed => "Destroyed",
        };
        Ok(KeyInfo {
            id: format!("local:{}#{}", path.display(), self.name),
            state: state.to_owned(),
            kind: "XChaCha20-Poly1305".to_owned(),
        })
    }
}
