//! The state machine; alone mounts, locks and unmounts.

pub mod state;
