//! Directory records: the target of the symlink `.hyokfs.dir` in every directory but the root, whose id is derived from the
//! volume secret.
//!
//! Text: `hyokfs1.` and base64url of: directory id 16 | number of parents 1 | their ids, 16 each | HMAC-SHA256 32. The
//! tag covers the volume id before the rest. A symlink because it is journalled with its directory: as a small file it
//! was found empty after power cuts. Always below 1,024 bytes, so that XFS keeps it in one block.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{DirId, VolumeId};
use crate::crypto::kdf::MacKey;

/// The record's name in its directory.
pub const DIR_RECORD: &str = ".hyokfs.dir";
/// More parents are only met while a directory is being moved: the old and the new one.
const MAX_PARENTS: usize = 3;
const PREFIX: &str = "hyokfs1.";
const LABEL: &[u8] = b"hyokfs/1 directory";
const MAC: usize = 32;

/// A directory record that cannot be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a directory's record .hyokfs.dir was altered or belongs to another volume; restore it from a backup")]
pub struct BadDirRecord;

/// What a directory is and where it may stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirRecord {
    /// Its id, for ever.
    pub dir: DirId,
    /// The directories that it may stand in.
    pub parents: Vec<DirId>,
}

impl DirRecord {
    /// The symlink's target; at most three parents are kept.
    pub fn encode(&self, volume: VolumeId, mac: &MacKey) -> String {
        let parents = &self.parents[..self.parents.len().min(MAX_PARENTS)];
        let mut bytes = self.dir.as_bytes().to_vec();
        bytes.push(parents.len() as u8);
        parents.iter().for_each(|parent| bytes.extend_from_slice(parent.as_bytes()));
        let tag = mac.tag(&[LABEL, volume.as_bytes(), &bytes]);
        bytes.extend_from_slice(&tag);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads and authenticates a target.
    pub fn decode(target: &[u8], volume: VolumeId, mac: &MacKey) -> Result<Self, BadDirRecord> {
        let text = target.strip_prefix(PREFIX.as_bytes()).ok_or(BadDirRecord)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadDirRecord)?;
        let (body, tag) = bytes.split_at_checked(bytes.len().saturating_sub(MAC)).ok_or(BadDirRecord)?;
        if !mac.verify(&[LABEL, volume.as_bytes(), body], tag) {
            return Err(BadDirRecord);
        }
        let (dir, rest) = body.split_first_chunk::<16>().ok_or(BadDirRecord)?;
        let (count, ids) = rest.split_first().ok_or(BadDirRecord)?;
        let (ids, []) = ids.as_chunks::<16>() else { return Err(BadDirRecord) };
        if ids.len() != usize::from(*count) || ids.len() > MAX_PARENTS {
            return Err(BadDirRecord);
        }
        Ok(DirRecord { dir: DirId(*dir), parents: ids.iter().copied().map(DirId).collect() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::DirRecord;
    use crate::crypto::Secret;
    use crate::crypto::kdf::MacKey;
    use crate::format::{DirId, VolumeId};

    fn mac() -> MacKey {
        MacKey::new(&Secret::from_fn(|bytes| bytes.fill(5)).unwrap())
    }

    #[test]
    fn a_record_comes_back_and_every_altered_byte_is_noticed() {
        for parents in 0..=3_u8 {
            let record = DirRecord { dir: DirId([1; 16]), parents: (0..parents).map(|i| DirId([i; 16])).collect() };
            let text = record.encode(VolumeId([7; 16]), &mac());
            assert!(text.len() < 1024);
            assert_eq!(DirRecord::decode(text.as_bytes(), VolumeId([7; 16]), &mac()), Ok(record));
            assert!(DirRecord::decode(text.as_bytes(), VolumeId([8; 16]), &mac()).is_err());
            for at in 0..text.len() {
                let mut altered = text.clone().into_bytes();
                altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
                assert!(DirRecord::decode(&altered, VolumeId([7; 16]), &mac()).is_err(), "byte {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let text = [b"hyokfs1.", &bytes[..]].concat();
            prop_assert!(DirRecord::decode(&text, VolumeId([7; 16]), &mac()).is_err());
            prop_assert!(DirRecord::decode(&bytes, VolumeId([7; 16]), &mac()).is_err());
        }
    }

    #[test]
    fn the_bytes_on_disk_are_frozen() {
        let record = DirRecord { dir: DirId([1; 16]), parents: vec![DirId([2; 16])] };
        assert_eq!(
            record.encode(VolumeId([7; 16]), &mac()),
            "hyokfs1.AQEBAQEBAQEBAQEBAQEBAQECAgICAgICAgICAgICAgICdX2EcyfiyPhZakNyE8VAkpp1AzyeYspb9nYK44W0L-U"
        );
    }
}
