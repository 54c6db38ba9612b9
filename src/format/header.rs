//! The file header: the first bytes of every ciphertext file.
//!
//! All numbers are little-endian.
//!
//! | offset | length | field |
//! |---|---|---|
//! | 0 | 8 | magic `HYOKFS\0\x01` |
//! | 8 | 2 | format version, 1 |
//! | 10 | 1 | cipher suite: 1 AES-256-GCM, 2 ChaCha20-Poly1305 |
//! | 11 | 1 | 0 |
//! | 12 | 2 | header length |
//! | 14 | 2 | 0 |
//! | 16 | 16 | volume id |
//! | 32 | 16 | file id |
//! | 48 | 32 | key commitment |
//! | 80 | 1 | parents: 1–3, or 255 for unbound |
//! | 81 | 15 | 0 |
//! | 96 | 48 | directory ids of the parents, then 0 |
//! | 144 | … | key slots ([`super::slots`]), then 0 |
//! | header length − 32 | 32 | HMAC-SHA256 of all before |

use super::slots::{self, KeySlot};
use super::{DirId, FileId, VolumeId};
use crate::crypto::kdf::MacKey;
use crate::crypto::suite::Suite;

/// The header's length where the volume record does not say otherwise, in bytes.
pub const HEADER_LEN: usize = 1024;
/// A file that is linked into more directories than this is bound to none.
pub const MAX_PARENTS: usize = 3;
/// The format version that this program writes, and the only one it reads.
pub const FORMAT_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"HYOKFS\0\x01";
const PARENTS: usize = 80;
const SLOTS: usize = 144;
const MAC: usize = 32;
const UNBOUND: u8 = 255;

/// Why header bytes give no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Nothing was written yet: the file's creation was cut short.
    #[error("the file has no header: its creation was cut short; remove it, or restore it from a backup")]
    Interrupted,
    /// Not a file of this format.
    #[error("not a hyokfs file, or its header was overwritten; restore it from a backup")]
    NotOurs,
    /// A version that this program does not know.
    #[error("the file's format version is {0}, this program reads version 1: use a newer hyokfs")]
    Version(u16),
    /// The tag does not fit.
    #[error(
        "the file's header does not authenticate: it was altered or belongs to another volume; restore it from a backup"
    )]
    Forged,
    /// It authenticates, but a field is out of range: a defect of the program that wrote it.
    #[error("the file's header is authentic but has a field out of range; report this as a defect")]
    Field,
    /// The slots do not fit, or there is no such header length.
    #[error(
        "the wrapped keys need more than the volume's header length of {0} bytes: make the volume with longer headers"
    )]
    TooLong(usize),
}

/// The directories that a file may be opened in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parents {
    /// One to three directories.
    Bound(Vec<DirId>),
    /// Any directory of the volume.
    Unbound,
}

impl Parents {
    /// Whether a file with these parents may be opened in `directory`.
    pub fn allow(&self, directory: &DirId) -> bool {
        match self {
            Parents::Bound(ids) => ids.contains(directory),
            Parents::Unbound => true,
        }
    }

    /// With one directory more.
    pub fn with(&self, directory: DirId) -> Parents {
        match self {
            Parents::Bound(ids) if ids.contains(&directory) => self.clone(),
            Parents::Bound(ids) if ids.len() < MAX_PARENTS => {
                Parents::Bound(ids.iter().copied().chain([directory]).collect())
            }
            _ => Parents::Unbound,
        }
    }

