//! While a volume is locked, nothing that is written to its path lands in the bare directory below.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::{Store, errno, mounted, names};
use crate::rig;

#[test]
fn the_placeholder_is_empty_and_takes_nothing_even_from_root() {
    let store = Store::new();
    let mount = rig::mount(&store, &[]);
    fs::create_dir(mount.at("d")).unwrap();
    rig::revoke(&mount);
    let meta = fs::symlink_metadata(&mount.path).unwrap();
    assert!(meta.is_dir());
    assert_eq!(meta.mode() & 0o7777, 0, "the mode");
    assert_eq!(names(&mount.path).len(), 0);
    assert_eq!(mounted(&mount.path).as_deref(), Some("tmpfs"));
    assert_eq!(errno(File::create(mount.at("f"))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(mount.at("e"))), libc::EROFS);
    assert_eq!(errno(std::os::unix::fs::symlink("x", mount.at("l"))), libc::EROFS);
    assert_eq!(
        errno(fs::set_permissions(&mount.path, std::os::unix::fs::PermissionsExt::from_mode(0o777))),
        libc::EROFS
    );
    assert_eq!(errno(File::create(mount.at("d/f"))), libc::ENOENT);
    assert_eq!(rig::report(&mount)["placeholder"], true);
    // Somebody without rights does not even learn that it is empty.
    let mut list = store.world.command("ls");
    let listed = std::os::unix::process::CommandExt::uid(&mut list, 65534).arg(&mount.path).output().unwrap();
    assert!(!listed.status.success(), "anybody can list the placeholder");
    rig::restore(&mount);
    assert!(fs::symlink_metadata(mount.at("d")).is_ok());
    mount.umount();
}

#[test]
fn no_byte_lands_in_the_bare_directory() {
    let store = Store::new();
    let bare = store.world.path().join("mnt");
    store.world.make_dir(&bare);
    let mount = rig::mount(&store, &[]);
    let (stop, written, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stop = rig::Stop(&stop);
        for writer in 0..3_u32 {
            let (path, stop, written, refused) = (&mount.path, &stop, &written, &refused);
            scope.spawn(move || {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    // By path each time: a new file, an append, a directory. Never through something that stays open.
                    let done = match writer {
                        0 => fs::write(path.join(format!("new-{}", number % 50)), b"plaintext"),
                        1 => OpenOptions::new()
                            .create(true)
                            .append(true)
                            .open(path.join("log"))
                            .and_then(|mut file| file.write_all(b"plaintext\n")),
                        _ => fs::create_dir(path.join(format!("dir-{number}")))
                            .and_then(|()| fs::remove_dir(path.join(format!("dir-{number}")))),
                    };
                    if done.is_ok() { written } else { refused }.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..4 {
            let before = (written.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
            rig::revoke(&mount);
            rig::restore(&mount);
            assert!(written.load(Ordering::Relaxed) > before.0, "nothing was written");
            assert!(refused.load(Ordering::Relaxed) > before.1, "nothing was refused: was it locked at all?");
        }
    });
    assert!(fs::metadata(mount.at("log")).unwrap().len() > 0);
    mount.umount();
    assert_eq!(mounted(&bare), None, "something is still mounted");
    assert_eq!(names(&bare), Vec::<std::ffi::OsString>::new(), "plaintext in the bare directory");
}

#[test]
fn no_byte_lands_in_the_bare_directory_when_the_daemon_is_stopped_while_locked_and_started_again() {
    let store = Store::new();
    let mut mount = rig::mount(&store, &[]);
    fs::write(mount.at("f"), b"x").unwrap();
    rig::revoke(&mount);
    mount.signal(rustix::process::Signal::KILL);
    mount.died();
    // Killed while locked: the placeholder stays and goes on to protect the directory.
    assert_eq!(errno(File::create(mount.at("late"))), libc::EROFS);
    store.enable_key();
    // A new daemon mounts in its place.
    let again = rig::mount(&store, &[]);
    assert_eq!(fs::read(again.at("f")).unwrap(), b"x");
    again.umount();
    assert_eq!(names(&mount.path), Vec::<std::ffi::OsString>::new());
}
