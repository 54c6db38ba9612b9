//! Changes of the store behind hyokfs's back.

use std::fs;
use std::os::unix::fs::FileExt;

use hyokfs::fs::{FsError, ROOT};

use crate::harness::*;

fn patch(path: &std::path::Path, offset: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn files_exchanged_across_directories() {
    let mut w = World::new();
    w.mkdir("a");
    w.mkdir("b");
    let (one, two) = (w.put("a/one", b"one"), w.put("b/two", b"two"));
    let (one, two) = (w.backing(one), w.backing(two));
    fs::rename(&one, w.dir.path().join("t")).unwrap();
    fs::rename(&two, &one).unwrap();
    fs::rename(w.dir.path().join("t"), &two).unwrap();
    w.crash();
    assert!(matches!(w.get("a/one"), Err(FsError::Damaged { .. })));
    assert!(matches!(w.get("b/two"), Err(FsError::Damaged { .. })));
    // They can be looked at and removed.
    assert_eq!(w.find("a/one").unwrap().size, 3);
    w.unlink("a/one").unwrap();
}

#[test]
fn a_file_linked_into_a_directory_that_one_may_read() {
    let mut w = World::new();
    w.mkdir("secret");
    w.mkdir("open");
    let (file, bait) = (w.put("secret/f", b"secret"), w.put("open/bait", b""));
    let (file, bait) = (w.backing(file), w.backing(bait));
    fs::remove_file(&bait).unwrap();
    fs::hard_link(&file, &bait).unwrap();
    w.crash();
    assert_eq!(w.get("secret/f").unwrap(), b"secret");
    assert!(matches!(w.get("open/bait"), Err(FsError::Damaged { .. })));
}

#[test]
fn edited_headers_and_pages() {
    for offset in [0, 20, 100, 600, 1023, 1030, 1100] {
        let mut w = World::new();
        let ino = w.put("f", &[1; 3000]);
        let path = w.backing(ino);
        patch(&path, offset);
        w.crash();
        assert_eq!(errno(w.get("f")), libc::EIO, "byte {offset}");
    }
}

#[test]
fn a_moved_directory_and_an_edited_record() {
    let mut w = World::new();
    w.mkdir("a");
    let b = w.backing(w.mkdir("b"));
    let moved = w.backing(w.mkdir("a/moved"));
    w.put("a/moved/f", b"x");
    // It takes the place of a directory that stands in b.
    let bait = w.backing(w.mkdir("b/bait"));
    fs::remove_dir_all(&bait).unwrap();
    fs::rename(&moved, &bait).unwrap();
    assert!(b.exists());
    w.crash();
    let ino = w.ino("b/bait");
    assert!(matches!(w.fs.opendir(ino), Err(FsError::Damaged { .. })));
    assert!(matches!(w.find("b/bait/f"), Err(FsError::Damaged { .. })));

    let record = w.backing(w.ino("a")).join(".hyokfs.dir");
    let other = w.backing(w.ino("b")).join(".hyokfs.dir");
    fs::remove_file(&record).unwrap();
    w.crash();
    assert!(matches!(w.find("a/x"), Err(FsError::Damaged { .. })));
    let text = fs::read_link(&other).unwrap().into_os_string().into_string().unwrap();
    let last = if text.ends_with('A') { "B" } else { "A" };
    std::os::unix::fs::symlink(format!("{}{last}", &text[..text.len() - 1]), &record).unwrap();
    w.crash();
    assert!(matches!(w.find("a/x"), Err(FsError::Damaged { .. })));
    // A directory whose record is lost can still be removed.
    w.rmdir("a").unwrap();
}

#[test]
fn foreign_entries_are_not_shown_and_do_not_hide_the_others() {
    let w = World::new();
    let dir = w.mkdir("d");
    w.put("d/good", b"x");
    fs::write(w.backing(dir).join("notours"), b"x").unwrap();
    fs::write(w.backing(dir).join("not ours at all"), b"x").unwrap();
    assert_eq!(w.names("d"), ["good"]);
    assert_eq!(errno(w.find("d/notours")), libc::ENOENT);
}

#[test]
fn a_symlink_in_the_place_of_a_file_or_directory_is_not_followed() {
    let mut w = World::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("f"), b"outside").unwrap();
    let (file, dir) = (w.backing(w.put("f", b"x")), w.backing(w.mkdir("d")));
    fs::remove_file(&file).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    std::os::unix::fs::symlink(outside.path().join("f"), &file).unwrap();
    std::os::unix::fs::symlink(outside.path(), &dir).unwrap();
    // The running mount sees another inode, a new one a symlink whose target is not sealed.
    w.crash();
    let ino = w.ino("f");
    assert_eq!(errno(w.fs.open(&ME, ino, RW)), libc::ELOOP);
    assert_eq!(errno(w.fs.readlink(ino)), libc::EIO);
    assert_eq!(errno(w.fs.opendir(w.ino("d"))), libc::ENOTDIR);
    assert_eq!(fs::read(outside.path().join("f")).unwrap(), b"outside");
}

#[test]
fn a_file_replaced_under_a_running_mount_is_not_taken_for_the_old_one() {
    let w = World::new();
    let ino = w.put("f", b"x");
    let path = w.backing(ino);
    fs::copy(&path, w.dir.path().join("copy")).unwrap();
    fs::rename(w.dir.path().join("copy"), &path).unwrap();
    assert_eq!(errno(w.fs.open(&ME, ino, RW)), libc::ESTALE);
    assert_eq!(errno(w.fs.getattr(ino, None)), libc::ESTALE);
    assert_ne!(w.fs.lookup(ROOT, os("f")).unwrap().ino, ino);
}

#[test]
fn xattrs_exchanged_within_a_file() {
    let w = World::new();
    let ino = w.put("f", b"");
    w.fs.setxattr(ino, os("user.a"), b"1", 0).unwrap();
    let path = w.backing(ino);
    let keys = || {
        let mut list = vec![0; 4096];
        let length = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
        let own = |name: &&[u8]| name.starts_with(b"user.hyokfs.");
        list[..length].split(|b| *b == 0).filter(own).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let first = keys().remove(0);
    w.fs.setxattr(ino, os("user.b"), b"2", 0).unwrap();
    let second = keys().into_iter().find(|key| *key != first).unwrap();
    let mut value = vec![0; 4096];
    let length = rustix::fs::getxattr(&path, &first[..], &mut value[..]).unwrap();
    rustix::fs::setxattr(&path, &second[..], &value[..length], rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(w.fs.getxattr(ino, os("user.a")).unwrap(), b"1");
    assert_eq!(errno(w.fs.getxattr(ino, os("user.b"))), libc::EIO);
}
