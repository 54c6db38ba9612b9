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
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let number = words.next().and_then(|number| number.parse().ok());
        match (word.as_str(), number) {
            ("--cycles", Some(number)) => cycles = number,
            ("--seed", Some(number)) => seed = number,
            _ => {
                eprintln!("usage: tests/soak/run [--cycles N] [--seed N]");
                std::process::exit(2);
            }
        }
    }
    println!("{cycles} revocations, seed {seed}");
    work::soak(cycles, seed, true);
}
