//! What the customers of the two clouds are promised, told from end to end: the real program, real mounts, AWS played by
//! an emulator that others wrote (and by our fake where that one can't), Azure by our fake.
//!
//! Needs root, `/dev/fuse`, and the Python environment that `HYOKFS_TEST_VENV` names.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../fakes/aws/mod.rs"]
mod fake_aws;
#[path = "../fakes/azure/mod.rs"]
mod fake_azure;
#[path = "../fakes/ministack.rs"]
mod ministack;
#[allow(dead_code)]
#[path = "../revocation/rig.rs"]
mod rig;

mod aws;
mod azure;
mod denial;
mod drill;
mod outage;
mod plain;
mod readme;
mod several;
mod story;