    /// With one directory less; the last one and "unbound" stay.
    pub fn without(&self, directory: &DirId) -> Parents {
        match self {
            Parents::Bound(ids) if ids.len() > 1 => {
                Parents::Bound(ids.iter().copied().filter(|id| id != directory).collect())
            }
            other => other.clone(),
        }
    }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHeader {
    /// The cipher of the pages.
    pub suite: Suite,
    /// The volume.
    pub volume: VolumeId,
    /// The file.
    pub file: FileId,
    /// The wrappings of its key.
    pub slots: Vec<KeySlot>,
    /// Commits the header to the key.
    pub commitment: [u8; 32],
    /// Where it may be opened.
    pub parents: Parents,
}

impl FileHeader {
    /// The header's `length` bytes (1024, 2048 or 3072), authenticated.
    pub fn encode(&self, length: usize, mac: &MacKey) -> Result<Vec<u8>, HeaderError> {
        // Without a slot the file's key would be lost the moment it leaves memory.
        if self.slots.is_empty() {
            return Err(HeaderError::Field);
        }
        let slots = slots::encode(&self.slots).ok_or(HeaderError::TooLong(length))?;
        if !valid_length(length) || SLOTS + slots.len() + MAC > length {
            return Err(HeaderError::TooLong(length));
        }
        let mut out = vec![0; length];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[10] = self.suite.code();
        out[12..14].copy_from_slice(&(length as u16).to_le_bytes());
        out[16..32].copy_from_slice(self.volume.as_bytes());
        out[32..48].copy_from_slice(self.file.as_bytes());
        out[48..80].copy_from_slice(&self.commitment);
        match &self.parents {
            Parents::Unbound => out[PARENTS] = UNBOUND,
            Parents::Bound(ids) if (1..=MAX_PARENTS).contains(&ids.len()) => {
                out[PARENTS] = ids.len() as u8;
                for (room, id) in out[96..SLOTS].chunks_exact_mut(16).zip(ids) {
                    room.copy_from_slice(id.as_bytes());
                }
            }
            Parents::Bound(_) => return Err(HeaderError::Field),
        }
        out[SLOTS..SLOTS + slots.len()].copy_from_slice(&slots);
        let tag = mac.tag(&[&out[..length - MAC]]);
        out[length - MAC..].copy_from_slice(&tag);
        Ok(out)
    }

    /// Reads and authenticates a header. `bytes` is exactly the volume's header length.
    pub fn decode(bytes: &[u8], mac: &MacKey, volume: VolumeId) -> Result<Self, HeaderError> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(HeaderError::Interrupted);
        }
        if !valid_length(bytes.len()) || bytes[..8] != MAGIC {
            return Err(HeaderError::NotOurs);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != FORMAT_VERSION {
            return Err(HeaderError::Version(version));
        }
        let (body, tag) = bytes.split_at(bytes.len() - MAC);
        if !mac.verify(&[body], tag) || body[16..32] != volume.0 {
            return Err(HeaderError::Forged);
        }
        let id = |at: usize| {
            let mut id = [0; 16];
            id.copy_from_slice(&body[at..at + 16]);
            id
        };
        let zero = |range: std::ops::Range<usize>| body[range].iter().all(|byte| *byte == 0);
        let parents = match body[PARENTS] {
            UNBOUND if zero(96..SLOTS) => Parents::Unbound,
            count @ 1..=3 if zero(96 + 16 * usize::from(count)..SLOTS) => {
                Parents::Bound((0..usize::from(count)).map(|i| DirId(id(96 + 16 * i))).collect())
            }
            _ => return Err(HeaderError::Field),
        };
        let (slots, used) = slots::decode(&body[SLOTS..]).ok_or(HeaderError::Field)?;
        let sound = usize::from(u16::from_le_bytes([body[12], body[13]])) == bytes.len()
            && body[11] == 0
            && zero(14..16)
            && !slots.is_empty()
            && zero(81..96)
            && zero(SLOTS + used..body.len());
        let suite = Suite::from_code(body[10]).filter(|_| sound).ok_or(HeaderError::Field)?;
        let mut commitment = [0; 32];
        commitment.copy_from_slice(&body[48..80]);
        Ok(FileHeader { suite, volume, file: FileId(id(32)), slots, commitment, parents })
    }
}

/// Whether a volume may have headers of this length, in bytes.
pub fn valid_length(length: usize) -> bool {
    matches!(length, 1024 | 2048 | 3072)
}

