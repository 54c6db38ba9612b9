//! The kernel's requests, decoded and answered.
//!
//! [`mount`] opens `/dev/fuse` and attaches it to the mount point, [`session`] runs worker threads that read requests
//! from it, [`adapter`] turns each request into one call of [`crate::fs::Fs`], [`errno`] turns every error into an
//! errno in one place, [`purge`] takes plaintext out of the kernel's caches, and [`guard`] does so when the daemon has been
//! killed. The crate `fuser` decodes and encodes the protocol; nothing outside this module names it.
//! [`turns`] decides which of the threads take requests.

pub mod adapter;
pub mod clean;
mod convert;
pub mod errno;
pub mod guard;
pub mod mount;
pub mod purge;
pub mod session;
mod tune;
mod turns;
mod waiters;

pub use mount::{Device, MountError, MountOptions};
pub use session::Session;
