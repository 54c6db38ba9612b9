//! Nothing left: after a lock under load no key, in whatever form, and no plaintext is in the daemon's memory.
//!
//! The daemon takes its keys' memory from `mlock` here (`HYOKFS_ARENA=mlock`): secret memory could not be read even by
//! root, and so would prove nothing about the wipe.

pub mod needles;
pub mod scan;
mod secrets;

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::{Mount, PATIENCE, Store, World, assert_bytes, noise, read, wait_until};
use crate::rig;
use needles::Needles;
use secrets::Secrets;

const DIRECTORIES: u64 = 20;
const THREADS: u64 = 16;

/// A pattern of 32 bytes that no other file has, again and again: any 63 bytes of it hold the whole pattern.
fn pattern(file: u64) -> Vec<u8> {
    noise(0xca0a_7000 + file, 32)
}

fn content(file: u64) -> Vec<u8> {
    pattern(file).repeat(20 + (file % 50) as usize * 8)
}

fn name(file: u64) -> String {
    let unique: String = noise(0xa3e0_0000 + file, 10).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("d{}/{unique}", file % DIRECTORIES)
}

fn nothing_is_left(init: &[&str], options: &[&str], files: u64) {
    let mut world = World::new();
    world.set("HYOKFS_ARENA", "mlock");
    let store = Store::with(world, init);
    let mount = rig::mount(&store, options);
    for dir in 0..DIRECTORIES {
        fs::create_dir(mount.at(format!("d{dir}"))).unwrap();
    }
    for file in 0..files {
        fs::write(mount.at(name(file)), content(file)).unwrap();
    }
    for thread in 0..THREADS {
        fs::write(mount.at(format!("load-{thread}")), pattern(files + thread)).unwrap();
    }
    let target: String = noise(0x11_4411, 20).iter().map(|byte| format!("{byte:02x}")).collect();
    std::os::unix::fs::symlink(&target, mount.at("link")).unwrap();
    let attribute = noise(0xa77_a77, 40);
    rustix::fs::setxattr(mount.at("load-0"), "user.canary", &attribute, rustix::fs::XattrFlags::empty()).unwrap();

    // On the disk, so that the test can read headers and pages in the store.
    File::open(&mount.path).and_then(|root| rustix::fs::syncfs(&root).map_err(Into::into)).unwrap();
    for thread in 0..THREADS {
        File::open(mount.at(format!("load-{thread}"))).unwrap().sync_all().unwrap();
    }
    wait_until("all files in the store", PATIENCE, || {
        store.ciphertexts().len() as u64 == files + THREADS
            && store.ciphertexts().iter().all(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 4096))
    });
    let mut secrets = Secrets::of(&store);
    let mut plain = Needles::default();
    (0..files + THREADS).for_each(|file| plain.plain("plaintext", &pattern(file)));
    (0..files).for_each(|file| plain.plain("name", &name(file).as_bytes()[name(file).len() - 20..]));
    plain.plain("link target", target.as_bytes());
    plain.plain("attribute", &attribute);

    // Twice: the second time the volume was unlocked by another thread, and memory has been used before.
    for round in 1..=2 {
        locked_under_load(&mount, &mut secrets, &plain, files, round);
        rig::restore(&mount);
    }
    for file in (0..files).step_by(97) {
        assert_bytes(&read(&mount.at(name(file))), &content(file), "after the restore");
    }
    assert_eq!(fs::read_link(mount.at("link")).unwrap().to_str().unwrap(), target);
    mount.umount();
}

/// Many files open, all keys cached, sixteen threads at work until they are cut off.
fn locked_under_load(mount: &Mount<'_>, secrets: &mut Secrets, plain: &Needles, files: u64, round: u32) {
    let _open: Vec<File> = (0..files)
        .filter_map(|file| {
            let handle = File::open(mount.at(name(file))).unwrap();
            (file < 500).then_some(handle)
        })
        .collect();
    fs::read_link(mount.at("link")).unwrap();
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let (took, keys) = std::thread::scope(|scope| {
        let _stop = rig::Stop(&stop);
        for thread in 0..THREADS {
            let (stop, rounds) = (&stop, &rounds);
            scope.spawn(move || {
                let mut bytes = vec![0; 4096];
                let mut random = thread;
                while !stop.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                    let file = name((random >> 33) % files);
                    let _ = File::open(mount.at(file)).and_then(|mut file| file.read(&mut bytes));
                    let own = OpenOptions::new().write(true).open(mount.at(format!("load-{thread}")));
                    let _ = own.and_then(|file| {
                        file.write_all_at(&pattern(files + thread).repeat(200), (random >> 40) % 32 * 6400)?;
                        if random % 32 == 8 {
                            // A request as large as they get: most of it lies deep in the buffer that receives it.
                            file.write_all_at(&pattern(files + thread).repeat(32 << 10), 0)?;
                        }
                        if random.is_multiple_of(8) { file.sync_data() } else { Ok(()) }
                    });
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_until("load", PATIENCE, || rounds.load(Ordering::Relaxed) > 20 * THREADS);
        secrets.page_keys();
        let keys = rig::status(mount)["keys_cached"].as_u64().unwrap();

        // The control: the same scan finds what there is before the lock.
        let before = scan::scan(mount.pid(), &secrets.needles.0);
        let plaintext = scan::scan(mount.pid(), &plain.0);
        println!("round {round}, unlocked: {:?} {:?}", before.kinds, plaintext.kinds);
        for kind in ["file key", "mixing key", "small key", "HMAC state"] {
            assert!(before.of(kind) > 0, "the scan of the unlocked daemon finds no {kind}: {:?}", before.kinds);
        }
        if secrets.aes() {
            assert!(before.of("AES round keys") > 0, "no key schedule: {:?}", before.kinds);
        }
        assert!(plaintext.of("plaintext") > 0, "the scan of the unlocked daemon finds no plaintext");
        assert!(plaintext.of("name") > 0, "the scan of the unlocked daemon finds no name");
        (rig::revoke(mount), keys)
    });
    assert!(keys >= files, "only {keys} keys were cached");

    secrets.page_keys();
    let mut after = scan::scan(mount.pid(), &secrets.needles.0);
    let plaintext = scan::scan(mount.pid(), &plain.0);
    println!(
        "round {round}, locked in {took:?} with {keys} keys; {} MiB scanned for {} needles ({} epochs); refused: {:?}",
        after.read >> 20,
        secrets.needles.0.len() + plain.0.len(),
        secrets.epochs(),
        after.refused
    );
    assert!(after.read > 1 << 20, "the scan read next to nothing; refused: {:?}", after.refused);
    after.kinds.extend(plaintext.kinds);
    after.places.extend(plaintext.places);
    assert!(after.kinds.is_empty(), "left in memory: {:?}\n{}", after.kinds, after.places.join("\n"));
    let report = rig::report(mount);
    assert!(report["keys"].as_u64().unwrap() >= files, "{report}");
}

#[test]
fn nothing_is_left_in_memory() {
    nothing_is_left(&[], &[], 10_000);
}

#[test]
fn nothing_is_left_in_memory_with_chacha() {
    nothing_is_left(&["--cipher", "chacha20-poly1305"], &[], 200);
}

/// The session's threads live on: their buffers and stacks must be clean all the same.
#[test]
fn nothing_is_left_in_memory_when_the_mount_is_held() {
    nothing_is_left(&[], &["--on-revoke", "hold"], 10_000);
}

#[test]
fn nothing_is_left_in_memory_with_chacha_when_the_mount_is_held() {
    nothing_is_left(&["--cipher", "chacha20-poly1305"], &["--on-revoke", "hold"], 200);
}
