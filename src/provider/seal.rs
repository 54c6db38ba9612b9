//! A 32-byte key sealed under another one: XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) with a random nonce.
//!
//! `nonce 24 | sealed key 32 | tag 16`: 72 bytes. Nonces of 192 random bits never meet twice, however many are drawn.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};

use crate::crypto::secret::{ArenaFull, Secret, SecretError};

/// Bytes of a sealed key.
pub const SEALED: usize = NONCE + 32 + TAG;
const NONCE: usize = 24;
const TAG: usize = 16;

/// Why a sealed key was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Altered, cut, sealed under another key or for another place.
    #[error("the sealed key was altered, or belongs to another key or another place")]
    Refused,
    /// See [`ArenaFull`].
    #[error(transparent)]
    Full(#[from] ArenaFull),
}

fn cipher(under: &Secret) -> XChaCha20Poly1305 {
    // The reference is to the locked memory; the cipher's own copy is wiped when it goes (feature `zeroize`).
    XChaCha20Poly1305::new(<&Key>::from(under.expose()))
}

/// Seals `key` under `under`, bound to `place`.
///
/// # Errors
/// The system gives no random bytes.
pub fn seal(under: &Secret, place: &[u8], key: &Secret) -> Result<[u8; SEALED], SecretError> {
    let mut nonce = [0; NONCE];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| SecretError::NoRandom)?;
    let mut sealed = [0; SEALED];
    sealed[..NONCE].copy_from_slice(&nonce);
    sealed[NONCE..NONCE + 32].copy_from_slice(key.expose());
    let tag =
        cipher(under).encrypt_inout_detached(&XNonce::from(nonce), place, (&mut sealed[NONCE..NONCE + 32]).into());
    match tag {
        Ok(tag) => sealed[NONCE + 32..].copy_from_slice(&tag),
        Err(_) => {
            // Only a `place` of more than 2^64 bytes comes here. Leave no plaintext in the buffer.
            zeroize::Zeroize::zeroize(&mut sealed);
            return Err(SecretError::Length(place.len()));
        }
    }
    Ok(sealed)
}

/// Opens what [`seal`] made, straight into locked memory.
///
/// # Errors
/// The seal does not fit this key and place, or the locked memory is full.
pub fn open(under: &Secret, place: &[u8], sealed: &[u8]) -> Result<Secret, OpenError> {
    if sealed.len() != SEALED {
        return Err(OpenError::Refused);
    }
    let (nonce, rest) = sealed.split_at(NONCE);
    let (body, tag) = rest.split_at(32);
    let nonce = XNonce::try_from(nonce).map_err(|_| OpenError::Refused)?;
    let tag = Tag::try_from(tag).map_err(|_| OpenError::Refused)?;
    Secret::try_from_fn(|key| {
        key.copy_from_slice(body);
        cipher(under).decrypt_inout_detached(&nonce, place, (&mut key[..]).into(), &tag).map_err(|_| OpenError::Refused)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn opens_only_whole_under_the_same_key_and_place() {
        let under = Secret::copy_from(&[1; 32]).unwrap();
        let key = Secret::copy_from(&[2; 32]).unwrap();
        let sealed = seal(&under, b"here", &key).unwrap();
        assert_ne!(sealed, seal(&under, b"here", &key).unwrap(), "a new nonce each time");
        assert_eq!(open(&under, b"here", &sealed).unwrap().expose(), &[2; 32]);
        assert_eq!(open(&under, b"there", &sealed).unwrap_err(), OpenError::Refused);
        assert_eq!(open(&key, b"here", &sealed).unwrap_err(), OpenError::Refused);
        assert_eq!(open(&under, b"here", &sealed[..71]).unwrap_err(), OpenError::Refused);
        for at in 0..SEALED {
            let mut altered = sealed;
            altered[at] ^= 1;
            assert_eq!(open(&under, b"here", &altered).unwrap_err(), OpenError::Refused, "byte {at}");
        }
    }

    /// Vector of draft-irtf-cfrg-xchacha-03 A.3.1 has a longer text; its first 32 bytes of keystream are checked here
    /// through the shared prefix: the same key, nonce and text give the same first 32 bytes of ciphertext.
    #[test]
    fn the_cipher_is_the_drafts() {
        let key: [u8; 32] = std::array::from_fn(|i| 0x80 + i as u8);
        let nonce: [u8; 24] = std::array::from_fn(|i| 0x40 + i as u8);
        let mut text = *b"Ladies and Gentlemen of the clas";
        XChaCha20Poly1305::new(&Key::from(key))
            .encrypt_inout_detached(&XNonce::from(nonce), b"", (&mut text[..]).into())
            .unwrap();
        let expected = [
            0xbd, 0x6d, 0x17, 0x9d, 0x3e, 0x83, 0xd4, 0x3b, 0x95, 0x76, 0x57, 0x94, 0x93, 0xc0, 0xe9, 0x39, 0x57, 0x2a,
            0x17, 0x00, 0x25, 0x2b, 0xfa, 0xcc, 0xbe, 0xd2, 0x90, 0x2c, 0x21, 0x39, 0x6c, 0xbb,
        ];
        assert_eq!(text, expected);
    }
}
