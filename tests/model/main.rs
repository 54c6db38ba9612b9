//! The page file against a plain vector of bytes, on a real file: any operations, with sizes near the edges of pages.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod alter;

use std::sync::Arc;

use hyokfs::crypto::{Secret, Suite};
use hyokfs::file::{FileError, PageFile, plain_size};
use hyokfs::format::page::PageKeys;
use hyokfs::format::{FileId, VolumeId};
use hyokfs::store::{Disk, RealDisk};
use proptest::collection::vec;
use proptest::prelude::*;

/// Keys of one of several files; the same every time.
pub fn keys(suite: Suite, file: u8) -> Arc<PageKeys> {
    let secret = |byte| Secret::from_fn(|bytes: &mut [u8; 32]| *bytes = [byte; 32]).unwrap();
    Arc::new(PageKeys::new(suite, &secret(file), &secret(2), &VolumeId([3; 16]), &FileId([file; 16])).unwrap())
}

/// A new file in the store, and a second descriptor of it.
pub fn new_disk() -> (RealDisk, std::fs::File) {
    let file = tempfile::tempfile().unwrap();
    (RealDisk::new(file.try_clone().unwrap().into()), file)
}

#[derive(Clone, Debug)]
enum Op {
    Read(u64, usize),
    Write(u64, usize, u8),
    Truncate(u64),
    Allocate(u64, u64, bool),
    Punch(u64, u64),
    Zero(u64, u64, bool),
    SeekData(u64),
    SeekHole(u64),
    Sync,
    PutTail,
    PutFloor,
    SetHeader(u8),
    Reopen,
    Relock,
}

/// The first plaintext byte of a page, for a header of `header` bytes.
fn start(header: usize, page: u64) -> u64 {
    if page == 0 { 0 } else { (4096 - header as u64 - 56) + (page - 1) * 4056 }
}

fn offset(header: usize) -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u64..7, -3i64..4).prop_map(move |(page, near)| start(header, page).saturating_add_signed(near)),
        1 => 0..start(header, 7),
        // Beyond one run of pages.
        1 => (262u64..268, -2i64..3).prop_map(move |(page, near)| start(header, page).saturating_add_signed(near)),
    ]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => 0usize..20,
        2 => prop::sample::select(vec![3015usize, 3016, 3017, 4055, 4056, 4057, 4096, 8112, 8192]),
        1 => 0usize..30_000,
        1 => prop::sample::select(vec![1usize << 20, (1 << 20) + 4056, 264 * 4056, 265 * 4056]),
    ]
}

fn op(header: usize) -> impl Strategy<Value = Op> {
    let at = move || offset(header);
    let len = || length().prop_map(|len| len as u64);
    prop_oneof![
        6 => (at(), length()).prop_map(|(off, len)| Op::Read(off, len)),
        8 => (at(), length(), 1u8..).prop_map(|(off, len, byte)| Op::Write(off, len, byte)),
        4 => at().prop_map(Op::Truncate),
        1 => (at(), len(), any::<bool>()).prop_map(|(off, len, keep)| Op::Allocate(off, len, keep)),
        2 => (at(), len()).prop_map(|(off, len)| Op::Punch(off, len)),
        2 => (at(), len(), any::<bool>()).prop_map(|(off, len, keep)| Op::Zero(off, len, keep)),
        2 => at().prop_map(Op::SeekData),
        2 => at().prop_map(Op::SeekHole),
        2 => Just(Op::Sync),
        1 => Just(Op::PutTail),
        2 => Just(Op::PutFloor),
        1 => any::<u8>().prop_map(Op::SetHeader),
        2 => Just(Op::Reopen),
        1 => Just(Op::Relock),
    ]
}

/// Bytes of which no two neighbouring pages look alike.
fn pattern(byte: u8, off: u64, len: usize) -> Vec<u8> {
    (off..off + len as u64).map(|at| byte ^ (at % 251) as u8).collect()
}

fn zero(model: &mut [u8], off: u64, len: u64) {
    let end = model.len().min((off + len) as usize);
    if (off as usize) < end {
        model[off as usize..end].fill(0);
    }
}

fn grow(model: &mut Vec<u8>, end: u64) {
    model.resize(model.len().max(end as usize), 0);
}

