//! Making, reading, writing, removing.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use hyokfs::format::name::NameMode;
use hyokfs::fs::{FsOptions, Kind, ROOT};

use crate::harness::*;

#[test]
fn contents_and_sizes_stay_over_a_remount() {
    let mut w = World::new();
    w.mkdir("d");
    for (i, size) in [0, 1, 3015, 3016, 3017, 4056, 100_000].into_iter().enumerate() {
        let data: Vec<u8> = (0..size).map(|n| (n * 7 + i) as u8).collect();
        w.put(&format!("d/f{i}"), &data);
        assert_eq!(w.find(&format!("d/f{i}")).unwrap().size, size as u64);
    }
    w.remount();
    for (i, size) in [0, 1, 3015, 3016, 3017, 4056, 100_000].into_iter().enumerate() {
        let data: Vec<u8> = (0..size).map(|n| (n * 7 + i) as u8).collect();
        assert_eq!(w.find(&format!("d/f{i}")).unwrap().size, size as u64, "without opening it");
        assert!(w.get(&format!("d/f{i}")).unwrap() == data);
    }
    assert_eq!(w.names("d").len(), 7);
}

#[test]
fn nothing_in_the_store_shows_a_name_or_content() {
    let w = World::new();
    w.mkdir("visible-dir");
    w.put("visible-dir/visible-file", b"visible-content visible-content");
    w.fs.symlink(&ME, ROOT, os("visible-link"), b"visible-target").unwrap();
    w.fs.setxattr(w.ino("visible-dir/visible-file"), os("user.visible-attr"), b"visible-value", 0).unwrap();
    let out = std::process::Command::new("sh")
        .args(["-c", "ls -lR .; getfattr -dR . 2>/dev/null; find . -type f -exec cat {} +"])
        .current_dir(w.dir.path())
        .output()
        .unwrap();
    assert!(!out.stdout.windows(7).any(|window| window == b"visible"));
}

#[test]
fn names_of_255_bytes_and_awkward_ones_work() {
    let mut w = World::new();
    let long = "x".repeat(255);
    let odd = ["-", "...", ".hidden", "=", "=.", "a b", "ü", ".hyokfs.dir", "hyokfs.toml", ".hyokfs.tmp.x", ".name"];
    w.mkdir(&long);
    w.put(&format!("{long}/{long}"), b"deep");
    for name in odd {
        w.put(name, name.as_bytes());
    }
    assert_eq!(errno(w.fs.lookup(ROOT, os(&"x".repeat(256)))), libc::ENAMETOOLONG);
    w.remount();
    assert_eq!(w.get(&format!("{long}/{long}")).unwrap(), b"deep");
    let mut all: Vec<String> = odd.iter().map(|name| (*name).to_owned()).chain([long.clone()]).collect();
    all.sort();
    assert_eq!(w.names(""), all);
    // Renaming and removing take the symlink of the long name along.
    w.rename(&format!("{long}/{long}"), &format!("{long}/{}", "y".repeat(255)), 0).unwrap();
    assert_eq!(w.names(&long), ["y".repeat(255)]);
    w.unlink(&format!("{long}/{}", "y".repeat(255))).unwrap();
    w.rmdir(&long).unwrap();
    let left = std::fs::read_dir(w.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.starts_with('=')).count(), 0);
}

#[test]
fn plain_names_work_too() {
    let mut w = World::with(NameMode::Plain, FsOptions::default());
    w.mkdir("dir");
    w.put("dir/file", b"1");
    w.put(".hyokfs.dir", b"2");
    assert!(w.dir.path().join("dir/file").exists());
    w.remount();
    assert_eq!(w.names(""), [".hyokfs.dir", "dir"]);
    assert_eq!(w.get(".hyokfs.dir").unwrap(), b"2");
}

