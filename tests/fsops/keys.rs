//! When the key service is asked, and for whom nobody waits: a keystore that answers as slowly as one in a cloud, or not
//! at all.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hyokfs::crypto::Secret;
use hyokfs::format::header::FileHeader;
use hyokfs::format::name::NameMode;
use hyokfs::format::slots::Via;
use hyokfs::format::volume::{Granularity, Volume};
use hyokfs::format::{FileId, VolumeId};
use hyokfs::fs::{Attr, Fs, FsError, FsOptions, Ino, KeyNeed, Kind, ROOT};
use hyokfs::keyring::{KeyError, Keyring, KeyringOptions, Limits};
use hyokfs::provider::local::{LocalKey, ensure};
use hyokfs::provider::{
    Context, KeyCall, KeyInfo, KeySettings, KeyUri, Observer, Operation, Provider, ProviderError, Reason, Wrapped,
};
use hyokfs::store::Store;
use tempfile::TempDir;

use crate::harness::{self, ME, RW};

const DELAY: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(2);

/// A local key that takes its time, or for ever.
struct Far {
    near: LocalKey,
    hangs: AtomicBool,
}

impl Far {
    async fn way(&self) {
        tokio::time::sleep(DELAY).await;
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Provider for Far {
    fn uri(&self) -> &KeyUri {
        self.near.uri()
    }
    fn is_remote(&self) -> bool {
        true
    }
    async fn generate(&self, context: &Context<'_>) -> Result<(Secret, Wrapped), ProviderError> {
        self.way().await;
        self.near.generate(context).await
    }
    async fn wrap(&self, context: &Context<'_>, key: &Secret) -> Result<Wrapped, ProviderError> {
        self.near.wrap(context, key).await
    }
    async fn unwrap(&self, context: &Context<'_>, blob: &[u8]) -> Result<(Secret, Option<String>), ProviderError> {
        self.way().await;
        self.near.unwrap(context, blob).await
    }
    async fn probe(&self, context: &Context<'_>, canary: &[u8]) -> Result<Option<String>, ProviderError> {
        self.near.probe(context, canary).await
    }
    async fn describe(&self) -> Result<KeyInfo, ProviderError> {
        self.near.describe().await
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<(Operation, Reason, FileId)>>);

impl Observer for Heard {
    fn key_call(&self, call: &KeyCall<'_>) {
        self.0.lock().unwrap().push((call.operation, call.reason, call.file.unwrap()));
    }
}

impl Heard {
    fn count(&self, which: impl Fn(&(Operation, Reason, FileId)) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|heard| which(heard)).count()
    }

    fn all(&self) -> usize {
        self.count(|_| true)
    }

    fn forget(&self) {
        self.0.lock().unwrap().clear();
    }
}

/// A volume with such a key, mounted without FUSE.
struct World {
    dir: TempDir,
    runtime: tokio::runtime::Runtime,
    id: VolumeId,
    granularity: Granularity,
    cache: usize,
    far: Arc<Far>,
    heard: Arc<Heard>,
    keyring: Arc<Keyring>,
    fs: Arc<Fs>,
}

fn volume(id: VolumeId, granularity: Granularity) -> Volume {
    let mut volume = harness::volume(id, &[7; 32], NameMode::Plain);
    volume.record.granularity = granularity;
    volume
}

impl World {
    fn new(granularity: Granularity, cache: usize) -> World {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (id, settings) = (VolumeId::random().unwrap(), KeySettings::default());
        let (keystore, path) = (dir.path().join("keys"), dir.path().join("store"));
        ensure(Some(&keystore), None, &settings).unwrap();
        let near = LocalKey::new(Some(&keystore), None, &settings);
        let far = Arc::new(Far { near, hangs: AtomicBool::new(false) });
        std::fs::create_dir(&path).unwrap();
        let heard = Arc::new(Heard::default());
        let (keyring, fs) = mount(&path, &runtime, id, granularity, cache, &far, &heard);
        World { dir, runtime, id, granularity, cache, far, heard, keyring, fs }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Mounts anew: no key is cached. Calls before are forgotten.
    fn remount(&mut self) {
        assert_eq!(self.fs.settle(Duration::from_secs(60)).errors, Vec::<String>::new());
        self.heard = Arc::new(Heard::default());
        let (id, granularity) = (self.id, self.granularity);
        let mounted = mount(&self.store(), &self.runtime, id, granularity, self.cache, &self.far, &self.heard);
        (self.keyring, self.fs) = mounted;
    }

    fn hang(&self, hangs: bool) {
        self.far.hangs.store(hangs, Ordering::SeqCst);
    }

    fn find(&self, path: &str) -> Result<Attr, FsError> {
        let mut attr = self.fs.getattr(ROOT, None)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            attr = self.fs.lookup(attr.ino, OsStr::new(name))?;
        }
        Ok(attr)
    }

    fn ino(&self, path: &str) -> Ino {
        self.find(path).unwrap().ino
    }

    fn mkdir(&self, parent: Ino, name: &str) -> Ino {
        self.fs.mkdir(&ME, parent, OsStr::new(name), 0o755, 0).unwrap().ino
    }

    fn put(&self, parent: Ino, name: &str) -> Result<Ino, FsError> {
        let (attr, fh) = self.fs.create(&ME, parent, OsStr::new(name), 0o644, 0, RW)?;
        self.fs.write(attr.ino, fh, 0, name.as_bytes(), false, false)?;
        self.fs.release(attr.ino, fh)?;
        Ok(attr.ino)
    }

    fn fill(&self, dir: Ino, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.put(dir, &name).unwrap();
        }
    }

    fn read(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let fh = self.fs.open(&ME, ino, libc::O_RDONLY)?;
        let mut bytes = vec![0; 100];
        let length = self.fs.read(ino, fh, 0, &mut bytes)?;
        self.fs.release(ino, fh)?;
        bytes.truncate(length);
        Ok(bytes)
    }

    fn list(&self, dir: Ino) -> Vec<(String, Ino, Kind)> {
        let fh = self.fs.opendir(dir).unwrap();
        let mut entries = Vec::new();
        let each = &mut |entry: hyokfs::fs::DirEntry<'_>| {
            if entry.name != "." && entry.name != ".." {
                entries.push((entry.name.to_str().unwrap().to_owned(), entry.ino, entry.kind));
            }
            false
        };
        self.fs.readdir(dir, fh, 0, true, each).unwrap();
        self.fs.releasedir(fh).unwrap();
        entries
    }

