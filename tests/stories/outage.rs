//! A key service that is away for less than the lease: nobody notices but those who need a new key, and those wait as long
//! as `--key-wait` says.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Mount, PATIENCE, Store, errno, noise, wait_child};
use crate::fake_aws::{FakeAws, What};
use crate::rig;
use crate::several::volume;

/// Longer than the default `--key-wait` of 10 s: who gets a key after that got it because of the setting.
const OUTAGE: Duration = Duration::from_secs(12);

/// A mount on which the key of `open` is in memory and those of `f0`, `f1` … are not.
fn mount<'a>(store: &'a Store, options: &[&str]) -> Mount<'a> {
    let mount = rig::mount(store, &[]);
    for file in 0..4 {
        fs::write(mount.at(format!("f{file}")), noise(file, 20_000)).unwrap();
    }
    fs::write(mount.at("open"), noise(9, 20_000)).unwrap();
    mount.umount();
    let mount = rig::mount(store, &[&["--lease", "10m"], options].concat());
    assert_eq!(fs::read(mount.at("open")).unwrap(), noise(9, 20_000));
    mount
}

/// What needs no new key works: reading, writing, syncing, opening again, listing.
#[track_caller]
fn who_has_a_key_notices_nothing(mount: &Mount<'_>, round: u64) {
    assert_eq!(rig::state(mount), "unlocked");
    let mut file = File::options().append(true).open(mount.at("open")).unwrap();
    file.write_all(&noise(round, 5000)).unwrap();
    file.sync_all().unwrap();
    let bytes = fs::read(mount.at("open")).unwrap();
    assert!(bytes.ends_with(&noise(round, 5000)));
    assert_eq!(fs::metadata(mount.at("f3")).unwrap().len(), 20_000);
    assert!(fs::read_dir(&mount.path).unwrap().count() >= 5);
}

fn cat(mount: &Mount<'_>, file: u64) -> Child {
    let mut cat = mount.store.world.command("cat");
    cat.arg(mount.at(format!("f{file}"))).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn rides_out(fake: &FakeAws, store: &Store, what: What) {
    let mount = mount(store, &["--key-wait", "2m"]);
    fake.world().fail(None, None, what);
    let begun = Instant::now();
    let mut waiting = [0, 1].map(|file| cat(&mount, file));
    let mut round = 100;
    while begun.elapsed() < OUTAGE {
        who_has_a_key_notices_nothing(&mount, round);
        round += 1;
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(
        waiting.iter_mut().all(|cat| cat.try_wait().unwrap().is_none()),
        "somebody gave up, or got a key from nowhere"
    );
    fake.world().faults.clear();
    for (file, cat) in (0..).zip(&mut waiting) {
        let mut bytes = Vec::new();
        cat.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
        assert!(wait_child(cat, PATIENCE).expect("a process that waited for a key hangs").success());
        assert!(bytes == noise(file, 20_000));
    }
    println!("two opens waited {:?} for an outage of {OUTAGE:?}", begun.elapsed());
    assert!(rig::status(&mount)["last_lock"].is_null(), "the outage was noticed: {}", rig::status(&mount)["last_lock"]);
    mount.umount();
}

#[test]
fn an_outage_of_silence_is_waited_for() {
    let (fake, _, store) = volume();
    rides_out(&fake, &store, What::Hang(Duration::from_secs(300)));
}

#[test]
fn an_outage_of_closed_connections_is_waited_for() {
    let (fake, _, store) = volume();
    rides_out(&fake, &store, What::Close);
}

fn is_eagain(what: What) {
    let (fake, _, store) = volume();
    let mount = mount(&store, &["--key-wait", "1500ms"]);
    fake.world().fail(None, None, what);
    let begun = Instant::now();
    assert_eq!(errno(File::open(mount.at("f0"))), libc::EAGAIN);
    println!("gave up after {:?}, of 1.5 s", begun.elapsed());
    assert!(begun.elapsed() > Duration::from_millis(800), "gave up after {:?}", begun.elapsed());
    assert_eq!(errno(File::create_new(mount.at("new"))), libc::EAGAIN);
    who_has_a_key_notices_nothing(&mount, 100);
    fake.world().faults.clear();
    assert_eq!(fs::read(mount.at("f0")).unwrap(), noise(0, 20_000));
    fs::write(mount.at("new"), b"new").unwrap();
    assert_eq!(fs::read(mount.at("new")).unwrap(), b"new");
    mount.umount();
}

#[test]
fn a_silence_longer_than_the_wait_is_eagain() {
    is_eagain(What::Hang(Duration::from_secs(300)));
}

#[test]
fn closed_connections_longer_than_the_wait_are_eagain() {
    is_eagain(What::Close);
}
