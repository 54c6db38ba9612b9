#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;

const VOLUME: VolumeId = VolumeId([1; 16]);
const FILE: FileId = FileId([2; 16]);

fn secret(byte: u8) -> Secret {
    Secret::from_fn(|bytes| *bytes = [byte; 32]).unwrap()
}

fn keys(suite: Suite) -> PageKeys {
    PageKeys::new(suite, &secret(3), &secret(4), &VOLUME, &FILE).unwrap()
}

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

#[test]
fn every_byte_has_one_place_and_the_length_tells_the_size() {
    for header in [1024, 2048, 3072] {
        let g = Geometry::new(header).unwrap();
        assert_eq!(g.cap(0), PAGE - header - SEAL - 16);
        assert_eq!(g.plain_size(0), None);
        assert_eq!(g.plain_size(4095), None);
        let mut off = 0u64;
        for index in 0..5 {
            assert_eq!(g.start(index), off);
            for _ in 0..g.cap(index) {
                assert_eq!(g.page_of(off), index);
                off += 1;
                assert_eq!(g.pages(off), index + 1);
                let len = g.cipher_len(off).unwrap();
                assert_eq!(len, (index + 1) * 4096 + g.tail(off));
                assert_eq!(g.plain_size(len), Some(off));
                assert!(g.tail_is_valid(len));
            }
        }
        assert_eq!(g.cipher_len(0), Some(4096));
        assert_eq!(g.plain_size(4096 + 4000), Some(g.cap(0) as u64), "clamped");
        assert!(!g.tail_is_valid(4096 + 4000));
        assert_eq!(g.plain_size(3 * 4096), Some(g.start(2)), "an empty last page is legal");
        assert_eq!(g.cipher_len(u64::MAX), None);
        assert_eq!(g.cipher_len(i64::MAX as u64), None);
        let most = g.plain_size(i64::MAX as u64).unwrap();
        assert!(g.cipher_len(most).is_some());
    }
    assert_eq!(Geometry::new(1000), Err(BadHeaderLen(1000)));
}

#[test]
fn pages_open_at_their_place_only() {
    for suite in SUITES {
        let keys = keys(suite);
        let mut page = [0xee; PAGE];
        let plain: Vec<u8> = (0..CAP).map(|i| i as u8).collect();
        for len in [0, 1, 16, 4055, 4056] {
            keys.sealer(1).unwrap().seal(9, &plain[..len], &mut page).unwrap();
            let mut out = [0x55; CAP];
            assert_eq!(claimed_len(&page), len);
            assert_eq!(keys.opener().open(9, &page, &mut out), Ok(len));
            assert_eq!(out[..len], plain[..len]);
            assert!(out[len..].iter().all(|b| *b == 0x55), "nothing behind the length is touched");
            assert_eq!(keys.opener().open(8, &page, &mut out), Err(PageError::Forged));
            assert!(out[..len].iter().all(|b| *b == 0), "nothing of a forged page is left");
        }
        assert!(keys.sealer(1).unwrap().seal(9, &[0; CAP + 1], &mut page).is_err());
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let keys = keys(Suite::Aes256Gcm);
    for len in [100, CAP] {
        let mut page = [0; PAGE];
        keys.sealer(1).unwrap().seal(1, &vec![7; len], &mut page).unwrap();
        let mut opener = keys.opener();
        let mut out = [0; CAP];
        for at in 0..PAGE {
            page[at] ^= 1 << (at % 8);
            assert!(opener.open(1, &page, &mut out).is_err(), "byte {at} of a page of {len}");
            page[at] ^= 1 << (at % 8);
        }
        assert_eq!(opener.open(1, &page, &mut out), Ok(len));
        page[..SEAL].fill(0);
        assert_eq!(opener.open(1, &page, &mut out), Err(PageError::NoSeal));
        assert!(!is_hole(&page));
        page.fill(0);
        assert!(is_hole(&page));
    }
}

#[test]
fn another_file_volume_suite_or_key_does_not_open_it() {
    let mut page = [0; PAGE];
    keys(Suite::Aes256Gcm).sealer(1).unwrap().seal(1, b"text", &mut page).unwrap();
    let mut out = [0; CAP];
    let again = keys(Suite::Aes256Gcm);
    assert_eq!(again.opener().open(1, &page, &mut out), Ok(4));
    let others = [
        PageKeys::new(Suite::ChaCha20Poly1305, &secret(3), &secret(4), &VOLUME, &FILE),
        PageKeys::new(Suite::Aes256Gcm, &secret(5), &secret(4), &VOLUME, &FILE),
        PageKeys::new(Suite::Aes256Gcm, &secret(3), &secret(5), &VOLUME, &FILE),
        PageKeys::new(Suite::Aes256Gcm, &secret(3), &secret(4), &VolumeId([9; 16]), &FILE),
        PageKeys::new(Suite::Aes256Gcm, &secret(3), &secret(4), &VOLUME, &FileId([9; 16])),
    ];
    for other in others {
        assert_eq!(other.unwrap().opener().open(1, &page, &mut out), Err(PageError::Forged));
    }
}

/// The derivation written out by hand with HMAC (RFC 5869 with one block of output): the bytes on disk must never
/// change by accident.
#[test]
fn the_page_key_is_the_documented_one() {
    use aws_lc_rs::hmac;
    let keys = keys(Suite::Aes256Gcm);
    let mut page = [0; PAGE];
    keys.sealer(1).unwrap().seal(1 << 40, b"text", &mut page).unwrap();
    let ikm = [[3; 32], [4; 32]].concat();
    let prk = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &FILE.0), &ikm);
    let mut info = b"hyokfs page key".to_vec();
    info.push(1);
    info.extend([1; 16]);
    info.push(1);
    info.extend(&page[..8]);
    info.push(1);
    let okm = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, prk.as_ref()), &info);
    let cipher = PageCipher::new(Suite::Aes256Gcm, okm.as_ref().try_into().unwrap()).unwrap();
    let mut aad = vec![0, 0, 0, 0, 0, 1, 0, 0];
    aad.extend([4, 0, 0, 0]);
    let mut out = [0; 4];
    let nonce = page[8..20].try_into().unwrap();
    cipher.open(nonce, &aad, &page[40..44], page[20..36].try_into().unwrap(), &mut out).unwrap();
    assert_eq!(&out, b"text");
    assert_eq!(page[36..40], [4, 0, 0, 0]);
}