#[test]
fn errors_are_those_of_posix() {
    let w = World::new();
    w.mkdir("d");
    w.put("d/f", b"x");
    assert_eq!(errno(w.find("nothing")), libc::ENOENT);
    assert_eq!(errno(w.find("d/f/x")), libc::ENOTDIR);
    assert_eq!(errno(w.fs.mkdir(&ME, ROOT, os("d"), 0o755, 0)), libc::EEXIST);
    assert_eq!(errno(w.fs.create(&ME, w.ino("d"), os("f"), 0o644, 0, RW | libc::O_EXCL)), libc::EEXIST);
    assert_eq!(errno(w.fs.symlink(&ME, w.ino("d"), os("f"), b"t")), libc::EEXIST);
    assert_eq!(errno(w.fs.mknod(&ME, w.ino("d"), os("f"), libc::S_IFIFO | 0o644, 0, 0)), libc::EEXIST);
    assert_eq!(errno(w.rmdir("d")), libc::ENOTEMPTY);
    assert_eq!(errno(w.rmdir("d/f")), libc::ENOTDIR);
    assert_eq!(errno(w.unlink("d")), libc::EISDIR);
    assert_eq!(errno(w.unlink("no")), libc::ENOENT);
    assert_eq!(errno(w.fs.open(&ME, w.ino("d"), RW)), libc::EISDIR);
    assert_eq!(errno(w.fs.link(w.ino("d"), ROOT, os("e"))), libc::EPERM);
    assert_eq!(errno(w.link("d/f", "d/f")), libc::EEXIST);
    assert_eq!(errno(w.fs.read(2, 999_999, 0, &mut [0])), libc::EBADF);
    assert_eq!(errno(w.fs.lookup(ROOT, os(".."))), libc::EINVAL);
    // Nothing of all that left anything behind.
    assert_eq!(w.names(""), ["d"]);
    assert_eq!(w.get("d/f").unwrap(), b"x");
    let files = std::fs::read_dir(w.dir.path()).unwrap().count();
    assert_eq!(files, 1, "d alone: the root has no record");
}

#[test]
fn create_without_excl_opens_what_is_there() {
    let w = World::new();
    w.put("f", b"old");
    let (attr, fh) = w.fs.create(&ME, ROOT, os("f"), 0o600, 0, RW).unwrap();
    assert_eq!((attr.size, attr.perm), (3, 0o644));
    w.fs.release(attr.ino, fh).unwrap();
    let (attr, fh) = w.fs.create(&ME, ROOT, os("f"), 0o600, 0, RW | libc::O_TRUNC).unwrap();
    assert_eq!(attr.size, 0);
    w.fs.release(attr.ino, fh).unwrap();
}

#[test]
fn an_open_file_survives_its_names() {
    let w = World::new();
    let ino = w.put("f", b"kept");
    let fh = w.fs.open(&ME, ino, RW).unwrap();
    w.unlink("f").unwrap();
    assert_eq!(w.fs.getattr(ino, Some(fh)).unwrap().nlink, 0);
    assert_eq!(w.read_fh(ino, fh).unwrap(), b"kept");
    w.fs.write(ino, fh, 4, b" on", false, false).unwrap();
    let again = w.fs.open(&ME, ino, RW).unwrap();
    assert_eq!(w.read_fh(ino, again).unwrap(), b"kept on");
    w.fs.release(ino, fh).unwrap();
    w.fs.release(ino, again).unwrap();
    // Closed, but the kernel still knows it: an O_PATH descriptor of an application, say.
    assert_eq!(w.fs.getattr(ino, None).unwrap().size, 7);
    let back = w.fs.open(&ME, ino, RW).unwrap();
    assert_eq!(w.read_fh(ino, back).unwrap(), b"kept on");
    w.fs.release(ino, back).unwrap();
    assert_eq!(errno(w.find("f")), libc::ENOENT);
    w.fs.forget(ino, 1000);
    assert_eq!(errno(w.fs.getattr(ino, None)), libc::ESTALE);
}

#[test]
fn a_number_is_not_used_again_while_the_kernel_knows_it() {
    let w = World::new();
    let mut seen = std::collections::HashSet::new();
    for i in 0..50 {
        let name = format!("f{i}");
        assert!(seen.insert(w.put(&name, b"x")), "two inodes with one number");
        w.unlink(&name).unwrap();
    }
}

