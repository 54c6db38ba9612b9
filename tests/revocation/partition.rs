//! With a key service across the network (a fake AWS KMS over TLS): cut off, and searched through.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};

use crate::common::{PATIENCE, Store, World, noise, wait_child, wait_for, wait_until};
use crate::fake::{CUSTOMER, FakeAws, What};
use crate::memory::needles::Needles;
use crate::memory::scan;
use crate::rig;

struct Cloud {
    fake: FakeAws,
    key: String,
    store: Store,
}

impl Cloud {
    fn new() -> Cloud {
        let (fake, certificate) = FakeAws::start_tls();
        let key = fake.world().create_key();
        let mut world = World::new();
        let ca = world.path().join("ca.pem");
        fs::write(&ca, certificate).unwrap();
        let url = fake.url();
        for (name, value) in [
            // In the fake, twelve digits are the root of that account.
            ("AWS_ACCESS_KEY_ID", CUSTOMER),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("HYOKFS_ENDPOINT", &url),
            ("HYOKFS_STS_ENDPOINT", &url),
            ("HYOKFS_CA_FILE", ca.to_str().unwrap()),
            ("HYOKFS_ARENA", "mlock"),
        ] {
            world.set(name, value);
        }
        let path = world.path().join("store");
        world.ok(["init", "--key", &format!("awskms:///{key}"), path.to_str().unwrap()]);
        let keystore = world.path().join("none");
        Cloud { fake, key, store: Store { world, path, keystore } }
    }

    fn set_state(&self, state: &str) {
        self.fake.world().key(&self.key).state = state.to_owned();
    }

    /// Every key that the fake has ever made, in all forms: volume secret, canary, file keys, keys made ahead.
    fn needles(&self) -> Needles {
        let made = self.fake.world().next();
        let mut needles = Needles::default();
        for number in 1..=made {
            let key = digest(&SHA256, format!("data key {number}").as_bytes());
            needles.key("data key", key.as_ref().try_into().unwrap());
        }
        needles
    }
}

#[test]
fn a_partition_locks_when_the_lease_is_over_and_frees_whoever_waits_for_a_key() {
    partition("unmount");
}

#[test]
fn a_partition_holds_the_mount_and_frees_whoever_waits_for_a_key() {
    partition("hold");
}

fn partition(on_revoke: &str) {
    let cloud = Cloud::new();
    let mount = rig::mount(&cloud.store, &[]);
    for file in 0..10 {
        fs::write(mount.at(format!("f{file}")), noise(file, 20_000)).unwrap();
    }
    mount.umount();
    // Mounted anew, no file's key is in memory.
    let mount = rig::mount(&cloud.store, &["--lease", "5s", "--on-revoke", on_revoke]);
    assert_eq!(fs::read(mount.at("f0")).unwrap(), noise(0, 20_000));
    let reader = File::open(mount.at("f0")).unwrap();
    cloud.fake.world().fail(None, None, What::Hang(Duration::from_secs(30)));
    let begun = Instant::now();
    // Waits for the key of a file that nobody has opened; one of them is not even asked to go away.
    let mut stuck = [1, 2, 3].map(|file| {
        let mut cat = cloud.store.world.command("cat");
        cat.arg(mount.at(format!("f{file}"))).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    });
    // Who needs no key goes on meanwhile.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(fs::metadata(mount.at("f5")).unwrap().len(), 20_000);
    let mut bytes = Vec::new();
    (&reader).read_to_end(&mut bytes).unwrap();
    assert!(bytes == noise(0, 20_000));
    if rig::state(&mount) == "unlocked" {
        assert!(stuck.iter_mut().all(|cat| cat.try_wait().unwrap().is_none()), "nobody waits for a key here");
    }

    let took = rig::wait_state(&mount, "locked");
    println!("locked {:?} after the partition ({took:?} waited), with a lease of 5 s", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5) + rig::PROMISE);
    assert_eq!(rig::status(&mount)["cause"], "lease over");
    for cat in &mut stuck {
        let status = wait_child(cat, PATIENCE).expect("a process that waited for a key hangs for ever");
        assert!(!status.success());
        let mut said = Vec::new();
        cat.stdout.take().unwrap().read_to_end(&mut said).unwrap();
        assert!(said.is_empty());
    }
    assert!(reader.read_exact_at(&mut [0], 0).is_err());

    cloud.fake.world().faults.clear();
    rig::wait_state(&mount, "unlocked");
    for file in 0..10 {
        assert_eq!(fs::read(mount.at(format!("f{file}"))).unwrap(), noise(file, 20_000));
    }
    assert_eq!(reader.read_exact_at(&mut [0], 0).is_ok(), on_revoke == "hold", "what was open before the lock");
    drop(reader);
    mount.umount();
}

