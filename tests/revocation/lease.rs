//! When nobody can ask the customer, the lease decides.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Store, noise, wait_for};
use crate::rig;

/// Makes the keystore unreadable, as a share that is gone would be: the path leads into a loop of links.
struct Outage<'a> {
    store: &'a Store,
}

impl<'a> Outage<'a> {
    fn begin(store: &'a Store) -> Outage<'a> {
        fs::rename(&store.keystore, store.keystore.with_extension("away")).unwrap();
        std::os::unix::fs::symlink(&store.keystore, &store.keystore).unwrap();
        Outage { store }
    }
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.store.keystore);
        let _ = fs::rename(self.store.keystore.with_extension("away"), &self.store.keystore);
    }
}

#[test]
fn an_outage_locks_when_the_lease_is_over() {
    let store = Store::new();
    let mount = rig::mount(&store, &["--lease", "3s"]);
    fs::write(mount.at("f"), noise(1, 50_000)).unwrap();
    let reader = File::open(mount.at("f")).unwrap();
    let mut byte = [0];
    let begun = Instant::now();
    let outage = Outage::begin(&store);
    // The lease counts down, and nobody notices as long as it holds.
    let mut counted = Vec::new();
    let locked = wait_for("the lock", PATIENCE, || {
        let status = rig::status(&mount);
        if status["state"] == "unlocked" {
            counted.push(status["lease_left"].as_f64().expect("lease_left"));
            return None;
        }
        (status["state"] == "locked").then(|| begun.elapsed())
    });
    println!("locked {locked:?} after the outage began, with a lease of 3 s; left: {counted:.1?}");
    assert!(counted.iter().all(|left| (0.0..=3.0).contains(left)), "{counted:?}");
    assert!(counted.windows(2).filter(|pair| pair[1] < pair[0]).count() >= 2, "it does not count down: {counted:?}");
    assert!(*counted.last().unwrap() < 1.5, "it locked with time left: {counted:?}");
    // A probe may have succeeded up to a second before the outage began; the rest is room for a busy machine.
    assert!(locked > Duration::from_millis(1500), "the lease was cut short: {locked:?}");
    assert!(locked < Duration::from_secs(3) + rig::PROMISE, "{locked:?} with a lease of 3 s");
    assert!(reader.read_exact_at(&mut byte, 0).is_err(), "an open file is read after the lease");
    let status = rig::status(&mount);
    assert_eq!((&status["cause"], &status["lease_left"]), (&"lease over".into(), &serde_json::Value::Null), "{status}");
    assert_eq!(status["last_verdict"]["verdict"], "unreachable");
    // Nothing but a yes brings it back.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(rig::state(&mount), "locked");
    drop(outage);
    rig::wait_state(&mount, "unlocked");
    assert_eq!(fs::read(mount.at("f")).unwrap(), noise(1, 50_000));
    drop(reader);
    mount.umount();
}

#[test]
fn a_short_outage_is_not_noticed() {
    let store = Store::new();
    let mount = rig::mount(&store, &["--lease", "30s"]);
    fs::write(mount.at("f"), noise(1, 50_000)).unwrap();
    let reader = File::open(mount.at("f")).unwrap();
    let outage = Outage::begin(&store);
    wait_for("an unreachable verdict", PATIENCE, || {
        (rig::status(&mount)["last_verdict"]["verdict"] == "unreachable").then_some(())
    });
    // Open files go on, from the cache and from the store, and so do files whose key is here.
    for round in 0..20 {
        rustix::fs::fadvise(&reader, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut bytes = vec![0; 50_000];
        reader.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, noise(1, 50_000), "round {round}");
        assert_eq!(fs::metadata(mount.at("f")).unwrap().len(), 50_000);
        std::thread::sleep(Duration::from_millis(50));
    }
    let left = rig::status(&mount)["lease_left"].as_f64().unwrap();
    assert!(left < 29.5, "no countdown: {left}");
    drop(outage);
    wait_for("a live verdict", PATIENCE, || (rig::status(&mount)["last_verdict"]["verdict"] == "live").then_some(()));
    let status = rig::status(&mount);
    assert_eq!(status["state"], "unlocked");
    assert!(status["last_lock"].is_null(), "it was locked in between: {status}");
    assert!(status["lease_left"].as_f64().unwrap() > left, "the lease is not renewed: {status}");
    drop(reader);
    mount.umount();
}
