//! The customer says no, and yes again.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use crate::common::{
    Mount, PATIENCE, Store, assert_bytes, errno, mounted, names, native, noise, read, wait_for, wait_until,
};

const POLL: Duration = Duration::from_secs(1);
/// Promised: poll + 2 s after the denial. Tested with room for a busy machine: three times that.
const LIMIT: Duration = Duration::from_secs(9);

fn state(mount: &Mount<'_>) -> String {
    let output = mount.store.world.run([OsStr::new("status"), OsStr::new("--json"), mount.path.as_os_str()]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let value = value.get(0).unwrap_or(&value);
    value["state"].as_str().unwrap_or("").to_owned()
}

fn polled<'a>(store: &'a Store, more: &[&str]) -> Mount<'a> {
    store.mount_with(&[&["--poll-interval", "1s"], more].concat())
}

#[track_caller]
fn wait_locked(mount: &Mount<'_>) -> Duration {
    let start = Instant::now();
    wait_until("the lock", LIMIT, || state(mount) == "locked");
    start.elapsed()
}

#[track_caller]
fn wait_unlocked(mount: &Mount<'_>) -> Duration {
    let start = Instant::now();
    wait_until("the restore", LIMIT, || state(mount) == "unlocked");
    start.elapsed()
}

#[test]
fn disabled_then_enabled() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = polled(&store, &[]);
    fs::create_dir(mount.at("d")).unwrap();
    for n in 0..40u64 {
        fs::write(mount.at(format!("d/f{n}")), noise(n, 10_000 * n as usize + 1)).unwrap();
    }
    // Dirty, never synced, still open.
    let mut open = OpenOptions::new().create(true).append(true).open(mount.at("open")).unwrap();
    open.write_all(&noise(99, 300_000)).unwrap();
    let reader = File::open(mount.at("d/f7")).unwrap();
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 0).unwrap();

    store.disable_key();
    let took = wait_locked(&mount);
    println!("locked {took:?} after the key was disabled (poll interval {POLL:?})");

    // Nothing is served any more, neither by path nor through what was open.
    assert!(fs::read(mount.at("d/f1")).is_err(), "read after the lock");
    assert!(reader.read_exact_at(&mut byte, 0).is_err(), "a cached page was read through an open descriptor");
    assert!(open.write_all(b"late").and_then(|()| open.sync_all()).is_err(), "a late write was taken");
    // The placeholder: empty, no mode, nobody can write into what is below.
    let meta = fs::symlink_metadata(&mount.path).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0, "the placeholder's mode");
    assert_eq!(names(&mount.path).len(), 0, "the placeholder is empty");
    assert!(fs::write(mount.at("leak"), b"plaintext").is_err(), "a write went into the bare directory");
    drop((open, reader));

    store.enable_key();
    let took = wait_unlocked(&mount);
    println!("restored {took:?} after the key was enabled");
    wait_for("the mount", LIMIT, || mounted(&mount.path).filter(|kind| kind.starts_with("fuse")));
    for n in 0..40u64 {
        assert_bytes(&read(&mount.at(format!("d/f{n}"))), &noise(n, 10_000 * n as usize + 1), "after the restore");
    }
    assert_bytes(&read(&mount.at("open")), &noise(99, 300_000), "dirty data of before the lock");
    fs::write(mount.at("new"), b"works").unwrap();
    mount.umount();
    store.world.ok([OsStr::new("verify"), store.path.as_os_str()]);
}

