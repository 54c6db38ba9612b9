//! Names, on the path of every lookup: `cargo bench --no-default-features --bench names`.

#![allow(clippy::unwrap_used, missing_docs)]

use divan::{Bencher, black_box};
use hyokfs::crypto::Secret;
use hyokfs::crypto::names::NameKey;
use hyokfs::format::DirId;
use hyokfs::format::name::{NameMode, decode, decode_long, encode};

const DIR: DirId = DirId([7; 16]);
const LENGTHS: [usize; 4] = [8, 24, 120, 255];

fn main() {
    divan::main();
}

fn key() -> NameKey {
    NameKey::new(&Secret::random().unwrap(), &Secret::random().unwrap()).unwrap()
}

#[divan::bench(args = LENGTHS)]
fn encode_name(bencher: Bencher, length: usize) {
    let (key, name) = (key(), vec![b'n'; length]);
    bencher.bench(|| encode(black_box(&key), NameMode::Encrypted, &DIR, black_box(&name)).unwrap());
}

#[divan::bench(args = LENGTHS)]
fn decode_name(bencher: Bencher, length: usize) {
    let key = key();
    let stored = encode(&key, NameMode::Encrypted, &DIR, &vec![b'n'; length]).unwrap();
    bencher.bench(|| match &stored.long {
        None => decode(black_box(&key), NameMode::Encrypted, &DIR, black_box(&stored.entry)).unwrap(),
        Some(text) => decode_long(black_box(&key), &DIR, &stored.entry, black_box(text.as_bytes())).unwrap(),
    });
}