    /// Goes through a tree as `find` does, or as `grep -r` does; gives the number of files.
    fn walk(&self, dir: Ino, reads: bool) -> usize {
        let mut files = 0;
        for (name, ino, kind) in self.list(dir) {
            files += match kind {
                Kind::Directory => self.walk(ino, reads),
                _ if reads => {
                    assert_eq!(self.read(ino).unwrap(), name.as_bytes());
                    1
                }
                _ => 1,
            };
        }
        files
    }

    /// `dirs` directories below one, each with `files` files and a directory with one more.
    fn tree(&self, dirs: usize, files: usize) -> usize {
        let top = self.mkdir(ROOT, "top");
        for d in 0..dirs {
            let dir = self.mkdir(top, &format!("dir{d}"));
            self.fill(dir, (0..files).map(|f| format!("file{d}-{f}")));
            let inner = self.mkdir(dir, "inner");
            self.put(inner, &format!("deep{d}")).unwrap();
        }
        dirs * (files + 1)
    }

    /// Waits until the calls come to rest.
    fn rest(&self) {
        let mut before = usize::MAX;
        while before != self.heard.all() {
            before = self.heard.all();
            std::thread::sleep(DELAY * 15);
        }
    }
}

fn mount(
    path: &std::path::Path,
    runtime: &tokio::runtime::Runtime,
    id: VolumeId,
    granularity: Granularity,
    cache: usize,
    far: &Arc<Far>,
    heard: &Arc<Heard>,
) -> (Arc<Keyring>, Arc<Fs>) {
    let options = KeyringOptions {
        cache,
        deadline: DEADLINE,
        limits: Limits { per_second: 0, burst: 1 },
        per_directory: granularity == Granularity::Directory,
        ..KeyringOptions::default()
    };
    let keyring = Keyring::new(far.clone(), runtime.handle().clone(), id, options, heard.clone());
    let store = Arc::new(Store::open(path).unwrap());
    let options = FsOptions { remote: true, ..FsOptions::default() };
    let fs = Fs::mount(store, volume(id, granularity), Arc::clone(&keyring), options).unwrap();
    (keyring, fs)
}

