//! Reading and editing the keystore file.
//!
//! An edit takes the lock file `PATH.lock`, writes a whole new file beside the old one, syncs it, renames it over the
//! old one and syncs the folder: a reader sees the old or the new keystore, also after a power cut.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::document::{Document, Entry, KeyState, MAX_BYTES, Protection, check_name, damaged, decode, encode};
use super::error::KeystoreError;
use super::unlock;
use crate::crypto::envelope::EnvelopeKey;
use crate::crypto::secret::{Secret, SecretError};
use crate::format::FileId;
use crate::provider::KeySettings;

/// How long an edit waits for another one.
const EDIT_WAIT: Duration = Duration::from_secs(5);

/// What protects the keys of a *new* keystore. An existing one says it itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protect {
    /// 32 random bytes in `PATH.secret` (or the settings' `local-secret-file`).
    SecretFile,
    /// A passphrase, from the settings' `local-secret-file` or from `HYOKFS_PASSPHRASE`.
    Passphrase,
}

/// One key of a keystore, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyRecord {
    /// Its name.
    pub name: String,
    /// Its id: 32 hexadecimal digits, never used twice.
    pub id: String,
    /// Whether it may be used.
    pub state: KeyState,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

/// A keystore file, which need not be there yet.
#[derive(Debug, Clone)]
pub struct Keystore {
    path: PathBuf,
    secret_file: Option<PathBuf>,
}

/// Tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(data: &fs::Metadata) -> Self {
        Stamp {
            device: data.dev(),
            inode: data.ino(),
            size: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        }
    }
}

