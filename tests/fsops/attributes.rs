//! Owners, modes, times, extended attributes, the numbers of `statfs`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyokfs::fs::{Caller, Kind, ROOT, SetAttr, TimeOrNow};

use crate::harness::*;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds, 123_456_789)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn times_stay_over_page_writes_and_a_remount() {
    let mut w = World::new();
    let ino = w.put("f", &[1; 10_000]);
    let fh = w.fs.open(&ME, ino, RW).unwrap();
    let set =
        SetAttr { mtime: Some(TimeOrNow::At(at(1_000_000))), atime: Some(TimeOrNow::At(at(5))), ..SetAttr::default() };
    w.fs.setattr(&ME, ino, &set).unwrap();
    // What the kernel writes back from its cache leaves the time alone.
    w.fs.write(ino, fh, 20_000, &[2; 5000], true, false).unwrap();
    assert_eq!(w.fs.getattr(ino, None).unwrap().mtime, at(1_000_000));
    w.fs.fsync(ino, fh, false).unwrap();
    w.fs.write(ino, fh, 0, &[3; 10], true, false).unwrap();
    w.fs.release(ino, fh).unwrap();
    assert_eq!(w.find("f").unwrap().mtime, at(1_000_000));
    w.remount();
    let attr = w.find("f").unwrap();
    assert_eq!((attr.mtime, attr.size), (at(1_000_000), 25_000));
    // An ordinary write moves it.
    let fh = w.fs.open(&ME, attr.ino, RW).unwrap();
    w.fs.write(attr.ino, fh, 0, b"x", false, false).unwrap();
    let moved = w.fs.getattr(attr.ino, None).unwrap().mtime;
    assert!(moved > at(1_600_000_000));
    w.fs.release(attr.ino, fh).unwrap();
    w.remount();
    assert_eq!(w.find("f").unwrap().mtime, moved);
}

#[test]
fn a_move_leaves_the_times_of_what_moved() {
    let mut w = World::new();
    let (file, dir) = (w.put("f", b"x"), w.mkdir("d"));
    w.mkdir("to");
    let set = SetAttr { mtime: Some(TimeOrNow::At(at(77))), ..SetAttr::default() };
    w.fs.setattr(&ME, file, &set).unwrap();
    w.fs.setattr(&ME, dir, &set).unwrap();
    w.rename("f", "to/f", 0).unwrap();
    w.rename("d", "to/d", 0).unwrap();
    w.remount();
    assert_eq!(w.find("to/f").unwrap().mtime, at(77));
    assert_eq!(w.find("to/d").unwrap().mtime, at(77));
}

#[test]
fn times_before_1970_and_of_links() {
    let w = World::new();
    let old = UNIX_EPOCH - Duration::new(100, 250_000_000);
    let link = w.fs.symlink(&ME, ROOT, os("l"), b"nowhere").unwrap().ino;
    for ino in [w.put("f", b""), link] {
        let set = SetAttr { mtime: Some(TimeOrNow::At(old)), ..SetAttr::default() };
        assert_eq!(w.fs.setattr(&ME, ino, &set).unwrap().mtime, old);
    }
}

#[test]
fn modes_are_exactly_what_was_asked_for() {
    let mut w = World::new();
    for mode in [0o000, 0o151, 0o222, 0o444, 0o777, 0o1777] {
        let name = format!("{mode:o}");
        assert_eq!(u32::from(w.fs.mkdir(&ME, ROOT, os(&format!("d{name}")), mode, 0).unwrap().perm), mode);
        let (attr, fh) = w.fs.create(&ME, ROOT, os(&format!("f{name}")), mode, 0, RW).unwrap();
        assert_eq!(u32::from(attr.perm), mode);
        w.fs.write(attr.ino, fh, 0, b"x", false, false).unwrap();
        w.fs.release(attr.ino, fh).unwrap();
        assert_eq!(w.get(&format!("f{name}")).unwrap(), b"x");
    }
    w.remount();
    assert_eq!(w.find("d151").unwrap().perm, 0o151);
    let set = SetAttr { mode: Some(0o4755), ..SetAttr::default() };
    assert_eq!(w.fs.setattr(&ME, w.ino("f777"), &set).unwrap().perm, 0o4755);
}

