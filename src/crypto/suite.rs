//! The cipher suites of a volume and the page cipher: AES-256-GCM or ChaCha20-Poly1305 (RFC 8439) by `aws-lc-rs`.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// Bytes of a page key.
pub const KEY_LEN: usize = 32;
/// Bytes of a nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of an authentication tag.
pub const TAG_LEN: usize = 16;

/// How the pages of a file are sealed. It is part of every page key's derivation, so a downgrade gives another key.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Suite {
    /// AES-256-GCM (NIST SP 800-38D): the faster one where the CPU has AES instructions.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439): constant-time on any CPU.
    ChaCha20Poly1305,
}

/// A text names no cipher suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cipher suite is one of: aes-256-gcm, chacha20-poly1305 (or auto)")]
pub struct UnknownSuite;

/// The cryptographic library refused: a wrong tag when opening, or no randomness, memory or key when sealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cryptographic library refused the operation")]
pub struct CipherError;

impl From<aws_lc_rs::error::Unspecified> for CipherError {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        CipherError
    }
}

impl Suite {
    /// The faster suite on this CPU: AES-256-GCM where it has AES and carry-less multiplication, else ChaCha20.
    pub fn auto() -> Self {
        if has_aes() { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 }
    }

    /// The suite's byte in a file header and in the key derivation.
    pub const fn code(self) -> u8 {
        match self {
            Suite::Aes256Gcm => 1,
            Suite::ChaCha20Poly1305 => 2,
        }
    }

    /// The suite of a byte of a file header, or `None` where this program knows no such suite.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Suite::Aes256Gcm),
            2 => Some(Suite::ChaCha20Poly1305),
            _ => None,
        }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Suite::Aes256Gcm => "aes-256-gcm",
            Suite::ChaCha20Poly1305 => "chacha20-poly1305",
        })
    }
}

impl FromStr for Suite {
    type Err = UnknownSuite;
    fn from_str(text: &str) -> Result<Self, UnknownSuite> {
        match text {
            "aes-256-gcm" => Ok(Suite::Aes256Gcm),
            "chacha20-poly1305" => Ok(Suite::ChaCha20Poly1305),
            _ => Err(UnknownSuite),
        }
    }
}

/// One page key, scheduled. It lies on the heap of the library, which wipes what it frees.
pub struct PageCipher(LessSafeKey);

impl fmt::Debug for PageCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageCipher")
    }
}

impl PageCipher {
    /// Schedules `key` for `suite`.
    pub fn new(suite: Suite, key: &[u8; KEY_LEN]) -> Result<Self, CipherError> {
        Ok(PageCipher(LessSafeKey::new(UnboundKey::new(suite.algorithm(), key)?)))
    }

    /// Seals `plain` into `cipher`, which must be as long, and writes the tag. `nonce` must never have been used with
    /// this key: draw it at random, at most 2³² times.
    pub fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        plain: &[u8],
        cipher: &mut [u8],
        tag: &mut [u8; TAG_LEN],
    ) -> Result<(), CipherError> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        Ok(self.0.seal_out_of_place_scatter(nonce, Aad::from(aad), plain, cipher, &[], tag)?)
    }

    /// Opens `cipher` into `plain`, which must be as long. After an error `plain` holds nothing that may be used.
    pub fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        cipher: &[u8],
        tag: &[u8; TAG_LEN],
        plain: &mut [u8],
    ) -> Result<(), CipherError> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        Ok(self.0.open_separate_gather(nonce, Aad::from(aad), cipher, tag, plain)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn names_and_codes_round_trip() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            assert_eq!(suite.to_string().parse(), Ok(suite));
            assert_eq!(Suite::from_code(suite.code()), Some(suite));
        }
        assert_eq!("aes-128-gcm".parse::<Suite>(), Err(UnknownSuite));
        assert_eq!(Suite::from_code(0), None);
        assert_eq!(Suite::from_code(3), None);
    }

    fn hex(text: &str) -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }

    /// RFC 8439 §2.8.2.
    #[test]
    fn chacha_gives_the_published_bytes() {
        let key: [u8; 32] = std::array::from_fn(|i| 0x80 + i as u8);
        let cipher = PageCipher::new(Suite::ChaCha20Poly1305, &key).unwrap();
        let plain = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
            sunscreen would be it.";
        let nonce: [u8; 12] = hex("070000004041424344454647").try_into().unwrap();
        let aad = hex("50515253c0c1c2c3c4c5c6c7");
        let (mut out, mut tag) = (vec![0; plain.len()], [0; 16]);
        cipher.seal(nonce, &aad, plain, &mut out, &mut tag).unwrap();
        assert_eq!(tag.to_vec(), hex("1ae10b594f09e26a7e902ecbd0600691"));
        assert_eq!(out[..16], hex("d31a8d34648e60db7b86afbc53ef7ec2"));
        let mut back = vec![0; plain.len()];
        cipher.open(nonce, &aad, &out, &tag, &mut back).unwrap();
        assert_eq!(back, plain);
    }

    /// The GCM specification's test case 16 (256-bit key, 60 bytes, 20 bytes of additional data).
    #[test]
    fn aes_gives_the_published_bytes() {
        let key: [u8; 32] = hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308").try_into().unwrap();
        let cipher = PageCipher::new(Suite::Aes256Gcm, &key).unwrap();
        let plain =
            hex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525
            b16aedf5aa0de657ba637b39");
        let nonce: [u8; 12] = hex("cafebabefacedbaddecaf888").try_into().unwrap();
        let aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let (mut out, mut tag) = (vec![0; plain.len()], [0; 16]);
        cipher.seal(nonce, &aad, &plain, &mut out, &mut tag).unwrap();
        assert_eq!(tag.to_vec(), hex("76fc6ece0f4e1768cddf8853bb2d551b"));
        assert_eq!(
            out,
            hex("522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838
                c5f61e6393ba7a0abcc9f662")
        );
    }

    #[test]
    fn a_changed_bit_anywhere_is_refused() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let cipher = PageCipher::new(suite, &[7; 32]).unwrap();
            let (mut out, mut tag) = ([0; 40], [0; 16]);
            cipher.seal([1; 12], b"position", &[5; 40], &mut out, &mut tag).unwrap();
            let mut back = [0; 40];
            cipher.open([1; 12], b"position", &out, &tag, &mut back).unwrap();
            assert_eq!(back, [5; 40]);
            assert!(cipher.open([2; 12], b"position", &out, &tag, &mut back).is_err());
            assert!(cipher.open([1; 12], b"Position", &out, &tag, &mut back).is_err());
            out[39] ^= 1;
            assert!(cipher.open([1; 12], b"position", &out, &tag, &mut back).is_err());
            out[39] ^= 1;
            tag[0] ^= 0x80;
            assert!(cipher.open([1; 12], b"position", &out, &tag, &mut back).is_err());
        }
    }
}
