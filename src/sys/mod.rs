//! Raw system calls; the only module with `unsafe`.

pub mod aligned;
