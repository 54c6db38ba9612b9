//! Modes, owners, times, and what a write takes away.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::common::{Store, errno, native};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn set_times(path: &Path, access: (i64, u32), change: (i64, u32)) {
    let stamp = |(tv_sec, nanos): (i64, u32)| Timespec { tv_sec, tv_nsec: nanos.into() };
    let times = Timestamps { last_access: stamp(access), last_modification: stamp(change) };
    utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
}

#[test]
fn modes_and_owners_are_kept() {
    let store = Store::new();
    let mount = store.mount_with(&["-o", "allow_other"]);
    let modes = [0o000, 0o400, 0o600, 0o644, 0o755, 0o777, 0o4755, 0o2755, 0o1777, 0o6711];
    for mode in modes {
        let (file, dir) = (mount.at(format!("f{mode:o}")), mount.at(format!("d{mode:o}")));
        fs::write(&file, b"x").unwrap();
        fs::create_dir(&dir).unwrap();
        chown(&file, Some(1234), Some(4321)).unwrap();
        chown(&dir, Some(65_534), None).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mount = mount.remount();
    for want in modes {
        let (file, dir) = (mount.at(format!("f{want:o}")), mount.at(format!("d{want:o}")));
        assert_eq!((mode(&file), mode(&dir)), (want, want), "modes after a remount");
        let (file, dir) = (fs::metadata(file).unwrap(), fs::metadata(dir).unwrap());
        assert_eq!((file.uid(), file.gid(), dir.uid(), dir.gid()), (1234, 4321, 65_534, 0));
        assert_eq!(file.len(), 1);
    }
    mount.umount();
}

#[test]
fn the_umask_and_the_mode_of_creation() {
    let store = Store::new();
    let mount = store.mount();
    let script = "umask 027; cd \"$1\" && : > f && mkdir d && mkfifo p && umask 0 && : > all && mkdir dall";
    let status = store.world.command("sh").args(["-c", script, "sh"]).arg(&mount.path).status().unwrap();
    assert!(status.success());
    let made = ["f", "d", "p", "all", "dall"].map(|name| mode(&mount.at(name)));
    assert_eq!(made, [0o640, 0o750, 0o640, 0o666, 0o777]);
    // Every bit counts: 0151 must not become 0751.
    fs::DirBuilder::new().mode(0o151).create(mount.at("odd")).unwrap();
    assert_eq!(mode(&mount.at("odd")), 0o151);
    // A file may be made that its maker can't open again.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o000).open(mount.at("none")).unwrap();
    file.write_all_at(b"written", 0).unwrap();
    assert_eq!(mode(&mount.at("none")), 0);
    drop(file);
    mount.umount();
}

#[test]
fn a_directory_passes_its_group_on() {
    let store = Store::new();
    let mount = store.mount();
    fs::create_dir(mount.at("d")).unwrap();
    chown(mount.at("d"), None, Some(4321)).unwrap();
    fs::set_permissions(mount.at("d"), fs::Permissions::from_mode(0o2775)).unwrap();
    fs::write(mount.at("d/f"), b"").unwrap();
    fs::create_dir(mount.at("d/sub")).unwrap();
    std::os::unix::fs::symlink("x", mount.at("d/l")).unwrap();
    for name in ["d/f", "d/sub", "d/l"] {
        assert_eq!(fs::symlink_metadata(mount.at(name)).unwrap().gid(), 4321, "{name}");
    }
    assert_eq!(mode(&mount.at("d/sub")) & 0o2000, 0o2000, "a subdirectory inherits the bit");
    assert_eq!(mode(&mount.at("d/f")) & 0o2000, 0);
    mount.umount();
}

#[test]
fn writing_takes_suid_away() {
    let store = Store::new();
    let mount = store.mount_with(&["-o", "allow_other"]);
    fs::set_permissions(&mount.path, fs::Permissions::from_mode(0o777)).unwrap();
    // Root keeps the bits when it writes; an ordinary user doesn't.
    let as_user = |script: &str, path: &Path| {
        let arguments = ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script, "sh"];
        let status = store.world.command("setpriv").args(arguments).arg(path).status().unwrap();
        assert!(status.success(), "{script}");
    };
    for (name, script) in [("write", "echo x >> \"$1\""), ("truncate", "truncate -s 1 \"$1\""), ("open", ": > \"$1\"")]
    {
        let path = mount.at(name);
        fs::write(&path, b"program").unwrap();
        chown(&path, Some(65_534), Some(65_534)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        as_user(script, &path);
        assert_eq!(mode(&path), 0o777, "{name} by an ordinary user");
    }
    let path = mount.at("chown");
    fs::write(&path, b"program").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
    chown(&path, Some(1234), Some(1234)).unwrap();
    assert_eq!(mode(&path), 0o755, "chown, even by root");
    let mount = mount.remount();
    assert_eq!(mode(&mount.at("write")), 0o777);
    mount.umount();
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    let store = Store::new();
    let mount = store.mount();
    type Stamp = (i64, u32);
    let cases: [(&str, Stamp, Stamp); 5] = [
        ("plain", (1_500_000_000, 123_456_789), (1_600_000_000, 987_654_321)),
        ("old", (1, 1), (0, 0)),
        ("before-1970", (-1_000, 500_000_000), (-2, 999_999_999)),
        ("after-2038", (4_000_000_000, 1), (5_000_000_000, 2)),
        ("now", (1_796_000_000, 0), (1_796_000_000, 999_999_999)),
    ];
    for (name, access, change) in cases {
        fs::write(mount.at(name), b"content").unwrap();
        set_times(&mount.at(name), access, change);
        fs::create_dir(mount.at(format!("{name}.d"))).unwrap();
        set_times(&mount.at(format!("{name}.d")), access, change);
    }
    let mount = mount.remount();
    for (name, access, change) in cases {
        for path in [mount.at(name), mount.at(format!("{name}.d"))] {
            let meta = fs::metadata(&path).unwrap();
            let got = ((meta.atime(), meta.atime_nsec() as u32), (meta.mtime(), meta.mtime_nsec() as u32));
            assert_eq!(got, (access, change), "{} after a remount", path.display());
        }
    }
    mount.umount();
}

#[test]
fn the_time_of_a_write_survives_unmounting() {
    let store = Store::new();
    let mount = store.mount();
    let path = mount.at("f");
    fs::write(&path, b"one").unwrap();
    set_times(&path, (1_000, 0), (1_000, 0));
    OpenOptions::new()
        .append(true)
        .open(&path)
        .map(|mut f| std::io::Write::write_all(&mut f, b"two"))
        .unwrap()
        .unwrap();
    let written = fs::metadata(&path).unwrap();
    assert!(written.mtime() > 1_000_000_000, "a write moves mtime");
    let mount = mount.remount();
    let kept = fs::metadata(mount.at("f")).unwrap();
    assert_eq!((kept.mtime(), kept.mtime_nsec()), (written.mtime(), written.mtime_nsec()));
    // A read moves nothing but atime; a chmod moves ctime only.
    fs::read(mount.at("f")).unwrap();
    let before = fs::metadata(mount.at("f")).unwrap();
    fs::set_permissions(mount.at("f"), fs::Permissions::from_mode(0o600)).unwrap();
    let after = fs::metadata(mount.at("f")).unwrap();
    assert_eq!((after.mtime(), after.mtime_nsec()), (written.mtime(), written.mtime_nsec()));
    assert!((after.ctime(), after.ctime_nsec()) >= (before.ctime(), before.ctime_nsec()));
    mount.umount();
}

#[test]
fn a_directorys_mtime_moves_with_its_names() {
    let store = Store::new();
    let mount = store.mount();
    let dir = mount.at("d");
    fs::create_dir(&dir).unwrap();
    fs::write(mount.at("outside"), b"").unwrap();
    let moves = |what: &str, act: &dyn Fn()| {
        set_times(&dir, (1_000, 0), (1_000, 0));
        act();
        assert!(fs::metadata(&dir).unwrap().mtime() > 1_000_000_000, "{what} moves the directory's mtime");
    };
    moves("create", &|| fs::write(dir.join("f"), b"").unwrap());
    moves("mkdir", &|| fs::create_dir(dir.join("s")).unwrap());
    moves("link", &|| fs::hard_link(dir.join("f"), dir.join("g")).unwrap());
    moves("symlink", &|| std::os::unix::fs::symlink("x", dir.join("l")).unwrap());
    moves("rename", &|| fs::rename(dir.join("f"), dir.join("h")).unwrap());
    moves("rename away", &|| fs::rename(dir.join("h"), mount.at("h")).unwrap());
    moves("rename in", &|| fs::rename(mount.at("h"), dir.join("h")).unwrap());
    moves("unlink", &|| fs::remove_file(dir.join("h")).unwrap());
    moves("rmdir", &|| fs::remove_dir(dir.join("s")).unwrap());
    mount.umount();
}

#[test]
fn access_is_checked_for_others() {
    let store = Store::new();
    let mount = store.mount_with(&["-o", "allow_other"]);
    fs::set_permissions(&mount.path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(mount.at("private"), b"secret").unwrap();
    fs::set_permissions(mount.at("private"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(mount.at("public"), b"open").unwrap();
    fs::set_permissions(mount.at("public"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::create_dir(mount.at("sticky")).unwrap();
    fs::set_permissions(mount.at("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(mount.at("sticky/roots"), b"").unwrap();
    let code = |script: &str| {
        let arguments = ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script];
        let output = store.world.command("setpriv").args(arguments).current_dir(&mount.path).output().unwrap();
        output.status.success()
    };
    assert!(code("cat public"));
    assert!(!code("cat private"), "mode 0600 is root's");
    assert!(!code(": > new"), "the root directory is not writable by others");
    assert!(code(": > sticky/mine && rm sticky/mine"));
    assert!(!code("rm -f sticky/roots"), "the sticky bit");
    assert!(!code("chmod 777 public"));
    mount.umount();
}

#[test]
fn without_allow_other_only_the_owner_enters() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("f"), b"x").unwrap();
    let arguments = ["--reuid=65534", "--regid=65534", "--clear-groups", "cat"];
    let output = store.world.command("setpriv").args(arguments).arg(mount.at("f")).output().unwrap();
    assert!(!output.status.success(), "another user read a mount without allow_other");
    assert_eq!(errno(File::open(mount.at("g"))), libc::ENOENT);
    mount.umount();
}
