//! Altered ciphertext gives an error, never wrong data. The attacker owns the store.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::common::{Store, assert_bytes, native, noise, read};

const PAGE: u64 = 4096;

/// A volume with one synced file of `size` bytes in `d/`, unmounted; and where its ciphertext is.
fn one_file(size: usize) -> (Store, PathBuf) {
    let store = Store::new();
    let mount = store.mount();
    fs::create_dir(mount.at("d")).unwrap();
    let file = File::create(mount.at("d/f")).unwrap();
    file.write_all_at(&noise(1, size), 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.umount();
    let path = store.only_ciphertext();
    (store, path)
}

/// Reads `d/f` byte range by byte range: what can be read must be right; gives how many ranges gave errors.
fn damaged_ranges(store: &Store, size: usize) -> usize {
    let mount = store.mount();
    let want = noise(1, size);
    let file = match File::open(mount.at("d/f")) {
        Ok(file) => file,
        Err(error) => {
            // Refused at open: EIO, nothing else.
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
            mount.umount();
            return usize::MAX;
        }
    };
    let mut failed = 0;
    let mut at = 0;
    while at < size {
        let mut buffer = vec![0; 1000.min(size - at)];
        match file.read_exact_at(&mut buffer, at as u64) {
            Ok(()) => assert_bytes(&buffer, &want[at..at + buffer.len()], &format!("WRONG DATA at {at}")),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "at {at}: {error}");
                failed += 1;
            }
        }
        at += buffer.len();
    }
    drop(file);
    mount.umount();
    failed
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).unwrap();
}

#[test]
fn one_flipped_bit_anywhere() {
    if native() {
        return;
    }
    let size = 20_000;
    let (store, path) = one_file(size);
    assert_eq!(damaged_ranges(&store, size), 0, "the control: undamaged");
    let header = [0, 9, 40, 200, 500, 1000];
    let first = [1024, 1032, 1044, 1060, 1062, 1064, 1070, 1100, 4095];
    let later = [0, 8, 20, 36, 38, 40, 41, 2000, 4095].map(|at| 2 * PAGE + at);
    for at in header.into_iter().chain(first).chain(later) {
        flip(&path, at);
        assert!(damaged_ranges(&store, size) > 0, "the flipped bit at byte {at} of the ciphertext went unseen");
        let verify = store.world.run([OsStr::new("verify"), store.path.as_os_str()]);
        assert_eq!(verify.status.code(), Some(1), "verify doesn't see the flipped bit at byte {at}");
        flip(&path, at);
    }
    assert_eq!(damaged_ranges(&store, size), 0, "undamaged again");
    store.world.ok([OsStr::new("verify"), store.path.as_os_str()]);
}

#[test]
fn pages_that_changed_places() {
    if native() {
        return;
    }
    let size = 30_000;
    let (store, path) = one_file(size);
    let whole = fs::read(&path).unwrap();
    let page = |n: usize| &whole[n * 4096..(n + 1) * 4096];
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for (from, to) in [(2, 3), (3, 2), (1, 5), (0, 2), (2, 0)] {
        file.write_all_at(page(from), to as u64 * PAGE).unwrap();
        assert!(damaged_ranges(&store, size) > 0, "page {from} in the place of page {to} went unseen");
        file.write_all_at(page(to), to as u64 * PAGE).unwrap();
    }
    assert_eq!(damaged_ranges(&store, size), 0);
}

#[test]
fn a_page_of_another_file() {
    if native() {
        return;
    }
    let size = 20_000;
    let (store, path) = one_file(size);
    let mount = store.mount();
    fs::write(mount.at("d/other"), noise(2, size)).unwrap();
    mount.umount();
    let other = store.ciphertexts().into_iter().find(|p| *p != path).unwrap();
    let mut page = vec![0; 4096];
    File::open(&other).unwrap().read_exact_at(&mut page, 2 * PAGE).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&page, 2 * PAGE).unwrap();
    assert!(damaged_ranges(&store, size) > 0, "a page of another file went unseen");
}

