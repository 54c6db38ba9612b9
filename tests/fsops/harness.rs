//! A volume in a temporary directory, mounted without FUSE.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyokfs::crypto::kdf::VolumeKeys;
use hyokfs::crypto::{Secret, Suite};
use hyokfs::format::VolumeId;
use hyokfs::format::name::NameMode;
use hyokfs::format::volume::{Granularity, Volume, VolumeRecord};
use hyokfs::fs::{Attr, Caller, Fh, Fs, FsError, FsOptions, Ino, Kind, ROOT};
use hyokfs::keyring::{Keyring, KeyringOptions};
use hyokfs::provider::local::{LocalKey, ensure};
use hyokfs::provider::settings::KeySettings;
use hyokfs::provider::{Observer, Provider, Unobserved};
use hyokfs::store::Store;
use tempfile::TempDir;

pub const ME: Caller = Caller { uid: 0, gid: 0, pid: 1 };
pub const RW: i32 = libc::O_RDWR;

pub struct World {
    pub dir: TempDir,
    keystore: TempDir,
    runtime: tokio::runtime::Runtime,
    volume: VolumeId,
    secret: [u8; 32],
    names: NameMode,
    pub keyring: Arc<Keyring>,
    pub fs: Arc<Fs>,
}

/// A volume with one key a file.
pub fn volume(id: VolumeId, secret: &[u8; 32], names: NameMode) -> Volume {
    let secret = Secret::copy_from(secret).unwrap();
    Volume {
        record: VolumeRecord {
            format: 1,
            generation: 1,
            volume: id,
            suite: Suite::Aes256Gcm,
            granularity: Granularity::File,
            names,
            header_len: 1024,
            max_poll_interval_ms: 5000,
            max_lease_ms: 300_000,
            tenant: None,
            key: Vec::new(),
            mac: Vec::new(),
        },
        keys: VolumeKeys::derive(&secret, id.as_bytes()).unwrap(),
    }
}

fn provider(keystore: &Path) -> Arc<dyn Provider> {
    let settings = KeySettings::default();
    let path = keystore.join("keys");
    ensure(Some(&path), None, &settings).unwrap();
    Arc::new(LocalKey::new(Some(&path), None, &settings))
}

impl World {
    pub fn new() -> World {
        World::with(NameMode::Encrypted, FsOptions::default())
    }

    pub fn with(names: NameMode, options: FsOptions) -> World {
        let dir = tempfile::tempdir().unwrap();
        let keystore = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let id = VolumeId::random().unwrap();
        let mut secret = [7; 32];
        secret[..16].copy_from_slice(id.as_bytes());
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let observer: Arc<dyn Observer> = Arc::new(Unobserved);
        let keyring =
            Keyring::new(provider(keystore.path()), runtime.handle().clone(), id, KeyringOptions::default(), observer);
        let fs = Fs::mount(store, volume(id, &secret, names), Arc::clone(&keyring), options).unwrap();
        World { dir, keystore, runtime, volume: id, secret, names, keyring, fs }
    }

    /// What `mount` gets after an unlock.
    pub fn volume(&self) -> Volume {
        volume(self.volume, &self.secret, self.names)
    }

    pub fn provider(&self) -> Arc<dyn Provider> {
        provider(self.keystore.path())
    }

    /// Forgets everything and mounts anew.
    pub fn remount(&mut self) {
        let settled = self.fs.settle(std::time::Duration::from_secs(60));
        assert_eq!(settled.errors, Vec::<String>::new());
        self.crash();
    }

    /// Mounts anew without settling anything.
    pub fn crash(&mut self) {
        let store = Arc::new(Store::open(self.dir.path()).unwrap());
        let observer: Arc<dyn Observer> = Arc::new(Unobserved);
        let handle = self.runtime.handle().clone();
        self.keyring = Keyring::new(self.provider(), handle, self.volume, KeyringOptions::default(), observer);
        self.fs = Fs::mount(store, self.volume(), Arc::clone(&self.keyring), FsOptions::default()).unwrap();
    }

