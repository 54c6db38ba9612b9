//! The proofs of revocation, through the real program and a real mount: nothing is left, nothing is lost, and nobody
//! reads on.
//!
//! Needs root and `/dev/fuse`. There is no native mode: the plain filesystem has no key to take away.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "aws")]
#[path = "../fakes/aws/mod.rs"]
mod fake;
#[path = "../soak/work/mod.rs"]
mod work;

mod cache;
mod core_dump;
mod crash;
mod denial;
mod held;
mod hung;
mod lease;
mod memory;
#[cfg(feature = "aws")]
mod partition;
mod placeholder;
mod rig;
mod soak;