#[test]
fn truncated_and_zeroed_below_the_floor() {
    if native() {
        return;
    }
    let size = 30_000;
    let (store, path) = one_file(size);
    let whole = fs::read(&path).unwrap();
    let length = whole.len() as u64;
    let restore = || fs::write(&path, &whole).unwrap();
    for cut in [0, 100, PAGE, 2 * PAGE, 3 * PAGE + 100, length - 1] {
        OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let mount = store.mount();
        let read = fs::read(mount.at("d/f"));
        assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO), "cut to {cut} of {length} bytes");
        mount.umount();
        restore();
    }
    for page in [0, 1, 4] {
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0; 4096], page * PAGE).unwrap();
        assert!(damaged_ranges(&store, size) > 0, "page {page} full of zeros went unseen");
        restore();
    }
    assert_eq!(damaged_ranges(&store, size), 0);
}

#[test]
fn a_file_moved_into_another_directory() {
    if native() {
        return;
    }
    let (store, path) = one_file(5000);
    let mount = store.mount();
    fs::create_dir(mount.at("e")).unwrap();
    fs::write(mount.at("e/g"), b"bait").unwrap();
    mount.umount();
    let bait = store.ciphertexts().into_iter().find(|p| *p != path).unwrap();
    // The attacker puts the ciphertext of d/f under the name of e/g, which he may read.
    fs::copy(&path, &bait).unwrap();
    let mount = store.mount();
    let got = fs::read(mount.at("e/g"));
    assert_eq!(got.unwrap_err().raw_os_error(), Some(libc::EIO), "a file moved between directories was served");
    assert_bytes(&read(&mount.at("d/f")), &noise(1, 5000), "the true one");
    mount.umount();
    // A name of one directory doesn't decrypt in another one.
    fs::rename(&path, bait.parent().unwrap().join(path.file_name().unwrap())).unwrap();
    let mount = store.mount();
    assert!(fs::read(mount.at("e/f")).is_err(), "a file with its name moved between directories was served");
    mount.umount();
}

#[test]
fn edited_records() {
    if native() {
        return;
    }
    let (store, _) = one_file(5000);
    let mountpoint = store.world.path().join("mnt");
    let record = store.path.join("hyokfs.toml");
    // The copy would take the place of a record that cannot be read.
    fs::remove_file(store.path.join("hyokfs.toml.bak")).unwrap();
    let good = fs::read_to_string(&record).unwrap();
    let mut refused = 0;
    for (number, line) in good.lines().enumerate() {
        // Each value by itself: one character of it changed to another of its kind.
        let Some((name, value)) = line.split_once('=') else { continue };
        let Some(at) = value.rfind(|c: char| c.is_ascii_alphanumeric()) else { continue };
        let old = value.as_bytes()[at];
        let new = match old {
            b'0'..=b'8' => old + 1,
            b'9' => b'0',
            b'a'..=b'y' | b'A'..=b'Y' => old + 1,
            _ => b'a',
        };
        let mut changed = value.as_bytes().to_vec();
        changed[at] = new;
        let changed = format!("{name}={}", String::from_utf8(changed).unwrap());
        let mut lines: Vec<_> = good.lines().collect();
        lines[number] = &changed;
        fs::write(&record, lines.join("\n") + "\n").unwrap();
        match store.try_mount(&[], &mountpoint) {
            Ok(_) => panic!("the record was mounted with `{changed}` instead of `{line}`"),
            Err(said) => assert!(!said.contains("panicked"), "{changed}: {said}"),
        }
        refused += 1;
    }
    assert!(refused >= 5, "only {refused} values in\n{good}");
    for bad in ["", "nonsense", "\0\0\0", &good[..good.len() / 2]] {
        fs::write(&record, bad).unwrap();
        assert!(store.try_mount(&[], &mountpoint).is_err(), "mounted with the record {bad:?}");
    }
    fs::remove_file(&record).unwrap();
    assert!(store.try_mount(&[], &mountpoint).is_err(), "mounted without a record");
    fs::write(&record, &good).unwrap();
    let mount = store.mount();
    assert_bytes(&read(&mount.at("d/f")), &noise(1, 5000), "with the record back");
    mount.umount();
}

