//! What somebody who can write the store may do to a file, and what must come of it: an error, or the documented
//! outcome, but never wrong data.

use std::os::unix::fs::FileExt;

use hyokfs::crypto::Suite;
use hyokfs::file::{Damage, FileError, PageFile};
use hyokfs::store::RealDisk;
use proptest::prelude::*;

use crate::{keys, new_disk};

const FIRST: u64 = 3016;
const CAP: u64 = 4056;
const SIZE: usize = (FIRST + 4 * CAP + 100) as usize;

fn content() -> Vec<u8> {
    (0..SIZE).map(|at| (at % 253) as u8 | 1).collect()
}

/// A file of six pages, synced, with or without its floor recorded.
fn victim(file: u8, floor: bool) -> std::fs::File {
    let (disk, store) = new_disk();
    let file = PageFile::create(disk, &[1; 1024], keys(Suite::Aes256Gcm, file)).unwrap();
    file.write(0, &content()).unwrap();
    file.sync().unwrap();
    if floor {
        file.put_floor().unwrap();
    }
    store
}

fn open(store: &std::fs::File) -> Result<PageFile<RealDisk>, FileError> {
    PageFile::open(RealDisk::new(store.try_clone().unwrap().into()), 1024, keys(Suite::Aes256Gcm, 1))
}

fn page_range(page: u64) -> std::ops::Range<u64> {
    let start = if page == 0 { 0 } else { FIRST + (page - 1) * CAP };
    start..(FIRST + page * CAP).min(SIZE as u64)
}

/// Page by page: what reads must be right, and only the pages named may fail.
fn check(store: &std::fs::File, bad: &[u64]) {
    let file = match open(store) {
        Ok(file) => file,
        Err(FileError::Damaged { page, .. }) => {
            assert!(bad.contains(&page), "page {page} kept the file from opening");
            return;
        }
        Err(other) => panic!("{other}"),
    };
    for page in 0..6 {
        let range = page_range(page);
        let mut buf = vec![0; (range.end - range.start) as usize];
        match file.read(range.start, &mut buf) {
            Ok(read) => {
                assert!(!bad.contains(&page), "page {page} was altered and reads");
                assert_eq!(read, buf.len());
                assert!(buf[..] == content()[range.start as usize..range.end as usize], "page {page} reads wrong");
            }
            Err(FileError::Damaged { page: named, .. }) => {
                assert!(named == page && bad.contains(&page), "page {named} named for page {page}");
                assert!(buf.iter().all(|b| *b == 0), "something of a damaged page was given out");
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn an_untouched_file_reads() {
    check(&victim(1, true), &[]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any flipped bits in a page, except in the header, which has a MAC of its own.
    #[test]
    fn flipped_bits_are_noticed(page in 0u64..6, at in 0u64..4096, bits in 1u8.., floor: bool) {
        let at = if page == 0 { 1024 + at % 3072 } else { at };
        let store = victim(1, floor);
        let mut byte = [0];
        store.read_exact_at(&mut byte, page * 4096 + at).unwrap();
        store.write_all_at(&[byte[0] ^ bits], page * 4096 + at).unwrap();
        check(&store, &[page]);
    }

    /// Pages of the same file in another place.
    #[test]
    fn moved_pages_are_noticed(from in 1u64..6, to in 1u64..6) {
        prop_assume!(from != to);
        let store = victim(1, true);
        let (mut a, mut b) = ([0; 4096], [0; 4096]);
        store.read_exact_at(&mut a, from * 4096).unwrap();
        store.read_exact_at(&mut b, to * 4096).unwrap();
        store.write_all_at(&a, to * 4096).unwrap();
        check(&store, &[to]);
        store.write_all_at(&b, from * 4096).unwrap();
        check(&store, &[from, to]);
    }

    /// Pages of another file in the same place.
    #[test]
    fn pages_of_other_files_are_noticed(page in 0u64..6) {
        let (store, other) = (victim(1, true), victim(2, true));
        let mut buf = [0; 4096];
        other.read_exact_at(&mut buf, page * 4096).unwrap();
        store.write_all_at(&buf, page * 4096).unwrap();
        check(&store, &[page]);
    }

    /// Zeroed pages below the floor are errors; a part of a page that is zeroed is an error anywhere.
    #[test]
    fn zeroed_pages_are_noticed(page in 1u64..6, from in 0usize..4000, whole: bool) {
        let store = victim(1, true);
        let from = if whole { 0 } else { from };
        let mut old = vec![0; 4096 - from];
        store.read_exact_at(&mut old, page * 4096 + from as u64).unwrap();
        prop_assume!(old.iter().any(|b| *b != 0));
        store.write_all_at(&vec![0; 4096 - from], page * 4096 + from as u64).unwrap();
        check(&store, &[page]);
    }

    /// A cut anywhere below the floor keeps the file from opening.
    #[test]
    fn cuts_below_the_floor_are_noticed(len in 4096u64..6 * 4096 + 100) {
        let store = victim(1, true);
        store.set_len(len).unwrap();
        let error = open(&store).err();
        let noticed = matches!(error, Some(FileError::Damaged { why: Damage::Truncated | Damage::Tail, .. }));
        prop_assert!(noticed, "{error:?}");
    }

    /// Above the floor a cut or zeroed page is not noticed, as documented, but what is left is right or zero.
    #[test]
    fn cuts_above_the_floor_leave_a_beginning(len in 0u64..6 * 4096 + 100) {
        let store = victim(1, false);
        store.set_len(len).unwrap();
        match open(&store) {
            Ok(file) => {
                let mut buf = vec![0; file.size() as usize];
                match file.read(0, &mut buf) {
                    Ok(read) => prop_assert!(read < SIZE && buf[..] == content()[..read]),
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
            Err(FileError::Unfinished) => prop_assert!(len < 4096),
            Err(FileError::Damaged { why: Damage::Tail, .. }) => prop_assert!(len % 4096 > FIRST),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

#[test]
fn a_zeroed_page_above_the_floor_reads_as_zeros() {
    let store = victim(1, false);
    store.write_all_at(&[0; 4096], 2 * 4096).unwrap();
    let file = open(&store).unwrap();
    let mut buf = vec![1; SIZE];
    file.read(0, &mut buf).unwrap();
    let hole = page_range(2).start as usize..page_range(2).end as usize;
    let mut expected = content();
    expected[hole].fill(0);
    assert!(buf == expected);
}

#[test]
fn the_wrong_keys_open_nothing() {
    let store = victim(1, true);
    let disk = || RealDisk::new(store.try_clone().unwrap().into());
    for wrong in [keys(Suite::Aes256Gcm, 2), keys(Suite::ChaCha20Poly1305, 1)] {
        let opened = PageFile::open(disk(), 1024, wrong);
        assert!(matches!(opened, Err(FileError::Damaged { page: 0, .. })));
    }
    assert!(PageFile::open(disk(), 2048, keys(Suite::Aes256Gcm, 1)).is_err());
    assert!(matches!(PageFile::open(disk(), 100, keys(Suite::Aes256Gcm, 1)), Err(FileError::Header(_))));
    let again = PageFile::create(disk(), &[1; 1024], keys(Suite::Aes256Gcm, 1));
    assert!(matches!(again, Err(FileError::NotEmpty)));
}
