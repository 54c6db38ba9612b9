//! Secrets: 32 bytes that only their owner can read and that are wiped when it goes.

use std::fmt;

use crate::sys::arena::{self, Slot};

/// No room is left in the locked memory that holds keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the locked memory for keys is full: raise LimitMEMLOCK= in the unit (or `ulimit -l`), or lower --key-cache")]
pub struct ArenaFull;

/// Why no secret could be made from given or random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// See [`ArenaFull`].
    #[error(transparent)]
    Full(#[from] ArenaFull),
    /// The bytes are not 32.
    #[error("a key has 32 bytes, this has {0}: it comes from something else than hyokfs")]
    Length(usize),
    /// The random generator failed, which it does only on a broken system.
    #[error("the system gives no random bytes: check that /dev/urandom and getrandom(2) are allowed")]
    NoRandom,
}

/// 32 secret bytes in locked memory ([`crate::sys::arena`]); wiped when dropped. It can be neither cloned nor printed.
pub struct Secret {
    slot: Slot,
}

impl Secret {
    /// Lets `fill` write the secret where it will stay, so that no copy is left behind.
    ///
    /// # Errors
    /// The locked memory is full.
    pub fn from_fn(fill: impl FnOnce(&mut [u8; 32])) -> Result<Self, ArenaFull> {
        let mut slot = arena::take().map_err(|_| ArenaFull)?;
        fill(slot.bytes_mut());
        Ok(Secret { slot })
    }

    /// Like [`Secret::from_fn`], where filling can fail; then nothing is left behind.
    ///
    /// # Errors
    /// The locked memory is full, or what `fill` says.
    pub fn try_from_fn<E: From<ArenaFull>>(fill: impl FnOnce(&mut [u8; 32]) -> Result<(), E>) -> Result<Self, E> {
        let mut slot = arena::take().map_err(|_| E::from(ArenaFull))?;
        fill(slot.bytes_mut())?;
        Ok(Secret { slot })
    }

    /// A new random secret.
    ///
    /// # Errors
    /// The locked memory is full, or the system gives no random bytes.
    pub fn random() -> Result<Self, SecretError> {
        Self::try_from_fn(|bytes| aws_lc_rs::rand::fill(bytes).map_err(|_| SecretError::NoRandom))
    }

    /// A copy of `bytes`, which the caller should wipe.
    ///
    /// # Errors
    /// `bytes` is not 32 bytes long, or the locked memory is full.
    pub fn copy_from(bytes: &[u8]) -> Result<Self, SecretError> {
        Self::try_from_fn(|to| {
            if bytes.len() != to.len() {
                return Err(SecretError::Length(bytes.len()));
            }
            to.copy_from_slice(bytes);
            Ok(())
        })
    }

    /// The 32 bytes, for as short a time as possible.
    pub fn expose(&self) -> &[u8; 32] {
        self.slot.bytes()
    }

    /// Zeroes it for every owner. Whoever derives something from a shared secret asks [`Secret::is_wiped`] *afterwards*
    /// and throws the result away if so: it may come from a half-wiped key.
    pub fn wipe(&self) {
        self.slot.wipe();
    }

    /// Whether it has been wiped (32 zero bytes are no key).
    pub fn is_wiped(&self) -> bool {
        self.slot.is_zero()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_secret_holds_its_bytes_until_it_is_wiped_and_prints_none() {
        let secret = Secret::copy_from(&[0x5A; 32]).unwrap();
        assert_eq!(secret.expose(), &[0x5A; 32]);
        assert_eq!(format!("{secret:?}"), "Secret");
        assert!(!secret.is_wiped());
        secret.wipe();
        assert!(secret.is_wiped());
        assert_eq!(secret.expose(), &[0; 32]);
    }

    #[test]
    fn only_32_bytes_make_a_secret_and_random_ones_differ() {
        assert_eq!(Secret::copy_from(&[1; 31]).unwrap_err(), SecretError::Length(31));
        assert_eq!(Secret::copy_from(&[1; 33]).unwrap_err(), SecretError::Length(33));
        assert_ne!(Secret::random().unwrap().expose(), Secret::random().unwrap().expose());
    }
}