#[test]
fn edited_directory_records() {
    if native() {
        return;
    }
    let (store, path) = one_file(5000);
    let record = path.parent().unwrap().join(".hyokfs.dir");
    let good = fs::read_link(&record).unwrap().to_str().unwrap().to_owned();
    let middle = good.len() / 2;
    let other = if good.as_bytes()[middle] == b'A' { "B" } else { "A" };
    let flipped = format!("{}{other}{}", &good[..middle], &good[middle + 1..]);
    for bad in [Some(flipped.as_str()), Some("x"), Some(&good[..middle]), None] {
        fs::remove_file(&record).unwrap();
        if let Some(bad) = bad {
            symlink(bad, &record).unwrap();
        }
        let mount = store.mount();
        let got = fs::read(mount.at("d/f"));
        assert!(got.is_err(), "served with the directory record {bad:?}");
        mount.umount();
        if bad.is_none() {
            symlink("placeholder", &record).unwrap();
        }
    }
    fs::remove_file(&record).unwrap();
    symlink(&good, &record).unwrap();
    let mount = store.mount();
    assert_bytes(&read(&mount.at("d/f")), &noise(1, 5000), "with the record back");
    mount.umount();
}

#[test]
fn symlinks_planted_in_the_store_are_not_followed() {
    if native() {
        return;
    }
    let (store, path) = one_file(5000);
    let outside = store.world.path().join("outside");
    fs::rename(&path, &outside).unwrap();
    symlink(&outside, &path).unwrap();
    let mount = store.mount();
    assert!(fs::read(mount.at("d/f")).is_err(), "followed a symlink out of the store");
    mount.umount();
    let dir = path.parent().unwrap().to_owned();
    let moved = store.world.path().join("moved");
    fs::rename(&dir, &moved).unwrap();
    symlink(&moved, &dir).unwrap();
    let mount = store.mount();
    assert!(fs::read_dir(mount.at("d")).and_then(|mut d| d.next().transpose()).is_err(), "entered a planted link");
    mount.umount();
    assert_eq!(fs::metadata(&outside).unwrap().nlink(), 1);
}

#[test]
fn foreign_files_in_the_store_do_no_harm() {
    if native() {
        return;
    }
    let (store, path) = one_file(5000);
    fs::write(store.path.join("README"), b"left by someone").unwrap();
    fs::write(store.path.join("A".repeat(60)), b"").unwrap();
    fs::create_dir(store.path.join("lost+found")).unwrap();
    fs::write(path.with_file_name("zzz"), noise(3, 100)).unwrap();
    let mount = store.mount();
    assert_eq!(crate::common::names(&mount.path), ["d"], "foreign names are not shown");
    assert_bytes(&read(&mount.at("d/f")), &noise(1, 5000), "beside foreign files");
    mount.umount();
    let verify = store.world.run([OsStr::new("verify"), store.path.as_os_str()]);
    let said = crate::common::both(&verify);
    assert!(said.contains("README"), "verify doesn't name the foreign file: {said}");
}

#[test]
fn an_interrupted_creation_can_be_removed() {
    if native() {
        return;
    }
    let (store, path) = one_file(5000);
    fs::write(&path, b"").unwrap();
    let mount = store.mount();
    assert_eq!(fs::read(mount.at("d/f")).unwrap_err().raw_os_error(), Some(libc::EIO));
    fs::write(mount.at("d/new"), noise(4, 100)).unwrap();
    fs::rename(mount.at("d/new"), mount.at("d/f")).unwrap();
    assert_bytes(&read(&mount.at("d/f")), &noise(4, 100), "renamed over");
    mount.umount();
    fs::write(store.only_ciphertext(), vec![0; 8192]).unwrap();
    let mount = store.mount();
    fs::remove_file(mount.at("d/f")).unwrap();
    fs::remove_dir(mount.at("d")).unwrap();
    mount.umount();
}
