//! Key slots: what decodes must encode to the same bytes.
#![no_main]

use hyokfs::format::slots;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((read, used)) = slots::decode(bytes) {
        assert_eq!(slots::encode(&read).as_deref(), Some(&bytes[..used]));
    }
});