#[test]
fn many_cycles_under_load() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = polled(&store, &[]);
    // Appends records and syncs each: every record that a sync acknowledged must be there in the end.
    let mut acknowledged = 0u64;
    for cycle in 0..4 {
        let stop = std::sync::atomic::AtomicBool::new(false);
        let path = mount.at("ledger");
        acknowledged = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut done = acknowledged;
                let Ok(mut file) = OpenOptions::new().create(true).append(true).open(&path) else { return done };
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // Numbered anew after a cut: a record may be there without having been acknowledged.
                    let record = format!("{cycle} {:>12}\n", done);
                    if file.write_all(record.as_bytes()).and_then(|()| file.sync_data()).is_err() {
                        break;
                    }
                    done += 1;
                }
                done
            });
            wait_until("some records", PATIENCE, || fs::metadata(&path).is_ok_and(|meta| meta.len() > 0));
            store.disable_key();
            wait_locked(&mount);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            writer.join().unwrap()
        });
        store.enable_key();
        wait_unlocked(&mount);
        wait_for("the mount", LIMIT, || mounted(&mount.path).filter(|kind| kind.starts_with("fuse")));
        let text = String::from_utf8(read(&mount.at("ledger"))).expect("only whole records");
        let seen: std::collections::BTreeSet<u64> =
            text.lines().map(|line| line[line.len() - 12..].trim().parse().unwrap()).collect();
        assert!((0..acknowledged).all(|n| seen.contains(&n)), "cycle {cycle}: an acknowledged record is lost");
    }
    assert!(acknowledged > 20, "only {acknowledged} records were written");
    mount.umount();
}

#[test]
fn a_mount_with_a_disabled_key_is_refused_or_waits() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("f"), b"x").unwrap();
    mount.umount();
    store.disable_key();
    let path = store.world.path().join("mnt");
    let Err(said) = store.try_mount(&[], &path) else { panic!("mounted under a disabled key") };
    assert!(said.to_lowercase().contains("disabled"), "unclear: {said}");
    assert!(names(&path).is_empty());
    store.enable_key();
    let mount = store.mount();
    assert_eq!(read(&mount.at("f")), b"x");
    mount.umount();
}

#[test]
fn locked_by_hand() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = polled(&store, &[]);
    fs::write(mount.at("f"), noise(1, 100_000)).unwrap();
    store.world.ok([OsStr::new("lock"), mount.path.as_os_str()]);
    wait_locked(&mount);
    assert!(fs::read(mount.at("f")).is_err());
    // The customer's yes doesn't override the operator's lock.
    std::thread::sleep(2 * POLL);
    assert_eq!(state(&mount), "locked", "a lock by hand stays");
    store.world.ok([OsStr::new("unlock"), mount.path.as_os_str()]);
    wait_unlocked(&mount);
    assert_bytes(&read(&mount.at("f")), &noise(1, 100_000), "after unlock");
    // And the operator can't override the customer's no.
    store.disable_key();
    wait_locked(&mount);
    let _ = store.world.run([OsStr::new("unlock"), mount.path.as_os_str()]);
    std::thread::sleep(2 * POLL);
    assert_eq!(state(&mount), "locked", "unlock overrode the customer");
    store.enable_key();
    wait_unlocked(&mount);
    mount.umount();
}

#[test]
fn ended_while_locked() {
    if native() {
        return;
    }
    let store = Store::new();
    let mut mount = polled(&store, &[]);
    fs::write(mount.at("f"), b"x").unwrap();
    store.disable_key();
    wait_locked(&mount);
    mount.signal(rustix::process::Signal::TERM);
    mount.ended();
    assert_eq!(mounted(&mount.path), None, "the placeholder goes with its daemon");
    assert_eq!(errno(fs::read(mount.at("f"))), libc::ENOENT);
    store.enable_key();
    let mount = store.mount();
    assert_eq!(read(&mount.at("f")), b"x");
    mount.umount();
}

#[test]
fn a_process_with_its_directory_there_is_cut_off() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = polled(&store, &[]);
    fs::create_dir(mount.at("d")).unwrap();
    fs::write(mount.at("d/f"), b"secret").unwrap();
    // A shell that stands inside; it reads when it is told to.
    let mut shell = store
        .world
        .command("sh")
        .args(["-c", "read go; cat f"])
        .current_dir(mount.at("d"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    store.disable_key();
    wait_locked(&mount);
    shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut said = String::new();
    shell.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!shell.wait().unwrap().success() && said.is_empty(), "read after the lock from inside: {said}");
    store.enable_key();
    wait_unlocked(&mount);
    assert_eq!(read(&mount.at("d/f")), b"secret");
    mount.umount();
}
