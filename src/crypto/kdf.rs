//! Every key below the volume secret, by HKDF-SHA256 (RFC 5869), and message authentication by HMAC-SHA256 (RFC 2104).

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::hmac;

use super::envelope::EnvelopeKey;
use super::names::NameKey;
use super::{ArenaFull, Secret};

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Why a key could not be derived.
#[derive(Debug, thiserror::Error)]
pub enum DeriveError {
    /// No locked memory is left.
    #[error(transparent)]
    Arena(#[from] ArenaFull),
    /// The key was wiped meanwhile, so that what was derived came from zeros and was thrown away; or the library refused,
    /// which it does for lengths that are never asked for.
    #[error("deriving a key failed: the volume was locked meanwhile; unlock it and try again")]
    Library,
}

/// HKDF-SHA256 with the concatenation of `info` as info; fills all of `out`.
pub fn hkdf(salt: &[u8], key: &[u8], info: &[&[u8]], out: &mut [u8]) -> Result<(), DeriveError> {
    Salt::new(HKDF_SHA256, salt)
        .extract(key)
        .expand(info, Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .map_err(|_| DeriveError::Library)
}

/// Authenticates messages: HMAC-SHA256, 32-byte tags, compared in constant time.
pub struct MacKey(Box<hmac::Key>);

impl MacKey {
    /// Takes a 32-byte key. The key schedule lies outside the arena and goes with this value.
    pub fn new(key: &Secret) -> Self {
        MacKey(Box::new(hmac::Key::new(hmac::HMAC_SHA256, key.expose())))
    }

    /// The tag of the concatenation of `parts`.
    pub fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        parts.iter().for_each(|part| context.update(part));
        let mut tag = [0; 32];
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }

    /// Whether `tag` is the tag of the concatenation of `parts`.
    pub fn verify(&self, parts: &[&[u8]], tag: &[u8]) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.tag(parts), tag).is_ok()
    }
}

/// The keys of one volume, each derived from the volume secret under a label of its own.
pub struct VolumeKeys {
    /// Encrypts names.
    pub names: NameKey,
    /// Authenticates file headers and directory records.
    pub header: MacKey,
    /// Goes into every page key beside the file's own key.
    pub mixing: Secret,
    /// Authenticates the volume record.
    pub record: MacKey,
    /// Seals link targets and extended attributes.
    pub small: EnvelopeKey,
    /// The id of the root directory: derived, so that the root needs no record that could be lost. No secret.
    pub root: [u8; 16],
    fingerprint: String,
}

impl VolumeKeys {
    /// Derives all keys: `HKDF(salt = volume id, key = volume secret, info = "hyokfs/1 " ‖ label)`.
    ///
    /// # Errors
    /// No locked memory is left, or `secret` was wiped.
    pub fn derive(secret: &Secret, volume: &[u8; 16]) -> Result<Self, DeriveError> {
        let keys = Self::all(secret, volume);
        crate::sys::stack::scrub();
        if secret.is_wiped() { Err(DeriveError::Library) } else { keys }
    }

    #[inline(never)]
    fn all(secret: &Secret, volume: &[u8; 16]) -> Result<Self, DeriveError> {
        let key =
            |label: &[u8]| Secret::try_from_fn(|bytes| hkdf(volume, secret.expose(), &[b"hyokfs/1 ", label], bytes));
        let mut root = [0; 16];
        hkdf(volume, secret.expose(), &[b"hyokfs/1 root directory"], &mut root)?;
        let mut print = [0; 10];
        hkdf(volume, secret.expose(), &[b"hyokfs/1 fingerprint"], &mut print)?;
        let groups: Vec<String> = print.chunks(2).map(|pair| format!("{:02x}{:02x}", pair[0], pair[1])).collect();
        Ok(VolumeKeys {
            names: NameKey::new(&key(b"name encryption")?, &key(b"name authentication")?)
                .map_err(|_| DeriveError::Library)?,
            header: MacKey::new(&key(b"header")?),
            mixing: key(b"mixing")?,
            record: MacKey::new(&key(b"volume record")?),
            small: EnvelopeKey::new(key(b"small")?),
            root,
            fingerprint: groups.join("-"),
        })
    }

