//! A mount's life: begun once, ended by command, signal or umount(8), killed and begun again; what the commands say.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};

use rustix::process::Signal;

use crate::common::{
    Mount, PATIENCE, Store, World, assert_bytes, errno, mounted, names, native, noise, read, umount_path, wait_for,
    wait_until,
};

fn status(mount: &Mount<'_>) -> serde_json::Value {
    let text = mount.store.world.ok([OsStr::new("status"), OsStr::new("--json"), mount.path.as_os_str()]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    // One mount asked for: its object, alone or in a list of one.
    match value {
        serde_json::Value::Array(mut list) if list.len() == 1 => list.remove(0),
        other => other,
    }
}

#[test]
fn a_second_mount_is_refused() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("f"), b"first").unwrap();
    let other = store.world.path().join("other");
    fs::create_dir(&other).unwrap();
    let Err(said) = store.try_mount(&[], &other) else { panic!("one store was mounted twice") };
    assert!(said.contains("mounted") || said.contains("lock") || said.contains("use"), "unclear: {said}");
    assert_eq!(mounted(&other), None);
    assert_eq!(read(&mount.at("f")), b"first", "the first mount goes on");
    let Err(_) = store.try_mount(&[], &mount.path) else { panic!("one store was mounted over itself") };
    assert_eq!(read(&mount.at("f")), b"first");
    mount.umount();
    store.mount().umount();
}

#[test]
fn sigterm_unmounts_cleanly() {
    if native() {
        return;
    }
    let store = Store::new();
    for signal in [Signal::TERM, Signal::INT] {
        let mut mount = store.mount();
        let mut file = OpenOptions::new().create(true).append(true).open(mount.at("log")).unwrap();
        file.write_all(&noise(1, 10_000)).unwrap();
        fs::write(mount.at("closed"), noise(2, 33_333)).unwrap();
        drop(file);
        mount.signal(signal);
        mount.ended();
    }
    let mount = store.mount();
    assert_bytes(&read(&mount.at("log")), &[noise(1, 10_000), noise(1, 10_000)].concat(), "written before the signal");
    assert_bytes(&read(&mount.at("closed")), &noise(2, 33_333), "closed before the signal");
    mount.umount();
}

#[test]
fn umount_8_loses_nothing() {
    if native() {
        return;
    }
    let store = Store::new();
    let mut mount = store.mount();
    for n in 0..50u64 {
        fs::write(mount.at(format!("f{n}")), noise(n, 1000 + 777 * n as usize)).unwrap();
    }
    umount_path(&mount.path).unwrap();
    mount.ended();
    let mount = store.mount();
    for n in 0..50u64 {
        assert_bytes(&read(&mount.at(format!("f{n}"))), &noise(n, 1000 + 777 * n as usize), "after umount(8)");
    }
    mount.umount();
}

#[test]
fn unmounting_what_is_busy_is_refused_and_harms_nothing() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = store.mount();
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(mount.at("open")).unwrap();
    file.write_all_at(&noise(1, 9000), 0).unwrap();
    let output = store.world.run([OsStr::new("unmount"), mount.path.as_os_str()]);
    let said = crate::common::both(&output);
    assert!(!output.status.success() && said.to_lowercase().contains("busy"), "{}: {said}", output.status);
    assert!(mounted(&mount.path).is_some());
    file.write_all_at(b"still writing", 9000).unwrap();
    let mut got = [0; 13];
    file.read_exact_at(&mut got, 9000).unwrap();
    assert_eq!(&got, b"still writing");
    drop(file);
    let mount = mount.remount();
    assert_eq!(read(&mount.at("open")).len(), 9013);
    mount.umount();
}

#[test]
fn kill_9_and_at_once_again() {
    if native() {
        return;
    }
    let store = Store::new();
    let mut mount = store.mount();
    for round in 0..6u64 {
        let file = File::create(mount.at(format!("synced{round}"))).unwrap();
        file.write_all_at(&noise(round, 50_000 + round as usize), 0).unwrap();
        file.sync_all().unwrap();
        File::open(&mount.path).unwrap().sync_all().unwrap();
        let _ = fs::write(mount.at(format!("loose{round}")), noise(round + 100, 20_000));
        drop(file);
        if round % 2 == 0 {
            // The dead mount still stands where the new one goes.
            mount.kill_and_leave();
        } else {
            mount.kill();
        }
        mount = store.mount();
        for old in 0..=round {
            assert_bytes(
                &read(&mount.at(format!("synced{old}"))),
                &noise(old, 50_000 + old as usize),
                "synced before the kill",
            );
        }
    }
    mount.umount();
}

