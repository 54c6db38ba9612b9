//! Directories: made, removed, read whole and while they change.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::common::{Store, errno, names};

#[test]
fn make_and_remove() {
    let store = Store::new();
    let mount = store.mount();
    let dir = mount.at("a");
    fs::create_dir(&dir).unwrap();
    assert_eq!(errno(fs::create_dir(&dir)), libc::EEXIST);
    fs::create_dir_all(dir.join("b/c/d")).unwrap();
    fs::write(dir.join("b/f"), b"x").unwrap();
    assert_eq!(errno(fs::remove_dir(&dir)), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(dir.join("b/f"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_file(dir.join("b/c"))), libc::EISDIR);
    assert_eq!(errno(fs::remove_dir(dir.join("nothing"))), libc::ENOENT);
    fs::remove_dir(dir.join("b/c/d")).unwrap();
    assert_eq!(names(&dir.join("b/c")).len(), 0);
    let mount = mount.remount();
    assert_eq!(names(&mount.at("a/b")), ["c", "f"]);
    fs::remove_dir_all(mount.at("a")).unwrap();
    assert_eq!(names(&mount.path).len(), 0);
    mount.umount();
}

#[test]
fn link_counts_of_directories() {
    let store = Store::new();
    let mount = store.mount();
    let base = fs::metadata(&mount.path).unwrap().nlink();
    for n in 0..5 {
        fs::create_dir(mount.at(format!("d{n}"))).unwrap();
    }
    let now = fs::metadata(&mount.path).unwrap().nlink();
    // 2 + subdirectories as on ext4, or the constant 1 as on btrfs: find(1) relies on either.
    assert!(now == base + 5 || (base == 1 && now == 1), "nlink {base} became {now}");
    assert!([1, 2].contains(&fs::metadata(mount.at("d0")).unwrap().nlink()));
    mount.umount();
}

#[test]
fn five_thousand_names() {
    let store = Store::new();
    let mount = store.mount();
    let dir = mount.at("many");
    fs::create_dir(&dir).unwrap();
    let want: BTreeSet<String> = (0..5000).map(|n| format!("name-{n:05}-{}", "x".repeat(n % 60))).collect();
    for name in &want {
        fs::File::create(dir.join(name)).unwrap();
    }
    let read = |dir: &std::path::Path| {
        let mut seen = BTreeSet::new();
        for name in names(dir) {
            let name = name.into_string().unwrap();
            assert!(seen.insert(name.clone()), "{name} is listed twice");
        }
        seen
    };
    assert_eq!(read(&dir), want);
    let mount = mount.remount();
    let dir = mount.at("many");
    assert_eq!(read(&dir), want);
    // `ls -l` of everything.
    for entry in fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        assert!(entry.file_type().unwrap().is_file());
        assert_eq!(entry.metadata().unwrap().len(), 0);
    }
    // Removed while being read: POSIX asks that each name not removed is seen exactly once.
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(seen.insert(name.clone()), "{name} is listed twice while names go");
        fs::remove_file(entry.path()).unwrap();
    }
    assert_eq!(seen, want, "names were skipped while others were removed");
    fs::remove_dir(&dir).unwrap();
    mount.umount();
}

#[test]
fn a_listing_sees_what_changed() {
    let store = Store::new();
    let mount = store.mount();
    for round in 0..20 {
        fs::write(mount.at(format!("f{round}")), b"").unwrap();
        assert_eq!(names(&mount.path).len(), round + 1, "a new name is in the next listing");
    }
    fs::rename(mount.at("f3"), mount.at("g3")).unwrap();
    assert!(names(&mount.path).contains(&"g3".into()));
    assert!(!names(&mount.path).contains(&"f3".into()));
    fs::remove_file(mount.at("f4")).unwrap();
    assert!(!names(&mount.path).contains(&"f4".into()));
    mount.umount();
}

#[test]
fn dot_and_dot_dot() {
    let store = Store::new();
    let mount = store.mount();
    fs::create_dir_all(mount.at("a/b")).unwrap();
    let inode = |path: std::path::PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(mount.at("a/b/..")), inode(mount.at("a")));
    assert_eq!(inode(mount.at("a/.")), inode(mount.at("a")));
    fs::create_dir(mount.at("c")).unwrap();
    fs::rename(mount.at("a/b"), mount.at("c/b")).unwrap();
    assert_eq!(inode(mount.at("c/b/..")), inode(mount.at("c")));
    mount.umount();
}

#[test]
fn files_and_directories_keep_their_inode_numbers_apart() {
    let store = Store::new();
    let mount = store.mount();
    let mut seen = BTreeSet::new();
    for n in 0..200 {
        let path = mount.at(format!("n{n}"));
        if n % 4 == 0 {
            fs::create_dir(&path).unwrap();
        } else {
            fs::write(&path, b"x").unwrap();
        }
        assert!(seen.insert(fs::metadata(&path).unwrap().ino()), "an inode number is used twice");
    }
    for entry in fs::read_dir(&mount.path).unwrap() {
        let entry = entry.unwrap();
        use std::os::unix::fs::DirEntryExt;
        assert_eq!(entry.ino(), entry.metadata().unwrap().ino(), "readdir and stat disagree on the inode number");
    }
    mount.umount();
}

#[test]
fn deep_paths() {
    let store = Store::new();
    let mount = store.mount();
    let mut path = mount.path.clone();
    for n in 0..60 {
        path.push(format!("level-{n:02}-{}", "d".repeat(20)));
        fs::create_dir(&path).unwrap();
    }
    fs::write(path.join("leaf"), b"deep").unwrap();
    let below = path.strip_prefix(&mount.path).unwrap().to_owned();
    let mount = mount.remount();
    assert_eq!(fs::read(mount.at(below).join("leaf")).unwrap(), b"deep");
    fs::remove_dir_all(mount.at("level-00-dddddddddddddddddddd")).unwrap();
    mount.umount();
}
