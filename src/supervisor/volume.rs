//! From a store and a key to an unlocked volume, and from nothing to a new one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::crypto::Secret;
use crate::crypto::envelope::EnvelopeError;
use crate::crypto::kdf::{DeriveError, VolumeKeys};
use crate::crypto::secret::SecretError;
use crate::crypto::suite::Suite;
use crate::format::VolumeId;
use crate::format::header::{FORMAT_VERSION, HEADER_LEN};
use crate::format::name::NameMode;
use crate::format::volume::{Granularity, LONGEST_LEASE, RecordError, RecordKey, Volume, VolumeRecord};
use crate::fs::FsError;
use crate::keyring::KeyError;
use crate::provider::observed::{Observed, Observer, Reason};
use crate::provider::uri::BadKeyUri;
use crate::provider::{Context, KeySettings, KeyUri, Provider, ProviderError, connect};
use crate::store::{Store, StoreError};

use super::pin::{self, PinError};

/// The slot of a new volume's only key.
const FIRST_SLOT: u8 = 0;

/// Why a volume could not be unlocked or made.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record cannot be read or does not authenticate.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The key service gave no key.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The key's name in the record is none.
    #[error("hyokfs.toml: {0}")]
    Uri(#[from] BadKeyUri),
    /// The volume is not the one that this node knows.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Keys could not be derived or made.
    #[error(transparent)]
    Derive(#[from] DeriveError),
    /// The system gave no secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A group key could not be opened.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// A key of the keyring.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The filesystem could not be set up.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The mount was refused.
    #[error(transparent)]
    Mount(#[from] crate::fuse::MountError),
    /// The connection to the kernel failed.
    #[error("the FUSE connection failed at its start: {0}; try again, and see the kernel's log")]
    Session(#[source] io::Error),
    /// A new volume must not be made here.
    #[error("{}: {why}", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        why: &'static str,
    },
    /// A directory cannot be made or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An option is out of range.
    #[error("{0}")]
    Option(String),
}

impl VolumeError {
    /// The key service's answer, if that is what went wrong.
    pub fn provider(&self) -> Option<&ProviderError> {
        match self {
            VolumeError::Provider(error)
            | VolumeError::Key(
                KeyError::Denied(error) | KeyError::Unreachable(error) | KeyError::Misconfigured(error),
            ) => Some(error),
            _ => None,
        }
    }
}

/// An authentic volume, its key service, and what the poller needs.
pub struct Unlocked {
    /// Record and keys.
    pub volume: Volume,
    /// The key service, not observed.
    pub provider: Arc<dyn Provider>,
    /// The slot that opened it.
    pub slot: u8,
    /// The wrapped canary of that slot.
    pub canary: Vec<u8>,
    /// The group key, where one key covers the volume; under the volume's id.
    pub group: Option<Secret>,
    /// When the unwrap was asked (time since boot).
    pub asked: Duration,
}

/// Reads the record, from its backup where it is damaged.
pub fn read_record(store: &Store) -> Result<VolumeRecord, VolumeError> {
    let parse = |bytes: &[u8]| VolumeRecord::parse(&String::from_utf8_lossy(bytes));
    let main = match store.read_record() {
        Ok(bytes) => parse(&bytes).map_err(VolumeError::from),
        Err(error) => Err(error.into()),
    };
    match main {
        Err(VolumeError::Record(RecordError::Version(_))) | Ok(_) => main,
        Err(error) => match store.read_backup()?.map(|bytes| parse(&bytes)) {
            Some(Ok(record)) => {
                tracing::warn!(
                    "hyokfs.toml is missing or damaged, its backup is used: copy hyokfs.toml.bak over hyokfs.toml"
                );
                Ok(record)
            }
            _ => Err(error),
        },
    }
}

/// Settings as this volume needs them: the customer's name from the record, and whether this node knows the volume.
pub fn settings_for(record: &VolumeRecord, settings: &KeySettings, state_dir: &Path) -> KeySettings {
    let mut settings = settings.clone();
    settings.tenant.clone_from(&record.tenant);
    settings.worked_before = pin::known(state_dir, record.volume);
    if settings.session_name.is_none() {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        settings.session_name = Some(session_name(&host, record.volume));
    }
    settings
}

/// The name of an AWS role session: CloudTrail shows with it which node asked for which volume (at most 64 characters).
fn session_name(host: &str, volume: VolumeId) -> String {
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(24).collect();
    format!("hyokfs-{host}-{volume}")
}

/// Unwraps the volume secret and authenticates the record.
pub async fn unlock(
    record: VolumeRecord,
    settings: &KeySettings,
    observer: Arc<dyn Observer>,
) -> Result<Unlocked, VolumeError> {
    let Some(key) = record.key.first().cloned() else {
        return Err(RecordError::Syntax("no [[key]]".into()).into());
    };
    let uri: KeyUri = key.uri.parse()?;
    let provider = connect(&uri, settings).await?;
    let observed = Observed::new(provider.clone(), observer, Reason::Mount);
    let tenant = record.tenant.clone();
    let context = Context { volume: record.volume, file: None, tenant: tenant.as_deref() };
    let asked = super::events::now();
    let (secret, _) = observed.unwrap(&context, &key.secret).await?;
    let volume = record.authenticate(&secret)?;
    drop(secret);
    let group = match (&key.group, volume.record.granularity) {
        (Some(blob), Granularity::Volume) => Some(observed.unwrap(&context, blob).await?.0),
        (None, Granularity::Volume) => return Err(RecordError::Syntax("the [[key]] has no group key".into()).into()),
        (_, Granularity::File | Granularity::Directory) => None,
    };
    Ok(Unlocked { volume, provider, slot: key.slot, canary: key.canary, group, asked })
}

/// What a new volume is to be.
pub struct NewVolume {
    /// Cipher of the pages.
    pub suite: Suite,
    /// What one wrapped key covers.
    pub granularity: Granularity,
    /// How names stand in the store.
    pub names: NameMode,
    /// Longest poll interval that a mount may choose.
    pub max_poll_interval: Duration,
    /// Longest lease that a mount may choose.
    pub max_lease: Duration,
}

/// What was made.
pub struct Made {
    /// The volume's id.
    pub volume: VolumeId,
    /// Its fingerprint.
    pub fingerprint: String,
}

/// Makes a volume in `store`, which is made if it is not there. The key service is asked before anything is written, so
/// that a refusal leaves nothing behind.
pub async fn create(path: &Path, uri: &KeyUri, settings: &KeySettings, new: NewVolume) -> Result<Made, VolumeError> {
    if new.max_lease > LONGEST_LEASE {
        return Err(VolumeError::Option("--max-lease is at most 24h".into()));
    }
    let at = |source| VolumeError::Io { path: path.to_owned(), source };
    check_empty(path)?;
    let volume = VolumeId::random().map_err(|_| SecretError::NoRandom)?;
    let provider = connect(uri, settings).await?;
    let context = Context { volume, file: None, tenant: settings.tenant.as_deref() };
    let (secret, wrapped) = provider.generate(&context).await?;
    let (canary_key, canary) = provider.generate(&context).await?;
    let group = match new.granularity {
        Granularity::Volume => Some(provider.generate(&context).await?.1.blob),
        Granularity::File | Granularity::Directory => None,
    };
    // A key that wraps but does not unwrap would make a volume that nobody can open.
    let (again, _) = provider.unwrap(&context, &canary.blob).await?;
    if aws_lc_rs::constant_time::verify_slices_are_equal(again.expose(), canary_key.expose()).is_err() {
        return Err(VolumeError::Option(format!("{uri} gave back another key than it had wrapped; use another key")));
    }
    let keys = VolumeKeys::derive(&secret, volume.as_bytes())?;
    let mut record = VolumeRecord {
        format: FORMAT_VERSION,
        generation: 1,
        volume,
        suite: new.suite,
        granularity: new.granularity,
        names: new.names,
        header_len: header_len(new.granularity, wrapped.blob.len()),
        max_poll_interval_ms: millis(new.max_poll_interval),
        max_lease_ms: millis(new.max_lease),
        tenant: settings.tenant.clone(),
        key: vec![RecordKey {
            slot: FIRST_SLOT,
            uri: absolute(uri).to_string(),
            secret: wrapped.blob,
            canary: canary.blob,
            group,
        }],
        mac: Vec::new(),
    };
    record.sign(&keys)?;
    std::fs::create_dir_all(path).map_err(at)?;
    let store = Store::open(path)?;
    let made = Volume { record, keys };
    store.write_record(made.record.to_toml()?.as_bytes())?;
    Ok(Made { volume, fingerprint: made.keys.fingerprint().to_owned() })
}

/// Long enough for one customer key more of the same size, so that a second one can be added later.
fn header_len(granularity: Granularity, blob: usize) -> u16 {
    const BESIDE_SLOTS: usize = 144 + 1 + 32;
    const PROVIDER: usize = 4;
    /// A file's key under a group key.
    const GROUP: usize = 19 + 72;
    const GROUP_KEY: usize = 20;
    let slots = match granularity {
        Granularity::File | Granularity::Volume => 2 * (PROVIDER + blob),
        Granularity::Directory => GROUP + 2 * (GROUP_KEY + blob),
    };
    if BESIDE_SLOTS + slots <= HEADER_LEN { HEADER_LEN as u16 } else { 2048 }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The record is read from other directories and by other users: a keystore's path must not depend on either.
fn absolute(uri: &KeyUri) -> KeyUri {
    match uri {
        KeyUri::Local { path, name } => {
            let path = crate::provider::local::place(path.as_deref());
            KeyUri::Local { path: Some(std::path::absolute(&path).unwrap_or(path)), name: name.clone() }
        }
        other => other.clone(),
    }
}

fn check_empty(path: &Path) -> Result<(), VolumeError> {
    let refuse = |why| Err(VolumeError::NotEmpty { path: path.to_owned(), why });
    let mut entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(VolumeError::Io { path: path.to_owned(), source }),
    };
    if path.join(crate::format::name::VOLUME_RECORD).exists() {
        return refuse("there is a volume here already; mount it, or choose another directory");
    }
    match entries.next() {
        Some(_) => refuse("the directory is not empty; choose an empty one for the ciphertext"),
        None => Ok(()),
    }
}
