//! Revokes and restores for hours under programs that write, and proves that nothing acknowledged is ever lost:
//! `tests/soak/run --cycles 1000`. Needs root, `/dev/fuse`, `git` and `python3` with `sqlite3`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "../revocation/rig.rs"]
mod rig;
mod work;

fn main() {
    let (mut cycles, mut seed) = (100, std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    let mut on_revoke = "unmount".to_owned();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_default();
        match (word.as_str(), value.parse().ok()) {
            ("--on-revoke", _) if value == "unmount" || value == "hold" => on_revoke = value,
            ("--cycles", Some(number)) => cycles = number,
            ("--seed", Some(number)) => seed = number,
            _ => {
                eprintln!("usage: tests/soak/run [--cycles N] [--seed N] [--on-revoke unmount|hold]");
                std::process::exit(2);
            }
        }
    }
    println!("{cycles} revocations ({on_revoke}), seed {seed}");
    work::soak(cycles, seed, &on_revoke, true);
}
