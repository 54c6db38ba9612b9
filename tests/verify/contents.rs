//! Damage inside files, links and attributes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::{assert_bytes, noise, read};
use crate::fixture::{BIG, CAP, FIRST, Fixture, PAGE, flip, relink, spoilt, zero};

fn run(finding: &Value, at: usize) -> (u64, u64, u64, u64) {
    let lost = &finding["lost"][at];
    let number = |name: &str| lost[name].as_u64().unwrap_or_else(|| panic!("{finding:#}"));
    (number("first_page"), number("last_page"), number("from"), number("to"))
}

#[test]
fn bad_pages_cost_themselves_alone() {
    let fixture = Fixture::new();
    let big = fixture.at("big");
    flip(&big, 3 * PAGE + 5);
    flip(&big, 4 * PAGE + 2000);
    zero(&big, 9);
    let findings = fixture.finds(&[(&big, "pages")]);
    let start = |page: u64| FIRST + (page - 1) * CAP;
    assert_eq!(run(&findings[0], 0), (3, 4, start(3), start(5)));
    assert_eq!(run(&findings[0], 1), (9, 9, start(9), BIG as u64), "the zeroed page below the floor");
    assert_eq!(findings[0]["recoverable"], "pages 3..4, 9 of 10 lost, the rest readable");
    assert_eq!(findings[0]["id"].as_str().unwrap().len(), 32);

    // Without being asked, repair leaves what can still be read where it is, and says so.
    let report = fixture.verify(&["--repair"]);
    assert_eq!((&report["clean"], &report["remaining"]), (&json!(false), &json!(1)));
    assert!(big.exists() && report["actions"].as_array().unwrap().is_empty());
    let mount = fixture.store.mount();
    let file = File::open(mount.at("big")).unwrap();
    let mut part = vec![0; FIRST as usize];
    file.read_exact_at(&mut part, 0).unwrap();
    assert_bytes(&part, &noise(1, BIG)[..FIRST as usize], "the first page");
    drop(file);
    mount.umount();
    fixture.mends(&["--set-aside-damaged"], &[(&big, "pages")]);
    assert_eq!(fixture.set_aside().len(), 1);
    assert!(!big.exists());
}

#[test]
fn a_large_file_is_read_by_many_and_told_once() {
    let fixture = Fixture::new();
    let mount = fixture.store.mount();
    fs::write(mount.at("large"), noise(9, 70 << 20)).unwrap();
    mount.umount();
    let large = fixture.store.ciphertexts().into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let bytes = fixture.verify(&[])["bytes"].as_u64().unwrap();
    assert!(bytes > 70 << 20);
    for page in [0, 4095, 4096, 9000, 18_000] {
        if page > 0 {
            flip(&large, page * PAGE + 50);
        }
    }
    let findings = fixture.finds(&[(&large, "pages")]);
    let first: Vec<_> = findings[0]["lost"].as_array().unwrap().iter().map(|run| run["first_page"].clone()).collect();
    assert_eq!(first, [json!(4095), json!(9000), json!(18_000)]);
    let left = fixture.verify(&[])["bytes"].as_u64().unwrap();
    assert_eq!(bytes - left, 4 * CAP, "every other page was read");
}

#[test]
fn the_first_page() {
    let fixture = Fixture::new();
    let big = fixture.at("big");
    let whole = fs::read(&big).unwrap();
    // The seal and the data: the key is there, so it is told what else is good.
    flip(&big, 2000);
    let findings = fixture.finds(&[(&big, "pages")]);
    assert_eq!(run(&findings[0], 0), (0, 0, 0, FIRST));
    assert!(findings[0]["recoverable"].as_str().unwrap().contains("9 of 10 pages authenticate"), "{findings:?}");
    // Zeros: nothing is left without the key.
    fs::write(&big, &whole).unwrap();
    zero(&big, 0);
    fixture.finds(&[(&big, "header")]);
    // The header.
    for at in [0, 20, 40, 100, 200, 1023] {
        fs::write(&big, &whole).unwrap();
        flip(&big, at);
        let findings = fixture.finds(&[(&big, "header")]);
        assert!(findings[0]["recoverable"].as_str().unwrap().starts_with("nothing"), "{findings:?}");
    }
    fixture.mends(&[], &[(&big, "header")]);
    let aside = fixture.set_aside();
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read(&aside[0]).unwrap().len(), whole.len(), "nothing of it was deleted");
    // It can be put back by hand: where it stood is written down.
    let list = fs::read_to_string(fixture.store.path.join(".hyokfs.lost/moved.jsonl")).unwrap();
    let line: Value = serde_json::from_str(list.lines().last().unwrap()).unwrap();
    assert_eq!(line["from"], fixture.shown(&big));
    assert_eq!(line["to"], aside[0].file_name().unwrap().to_str().unwrap());
    fs::rename(&aside[0], &big).unwrap();
    flip(&big, 1023);
    fixture.finds(&[]);
    let mount = fixture.store.mount();
    assert_bytes(&read(&mount.at("big")), &noise(1, BIG), "put back by hand");
    mount.umount();
}