#[test]
fn in_the_background() {
    if native() {
        return;
    }
    let store = Store::new();
    let path = store.world.path().join("mnt");
    fs::create_dir(&path).unwrap();
    let path_text = path.to_str().unwrap();
    store.world.ok(["mount", "--background", store.path.to_str().unwrap(), path_text]);
    // The command returns only when the mount is usable.
    assert!(mounted(&path).is_some());
    fs::write(path.join("f"), noise(1, 5000)).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&store.world.ok(["status", "--json", path_text])).unwrap();
    let pid = shown.get("pid").or_else(|| shown.get(0)?.get("pid")).and_then(serde_json::Value::as_u64).unwrap();
    store.world.ok(["unmount", path_text]);
    assert_eq!(mounted(&path), None, "the command returns when the mount is gone");
    wait_until("the background daemon ends", PATIENCE, || !std::path::Path::new(&format!("/proc/{pid}/fd")).exists());
    let mount = store.mount();
    assert_bytes(&read(&mount.at("f")), &noise(1, 5000), "written through a background mount");
    mount.umount();
}

/// `mount -t fuse.hyokfs`, as /etc/fstab does it: mount.fuse3 finds `hyokfs` on the search path.
#[test]
fn by_mount_8_as_in_fstab() {
    if native() {
        return;
    }
    let store = Store::new();
    let path = store.world.path().join("mnt");
    fs::create_dir(&path).unwrap();
    // mount(8) runs mount.fuse.hyokfs, mount.fuse3 or mount.fuse: in that order, from /sbin.
    let helper = ["/sbin/mount.fuse3", "/sbin/mount.fuse"].into_iter().find(|h| fs::exists(h).unwrap()).unwrap();
    let bin = store.world.path().join("bin");
    fs::create_dir(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_hyokfs"), bin.join("hyokfs")).unwrap();
    let search = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = store.world.command(helper);
    command.arg(&store.path).arg(&path).args(["-t", "fuse.hyokfs"]);
    command.args(["-o", "rw,noatime,allow_other,nofail,x-systemd.automount,_netdev,poll-interval=2s"]);
    command.env("PATH", search);
    let output = store.world.output(&mut command);
    assert!(output.status.success(), "{}", crate::common::both(&output));
    let kind = wait_for("the mount of mount(8)", PATIENCE, || mounted(&path));
    assert_eq!(kind, "fuse.hyokfs");
    fs::write(path.join("f"), b"by fstab").unwrap();
    store.world.ok(["unmount", path.to_str().unwrap()]);
    let mount = store.mount();
    assert_eq!(read(&mount.at("f")), b"by fstab");
    mount.umount();
}

#[test]
fn read_only() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("f"), b"content").unwrap();
    mount.umount();
    let mount = store.mount_with(&["-o", "ro"]);
    assert_eq!(read(&mount.at("f")), b"content");
    assert_eq!(errno(fs::write(mount.at("g"), b"")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(mount.at("f"))), libc::EROFS);
    mount.umount();
}

#[test]
fn status_tells_the_truth() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = store.mount_with(&["--poll-interval", "2s"]);
    fs::write(mount.at("f"), b"x").unwrap();
    let shown = status(&mount);
    assert_eq!(shown["state"], "unlocked", "{shown}");
    assert_eq!(shown["pid"], mount.pid());
    assert_eq!(shown["mountpoint"], mount.path.to_str().unwrap());
    assert_eq!(shown["store"], store.path.to_str().unwrap());
    assert_eq!(shown["poll_interval"].as_f64(), Some(2.0));
    assert!(shown["key"].as_str().unwrap().starts_with("local"));
    assert_eq!(shown["volume"].as_str().unwrap().len(), 32);
    let text = store.world.ok([OsStr::new("status"), mount.path.as_os_str()]);
    assert!(text.contains("unlocked"), "{text}");
    let path = mount.path.clone();
    mount.umount();
    store.world.fails([OsStr::new("status"), path.as_os_str()]);
}

