//! hyokfs against Azure Key Vault and Managed HSM, through the real SDK over TLS, against the fake.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../fakes/azure/mod.rs"]
mod fake;

mod check;
mod credentials;
mod rig;
mod round_trip;
mod verdicts;
