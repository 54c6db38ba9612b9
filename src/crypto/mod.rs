//! Ciphers, key derivation and secrets in locked memory.

pub mod envelope;
pub mod kdf;
pub mod names;
pub mod secret;
pub mod suite;

pub use secret::{ArenaFull, Secret};
pub use suite::Suite;
