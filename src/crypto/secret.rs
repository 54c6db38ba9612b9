//! Secrets: 32 bytes that only their owner can read and that are wiped when it goes.

use zeroize::Zeroize;

/// No room is left in the locked memory that holds keys.
#[derive(Debug, thiserror::Error)]
#[error("the locked memory for keys is full: raise LimitMEMLOCK= in the unit (or `ulimit -l`), or lower --key-cache")]
pub struct ArenaFull;

/// 32 secret bytes in locked memory; wiped when dropped. It can be neither cloned nor printed.
pub struct Secret {
    bytes: Box<[u8; 32]>,
}

impl Secret {
    /// Lets `fill` write the secret where it will stay, so that no copy is left behind.
    pub fn from_fn(fill: impl FnOnce(&mut [u8; 32])) -> Result<Self, ArenaFull> {
        let mut secret = Secret { bytes: Box::new([0; 32]) };
        fill(&mut secret.bytes);
        Ok(secret)
    }

    /// The 32 bytes, for as short a time as possible.
    pub fn expose(&self) -> &[u8; 32] {
        &self.bytes
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}
