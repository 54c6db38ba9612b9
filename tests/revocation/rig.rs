//! States of a daemon, and waiting for them.

use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Mount, PATIENCE, Store, mounted, wait_until};

/// The poll interval of every mount here: the shortest there is.
pub const POLL: &str = "1s";
/// Promised: poll interval + 2 s = 3 s. Asserted with room for a machine that does other things too.
pub const PROMISE: Duration = Duration::from_secs(15);

/// A mount with a short poll interval.
#[track_caller]
pub fn mount<'a>(store: &'a Store, more: &[&str]) -> Mount<'a> {
    store.mount_with(&[&["--poll-interval", POLL], more].concat())
}

/// As [`mount`], and a lock leaves it where it is.
#[track_caller]
pub fn mount_held<'a>(store: &'a Store, more: &[&str]) -> Mount<'a> {
    mount(store, &[&["--on-revoke", "hold"], more].concat())
}

/// What `status --json` says; null if the daemon does not answer.
pub fn status(mount: &Mount<'_>) -> Value {
    let output = mount.store.world.run([OsStr::new("status"), OsStr::new("--json"), mount.path.as_os_str()]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    value.get(0).cloned().unwrap_or(value)
}

/// The state's word.
pub fn state(mount: &Mount<'_>) -> String {
    status(mount)["state"].as_str().unwrap_or_default().to_owned()
}

/// Waits for a state, patiently; gives how long it took.
#[track_caller]
pub fn wait_state(mount: &Mount<'_>, wanted: &str) -> Duration {
    let start = Instant::now();
    wait_until(&format!("the state {wanted}"), PATIENCE, || state(mount) == wanted);
    start.elapsed()
}

/// The customer says no; waits for the lock, which must come in time.
#[track_caller]
pub fn revoke(mount: &Mount<'_>) -> Duration {
    mount.store.disable_key();
    let took = wait_state(mount, "locked");
    assert!(took < PROMISE, "locked only {took:?} after the key was disabled: {}", status(mount)["last_lock"]);
    took
}

/// The customer says yes again; waits for the mount, which must come back in time.
#[track_caller]
pub fn restore(mount: &Mount<'_>) -> Duration {
    mount.store.enable_key();
    let took = wait_state(mount, "unlocked");
    assert!(took < PROMISE, "back only {took:?} after the key was enabled");
    assert!(mounted(&mount.path).is_some_and(|kind| kind.starts_with("fuse")), "unlocked, but not mounted");
    took
}

/// The report of the last lock, which must have gone without trouble.
#[track_caller]
pub fn report(mount: &Mount<'_>) -> Value {
    let report = status(mount)["last_lock"].clone();
    assert!(report.is_object(), "no report of the lock");
    assert_eq!(report["problems"], Value::Array(Vec::new()), "the lock had trouble: {report}");
    report
}

/// Tells the threads of a scope to stop, also when the test fails: else it would wait for them for ever.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
