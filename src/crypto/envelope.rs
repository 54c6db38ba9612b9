//! XChaCha20-Poly1305 for everything small and long-lived: link targets, extended attributes, keys under a group key.
//!
//! The 24-byte nonce is random (draft-irtf-cfrg-xchacha-03 §2: 192 bits make that safe for any number of messages).
//! Layout: nonce 24 | ciphertext, as long as the plaintext | tag 16.

use std::sync::Arc;

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::{ArenaFull, Secret};

/// Bytes that sealing adds.
pub const OVERHEAD: usize = NONCE + TAG;
const NONCE: usize = 24;
const TAG: usize = 16;

/// A sealed thing could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It was altered, or sealed under another key or for another place.
    #[error(
        "a sealed value does not authenticate: it was altered or belongs elsewhere; restore the file from a backup"
    )]
    Forged,
    /// The key was wiped meanwhile ([`EnvelopeKey::is_wiped`]: nothing is ever sealed or opened under 32 zero bytes), the
    /// system gave no random numbers, or the library refused a length.
    #[error(
        "sealing or opening failed: the volume was locked meanwhile, or there are no random numbers; unlock it and try again"
    )]
    Library,
    /// No locked memory is left for what was in it.
    #[error(transparent)]
    Arena(#[from] ArenaFull),
}

/// Seals and opens under one 32-byte key, which stays in the arena; the cipher is set up for each use.
pub struct EnvelopeKey(Arc<Secret>);

impl EnvelopeKey {
    /// Takes the key.
    pub fn new(key: Secret) -> Self {
        EnvelopeKey(Arc::new(key))
    }

    /// Uses a key that others hold, too.
    pub fn shared(key: Arc<Secret>) -> Self {
        EnvelopeKey(key)
    }

    /// Zeroes the key for every owner: from then on nothing opens and nothing is sealed ([`EnvelopeError::Library`]).
    pub fn wipe(&self) {
        self.0.wipe();
    }

    /// Whether the key has been wiped.
    pub fn is_wiped(&self) -> bool {
        self.0.is_wiped()
    }

    fn cipher(&self) -> Result<XChaCha20Poly1305, EnvelopeError> {
        let cipher = XChaCha20Poly1305::new(self.0.expose().into());
        // Looked at afterwards: a wipe may come while the key is being copied.
        if self.0.is_wiped() { Err(EnvelopeError::Library) } else { Ok(cipher) }
    }

    /// Seals `plain`, bound to `aad`.
    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
        let mut out = vec![0; NONCE + plain.len() + TAG];
        let (head, tail) = out.split_at_mut(NONCE);
        aws_lc_rs::rand::fill(head).map_err(|_| EnvelopeError::Library)?;
        let nonce = XNonce::try_from(&*head).map_err(|_| EnvelopeError::Library)?;
        let (body, tag) = tail.split_at_mut(plain.len());
        let cipher = self.cipher()?;
        body.copy_from_slice(plain);
        let made = cipher.encrypt_inout_detached(&nonce, aad, body.into()).map_err(|_| EnvelopeError::Library)?;
        tag.copy_from_slice(&made);
        Ok(out)
    }

    /// Opens what [`EnvelopeKey::seal`] made for the same `aad`. The result is wiped when dropped.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, EnvelopeError> {
        let (nonce, body, tag) = split(sealed)?;
        let mut plain = Zeroizing::new(body.to_vec());
        self.cipher()?
            .decrypt_inout_detached(&nonce, aad, plain.as_mut_slice().into(), &tag)
            .map_err(|_| EnvelopeError::Forged)?;
        Ok(plain)
    }

    /// Opens a sealed 32-byte key straight into locked memory.
    pub fn open_secret(&self, aad: &[u8], sealed: &[u8]) -> Result<Secret, EnvelopeError> {
        let (nonce, body, tag) = split(sealed)?;
        if body.len() != 32 {
            return Err(EnvelopeError::Forged);
        }
        let cipher = self.cipher()?;
        Secret::try_from_fn(|bytes| {
            bytes.copy_from_slice(body);
            cipher
                .decrypt_inout_detached(&nonce, aad, bytes.as_mut_slice().into(), &tag)
                .map_err(|_| EnvelopeError::Forged)
        })
    }
}

fn split(sealed: &[u8]) -> Result<(XNonce, &[u8], Tag), EnvelopeError> {
    let body = sealed.len().checked_sub(OVERHEAD).ok_or(EnvelopeError::Forged)?;
    let nonce = XNonce::try_from(&sealed[..NONCE]).map_err(|_| EnvelopeError::Forged)?;
    let tag = Tag::try_from(&sealed[NONCE + body..]).map_err(|_| EnvelopeError::Forged)?;
    Ok((nonce, &sealed[NONCE..NONCE + body], tag))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{EnvelopeError, EnvelopeKey, OVERHEAD};
    use crate::crypto::Secret;

    fn key(byte: u8) -> EnvelopeKey {
        EnvelopeKey::new(Secret::from_fn(|bytes| bytes.fill(byte)).unwrap())
    }

    #[test]
    fn what_was_sealed_opens_only_for_the_same_key_and_place() {
        let sealed = key(1).seal(b"here", b"some text").unwrap();
        assert_eq!(sealed.len(), 9 + OVERHEAD);
        assert_eq!(key(1).open(b"here", &sealed).unwrap().as_slice(), b"some text");
        assert!(key(1).open(b"there", &sealed).is_err());
        assert!(key(2).open(b"here", &sealed).is_err());
    }

    #[test]
    fn every_altered_byte_and_every_cut_is_noticed() {
        let sealed = key(1).seal(b"", &[9; 32]).unwrap();
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(key(1).open(b"", &altered).is_err(), "byte {at}");
            assert!(key(1).open_secret(b"", &altered).is_err(), "byte {at}");
            assert!(key(1).open(b"", &sealed[..at]).is_err(), "cut to {at}");
        }
        assert_eq!(key(1).open_secret(b"", &sealed).unwrap().expose(), &[9; 32]);
        let short = key(1).seal(b"", &[9; 31]).unwrap();
        assert!(matches!(key(1).open_secret(b"", &short), Err(EnvelopeError::Forged)));
    }

    #[test]
    fn a_wiped_key_seals_and_opens_nothing() {
        let wiped = key(1);
        let sealed = wiped.seal(b"", &[9; 32]).unwrap();
        wiped.wipe();
        assert!(wiped.is_wiped());
        assert!(matches!(wiped.seal(b"", b"text"), Err(EnvelopeError::Library)));
        assert!(matches!(wiped.open(b"", &sealed), Err(EnvelopeError::Library)));
        assert!(matches!(wiped.open_secret(b"", &sealed), Err(EnvelopeError::Library)));
    }

    /// Computed with Python's `cryptography`, not by this program: the layout must never change.
    #[test]
    fn the_bytes_on_disk_are_frozen() {
        let sealed =
            hex("000102030405060708090a0b0c0d0e0f1011121314151617db78c6e0da683edd51ca56c23bb9bc5e1825cd308555e0cd29");
        assert_eq!(key(7).open(b"place", &sealed).unwrap().as_slice(), b"some text");
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }
}
