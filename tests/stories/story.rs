//! The one story that every cause of a revocation must tell, as `hyokfs demo` does: mount, write, the customer says no,
//! locked, nothing is readable, the customer says yes, everything is there.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Mount, Store, assert_bytes, mounted, names, noise};
use crate::rig;

/// A line that must never stand in the store.
const LETTER: &str = "Dear customer, this line is stored on a machine that you do not own.\n";

/// One way to take a key away, and to give it back.
pub struct Cause<'a> {
    /// What the service then says, as it stands in status and audit log.
    pub code: &'a str,
    pub take: &'a dyn Fn(),
    pub give: &'a dyn Fn(),
}

/// Tells the whole story.
#[track_caller]
pub fn tell(store: &Store, cause: &Cause<'_>) {
    let audit = store.world.path().join("audit.jsonl");
    let mount = rig::mount(store, &["--audit-log", audit.to_str().unwrap()]);
    let files = write_files(&mount);
    for path in store.ciphertexts() {
        let bytes = fs::read(&path).unwrap();
        assert!(!contains(&bytes, LETTER.trim().as_bytes()), "plaintext in {}", path.display());
    }
    let reader = File::open(mount.at("letter.txt")).unwrap();
    // Written, but not yet asked to be durable: an orderly lock keeps it all the same.
    let mut unsynced = File::create(mount.at("unsynced")).unwrap();
    unsynced.write_all(&noise(99, 300_000)).unwrap();

    let clicked = Instant::now();
    (cause.take)();
    rig::wait_state(&mount, "locked");
    let took = clicked.elapsed();
    println!("{}: locked {took:?} after the click began (probed every {})", cause.code, rig::POLL);
    assert!(took < rig::PROMISE + Duration::from_secs(10), "locked only after {took:?}");
    nothing_is_readable(&mount, &reader, cause.code);
    let report = rig::report(&mount);
    assert_eq!(report["flush_complete"], true, "{report}");
    // Nobody on the vendor's side can change that, and it lasts.
    store.world.fails([OsStr::new("unlock"), mount.path.as_os_str()]);
    std::thread::sleep(Duration::from_millis(1500));
    nothing_is_readable(&mount, &reader, cause.code);

    let clicked = Instant::now();
    (cause.give)();
    rig::wait_state(&mount, "unlocked");
    println!("{}: back {:?} after the click began", cause.code, clicked.elapsed());
    assert!(mounted(&mount.path).is_some_and(|kind| kind.starts_with("fuse")), "unlocked, but not mounted");
    for (path, content) in &files {
        assert_bytes(&fs::read(path).unwrap(), content, &path.display().to_string());
    }
    assert_bytes(&fs::read(mount.at("unsynced")).unwrap(), &noise(99, 300_000), "what was not synced");
    fs::write(mount.at("after"), b"written after the return").unwrap();
    assert_eq!(fs::read(mount.at("after")).unwrap(), b"written after the return");
    drop((reader, unsynced));
    mount.umount();

    store.world.ok([OsStr::new("audit"), OsStr::new("verify"), audit.as_os_str()]);
    let lock = lock_after_denial(&audit);
    assert_eq!(lock["fields"]["code"], cause.code, "{lock}");
}

#[track_caller]
fn nothing_is_readable(mount: &Mount<'_>, reader: &File, code: &str) {
    let status = rig::status(mount);
    assert_eq!(status["state"], "locked");
    assert_eq!(status["cause"], "denied");
    assert_eq!(status["keys_cached"], 0);
    assert_eq!(status["last_verdict"]["verdict"], "denied", "{status}");
    assert_eq!(status["last_verdict"]["code"], code, "{status}");
    let place = fs::metadata(&mount.path).unwrap();
    assert_eq!(place.permissions().mode() & 0o7777, 0, "the placeholder is open");
    assert!(names(&mount.path).is_empty());
    assert!(fs::read(mount.at("letter.txt")).is_err());
    assert!(fs::write(mount.at("new"), b"x").is_err(), "written beside the volume");
    // Neither through what was open before.
    assert!(reader.read_exact_at(&mut [0], 0).is_err());
}

/// A letter, a file of some MiB, and a tree of small ones; all of them synced.
fn write_files(mount: &Mount<'_>) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files =
        vec![(mount.at("letter.txt"), LETTER.repeat(40).into_bytes()), (mount.at("ledger.bin"), noise(1, 3_000_000))];
    for i in 0..12_u64 {
        let name = format!("records/2026-{:02}/record-{i:02}.txt", i % 4 + 1);
        files.push((mount.at(name), format!("record {i}\n{LETTER}").into_bytes()));
    }
    for (path, content) in &files {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = File::create(path).unwrap();
        file.write_all(content).unwrap();
        file.sync_all().unwrap();
    }
    files
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The newest line of an audit log that tells of a lock because of a denial.
#[track_caller]
pub fn lock_after_denial(log: &Path) -> Value {
    let text = fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| line["event"] == "lock" && line["fields"]["cause"] == "denied")
        .last()
        .unwrap_or_else(|| panic!("no lock after a denial in {}", log.display()))
}
