//! What interrupted operations leave.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::common::{assert_bytes, names, noise, read};
use crate::fixture::{BIG, Fixture, long};

fn sidecar(path: &std::path::Path) -> PathBuf {
    path.with_file_name(format!("{}.name", path.file_name().unwrap().to_str().unwrap()))
}

#[test]
fn all_of_them_are_listed_and_removed() {
    let fixture = Fixture::new();
    let (root, d, e) = (fixture.store.path.clone(), fixture.at("d"), fixture.at("e"));
    let named = fixture.at(&format!("e/{}", long()));
    // A file, a link and directories under temporary names.
    let file = d.join(".hyokfs.tmp.0123");
    fs::write(&file, noise(1, 5000)).unwrap();
    let link = root.join(".hyokfs.tmp.link");
    symlink("x", &link).unwrap();
    let bare = root.join(".hyokfs.tmp.bare");
    fs::create_dir(&bare).unwrap();
    let made = d.join(".hyokfs.tmp.made");
    fs::create_dir(&made).unwrap();
    symlink("hyokfs1.x", made.join(".hyokfs.dir")).unwrap();
    // A long name whose file never came.
    let orphan = e.join(format!("={}.name", "A".repeat(43)));
    symlink("B".repeat(300), &orphan).unwrap();
    // Creations that were cut short: empty, zeros in the first page, and one with a long name.
    let empty = fixture.at("empty");
    fs::write(&empty, b"").unwrap();
    let zeros = fixture.at("d/inner/deep");
    fs::write(&zeros, vec![0; 8192 + 77]).unwrap();
    fs::write(&named, b"").unwrap();
    let all = [&file, &link, &bare, &made, &orphan, &empty, &zeros, &named].map(|path| (path.as_path(), "leftover"));
    fixture.finds(&all);
    let report = fixture.mends(&[], &all);
    assert_eq!(report["actions"].as_array().unwrap().len(), 8, "{report:#}");
    assert!(!sidecar(&named).exists() && fs::symlink_metadata(sidecar(&named)).is_err());
    assert_eq!(fixture.set_aside().len(), 0);
    let mount = fixture.store.mount();
    assert_eq!(names(&mount.path), ["big", "d", "e", "pipe", "sparse"]);
    assert_eq!(names(&mount.at("e")), ["other", "twin"]);
    assert_bytes(&read(&mount.at("big")), &noise(1, BIG), "all else is as it was");
    mount.umount();
}

#[test]
fn a_temporary_directory_that_holds_something_is_not_removed() {
    let fixture = Fixture::new();
    let temp = fixture.store.path.join(".hyokfs.tmp.full");
    fs::rename(fixture.at("d"), &temp).unwrap();
    fixture.finds(&[(&temp, "foreign")]);
    fixture.mends(&[], &[(&temp, "foreign")]);
    let aside = fixture.set_aside();
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read_dir(&aside[0]).unwrap().count(), 4, "small, link, inner, the record");
}