impl Keystore {
    /// The keystore at `path`, or at the default place ([`super::place`]).
    pub fn at(path: Option<&Path>, settings: &KeySettings) -> Self {
        Keystore { path: super::place(path), secret_file: settings.local_secret_file.clone() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is there.
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Makes a key, and the keystore too where there is none.
    ///
    /// # Errors
    /// The name is taken or none, the keystore does not open, or the disk refuses.
    pub fn create(&self, name: &str, protect: Protect) -> Result<KeyRecord, KeystoreError> {
        check_name(name)?;
        let _editing = self.edit()?;
        let (mut document, secret) = match self.read() {
            Ok((document, _)) => {
                let secret = self.secret(&document)?;
                (document, secret)
            }
            Err(KeystoreError::Missing(_)) => self.found(protect)?,
            Err(error) => return Err(error),
        };
        if document.keys.iter().any(|entry| entry.name == name) {
            return Err(KeystoreError::Exists { path: self.path.clone(), name: name.to_owned() });
        }
        let id = FileId::random().map_err(|_| KeystoreError::NoRandom(SecretError::NoRandom))?;
        let sealed = secret
            .seal(&place_of(name, &id), Secret::random()?.expose())
            .map_err(|error| KeystoreError::sealing(error, || damaged(&self.path, "a seal")))?;
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let entry = Entry {
            name: name.to_owned(),
            id: id.to_string(),
            state: KeyState::Enabled,
            created,
            sealed: Some(encode(&sealed)),
        };
        let record = KeyRecord::of(&entry);
        document.keys.push(entry);
        self.write(&document)?;
        Ok(record)
    }

    /// Takes the key away from everyone until [`Keystore::enable`]. Needs no secret.
    ///
    /// # Errors
    /// No such key, the key is destroyed, or the disk refuses.
    pub fn disable(&self, name: &str) -> Result<KeyRecord, KeystoreError> {
        self.change(name, KeyState::Disabled)
    }

    /// Gives a disabled key back. Needs no secret.
    ///
    /// # Errors
    /// No such key, the key is destroyed, or the disk refuses.
    pub fn enable(&self, name: &str) -> Result<KeyRecord, KeystoreError> {
        self.change(name, KeyState::Enabled)
    }

    /// Destroys the key for ever: its bytes leave the file. Copies of the file (backups, snapshots) keep theirs.
    ///
    /// # Errors
    /// No such key, or the disk refuses.
    pub fn destroy(&self, name: &str) -> Result<KeyRecord, KeystoreError> {
        self.change(name, KeyState::Destroyed)
    }

    /// All keys, in the order of their making.
    ///
    /// # Errors
    /// There is no intact keystore.
    pub fn show(&self) -> Result<Vec<KeyRecord>, KeystoreError> {
        Ok(self.read()?.0.keys.iter().map(KeyRecord::of).collect())
    }

    fn change(&self, name: &str, state: KeyState) -> Result<KeyRecord, KeystoreError> {
        if !self.exists() {
            return Err(KeystoreError::Missing(self.path.clone()));
        }
        let _editing = self.edit()?;
        let (mut document, _) = self.read()?;
        document.entry(name, &self.path)?;
        let Some(entry) = document.keys.iter_mut().find(|entry| entry.name == name) else {
            return Err(KeystoreError::NoKey { path: self.path.clone(), name: name.to_owned() });
        };
        if entry.state == KeyState::Destroyed && state != KeyState::Destroyed {
            return Err(KeystoreError::Destroyed { path: self.path.clone(), name: name.to_owned() });
        }
        entry.state = state;
        if state == KeyState::Destroyed {
            entry.sealed = None;
        }
        let record = KeyRecord::of(entry);
        self.write(&document)?;
        Ok(record)
    }

    /// A new keystore without keys, not written yet.
    fn found(&self, protect: Protect) -> Result<(Document, EnvelopeKey), KeystoreError> {
        let file = self.secret_file.as_deref();
        let (protection, secret) = match protect {
            Protect::SecretFile => (Protection::SecretFile, unlock::make_secret(&self.path, file)?),
            Protect::Passphrase => {
                let protection = unlock::with_passphrase()?;
                let secret = unlock::secret(&protection, &self.path, file)?;
                (protection, secret)
            }
        };
        let secret = EnvelopeKey::new(secret);
        Ok((Document::new(protection, &unlock::check(&secret)?), secret))
    }

    /// The keystore's secret, checked.
    pub(super) fn secret(&self, document: &Document) -> Result<EnvelopeKey, KeystoreError> {
        let secret = unlock::secret(&document.protection, &self.path, self.secret_file.as_deref())?;
        let secret = EnvelopeKey::new(secret);
        unlock::fits(&secret, &decode(&document.check, "the check", &self.path)?, &self.path)?;
        Ok(secret)
    }

    /// What tells whether the keystore or its secret changed: both files' stamps (`None`: not there).
    pub(super) fn stamps(&self) -> [Option<Stamp>; 2] {
        let secret = self.secret_file.clone().unwrap_or_else(|| unlock::beside(&self.path));
        [&self.path, &secret].map(|path| fs::metadata(path).ok().map(|data| Stamp::of(&data)))
    }

    /// The file's content, and its stamp at that moment.
    pub(super) fn read(&self) -> Result<(Document, Stamp), KeystoreError> {
        let path = &self.path;
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => KeystoreError::Missing(path.clone()),
            _ => KeystoreError::Unreadable { path: path.clone(), source },
        };
        let file = File::open(path).map_err(unreadable)?;
        let data = file.metadata().map_err(unreadable)?;
        if !data.is_file() || data.len() > MAX_BYTES {
            return Err(damaged(path, "it is no file of at most 4 MiB"));
        }
        let mut bytes = Vec::new();
        (&file).take(MAX_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
        let text = str::from_utf8(&bytes).map_err(|_| damaged(path, "it is no text"))?;
        Ok((Document::parse(text, path)?, Stamp::of(&data)))
    }

    /// Holds the lock file until dropped. The file stays: removing it would let two editors hold two different ones.
    fn edit(&self) -> Result<File, KeystoreError> {
        let target = self.target();
        let mut name = target.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        let unwritable = |source| KeystoreError::Unwritable { path: path.clone(), source };
        if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unwritable)?;
        }
        let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = options.map_err(unwritable)?;
        let until = Instant::now() + EDIT_WAIT;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => return Err(KeystoreError::Busy(self.path.clone())),
                Err(TryLockError::Error(source)) => return Err(unwritable(source)),
            }
        }
    }

    /// The file itself where the path is a link to it.
    fn target(&self) -> PathBuf {
        fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone())
    }

    fn write(&self, document: &Document) -> Result<(), KeystoreError> {
        let target = self.target();
        let text = document.to_text(&target)?;
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".new-{}", std::process::id()));
        let new = PathBuf::from(name);
        let written = replace(&target, &new, text.as_bytes());
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written.map_err(|source| KeystoreError::Unwritable { path: target, source })
    }
}

/// Writes `new` and renames it over `target`, whose owner and mode it takes.
fn replace(target: &Path, new: &Path, bytes: &[u8]) -> io::Result<()> {
    // The name is this process's and the lock is held: what is there is left over from a crash.
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    if let Ok(old) = fs::metadata(target) {
        let own = file.metadata()?;
        if (old.uid(), old.gid()) != (own.uid(), own.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(old.permissions())?;
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(new, target)?;
    sync_folder(target)
}

/// Makes the entry of `path` in its folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// What a key's seal is bound to.
pub(super) fn place_of(name: &str, id: &FileId) -> Vec<u8> {
    [b"hyokfs keystore v1 key", id.as_bytes().as_slice(), name.as_bytes()].concat()
}

impl KeyRecord {
    fn of(entry: &Entry) -> Self {
        KeyRecord { name: entry.name.clone(), id: entry.id.clone(), state: entry.state, created: entry.created }
    }
}