#[test]
fn links_share_and_count() {
    let mut w = World::new();
    for dir in ["a", "b", "c", "d", "e"] {
        w.mkdir(dir);
    }
    w.put("a/f", b"shared");
    for (i, dir) in ["b", "c", "d", "e"].into_iter().enumerate() {
        let attr = w.link("a/f", &format!("{dir}/f")).unwrap();
        assert_eq!((attr.nlink, attr.size), (i as u32 + 2, 6), "plaintext size in the answer");
    }
    w.remount();
    for dir in ["a", "b", "c", "d", "e"] {
        assert_eq!(w.get(&format!("{dir}/f")).unwrap(), b"shared");
    }
    w.unlink("a/f").unwrap();
    assert_eq!(w.find("e/f").unwrap().nlink, 4);
    assert_eq!(w.get("e/f").unwrap(), b"shared");
}

#[test]
fn an_inode_is_found_by_the_name_that_is_left() {
    let w = World::new();
    let ino = w.put("one", b"x");
    w.link("one", "two").unwrap();
    w.unlink("one").unwrap();
    assert_eq!(w.fs.getattr(ino, None).unwrap().nlink, 1);
    w.rename("two", "three", 0).unwrap();
    assert_eq!(w.get("three").unwrap(), b"x");
}

#[test]
fn symlinks_keep_their_targets() {
    let mut w = World::new();
    for (i, length) in [1, 2, 3, 4, 255, 1000, 3031].into_iter().enumerate() {
        let target = "t".repeat(length);
        let attr = w.fs.symlink(&ME, ROOT, os(&format!("l{i}")), target.as_bytes()).unwrap();
        assert_eq!((attr.size, attr.kind), (length as u64, Kind::Symlink));
    }
    assert_eq!(errno(w.fs.symlink(&ME, ROOT, os("long"), &[b'x'; 3032])), libc::ENAMETOOLONG);
    w.remount();
    for (i, length) in [1, 2, 3, 4, 255, 1000, 3031].into_iter().enumerate() {
        let ino = w.ino(&format!("l{i}"));
        assert_eq!(w.fs.readlink(ino).unwrap().len(), length);
    }
    assert_eq!(errno(w.fs.readlink(ROOT)), libc::EINVAL);
}

#[test]
fn special_files_are_what_they_are() {
    let w = World::new();
    let fifo = w.fs.mknod(&ME, ROOT, os("p"), libc::S_IFIFO | 0o640, 0, 0).unwrap();
    assert_eq!((fifo.kind, fifo.perm), (Kind::Fifo, 0o640));
    // Only root may make device nodes anywhere.
    if rustix::process::geteuid().is_root() {
        let device = w.fs.mknod(&ME, ROOT, os("n"), libc::S_IFCHR | 0o666, 0, 0x103).unwrap();
        assert_eq!((device.kind, device.rdev), (Kind::CharDevice, 0x103));
        let meta = w.backing(device.ino).symlink_metadata().unwrap();
        assert!(meta.file_type().is_char_device());
        assert_eq!(meta.rdev(), libc::makedev(1, 3));
    }
    let file = w.fs.mknod(&ME, ROOT, os("f"), libc::S_IFREG | 0o600, 0, 0).unwrap();
    assert_eq!((file.kind, file.size), (Kind::File, 0));
    assert_eq!(w.get("f").unwrap(), b"");
}