#[test]
fn exit_codes() {
    if native() {
        return;
    }
    let world = World::new();
    let code = |args: &[&str]| world.run(args).status.code().unwrap();
    assert_eq!(code(&["--help"]), 0);
    assert_eq!(code(&["--version"]), 0);
    for command in ["init", "mount", "unmount", "lock", "unlock", "status", "key", "check", "policy", "verify", "audit"]
    {
        assert_eq!(code(&[command, "--help"]), 0, "{command} --help");
    }
    assert_eq!(code(&["no-such-command"]), 2);
    assert_eq!(code(&["mount", "--no-such-option", "a", "b"]), 2);
    assert_eq!(code(&["init", "--key", "nonsense:key", "store"]), 2, "a bad key name is wrong usage");
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let missing = text(world.path().join("missing"));
    let empty = text(world.path().join("home"));
    let file = text(world.path().join("file"));
    fs::write(&file, b"").unwrap();
    world.fails(["mount", &missing, &empty]);
    world.fails(["mount", &empty, &missing]);
    world.fails(["mount", &empty, &empty]);
    world.fails(["unmount", &empty]);
    world.fails(["status", &empty]);
    world.fails(["lock", &empty]);
    world.fails(["verify", &empty]);
    world.fails(["verify", &missing]);
    world.fails(["check", &empty]);
    world.fails(["init", "--key", &format!("local:{missing}"), &empty]);
    world.fails(["audit", "verify", &missing]);
    // A volume is never made over something else.
    let key = text(world.path().join("customer"));
    world.ok(["key", "create", &key]);
    let full = world.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("data"), b"mine").unwrap();
    world.fails(["init", "--key", &format!("local:{key}"), full.to_str().unwrap()]);
    assert_eq!(names(&full), ["data"]);
    world.fails(["init", "--key", &format!("local:{key}"), &file]);
    let store = text(world.path().join("store"));
    world.ok(["init", "--key", &format!("local:{key}"), &store]);
    world.fails(["init", "--key", &format!("local:{key}"), &store]);
    world.fails(["mount", &store, &file]);
}

#[test]
fn every_cipher_and_option_of_init() {
    if native() {
        return;
    }
    for options in [
        ["--cipher", "aes-256-gcm"],
        ["--cipher", "chacha20-poly1305"],
        ["--granularity", "volume"],
        ["--names", "plain"],
    ] {
        let store = Store::with(World::new(), &options);
        let mount = store.mount();
        fs::create_dir(mount.at("dir")).unwrap();
        fs::write(mount.at("dir/file"), noise(1, 100_000)).unwrap();
        fs::write(mount.at("dir").join("n".repeat(255)), b"long").unwrap();
        fs::rename(mount.at("dir/file"), mount.at("moved")).unwrap();
        let mount = mount.remount();
        assert_bytes(&read(&mount.at("moved")), &noise(1, 100_000), options[1]);
        assert_eq!(read(&mount.at("dir").join("n".repeat(255))), b"long", "{options:?}");
        mount.umount();
        store.world.ok([OsStr::new("verify"), store.path.as_os_str()]);
        let plain = store.path.join("moved").exists();
        assert_eq!(plain, options[1] == "plain", "names in the store with {options:?}");
    }
}

#[test]
fn a_pinned_fingerprint_is_checked() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = store.mount();
    let fingerprint = status(&mount)["fingerprint"].as_str().unwrap().to_owned();
    mount.umount();
    store.mount_with(&["--fingerprint", &fingerprint]).umount();
    let wrong: String = fingerprint.chars().map(|c| if c == '0' { '1' } else { '0' }).collect();
    let path = store.world.path().join("mnt");
    let Err(said) = store.try_mount(&["--fingerprint", &wrong], &path) else { panic!("a wrong fingerprint mounted") };
    assert!(said.to_lowercase().contains("fingerprint"), "unclear: {said}");
}

#[test]
fn a_copy_of_the_store_is_the_volume() {
    if native() {
        return;
    }
    let store = Store::new();
    let mount = store.mount();
    fs::create_dir(mount.at("d")).unwrap();
    fs::write(mount.at("d/f"), noise(1, 70_000)).unwrap();
    fs::hard_link(mount.at("d/f"), mount.at("g")).unwrap();
    mount.umount();
    // As a backup makes it.
    let moved = store.world.path().join("moved");
    fs::rename(&store.path, &moved).unwrap();
    let copied = store.world.command("cp").arg("-a").arg(&moved).arg(&store.path).status().unwrap();
    assert!(copied.success());
    store.world.ok([OsStr::new("verify"), store.path.as_os_str()]);
    let mount = store.mount();
    assert_bytes(&read(&mount.at("d/f")), &noise(1, 70_000), "from a copy of the store");
    assert_bytes(&read(&mount.at("g")), &noise(1, 70_000), "the second name");
    mount.umount();
}
