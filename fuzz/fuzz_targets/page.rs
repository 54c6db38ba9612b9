//! Sealed pages: arbitrary bytes never open and never panic, at any place.
#![no_main]

use std::sync::LazyLock;

use hyokfs::crypto::{Secret, Suite};
use hyokfs::format::page::{CAP, PageKeys};
use hyokfs::format::{FileId, VolumeId};
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<PageKeys> = LazyLock::new(|| {
    let key = |byte| Secret::from_fn(|key| key.fill(byte)).expect("locked memory");
    PageKeys::new(Suite::Aes256Gcm, &key(1), &key(2), &VolumeId([1; 16]), &FileId([2; 16])).expect("page keys")
});

fuzz_target!(|input: (u64, &[u8])| {
    let (index, slot) = input;
    let mut plain = [0; CAP];
    assert!(KEYS.opener().open(index, slot, &mut plain).is_err());
});
