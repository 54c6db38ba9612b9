//! Directory records: raw targets, and bodies that the tag is made to fit.
#![no_main]

use std::sync::LazyLock;

use hyokfs::crypto::Secret;
use hyokfs::crypto::kdf::MacKey;
use hyokfs::format::dirrec::DirRecord;
use hyokfs::format::{DirId, VolumeId};
use libfuzzer_sys::fuzz_target;

static MAC: LazyLock<MacKey> =
    LazyLock::new(|| MacKey::new(&Secret::from_fn(|key| key.fill(5)).expect("locked memory")));

fuzz_target!(|bytes: &[u8]| {
    let volume = VolumeId([1; 16]);
    let _ = DirRecord::decode(bytes, volume, &MAC);
    let text = [b"hyokfs1.".as_slice(), bytes].concat();
    let _ = DirRecord::decode(&text, volume, &MAC);
    let ids: Vec<DirId> = bytes.as_chunks::<16>().0.iter().copied().map(DirId).collect();
    if let Some((dir, parents)) = ids.split_first() {
        let record = DirRecord { dir: *dir, parents: parents.iter().copied().take(3).collect() };
        let text = record.encode(volume, &MAC);
        assert!(text.len() < 1024);
        assert_eq!(DirRecord::decode(text.as_bytes(), volume, &MAC), Ok(record));
    }
});
