//! Another reader, in Python and from `docs/format.md` alone, must read what this program writes: every name and byte.
//!
//! Needs `python3` (3.11) with the package `cryptography` (44).

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyokfs::crypto::envelope::EnvelopeKey;
use hyokfs::crypto::kdf::{VolumeKeys, commitment};
use hyokfs::crypto::{Secret, Suite};
use hyokfs::file::PageFile;
use hyokfs::format::dirrec::{DIR_RECORD, DirRecord};
use hyokfs::format::header::{FileHeader, Parents};
use hyokfs::format::name::{NameMode, encode};
use hyokfs::format::page::PageKeys;
use hyokfs::format::slots::{KeySlot, Via};
use hyokfs::format::volume::{Granularity, RecordKey, VolumeRecord};
use hyokfs::format::{DirId, FileId, VolumeId};
use hyokfs::fs::{Caller, Fs, FsOptions};
use hyokfs::keyring::{Keyring, KeyringOptions};
use hyokfs::provider::local::{LocalKey, ensure};
use hyokfs::provider::{Context, KeySettings, KeyUri, Provider, Unobserved};
use hyokfs::store::{RealDisk, Store};
use hyokfs::supervisor::volume::{self, NewVolume};

struct World {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    provider: LocalKey,
    record: VolumeRecord,
    keys: VolumeKeys,
    group: Option<EnvelopeKey>,
}

/// `length` bytes, none of them zero.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8 + 1).collect()
}

impl World {
    fn new(suite: Suite, granularity: Granularity, names: NameMode, header_len: u16, tenant: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keystore = folder.path().join("keys");
        let settings = KeySettings::default();
        assert!(ensure(Some(&keystore), None, &settings).unwrap());
        let provider = LocalKey::new(Some(&keystore), None, &settings);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let volume = VolumeId::random().unwrap();
        let context = Context { volume, file: None, tenant };
        let generate = || runtime.block_on(provider.generate(&context)).unwrap();
        let (secret, wrapped) = generate();
        let (group, wrapped_group) = generate();
        let keys = VolumeKeys::derive(&secret, volume.as_bytes()).unwrap();
        let grouped = granularity == Granularity::Volume;
        let mut record = VolumeRecord {
            format: 1,
            generation: 3,
            volume,
            suite,
            granularity,
            names,
            header_len,
            max_poll_interval_ms: 60_000,
            max_lease_ms: 300_000,
            tenant: tenant.map(str::to_owned),
            key: vec![RecordKey {
                slot: 4,
                uri: provider.uri().to_string(),
                secret: wrapped.blob,
                canary: generate().1.blob,
                group: grouped.then_some(wrapped_group.blob),
            }],
            mac: Vec::new(),
        };
        record.sign(&keys).unwrap();
        fs::create_dir(folder.path().join("store")).unwrap();
        fs::write(folder.path().join("store/hyokfs.toml"), record.to_toml().unwrap()).unwrap();
        let group = grouped.then(|| EnvelopeKey::new(group));
        World { folder, runtime, provider, record, keys, group }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn directory(&self, path: &Path, parents: Vec<DirId>) -> DirId {
        let dir = DirId::random().unwrap();
        let target = DirRecord { dir, parents }.encode(self.record.volume, &self.keys.header);
        symlink(target, path.join(DIR_RECORD)).unwrap();
        dir
    }

    /// The store's path of `name`; makes the symlink of a long name.
    fn place(&self, folder: &Path, dir: DirId, name: &[u8]) -> PathBuf {
        let stored = encode(&self.keys.names, self.record.names, &dir, name).unwrap();
        if let (Some(sidecar), Some(text)) = (stored.sidecar(), &stored.long) {
            symlink(text, folder.join(OsStr::from_bytes(&sidecar))).unwrap();
        }
        folder.join(OsStr::from_bytes(&stored.entry))
    }

    fn file(&self, path: &Path, parents: Parents, fill: impl FnOnce(&PageFile<RealDisk>)) {
        let (volume, file) = (self.record.volume, FileId::random().unwrap());
        let (key, slots) = match &self.group {
            _ if self.record.granularity == Granularity::Directory => {
                // A group key of this file alone: whichever directory it was made in, the header has all it takes.
                let group = FileId::random().unwrap();
                let context = Context { volume, file: Some(group), tenant: self.record.tenant.as_deref() };
                let (group_key, wrapped) = self.runtime.block_on(self.provider.generate(&context)).unwrap();
                let key = Secret::random().unwrap();
                let place = [*volume.as_bytes(), *file.as_bytes()].concat();
                let sealed = EnvelopeKey::new(group_key).seal(&place, key.expose()).unwrap();
                let whole = KeySlot { via: Via::GroupKey { slot: 4, group: group.0 }, wrapped: wrapped.blob };
                // Slots of a customer key that this reader does not have come first.
                let foreign = KeySlot { via: Via::GroupKey { slot: 9, group: group.0 }, wrapped: vec![1; 200] };
                (key, vec![foreign, KeySlot { via: Via::Group(group.0), wrapped: sealed }, whole])
            }
            Some(group) => {
                let key = Secret::random().unwrap();
                let place = [*volume.as_bytes(), *file.as_bytes()].concat();
                let wrapped = group.seal(&place, key.expose()).unwrap();
                (key, vec![KeySlot { via: Via::Group(*volume.as_bytes()), wrapped }])
            }
            None => {
                let context = Context { volume, file: Some(file), tenant: self.record.tenant.as_deref() };
                let (key, wrapped) = self.runtime.block_on(self.provider.generate(&context)).unwrap();
                (key, vec![KeySlot { via: Via::Provider(4), wrapped: wrapped.blob }])
            }
        };
        let suite = self.record.suite;
        let commitment = commitment(&key, file.as_bytes()).unwrap();
        let header = FileHeader { suite, volume, file, slots, commitment, parents }
            .encode(usize::from(self.record.header_len), &self.keys.header)
            .unwrap();
        let page_keys = PageKeys::new(suite, &key, &self.keys.mixing, &volume, &file).unwrap();
        let disk = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
        let file = PageFile::create(RealDisk::new(disk.into()), &header, Arc::new(page_keys)).unwrap();
        fill(&file);
        file.sync().unwrap();
        file.put_floor().unwrap();
        file.sync().unwrap();
    }

    fn read(&self) -> Output {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/hyokfs_reader.py");
        let out = self.folder.path().join("out");
        let _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).unwrap();
        Command::new("python3").arg("-B").arg(script).arg(self.store()).arg(out).output().unwrap()
    }

