//! File keys under a group key (granularity `volume`): made and opened here, without a call to the key service.
//!
//! A slot holds `nonce 24 | sealed key 32 | tag 16`, bound to volume and file.

use std::sync::Arc;

use super::access::Access;
use super::options::{KeyError, failure};
use super::state::Known;
use super::{Inner, NewKey};
use crate::crypto::Secret;
use crate::crypto::envelope::{EnvelopeError, EnvelopeKey};
use crate::crypto::secret::SecretError;
use crate::format::FileId;
use crate::format::slots::{KeySlot, Via};
use crate::provider::Verdict;

impl Inner {
    pub fn open_grouped(
        &self,
        access: &Arc<Access>,
        file: &FileId,
        group: &EnvelopeKey,
        wrapped: &[u8],
    ) -> Result<Known, KeyError> {
        let _running = access.tally.enter();
        let place = self.group_place(file);
        let mut opened = group.open_secret(&place, wrapped);
        if matches!(opened, Err(EnvelopeError::Arena(_))) && self.make_room() {
            opened = group.open_secret(&place, wrapped);
        }
        let key = match opened {
            Ok(key) => key,
            // A lock wiped the group key under our hands.
            Err(_) if group.is_wiped() => return Err(KeyError::Locked),
            Err(EnvelopeError::Arena(full)) => return Err(KeyError::ArenaFull(full)),
            Err(EnvelopeError::Forged | EnvelopeError::Library) => return Err(KeyError::Damaged(*file)),
        };
        let known = self.known(file, key)?;
        self.admit(access, *file, &known)?;
        Ok(known)
    }

    pub fn new_grouped(
        &self,
        access: &Arc<Access>,
        id: [u8; 16],
        group: Option<Arc<EnvelopeKey>>,
    ) -> Result<NewKey, KeyError> {
        let _running = access.tally.enter();
        let group = group.ok_or_else(|| {
            let message = "the volume's group key is not unwrapped: unlock the volume again".to_owned();
            KeyError::from(failure(Verdict::Misconfigured, "NoGroupKey", message))
        })?;
        let file = self.new_id()?;
        let key = match Secret::random() {
            Err(SecretError::Full(_)) if self.make_room() => Secret::random()?,
            made => made?,
        };
        let known = self.known(&file, key)?;
        let wrapped = group.seal(&self.group_place(&file), known.key.expose()).map_err(|error| match error {
            EnvelopeError::Arena(full) => KeyError::ArenaFull(full),
            EnvelopeError::Forged | EnvelopeError::Library => SecretError::NoRandom.into(),
        })?;
        // Sealed under a key that a lock was wiping: never let that reach the disk.
        if group.is_wiped() {
            return Err(KeyError::Locked);
        }
        self.admit(access, file, &known)?;
        let slot = KeySlot { via: Via::Group(id), wrapped };
        Ok(NewKey { file, key: known.key, slot, commitment: known.commitment })
    }

    /// What a file key under a group key is bound to: volume and file.
    fn group_place(&self, file: &FileId) -> [u8; 32] {
        let mut place = [0; 32];
        place[..16].copy_from_slice(self.volume.as_bytes());
        place[16..].copy_from_slice(file.as_bytes());
        place
    }
}
