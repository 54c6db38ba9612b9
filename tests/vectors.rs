//! Published test vectors of every primitive that reaches the disk, through the very calls that hyokfs makes.
//!
//! Wycheproof (C2SP) for the AEADs, HKDF and HMAC; NIST SP 800-38A F.5.5 for AES-256-CTR.

#![allow(clippy::unwrap_used)]

use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use hyokfs::crypto::Secret;
use hyokfs::crypto::envelope::EnvelopeKey;
use hyokfs::crypto::kdf::{MacKey, hkdf};
use hyokfs::crypto::suite::{PageCipher, Suite};
use wycheproof::{TestResult, aead, hkdf as hkdf_set, mac};

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Runs a set of AEAD vectors through the page cipher; gives how many were run.
fn pages(suite: Suite, name: aead::TestName) -> usize {
    let mut run = 0;
    for group in aead::TestSet::load(name).unwrap().test_groups {
        // Other key and nonce lengths have no place in the format: the types refuse them.
        if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
            continue;
        }
        for test in group.tests {
            let context = format!("{name:?} {}: {}", test.tc_id, test.comment);
            let cipher = PageCipher::new(suite, test.key.as_ref().try_into().unwrap()).unwrap();
            let nonce: [u8; 12] = test.nonce.as_ref().try_into().unwrap();
            let tag: [u8; 16] = test.tag.as_ref().try_into().unwrap();
            let mut back = vec![0; test.ct.len()];
            let opened = cipher.open(nonce, &test.aad, &test.ct, &tag, &mut back).is_ok();
            assert_eq!(opened, test.result == TestResult::Valid, "{context}");
            if opened {
                assert_eq!(back, test.pt.as_ref(), "{context}");
                let (mut sealed, mut made) = (vec![0; back.len()], [0; 16]);
                cipher.seal(nonce, &test.aad, &back, &mut sealed, &mut made).unwrap();
                assert_eq!((sealed.as_slice(), made), (test.ct.as_ref(), tag), "{context}");
            }
            run += 1;
        }
    }
    run
}

#[test]
fn aes_256_gcm() {
    let run = pages(Suite::Aes256Gcm, aead::TestName::AesGcm);
    assert!(run >= 60, "only {run} vectors");
}

#[test]
fn chacha20_poly1305() {
    let run = pages(Suite::ChaCha20Poly1305, aead::TestName::ChaCha20Poly1305);
    assert!(run >= 250, "only {run} vectors");
}

/// The envelope's layout is nonce | ciphertext | tag, so that the vectors open as they are.
#[test]
fn xchacha20_poly1305() {
    let mut run = 0;
    for group in aead::TestSet::load(aead::TestName::XChaCha20Poly1305).unwrap().test_groups {
        for test in group.tests {
            let context = format!("{}: {}", test.tc_id, test.comment);
            let key = EnvelopeKey::new(Secret::copy_from(&test.key).unwrap());
            let sealed = [test.nonce.as_ref(), &test.ct, &test.tag].concat();
            let opened = key.open(&test.aad, &sealed);
            assert_eq!(opened.is_ok(), test.result == TestResult::Valid && test.nonce.len() == 24, "{context}");
            if let Ok(plain) = opened {
                assert_eq!(plain.as_slice(), test.pt.as_ref(), "{context}");
                let again = key.seal(&test.aad, &plain).unwrap();
                assert_eq!(key.open(&test.aad, &again).unwrap().as_slice(), test.pt.as_ref(), "{context}");
            }
            run += 1;
        }
    }
    assert!(run >= 250, "only {run} vectors");
}

#[test]
fn hkdf_sha256() {
    let mut run = 0;
    for group in hkdf_set::TestSet::load(hkdf_set::TestName::HkdfSha256).unwrap().test_groups {
        for test in group.tests {
            let context = format!("{}: {}", test.tc_id, test.comment);
            let mut out = vec![0; test.size];
            // In two parts, as labels are given.
            let (head, tail) = test.info.split_at(test.info.len() / 2);
            let made = hkdf(&test.salt, &test.ikm, &[head, tail], &mut out);
            assert_eq!(made.is_ok(), test.result == TestResult::Valid, "{context}");
            if made.is_ok() {
                assert_eq!(out, test.okm.as_ref(), "{context}");
            }
            run += 1;
        }
    }
    assert!(run >= 80, "only {run} vectors");
}

/// 32-byte keys through [`MacKey`], in parts; other lengths, which the format does not have, through the library.
#[test]
fn hmac_sha256() {
    let (mut ours, mut others) = (0, 0);
    for group in mac::TestSet::load(mac::TestName::HmacSha256).unwrap().test_groups {
        for test in group.tests {
            let context = format!("{}: {}", test.tc_id, test.comment);
            let valid = test.result == TestResult::Valid;
            let full = group.tag_size == 256;
            if test.key.len() == 32 {
                let key = MacKey::new(&Secret::copy_from(&test.key).unwrap());
                let (head, tail) = test.msg.split_at(test.msg.len() / 3);
                assert_eq!(key.tag(&[head, tail])[..test.tag.len()] == *test.tag, valid, "{context}");
                assert_eq!(key.verify(&[head, tail], &test.tag), valid && full, "a cut tag is none: {context}");
                ours += 1;
            } else {
                let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &test.key), &test.msg);
                assert_eq!(tag.as_ref()[..test.tag.len()] == *test.tag, valid, "{context}");
                others += 1;
            }
        }
    }
    assert!(ours >= 160 && others >= 12, "only {ours} and {others} vectors");
}

/// NIST SP 800-38A F.5.5, through the call that encrypts names; and a counter that carries over all 128 bits.
#[test]
fn aes_256_ctr() {
    let key = hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
    let encrypt = |key: &[u8], counter: &str, text: &mut [u8]| {
        let iv: [u8; 16] = hex(counter).try_into().unwrap();
        let key = EncryptingKey::ctr(UnboundCipherKey::new(&AES_256, key).unwrap()).unwrap();
        key.less_safe_encrypt(text, EncryptionContext::Iv128(FixedLength::from(iv))).unwrap();
    };
    let mut text = hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
                        30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710");
    encrypt(&key, "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", &mut text);
    let cipher = hex("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5\
                      2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6");
    assert_eq!(text, cipher);

    // SP 800-38A appendix B.1 increments the whole block: the block after ff…ff is 00…00.
    let (mut carried, mut zero) = ([0; 32], [0; 16]);
    encrypt(&key, "ffffffffffffffffffffffffffffffff", &mut carried);
    encrypt(&key, "00000000000000000000000000000000", &mut zero);
    assert_eq!(carried[16..], zero);
}
