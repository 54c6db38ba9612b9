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

#[test]
fn an_empty_directory_that_a_rename_was_to_replace() {
    let fixture = Fixture::new();
    let mount = fixture.store.mount();
    fs::create_dir_all(mount.at("d/new")).unwrap();
    fs::create_dir(mount.at("e/old")).unwrap();
    mount.umount();
    let fresh = |dir: &str, known: &[&str]| {
        let dir = fixture.at(dir);
        let known: Vec<_> = known.iter().map(|name| fixture.at(name)).collect();
        let mut paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        paths.find(|path| path.is_dir() && !known.contains(path)).unwrap()
    };
    let (new, old) = (fresh("d", &["d/inner"]), fresh("e", &[]));
    // What `rename("d/new", "e/old")` does before the last step, the moved one's record apart.
    let between = fixture.store.world.path().join("between");
    fs::rename(&old, &between).unwrap();
    fs::rename(&new, &old).unwrap();
    fs::rename(&between, &new).unwrap();
    let want = [(new.as_path(), "leftover"), (old.as_path(), "leftover")];
    fixture.finds(&want);
    fixture.mends(&[], &want);
}

#[test]
fn a_killed_mount_is_not_taken_for_damaged() {
    let fixture = Fixture::new();
    let mount = fixture.store.mount();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let running = || !stop.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (mount, running) = (&mount, &running);
            scope.spawn(move || {
                // All of it fails once the daemon is gone.
                for round in 0_usize.. {
                    let dir = mount.at(format!("{thread}-{round}"));
                    if !running() || fs::create_dir(&dir).is_err() {
                        break;
                    }
                    let _ = fs::write(dir.join("file"), noise(round as u64, 3000 * (round % 20)));
                    let _ = fs::write(dir.join(long()), b"text");
                    let _ = fs::rename(dir.join("file"), mount.at(format!("moved {thread}-{round}")));
                    let _ = fs::rename(&dir, mount.at(format!("d/{thread}-{round}")));
                    if round % 3 == 0 {
                        let _ = fs::remove_dir_all(mount.at(format!("d/{thread}-{round}")));
                    }
                }
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(700));
        mount.signal(rustix::process::Signal::KILL);
        std::thread::sleep(std::time::Duration::from_millis(100));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    mount.kill();
    let report = fixture.verify(&["--repair"]);
    assert!(report["files"].as_u64().unwrap() > 30, "nothing was going on: {report:#}");
    for finding in report["findings"].as_array().unwrap() {
        assert_eq!(finding["kind"], "leftover", "{report:#}");
    }
    assert_eq!(report["clean"], true, "{report:#}");
    fixture.finds(&[]);
}
