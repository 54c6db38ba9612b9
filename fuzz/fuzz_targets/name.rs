//! Names of store entries and of files: every entry decodes to at most one name, and no two entries to the same.
#![no_main]

use std::sync::LazyLock;

use hyokfs::crypto::Secret;
use hyokfs::crypto::names::NameKey;
use hyokfs::format::DirId;
use hyokfs::format::name::{Entry, NameMode, classify, decode, decode_long, encode};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<NameKey> = LazyLock::new(|| {
    let key = |byte| Secret::from_fn(|key| key.fill(byte)).expect("locked memory");
    NameKey::new(&key(1), &key(2)).expect("a name key")
});

fuzz_target!(|bytes: &[u8]| {
    let dir = DirId([7; 16]);
    let (entry, target) = bytes.split_at(bytes.len().min(44));
    let _ = decode_long(&KEY, &dir, entry, target);
    for mode in [NameMode::Encrypted, NameMode::Plain] {
        if classify(bytes) == Entry::Short
            && bytes.len() <= 255
            && let Ok(name) = decode(&KEY, mode, &dir, bytes)
        {
            assert_eq!(encode(&KEY, mode, &dir, &name).expect("a name that was read").entry, bytes);
        }
        if let Ok(stored) = encode(&KEY, mode, &dir, bytes) {
            let back = match &stored.long {
                None => decode(&KEY, mode, &dir, &stored.entry),
                Some(text) => decode_long(&KEY, &dir, &stored.entry, text.as_bytes()),
            };
            assert_eq!(back.as_deref(), Ok(bytes));
        }
    }
});
