//! Header bytes from the store. The tag is also made to fit, so that the fields behind it are reached: whatever is then
//! read must encode to the same bytes again.
#![no_main]

use std::sync::LazyLock;

use hyokfs::crypto::Secret;
use hyokfs::crypto::kdf::MacKey;
use hyokfs::format::VolumeId;
use hyokfs::format::header::FileHeader;
use libfuzzer_sys::fuzz_target;

static MAC: LazyLock<MacKey> =
    LazyLock::new(|| MacKey::new(&Secret::from_fn(|key| key.fill(5)).expect("locked memory")));

fuzz_target!(|bytes: &[u8]| {
    let _ = FileHeader::decode(bytes, &MAC, VolumeId([1; 16]));
    let mut bytes = bytes.to_vec();
    bytes.resize(1024, 0);
    bytes[..10].copy_from_slice(b"HYOKFS\0\x01\x01\0");
    bytes[16..32].fill(1);
    let tag = MAC.tag(&[&bytes[..992]]);
    bytes[992..].copy_from_slice(&tag);
    if let Ok(header) = FileHeader::decode(&bytes, &MAC, VolumeId([1; 16])) {
        assert_eq!(header.encode(1024, &MAC).as_deref(), Ok(bytes.as_slice()));
    }
});
