//! `hyokfs verify` finds each kind of damage, and nothing else, and mends what it says.
//!
//! Needs root and `/dev/fuse`: the volumes are made through real mounts, the damage is done to the ciphertext.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod clean;
mod contents;
mod fixture;
mod leftovers;
mod places;
mod records;
mod remote;
