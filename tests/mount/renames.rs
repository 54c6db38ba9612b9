//! Rename in all its forms.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::common::{Store, assert_bytes, errno, names, noise, read};

fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> std::io::Result<()> {
    renameat_with(CWD, from, CWD, to, flags).map_err(Into::into)
}

#[test]
fn over_a_file_and_across_directories() {
    let store = Store::new();
    let mount = store.mount();
    fs::create_dir_all(mount.at("a/b")).unwrap();
    fs::write(mount.at("a/one"), noise(1, 9000)).unwrap();
    fs::write(mount.at("a/two"), noise(2, 100)).unwrap();
    let inode = fs::metadata(mount.at("a/one")).unwrap().ino();
    fs::rename(mount.at("a/one"), mount.at("a/two")).unwrap();
    assert_eq!(fs::metadata(mount.at("a/two")).unwrap().ino(), inode);
    fs::rename(mount.at("a/two"), mount.at("a/b/three")).unwrap();
    assert_eq!(names(&mount.at("a")), ["b"]);
    let open = fs::File::open(mount.at("a/b/three")).unwrap();
    fs::rename(mount.at("a/b/three"), mount.at("four")).unwrap();
    assert_eq!(open.metadata().unwrap().ino(), inode, "an open descriptor follows the file");
    drop(open);
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("four")), &noise(1, 9000), "after renames and a remount");
    mount.umount();
}

#[test]
fn over_an_open_file() {
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("old"), noise(1, 30_000)).unwrap();
    fs::write(mount.at("new"), noise(2, 40_000)).unwrap();
    let mut old = fs::File::open(mount.at("old")).unwrap();
    fs::rename(mount.at("new"), mount.at("old")).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut old, &mut bytes).unwrap();
    assert_bytes(&bytes, &noise(1, 30_000), "the replaced file, still open");
    assert_bytes(&read(&mount.at("old")), &noise(2, 40_000), "the new file");
    drop(old);
    mount.umount();
}

#[test]
fn directories() {
    let store = Store::new();
    let mount = store.mount();
    fs::create_dir_all(mount.at("a/b/c")).unwrap();
    fs::write(mount.at("a/b/c/f"), noise(5, 5000)).unwrap();
    fs::create_dir_all(mount.at("x/y")).unwrap();
    fs::create_dir(mount.at("empty")).unwrap();
    fs::write(mount.at("file"), b"").unwrap();
    fs::rename(mount.at("a/b"), mount.at("x/b")).unwrap();
    fs::rename(mount.at("x/b"), mount.at("empty")).unwrap();
    assert_eq!(errno(fs::rename(mount.at("empty"), mount.at("x"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(mount.at("empty"), mount.at("file"))), libc::ENOTDIR);
    assert_eq!(errno(fs::rename(mount.at("file"), mount.at("x"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(mount.at("x"), mount.at("x/y/z"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(mount.at("none"), mount.at("other"))), libc::ENOENT);
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("empty/c/f")), &noise(5, 5000), "below moved directories");
    fs::write(mount.at("empty/c/g"), b"new").unwrap();
    let mount = mount.remount();
    assert_eq!(read(&mount.at("empty/c/g")), b"new");
    mount.umount();
}

#[test]
fn without_replacing() {
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("a"), b"a").unwrap();
    fs::write(mount.at("b"), b"b").unwrap();
    assert_eq!(errno(rename_with(&mount.at("a"), &mount.at("b"), RenameFlags::NOREPLACE)), libc::EEXIST);
    rename_with(&mount.at("a"), &mount.at("c"), RenameFlags::NOREPLACE).unwrap();
    assert_eq!(names(&mount.path), ["b", "c"]);
    assert_eq!(read(&mount.at("b")), b"b");
    mount.umount();
}

#[test]
fn exchanging() {
    let store = Store::new();
    let mount = store.mount();
    fs::create_dir(mount.at("d")).unwrap();
    fs::write(mount.at("d/inner"), b"inner").unwrap();
    fs::write(mount.at("f"), noise(1, 5000)).unwrap();
    fs::create_dir(mount.at("e")).unwrap();
    let long = "l".repeat(250);
    fs::write(mount.at("e").join(&long), noise(2, 7000)).unwrap();
    rename_with(&mount.at("f"), &mount.at("e").join(&long), RenameFlags::EXCHANGE).unwrap();
    assert_bytes(&read(&mount.at("f")), &noise(2, 7000), "exchanged with a long name elsewhere");
    rename_with(&mount.at("d"), &mount.at("f"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!(errno(rename_with(&mount.at("f"), &mount.at("none"), RenameFlags::EXCHANGE)), libc::ENOENT);
    let mount = mount.remount();
    assert_eq!(read(&mount.at("f/inner")), b"inner");
    assert_bytes(&read(&mount.at("d")), &noise(2, 7000), "a file in a directory's place");
    assert_bytes(&read(&mount.at("e").join(&long)), &noise(1, 5000), "the other one");
    mount.umount();
}

#[test]
fn one_file_under_two_names() {
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("a"), b"same").unwrap();
    fs::hard_link(mount.at("a"), mount.at("b")).unwrap();
    // POSIX: both names of one file: nothing happens.
    fs::rename(mount.at("a"), mount.at("b")).unwrap();
    assert_eq!(names(&mount.path), ["a", "b"]);
    fs::rename(mount.at("a"), mount.at("a")).unwrap();
    assert_eq!(read(&mount.at("a")), b"same");
    mount.umount();
}

#[test]
fn long_and_short_names() {
    let store = Store::new();
    let mount = store.mount();
    let long = |c: char| c.to_string().repeat(255);
    fs::write(mount.at("short"), noise(1, 100)).unwrap();
    fs::rename(mount.at("short"), mount.at(long('a'))).unwrap();
    fs::rename(mount.at(long('a')), mount.at(long('b'))).unwrap();
    fs::write(mount.at(long('c')), b"c").unwrap();
    fs::rename(mount.at(long('b')), mount.at(long('c'))).unwrap();
    let mount = mount.remount();
    assert_eq!(names(&mount.path), [std::ffi::OsString::from(long('c'))]);
    fs::rename(mount.at(long('c')), mount.at("short")).unwrap();
    assert_bytes(&read(&mount.at("short")), &noise(1, 100), "back to a short name");
    mount.umount();
}

#[test]
fn the_editor_pattern_many_times() {
    let store = Store::new();
    let mount = store.mount();
    for n in 0..200u64 {
        let mut file = fs::File::create(mount.at("doc.tmp")).unwrap();
        std::io::Write::write_all(&mut file, &noise(n, 6000 + n as usize)).unwrap();
        file.sync_all().unwrap();
        drop(file);
        fs::rename(mount.at("doc.tmp"), mount.at("doc")).unwrap();
        assert_eq!(fs::metadata(mount.at("doc")).unwrap().len(), 6000 + n);
    }
    assert_bytes(&read(&mount.at("doc")), &noise(199, 6199), "the last version");
    assert_eq!(names(&mount.path), ["doc"]);
    mount.umount();
}
