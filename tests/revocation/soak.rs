//! Nothing lost, in short: `tests/soak/run --cycles 1000` is the long version.

use crate::work;

#[test]
fn twenty_revocations_lose_nothing() {
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    work::soak(20, seed, "unmount", false);
}

#[test]
fn twenty_revocations_of_a_held_mount_lose_nothing() {
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    work::soak(20, seed, "hold", false);
}
