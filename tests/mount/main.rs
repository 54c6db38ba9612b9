//! Every operation that the README promises, through a real mount. One file per area.
//!
//! Needs root and `/dev/fuse`. `HYOKFS_TEST_NATIVE=1` runs the bodies on the plain filesystem instead.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod content;
mod damage;
mod directories;
mod life;
mod links;
mod locks;
mod mapping;
mod metadata;
mod names;
mod renames;
mod revocation;
mod space;
mod user;
mod xattrs;
