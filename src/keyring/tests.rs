#![allow(clippy::unwrap_used)]

mod ahead;
mod directories;
mod fake;
mod locking;
mod sharing;
