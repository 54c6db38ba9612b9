//! hyokfs against AWS KMS, through the real SDK: against the fake, and against an emulator that others wrote.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../fakes/aws/mod.rs"]
mod fake;
#[path = "../fakes/ministack.rs"]
mod ministack;

mod check;
mod docs;
mod emulator;
mod mounted;
mod node;
mod printed;
mod proxy;
mod roles;
mod round_trip;
mod sources;
mod verdicts;
