//! The volume record, and those of directories.

use std::fs;
use std::os::unix::fs::symlink;

use crate::common::{assert_bytes, noise, read};
use crate::fixture::{BIG, Fixture, relink, spoilt};

#[test]
fn the_volume_record_and_its_copy_mend_each_other() {
    let fixture = Fixture::new();
    let (main, copy) = (fixture.store.path.join("hyokfs.toml"), fixture.store.path.join("hyokfs.toml.bak"));
    let good = fs::read(&main).unwrap();
    assert_eq!(fs::read(&copy).unwrap(), good, "a new volume has a copy");
    let text = String::from_utf8(good.clone()).unwrap();
    let forged = text.replace("max-lease-ms = 3600000", "max-lease-ms = 9600000");
    assert_ne!(forged, text);
    for path in [&main, &copy] {
        for bad in [Some(forged.as_bytes()), Some(b"nonsense"), Some(&good[..good.len() / 2]), Some(b""), None] {
            match bad {
                Some(bad) => fs::write(path, bad).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
            fixture.finds(&[(path, "volume-record")]);
            fixture.mends(&[], &[(path, "volume-record")]);
            assert_eq!(fs::read(path).unwrap(), good, "restored to the byte");
        }
    }
    let mount = fixture.store.mount();
    assert_bytes(&read(&mount.at("big")), &noise(1, BIG), "with the record back");
    mount.umount();
}

#[test]
fn a_directory_without_its_record() {
    let fixture = Fixture::new();
    let dir = fixture.at("d/inner");
    let record = dir.join(".hyokfs.dir");
    let good = fs::read_link(&record).unwrap();
    let want = [(dir.as_path(), "directory-record")];
    relink(&record, spoilt);
    fixture.finds(&want);
    fs::remove_file(&record).unwrap();
    fs::write(&record, b"a file").unwrap();
    fixture.finds(&want);
    fs::remove_file(&record).unwrap();
    fixture.finds(&want);
    // Put back by hand it is as if nothing had been.
    symlink(&good, &record).unwrap();
    fixture.finds(&[]);
    fs::remove_file(&record).unwrap();
    fixture.mends(&[], &want);
    let aside = fixture.set_aside();
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read_dir(&aside[0]).unwrap().count(), 1, "the file in it went with it");
}

#[test]
fn a_record_of_another_directory() {
    let fixture = Fixture::new();
    let dir = fixture.at("d/inner");
    let theirs = fs::read_link(fixture.at("e").join(".hyokfs.dir")).unwrap();
    fs::remove_file(dir.join(".hyokfs.dir")).unwrap();
    symlink(theirs, dir.join(".hyokfs.dir")).unwrap();
    // Allowed to stand in the root alone; and the file in it belongs to another directory than it says it is.
    fixture.finds(&[(&dir, "moved"), (&fixture.at("d/inner/deep"), "moved")]);
}

/// The root's id comes from the volume secret: it has no record, and one that was put there says nothing.
#[test]
fn the_root_needs_no_record() {
    let fixture = Fixture::new();
    let record = fixture.store.path.join(".hyokfs.dir");
    assert!(fs::symlink_metadata(&record).is_err());
    symlink(fs::read_link(fixture.at("e").join(".hyokfs.dir")).unwrap(), &record).unwrap();
    fixture.finds(&[]);
    let mount = fixture.store.mount();
    assert_bytes(&read(&mount.at("big")), &noise(1, BIG), "beside a foreign record");
    mount.umount();
}

#[test]
fn a_copy_that_is_behind_is_brought_up() {
    use std::sync::Arc;

    use hyokfs::provider::KeySettings;
    use hyokfs::provider::observed::Unobserved;
    use hyokfs::store::Store;
    use hyokfs::supervisor::volume::{read_record, unlock};

    let fixture = Fixture::new();
    let (main, copy) = (fixture.store.path.join("hyokfs.toml"), fixture.store.path.join("hyokfs.toml.bak"));
    let store = Store::open(&fixture.store.path).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let record = read_record(&store).unwrap();
    let unlocked = runtime.block_on(unlock(record, &KeySettings::default(), Arc::new(Unobserved))).unwrap();
    let mut record = unlocked.volume.record;
    record.generation += 1;
    record.sign(&unlocked.volume.keys).unwrap();
    let newer = record.to_toml().unwrap();
    let older = fs::read(&main).unwrap();
    fs::write(&main, &newer).unwrap();
    let findings = fixture.finds(&[(&copy, "volume-record")]);
    assert!(findings[0]["what"].as_str().unwrap().contains("generation 1, the other is 2"), "{findings:?}");
    fixture.mends(&[], &[(&copy, "volume-record")]);
    assert_eq!(fs::read_to_string(&copy).unwrap(), newer);
    // The other way round.
    fs::write(&main, &older).unwrap();
    fixture.mends(&[], &[(&main, "volume-record")]);
    assert_eq!(fs::read_to_string(&main).unwrap(), newer);
}

#[test]
fn a_directory_gets_its_record_back_if_that_is_asked_for() {
    let fixture = Fixture::new();
    let (d, inner) = (fixture.at("d"), fixture.at("d/inner"));
    let records = [d.join(".hyokfs.dir"), inner.join(".hyokfs.dir")];
    let good = records.each_ref().map(|record| fs::read_link(record).unwrap());
    records.iter().for_each(|record| fs::remove_file(record).unwrap());
    let want = [(d.as_path(), "directory-record"), (inner.as_path(), "directory-record")];
    fixture.finds(&want);
    fixture.mends(&["--rebuild-directories"], &want);
    assert_eq!(records.each_ref().map(|record| fs::read_link(record).unwrap()), good);
    assert_eq!(fixture.set_aside().len(), 0);
    let mount = fixture.store.mount();
    assert_bytes(&read(&mount.at("d/inner/deep")), &noise(3, 9000), "with the records back");
    mount.umount();
}

#[test]
fn a_record_is_not_rebuilt_from_what_proves_nothing() {
    let fixture = Fixture::new();
    let inner = fixture.at("d/inner");
    fs::remove_file(inner.join(".hyokfs.dir")).unwrap();
    // Its only file names the directory, but its name is gone.
    fs::rename(fixture.at("d/inner/deep"), inner.join("A".repeat(40))).unwrap();
    let report = fixture.verify(&["--repair", "--rebuild-directories"]);
    let said = report["actions"][0]["error"].as_str().unwrap_or_else(|| panic!("{report:#}"));
    assert!(said.contains("restore its record"), "{said}");
    assert_eq!(report["clean"], true, "then it goes aside: {report:#}");
    assert_eq!(fixture.set_aside().len(), 1);
    fixture.finds(&[]);
}