#[test]
fn a_header_of_another_file() {
    let fixture = Fixture::new();
    let (deep, other) = (fixture.at("big"), fixture.at("sparse"));
    let mut header = vec![0; 1024];
    File::open(other).unwrap().read_exact_at(&mut header, 0).unwrap();
    OpenOptions::new().write(true).open(&deep).unwrap().write_all_at(&header, 0).unwrap();
    let findings = fixture.finds(&[(&deep, "pages")]);
    assert!(findings[0]["recoverable"].as_str().unwrap().starts_with("nothing"), "{findings:?}");
}

#[test]
fn truncated_below_the_floor() {
    let fixture = Fixture::new();
    let big = fixture.at("big");
    let whole = fs::read(&big).unwrap();
    for (cut, kind) in [(100, "header"), (PAGE, "pages"), (5 * PAGE + 10, "pages"), (10 * PAGE + 4090, "pages")] {
        OpenOptions::new().write(true).open(&big).unwrap().set_len(cut).unwrap();
        let findings = fixture.finds(&[(&big, kind)]);
        if cut == 5 * PAGE + 10 {
            let said = findings[0]["recoverable"].as_str().unwrap();
            assert!(said.contains("5 of 5 pages authenticate"), "{said}");
        }
        fs::write(&big, &whole).unwrap();
        if cut < whole.len() as u64 {
            OpenOptions::new().write(true).open(&big).unwrap().set_len(whole.len() as u64).unwrap();
        }
    }
    fixture.finds(&[]);
}

#[test]
fn a_punched_page_below_the_floor_is_seen_but_a_sparse_file_is_not_blamed() {
    let fixture = Fixture::new();
    let big = fixture.at("big");
    let file = OpenOptions::new().write(true).open(&big).unwrap();
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 6 * PAGE, 2 * PAGE).unwrap();
    let findings = fixture.finds(&[(&big, "pages")]);
    assert_eq!(run(&findings[0], 0), (6, 7, FIRST + 5 * CAP, FIRST + 7 * CAP));
}

fn attributes(path: &Path) -> Vec<String> {
    let mut list = vec![0; 4096];
    let length = rustix::fs::listxattr(path, &mut list[..]).unwrap();
    let names = list[..length].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.hyokfs."));
    names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect()
}

#[test]
fn links_and_attributes() {
    let fixture = Fixture::new();
    let (link, dir, file) = (fixture.at("d/link"), fixture.at("d"), fixture.at("e/other"));
    relink(&link, spoilt);
    let own = attributes(&dir).pop().unwrap();
    let theirs = attributes(&file).pop().unwrap();
    let mut value = vec![0; 4096];
    let length = rustix::fs::getxattr(&file, theirs.as_str(), &mut value[..]).unwrap();
    value.truncate(length);
    // Altered on the directory; a sound one under another's name on the file.
    rustix::fs::setxattr(&dir, own.as_str(), b"nonsense", rustix::fs::XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(&file, own.as_str(), &value, rustix::fs::XattrFlags::empty()).unwrap();
    let want = [(link.as_path(), "target"), (dir.as_path(), "attribute"), (file.as_path(), "attribute")];
    fixture.finds(&want);
    fixture.mends(&[], &want);
    assert_eq!(attributes(&file), [theirs], "the good one stays");
    assert_eq!(attributes(&dir).len(), 0);
    let aside = fixture.set_aside();
    assert_eq!(aside.len(), 3);
    let kept = aside.iter().any(|path| fs::read(path).is_ok_and(|bytes| bytes == b"nonsense"));
    assert!(kept, "the bytes of the attribute are kept");
}