#[cfg(test)]
mod tests {
    use super::{FileHeader, HEADER_LEN, HeaderError, Parents};
    use crate::crypto::Secret;
    use crate::crypto::kdf::MacKey;
    use crate::crypto::suite::Suite;
    use crate::format::slots::{KeySlot, Via};
    use crate::format::{DirId, FileId, VolumeId};

    fn mac() -> MacKey {
        MacKey::new(&Secret::from_fn(|bytes| bytes.fill(5)).unwrap())
    }

    fn header() -> FileHeader {
        FileHeader {
            suite: Suite::Aes256Gcm,
            volume: VolumeId([1; 16]),
            file: FileId([2; 16]),
            slots: vec![KeySlot { via: Via::Provider(0), wrapped: vec![9; 184] }],
            commitment: [3; 32],
            parents: Parents::Bound(vec![DirId([4; 16])]),
        }
    }

    #[test]
    fn a_header_comes_back_and_every_altered_byte_is_noticed() {
        for length in [1024, 2048, 3072] {
            let bytes = header().encode(length, &mac()).unwrap();
            assert_eq!(FileHeader::decode(&bytes, &mac(), VolumeId([1; 16])).unwrap(), header());
            for at in 0..length {
                let mut altered = bytes.clone();
                altered[at] ^= 1;
                assert!(FileHeader::decode(&altered, &mac(), VolumeId([1; 16])).is_err(), "byte {at}");
            }
            assert_eq!(FileHeader::decode(&bytes, &mac(), VolumeId([2; 16])), Err(HeaderError::Forged));
        }
    }

    #[test]
    fn zeros_are_an_interrupted_creation_and_odd_lengths_are_not_ours() {
        let volume = VolumeId([1; 16]);
        assert_eq!(FileHeader::decode(&[0; 1024], &mac(), volume), Err(HeaderError::Interrupted));
        assert_eq!(FileHeader::decode(&[], &mac(), volume), Err(HeaderError::Interrupted));
        assert_eq!(FileHeader::decode(&[1; 1000], &mac(), volume), Err(HeaderError::NotOurs));
        let mut later = header().encode(HEADER_LEN, &mac()).unwrap();
        later[8] = 2;
        assert_eq!(FileHeader::decode(&later, &mac(), volume), Err(HeaderError::Version(2)));
    }

    #[test]
    fn slots_that_do_not_fit_are_refused_before_anything_is_written() {
        let mut big = header();
        big.slots = vec![KeySlot { via: Via::Provider(0), wrapped: vec![9; 700] }; 2];
        assert_eq!(big.encode(1024, &mac()), Err(HeaderError::TooLong(1024)));
        assert!(big.encode(2048, &mac()).is_ok());
        assert_eq!(big.encode(4096, &mac()), Err(HeaderError::TooLong(4096)));
        big.slots.clear();
        assert_eq!(big.encode(1024, &mac()), Err(HeaderError::Field));
    }

    #[test]
    fn parents_grow_to_three_then_unbind_and_the_last_stays() {
        let dir = |byte| DirId([byte; 16]);
        let mut parents = Parents::Bound(vec![dir(1)]);
        assert_eq!(parents.with(dir(1)), parents);
        assert_eq!(parents.without(&dir(1)), parents);
        for byte in 2..=3 {
            parents = parents.with(dir(byte));
        }
        assert!(parents.allow(&dir(3)) && !parents.allow(&dir(4)));
        assert_eq!(parents.with(dir(4)), Parents::Unbound);
        assert_eq!(parents.without(&dir(2)), Parents::Bound(vec![dir(1), dir(3)]));
        assert!(Parents::Unbound.allow(&dir(9)));
    }

    /// Frozen: a volume written by any release must be read by every later one.
    #[test]
    fn the_bytes_on_disk_are_frozen() {
        let bytes = header().encode(HEADER_LEN, &mac()).unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "0ff13ee4e4535f3894c215d3c566c190385db3ea9f19d6d4574ba54727e5e2da");
    }
}
