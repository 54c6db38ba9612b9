//! Names of keys and ids, which also stand in the volume record before it is authenticated: what parses must come back
//! from its own text.
#![no_main]

use hyokfs::audit::PublicKey;
use hyokfs::format::VolumeId;
use hyokfs::provider::KeyUri;
use hyokfs::provider::azure::blob::KeyId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(uri) = text.parse::<KeyUri>() {
        assert_eq!(uri.to_string().parse::<KeyUri>(), Ok(uri));
    }
    if let Ok(id) = text.parse::<VolumeId>() {
        assert_eq!(id.to_string().parse::<VolumeId>().ok(), Some(id));
    }
    if let Some(id) = KeyId::from_kid(text) {
        assert_eq!(KeyId::from_kid(&id.kid()), Some(id));
    }
    if let Some(key) = PublicKey::parse(text.as_bytes()) {
        assert_eq!(PublicKey::parse(key.to_string().as_bytes()), Some(key));
    }
});
