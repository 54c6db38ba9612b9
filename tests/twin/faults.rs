//! A disk whose n-th call fails, for every n: the caller is told at the latest by the sync, nothing else is damaged,
//! and after the disk has healed everything goes on.

use hyokfs::file::{FileError, PageFile};

use crate::run::{CAP, FIRST, HEADER, Op, header, keys, read_all};
use crate::sim::{Fault, Lies, Medium, Rng, Sim};

/// Operations that between them use every path: growth, gaps, edges, whole pages, cuts, holes, floors.
fn script() -> Vec<Op> {
    vec![
        Op::Write(0, 100, 1),
        Op::Write(FIRST - 10, CAP + 20, 2),
        Op::Sync,
        Op::PutFloor,
        Op::Write(50, 3 * CAP, 3),
        Op::Truncate(FIRST + 7),
        Op::Sync,
        Op::Write(FIRST + 100, 50, 4),
        Op::Write(FIRST + 3 * CAP, CAP, 5),
        Op::Sync,
        Op::PutFloor,
        Op::Punch(10, FIRST + 2 * CAP),
        Op::Zero(FIRST, 4 * CAP + 5, false),
        Op::Allocate(0, FIRST + 6 * CAP, false),
        Op::Write(FIRST + 5 * CAP - 1, 2, 6),
        Op::Sync,
        Op::PutFloor,
        Op::Truncate(0),
        Op::Write(0, 10, 7),
        Op::Truncate(FIRST + CAP),
        Op::SetHeader(9),
        Op::Sync,
    ]
}

/// Every byte must be what it was before the operation or what it should be after it.
fn check_mixture(found: &[u8], before: &[u8], after: &[u8], context: &str) {
    let (least, most) = (before.len().min(after.len()), before.len().max(after.len()));
    assert!((least..=most).contains(&found.len()), "{context}: {} bytes", found.len());
    for (at, byte) in found.iter().enumerate() {
        let allowed = before.get(at) == Some(byte) || after.get(at) == Some(byte) || (*byte == 0 && at >= least);
        assert!(allowed, "{context}: byte {at} is {byte}");
    }
}

/// Runs the script with the `n`-th call failing. Gives whether any call did.
fn run(n: u64, fault: Fault) -> bool {
    let keys = keys();
    let sim = Sim::new(Medium::default(), Lies::default());
    let file = PageFile::create(sim.clone(), &header(1), keys.clone()).unwrap();
    file.sync().unwrap();
    let mut rng = Rng(n);
    let mut bytes = Vec::new();
    let mut any = false;
    sim.fail_at(n, fault);
    for op in script() {
        let context = format!("{fault:?} at call {n}, {op:?}");
        let before = bytes.clone();
        op.apply(&mut bytes);
        let done = op.perform(&file);
        let hit = sim.heal_if_hit();
        any |= hit;
        match done {
            Ok(()) => assert!(!hit || fault == Fault::Short, "{context}: swallowed"),
            Err(error) => {
                assert!(hit, "{context}: failed by itself: {error}");
                assert!(matches!(error, FileError::Io(_)), "{context}: {error}");
                // The disk is well again: what stands is old or new, and the same again succeeds.
                check_mixture(&read_all(&file).unwrap(), &before, &bytes, &context);
                file.put_tail().unwrap();
                let reopened = PageFile::open(sim.clone(), HEADER, keys.clone()).unwrap();
                check_mixture(&read_all(&reopened).unwrap(), &before, &bytes, &context);
                op.perform(&file).unwrap_or_else(|error| panic!("{context}, again: {error}"));
            }
        }
        let live = read_all(&file);
        let hit = sim.heal_if_hit();
        any |= hit;
        match live {
            Ok(live) => assert!(live == bytes, "{context}: reads otherwise"),
            Err(error) => {
                assert!(hit, "{context}: cannot be read: {error}");
                assert!(read_all(&file).unwrap() == bytes, "{context}: reads otherwise after an error");
            }
        }
        if matches!(op, Op::Sync) {
            let crashed = Sim::new(sim.volatile().crash(&mut rng, false), Lies::default());
            let reopened = PageFile::open(crashed, HEADER, keys.clone()).unwrap();
            assert!(read_all(&reopened).unwrap() == bytes, "{context}: lost by a crash");
        }
    }
    any
}

