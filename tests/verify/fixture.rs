//! A volume with one of everything, and what verify says of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Store, World, both, noise};

pub const PAGE: u64 = 4096;
/// Plaintext bytes of page 0 and of every other.
pub const FIRST: u64 = 3016;
pub const CAP: u64 = 4056;
/// Bytes of `big`: ten pages.
pub const BIG: usize = 38_000;

/// The volume and where in the store each of its items is.
pub struct Fixture {
    pub store: Store,
    at: BTreeMap<String, PathBuf>,
}

/// A name of more than 175 bytes.
pub fn long() -> String {
    "long".repeat(60)
}

fn synced(path: &Path, bytes: &[u8]) {
    let file = File::create(path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_all().unwrap();
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(&[])
    }

    pub fn with(init: &[&str]) -> Self {
        let store = Store::with(World::new(), init);
        let mount = store.mount();
        fs::create_dir_all(mount.at("d/inner")).unwrap();
        fs::create_dir(mount.at("e")).unwrap();
        synced(&mount.at("big"), &noise(1, BIG));
        fs::write(mount.at("empty"), b"").unwrap();
        fs::write(mount.at("d/small"), noise(2, 500)).unwrap();
        fs::write(mount.at("d/inner/deep"), noise(3, 9000)).unwrap();
        fs::write(mount.at("e/other"), noise(4, 6000)).unwrap();
        fs::write(mount.at("e").join(long()), noise(5, 100)).unwrap();
        symlink("../somewhere/else", mount.at("d/link")).unwrap();
        fs::hard_link(mount.at("d/small"), mount.at("e/twin")).unwrap();
        let sparse = File::create(mount.at("sparse")).unwrap();
        sparse.set_len(50 << 20).unwrap();
        sparse.write_all_at(&noise(6, 5000), 30 << 20).unwrap();
        sparse.sync_all().unwrap();
        drop(sparse);
        set_attribute(&mount.at("d"), "user.of-directory", b"value");
        set_attribute(&mount.at("e/other"), "user.of-file", b"value");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            mount.at("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        // Inode numbers are the store's own.
        let mut numbers = BTreeMap::new();
        walk(&mount.path, &mut |path, number| {
            numbers.insert(path.strip_prefix(&mount.path).unwrap().to_str().unwrap().to_owned(), number);
        });
        mount.umount();
        let mut at = BTreeMap::new();
        walk(&store.path, &mut |path, number| {
            for (name, _) in numbers.iter().filter(|(_, own)| **own == number) {
                // Of two names of one file, each in its own directory.
                let depth = |path: &Path| path.components().count();
                let same = depth(Path::new(name)) == depth(path.strip_prefix(&store.path).unwrap());
                if same && path.file_name() != Some(OsStr::new(".hyokfs.dir")) {
                    at.entry(name.clone()).or_insert_with(|| path.to_owned());
                }
            }
        });
        assert_eq!(at.len(), numbers.len(), "an item of the volume was not found in the store");
        Fixture { store, at }
    }

    /// Where in the store `name` is.
    #[track_caller]
    pub fn at(&self, name: &str) -> PathBuf {
        self.at.get(name).unwrap_or_else(|| panic!("no {name}")).clone()
    }

    /// The path from the store's root, as reports show it.
    #[track_caller]
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.store.path).unwrap().to_str().unwrap().to_owned()
    }

    /// Runs verify; gives its report. The exit code must fit it.
    #[track_caller]
    pub fn verify(&self, options: &[&str]) -> Value {
        verify(&self.store, options)
    }

    /// Verify must find exactly these, by path and kind; gives the findings.
    #[track_caller]
    pub fn finds(&self, want: &[(&Path, &str)]) -> Vec<Value> {
        let report = self.verify(&[]);
        self.same(&report, want);
        assert_eq!(report["actions"].as_array().unwrap().len(), 0, "without --repair nothing is done");
        report["findings"].as_array().unwrap().clone()
    }

    #[track_caller]
    fn same(&self, report: &Value, want: &[(&Path, &str)]) {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let findings = report["findings"].as_array().unwrap();
        let mut found: Vec<_> = findings.iter().map(|f| (text(&f["path"]), text(&f["kind"]))).collect();
        let mut want: Vec<_> = want.iter().map(|(path, kind)| (self.shown(path), (*kind).to_owned())).collect();
        found.sort();
        want.sort();
        assert_eq!(found, want, "{report:#}");
    }

    /// Repairs what `want` lists, all of it, and verifies that the volume is clean then; gives the repair's report.
    #[track_caller]
    pub fn mends(&self, options: &[&str], want: &[(&Path, &str)]) -> Value {
        let report = self.verify(&[&["--repair"], options].concat());
        self.same(&report, want);
        assert_eq!(report["clean"], true, "{report:#}");
        assert_eq!(report["remaining"], 0);
        for finding in report["findings"].as_array().unwrap() {
            assert_eq!(finding["mended"], true, "{report:#}");
        }
        for action in report["actions"].as_array().unwrap() {
            assert!(action.get("error").is_none(), "{report:#}");
        }
        let again = self.finds(&[]);
        assert_eq!(again.len(), 0);
        report
    }

    /// The files in `.hyokfs.lost`, without the list.
    pub fn set_aside(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.store.path.join(".hyokfs.lost")) else { return Vec::new() };
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.file_name() != Some(OsStr::new("moved.jsonl")));
        paths.sort();
        paths
    }
}

/// Runs `verify --json`.
#[track_caller]
pub fn verify(store: &Store, options: &[&str]) -> Value {
    let mut args = vec![OsStr::new("verify"), OsStr::new("--json")];
    args.extend(options.iter().map(OsStr::new));
    args.push(store.path.as_os_str());
    let output = store.world.run(args);
    let said = both(&output);
    assert!(!said.contains("panicked at"), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    let want = if report["clean"] == true { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(want), "{said}");
    report
}

fn walk(dir: &Path, each: &mut dyn FnMut(&Path, u64)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        each(&path, meta.ino());
        if meta.is_dir() {
            walk(&path, each);
        }
    }
}

pub fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).unwrap();
}

pub fn zero(path: &Path, page: u64) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[0; PAGE as usize], page * PAGE).unwrap();
}

/// Gives a symlink another text.
pub fn relink(path: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let text = change(fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec());
    fs::remove_file(path).unwrap();
    symlink(OsStr::from_bytes(&text), path).unwrap();
}

/// Another character of base64url in the middle.
pub fn spoilt(mut text: Vec<u8>) -> Vec<u8> {
    let middle = text.len() / 2;
    text[middle] = if text[middle] == b'A' { b'B' } else { b'A' };
    text
}
