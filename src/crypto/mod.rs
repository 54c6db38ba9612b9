//! Ciphers, key derivation and secrets in locked memory.

pub mod secret;

pub use secret::{ArenaFull, Secret};