#[test]
fn sizes_and_holes() {
    let mut w = World::new();
    let (attr, fh) = w.fs.create(&ME, ROOT, os("f"), 0o644, 0, RW).unwrap();
    let ino = attr.ino;
    let grow = |size| hyokfs::fs::SetAttr { size: Some(size), ..Default::default() };
    assert_eq!(w.fs.setattr(&ME, ino, &grow(1 << 20)).unwrap().size, 1 << 20);
    w.fs.write(ino, fh, 1 << 20, b"end", false, false).unwrap();
    let data = w.fs.lseek(ino, fh, 10_000, libc::SEEK_DATA).unwrap();
    assert!(data > 10_000 && data <= 1 << 20, "{data}");
    assert_eq!(errno(w.fs.lseek(ino, fh, (1 << 20) + 3, libc::SEEK_HOLE)), libc::ENXIO);
    w.fs.fallocate(ino, fh, 2 << 20, 10, libc::FALLOC_FL_KEEP_SIZE).unwrap();
    assert_eq!(w.fs.getattr(ino, None).unwrap().size, (1 << 20) + 3);
    w.fs.fallocate(ino, fh, 2 << 20, 10, 0).unwrap();
    assert_eq!(w.fs.getattr(ino, None).unwrap().size, (2 << 20) + 10);
    w.fs.fallocate(ino, fh, 1 << 20, 2, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).unwrap();
    assert_eq!(errno(w.fs.fallocate(ino, fh, 0, 1, libc::FALLOC_FL_COLLAPSE_RANGE)), libc::EOPNOTSUPP);
    w.fs.fsync(ino, fh, false).unwrap();
    w.fs.release(ino, fh).unwrap();
    w.remount();
    let data = w.get("f").unwrap();
    assert_eq!(data.len(), (2 << 20) + 10);
    assert_eq!(&data[1 << 20..(1 << 20) + 3], b"\0\0d");
}

#[test]
fn listings_go_on_while_entries_come_and_go() {
    let w = World::new();
    for i in 0..500 {
        w.put(&format!("f{i:03}"), b"");
    }
    let fh = w.fs.opendir(ROOT).unwrap();
    let (mut seen, mut off) = (Vec::new(), 0);
    loop {
        let mut taken = 0;
        w.fs.readdir(ROOT, fh, off, true, &mut |entry| {
            if taken == 7 {
                return true;
            }
            taken += 1;
            off = entry.next_off;
            seen.push(entry.name.to_str().unwrap().to_owned());
            false
        })
        .unwrap();
        if taken == 0 {
            break;
        }
        for name in seen.iter().rev().take(3).filter(|name| name.starts_with('f')) {
            let _ = w.unlink(name);
        }
    }
    let before = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!((seen.len(), before), (502, 502), "every entry once, with . and ..");
}

#[test]
fn leftovers_are_invisible_and_go_with_their_directory() {
    let mut w = World::new();
    let dir = w.mkdir("d");
    let path = w.backing(dir);
    std::fs::write(path.join(".hyokfs.tmp.0123"), b"half").unwrap();
    std::fs::create_dir(path.join(".hyokfs.tmp.4567")).unwrap();
    std::os::unix::fs::symlink("x", path.join(".hyokfs.tmp.4567/.hyokfs.dir")).unwrap();
    std::fs::write(w.dir.path().join(".hyokfs.tmp.root"), b"half").unwrap();
    assert!(w.names("d").is_empty());
    w.rmdir("d").unwrap();
    assert!(!path.exists());
    w.remount();
    assert!(!w.dir.path().join(".hyokfs.tmp.root").exists(), "swept at the mount");
}

#[test]
fn an_interrupted_creation_can_be_seen_and_removed() {
    let w = World::new();
    for (name, bytes) in [("empty", 0), ("short", 100), ("zero", 8192)] {
        let ino = w.put(name, b"whole");
        let fh = w.fs.open(&ME, ino, RW).unwrap();
        w.fs.fsync(ino, fh, true).unwrap();
        w.fs.release(ino, fh).unwrap();
        w.fs.forget(ino, 1);
        std::fs::write(w.backing(ino), vec![0; bytes]).unwrap();
        assert!(w.find(name).unwrap().size <= 4056);
        assert_eq!(errno(w.get(name)), libc::EIO);
        let ino = w.ino(name);
        let fh = w.fs.open(&ME, ino, RW | libc::O_TRUNC).unwrap();
        w.fs.write(ino, fh, 0, b"anew", false, false).unwrap();
        w.fs.release(ino, fh).unwrap();
        assert_eq!(w.get(name).unwrap(), b"anew");
        std::fs::write(w.backing(ino), vec![0; bytes]).unwrap();
        w.rename(name, "elsewhere", 0).unwrap();
        w.unlink("elsewhere").unwrap();
    }
}