fn opens(heard: &(Operation, Reason, FileId)) -> bool {
    heard.1 == Reason::Open
}

fn ahead(heard: &(Operation, Reason, FileId)) -> bool {
    heard.1 == Reason::Prefetch
}

#[test]
fn what_needs_no_key_asks_for_none_and_waits_for_nobody() {
    for granularity in [Granularity::File, Granularity::Directory] {
        let mut world = World::new(granularity, 16_384);
        world.tree(3, 3);
        world.remount();
        world.hang(true);
        let began = Instant::now();
        let (top, other) = (world.ino("top"), world.mkdir(ROOT, "other"));
        let file = world.find("top/dir0/file0-0").unwrap();
        assert_eq!((file.kind, file.size), (Kind::File, 7));
        world.fs.getattr(file.ino, None).unwrap();
        world.fs.setxattr(file.ino, OsStr::new("user.a"), b"b", 0).unwrap();
        assert_eq!(world.fs.getxattr(file.ino, OsStr::new("user.a")).unwrap(), b"b");
        world.fs.link(file.ino, other, OsStr::new("linked")).unwrap();
        let (from, name) = (world.ino("top/dir0"), OsStr::new("file0-0"));
        world.fs.rename(from, name, from, OsStr::new("renamed"), 0).unwrap();
        world.fs.rename(from, OsStr::new("renamed"), other, OsStr::new("moved"), 0).unwrap();
        world.fs.rename(top, OsStr::new("dir1"), other, OsStr::new("dir1"), 0).unwrap();
        world.fs.unlink(other, OsStr::new("moved")).unwrap();
        world.fs.unlink(world.ino("top/dir2"), OsStr::new("file2-2")).unwrap();
        world.fs.symlink(&ME, other, OsStr::new("link"), b"somewhere").unwrap();
        world.fs.readlink(world.ino("other/link")).unwrap();
        assert_eq!(world.heard.all(), 0);
        // Listing suggests files; nobody waits for what comes of it.
        assert_eq!(world.list(other).len(), 3);
        assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
        assert_eq!(world.heard.count(opens), 0);
        world.hang(false);
    }
}

#[test]
fn a_walk_that_reads_is_run_ahead_of() {
    let mut world = World::new(Granularity::File, 16_384);
    let files = world.tree(60, 3);
    world.remount();
    assert_eq!(world.walk(world.ino("top"), true), files);
    let (waited, fetched) = (world.heard.count(opens), world.heard.count(ahead));
    assert_eq!(world.heard.all(), files, "each key once: {waited} waited for, {fetched} ahead");
    assert!(waited <= files / 4, "{waited} of {files} files were waited for");
    let asked: HashSet<FileId> = world.heard.0.lock().unwrap().iter().map(|heard| heard.2).collect();
    assert_eq!(asked.len(), files);
}

#[test]
fn a_walk_that_only_looks_costs_few_calls() {
    let mut world = World::new(Granularity::File, 16_384);
    let files = world.tree(60, 5);
    world.remount();
    assert_eq!(world.walk(world.ino("top"), false), files);
    world.rest();
    assert_eq!((world.heard.count(ahead), world.heard.all()), (64, 64), "of {files} files");
}

#[test]
fn one_listing_of_one_directory_does_not_go_below_it() {
    let mut world = World::new(Granularity::File, 16_384);
    world.tree(10, 5);
    world.remount();
    world.list(world.ino("top"));
    world.rest();
    assert_eq!(world.heard.all(), 0, "nothing but directories was listed");
    std::thread::sleep(Duration::from_millis(2100));
    world.list(world.ino("top/dir3"));
    world.rest();
    assert_eq!(world.heard.all(), 5, "the files of that directory");
}

#[test]
fn a_lock_ends_what_is_fetched_ahead() {
    let mut world = World::new(Granularity::File, 16_384);
    world.tree(30, 3);
    world.remount();
    world.hang(true);
    world.walk(world.ino("top"), false);
    world.fs.gate();
    world.keyring.lock();
    let calls = world.heard.all();
    world.hang(false);
    std::thread::sleep(DELAY * 10);
    assert_eq!(world.heard.all(), calls, "no call ended or began after the lock");
}

