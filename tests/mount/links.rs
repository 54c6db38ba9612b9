//! Hard and symbolic links.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};

use crate::common::{Store, assert_bytes, errno, noise, read};

#[test]
fn hard_links_share_everything() {
    let store = Store::new();
    let mount = store.mount();
    fs::create_dir_all(mount.at("d/e")).unwrap();
    fs::write(mount.at("a"), noise(1, 12_000)).unwrap();
    fs::hard_link(mount.at("a"), mount.at("b")).unwrap();
    // The reply to LINK must carry the plaintext's size.
    assert_eq!(fs::metadata(mount.at("b")).unwrap().len(), 12_000);
    assert_eq!(fs::metadata(mount.at("a")).unwrap().nlink(), 2);
    fs::hard_link(mount.at("a"), mount.at("d/c")).unwrap();
    fs::hard_link(mount.at("d/c"), mount.at("d/e").join("l".repeat(255))).unwrap();
    OpenOptions::new().write(true).open(mount.at("d/c")).unwrap().write_all_at(b"through c", 11_995).unwrap();
    let mut want = noise(1, 12_000);
    want.truncate(11_995);
    want.extend_from_slice(b"through c");
    let check = |path: std::path::PathBuf, links: u64| {
        assert_bytes(&read(&path), &want, "through another name");
        assert_eq!(fs::metadata(&path).unwrap().nlink(), links);
    };
    check(mount.at("a"), 4);
    let mount = mount.remount();
    let inode = fs::metadata(mount.at("a")).unwrap().ino();
    assert_eq!(fs::metadata(mount.at("b")).unwrap().ino(), inode, "one file has one inode number");
    check(mount.at("d/e").join("l".repeat(255)), 4);
    fs::remove_file(mount.at("a")).unwrap();
    fs::remove_file(mount.at("b")).unwrap();
    check(mount.at("d/c"), 2);
    let mount = mount.remount();
    check(mount.at("d/e").join("l".repeat(255)), 2);
    assert_eq!(errno(fs::hard_link(mount.at("d"), mount.at("dirlink"))), libc::EPERM);
    assert_eq!(errno(fs::hard_link(mount.at("d/c"), mount.at("d/e"))), libc::EEXIST);
    mount.umount();
}

#[test]
fn more_links_than_a_header_has_places() {
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("f"), b"many parents").unwrap();
    for n in 0..12 {
        fs::create_dir(mount.at(format!("d{n}"))).unwrap();
        fs::hard_link(mount.at("f"), mount.at(format!("d{n}/link"))).unwrap();
    }
    let mount = mount.remount();
    for n in 0..12 {
        assert_eq!(read(&mount.at(format!("d{n}/link"))), b"many parents");
    }
    for n in 0..12 {
        fs::remove_file(mount.at(format!("d{n}/link"))).unwrap();
    }
    fs::rename(mount.at("f"), mount.at("d3/f")).unwrap();
    let mount = mount.remount();
    assert_eq!(read(&mount.at("d3/f")), b"many parents");
    mount.umount();
}

#[test]
fn symbolic_links() {
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("target"), b"content").unwrap();
    let texts = ["target", "./target", "/absolute/nowhere", "..", "ümlaut", &"p/".repeat(900), &"q".repeat(1000)];
    for (n, text) in texts.iter().enumerate() {
        symlink(text, mount.at(format!("l{n}"))).unwrap();
        assert_eq!(fs::symlink_metadata(mount.at(format!("l{n}"))).unwrap().len(), text.len() as u64, "its size");
    }
    assert_eq!(read(&mount.at("l0")), b"content");
    assert_eq!(errno(symlink("x", mount.at("l0"))), libc::EEXIST);
    symlink("loop2", mount.at("loop1")).unwrap();
    symlink("loop1", mount.at("loop2")).unwrap();
    assert_eq!(errno(fs::read(mount.at("loop1"))), libc::ELOOP);
    let mount = mount.remount();
    for (n, text) in texts.iter().enumerate() {
        let path = mount.at(format!("l{n}"));
        assert_eq!(fs::read_link(&path).unwrap().to_str().unwrap(), *text);
        assert_eq!(fs::symlink_metadata(&path).unwrap().len(), text.len() as u64);
    }
    // Times of the link itself, not of what it names.
    let time = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 },
        last_modification: rustix::fs::Timespec { tv_sec: 1_100_000_000, tv_nsec: 7 },
    };
    rustix::fs::utimensat(rustix::fs::CWD, mount.at("l0"), &time, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_eq!(fs::symlink_metadata(mount.at("l0")).unwrap().mtime(), 1_100_000_000);
    assert_ne!(fs::metadata(mount.at("target")).unwrap().mtime(), 1_100_000_000);
    fs::rename(mount.at("l0"), mount.at("moved")).unwrap();
    fs::create_dir(mount.at("d")).unwrap();
    fs::rename(mount.at("moved"), mount.at("d/moved")).unwrap();
    assert_eq!(fs::read_link(mount.at("d/moved")).unwrap().to_str().unwrap(), "target");
    fs::remove_file(mount.at("d/moved")).unwrap();
    mount.umount();
}

#[test]
fn the_longest_symbolic_links_work_or_are_refused() {
    let store = Store::new();
    let mount = store.mount();
    let mut longest = 0;
    for length in [1023, 1024, 2000, 2900, 3000, 4000, 4095] {
        let text = "z".repeat(length);
        match symlink(&text, mount.at(format!("l{length}"))) {
            Ok(()) => {
                assert_eq!(fs::read_link(mount.at(format!("l{length}"))).unwrap().to_str().unwrap(), text);
                longest = length;
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG), "{length} bytes"),
        }
    }
    assert!(longest >= 2000, "links longer than {longest} bytes are refused");
    mount.umount();
}

#[test]
fn pipes_sockets_and_devices() {
    let store = Store::new();
    let mount = store.mount();
    let make = |name: &str, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, mount.at(name), kind, 0o640.into(), device).unwrap();
    };
    make("pipe", rustix::fs::FileType::Fifo, 0);
    make("device", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    make("plain", rustix::fs::FileType::RegularFile, 0);
    let socket = std::os::unix::net::UnixListener::bind(mount.at("sock")).unwrap();
    std::os::unix::net::UnixStream::connect(mount.at("sock")).unwrap();
    drop(socket);
    let mount = mount.remount();
    let kind = |name: &str| fs::symlink_metadata(mount.at(name)).unwrap().file_type();
    assert!(kind("pipe").is_fifo());
    assert!(kind("sock").is_socket());
    assert!(kind("device").is_char_device());
    assert_eq!(fs::metadata(mount.at("device")).unwrap().rdev(), rustix::fs::makedev(1, 3));
    assert!(kind("plain").is_file());
    fs::write(mount.at("plain"), b"made by mknod").unwrap();
    assert_eq!(read(&mount.at("plain")), b"made by mknod");
    // Bytes really pass through the pipe.
    let path = mount.at("pipe");
    let writer = std::thread::spawn(move || fs::write(path, b"through").unwrap());
    assert_eq!(read(&mount.at("pipe")), b"through");
    writer.join().unwrap();
    for name in ["pipe", "sock", "device", "plain"] {
        fs::remove_file(mount.at(name)).unwrap();
    }
    mount.umount();
}
