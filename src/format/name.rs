//! Names in the store.
//!
//! An encrypted name is base64url (RFC 4648 §5, no padding) of [`crate::crypto::names`]. If that is longer than 255
//! bytes (a name of more than 175 bytes), the entry is called `=` and base64url of the SHA-256 of the whole text, and a
//! symlink beside it with the suffix `.name` has the whole text as its target. With `names = "plain"` an entry has the
//! name itself, with `=.` before the few that would be mistaken for something else.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::DirId;
use super::dirrec::DIR_RECORD;
use crate::crypto::names::{NameKey, OVERHEAD};

/// The longest name, in bytes, of plaintext and of store entries (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// The suffix of the symlink that holds a long name.
pub const LONG_SUFFIX: &str = ".name";
/// The volume record and its backup, in the root.
pub const VOLUME_RECORD: &str = "hyokfs.toml";
/// The backup of the volume record.
pub const VOLUME_RECORD_BACKUP: &str = "hyokfs.toml.bak";
/// The lock file, in the root.
pub const LOCK_FILE: &str = ".hyokfs.lock";
/// Names of things that are being made; left over, they are rubbish.
pub const TEMPORARY_PREFIX: &str = ".hyokfs.tmp.";

const LONG_PREFIX: &str = "=";
const HASH_LEN: usize = 43;
const ESCAPE: &[u8] = b"=.";

/// How names stand in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameMode {
    /// Sealed.
    Encrypted,
    /// As they are.
    Plain,
}

/// Why a name cannot be turned into another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Longer than 255 bytes.
    #[error("the name is longer than 255 bytes")]
    TooLong,
    /// The entry's name is not one of this directory.
    #[error("the entry's name was altered or moved from another directory; restore it from a backup")]
    Forged,
    /// The cryptographic library failed.
    #[error("encrypting a name failed inside the cryptographic library")]
    Library,
}

/// A name as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoreName {
    /// The entry's name, at most 255 bytes.
    pub entry: Vec<u8>,
    /// For a long name: the target of the symlink [`StoreName::sidecar`].
    pub long: Option<String>,
}

impl StoreName {
    /// The name of the symlink that holds the whole name, if there is one.
    pub fn sidecar(&self) -> Option<Vec<u8>> {
        self.long.as_ref().map(|_| sidecar_of(&self.entry))
    }
}

/// The name of the symlink that belongs to a long entry.
pub fn sidecar_of(entry: &[u8]) -> Vec<u8> {
    [entry, LONG_SUFFIX.as_bytes()].concat()
}

/// What an entry of the store is, by its name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A plaintext entry whose name stands in it.
    Short,
    /// A plaintext entry whose name stands in a symlink beside it.
    Long,
    /// Such a symlink.
    Sidecar,
    /// Left over from something that was being made.
    Temporary,
    /// hyokfs's own.
    Reserved,
}

/// Tells what an entry is.
pub fn classify(entry: &[u8]) -> Entry {
    if entry.starts_with(TEMPORARY_PREFIX.as_bytes()) {
        return Entry::Temporary;
    }
    let own = [DIR_RECORD, VOLUME_RECORD, VOLUME_RECORD_BACKUP, LOCK_FILE];
    if own.iter().any(|name| name.as_bytes() == entry) || entry.starts_with(b".hyokfs.") {
        return Entry::Reserved;
    }
    if entry.starts_with(LONG_PREFIX.as_bytes()) && !entry.starts_with(ESCAPE) {
        return match entry.len() - LONG_PREFIX.len() {
            HASH_LEN => Entry::Long,
            n if n == HASH_LEN + LONG_SUFFIX.len() && entry.ends_with(LONG_SUFFIX.as_bytes()) => Entry::Sidecar,
            _ => Entry::Reserved,
        };
    }
    Entry::Short
}

