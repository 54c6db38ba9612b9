//! The state machine; alone mounts, locks and unmounts.
//!
//! [`state`] decides and does no I/O. [`mod@run`] feeds it with what happens (probes, ordinary uses of keys, commands,
//! signals, the end of a lock) and carries out what it says. [`volume`] goes from a store and a key to an unlocked
//! volume, [`lock`] the other way.

pub mod control;
mod disk;
mod events;
pub mod lock;
mod mounter;
mod observe;
pub mod pin;
pub mod run;
pub mod state;
pub mod status;
pub mod volume;

pub use run::{RunError, RunOptions, run};