fn agree(header_len: usize, suite: Suite, ops: &[Op]) {
    let (disk, store) = new_disk();
    let again = || RealDisk::new(store.try_clone().unwrap().into());
    let keys = || keys(suite, 1);
    let mut header = vec![1; header_len];
    let mut file = PageFile::create(disk, &header, keys()).unwrap();
    let mut model: Vec<u8> = Vec::new();
    for op in ops {
        match *op {
            Op::Read(off, len) => {
                let mut buf = vec![0xee; len];
                let read = file.read(off, &mut buf).unwrap();
                let from = model.len().min(off as usize);
                let expected = &model[from..model.len().min(from + len)];
                assert!(read == expected.len() && buf[..read] == *expected, "{op:?}");
                assert!(buf[read..].iter().all(|b| *b == 0xee), "{op:?} touched what lies behind the end");
            }
            Op::Write(off, len, byte) => {
                let data = pattern(byte, off, len);
                file.write(off, &data).unwrap();
                if len > 0 {
                    grow(&mut model, off + len as u64);
                    model[off as usize..off as usize + len].copy_from_slice(&data);
                }
            }
            Op::Truncate(size) => {
                file.truncate(size).unwrap();
                model.resize(size as usize, 0);
            }
            Op::Allocate(off, len, keep) => match file.allocate(off, len, keep) {
                Ok(()) if !keep && len > 0 => grow(&mut model, off + len),
                Ok(()) => {}
                Err(FileError::Io(error)) if error.kind() == std::io::ErrorKind::Unsupported => {}
                Err(other) => panic!("{op:?}: {other}"),
            },
            Op::Punch(off, len) => {
                file.punch(off, len).unwrap();
                zero(&mut model, off, len);
            }
            Op::Zero(off, len, keep) => {
                file.zero_range(off, len, keep).unwrap();
                zero(&mut model, off, len);
                if !keep && len > 0 {
                    grow(&mut model, off + len);
                }
            }
            Op::SeekData(off) => {
                // What is skipped must be zeros.
                let found = file.seek_data(off).unwrap();
                let from = model.len().min(off as usize);
                let to = found.map_or(model.len(), |at| at as usize);
                assert!(found.is_none_or(|at| at >= off && (at as usize) < model.len()), "{op:?}: {found:?}");
                assert!(model[from..to].iter().all(|b| *b == 0), "{op:?} skipped data");
            }
            Op::SeekHole(off) => {
                let found = file.seek_hole(off).unwrap();
                assert!(found >= off.min(model.len() as u64) && found <= model.len() as u64, "{op:?}: {found}");
                let page_end = (0..).map(|page| start(header_len, page)).find(|end| *end > found).unwrap();
                let end = model.len().min(page_end as usize);
                assert!(model[found as usize..end].iter().all(|b| *b == 0), "{op:?} called data a hole");
            }
            Op::Sync => file.sync().unwrap(),
            Op::PutTail => file.put_tail().unwrap(),
            Op::PutFloor => file.put_floor().unwrap(),
            Op::SetHeader(byte) => {
                header.fill(byte | 1);
                file.set_header(&header).unwrap();
            }
            Op::Reopen => {
                file.put_tail().unwrap();
                file = PageFile::open(again(), header_len, keys()).unwrap();
            }
            Op::Relock => {
                file.drop_keys();
                assert!(matches!(file.read(0, &mut [0]), Err(FileError::Locked)));
                assert!(matches!(file.write(0, &[1]), Err(FileError::Locked)));
                assert!(matches!(file.truncate(0), Err(FileError::Locked)));
                assert!(matches!(file.punch(0, 1), Err(FileError::Locked)));
                assert!(matches!(file.zero_range(0, 1, false), Err(FileError::Locked)));
                assert!(matches!(file.allocate(0, 1, false), Err(FileError::Locked)));
                assert!(matches!(file.put_floor(), Err(FileError::Locked)));
                assert!(matches!(file.set_header(&header), Err(FileError::Locked)));
                file.put_tail().unwrap();
                file.restore_keys(keys()).unwrap();
            }
        }
        assert_eq!(file.size(), model.len() as u64, "{op:?}");
        assert!(file.header() == header, "{op:?}");
    }
    let mut all = vec![0; model.len()];
    assert_eq!(file.read(0, &mut all).unwrap(), model.len());
    assert!(all == model, "the whole file differs");
    file.put_tail().unwrap();
    assert_eq!(plain_size(file.disk().len().unwrap(), header_len).unwrap(), model.len() as u64);
    let file = PageFile::open(again(), header_len, keys()).unwrap();
    all.fill(1);
    assert_eq!(file.read(0, &mut all).unwrap(), model.len());
    assert!(all == model && file.header() == header, "the file differs when opened again");
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_file_agrees_with_a_vector(ops in vec(op(1024), 1..40)) {
        agree(1024, Suite::Aes256Gcm, &ops);
    }

    #[test]
    fn a_file_with_a_long_header_agrees_with_a_vector(
        header in prop::sample::select(vec![2048usize, 3072]),
        ops in vec(op(3072), 1..40),
    ) {
        agree(header, Suite::ChaCha20Poly1305, &ops);
    }
}

#[test]
fn impossible_sizes_are_refused() {
    let (disk, _) = new_disk();
    let file = PageFile::create(disk, &[1; 1024], keys(Suite::Aes256Gcm, 1)).unwrap();
    assert!(matches!(file.write(u64::MAX, &[1]), Err(FileError::TooBig)));
    assert!(matches!(file.write(i64::MAX as u64, &[1]), Err(FileError::TooBig)));
    assert!(matches!(file.truncate(u64::MAX), Err(FileError::TooBig)));
    assert!(matches!(file.allocate(1, u64::MAX, false), Err(FileError::TooBig)));
    assert!(matches!(file.punch(1, u64::MAX), Err(FileError::TooBig)));
    assert!(matches!(file.set_header(&[1; 1000]), Err(FileError::Header(_))));
    assert_eq!(file.read(u64::MAX, &mut [0; 10]).unwrap(), 0);
    assert_eq!(file.seek_data(u64::MAX).unwrap(), None);
    assert_eq!(file.seek_hole(u64::MAX).unwrap(), 0);
    assert_eq!(file.size(), 0);
}

#[test]
fn readers_writers_and_syncs_run_side_by_side() {
    let (disk, _) = new_disk();
    let file = PageFile::create(disk, &[1; 1024], keys(Suite::auto(), 1)).unwrap();
    file.write(0, &[1; 50_000]).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let file = &file;
            scope.spawn(move || {
                let mut buf = vec![0; 10_000];
                for round in 0..200u64 {
                    match thread {
                        0 => file.write(round * 37 % 40_000, &[round as u8 | 1; 10_000]).unwrap(),
                        1 => file.sync().and_then(|()| file.put_floor()).unwrap(),
                        _ => {
                            let read = file.read(round * 191 % 40_000, &mut buf).unwrap();
                            assert!(read == 10_000 && buf.iter().all(|b| b % 2 == 1));
                        }
                    }
                }
            });
        }
    });
    assert_eq!(file.size(), 50_000);
}