#[test]
fn nothing_of_the_service_s_answers_is_left_in_memory() {
    answers_left("unmount");
}

#[test]
fn nothing_of_the_service_s_answers_is_left_in_memory_when_the_mount_is_held() {
    answers_left("hold");
}

fn answers_left(on_revoke: &str) {
    /// How long an answer with a new key is on its way when the customer says no.
    const LATE: Duration = Duration::from_secs(5);
    let cloud = Cloud::new();
    let options = ["--kms-max-rps", "2000", "--on-revoke", on_revoke, "--key-pool", "2"];
    let mount = rig::mount(&cloud.store, &options);
    for file in 0..150 {
        fs::write(mount.at(format!("f{file}")), noise(file, 5000)).unwrap();
    }
    mount.umount();
    let mount = rig::mount(&cloud.store, &options);
    let mut in_flight = 0;
    for round in 1..=2 {
        let mut asked = Instant::now();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = rig::Stop(&stop);
            for thread in 0..8_u64 {
                let (mount, stop) = (&mount, &stop);
                scope.spawn(move || {
                    for file in (0..).map(|n| (n * 7 + thread * 19) % 150) {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let _ = fs::read(mount.at(format!("f{file}")));
                        let _ = fs::write(mount.at(format!("new-{thread}")), b"x");
                    }
                });
            }
            wait_until("all keys in memory", PATIENCE, || {
                rig::status(&mount)["keys_cached"].as_u64().is_some_and(|keys| keys >= 150)
            });
            let before = scan::scan(mount.pid(), &cloud.needles().0);
            println!("round {round}, unlocked: {:?}", before.kinds);
            assert!(before.of("data key") >= 150, "the scan of the unlocked daemon finds nothing: {:?}", before.kinds);
            // The service has said yes to these, and their keys are on their way.
            let made = || cloud.fake.world().log.iter().filter(|call| call.operation == "GenerateDataKey").count();
            cloud.fake.world().fail(Some("GenerateDataKey"), None, What::Late(LATE));
            let calls = made();
            let creator = &mount;
            scope.spawn(move || {
                for file in 0..20 {
                    let _ = fs::write(creator.at(format!("flight-{round}-{file}")), b"x");
                }
            });
            wait_until("a key call in flight", PATIENCE, || made() > calls);
            asked = Instant::now();
            cloud.set_state("Disabled");
            let took = rig::wait_state(&mount, "locked");
            assert!(took < rig::PROMISE, "{took:?}");
            in_flight += u32::from(asked.elapsed() < LATE);
        });
        let needles = cloud.needles();
        for when in ["with answers on their way", "after they came"] {
            let after = scan::scan(mount.pid(), &needles.0);
            println!("round {round}, locked, {when}: {} MiB scanned for {} needles", after.read >> 20, needles.0.len());
            assert!(after.kinds.is_empty(), "left in memory, {when}: {:?}\n{}", after.kinds, after.places.join("\n"));
            std::thread::sleep((LATE + Duration::from_millis(300)).saturating_sub(asked.elapsed()));
        }
        cloud.fake.world().faults.clear();
        rig::report(&mount);
        cloud.set_state("Enabled");
        rig::wait_state(&mount, "unlocked");
    }
    assert!(in_flight > 0, "all answers had come before the volume was locked");
    wait_for("a file", PATIENCE, || fs::read(mount.at("f1")).ok().filter(|bytes| *bytes == noise(1, 5000)));
    mount.umount();
}
