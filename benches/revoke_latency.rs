//! How long a revocation takes with thousands of keys in memory and many files open:
//! `cargo bench --bench revoke_latency -- [--cycles N] [--keys N] [--open N] [--real N]`.
//!
//! `--cycles` are drills, which lock and come back at once; `--real` are keys disabled and enabled, where the poller has
//! to find out first (poll interval 1 s). Each is run with the mount taken away and with the mount held. Needs root and
//! `/dev/fuse`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "../tests/revocation/rig.rs"]
mod rig;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use common::{Mount, PATIENCE, Store, noise, wait_until};

struct Options {
    cycles: u64,
    real: u64,
    keys: u64,
    open: u64,
}

/// Milliseconds by name.
#[derive(Default)]
struct Times(BTreeMap<&'static str, Vec<f64>>);

impl Times {
    fn add(&mut self, name: &'static str, millis: f64) {
        self.0.entry(name).or_default().push(millis);
    }

    /// The steps of a lock, each by itself; the report counts from the beginning.
    fn lock(&mut self, lock: &serde_json::Value) {
        assert_eq!(lock["problems"].as_array().map(Vec::len), Some(0), "{lock}");
        let at = |name: &str| lock[name].as_f64().unwrap();
        self.add("1 gate", at("gated_ms"));
        self.add("2 flush", at("flushed_ms") - at("gated_ms"));
        self.add("3 purge", at("purged_ms") - at("flushed_ms"));
        self.add("4 wipe", at("wiped_ms") - at("purged_ms"));
        self.add("5 leave", at("unmounted_ms") - at("wiped_ms"));
        self.add("6 begin to wiped", at("wiped_ms"));
        self.add("7 begin to gone", at("unmounted_ms"));
    }

    fn print(&self) {
        println!("{:<28} {:>5} {:>9} {:>9} {:>9} {:>9}", "milliseconds", "n", "p50", "p90", "p99", "max");
        for (name, times) in &self.0 {
            let mut times = times.clone();
            times.sort_by(f64::total_cmp);
            let at = |part: f64| times[((times.len() as f64 * part).ceil() as usize).clamp(1, times.len()) - 1];
            println!(
                "{name:<28} {:>5} {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
                times.len(),
                at(0.5),
                at(0.9),
                at(0.99),
                at(1.0)
            );
        }
    }
}

fn path(mount: &Mount<'_>, file: u64) -> std::path::PathBuf {
    mount.at(format!("d{}/f{file}", file % 100))
}

/// Every key in memory, `open` files open for reading and writing, with dirty pages in every tenth.
fn fill(mount: &Mount<'_>, options: &Options) -> Vec<File> {
    let open: Vec<File> = (0..options.keys)
        .filter_map(|file| {
            let keep = file < options.open;
            let handle = OpenOptions::new().read(true).write(keep).open(path(mount, file)).unwrap();
            let mut byte = [0; 64];
            handle.read_exact_at(&mut byte, 0).unwrap();
            if keep && file % 10 == 0 {
                handle.write_all_at(&noise(file, 3000), 500).unwrap();
            }
            keep.then_some(handle)
        })
        .collect();
    let cached = rig::status(mount)["keys_cached"].as_u64().unwrap();
    assert!(cached >= options.keys, "only {cached} keys are cached");
    open
}

fn main() {
    let mut options = Options { cycles: 100, real: 20, keys: 10_000, open: 1000 };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let number = words.next().and_then(|number| number.parse().ok());
        match (word.as_str(), number) {
            ("--cycles", Some(number)) => options.cycles = number,
            ("--real", Some(number)) => options.real = number,
            ("--keys", Some(number)) => options.keys = number,
            ("--open", Some(number)) => options.open = number,
            _ => {
                eprintln!("usage: revoke_latency [--cycles N] [--real N] [--keys N] [--open N]");
                std::process::exit(2);
            }
        }
    }
    println!("{} keys in memory, {} files open, a tenth of them dirty", options.keys, options.open);
    for on_revoke in ["unmount", "hold"] {
        run(on_revoke, &options);
    }
}

fn run(on_revoke: &str, options: &Options) {
    let store = Store::new();
    let mount = rig::mount(&store, &["--on-revoke", on_revoke]);
    for dir in 0..100 {
        fs::create_dir(mount.at(format!("d{dir}"))).unwrap();
    }
    for file in 0..options.keys {
        fs::write(path(&mount, file), noise(file, 4000)).unwrap();
    }

    let mut drills = Times::default();
    for _ in 0..options.cycles {
        let open = fill(&mount, options);
        let report = store.world.ok([OsStr::new("drill"), OsStr::new("--json"), mount.path.as_os_str()]);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        drills.lock(&report["lock"]);
        drills.add("8 restore", report["back-ms"].as_f64().unwrap() - report["lock"]["unmounted_ms"].as_f64().unwrap());
        drop(open);
        wait_until("the mount", PATIENCE, || rig::state(&mount) == "unlocked");
    }
    if options.cycles > 0 {
        println!("\n{on_revoke}: {} drills", options.cycles);
        drills.print();
    }

    let mut real = Times::default();
    for _ in 0..options.real {
        let open = fill(&mount, options);
        let mut byte = [0];
        let begun = Instant::now();
        store.disable_key();
        // No command of ours is in the way: the mount is gone from the table of mounts, or refuses.
        wait_until("the lock", PATIENCE, || match on_revoke {
            "hold" => fs::symlink_metadata(path(&mount, 0)).is_err(),
            _ => common::mounted(&mount.path).is_none_or(|kind| kind == "tmpfs"),
        });
        real.add(
            if on_revoke == "hold" { "9 key disabled to refused" } else { "9 key disabled to gone" },
            millis(begun.elapsed()),
        );
        rig::wait_state(&mount, "locked");
        real.lock(&rig::report(&mount));
        let begun = Instant::now();
        store.enable_key();
        wait_until("the restore", PATIENCE, || match on_revoke {
            "hold" => open.first().is_none_or(|file| file.read_at(&mut byte, 0).is_ok()),
            _ => common::mounted(&mount.path).is_some_and(|kind| kind.starts_with("fuse")),
        });
        real.add("9 key enabled to usable", millis(begun.elapsed()));
        drop(open);
        rig::wait_state(&mount, "unlocked");
    }
    if options.real > 0 {
        println!("\n{on_revoke}: {} keys disabled and enabled, poll interval {}", options.real, rig::POLL);
        real.print();
    }
    mount.umount();
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}
