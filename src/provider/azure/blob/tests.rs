#![allow(clippy::unwrap_used)]
use super::*;
use crate::format::{FileId, VolumeId};

fn secret(byte: u8) -> Secret {
    Secret::from_fn(|place| place.fill(byte)).unwrap()
}

fn key(name: &str) -> KeyId {
    KeyId::from_kid(&format!("https://acme.vault.azure.net/keys/{name}/78deebed173b48e48f55abf87ed4cf71")).unwrap()
}

fn context<'a>(file: Option<u8>, tenant: Option<&'a str>) -> Context<'a> {
    Context { volume: VolumeId([1; 16]), file: file.map(|byte| FileId([byte; 16])), tenant }
}

#[test]
fn a_blob_names_its_version_and_opens_with_the_same_key_and_context() {
    let id = key("hyok");
    let home = context(Some(2), Some("acme"));
    let bytes = seal(Algorithm::A256Kw, &id, &[9; 40], &secret(3), &home, &secret(4)).unwrap();
    let blob = Blob::parse(&bytes).unwrap();
    assert_eq!(blob.key, id);
    assert_eq!(blob.key.kid(), "https://acme.vault.azure.net/keys/hyok/78deebed173b48e48f55abf87ed4cf71");
    assert_eq!(blob.ciphertext, [9; 40]);
    assert_eq!(blob.open(&secret(3), &home).unwrap().expose(), &[4; 32]);
    assert_eq!(bytes.len(), 83 + "acme.vault.azure.nethyok".len() + 40);
}

#[test]
fn another_context_or_key_does_not_open_it() {
    let home = context(Some(2), Some("acme"));
    let bytes = seal(Algorithm::A256Kw, &key("hyok"), &[9; 40], &secret(3), &home, &secret(4)).unwrap();
    let blob = Blob::parse(&bytes).unwrap();
    let mut elsewhere = home;
    elsewhere.volume = VolumeId([7; 16]);
    for other in [context(Some(3), Some("acme")), context(None, Some("acme")), context(Some(2), None), elsewhere] {
        assert!(matches!(blob.open(&secret(3), &other), Err(BlobError::OtherContext)));
    }
    assert!(matches!(blob.open(&secret(5), &home), Err(BlobError::OtherContext)));
}

#[test]
fn no_changed_byte_goes_unnoticed() {
    let home = context(Some(2), None);
    let bytes = seal(Algorithm::A256Kw, &key("hyok"), &[9; 40], &secret(3), &home, &secret(4)).unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            let opened = Blob::parse(&changed).and_then(|blob| blob.open(&secret(3), &home));
            assert!(opened.is_err(), "byte {at} bit {bit}");
        }
    }
    for len in 0..bytes.len() {
        assert!(Blob::parse(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn the_longest_names_fit_except_with_rsa_4096() {
    let long =
        format!("https://{}.managedhsm.usgovcloudapi.net/keys/{}/{}", "h".repeat(24), "n".repeat(127), "0".repeat(32));
    let long = KeyId::from_kid(&long).unwrap();
    let home = context(Some(2), Some("acme"));
    for size in [256, 384] {
        let bytes = seal(Algorithm::RsaOaep256, &long, &vec![1; size], &secret(3), &home, &secret(4)).unwrap();
        assert!(bytes.len() <= MAX_LEN);
        assert_eq!(Blob::parse(&bytes).unwrap().key, long);
    }
    let refused = seal(Algorithm::RsaOaep256, &long, &[1; 512], &secret(3), &home, &secret(4));
    assert!(matches!(refused, Err(BlobError::TooLong(_))));
    let room = 105 - "acme.vault.azure.net".len();
    let most = seal(Algorithm::RsaOaep256, &key(&"n".repeat(room)), &[1; 512], &secret(3), &home, &secret(4)).unwrap();
    assert_eq!(most.len(), MAX_LEN);
    let over = seal(Algorithm::RsaOaep256, &key(&"n".repeat(room + 1)), &[1; 512], &secret(3), &home, &secret(4));
    assert!(matches!(over, Err(BlobError::TooLong(701))));
}

#[test]
fn a_version_that_is_not_32_hexadecimal_digits_is_kept_as_it_is() {
    for version in ["v2", "78DEEBED173B48E48F55ABF87ED4CF71", &"z".repeat(64)] {
        let id = KeyId::from_kid(&format!("https://acme.vault.azure.net/keys/hyok/{version}")).unwrap();
        let home = context(None, None);
        let bytes = seal(Algorithm::A256Kw, &id, &[9; 40], &secret(3), &home, &secret(4)).unwrap();
        assert_eq!(Blob::parse(&bytes).unwrap().key.version, version);
    }
}

#[test]
fn a_kid_is_read_strictly() {
    for kid in [
        "",
        "http://a.b/keys/k/1",
        "https://a.b/keys/k",
        "https://a.b/secrets/k/1",
        "https://a.b/keys/k/1/2",
        "https://a.b/keys/../1",
        "https://a.b/keys/k/1?x=y",
        "https:///keys/k/1",
        "https://u@a.b/keys/k/1",
    ] {
        assert_eq!(KeyId::from_kid(kid), None, "{kid}");
    }
    let id = KeyId::from_kid("https://ACME.vault.azure.net:443/keys/Hyok/1").unwrap();
    assert_eq!((id.host.as_str(), id.name.as_str()), ("acme.vault.azure.net", "Hyok"));
}

proptest::proptest! {
    #[test]
    fn any_bytes_may_be_parsed(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..800)) {
        let _ = Blob::parse(&bytes);
    }

    #[test]
    fn any_bytes_behind_a_good_start_may_be_parsed(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let mut start = vec![1, 2, 3, b'a', b'.', b'b', 1, b'k'];
        start.extend(bytes);
        let _ = Blob::parse(&start);
    }
}
