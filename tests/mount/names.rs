//! Names: every length up to 255 bytes, every byte but `/` and NUL, and those that hyokfs itself uses in the store.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::common::{Store, errno, names, native, read};

#[test]
fn every_length() {
    let store = Store::new();
    let mount = store.mount();
    let lengths: Vec<usize> = (1..=255).filter(|n| *n < 12 || *n > 125 || n % 9 == 0).collect();
    for &length in &lengths {
        fs::write(mount.at("n".repeat(length)), length.to_string()).unwrap();
    }
    assert_eq!(errno(fs::write(mount.at("n".repeat(256)), b"")), libc::ENAMETOOLONG);
    let mount = mount.remount();
    assert_eq!(names(&mount.path).len(), lengths.len());
    for &length in &lengths {
        assert_eq!(read(&mount.at("n".repeat(length))), length.to_string().as_bytes());
    }
    assert_eq!(errno(fs::metadata(mount.at("n".repeat(256)))), libc::ENAMETOOLONG);
    for &length in &lengths {
        fs::remove_file(mount.at("n".repeat(length))).unwrap();
    }
    assert_eq!(names(&mount.path).len(), 0);
    mount.umount();
    if !native() {
        let left: Vec<_> = names(&store.path).into_iter().filter(|n| !n.as_bytes().starts_with(b".")).collect();
        assert_eq!(left, ["hyokfs.toml", "hyokfs.toml.bak"], "removed long names leave something in the store");
    }
}

#[test]
fn every_byte() {
    let store = Store::new();
    let mount = store.mount();
    let mut want = Vec::new();
    for byte in (1..=255u8).filter(|byte| *byte != b'/') {
        let name = OsString::from_vec(vec![b'b', byte, b'e']);
        fs::write(mount.at(&name), [byte]).unwrap();
        want.push(name);
    }
    for text in ["ä ö ü", "名前", "e\u{301}", "\u{e9}", "..x", "...", "-rf", " ", "\\", "new\nline", "a b"] {
        fs::create_dir(mount.at(text)).unwrap();
        want.push(text.into());
    }
    want.sort();
    let mount = mount.remount();
    assert_eq!(names(&mount.path), want, "no name is changed, folded or normalised");
    assert_eq!(read(&mount.at(OsStr::from_bytes(b"b\xffe"))), [0xff]);
    mount.umount();
}

#[test]
fn the_names_that_hyokfs_uses_itself() {
    let store = Store::new();
    let mount = store.mount();
    let reserved = ["hyokfs.toml", ".hyokfs.dir", ".hyokfs.lock", ".hyokfs.tmp", "x.name", "lost+found"];
    for name in reserved {
        fs::write(mount.at(name), name).unwrap();
    }
    fs::create_dir(mount.at("d")).unwrap();
    fs::write(mount.at("d/.hyokfs.dir"), b"mine").unwrap();
    let mount = mount.remount();
    for name in reserved {
        assert_eq!(read(&mount.at(name)), name.as_bytes());
        fs::remove_file(mount.at(name)).unwrap();
    }
    assert_eq!(names(&mount.path), ["d"]);
    let mount = mount.remount();
    assert_eq!(read(&mount.at("d/.hyokfs.dir")), b"mine");
    mount.umount();
}

#[test]
fn the_store_shows_no_name_and_no_content() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = store.mount();
    let secret = "TopSecretProject";
    fs::create_dir(mount.at(secret)).unwrap();
    fs::write(mount.at(format!("{secret}/{secret}.txt")), secret.repeat(2000)).unwrap();
    fs::write(mount.at(format!("{secret}/{}", secret.repeat(15))), secret).unwrap();
    std::os::unix::fs::symlink(format!("/{secret}/target"), mount.at("link")).unwrap();
    let file = fs::File::open(mount.at(format!("{secret}/{secret}.txt"))).unwrap();
    rustix::fs::fsetxattr(&file, "user.note", secret.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
    drop(file);
    mount.umount();

    fn scan(path: &std::path::Path, needle: &[u8], found: &mut Vec<String>) {
        let has = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            let mut parts = vec![entry.file_name().into_vec()];
            if kind.is_symlink() {
                parts.push(fs::read_link(&path).unwrap().into_os_string().into_vec());
            } else if kind.is_file() {
                parts.push(fs::read(&path).unwrap());
            }
            if !kind.is_symlink() {
                let mut list = vec![0u8; 65_536];
                let length = rustix::fs::listxattr(&path, &mut list).unwrap_or(0);
                for name in list[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
                    let mut value = vec![0u8; 65_536];
                    let length = rustix::fs::getxattr(&path, name, &mut value).unwrap();
                    parts.push(value[..length].to_vec());
                }
            }
            if parts.iter().any(|part| has(part)) {
                found.push(path.display().to_string());
            }
            if kind.is_dir() {
                scan(&path, needle, found);
            }
        }
    }
    let mut found = Vec::new();
    scan(&store.path, secret.as_bytes(), &mut found);
    assert_eq!(found, Vec::<String>::new(), "plaintext in the store");
    // The scan itself: it finds what is there.
    fs::write(store.path.join("control"), secret).unwrap();
    scan(&store.path, secret.as_bytes(), &mut found);
    assert_eq!(found.len(), 1, "the scan is blind");
}
