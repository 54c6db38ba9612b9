//! Deterministic authenticated encryption of names: HMAC-SHA256 as synthetic IV, then AES-256-CTR.
//!
//! The construction is that of SIV (RFC 5297) with parts that are all FIPS-approved: the IV is the first 16 bytes of
//! HMAC(directory id ‖ name), so the same name in the same directory always gives the same bytes, and in another
//! directory others. It reveals equality within a directory and the length, and nothing else.

use aws_lc_rs::cipher::{
    AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;

use super::Secret;

/// Bytes that encryption adds: the synthetic IV.
pub const OVERHEAD: usize = 16;

/// Encrypts and decrypts names. The key schedules lie outside the arena and go with this value.
pub struct NameKey {
    // Boxed, so that moving a `NameKey` leaves no copies of the schedules on the stack.
    mac: Box<hmac::Key>,
    encrypt: Box<EncryptingKey>,
    decrypt: Box<DecryptingKey>,
}

impl NameKey {
    /// Takes two independent 32-byte keys.
    pub fn new(encryption: &Secret, authentication: &Secret) -> Result<Self, Unspecified> {
        let key = || UnboundCipherKey::new(&AES_256, encryption.expose());
        Ok(NameKey {
            mac: Box::new(hmac::Key::new(hmac::HMAC_SHA256, authentication.expose())),
            encrypt: Box::new(EncryptingKey::ctr(key()?)?),
            decrypt: Box::new(DecryptingKey::ctr(key()?)?),
        })
    }

    fn iv(&self, directory: &[u8; 16], name: &[u8]) -> [u8; OVERHEAD] {
        let mut context = hmac::Context::with_key(&self.mac);
        context.update(directory);
        context.update(name);
        let mut iv = [0; OVERHEAD];
        iv.copy_from_slice(&context.sign().as_ref()[..OVERHEAD]);
        iv
    }

    /// IV 16 | ciphertext, as long as the name.
    pub fn seal(&self, directory: &[u8; 16], name: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let mut out = vec![0; OVERHEAD + name.len()];
        self.seal_into(directory, name, &mut out)?;
        Ok(out)
    }

    /// Like [`NameKey::seal`], into the start of `out`, and gives that part of it; allocates nothing. Fails if `out`
    /// has no room for [`OVERHEAD`] bytes more than the name.
    pub fn seal_into<'a>(&self, directory: &[u8; 16], name: &[u8], out: &'a mut [u8]) -> Result<&'a [u8], Unspecified> {
        let out = out.get_mut(..OVERHEAD + name.len()).ok_or(Unspecified)?;
        let iv = self.iv(directory, name);
        let (head, body) = out.split_at_mut(OVERHEAD);
        head.copy_from_slice(&iv);
        body.copy_from_slice(name);
        self.encrypt.less_safe_encrypt(body, EncryptionContext::Iv128(FixedLength::from(iv)))?;
        Ok(out)
    }

    /// The name, if `sealed` is one of this directory.
    pub fn open(&self, directory: &[u8; 16], sealed: &[u8]) -> Option<Vec<u8>> {
        let (head, body) = sealed.split_first_chunk::<OVERHEAD>()?;
        let mut name = body.to_vec();
        let context = DecryptionContext::Iv128(FixedLength::from(*head));
        self.decrypt.decrypt(&mut name, context).ok()?;
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.iv(directory, &name), head).ok()?;
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{NameKey, OVERHEAD};
    use crate::crypto::Secret;

    fn key() -> NameKey {
        let secret = |byte| Secret::from_fn(|bytes| bytes.fill(byte)).unwrap();
        NameKey::new(&secret(1), &secret(2)).unwrap()
    }

    #[test]
    fn a_name_comes_back_in_its_own_directory_only() {
        for name in [&b"a"[..], b"letter.txt", &[0xff; 255]] {
            let sealed = key().seal(&[7; 16], name).unwrap();
            assert_eq!(sealed, key().seal(&[7; 16], name).unwrap(), "the same each time");
            assert_eq!(key().open(&[7; 16], &sealed).unwrap(), name);
            assert!(key().open(&[8; 16], &sealed).is_none());
            for at in 0..sealed.len() {
                let mut altered = sealed.clone();
                altered[at] ^= 0x40;
                assert!(key().open(&[7; 16], &altered).is_none(), "byte {at}");
            }
        }
        assert!(key().open(&[7; 16], &[1; 15]).is_none());
        assert!(key().seal_into(&[7; 16], b"abc", &mut [0; OVERHEAD + 2]).is_err());
        assert_eq!(
            key().seal_into(&[7; 16], b"abc", &mut [9; OVERHEAD + 9]).unwrap(),
            key().seal(&[7; 16], b"abc").unwrap()
        );
    }

    /// Computed with Python's `hmac` and `cryptography` from the description above: the format must never change.
    #[test]
    fn the_bytes_on_disk_are_frozen() {
        let sealed = key().seal(&[7; 16], b"letter.txt").unwrap();
        let hex: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "3da86ee61665f69eadf599f91feef5e7f2402b29770c65a438c5");
    }
}
