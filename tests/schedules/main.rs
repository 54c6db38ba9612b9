//! The page file under every order of its threads' steps that a seeded scheduler tries (shuttle): the very sources of
//! `src/file`, compiled against locks that hand over at each step, on the twin's simulated disk.
//!
//! Each thread owns some bytes, none of them whole pages, so that every page has several owners. An owner must always read
//! what it wrote last, and after its sync a power cut must not take that away, whatever the others are doing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use hyokfs::{crypto, format, store};

/// What `src/file` finds as `crate::sys`.
mod sys {
    pub use hyokfs::sys::aligned;
    pub mod sync {
        pub use shuttle::sync::atomic::{AtomicU64, Ordering};
        pub use shuttle::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
        pub use std::sync::{PoisonError, TryLockError};
    }
}

#[allow(dead_code, unused_imports)]
#[path = "../../src/file/mod.rs"]
mod file;
#[allow(dead_code)]
#[path = "../twin/sim.rs"]
mod sim;
mod work;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};
use work::{Flaw, scenario};

/// Schedules per test; `HYOKFS_SCHEDULES` sets another number for a long search.
fn many() -> usize {
    std::env::var("HYOKFS_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000)
}

fn run(scheduler: impl Scheduler + 'static, flaw: Flaw) {
    let mut config = Config::new();
    config.stack_size = 512 << 10;
    config.failure_persistence = if flaw == Flaw::None { FailurePersistence::Print } else { FailurePersistence::None };
    Runner::new(scheduler, config).run(move || scenario(flaw));
}

#[test]
fn no_order_of_steps_loses_a_byte() {
    run(RandomScheduler::new_from_seed(1, many()), Flaw::None);
}

#[test]
fn no_order_with_few_preemptions_loses_a_byte() {
    run(PctScheduler::new_from_seed(2, 5, many()), Flaw::None);
}

/// Runs owners with a flaw of their own, which the test must notice.
fn must_be_caught(flaw: Flaw) {
    let caught = std::panic::catch_unwind(|| run(RandomScheduler::new_from_seed(3, 3_000), flaw));
    assert!(caught.is_err(), "{flaw:?} went unnoticed");
}

#[test]
fn a_page_that_is_mixed_outside_the_lock_is_caught() {
    must_be_caught(Flaw::MixedOutside);
}

#[test]
fn a_missing_sync_is_caught() {
    must_be_caught(Flaw::NoSync);
}
