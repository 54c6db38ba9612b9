#![allow(clippy::unwrap_used)]

mod ahead;
mod fake;
mod locking;
mod sharing;
