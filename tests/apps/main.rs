//! Real programs on a mount, and everything checked again after a remount: a source tree, git, SQLite, PostgreSQL.
//!
//! Needs root, `/dev/fuse` and the Debian packages that `tests/run` installs. `HYOKFS_TEST_NATIVE=1` runs the bodies
//! on the plain filesystem instead.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod git;
mod postgres;
mod sqlite;
mod tree;

use std::path::Path;
use std::process::Command;

/// Runs a command to its end; it must succeed. Gives its standard output.
#[track_caller]
fn must(world: &common::World, command: &mut Command) -> String {
    let output = world.output(command);
    assert!(output.status.success(), "{command:?} ended with {}:\n{}", output.status, common::both(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `bash -euo pipefail -c TEXT` with `$1`, `$2` … from `paths`.
#[track_caller]
fn script(world: &common::World, text: &str, paths: &[&Path]) -> String {
    let mut command = world.command("bash");
    command.args(["-euo", "pipefail", "-c", text, "bash"]).args(paths);
    must(world, &mut command)
}