#[test]
fn owners_and_groups_of_new_things() {
    if !is_root() {
        // Only root gives files away; as another user, everything is that user's.
        let w = World::new();
        assert_eq!(w.fs.getattr(w.put("f", b""), None).unwrap().uid, rustix::process::geteuid().as_raw());
        return;
    }
    let w = World::new();
    let user = Caller { uid: 1234, gid: 5678, pid: 1 };
    let dir = w.fs.mkdir(&user, ROOT, os("d"), 0o755, 0).unwrap();
    assert_eq!((dir.uid, dir.gid), (1234, 5678));
    let link = w.fs.symlink(&user, dir.ino, os("l"), b"t").unwrap();
    assert_eq!((link.uid, link.gid), (1234, 5678));
    let pipe = w.fs.mknod(&user, dir.ino, os("p"), libc::S_IFIFO | 0o600, 0, 0).unwrap();
    assert_eq!((pipe.uid, pipe.gid), (1234, 5678));
    let set = SetAttr { mode: Some(0o2775), gid: Some(42), ..SetAttr::default() };
    w.fs.setattr(&ME, dir.ino, &set).unwrap();
    let (file, fh) = w.fs.create(&user, dir.ino, os("f"), 0o644, 0, RW).unwrap();
    w.fs.release(file.ino, fh).unwrap();
    assert_eq!((file.uid, file.gid), (1234, 42), "the directory passes its group on");
    let sub = w.fs.mkdir(&user, dir.ino, os("s"), 0o750, 0).unwrap();
    assert_eq!((sub.gid, sub.perm), (42, 0o2750));
}

#[test]
fn suid_goes_when_it_must() {
    if !is_root() {
        return;
    }
    let w = World::new();
    let user = Caller { uid: 1234, gid: 5678, pid: 1 };
    let ino = w.put("f", b"program");
    let suid = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
    let perm = || w.fs.getattr(ino, None).unwrap().perm;
    let fh = w.fs.open(&ME, ino, RW).unwrap();
    w.fs.setattr(&ME, ino, &suid).unwrap();
    w.fs.setxattr(ino, os("security.capability"), b"caps", 0).unwrap();
    w.fs.write(ino, fh, 0, b"x", true, false).unwrap();
    assert_eq!(perm(), 0o6755);
    w.fs.write(ino, fh, 0, b"x", true, true).unwrap();
    assert_eq!(perm(), 0o755);
    assert_eq!(errno(w.fs.getxattr(ino, os("security.capability"))), libc::ENODATA);
    w.fs.setattr(&ME, ino, &suid).unwrap();
    w.fs.setattr(&user, ino, &SetAttr { size: Some(1), ..SetAttr::default() }).unwrap();
    assert_eq!(perm(), 0o755);
    w.fs.setattr(&ME, ino, &suid).unwrap();
    w.fs.setattr(&ME, ino, &SetAttr { uid: Some(9), ..SetAttr::default() }).unwrap();
    assert_eq!(perm(), 0o755);
    w.fs.release(ino, fh).unwrap();
}

#[test]
fn extended_attributes() {
    let mut w = World::new();
    let (file, dir) = (w.put("f", b""), w.mkdir("d"));
    let long = format!("user.{}", "n".repeat(250));
    for ino in [file, dir] {
        w.fs.setxattr(ino, os("user.a"), b"value", libc::XATTR_CREATE).unwrap();
        w.fs.setxattr(ino, os(&long), &[9; 1500], 0).unwrap();
        w.fs.setxattr(ino, os("user.empty"), b"", 0).unwrap();
        assert_eq!(errno(w.fs.setxattr(ino, os("user.a"), b"", libc::XATTR_CREATE)), libc::EEXIST);
        assert_eq!(errno(w.fs.setxattr(ino, os("user.z"), b"", libc::XATTR_REPLACE)), libc::ENODATA);
        assert_eq!(errno(w.fs.setxattr(ino, os("system.posix_acl_access"), b"", 0)), libc::EOPNOTSUPP);
        assert_eq!(errno(w.fs.getxattr(ino, os("user.b"))), libc::ENODATA);
    }
    w.remount();
    let (file, dir) = (w.ino("f"), w.ino("d"));
    for ino in [file, dir] {
        assert_eq!(w.fs.getxattr(ino, os("user.a")).unwrap(), b"value");
        assert_eq!(w.fs.getxattr(ino, os(&long)).unwrap(), [9; 1500]);
        let list = w.fs.listxattr(ino).unwrap();
        let mut names: Vec<_> = list.split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
        names.sort();
        assert_eq!(names, [&b"user.a"[..], b"user.empty", long.as_bytes()]);
        w.fs.removexattr(ino, os("user.a")).unwrap();
        assert_eq!(errno(w.fs.removexattr(ino, os("user.a"))), libc::ENODATA);
    }
    let link = w.fs.symlink(&ME, ROOT, os("l"), b"f").unwrap();
    assert_eq!(link.kind, Kind::Symlink);
    assert_eq!(errno(w.fs.setxattr(link.ino, os("user.a"), b"", 0)), libc::EPERM);
    assert!(w.fs.listxattr(link.ino).unwrap().is_empty());
}

#[test]
fn statfs_tells_names_of_255_bytes_and_space() {
    let w = World::new();
    let stat = w.fs.statfs().unwrap();
    assert_eq!(stat.namelen, 255);
    assert!(stat.blocks > stat.bfree && stat.bfree > 0);
}