    /// Fills the store, lets the reader read it and compares.
    fn check(&self) {
        let (store, long) = (self.store(), vec![b'x'; 250]);
        let root = DirId(self.keys.root);
        let inner = self.place(&store, root, "Ordner\n".as_bytes());
        fs::create_dir(&inner).unwrap();
        let dir = self.directory(&inner, vec![root, DirId([9; 16])]);
        let first = 4096 - 56 - usize::from(self.record.header_len);
        for (name, length) in
            [(&b"empty"[..], 0), (b"small", 5), (b"full", first), (b"two", first + 1), (&long, 3 * 4056 + first)]
        {
            let bound = Parents::Bound(vec![root]);
            self.file(&self.place(&store, root, name), bound, |file| file.write(0, &bytes(length)).unwrap());
        }
        self.file(&self.place(&inner, dir, b"hyokfs.toml"), Parents::Unbound, |file| {
            file.write(0, &bytes(30_000)).unwrap();
            file.punch(5_000, 15_000).unwrap();
            file.truncate(25_000).unwrap();
            file.sync().unwrap();
            file.truncate(90_001).unwrap();
        });
        let aad = [b"hyokfs/1 symlink".as_slice(), self.record.volume.as_bytes()].concat();
        let target = URL_SAFE_NO_PAD.encode(self.keys.small.seal(&aad, b"../where/it is").unwrap());
        symlink(target, self.place(&inner, dir, b"link")).unwrap();
        fs::write(store.join(".hyokfs.tmp.1"), "left over").unwrap();

        let read = self.read();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        let out = self.folder.path().join("out");
        for (name, length) in
            [(&b"empty"[..], 0), (b"small", 5), (b"full", first), (b"two", first + 1), (&long, 3 * 4056 + first)]
        {
            assert!(fs::read(out.join(OsStr::from_bytes(name))).unwrap() == bytes(length), "{length} bytes");
        }
        let mut sparse = bytes(25_000);
        sparse[5_000..20_000].fill(0);
        sparse.resize(90_001, 0);
        assert!(fs::read(out.join("Ordner\n/hyokfs.toml")).unwrap() == sparse);
        assert_eq!(fs::read_link(out.join("Ordner\n/link")).unwrap(), Path::new("../where/it is"));
        assert_eq!(fs::read_dir(&out).unwrap().count(), 6);
        assert_eq!(fs::read_dir(out.join("Ordner\n")).unwrap().count(), 2);
        assert_eq!(String::from_utf8(read.stdout).unwrap().lines().count(), 8);
    }
}

#[test]
fn one_key_a_file_and_encrypted_names() {
    let world = World::new(Suite::Aes256Gcm, Granularity::File, NameMode::Encrypted, 1024, None);
    world.check();

    // The reader notices what this program notices.
    let root = world.store();
    let dir = DirId(world.keys.root);
    let stored = encode(&world.keys.names, NameMode::Encrypted, &dir, b"two").unwrap();
    let path = root.join(OsStr::from_bytes(&stored.entry));
    let good = fs::read(&path).unwrap();
    for at in [100, 1023, 1024, 1100, 4095, 4096, 4120, 4136, 8000] {
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[good[at] ^ 1], at as u64).unwrap();
        let read = world.read();
        assert!(!read.status.success(), "byte {at} was altered");
        assert!(String::from_utf8_lossy(&read.stderr).contains("damaged"), "byte {at}");
        file.write_all_at(&good[at..=at], at as u64).unwrap();
    }
    File::options().write(true).open(&path).unwrap().set_len(4096 + 7).unwrap();
    assert!(String::from_utf8_lossy(&world.read().stderr).contains("shorter than its floor"));
    fs::write(&path, &good).unwrap();
    assert!(world.read().status.success());
}