#[test]
fn a_file_with_unwritten_data_keeps_its_key_whatever_leaves_the_cache() {
    for granularity in [Granularity::File, Granularity::Directory] {
        let mut world = World::new(granularity, 2);
        let dirs: Vec<Ino> = (0..12).map(|n| world.mkdir(ROOT, &format!("d{n}"))).collect();
        dirs.iter().for_each(|dir| world.fill(*dir, ["file".to_owned()]));
        world.remount();
        let dirty = world.ino("d0/file");
        let fh = world.fs.open(&ME, dirty, RW).unwrap();
        world.fs.write(dirty, fh, 0, b"unwritten", false, false).unwrap();
        (1..12).for_each(|n| drop(world.read(world.ino(&format!("d{n}/file"))).unwrap()));
        world.hang(true);
        let began = Instant::now();
        world.fs.write(dirty, fh, 9, &[b'x'; 20_000], false, true).unwrap();
        world.fs.fsync(dirty, fh, false).unwrap();
        let mut bytes = [0; 9];
        world.fs.read(dirty, fh, 0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"unwritten");
        assert!(!world.fs.may_wait(KeyNeed::Open(dirty)), "a second open shares what is open");
        world.fs.release(dirty, fh).unwrap();
        assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
        // The control: its key really is gone from the cache.
        assert!(world.fs.may_wait(KeyNeed::Open(dirty)));
        world.hang(false);
    }
}

#[test]
fn only_opens_that_must_wait_are_said_to_wait() {
    for granularity in [Granularity::File, Granularity::Directory] {
        let mut world = World::new(granularity, 16_384);
        let (one, two) = (world.mkdir(ROOT, "one"), world.mkdir(ROOT, "two"));
        for dir in [one, two] {
            world.fill(dir, ["a", "b"].map(str::to_owned));
        }
        world.remount();
        let (a, b, cold) = (world.ino("one/a"), world.ino("one/b"), world.ino("two/a"));
        assert!([a, b, cold].iter().all(|ino| world.fs.may_wait(KeyNeed::Open(*ino))));
        world.list(world.ino("one"));
        world.rest();
        world.hang(true);
        // Never opened in this mount, but fetched ahead: such an open must not queue behind those that wait.
        assert!(!world.fs.may_wait(KeyNeed::Open(a)) && !world.fs.may_wait(KeyNeed::Open(b)));
        assert!(world.fs.may_wait(KeyNeed::Open(cold)));
        assert_eq!(world.read(a).unwrap(), b"a");
        if granularity == Granularity::Directory {
            // New files of a directory whose key is here wait for nothing, those of another do.
            let ino = world.ino("one");
            assert!(world.fs.may_wait(KeyNeed::Create(world.ino("two"))));
            assert!(!world.fs.may_wait(KeyNeed::Create(ino)));
            world.put(ino, "new").unwrap();
        }
        let began = Instant::now();
        assert!(matches!(world.read(cold), Err(FsError::NoKey(KeyError::Unreachable(_)))));
        assert!(began.elapsed() >= DEADLINE);
        world.hang(false);
        assert_eq!(world.read(cold).unwrap(), b"a");
    }
}