#[test]
fn epochs_and_nonces_are_fresh() {
    let keys = keys(Suite::Aes256Gcm);
    let mut seen = std::collections::HashSet::new();
    let mut page = [0; PAGE];
    for request in [1, 2, 300] {
        let mut sealer = keys.sealer(request).unwrap();
        for _ in 0..request + 3 {
            sealer.seal(1, b"", &mut page).unwrap();
            assert!(seen.insert(page[..20].to_vec()), "a nonce came twice");
        }
    }
    let epoch = page[..8].to_vec();
    keys.seals.store(SEALS_PER_EPOCH - 1, Ordering::Relaxed);
    keys.sealer(1).unwrap().seal(1, b"", &mut page).unwrap();
    assert_eq!(page[..8], epoch, "2^31 seals are allowed");
    keys.sealer(1).unwrap().seal(1, b"new", &mut page).unwrap();
    assert_ne!(page[..8], epoch, "then the epoch changes");
    assert_eq!(keys.opener().open(1, &page, &mut [0; CAP]), Ok(3));
}

#[test]
fn no_more_than_sixteen_ciphers_are_kept() {
    let reader = keys(Suite::Aes256Gcm);
    let mut opener = reader.opener();
    let mut pages = Vec::new();
    for index in 0..40 {
        let mut page = [0; PAGE];
        keys(Suite::Aes256Gcm).sealer(1).unwrap().seal(index, b"text", &mut page).unwrap();
        pages.push(page);
    }
    for _ in 0..2 {
        for (index, page) in pages.iter().enumerate() {
            assert_eq!(opener.open(index as u64, page, &mut [0; CAP]), Ok(4));
        }
    }
    assert_eq!(lock(&reader.ciphers).len(), 16);
}

#[test]
fn no_keys_come_from_a_wiped_secret() {
    let secret = |byte| Secret::from_fn(|key| key.fill(byte)).unwrap();
    for (file_key, mixing) in [(secret(0), secret(2)), (secret(1), secret(0))] {
        assert!(PageKeys::new(Suite::Aes256Gcm, &file_key, &mixing, &VolumeId([1; 16]), &FileId([2; 16])).is_err());
    }
}
