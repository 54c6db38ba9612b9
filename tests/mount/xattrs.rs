//! Extended attributes.

#![allow(unsafe_code)]

use std::fs;

use rustix::fs::{XattrFlags, getxattr, lgetxattr, listxattr, removexattr, setxattr};

use crate::common::{Store, assert_bytes, errno, noise};

fn list(path: &std::path::Path) -> Vec<String> {
    let mut buffer = vec![0u8; 65_536];
    let length = listxattr(path, &mut buffer).unwrap();
    let mut names: Vec<_> = buffer[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .filter(|name| name.starts_with("user."))
        .collect();
    names.sort();
    names
}

fn get(path: &std::path::Path, name: &str) -> Result<Vec<u8>, i32> {
    let mut buffer = vec![0u8; 65_536];
    getxattr(path, name, &mut buffer).map(|length| buffer[..length].to_vec()).map_err(|error| error.raw_os_error())
}

/// What getxattr(2) says when it is asked for no bytes.
fn size_alone(path: &std::path::Path, name: &std::ffi::CStr) -> isize {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: two strings that end in NUL, and no buffer.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) }
}

#[test]
fn set_get_list_remove() {
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("f"), b"").unwrap();
    fs::create_dir(mount.at("d")).unwrap();
    for path in [mount.at("f"), mount.at("d")] {
        assert_eq!(list(&path), Vec::<String>::new(), "hyokfs shows no attributes of its own");
        setxattr(&path, "user.empty", b"", XattrFlags::empty()).unwrap();
        setxattr(&path, "user.text", b"value", XattrFlags::CREATE).unwrap();
        setxattr(&path, "user.big", &noise(1, 1500), XattrFlags::empty()).unwrap();
        setxattr(&path, "user.ümlaut", b"1", XattrFlags::empty()).unwrap();
        let again = setxattr(&path, "user.text", b"x", XattrFlags::CREATE).map_err(Into::into);
        assert_eq!(errno(again), libc::EEXIST);
        let missing = setxattr(&path, "user.none", b"x", XattrFlags::REPLACE).map_err(Into::into);
        assert_eq!(errno(missing), libc::ENODATA);
        setxattr(&path, "user.text", b"changed", XattrFlags::REPLACE).unwrap();
    }
    let mount = mount.remount();
    for path in [mount.at("f"), mount.at("d")] {
        assert_eq!(list(&path), ["user.big", "user.empty", "user.text", "user.ümlaut"]);
        assert_eq!(get(&path, "user.text").unwrap(), b"changed");
        assert_eq!(get(&path, "user.empty").unwrap(), b"");
        assert_bytes(&get(&path, "user.big").unwrap(), &noise(1, 1500), "a big value");
        assert_eq!(get(&path, "user.none"), Err(libc::ENODATA));
        let mut small = [0u8; 3];
        let short = getxattr(&path, "user.text", &mut small).map_err(Into::into);
        assert_eq!(errno(short), libc::ERANGE);
        assert_eq!(size_alone(&path, c"user.text"), 7, "the size alone");
        removexattr(&path, "user.text").unwrap();
        assert_eq!(errno(removexattr(&path, "user.text").map_err(Into::into)), libc::ENODATA);
        assert_eq!(list(&path), ["user.big", "user.empty", "user.ümlaut"]);
    }
    mount.umount();
}

#[test]
fn attributes_follow_their_file() {
    let store = Store::new();
    let mount = store.mount();
    fs::create_dir_all(mount.at("a/b")).unwrap();
    fs::write(mount.at("a/f"), noise(1, 5000)).unwrap();
    setxattr(mount.at("a/f"), "user.k", b"v", XattrFlags::empty()).unwrap();
    setxattr(mount.at("a/b"), "user.k", b"w", XattrFlags::empty()).unwrap();
    fs::hard_link(mount.at("a/f"), mount.at("g")).unwrap();
    fs::rename(mount.at("a/f"), mount.at("a/b/f")).unwrap();
    fs::rename(mount.at("a/b"), mount.at("b")).unwrap();
    let mount = mount.remount();
    assert_eq!(get(&mount.at("b/f"), "user.k").unwrap(), b"v");
    assert_eq!(get(&mount.at("g"), "user.k").unwrap(), b"v");
    assert_eq!(get(&mount.at("b"), "user.k").unwrap(), b"w");
    // A new file of the same name starts without.
    fs::remove_file(mount.at("g")).unwrap();
    fs::write(mount.at("g"), b"").unwrap();
    assert_eq!(get(&mount.at("g"), "user.k"), Err(libc::ENODATA));
    mount.umount();
}

#[test]
fn the_other_namespaces_answer_as_errors_or_work() {
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("f"), b"").unwrap();
    std::os::unix::fs::symlink("f", mount.at("l")).unwrap();
    let mut buffer = [0u8; 64];
    for name in ["trusted.x", "security.selinux", "security.capability", "system.posix_acl_access"] {
        let result = lgetxattr(mount.at("f"), name, &mut buffer);
        let error = result.expect_err("nobody set it").raw_os_error();
        assert!([libc::ENODATA, libc::EOPNOTSUPP].contains(&error), "{name}: errno {error}");
    }
    let bad = setxattr(mount.at("f"), "nonsense", b"x", XattrFlags::empty()).expect_err("no namespace").raw_os_error();
    assert!([libc::EOPNOTSUPP, libc::EPERM, libc::EINVAL].contains(&bad), "errno {bad}");
    mount.umount();
}
