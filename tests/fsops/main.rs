//! The filesystem layer without FUSE: every operation on a store in a temporary directory, with the embedded keystore.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attributes;
mod basics;
mod harness;
mod keys;
mod locking;
mod model;
mod renames;
mod tampering;
mod threads;
