//! The lock's side: gate, settle, wipe, and the same handles afterwards.

use hyokfs::fs::{Kind, ROOT, SetAttr, TimeOrNow};

use crate::harness::*;

#[test]
fn a_lock_step_by_step_and_back() {
    let w = World::new();
    w.mkdir("d");
    let ino = w.put("d/f", &[1; 10_000]);
    let fh = w.fs.open(&ME, ino, RW).unwrap();
    let reader = w.put("r", b"r");
    let _open = w.fs.open(&ME, reader, libc::O_RDONLY).unwrap();
    assert_eq!(w.fs.dirty_inodes(), [ino]);
    let dir = w.ino("d");
    let known = w.fs.known_inodes();
    for entry in [(ROOT, Kind::Directory), (dir, Kind::Directory), (ino, Kind::File)] {
        assert!(known.contains(&entry));
    }
    assert!(w.fs.known_dentries().contains(&(dir, "f".into())));

    w.fs.gate();
    assert_eq!(errno(w.find("d")), libc::ENOKEY);
    assert_eq!(errno(w.fs.open(&ME, ino, RW)), libc::ENOKEY);
    assert_eq!(errno(w.fs.read(ino, fh, 0, &mut [0])), libc::ENOKEY);
    assert_eq!(errno(w.fs.getattr(ino, None)), libc::ENOKEY);
    w.fs.getattr(ROOT, None).unwrap();
    // The kernel's cache still gets through, with its time.
    w.fs.write(ino, fh, 10_000, b"late", true, false).unwrap();
    w.fs.setattr(&ME, ino, &SetAttr { mtime: Some(TimeOrNow::Now), ..SetAttr::default() }).unwrap();
    let settled = w.fs.settle(std::time::Duration::from_secs(60));
    assert_eq!((settled.files, settled.errors.len()), (2, 0));
    assert_eq!(settled.bytes, 10_000 + 1 + 4);
    w.fs.close_writes();
    assert_eq!(errno(w.fs.write(ino, fh, 0, b"x", true, false)), libc::ENOKEY);
    w.fs.wipe();
    assert!(w.keyring.lock() > 0);
    assert!(w.fs.known_dentries().is_empty());
    assert_eq!(errno(w.fs.read(ino, fh, 0, &mut [0])), libc::ENOKEY);
    assert_eq!(errno(w.find("d")), libc::ENOKEY);

    w.keyring.unlock(w.provider());
    w.fs.reopen(w.volume()).unwrap();
    let mut tail = [0; 10];
    assert_eq!(w.fs.read(ino, fh, 9_998, &mut tail).unwrap(), 6);
    assert_eq!(&tail[..6], b"\x01\x01late");
    w.fs.write(ino, fh, 0, b"again", false, false).unwrap();
    w.fs.release(ino, fh).unwrap();
    assert_eq!(&w.get("d/f").unwrap()[..6], b"again\x01");
}

#[test]
fn handles_can_be_closed_while_locked() {
    let mut w = World::new();
    let (attr, fh) = w.fs.create(&ME, ROOT, os("f"), 0o644, 0, RW).unwrap();
    w.fs.write(attr.ino, fh, 0, b"kept", false, false).unwrap();
    let listing = w.fs.opendir(ROOT).unwrap();
    w.fs.gate();
    w.fs.wipe();
    w.fs.release(attr.ino, fh).unwrap();
    w.fs.releasedir(listing).unwrap();
    w.fs.forget(attr.ino, 1);
    w.crash();
    assert_eq!(w.get("f").unwrap(), b"kept");
}

#[test]
fn a_lock_that_is_called_off() {
    let w = World::new();
    w.put("f", b"x");
    w.fs.gate();
    w.fs.ungate();
    assert_eq!(w.get("f").unwrap(), b"x");
    w.fs.wipe();
    w.fs.ungate();
    assert_eq!(errno(w.get("f")), libc::ENOKEY);
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_written() {
    let mut w = World::new();
    let (attr, fh) = w.fs.create(&ME, ROOT, os("f"), 0o644, 0, RW).unwrap();
    for i in 0..100 {
        w.fs.write(attr.ino, fh, i * 1000, &[i as u8; 1000], false, false).unwrap();
    }
    w.crash();
    let data = w.get("f").unwrap();
    assert_eq!(data.len(), 100_000);
    assert!(data.chunks(1000).enumerate().all(|(i, chunk)| chunk.iter().all(|b| *b == i as u8)));
}

#[test]
fn local_keys_never_make_anyone_wait() {
    let w = World::new();
    let ino = w.put("f", b"x");
    assert!(!w.fs.may_wait(hyokfs::fs::KeyNeed::Create(ROOT)));
    assert!(!w.fs.may_wait(hyokfs::fs::KeyNeed::Open(ino)));
}