    pub fn find(&self, path: &str) -> Result<Attr, FsError> {
        let mut attr = self.fs.getattr(ROOT, None)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            attr = self.fs.lookup(attr.ino, OsStr::new(name))?;
        }
        Ok(attr)
    }

    pub fn ino(&self, path: &str) -> Ino {
        self.find(path).unwrap_or_else(|error| panic!("{path}: {error:?}")).ino
    }

    pub fn put(&self, path: &str, data: &[u8]) -> Ino {
        let (dir, name) = self.split(path);
        let (attr, fh) = self.fs.create(&ME, dir, name, 0o644, 0, RW).unwrap();
        assert_eq!(self.fs.write(attr.ino, fh, 0, data, false, false).unwrap(), data.len());
        self.fs.release(attr.ino, fh).unwrap();
        attr.ino
    }

    pub fn split<'a>(&self, path: &'a str) -> (Ino, &'a OsStr) {
        match path.rsplit_once('/') {
            Some((dir, name)) => (self.ino(dir), OsStr::new(name)),
            None => (ROOT, OsStr::new(path)),
        }
    }

    pub fn mkdir(&self, path: &str) -> Ino {
        let (dir, name) = self.split(path);
        self.fs.mkdir(&ME, dir, name, 0o755, 0).unwrap().ino
    }

    pub fn unlink(&self, path: &str) -> Result<(), FsError> {
        let (dir, name) = self.split(path);
        self.fs.unlink(dir, name)
    }

    pub fn rmdir(&self, path: &str) -> Result<(), FsError> {
        let (dir, name) = self.split(path);
        self.fs.rmdir(dir, name)
    }

    pub fn rename(&self, from: &str, to: &str, flags: u32) -> Result<(), FsError> {
        let ((a, b), (c, d)) = (self.split(from), self.split(to));
        self.fs.rename(a, b, c, d, flags)
    }

    pub fn link(&self, from: &str, to: &str) -> Result<Attr, FsError> {
        let (dir, name) = self.split(to);
        self.fs.link(self.ino(from), dir, name)
    }

    pub fn read_fh(&self, ino: Ino, fh: Fh) -> Result<Vec<u8>, FsError> {
        let mut data = vec![0; self.fs.getattr(ino, Some(fh))?.size as usize + 10];
        let length = self.fs.read(ino, fh, 0, &mut data)?;
        data.truncate(length);
        Ok(data)
    }

    pub fn get(&self, path: &str) -> Result<Vec<u8>, FsError> {
        let ino = self.find(path)?.ino;
        let fh = self.fs.open(&ME, ino, libc::O_RDONLY)?;
        let data = self.read_fh(ino, fh);
        self.fs.release(ino, fh)?;
        data
    }

    /// Names and kinds in a directory, sorted, without `.` and `..`.
    pub fn list(&self, path: &str) -> Vec<(OsString, Kind)> {
        let ino = self.ino(path);
        let fh = self.fs.opendir(ino).unwrap();
        let mut names = Vec::new();
        let mut off = 0;
        loop {
            let mut taken = 0;
            let plus = names.len() % 2 == 0;
            self.fs
                .readdir(ino, fh, off, plus, &mut |entry| {
                    // A small kernel buffer: three entries at a time.
                    if taken == 3 {
                        return true;
                    }
                    taken += 1;
                    off = entry.next_off;
                    if entry.name != "." && entry.name != ".." {
                        assert_eq!(entry.attr.is_some(), plus);
                        names.push((entry.name.to_owned(), entry.kind));
                    }
                    false
                })
                .unwrap();
            if taken == 0 {
                break;
            }
        }
        self.fs.releasedir(fh).unwrap();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        names
    }

    pub fn names(&self, path: &str) -> Vec<String> {
        self.list(path).into_iter().map(|(name, _)| name.into_string().unwrap()).collect()
    }

    /// The store's path of an inode.
    pub fn backing(&self, ino: Ino) -> PathBuf {
        fn walk(dir: &Path, ino: u64) -> Option<PathBuf> {
            use std::os::unix::fs::MetadataExt;
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).find_map(|path| {
                let meta = path.symlink_metadata().unwrap();
                if meta.ino() == ino {
                    return Some(path);
                }
                meta.is_dir().then(|| walk(&path, ino)).flatten()
            })
        }
        walk(self.dir.path(), ino).unwrap()
    }
}

#[track_caller]
pub fn errno<T>(result: Result<T, FsError>) -> i32 {
    match result.err().expect("it should have failed") {
        FsError::NotFound => libc::ENOENT,
        FsError::Io(error) => error.raw_os_error().unwrap(),
        FsError::NameTooLong => libc::ENAMETOOLONG,
        FsError::Damaged { .. } | FsError::Unfinished => libc::EIO,
        FsError::Locked => libc::ENOKEY,
        other => panic!("unexpected {other:?}"),
    }
}

pub fn os(name: &str) -> &OsStr {
    OsStr::from_bytes(name.as_bytes())
}
