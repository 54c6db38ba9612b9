//! The state machine; alone mounts, locks and unmounts.
//!
//! [`state`] decides and does no I/O. [`mod@run`] starts a daemon, whose main loop feeds the machine with what happens
//! (probes, ordinary uses of keys, commands, signals, the end of a lock) and carries out what it says. [`volume`] goes
//! from a store and a key to an unlocked volume, [`lock`] the other way, `hold` keeps a locked volume's mount.

mod answers;
mod bounded;
mod caches;
pub mod control;
mod daemon;
mod disk;
mod events;
mod hold;
pub mod lock;
mod machine;
mod mounter;
mod observe;
pub mod pin;
pub mod run;
pub mod state;
pub mod status;
mod urgent;
pub mod volume;

pub use caches::SYNCFS_COMMAND;
pub use hold::STATFS_COMMAND;
pub use run::{RunError, RunOptions, run};