fn every_call(fault: Fault, at_least: u64) {
    let mut n = 1;
    while run(n, fault) {
        n += 1;
    }
    println!("{fault:?}: {} calls failed, one at a time", n - 1);
    assert!(n > at_least, "the script makes only {n} such calls");
}

#[test]
fn an_input_output_error_at_any_call_is_told_and_survived() {
    every_call(Fault::Io, 60);
}

#[test]
fn a_full_store_at_any_call_is_told_and_survived() {
    every_call(Fault::NoSpace, 30);
}

#[test]
fn a_short_write_at_any_call_is_completed() {
    every_call(Fault::Short, 15);
}

#[test]
fn a_failed_creation_leaves_an_unfinished_file() {
    let sim = Sim::new(Medium::default(), Lies::default());
    sim.fail_at(1, Fault::NoSpace);
    assert!(PageFile::create(sim.clone(), &header(1), keys()).is_err());
    assert!(sim.heal_if_hit());
    assert!(matches!(PageFile::open(sim, HEADER, keys()), Err(FileError::Unfinished)));
}

/// Crashes as the disk is now, many times over.
fn crashes(sim: &Sim) -> impl Iterator<Item = Sim> {
    let (volatile, mut rng) = (sim.volatile(), Rng(7));
    (0..200).map(move |_| Sim::new(volatile.crash(&mut rng, false), Lies::default()))
}

/// A truncation lowers the floor durably first. If that sync fails, a later one that succeeds proves nothing.
#[test]
fn a_lost_floor_is_written_again_before_a_cut() {
    let (sim, keys) = (Sim::new(Medium::default(), Lies::default()), keys());
    let file = PageFile::create(sim.clone(), &header(1), keys.clone()).unwrap();
    file.write(0, &[7; 20_000]).unwrap();
    file.sync().unwrap();
    file.put_floor().unwrap();
    file.sync().unwrap();
    sim.fail_at(1, Fault::LostSync);
    assert!(file.truncate(100).is_err());
    assert!(sim.heal_if_hit());
    assert_eq!((file.size(), file.failures()), (20_000, 1));
    file.sync().unwrap();
    file.truncate(100).unwrap();
    for crashed in crashes(&sim) {
        let bytes = read_all(&PageFile::open(crashed, HEADER, keys.clone()).unwrap()).unwrap();
        assert!(bytes.len() == 100 || bytes.len() == 20_000, "{} bytes", bytes.len());
    }
}

/// Growth over a cut seals the last page anew, durably. If that sync fails, the bytes that were cut must not come back.
#[test]
fn a_lost_seal_is_written_again_before_growth() {
    let cut = FIRST + 100;
    let (sim, keys) = (Sim::new(Medium::default(), Lies::default()), keys());
    let file = PageFile::create(sim.clone(), &header(1), keys.clone()).unwrap();
    file.write(0, &[7; 7000]).unwrap();
    file.sync().unwrap();
    file.truncate(cut).unwrap();
    file.sync().unwrap();
    sim.fail_at(1, Fault::LostSync);
    assert!(file.truncate(9000).is_err());
    assert!(sim.heal_if_hit());
    file.sync().unwrap();
    file.truncate(9000).unwrap();
    for crashed in crashes(&sim) {
        let bytes = read_all(&PageFile::open(crashed, HEADER, keys.clone()).unwrap()).unwrap();
        assert!(bytes[..cut as usize].iter().all(|byte| *byte == 7), "acknowledged bytes");
        assert!(bytes[cut as usize..].iter().all(|byte| *byte == 0), "bytes that were cut are back");
    }
}
