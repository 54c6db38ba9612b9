//! Raw system calls; the only module with `unsafe`.

pub mod aligned;
pub mod alloc;
pub mod arena;
pub mod harden;
pub mod receive;
pub mod stack;
pub mod step;
pub mod sync;