    /// 80 bits derived from the volume secret, to recognise the volume by: `xxxx-xxxx-xxxx-xxxx-xxxx`.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// Commits a file's header to its key: `HKDF(salt = file id, key = file key, info = "hyokfs/1 commitment")`, 32 bytes.
/// AES-GCM alone does not: a page can be made to open under two keys.
///
/// # Errors
/// `file_key` was wiped.
pub fn commitment(file_key: &Secret, file: &[u8; 16]) -> Result<[u8; 32], DeriveError> {
    let mut out = [0; 32];
    hkdf(file, file_key.expose(), &[b"hyokfs/1 commitment"], &mut out)?;
    // A header with a commitment to zeros would make its file unreadable for ever.
    if file_key.is_wiped() { Err(DeriveError::Library) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{DeriveError, MacKey, VolumeKeys, commitment, hkdf};
    use crate::crypto::Secret;

    #[test]
    fn hkdf_gives_the_vector_of_rfc_5869_a1() {
        let salt: Vec<u8> = (0..=12).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let mut out = [0; 42];
        hkdf(&salt, &[0x0b; 22], &[&info], &mut out).unwrap();
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865");
    }

    #[test]
    fn a_volume_is_known_by_its_secret_and_its_id() {
        let secret = |byte| Secret::from_fn(|bytes| bytes.fill(byte)).unwrap();
        let print = |byte, id| VolumeKeys::derive(&secret(byte), &[id; 16]).unwrap().fingerprint().to_owned();
        assert_eq!(print(1, 1), print(1, 1));
        assert_ne!(print(1, 1), print(2, 1));
        assert_ne!(print(1, 1), print(1, 2));
        assert_eq!(print(1, 1).len(), 24);
        assert_ne!(commitment(&secret(1), &[1; 16]).unwrap(), commitment(&secret(1), &[2; 16]).unwrap());
    }

    #[test]
    fn nothing_is_derived_from_a_wiped_secret() {
        let secret = Secret::from_fn(|bytes| bytes.fill(1)).unwrap();
        secret.wipe();
        assert!(matches!(VolumeKeys::derive(&secret, &[1; 16]), Err(DeriveError::Library)));
        assert!(matches!(commitment(&secret, &[1; 16]), Err(DeriveError::Library)));
    }

    /// Computed with Python's `cryptography` from `docs/format.md`: labels, salt and order must never change.
    #[test]
    fn the_derivations_are_frozen() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let secret = Secret::from_fn(|bytes| bytes.fill(1)).unwrap();
        let keys = VolumeKeys::derive(&secret, &[2; 16]).unwrap();
        assert_eq!(hex(keys.mixing.expose()), "c60167cd6e83dbf75d748bf362962c212ff9209db7af1317537fac33a0ba6a07");
        assert_eq!(
            hex(&keys.header.tag(&[b"text"])),
            "6a8786cfe3e117c82568434ec0428c5f90407e4454bed596de05f2c31c82d25a"
        );
        assert_eq!(
            hex(&keys.record.tag(&[b"text"])),
            "815fb07abb2bb96e0d4b6d09b30e8aa91e35f17b09bff5131a77e855a9db1a98"
        );
        assert_eq!(hex(&keys.names.seal(&[3; 16], b"name").unwrap()), "319eeca5be2b73fb5bd0df1849a881656fdb379d");
        assert_eq!(hex(&keys.root), "018ebe5ce8becfe4bf760242bea79c01");
        assert_eq!(keys.fingerprint(), "dd43-dbfd-b521-de73-50af");
        assert_eq!(
            hex(&commitment(&secret, &[4; 16]).unwrap()),
            "7eb6e866729bba4a9e71e85cd5b10157873c2daafc77cf3cffadc230861bacbd"
        );
    }

    #[test]
    fn a_tag_holds_for_its_message_alone() {
        let key = MacKey::new(&Secret::from_fn(|bytes| bytes.fill(3)).unwrap());
        let tag = key.tag(&[b"a", b"bc"]);
        assert!(key.verify(&[b"abc"], &tag));
        assert!(!key.verify(&[b"abd"], &tag));
        assert!(!key.verify(&[b"abc"], &tag[..31]));
    }
}
