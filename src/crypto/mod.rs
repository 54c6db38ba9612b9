//! Ciphers, key derivation and secrets in locked memory.

pub mod secret;
pub mod suite;

pub use secret::{ArenaFull, Secret};
pub use suite::Suite;
