//! Targets of symlinks and extended attributes: raw bytes, and authentic ones of any form.
#![no_main]

use std::sync::LazyLock;

use hyokfs::crypto::Secret;
use hyokfs::crypto::envelope::EnvelopeKey;
use hyokfs::format::VolumeId;
use hyokfs::format::small::{open_target, open_xattr, seal_target, seal_xattr, target_len};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<EnvelopeKey> =
    LazyLock::new(|| EnvelopeKey::new(Secret::from_fn(|key| key.fill(5)).expect("locked memory")));

fuzz_target!(|bytes: &[u8]| {
    let volume = VolumeId([1; 16]);
    assert!(open_target(&KEY, volume, bytes).is_none());
    assert!(open_xattr(&KEY, volume, bytes).is_none());
    assert!(KEY.open_secret(b"", bytes).is_err());
    let text = seal_target(&KEY, volume, bytes).expect("sealed");
    assert_eq!(target_len(text.len() as u64), bytes.len() as u64);
    assert_eq!(open_target(&KEY, volume, text.as_bytes()).expect("its own text").as_slice(), bytes);
    // An authentic value of any form: its own name and value, or nothing.
    let place = [b"hyokfs/1 xattr".as_slice(), volume.as_bytes()].concat();
    let sealed = KEY.seal(&place, bytes).expect("sealed");
    if let Some((name, value)) = open_xattr(&KEY, volume, &sealed) {
        let again = seal_xattr(&KEY, volume, &name, &value).expect("sealed");
        assert_eq!(KEY.open(&place, &again).expect("opened").as_slice(), bytes);
    }
});