/// What the whole filesystem writes, from `init` to the last attribute.
#[test]
fn what_the_filesystem_writes() {
    for granularity in [Granularity::File, Granularity::Directory, Granularity::Volume] {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (store, keystore) = (folder.path().join("store"), folder.path().join("keys"));
        let settings = KeySettings { tenant: Some("acme".into()), ..KeySettings::default() };
        ensure(Some(&keystore), None, &settings).unwrap();
        let uri = KeyUri::Local { path: Some(keystore), name: None };
        let new = NewVolume {
            suite: Suite::auto(),
            granularity,
            names: NameMode::Encrypted,
            max_poll_interval: Duration::from_secs(60),
            max_lease: Duration::from_secs(300),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(volume::create(&store, &uri, &settings, new)).unwrap();
        let opened = Arc::new(Store::open(&store).unwrap());
        let record = volume::read_record(&opened).unwrap();
        let unlocked = runtime.block_on(volume::unlock(record, &settings, Arc::new(Unobserved))).unwrap();
        let id = unlocked.volume.record.volume;
        let in_group = (granularity == Granularity::Volume).then_some(id.0);
        let options = KeyringOptions {
            slot: unlocked.slot,
            tenant: settings.tenant.clone(),
            new_in_group: in_group,
            per_directory: granularity == Granularity::Directory,
            ..KeyringOptions::default()
        };
        let keyring = Keyring::new(unlocked.provider, runtime.handle().clone(), id, options, Arc::new(Unobserved));
        if let Some(group) = unlocked.group {
            keyring.set_group(id.0, group).unwrap();
        }
        let fs = Fs::mount(opened, unlocked.volume, keyring, FsOptions::default()).unwrap();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let caller = Caller { uid, gid, pid: 0 };
        let (root, long) = (1, OsStr::from_bytes(&[b'l'; 255]));
        let dir = fs.mkdir(&caller, root, OsStr::new("dir"), 0o755, 0).unwrap().ino;
        let put = |parent, name: &OsStr, content: &[u8]| {
            let (attr, fh) = fs.create(&caller, parent, name, 0o644, 0, 2).unwrap();
            assert_eq!(fs.write(attr.ino, fh, 0, content, false, false).unwrap(), content.len());
            fs.fsync(attr.ino, fh, false).unwrap();
            fs.release(attr.ino, fh).unwrap();
            attr.ino
        };
        let first = put(root, OsStr::new("first"), &bytes(10_000));
        put(dir, long, &bytes(1));
        fs.symlink(&caller, dir, OsStr::new("link"), b"first").unwrap();
        fs.link(first, dir, OsStr::new("hard")).unwrap();
        fs.rename(root, OsStr::new("first"), root, OsStr::new("renamed"), 0).unwrap();
        fs.setxattr(first, OsStr::new("user.colour"), b"blue\0", 0).unwrap();
        fs.setxattr(dir, OsStr::new("user.empty"), b"", 0).unwrap();
        drop(fs);

        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/hyokfs_reader.py");
        let read = Command::new("python3").arg("-B").arg(script).arg(&store).output().unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        let text = String::from_utf8(read.stdout).unwrap();
        let hash = |content: &[u8]| -> String {
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
            digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        let big = hash(&bytes(10_000));
        let mut expected = vec![
            "attribute\t0\t\tuser.empty".to_owned(),
            "attribute\t5\tblue\\x00\tuser.colour".to_owned(),
            "attribute\t5\tblue\\x00\tuser.colour".to_owned(),
            "directory\t0\t-\tdir".to_owned(),
            format!("file\t10000\t{big}\tdir/hard"),
            format!("file\t10000\t{big}\trenamed"),
            format!("file\t1\t{}\tdir/{}", hash(&bytes(1)), "l".repeat(255)),
            "symlink\t0\tfirst\tdir/link".to_owned(),
        ];
        expected.sort_unstable();
        assert_eq!(lines, expected);
    }
}

#[test]
fn one_key_a_volume_plain_names_and_a_tenant() {
    World::new(Suite::ChaCha20Poly1305, Granularity::Volume, NameMode::Plain, 2048, Some("acme & söhne")).check();
}

#[test]
fn one_key_a_directory() {
    World::new(Suite::Aes256Gcm, Granularity::Directory, NameMode::Encrypted, 1024, Some("acme")).check();
}

#[test]
fn the_longest_header() {
    World::new(Suite::Aes256Gcm, Granularity::Volume, NameMode::Encrypted, 3072, Some("")).check();
}
