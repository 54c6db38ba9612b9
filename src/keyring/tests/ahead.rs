//! Ready keys and prefetched ones.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::KeyError;
use super::super::options::{KeyringOptions, MAX_POOL};
use super::fake::{Mood, World, id, options};
use crate::format::slots::Via;
use crate::provider::{Operation, Reason, Verdict};

#[test]
fn the_pool_fills_after_the_first_create_and_serves_the_next() {
    let world = World::paused(true, options());
    world.pass(Duration::from_secs(60));
    assert_eq!(world.fake.calls(), 0, "nobody has created a file");
    assert!(!world.keyring.has_ready());
    let first = world.keyring.new_file_key().unwrap();
    world.pass(Duration::from_secs(1));
    let filled = world.keyring.stats().ready;
    assert!((8..=32).contains(&filled), "{filled}");
    assert!(world.keyring.has_ready());

    // The service goes away; what is ready still serves.
    world.fake.set(Mood::Hang);
    let mut files = HashSet::from([first.file]);
    for _ in 0..filled {
        let new = world.keyring.new_file_key().unwrap();
        assert!(files.insert(new.file), "an id was given twice");
        assert_eq!(new.slot.via, Via::Provider(0));
        assert_eq!(new.slot.wrapped, new.file.as_bytes(), "wrapped in its own file's context");
        assert_eq!(new.commitment, world.fake.commitment(&new.file));
        assert_eq!(world.keyring.cached(&new.file).unwrap().expose(), &world.fake.key_of(&new.file));
    }
    assert!(world.heard.reasons(Reason::Pool) >= filled);
}

#[test]
fn the_pool_grows_with_demand_but_never_above_its_limit() {
    for most in [20, 100_000] {
        let world = World::paused(true, KeyringOptions { pool: most, ..options() });
        for _ in 0..10 {
            for _ in 0..300 {
                world.keyring.new_file_key().unwrap();
            }
            world.pass(Duration::from_secs(2));
            assert!(world.keyring.stats().ready <= most.min(MAX_POOL));
        }
        assert!(world.keyring.stats().ready >= most.min(MAX_POOL) / 2, "{:?}", world.keyring.stats());
    }
}

#[test]
fn ready_keys_expire_after_five_minutes_and_are_not_made_again_for_nobody() {
    let world = World::paused(true, options());
    drop(world.keyring.new_file_key().unwrap());
    world.pass(Duration::from_secs(1));
    let (ready, calls) = (world.keyring.stats().ready, world.fake.calls());
    assert!(ready > 0);
    world.pass(Duration::from_secs(290));
    assert_eq!(world.keyring.stats().ready, ready);
    world.pass(Duration::from_secs(15));
    assert_eq!(world.keyring.stats().ready, 0);
    world.pass(Duration::from_secs(3600));
    assert_eq!(world.fake.calls(), calls);
    assert!(!world.keyring.has_ready());
    drop(world.keyring.new_file_key().unwrap());
    world.pass(Duration::from_secs(1));
    assert!(world.keyring.stats().ready > 0);
}

#[test]
fn a_denied_create_is_refused_for_a_second_and_the_pool_keeps_quiet() {
    let world = World::paused(true, options());
    world.fake.set(Mood::Fail(Verdict::Denied));
    for _ in 0..20 {
        assert!(matches!(world.keyring.new_file_key(), Err(KeyError::Denied(_))));
    }
    assert!(world.keyring.has_ready(), "a refusal needs no wait");
    // One call for the create; the pool was asked to fill once and stopped at the first answers.
    assert!(world.heard.reasons(Reason::Create) == 1 && world.heard.reasons(Reason::Pool) <= 24);
    world.pass(Duration::from_millis(1100));
    world.fake.set(Mood::Live);
    assert!(world.keyring.new_file_key().is_ok());
}

#[test]
fn a_prefetched_key_is_there_when_it_is_asked_for() {
    let world = World::paused(true, options());
    (0..500).for_each(|n| world.keyring.prefetch(id(n), world.fake.slots()));
    world.pass(Duration::from_secs(5));
    assert_eq!((world.keyring.stats().cached, world.fake.calls()), (500, 500));
    assert!(world.fake.most_at_once.load(Ordering::SeqCst) <= 24, "a quarter is left to those who wait");
    (0..500).for_each(|n| drop(world.get(&id(n)).unwrap()));
    world.keyring.prefetch(id(1), world.fake.slots());
    world.pass(Duration::from_secs(5));
    assert_eq!(world.fake.calls(), 500);
    assert_eq!(world.heard.reasons(Reason::Prefetch), 500);
}

#[test]
fn prefetching_never_blocks_and_drops_what_is_too_much() {
    let world = World::real(true, options());
    world.fake.set(Mood::Hang);
    let start = std::time::Instant::now();
    (0..20_000).for_each(|n| world.keyring.prefetch(id(n), world.fake.slots()));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(world.keyring.stats().prefetches_dropped > 18_000);
    // Hung prefetches leave room for who waits.
    *world.fake.takes.lock().unwrap() = Duration::ZERO;
    while world.fake.at_once.load(Ordering::SeqCst) < 24 {
        std::thread::sleep(Duration::from_millis(1));
    }
    world.fake.set(Mood::Live);
    assert!(world.get(&id(1_000_000)).is_ok());
    let local = World::real(false, options());
    local.keyring.prefetch(id(1), local.fake.slots());
    assert_eq!(local.fake.calls(), 0);
}

#[test]
fn an_open_is_not_held_up_by_prefetches_under_a_low_rate() {
    let world = World::paused(true, KeyringOptions { max_rps: 5, ..options() });
    (0..400).for_each(|n| world.keyring.prefetch(id(n), world.fake.slots()));
    world.pass(Duration::from_secs(3));
    let waiting = (0..400)
        .map(id)
        .find(|file| world.keyring.cached(file).is_none() && world.keyring.would_wait(file, &world.fake.slots()));
    // Both one that waits in the queue or in flight, and one that nobody asked for.
    assert!(world.get(&waiting.unwrap()).is_ok());
    assert!(world.get(&id(5000)).is_ok());
}

#[test]
fn a_failed_prefetch_is_tried_on_for_who_needs_it() {
    let world = World::paused(true, options());
    world.fake.set(Mood::Fail(Verdict::Unreachable));
    world.keyring.prefetch(id(1), world.fake.slots());
    world.pass(Duration::from_millis(100));
    assert_eq!(world.fake.calls(), 1, "tried once");
    (2..100).for_each(|n| world.keyring.prefetch(id(n), world.fake.slots()));
    world.pass(Duration::from_millis(500));
    assert_eq!(world.fake.calls(), 1, "quiet for a second");
    world.fake.set(Mood::Live);
    assert!(world.get(&id(1)).is_ok());
    let unwraps = world.heard.0.lock().unwrap().iter().filter(|heard| heard.0 == Operation::Unwrap).count();
    assert_eq!(unwraps, 2);
}
