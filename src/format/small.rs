//! Small sealed things: the targets of symlinks and extended attributes.
//!
//! A symlink's sealed target is the store symlink's own text, in base64url. An extended attribute is one sealed value
//! under the name `user.hyokfs.` and a keyed hash of its plaintext name; the name itself stands in the value: name
//! length 1 | name | value.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::{DirId, VolumeId};
use crate::crypto::envelope::{EnvelopeError, EnvelopeKey, OVERHEAD};
use crate::crypto::kdf::MacKey;
use crate::crypto::names::NameKey;

/// What the names of all attributes in the store start with.
pub const XATTR_PREFIX: &str = "user.hyokfs.";

/// The attribute that marks a new file until its first sync; no program on the mount sees it.
pub const MARK: &str = "user.hyokfs-new";

const MARK_LABEL: &[u8] = b"hyokfs/1 new file";
const TARGET_LABEL: &[u8] = b"hyokfs/1 symlink";
const XATTR_LABEL: &[u8] = b"hyokfs/1 xattr";
/// Names are sealed per directory; attributes are no directory's, so they take an id that none has but by a chance of
/// 2⁻¹²⁸.
const NOWHERE: [u8; 16] = *b"hyokfs xattr v1\0";

fn aad(label: &[u8], volume: VolumeId) -> Vec<u8> {
    [label, volume.as_bytes()].concat()
}

/// The value of [`MARK`]: bound to the directory that the file was made in and to its inode in the store, so that it marks
/// no other file. 16 bytes, which fit into the inode.
pub fn new_mark(mac: &MacKey, volume: VolumeId, dir: DirId, inode: u64) -> [u8; 16] {
    let tag = mac.tag(&[MARK_LABEL, volume.as_bytes(), dir.as_bytes(), &inode.to_le_bytes()]);
    let mut mark = [0; 16];
    mark.copy_from_slice(&tag[..16]);
    mark
}

/// Plaintext bytes of a target, from the length of the store symlink's text alone.
pub fn target_len(text: u64) -> u64 {
    (text * 3 / 4).saturating_sub(OVERHEAD as u64)
}

/// The store's text for `target`.
///
/// # Errors
/// The system gave no randomness, or the key was wiped.
pub fn seal_target(key: &EnvelopeKey, volume: VolumeId, target: &[u8]) -> Result<String, EnvelopeError> {
    Ok(URL_SAFE_NO_PAD.encode(key.seal(&aad(TARGET_LABEL, volume), target)?))
}

/// The target behind the store's text; `None` if it does not authenticate.
pub fn open_target(key: &EnvelopeKey, volume: VolumeId, text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let sealed = URL_SAFE_NO_PAD.decode(text).ok()?;
    key.open(&aad(TARGET_LABEL, volume), &sealed).ok()
}

/// The store's name for the attribute `name`.
///
/// # Errors
/// The cryptographic library failed.
pub fn xattr_key(key: &NameKey, name: &[u8]) -> Result<String, aws_lc_rs::error::Unspecified> {
    let sealed = key.seal(&NOWHERE, name)?;
    Ok(format!("{XATTR_PREFIX}{}", URL_SAFE_NO_PAD.encode(&sealed[..16])))
}

/// The store's value of an attribute. `name` has at most 255 bytes.
///
/// # Errors
/// The system gave no randomness, or the key was wiped.
pub fn seal_xattr(key: &EnvelopeKey, volume: VolumeId, name: &[u8], value: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    let length = u8::try_from(name.len()).map_err(|_| EnvelopeError::Library)?;
    let plain = Zeroizing::new([&[length], name, value].concat());
    key.seal(&aad(XATTR_LABEL, volume), &plain)
}

/// Name and value of an attribute; `None` if the store's value does not authenticate.
pub fn open_xattr(key: &EnvelopeKey, volume: VolumeId, sealed: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let plain = key.open(&aad(XATTR_LABEL, volume), sealed).ok()?;
    let (length, rest) = plain.split_first()?;
    let (name, value) = rest.split_at_checked(usize::from(*length))?;
    Some((name.to_vec(), value.to_vec()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{open_target, open_xattr, seal_target, seal_xattr, target_len};
    use crate::crypto::Secret;
    use crate::crypto::envelope::EnvelopeKey;
    use crate::format::VolumeId;

    #[test]
    fn targets_and_attributes_come_back_in_their_own_volume_alone() {
        let key = EnvelopeKey::new(Secret::from_fn(|bytes| bytes.fill(3)).unwrap());
        let (here, there) = (VolumeId([1; 16]), VolumeId([2; 16]));
        let text = seal_target(&key, here, b"../a/b").unwrap();
        assert_eq!(target_len(text.len() as u64), 6);
        assert_eq!(open_target(&key, here, text.as_bytes()).unwrap().as_slice(), b"../a/b");
        assert!(open_target(&key, there, text.as_bytes()).is_none());
        let value = seal_xattr(&key, here, b"user.a", b"value").unwrap();
        assert_eq!(open_xattr(&key, here, &value).unwrap(), (b"user.a".to_vec(), b"value".to_vec()));
        assert!(open_xattr(&key, there, &value).is_none());
        assert!(open_target(&key, here, b"!").is_none() && open_xattr(&key, here, &[]).is_none());
        assert!(seal_xattr(&key, here, &[b'a'; 256], b"").is_err());
    }
}