#[test]
fn a_directory_s_files_cost_one_call_wherever_they_go() {
    let mut world = World::new(Granularity::Directory, 16_384);
    for name in ["one", "two", "three"] {
        let dir = world.mkdir(ROOT, name);
        world.fill(dir, (0..10).map(|n| format!("{name}{n}")));
    }
    assert!(world.heard.count(|heard| heard.1 == Reason::Create) <= 3, "a key a directory, or a ready one");
    world.remount();
    for name in ["one", "two", "three"] {
        (0..10).for_each(|n| drop(world.read(world.ino(&format!("{name}/{name}{n}"))).unwrap()));
    }
    assert_eq!(world.heard.all(), 3, "an unwrap a directory");

    // Moved, linked and restored under another name, a file brings its key along.
    world.remount();
    let (one, two) = (world.ino("one"), world.ino("two"));
    world.fs.rename(one, OsStr::new("one0"), two, OsStr::new("moved"), 0).unwrap();
    world.fs.link(world.ino("one/one1"), two, OsStr::new("linked")).unwrap();
    let left: Vec<String> = world.list(one).into_iter().map(|entry| entry.0).filter(|name| name != "one1").collect();
    left.iter().for_each(|name| world.fs.unlink(one, OsStr::new(name)).unwrap());
    world.fs.unlink(one, OsStr::new("one1")).unwrap();
    world.fs.rmdir(ROOT, OsStr::new("one")).unwrap();
    world.remount();
    assert_eq!(world.read(world.ino("two/moved")).unwrap(), b"one0");
    assert_eq!(world.read(world.ino("two/linked")).unwrap(), b"one1");
    assert_eq!(world.heard.all(), 1, "the directory that is gone had one key");
    world.heard.forget();
    assert_eq!(world.read(world.ino("two/two5")).unwrap(), b"two5");
    assert_eq!(world.heard.all(), 1);

    // New files take the key that the directory's own files show, not that of one which was moved in.
    world.remount();
    let two = world.ino("two");
    world.fill(two, (0..5).map(|n| format!("later{n}")));
    assert_eq!(world.heard.count(|heard| heard.0 == Operation::Unwrap), 1);
    assert_eq!(world.heard.count(|heard| heard.0 == Operation::Generate), 0);
    world.remount();
    (0..5).for_each(|n| drop(world.read(world.ino(&format!("two/later{n}"))).unwrap()));
    assert_eq!(world.read(world.ino("two/two5")).unwrap(), b"two5");
    assert_eq!(world.heard.all(), 1);
}

fn header_of(world: &World, path: &str) -> (std::fs::File, Vec<u8>, FileHeader) {
    let file = std::fs::File::options().read(true).write(true).open(world.store().join(path)).unwrap();
    let mut bytes = vec![0; 1024];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let header = FileHeader::decode(&bytes, &volume(world.id, world.granularity).keys.header, world.id).unwrap();
    (file, bytes, header)
}

fn group_key(header: &mut FileHeader) -> &mut Vec<u8> {
    &mut header.slots.iter_mut().find(|slot| matches!(slot.via, Via::GroupKey { .. })).unwrap().wrapped
}

/// Changes the wrapped group key of a file in the store, `sign`ed as only a writer with the volume's secret could; gives
/// the header that was there.
fn alter(world: &World, path: &str, sign: bool, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let (file, before, mut header) = header_of(world, path);
    let wrapped = group_key(&mut header);
    let place = before.windows(wrapped.len()).position(|window| window == wrapped).unwrap();
    change(wrapped);
    let mut after = before.clone();
    let (length, changed) = (wrapped.len(), wrapped.clone());
    after[place..place + length].copy_from_slice(&changed);
    if sign {
        after = header.encode(1024, &volume(world.id, world.granularity).keys.header).unwrap();
    }
    file.write_all_at(&after, 0).unwrap();
    before
}

#[test]
fn an_altered_group_key_fails_its_file_alone() {
    let mut world = World::new(Granularity::Directory, 16_384);
    let (one, two) = (world.mkdir(ROOT, "one"), world.mkdir(ROOT, "two"));
    for name in ["a", "b", "c"] {
        world.put(one, name).unwrap();
    }
    world.put(two, "d").unwrap();
    world.remount();
    // What programs see as EIO.
    let refused = |world: &World, path: &str| match world.read(world.ino(path)) {
        Err(FsError::Damaged { .. } | FsError::NoKey(KeyError::Misconfigured(_))) => true,
        other => panic!("{path}: {other:?}"),
    };
    // Bytes of it, with and without a header that authenticates.
    for (sign, at) in [(false, 0), (false, 50), (false, 88), (true, 0), (true, 50), (true, 88)] {
        let before = alter(&world, "one/a", sign, |wrapped| wrapped[at] ^= 1);
        assert!(refused(&world, "one/a"), "byte {at}");
        assert_eq!(world.read(world.ino("one/c")).unwrap(), b"c");
        let file = std::fs::File::options().write(true).open(world.store().join("one/a")).unwrap();
        file.write_all_at(&before, 0).unwrap();
        world.remount();
    }
    // Another directory's in its place.
    let other = group_key(&mut header_of(&world, "two/d").2).clone();
    alter(&world, "one/b", true, |wrapped| wrapped.clone_from(&other));
    assert!(refused(&world, "one/b"));
    for (path, text) in [("one/a", "a"), ("one/c", "c"), ("two/d", "d")] {
        assert_eq!(world.read(world.ino(path)).unwrap(), text.as_bytes());
    }
}
