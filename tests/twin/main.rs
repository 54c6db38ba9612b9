//! The crash twin: page files on a simulated disk that loses power at any moment, fails at any call, or lies.
//!
//! Every failure prints its seed and operations; `run(SEED, …)` repeats it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod faults;
mod run;
mod sim;

use std::time::{Duration, Instant};

use hyokfs::file::{Damage, FileError, PageFile};
use run::{Deaf, Failure, Plan, keys, run};
use sim::{Lies, Medium, Sim};

/// Runs seeds until `states` crash states were checked.
fn search(plan: Plan, first: u64, states: u64) -> Result<u64, Failure> {
    let keys = keys();
    let (mut checked, mut seed) = (0, first);
    while checked < states {
        checked += run(seed, plan, &keys)?;
        seed += 1;
    }
    Ok(checked)
}

/// Crash states per test; `HYOKFS_TWIN_STATES` sets another number for a long search.
fn many() -> u64 {
    std::env::var("HYOKFS_TWIN_STATES").ok().and_then(|n| n.parse().ok()).unwrap_or(150_000)
}

fn must_hold(plan: Plan, first: u64, states: u64) {
    let begun = Instant::now();
    match search(plan, first, states) {
        Ok(checked) => println!("{checked} crash states in {:?}", begun.elapsed()),
        Err(failure) => panic!("{failure}"),
    }
}

// Four tests of as many states each, so that they share the cores.

#[test]
fn no_power_cut_takes_an_acknowledged_byte_1() {
    must_hold(Plan::default(), 1_000_000, many());
}

#[test]
fn no_power_cut_takes_an_acknowledged_byte_2() {
    must_hold(Plan::default(), 2_000_000, many());
}

#[test]
fn no_power_cut_takes_an_acknowledged_byte_3() {
    must_hold(Plan::default(), 3_000_000, many());
}

#[test]
fn no_power_cut_takes_an_acknowledged_byte_4() {
    must_hold(Plan::default(), 4_000_000, many());
}

#[test]
fn a_store_that_cannot_punch_loses_nothing_either() {
    must_hold(Plan { lies: Lies { cannot_punch: true, ..Lies::default() }, ..Plan::default() }, 5_000_000, many());
}

/// Runs with a disk that breaks its promise: the twin must notice within `states` states.
fn must_be_caught(plan: Plan, states: u64) {
    let begun = Instant::now();
    match search(plan, 9_000_000, states) {
        Err(failure) => println!("caught after {:?}: {failure}", begun.elapsed()),
        Ok(checked) => panic!("{:?}, deaf {:?}: unnoticed in {checked} crash states", plan.lies, plan.deaf),
    }
    assert!(begun.elapsed() < Duration::from_secs(120));
}

#[test]
fn a_disk_that_ignores_syncs_is_caught() {
    must_be_caught(Plan { lies: Lies { no_sync: true, ..Lies::default() }, ..Plan::default() }, 2_000);
}

#[test]
fn pages_that_straddle_two_units_are_caught() {
    must_be_caught(Plan { lies: Lies { straddle: true, ..Lies::default() }, ..Plan::default() }, 2_000);
}

#[test]
fn a_disk_that_tears_pages_is_caught() {
    must_be_caught(Plan { lies: Lies { tearing: true, ..Lies::default() }, ..Plan::default() }, 2_000);
}

#[test]
fn a_cut_through_a_page_is_caught() {
    must_be_caught(Plan { lies: Lies { no_punch: true, ..Lies::default() }, ..Plan::default() }, 5_000);
}

#[test]
fn a_missing_barrier_before_growth_is_caught() {
    must_be_caught(Plan { deaf: Deaf::Growing, ..Plan::default() }, 50_000);
}

#[test]
fn a_missing_barrier_before_a_cut_is_caught() {
    must_be_caught(Plan { deaf: Deaf::Shrinking, ..Plan::default() }, 50_000);
}

/// A common fsync is one sync of the disk, whatever was written before, and a floor costs none.
#[test]
fn a_sync_is_one_sync() {
    let sim = Sim::new(Medium::default(), Lies::default());
    let file = PageFile::create(sim.clone(), &run::header(1), keys()).unwrap();
    for step in 0..20 {
        file.write(step * 5000, &[7; 6000]).unwrap();
        assert_eq!(sim.take_past().len(), 0, "a write syncs nothing");
        file.sync().unwrap();
        assert_eq!(sim.take_past().len(), 1);
        file.put_floor().unwrap();
        assert_eq!(sim.take_past().len(), 0, "a rising floor syncs nothing");
    }
}

/// What the floor is for: pages that somebody zeroes or cuts off are missed.
#[test]
fn zeroed_and_cut_pages_below_the_floor_are_noticed() {
    let make = |floor: bool| {
        let sim = Sim::new(Medium::default(), Lies::default());
        let file = PageFile::create(sim.clone(), &run::header(1), keys()).unwrap();
        file.write(0, &[7; 20_000]).unwrap();
        file.sync().unwrap();
        if floor {
            file.put_floor().unwrap();
        }
        sim
    };
    let open = |sim: &Sim| PageFile::open(sim.clone(), run::HEADER, keys());
    let zeroed = make(true);
    zeroed.tamper(|medium| drop(medium.units.remove(&2)));
    let file = open(&zeroed).unwrap();
    let is_missed = |result| matches!(result, Err(FileError::Damaged { page: 2, why: Damage::BelowFloor }));
    assert!(is_missed(file.read(0, &mut [0; 20_000]).map(drop)));
    assert!(is_missed(file.write(run::FIRST + run::CAP + 5, b"text")), "old bytes of a damaged page must stay");
    assert_eq!(file.read(0, &mut [0; 7000]).unwrap(), 7000, "other pages are well");
    file.write(run::FIRST + run::CAP, &[8; 4056]).unwrap();
    assert_eq!(file.read(0, &mut [0; 20_000]).unwrap(), 20_000, "a page written anew is well again");
    for keep in [4096, 4096 * 4, 4096 * 5 + 4] {
        let cut = make(true);
        cut.tamper(|medium| {
            medium.units.split_off(&(keep / 4096));
            medium.len = keep;
        });
        assert!(matches!(open(&cut), Err(FileError::Damaged { why: Damage::Truncated, .. })), "cut to {keep}");
    }
    let unsynced = make(false);
    unsynced.tamper(|medium| drop(medium.units.remove(&2)));
    let mut bytes = vec![1; 20_000];
    open(&unsynced).unwrap().read(0, &mut bytes).unwrap();
    assert!(bytes[7072..11128].iter().all(|b| *b == 0), "above the floor a hole reads as zeros");
    let empty = make(true);
    empty.tamper(|medium| drop(medium.units.remove(&0)));
    assert!(matches!(open(&empty), Err(FileError::Unfinished)));
    let short = make(true);
    short.tamper(|medium| medium.len = 4095);
    assert!(matches!(open(&short), Err(FileError::Unfinished)));
    let tail = make(true);
    tail.tamper(|medium| medium.len += 4090 - medium.len % 4096);
    assert!(matches!(open(&tail), Err(FileError::Damaged { why: Damage::Tail, .. })));
}