/// Whether a plain name would be taken for something else in the store.
fn needs_escape(name: &[u8]) -> bool {
    classify(name) != Entry::Short || name.starts_with(ESCAPE)
}

/// The store's name for `name` in `directory`.
pub fn encode(key: &NameKey, mode: NameMode, directory: &DirId, name: &[u8]) -> Result<StoreName, NameError> {
    if name.len() > NAME_MAX {
        return Err(NameError::TooLong);
    }
    if mode == NameMode::Plain {
        let entry = if needs_escape(name) { [ESCAPE, name].concat() } else { name.to_vec() };
        return if entry.len() > NAME_MAX { Err(NameError::TooLong) } else { Ok(StoreName { entry, long: None }) };
    }
    let mut sealed = [0; OVERHEAD + NAME_MAX];
    let sealed = key.seal_into(directory.as_bytes(), name, &mut sealed).map_err(|_| NameError::Library)?;
    let text = URL_SAFE_NO_PAD.encode(sealed);
    if text.len() <= NAME_MAX {
        return Ok(StoreName { entry: text.into_bytes(), long: None });
    }
    Ok(StoreName { entry: long_entry(&text), long: Some(text) })
}

fn long_entry(text: &str) -> Vec<u8> {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    format!("{LONG_PREFIX}{}", URL_SAFE_NO_PAD.encode(hash)).into_bytes()
}

/// The name behind a short entry.
pub fn decode(key: &NameKey, mode: NameMode, directory: &DirId, entry: &[u8]) -> Result<Vec<u8>, NameError> {
    if mode == NameMode::Plain {
        return match entry.strip_prefix(ESCAPE) {
            None => Ok(entry.to_vec()),
            // A name that needs no escape would have two entries otherwise.
            Some(name) if needs_escape(name) => Ok(name.to_vec()),
            Some(_) => Err(NameError::Forged),
        };
    }
    let sealed = URL_SAFE_NO_PAD.decode(entry).map_err(|_| NameError::Forged)?;
    key.open(directory.as_bytes(), &sealed).ok_or(NameError::Forged)
}

