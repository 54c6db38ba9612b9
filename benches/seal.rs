//! Sealing and opening pages by suite: `cargo bench --bench seal`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use hyokfs::crypto::{Secret, Suite};
use hyokfs::format::page::{CAP, PAGE, PageKeys};
use hyokfs::format::{FileId, VolumeId};

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
/// One page, two (a 4 KiB request), and those of a request of 1 MiB.
const PAGES: [usize; 3] = [1, 2, 259];

fn main() {
    divan::main();
}

fn secret(byte: u8) -> Secret {
    Secret::from_fn(|bytes: &mut [u8; 32]| *bytes = [byte; 32]).unwrap()
}

fn keys(suite: Suite) -> PageKeys {
    PageKeys::new(suite, &secret(1), &secret(2), &VolumeId([3; 16]), &FileId([4; 16])).unwrap()
}

fn seal(bencher: Bencher, suite: Suite, count: usize) {
    let keys = keys(suite);
    let plain = vec![7; count * CAP];
    let mut pages = vec![0; count * PAGE];
    bencher.counter(BytesCount::new(plain.len())).bench_local(|| {
        let mut sealer = keys.sealer(count).unwrap();
        for (index, (plain, page)) in (1..).zip(plain.chunks(CAP).zip(pages.chunks_mut(PAGE))) {
            sealer.seal(index, black_box(plain), page).unwrap();
        }
    });
}

fn open(bencher: Bencher, suite: Suite, count: usize) {
    let keys = keys(suite);
    let mut plain = vec![7; count * CAP];
    let mut pages = vec![0; count * PAGE];
    let mut sealer = keys.sealer(count).unwrap();
    for (index, (plain, page)) in (1..).zip(plain.chunks(CAP).zip(pages.chunks_mut(PAGE))) {
        sealer.seal(index, plain, page).unwrap();
    }
    bencher.counter(BytesCount::new(plain.len())).bench_local(|| {
        let mut opener = keys.opener();
        for (index, (plain, page)) in (1..).zip(plain.chunks_mut(CAP).zip(pages.chunks(PAGE))) {
            opener.open(index, black_box(page), plain).unwrap();
        }
    });
}

#[divan::bench(args = PAGES)]
fn seal_aes(bencher: Bencher, count: usize) {
    seal(bencher, SUITES[0], count);
}

#[divan::bench(args = PAGES)]
fn seal_chacha(bencher: Bencher, count: usize) {
    seal(bencher, SUITES[1], count);
}

#[divan::bench(args = PAGES)]
fn open_aes(bencher: Bencher, count: usize) {
    open(bencher, SUITES[0], count);
}

#[divan::bench(args = PAGES)]
fn open_chacha(bencher: Bencher, count: usize) {
    open(bencher, SUITES[1], count);
}

/// What opening a file costs in keys.
#[divan::bench(args = SUITES)]
fn prepare_keys(suite: Suite) -> PageKeys {
    keys(suite)
}
