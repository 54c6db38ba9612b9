//! Every kind of thing renamed to every kind of place.

use hyokfs::fs::ROOT;

use crate::harness::*;

const NOREPLACE: u32 = libc::RENAME_NOREPLACE;
const EXCHANGE: u32 = libc::RENAME_EXCHANGE;

fn make(w: &World, path: &str, kind: &str) {
    match kind {
        "file" => drop(w.put(path, path.as_bytes())),
        "dir" => drop(w.mkdir(path)),
        "full" => {
            w.mkdir(path);
            w.put(&format!("{path}/in"), path.as_bytes());
        }
        "link" => {
            let (dir, name) = w.split(path);
            w.fs.symlink(&ME, dir, name, path.as_bytes()).unwrap();
        }
        _ => {}
    }
}

fn is(w: &World, path: &str, kind: &str, made_as: &str) {
    match kind {
        "file" => assert_eq!(w.get(path).unwrap(), made_as.as_bytes()),
        "dir" => assert!(w.names(path).is_empty()),
        "full" => assert_eq!(w.get(&format!("{path}/in")).unwrap(), made_as.as_bytes()),
        "link" => assert_eq!(w.fs.readlink(w.ino(path)).unwrap(), made_as.as_bytes()),
        _ => assert_eq!(errno(w.find(path)), libc::ENOENT),
    }
}

#[test]
fn the_matrix() {
    for (from, to) in [("a/x", "a/y"), ("a/x", "b/y")] {
        for what in ["file", "dir", "full", "link"] {
            for over in ["", "file", "dir", "full", "link"] {
                for flags in [0, NOREPLACE, EXCHANGE] {
                    let mut w = World::new();
                    w.mkdir("a");
                    w.mkdir("b");
                    make(&w, from, what);
                    make(&w, to, over);
                    let is_dir = |kind: &str| kind == "dir" || kind == "full";
                    let expected = match flags {
                        NOREPLACE if !over.is_empty() => libc::EEXIST,
                        EXCHANGE if over.is_empty() => libc::ENOENT,
                        EXCHANGE | NOREPLACE => 0,
                        _ if over.is_empty() => 0,
                        _ if is_dir(what) && !is_dir(over) => libc::ENOTDIR,
                        _ if !is_dir(what) && is_dir(over) => libc::EISDIR,
                        _ if over == "full" => libc::ENOTEMPTY,
                        _ => 0,
                    };
                    let got = w.rename(from, to, flags).map_or_else(|error| errno::<()>(Err(error)), |()| 0);
                    assert_eq!(got, expected, "{what} {from} over {over:?} {to}, flags {flags}");
                    for mounted in 0..3 {
                        match (expected, flags) {
                            (0, EXCHANGE) => {
                                is(&w, to, what, from);
                                is(&w, from, over, to);
                            }
                            (0, _) => {
                                is(&w, to, what, from);
                                is(&w, from, "", "");
                            }
                            _ => {
                                is(&w, from, what, from);
                                is(&w, to, over, to);
                            }
                        }
                        // First without narrowing the parents, then with.
                        if mounted == 0 { w.crash() } else { w.remount() }
                    }
                }
            }
        }
    }
}

#[test]
fn odd_renames() {
    let w = World::new();
    w.mkdir("a");
    w.mkdir("a/b");
    w.put("f", b"x");
    w.link("f", "g").unwrap();
    w.rename("f", "g", 0).unwrap();
    assert_eq!(w.names(""), ["a", "f", "g"], "two names of one file: nothing happens");
    w.rename("f", "f", 0).unwrap();
    assert_eq!(errno(w.rename("a", "a/b/c", 0)), libc::EINVAL);
    assert_eq!(errno(w.rename("f", "h", libc::RENAME_WHITEOUT)), libc::EINVAL);
    assert_eq!(errno(w.rename("f", "h", NOREPLACE | EXCHANGE)), libc::EINVAL);
    assert_eq!(errno(w.rename("no", "h", 0)), libc::ENOENT);
    assert_eq!(errno(w.fs.rename(ROOT, os("f"), ROOT, os(&"x".repeat(256)), 0)), libc::ENAMETOOLONG);
}

#[test]
fn open_files_go_along_and_replaced_ones_stay_open() {
    let w = World::new();
    w.mkdir("d");
    let (moved, old) = (w.put("f", b"moved"), w.put("d/g", b"old"));
    let (a, b) = (w.fs.open(&ME, moved, RW).unwrap(), w.fs.open(&ME, old, RW).unwrap());
    w.rename("f", "d/g", 0).unwrap();
    w.fs.write(moved, a, 5, b"!", false, false).unwrap();
    w.fs.write(old, b, 3, b"?", false, false).unwrap();
    assert_eq!(w.read_fh(old, b).unwrap(), b"old?");
    assert_eq!(w.fs.getattr(old, Some(b)).unwrap().nlink, 0);
    w.fs.release(old, b).unwrap();
    w.fs.release(moved, a).unwrap();
    assert_eq!(w.get("d/g").unwrap(), b"moved!");
    assert_eq!(w.fs.getattr(old, None).unwrap().size, 4, "until the kernel forgets it");
}

#[test]
fn a_file_may_move_as_often_as_it_likes() {
    let mut w = World::new();
    for i in 0..8 {
        w.mkdir(&format!("d{i}"));
        w.mkdir(&format!("d{i}/x"));
    }
    w.put("d0/f", b"f");
    w.put("d0/x/f", b"deep");
    w.mkdir("d0/m");
    w.put("d0/m/f", b"moved");
    for i in 0..7 {
        w.rename(&format!("d{i}/f"), &format!("d{}/f", i + 1), 0).unwrap();
        w.rename(&format!("d{i}/m"), &format!("d{}/m", i + 1), 0).unwrap();
    }
    w.crash();
    assert_eq!(w.get("d7/f").unwrap(), b"f");
    assert_eq!(w.get("d7/m/f").unwrap(), b"moved");
    w.remount();
    assert_eq!(w.get("d7/m/f").unwrap(), b"moved");
}

#[test]
fn moving_needs_no_file_key() {
    let w = World::new();
    w.mkdir("d");
    w.put("f", b"x");
    w.keyring.lock();
    w.rename("f", "d/f", 0).unwrap();
    w.link("d/f", "g").unwrap();
    w.unlink("g").unwrap();
    w.keyring.unlock(w.provider());
    assert_eq!(w.get("d/f").unwrap(), b"x");
}

#[test]
fn what_was_moved_and_removed_frees_its_space() {
    let w = World::new();
    w.mkdir("d");
    let ino = w.put("f", b"x");
    w.rename("f", "d/f", 0).unwrap();
    w.unlink("d/f").unwrap();
    w.fs.forget(ino, 1000);
    let held = std::fs::read_dir("/proc/self/fd").unwrap().filter(|fd| {
        let target = std::fs::read_link(fd.as_ref().unwrap().path()).unwrap_or_default();
        target.starts_with(w.dir.path()) && target.to_string_lossy().ends_with("(deleted)")
    });
    assert_eq!(held.count(), 0);
}

#[test]
fn a_synced_directory_knows_what_was_made_in_it() {
    let w = World::new();
    let dir = w.mkdir("d");
    for i in 0..100 {
        let ino = w.put(&format!("d/f{i}"), b"x");
        if i % 3 == 0 {
            w.fs.forget(ino, 1000);
        }
        if i % 10 == 0 {
            w.fs.fsyncdir(dir, 0).unwrap();
        }
    }
    w.fs.fsyncdir(dir, 0).unwrap();
}