/// A power cut may leave the name of a file and nothing of its contents, if nobody synced it: then it is as on any
/// filesystem. Once it was synced, somebody took the contents away.
#[test]
fn a_file_that_was_never_synced_opens_after_a_power_cut() {
    let w = World::new();
    for (name, bytes, size) in [("empty", 0, 0), ("short", 100, 0), ("zero", 8192 + 5, 3016 + 5)] {
        let ino = w.put(name, b"whole");
        w.fs.forget(ino, 1);
        std::fs::write(w.backing(ino), vec![0; bytes]).unwrap();
        assert_eq!(w.get(name).unwrap(), vec![0; size], "{name}");
        let ino = w.ino(name);
        let fh = w.fs.open(&ME, ino, RW).unwrap();
        w.fs.write(ino, fh, 0, b"more", false, false).unwrap();
        w.fs.fsync(ino, fh, false).unwrap();
        w.fs.release(ino, fh).unwrap();
        assert_eq!(&w.get(name).unwrap()[..4], b"more");
        std::fs::write(w.backing(ino), vec![0; bytes]).unwrap();
        assert_eq!(errno(w.get(name)), libc::EIO, "{name}: synced, then taken away");
        w.fs.forget(ino, 2);
    }
    // The mark of one file is none for another.
    let (old, new) = (w.put("old", b"x"), w.put("new", b"x"));
    let fh = w.fs.open(&ME, old, RW).unwrap();
    w.fs.fsync(old, fh, false).unwrap();
    w.fs.release(old, fh).unwrap();
    let mut mark = [0; 64];
    let length = rustix::fs::getxattr(w.backing(new), "user.hyokfs-new", &mut mark[..]).unwrap();
    let missing = rustix::fs::getxattr(w.backing(old), "user.hyokfs-new", &mut [0_u8; 64][..]);
    assert_eq!(missing, Err(rustix::io::Errno::NODATA));
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(w.backing(old), "user.hyokfs-new", &mark[..length], flags).unwrap();
    std::fs::write(w.backing(old), b"").unwrap();
    assert_eq!(errno(w.get("old")), libc::EIO);
    assert!(w.fs.listxattr(new).unwrap().is_empty(), "no program sees the mark");
}

/// Whoever syncs a new file, be it for its directory or for a move, its mark goes: what is taken away from then on is
/// found out.
#[test]
fn a_sync_on_anothers_behalf_ends_a_files_youth_too() {
    let w = World::new();
    let mark = |ino| rustix::fs::getxattr(w.backing(ino), "user.hyokfs-new", &mut [0_u8; 64][..]);
    let (from, _) = (w.mkdir("from"), w.mkdir("to"));
    for open in [false, true] {
        for moved in [false, true] {
            let ino = w.put("from/new", b"whole");
            assert!(mark(ino).is_ok(), "a store that keeps attributes is needed");
            let fh = open.then(|| w.fs.open(&ME, ino, RW).unwrap());
            if moved {
                w.rename("from/new", "to/new", 0).unwrap();
            } else {
                w.fs.fsyncdir(from, 0).unwrap();
            }
            assert_eq!(mark(ino), Err(rustix::io::Errno::NODATA), "open: {open}, moved: {moved}");
            if let Some(fh) = fh {
                w.fs.release(ino, fh).unwrap();
            }
            let path = if moved { "to/new" } else { "from/new" };
            std::fs::write(w.backing(ino), b"").unwrap();
            assert_eq!(errno(w.get(path)), libc::EIO, "open: {open}, moved: {moved}");
            w.unlink(path).unwrap();
        }
    }
}

#[test]
fn few_descriptors_suffice() {
    let options = FsOptions { max_path_fds: 16, ..FsOptions::default() };
    let w = World::with(NameMode::Encrypted, options);
    for i in 0..100 {
        w.mkdir(&format!("d{i}"));
        w.put(&format!("d{i}/f"), b"x");
    }
    let fds = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter(|fd| std::fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|path| path.starts_with(w.dir.path())));
    assert!(fds.count() < 40);
    for i in 0..100 {
        assert_eq!(w.get(&format!("d{i}/f")).unwrap(), b"x");
    }
}
