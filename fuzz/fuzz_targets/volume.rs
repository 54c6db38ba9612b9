//! The text of hyokfs.toml: what parses must come back from its own text, with the same canonical form.
#![no_main]

use hyokfs::format::volume::VolumeRecord;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(record) = VolumeRecord::parse(text) {
        let canonical = record.canonical();
        let again = record.to_toml().and_then(|text| VolumeRecord::parse(&text)).expect("its own text parses");
        assert_eq!(again, record);
        assert_eq!(again.canonical().ok(), canonical.ok());
    }
});