/// The name behind a long entry, from its symlink's target.
pub fn decode_long(key: &NameKey, directory: &DirId, entry: &[u8], target: &[u8]) -> Result<Vec<u8>, NameError> {
    let text = std::str::from_utf8(target).map_err(|_| NameError::Forged)?;
    // A short name in a long entry would be a second entry for the same name.
    if text.len() <= NAME_MAX || long_entry(text) != entry {
        return Err(NameError::Forged);
    }
    decode(key, NameMode::Encrypted, directory, target)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Entry, NameError, NameMode, classify, decode, decode_long, encode, long_entry};
    use crate::crypto::Secret;
    use crate::crypto::names::NameKey;
    use crate::format::DirId;

    const DIR: DirId = DirId([7; 16]);

    fn key() -> NameKey {
        let secret = |byte| Secret::from_fn(|bytes| bytes.fill(byte)).unwrap();
        NameKey::new(&secret(1), &secret(2)).unwrap()
    }

    proptest! {
        #[test]
        fn every_name_comes_back(name in prop::collection::vec(1_u8..=255, 1..=255), plain in any::<bool>()) {
            let mode = if plain { NameMode::Plain } else { NameMode::Encrypted };
            let Ok(store) = encode(&key(), mode, &DIR, &name) else {
                prop_assert!(plain && name.len() > 253);
                return Ok(());
            };
            prop_assert!(store.entry.len() <= 255);
            let back = match &store.long {
                None => {
                    prop_assert_eq!(classify(&store.entry), Entry::Short);
                    decode(&key(), mode, &DIR, &store.entry)
                }
                Some(text) => {
                    prop_assert_eq!(classify(&store.entry), Entry::Long);
                    prop_assert_eq!(classify(&store.sidecar().unwrap()), Entry::Sidecar);
                    decode_long(&key(), &DIR, &store.entry, text.as_bytes())
                }
            };
            prop_assert_eq!(back.unwrap(), name);
        }

        #[test]
        fn no_entry_makes_it_panic(entry in prop::collection::vec(any::<u8>(), 0..255)) {
            classify(&entry);
            let _ = decode(&key(), NameMode::Encrypted, &DIR, &entry);
            let _ = decode_long(&key(), &DIR, &entry, &entry);
        }
    }

    #[test]
    fn no_name_has_two_entries() {
        let short = encode(&key(), NameMode::Encrypted, &DIR, b"a").unwrap().entry;
        let text = String::from_utf8(short).unwrap();
        assert_eq!(decode_long(&key(), &DIR, &long_entry(&text), text.as_bytes()), Err(NameError::Forged));
        assert_eq!(decode(&key(), NameMode::Plain, &DIR, b"=.letter.txt"), Err(NameError::Forged));
        assert_eq!(decode(&key(), NameMode::Plain, &DIR, b"=.=.a").unwrap(), b"=.a");
        // The last character of 4 + 16 bytes carries unused bits: only one of its spellings counts.
        let text = String::from_utf8(encode(&key(), NameMode::Encrypted, &DIR, b"name").unwrap().entry).unwrap();
        let readings = (b'A'..=b'Z').chain(b'a'..=b'z').chain(b'0'..=b'9').chain(*b"-_").filter(|last| {
            let spelled = [&text.as_bytes()[..text.len() - 1], &[*last]].concat();
            decode(&key(), NameMode::Encrypted, &DIR, &spelled).is_ok()
        });
        assert_eq!(readings.count(), 1);
    }

    /// Computed with Python's `hmac` and `cryptography`: names on disk must never change.
    #[test]
    fn the_entries_are_frozen() {
        let short = encode(&key(), NameMode::Encrypted, &DIR, b"letter.txt").unwrap();
        assert_eq!(short.entry, b"Pahu5hZl9p6t9Zn5H-715_JAKyl3DGWkOMU");
        let long = encode(&key(), NameMode::Encrypted, &DIR, &[b'a'; 255]).unwrap();
        assert_eq!(long.entry, b"=8XsMzZZHyey-Pt8zI2f3CYu_xniJTonzGqYwtW9zAMY");
        assert_eq!(long.sidecar().unwrap(), b"=8XsMzZZHyey-Pt8zI2f3CYu_xniJTonzGqYwtW9zAMY.name");
    }

    #[test]
    fn the_border_between_short_and_long_is_at_175_bytes() {
        assert!(encode(&key(), NameMode::Encrypted, &DIR, &[b'a'; 175]).unwrap().long.is_none());
        let long = encode(&key(), NameMode::Encrypted, &DIR, &[b'a'; 176]).unwrap();
        assert_eq!(long.entry.len(), 44);
        assert!(long.long.is_some());
        assert_eq!(encode(&key(), NameMode::Encrypted, &DIR, &[b'a'; 256]), Err(NameError::TooLong));
    }

    #[test]
    fn names_of_ours_are_told_apart_and_escaped_when_plain() {
        for (entry, kind) in [
            (&b".hyokfs.dir"[..], Entry::Reserved),
            (b"hyokfs.toml", Entry::Reserved),
            (b"hyokfs.toml.bak", Entry::Reserved),
            (b".hyokfs.lock", Entry::Reserved),
            (b".hyokfs.tmp.1", Entry::Temporary),
            (b"letter.txt", Entry::Short),
            (b"=x", Entry::Reserved),
        ] {
            assert_eq!(classify(entry), kind, "{}", String::from_utf8_lossy(entry));
            let stored = encode(&key(), NameMode::Plain, &DIR, entry).unwrap();
            assert_eq!(classify(&stored.entry), Entry::Short);
            assert_eq!(decode(&key(), NameMode::Plain, &DIR, &stored.entry).unwrap(), entry);
        }
    }
}
