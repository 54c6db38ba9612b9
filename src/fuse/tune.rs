//! Settings of a mounted volume's backing device that only root may write (`Documentation/ABI/testing/sysfs-class-bdi`).

use std::path::PathBuf;

/// How far the kernel reads ahead, in KiB: one request of the largest size.
const READ_AHEAD_KIB: &str = "1024";

/// Lifts the limits that the kernel puts on FUSE: read-ahead of 128 KiB, and 1 % of dirty memory. Without the rights
/// nothing changes and the mount works all the same, only slower.
pub(super) fn tune(minor: u32) {
    let base = PathBuf::from(format!("/sys/class/bdi/0:{minor}"));
    for (knob, value) in [("read_ahead_kb", READ_AHEAD_KIB), ("max_ratio", "100"), ("strict_limit", "0")] {
        if let Err(error) = std::fs::write(base.join(knob), value) {
            tracing::debug!(knob, %error, "the kernel's limit for FUSE stays as it is");
        }
    }
}
