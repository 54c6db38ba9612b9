//! File headers and directory records, on the path of every open: `cargo bench --no-default-features --bench header`.

#![allow(clippy::unwrap_used, missing_docs)]

use divan::{Bencher, black_box};
use hyokfs::crypto::Secret;
use hyokfs::crypto::kdf::{MacKey, commitment};
use hyokfs::crypto::suite::Suite;
use hyokfs::format::dirrec::DirRecord;
use hyokfs::format::header::{FileHeader, Parents};
use hyokfs::format::slots::{KeySlot, Via};
use hyokfs::format::{DirId, FileId, VolumeId};

const VOLUME: VolumeId = VolumeId([1; 16]);

fn main() {
    divan::main();
}

fn mac() -> MacKey {
    MacKey::new(&Secret::random().unwrap())
}

fn header() -> FileHeader {
    FileHeader {
        suite: Suite::Aes256Gcm,
        volume: VOLUME,
        file: FileId([2; 16]),
        slots: vec![KeySlot { via: Via::Provider(0), wrapped: vec![9; 184] }],
        commitment: [3; 32],
        parents: Parents::Bound(vec![DirId([4; 16])]),
    }
}

#[divan::bench(args = [1024, 3072])]
fn encode_header(bencher: Bencher, length: usize) {
    let (mac, header) = (mac(), header());
    bencher.bench(|| black_box(&header).encode(length, black_box(&mac)).unwrap());
}

#[divan::bench(args = [1024, 3072])]
fn decode_header(bencher: Bencher, length: usize) {
    let mac = mac();
    let bytes = header().encode(length, &mac).unwrap();
    bencher.bench(|| FileHeader::decode(black_box(&bytes), black_box(&mac), VOLUME).unwrap());
}

#[divan::bench]
fn decode_directory_record(bencher: Bencher) {
    let mac = mac();
    let text = DirRecord { dir: DirId([1; 16]), parents: vec![DirId([2; 16])] }.encode(VOLUME, &mac);
    bencher.bench(|| DirRecord::decode(black_box(text.as_bytes()), VOLUME, black_box(&mac)).unwrap());
}

#[divan::bench]
fn commit_to_a_key(bencher: Bencher) {
    let key = Secret::random().unwrap();
    bencher.bench(|| commitment(black_box(&key), &[2; 16]).unwrap());
}
