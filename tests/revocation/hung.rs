//! A store that hangs in the middle of a read holds up neither the lock nor the other files.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Store, World, assert_bytes, errno, noise, read, wait_until};
use crate::rig;

/// Lets a stopped process go on, also when the test fails: nothing of it could end before.
struct GoOn(u32);

impl Drop for GoOn {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0 as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::CONT);
        }
    }
}

/// The store lies on another volume of hyokfs, whose daemon is stopped: so its reads hang, and go on when told to.
fn hung(on_revoke: &str) {
    let below = Store::new();
    let disk = below.mount();
    let world = World::new();
    let (path, keystore) = (disk.at("store"), world.path().join("home/customer"));
    fs::create_dir(&path).unwrap();
    world.ok([std::ffi::OsStr::new("key"), "create".as_ref(), keystore.as_os_str()]);
    world.ok(["init", "--key", &format!("local:{}", keystore.display()), path.to_str().unwrap()]);
    let store = Store { world, path, keystore };
    let mount = rig::mount(&store, &["--on-revoke", on_revoke, "--flush-deadline", "2s"]);
    for (seed, name) in ["stuck", "other"].into_iter().enumerate() {
        fs::write(mount.at(name), noise(seed as u64, 400_000)).unwrap();
    }
    // Direct: what the daemon answers goes straight to the program, whatever the kernel does with its caches.
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(mount.at("stuck")).unwrap();
    let (stuck, other) = (File::open(mount.at("stuck")).unwrap(), File::open(mount.at("other")).unwrap());
    let mut bytes = vec![0; 400_000];
    other.read_exact_at(&mut bytes, 0).unwrap();
    // Nothing of the stuck file is cached, neither above nor below.
    for path in store.ciphertexts() {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    rustix::fs::fadvise(&stuck, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    disk.signal(rustix::process::Signal::STOP);
    let go_on = GoOn(disk.pid());
    let reader = std::thread::spawn(move || {
        let mut page = hyokfs::sys::aligned::AlignedBuf::new(4096);
        direct.read_at(&mut page, 200 << 10)
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!reader.is_finished(), "the control: the store does not hang");

    let begun = Instant::now();
    store.disable_key();
    wait_until("the lock", PATIENCE, || rig::state(&mount) == "locked");
    let report = rig::status(&mount)["last_lock"].clone();
    println!("{on_revoke}: locked {:?} after the key was disabled, with a read that hangs: {report}", begun.elapsed());
    assert!(reader.is_finished() == (on_revoke == "unmount"), "an aborted read ends, one of a held mount waits");
    assert!(begun.elapsed() < Duration::from_secs(12), "the hanging read holds the lock up");
    assert!(!report["problems"].as_array().unwrap().is_empty(), "nobody is told: {report}");

    drop(go_on);
    let read_stuck = reader.join().unwrap();
    let expected =
        if on_revoke == "unmount" { [libc::ENOTCONN, libc::ECONNABORTED] } else { [libc::ENOKEY, libc::EIO] };
    let got = errno(read_stuck);
    assert!(expected.contains(&got), "a read that ends after the lock gives errno {got}");
    assert!(stuck.read_at(&mut [0], 0).is_err());
    assert!(other.read_at(&mut [0], 0).is_err(), "the other file is still served");
    store.enable_key();
    rig::wait_state(&mount, "unlocked");
    assert_bytes(&read(&mount.at("stuck")), &noise(0, 400_000), "afterwards");
    assert_bytes(&read(&mount.at("other")), &noise(1, 400_000), "afterwards");
    if on_revoke == "hold" {
        stuck.read_exact_at(&mut bytes, 0).unwrap();
        assert_bytes(&bytes, &noise(0, 400_000), "through the descriptor of before");
    }
    drop((stuck, other));
    mount.umount();
    drop(store);
    disk.umount();
}

#[test]
fn a_read_that_hangs_holds_no_lock_up() {
    hung("unmount");
}

#[test]
fn a_read_that_hangs_holds_no_lock_in_place_up() {
    hung("hold");
}
