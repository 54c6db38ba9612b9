//! Names, and things that stand where they do not belong.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::common::{assert_bytes, names, noise, read};
use crate::fixture::{Fixture, long, relink, spoilt};

fn sidecar(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}.name", path.file_name().unwrap().to_str().unwrap()))
}

fn renamed(path: &Path) -> PathBuf {
    let name = spoilt(path.file_name().unwrap().to_str().unwrap().as_bytes().to_vec());
    let to = path.with_file_name(String::from_utf8(name).unwrap());
    fs::rename(path, &to).unwrap();
    to
}

#[test]
fn altered_names() {
    let fixture = Fixture::new();
    // The deepest first: their directories' names change too.
    let deep = renamed(&fixture.at("d/inner/deep"));
    let link = renamed(&fixture.at("d/link"));
    let inner_old = fixture.at("d/inner");
    let inner = renamed(&inner_old);
    let deep = inner.join(deep.file_name().unwrap());
    let pipe = renamed(&fixture.at("pipe"));
    let all = [&deep, &link, &inner, &pipe].map(|path| (path.as_path(), "name"));
    let findings = fixture.finds(&all);
    assert!(findings.iter().all(|finding| finding["what"].as_str().unwrap().contains("does not authenticate")));
    fixture.mends(&[], &all);
    assert_eq!(fixture.set_aside().len(), 3, "the file went aside with its directory");
}

#[test]
fn long_names() {
    for damage in 0..3 {
        let fixture = Fixture::new();
        let path = fixture.at(&format!("e/{}", long()));
        match damage {
            0 => fs::remove_file(sidecar(&path)).unwrap(),
            1 => relink(&sidecar(&path), spoilt),
            _ => {
                fs::remove_file(sidecar(&path)).unwrap();
                fs::write(sidecar(&path), b"no link").unwrap();
            }
        }
        let findings = fixture.finds(&[(&path, "name")]);
        assert!(findings[0]["what"].as_str().unwrap().contains("long name"), "{findings:?}");
        fixture.mends(&[], &[(&path, "name")]);
        let mount = fixture.store.mount();
        assert_eq!(names(&mount.at("e")), ["other", "twin"]);
        mount.umount();
    }
}

#[test]
fn files_that_changed_directories_go_home() {
    let fixture = Fixture::new();
    let (deep, other, named) =
        (fixture.at("d/inner/deep"), fixture.at("e/other"), fixture.at(&format!("e/{}", long())));
    let (inner, e) = (fixture.at("d/inner"), fixture.at("e"));
    let into = |dir: &Path, path: &Path| {
        let to = dir.join(path.file_name().unwrap());
        fs::rename(path, &to).unwrap();
        to
    };
    let moved = [into(&e, &deep), into(&inner, &other), into(&inner, &named)];
    // The long name's symlink stays behind, and would pass for a leftover.
    let left = sidecar(&named);
    let want = [(&*moved[0], "moved"), (&*moved[1], "moved"), (&*moved[2], "moved"), (left.as_path(), "leftover")];
    fixture.finds(&want);
    fixture.mends(&[], &want);
    assert!(deep.exists() && other.exists() && named.exists());
    let mount = fixture.store.mount();
    assert_bytes(&read(&mount.at("d/inner/deep")), &noise(3, 9000), "home again");
    assert_bytes(&read(&mount.at("e/other")), &noise(4, 6000), "home again");
    assert_bytes(&read(&mount.at("e").join(long())), &noise(5, 100), "home again, with its name");
    mount.umount();
}

#[test]
fn contents_that_changed_directories_go_aside() {
    let fixture = Fixture::new();
    let (deep, other) = (fixture.at("d/inner/deep"), fixture.at("e/other"));
    let between = fixture.store.world.path().join("between");
    fs::rename(&deep, &between).unwrap();
    fs::rename(&other, &deep).unwrap();
    fs::rename(&between, &other).unwrap();
    // Each carries the name of the other: nobody can tell what it was called.
    let want = [(deep.as_path(), "moved"), (other.as_path(), "moved")];
    fixture.finds(&want);
    fixture.mends(&[], &want);
    assert_eq!(fixture.set_aside().len(), 2);
}

#[test]
fn a_directory_that_was_moved_goes_home_with_what_is_in_it() {
    let fixture = Fixture::new();
    let inner = fixture.at("d/inner");
    let to = fixture.at("e").join(inner.file_name().unwrap());
    fs::rename(&inner, &to).unwrap();
    let rubbish = to.join(".hyokfs.tmp.x");
    fs::write(&rubbish, b"").unwrap();
    let want = [(to.as_path(), "moved"), (rubbish.as_path(), "leftover")];
    fixture.finds(&want);
    fixture.mends(&[], &want);
    let mount = fixture.store.mount();
    assert_bytes(&read(&mount.at("d/inner/deep")), &noise(3, 9000), "home again");
    mount.umount();
}

#[test]
fn foreign_things() {
    let fixture = Fixture::new();
    let root = fixture.store.path.clone();
    let readme = root.join("README");
    fs::write(&readme, b"left by someone").unwrap();
    let blank = fixture.at("d").join("A".repeat(60));
    fs::write(&blank, b"").unwrap();
    let dir = fixture.at("e").join("backup");
    fs::create_dir_all(dir.join("inside")).unwrap();
    let link = root.join("latest");
    symlink("README", &link).unwrap();
    // These are the filesystem's own.
    fs::create_dir(root.join("lost+found")).unwrap();
    fs::write(fixture.at("d").join(".nfs000123"), b"").unwrap();
    let want = [&readme, &blank, &dir, &link].map(|path| (path.as_path(), "foreign"));
    fixture.finds(&want);
    let report = fixture.mends(&[], &want);
    assert_eq!(report["set_aside"], 4);
    assert!(fixture.set_aside().iter().any(|path| fs::read(path).is_ok_and(|text| text == b"left by someone")));
}
