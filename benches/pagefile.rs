//! Page files on a real disk, without FUSE: `cargo bench --bench pagefile`. `HYOKFS_BENCH_DIR` names the directory
//! (the system's temporary one by default). `plain_*` does the same to the bare file.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use hyokfs::crypto::{Secret, Suite};
use hyokfs::file::PageFile;
use hyokfs::format::page::PageKeys;
use hyokfs::format::{FileId, VolumeId};
use hyokfs::store::RealDisk;

const SIZE: u64 = 64 << 20;
const MIB: usize = 1 << 20;

fn main() {
    divan::main();
}

fn bare() -> std::fs::File {
    let dir = std::env::var_os("HYOKFS_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    tempfile::tempfile_in(dir).unwrap()
}

fn keys() -> Arc<PageKeys> {
    let secret = |byte| Secret::from_fn(|bytes: &mut [u8; 32]| *bytes = [byte; 32]).unwrap();
    let ids = (VolumeId([3; 16]), FileId([4; 16]));
    Arc::new(PageKeys::new(Suite::auto(), &secret(1), &secret(2), &ids.0, &ids.1).unwrap())
}

fn empty() -> PageFile<RealDisk> {
    PageFile::create(RealDisk::new(bare().into()), &[1; 1024], keys()).unwrap()
}

fn full() -> PageFile<RealDisk> {
    let file = empty();
    let data = vec![7; MIB];
    (0..SIZE).step_by(MIB).for_each(|off| file.write(off, &data).unwrap());
    file.sync().unwrap();
    file
}

/// Offsets of `step`-aligned requests all over the file.
fn offsets(step: u64) -> impl FnMut() -> u64 {
    let mut n = 0u64;
    move || {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (n >> 33) % (SIZE / step) * step
    }
}

/// Requests of 4 KiB and of 1 MiB.
const SIZES: [usize; 2] = [4096, MIB];

#[divan::bench(args = SIZES)]
fn read_random(bencher: Bencher, len: usize) {
    let (file, mut next, mut buf) = (full(), offsets(len as u64), vec![0; len]);
    bencher.counter(BytesCount::new(len)).bench_local(|| file.read(next(), black_box(&mut buf)).unwrap());
}

#[divan::bench(args = SIZES)]
fn plain_read_random(bencher: Bencher, len: usize) {
    let (file, mut next, mut buf) = (bare(), offsets(len as u64), vec![0; len]);
    file.write_all_at(&vec![7; SIZE as usize], 0).unwrap();
    bencher.counter(BytesCount::new(len)).bench_local(|| file.read_exact_at(black_box(&mut buf), next()).unwrap());
}

#[divan::bench(args = SIZES)]
fn write_random(bencher: Bencher, len: usize) {
    let (file, mut next, buf) = (full(), offsets(len as u64), vec![9; len]);
    bencher.counter(BytesCount::new(len)).bench_local(|| file.write(next(), black_box(&buf)).unwrap());
}

#[divan::bench(args = SIZES)]
fn plain_write_random(bencher: Bencher, len: usize) {
    let (file, mut next, buf) = (bare(), offsets(len as u64), vec![9; len]);
    file.write_all_at(&vec![7; SIZE as usize], 0).unwrap();
    bencher.counter(BytesCount::new(len)).bench_local(|| file.write_all_at(black_box(&buf), next()).unwrap());
}

/// Appending until the file is 64 MiB long, then again from the start.
#[divan::bench(args = [100, 4096, MIB])]
fn append(bencher: Bencher, len: usize) {
    let (file, buf, mut off) = (empty(), vec![9; len], 0);
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        if off > SIZE {
            file.truncate(0).unwrap();
            off = 0;
        }
        file.write(off, black_box(&buf)).unwrap();
        off += len as u64;
    });
}

/// 4 KiB overwritten, then synced.
#[divan::bench(sample_count = 50)]
fn overwrite_and_sync(bencher: Bencher) {
    let (file, mut next, buf) = (full(), offsets(4096), vec![9; 4096]);
    bencher.bench_local(|| {
        file.write(next(), &buf).unwrap();
        file.sync().unwrap();
    });
}

#[divan::bench(sample_count = 50)]
fn plain_overwrite_and_sync(bencher: Bencher) {
    let (file, mut next, buf) = (bare(), offsets(4096), vec![9; 4096]);
    file.write_all_at(&vec![7; SIZE as usize], 0).unwrap();
    file.sync_data().unwrap();
    bencher.bench_local(|| {
        file.write_all_at(&buf, next()).unwrap();
        file.sync_data().unwrap();
    });
}

/// A new small file: made, written, its size told.
#[divan::bench]
fn small_file(bencher: Bencher) {
    bencher.with_inputs(|| (bare(), keys())).bench_local_values(|(bare, keys)| {
        let file = PageFile::create(RealDisk::new(bare.into()), &[1; 1024], keys).unwrap();
        file.write(0, &[7; 2000]).unwrap();
        file.put_tail().unwrap();
        file
    });
}
