//! Volumes without damage, and those that must not be touched.

use std::ffi::OsStr;
use std::fs;

use crate::common::{Store, noise};
use crate::fixture::{BIG, Fixture, flip, long, verify};

#[test]
fn one_of_everything_is_clean_in_every_kind_of_volume() {
    for init in [
        &[][..],
        &["--granularity", "volume", "--cipher", "chacha20-poly1305"],
        &["--names", "plain", "--cipher", "aes-256-gcm"],
        &["--granularity", "directory"],
    ] {
        let fixture = Fixture::with(init);
        let report = fixture.verify(&[]);
        assert_eq!(report["findings"].as_array().unwrap().len(), 0, "{init:?}: {report:#}");
        assert_eq!(report["clean"], true);
        // big, empty, small, its second name, deep, other, the long one, sparse
        assert_eq!(report["files"], 8, "{report:#}");
        assert_eq!(report["directories"], 4);
        assert_eq!((&report["links"], &report["special"], &report["attributes"]), (&1.into(), &1.into(), &2.into()));
        let data = (BIG + 500 + 9000 + 6000 + 100) as u64;
        let bytes = report["bytes"].as_u64().unwrap();
        // Of the sparse file only the pages that are there count, rounded to pages.
        assert!(bytes > data + 5000 && bytes < data + 5000 + 4 * 4096, "{bytes} bytes instead of {data} and some");
        // And it is seen that it would not be, were it not.
        flip(&fixture.at("d/inner/deep"), 5000);
        let findings = fixture.finds(&[(&fixture.at("d/inner/deep"), "pages")]);
        assert!(findings[0].get("name").is_none(), "names are secret: {findings:?}");
        let shown = fixture.verify(&["--show-names"]);
        assert_eq!(shown["findings"][0]["name"], "/d/inner/deep", "{shown:#}");
    }
}

#[test]
fn thousands_of_files() {
    let store = Store::new();
    let mount = store.mount();
    let mut bytes = 0;
    for dir in 0..30 {
        let path = mount.at(format!("directory {dir}"));
        fs::create_dir(&path).unwrap();
        for file in 0..100 {
            let length = (dir * 331 + file * 977) % 20_000;
            bytes += length as u64;
            fs::write(path.join(format!("file {file}")), noise(file as u64, length)).unwrap();
        }
    }
    mount.umount();
    let report = verify(&store, &[]);
    assert_eq!(report["findings"].as_array().unwrap().len(), 0, "{report:#}");
    assert_eq!(report["files"], 3000);
    assert_eq!(report["directories"], 31);
    assert_eq!(report["bytes"], bytes);
    assert!(report["seconds"].as_f64().unwrap() > 0.0 && report["megabytes_per_second"].as_f64().unwrap() > 0.0);
    let repaired = verify(&store, &["--repair"]);
    assert_eq!(repaired["actions"].as_array().unwrap().len(), 0, "a clean volume is not touched");
}

#[test]
fn a_mounted_store_is_refused() {
    let store = Store::new();
    let mount = store.mount();
    fs::write(mount.at("f"), b"x").unwrap();
    for options in [&[][..], &["--repair"]] {
        let mut args = vec![OsStr::new("verify")];
        args.extend(options.iter().map(OsStr::new));
        args.push(store.path.as_os_str());
        let said = store.world.fails(args);
        assert!(said.contains("in use") && said.contains(mount.path.to_str().unwrap()), "{said}");
    }
    mount.umount();
    assert_eq!(verify(&store, &[])["clean"], true);
}

#[test]
fn without_the_key_nothing_is_said_and_nothing_done() {
    let fixture = Fixture::new();
    let leftover = fixture.store.path.join(".hyokfs.tmp.1");
    fs::write(&leftover, b"").unwrap();
    fixture.store.disable_key();
    let said =
        fixture.store.world.fails([OsStr::new("verify"), OsStr::new("--repair"), fixture.store.path.as_os_str()]);
    assert!(said.contains("disabled"), "{said}");
    assert!(leftover.exists());
    fixture.store.enable_key();
    fixture.mends(&[], &[(&leftover, "leftover")]);
}

#[test]
fn the_text_for_people_names_what_json_names() {
    let fixture = Fixture::new();
    let path = fixture.at("big");
    flip(&path, 3 * 4096 + 100);
    let said = fixture.store.world.fails([OsStr::new("verify"), fixture.store.path.as_os_str()]);
    let shown = fixture.shown(&path);
    for part in [shown.as_str(), "page 3 of 10 lost, the rest readable", "bytes 11128..15184", "not clean: 1 damaged"] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
    assert!(!said.contains("big") && !said.contains(&long()), "names are secret:\n{said}");
}

#[test]
fn another_volume_than_the_known_one_is_refused() {
    let store = Store::new();
    store.mount().umount();
    let said = store.world.fails([
        OsStr::new("verify"),
        OsStr::new("--fingerprint"),
        OsStr::new("0000-0000-0000-0000-0000"),
        store.path.as_os_str(),
    ]);
    assert!(said.contains("fingerprint") || said.contains("0000-0000"), "{said}");
}

/// A bind mount that goes away.
struct ReadOnly(std::path::PathBuf);

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_read_only_snapshot_can_be_verified_but_not_repaired() {
    let fixture = Fixture::new();
    let path = fixture.store.world.path().join("snapshot");
    fixture.store.world.make_dir(&path);
    rustix::mount::mount_bind(&fixture.store.path, &path).unwrap();
    let _gone = ReadOnly(path.clone());
    let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount_remount(&path, flags, "").unwrap();
    let said = fixture.store.world.ok([OsStr::new("verify"), path.as_os_str()]);
    assert!(said.ends_with("clean\n"), "{said}");
    fixture.store.world.fails([OsStr::new("verify"), OsStr::new("--repair"), path.as_os_str()]);
}
