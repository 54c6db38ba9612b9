//! Programs that work on a mount while its key is taken away and given back, and keep a ledger of what they were told
//! is safe. Nothing in the ledger may be lost.
//!
//! What is safe: a write that had completed when the key was disabled (an orderly lock begins later), and whatever a
//! completed `fsync` covered, at any time.

mod append;
mod blocks;
mod git;
mod sqlite;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Mount, PATIENCE, Store, wait_until};
use crate::rig;

/// What all workers share.
pub struct Shared<'a> {
    /// Where the volume is mounted, when it is.
    pub root: &'a Path,
    /// A folder outside of the mount.
    pub outside: &'a Path,
    /// The store, for its world.
    pub store: &'a Store,
    stop: AtomicBool,
    /// Things that were done and acknowledged, by all workers.
    done: AtomicU64,
}

impl Shared<'_> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// After an error: the volume is locked, or about to be.
    fn pause(&self) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A worker with a ledger that the driver looks at.
trait Ledger: Sync {
    /// The key is about to be disabled: what is done by now is promised.
    fn promise(&self);
    /// Checks everything promised so far; the volume is unlocked. May tidy up.
    fn check(&self, shared: &Shared<'_>, all: bool);
    /// Works until it is stopped.
    fn work(&self, shared: &Shared<'_>);
}

/// Small deterministic random numbers (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// Runs `cycles` revocations at random moments under load. Panics with the reason where a promise was broken.
pub fn soak(cycles: u64, seed: u64, on_revoke: &str, say: bool) {
    let store = Store::new();
    let outside = store.world.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let mount = rig::mount(&store, &["--on-revoke", on_revoke]);
    let root = mount.path.clone();
    let shared =
        Shared { root: &root, outside: &outside, store: &store, stop: AtomicBool::new(false), done: AtomicU64::new(0) };
    let (plain, synced) = (append::Append::new(1, false), append::Append::new(2, true));
    let blocks = blocks::Blocks::new(3);
    let (rollback, wal, repository) = (sqlite::Sqlite::new("delete"), sqlite::Sqlite::new("wal"), git::Git::new());
    let ledgers: [&dyn Ledger; 6] = [&plain, &synced, &blocks, &rollback, &wal, &repository];
    let mut random = Random(seed | 1);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let _stop = rig::Stop(&shared.stop);
        let workers: Vec<_> = ledgers.iter().map(|ledger| scope.spawn(|| ledger.work(&shared))).collect();
        let mut before = 0;
        for cycle in 1..=cycles {
            let enough = before + 20;
            wait_until("work between two revocations", PATIENCE, || {
                assert!(workers.iter().all(|worker| !worker.is_finished()), "a worker has failed");
                shared.done.load(Ordering::Relaxed) > enough
            });
            std::thread::sleep(Duration::from_millis(random.below(600)));
            ledgers.iter().for_each(|ledger| ledger.promise());
            rig::revoke(&mount);
            rig::report(&mount);
            std::thread::sleep(Duration::from_millis(random.below(200)));
            rig::restore(&mount);
            ledgers.iter().for_each(|ledger| ledger.check(&shared, false));
            before = shared.done.load(Ordering::Relaxed);
            if say && (cycle % 10 == 0 || cycle == cycles) {
                println!("{cycle} cycles in {:.0?}, {before} acknowledged, nothing lost", begun.elapsed());
            }
        }
        shared.stop.store(true, Ordering::Relaxed);
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let mount: Mount<'_> = mount;
    ledgers.iter().for_each(|ledger| ledger.check(&shared, true));
    let mount = mount.remount();
    ledgers.iter().for_each(|ledger| ledger.check(&shared, true));
    mount.umount();
    store.world.ok([OsStr::new("verify"), store.path.as_os_str()]);
    println!(
        "{cycles} revocations ({on_revoke}, seed {seed}) in {:.0?}: {} acknowledged, nothing lost",
        begun.elapsed(),
        shared.done.load(Ordering::Relaxed)
    );
}
