//! Ready keys and prefetched ones.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::options::{KeyringOptions, MAX_POOL};
use super::super::pool::Pool;
use super::super::state::{Known, Ready, State};
use super::super::{KeyError, Limits, Suggested};
use super::fake::{DIR, Mood, World, id, options};
use crate::crypto::Secret;
use crate::format::slots::Via;
use crate::provider::{Operation, Reason, Verdict};

#[test]
fn the_pool_fills_after_the_first_create_and_serves_the_next() {
    let world = World::paused(true, options());
    world.pass(Duration::from_secs(60));
    assert_eq!(world.fake.calls(), 0, "nobody has created a file");
    assert!(!world.keyring.has_ready(&DIR));
    let first = world.keyring.new_file_key(&DIR).unwrap();
    world.pass(Duration::from_secs(1));
    let filled = world.keyring.stats().ready;
    assert!((4..=8).contains(&filled), "{filled}");
    assert!(world.keyring.has_ready(&DIR));

    // The service goes away; what is ready still serves.
    world.fake.set(Mood::Hang);
    let mut files = HashSet::from([first.file]);
    for _ in 0..filled {
        let new = world.keyring.new_file_key(&DIR).unwrap();
        assert!(files.insert(new.file), "an id was given twice");
        assert_eq!(new.slots[0].via, Via::Provider(0));
        assert_eq!(new.slots[0].wrapped, new.file.as_bytes(), "wrapped in its own file's context");
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
                world.keyring.new_file_key(&DIR).unwrap();
            }
            world.pass(Duration::from_secs(2));
            assert!(world.keyring.stats().ready <= most.min(MAX_POOL));
        }
        assert!(world.keyring.stats().ready >= most.min(300) / 2, "{:?}", world.keyring.stats());
    }
}

#[test]
fn ready_keys_expire_after_an_hour_and_are_not_made_again_for_nobody() {
    let world = World::paused(true, options());
    drop(world.keyring.new_file_key(&DIR).unwrap());
    world.pass(Duration::from_secs(1));
    let (ready, calls) = (world.keyring.stats().ready, world.fake.calls());
    assert!(ready > 0);
    world.pass(Duration::from_secs(3500));
    assert_eq!(world.keyring.stats().ready, ready);
    world.pass(Duration::from_secs(200));
    assert_eq!(world.keyring.stats().ready, 0);
    world.pass(Duration::from_secs(20_000));
    assert_eq!(world.fake.calls(), calls);
    assert!(!world.keyring.has_ready(&DIR));
    drop(world.keyring.new_file_key(&DIR).unwrap());
    world.pass(Duration::from_secs(1));
    assert!(world.keyring.stats().ready > 0);
}

#[test]
fn a_burst_that_comes_again_within_the_hour_finds_its_keys_ready() {
    let world = World::paused(true, options());
    *world.fake.takes.lock().unwrap() = Duration::ZERO;
    let burst = |size: usize| {
        let before = world.heard.reasons(Reason::Create);
        world.at_once(|| (0..size).for_each(|_| drop(world.keyring.new_file_key(&DIR).unwrap())));
        world.heard.reasons(Reason::Create) - before
    };
    assert!(burst(1000) > 0, "nobody could know");
    world.pass(Duration::from_millis(900));
    let before = world.fake.calls();
    world.pass(Duration::from_secs(15));
    let made = world.fake.calls() - before;
    let ready = world.keyring.stats().ready;
    assert!((1000..=1250).contains(&ready) && made <= ready, "{ready} ready, {made} made");
    let begun = *world.fake.times.lock().unwrap().last().unwrap();
    world.pass(Duration::from_secs(1500));
    assert_eq!(*world.fake.times.lock().unwrap().last().unwrap(), begun, "whole, and left alone");
    assert_eq!(burst(1000), 0);
    // It is kept for half an hour to an hour after the last burst, and not made again then.
    world.pass(Duration::from_secs(30));
    assert!(world.keyring.stats().ready >= 1000);
    let calls = world.fake.calls();
    world.pass(Duration::from_secs(7300));
    assert_eq!((world.keyring.stats().ready, world.fake.calls()), (0, calls));
}

#[test]
fn the_reserve_is_made_gently_and_only_while_nobody_makes_files() {
    let limits = Limits { per_second: 40, burst: 40 };
    let world = World::paused(true, KeyringOptions { reserve: 200, limits, ..options() });
    world.pass(Duration::from_secs(5));
    let ready = world.keyring.stats().ready;
    assert!((30..=51).contains(&ready), "a quarter of the rate: {ready} in five seconds");
    assert_eq!(world.fake.most_at_once.load(Ordering::SeqCst), 1);
    world.fake.set(Mood::Fail(Verdict::Unreachable));
    let failing = world.fake.calls();
    world.pass(Duration::from_secs(100));
    assert!((2..=5).contains(&(world.fake.calls() - failing)), "asked every half minute meanwhile");
    world.fake.set(Mood::Live);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.keyring.stats().ready, 200);
    // One an hour for each, and no more.
    let calls = world.fake.calls();
    world.pass(Duration::from_secs(36_000));
    let made = world.fake.calls() - calls;
    assert!((9 * 200..=10 * 200).contains(&made), "{made} in ten hours");
}

#[test]
fn a_reserve_takes_no_locked_memory_from_keys_in_use() {
    let world = World::paused(true, KeyringOptions { reserve: MAX_POOL, ..options() });
    (0..100).for_each(|n| drop(world.get(&id(n)).unwrap()));
    world.fake.set(Mood::Full);
    world.pass(Duration::from_secs(600));
    let stats = world.keyring.stats();
    assert!(stats.cached == 100 && stats.ready < MAX_POOL, "{stats:?}");
    // Answers, not calls: some were on their way when the memory was full.
    let refused = world.heard.0.lock().unwrap().iter().filter(|told| told.2 == Verdict::Unreachable).count();
    assert!((1..=8).contains(&refused), "given up at once, not after {refused} calls");
}

#[test]
fn files_made_one_by_one_ask_for_no_reserve() {
    let start = tokio::time::Instant::now();
    let mut pool = Pool::new(MAX_POOL, 0, Limits { per_second: 2000, burst: 4000 });
    for n in 0..20_000_u32 {
        pool.take(start + Duration::from_millis(50) * n);
    }
    let mut now = start + Duration::from_secs(1000);
    for n in 0..100 {
        now += Duration::from_secs(2);
        (0..pool.plan(0, now).missing).for_each(|_| pool.put(a_ready_key(n, now)));
    }
    assert!((4..=8).contains(&pool.len()), "{}", pool.len());
}

fn a_ready_key(n: u64, born: tokio::time::Instant) -> Ready {
    let known = Known { key: std::sync::Arc::new(Secret::from_fn(|_| ()).unwrap()), commitment: [0; 32] };
    Ready { file: id(n), known, wrapped: vec![1], born }
}

#[test]
fn a_denied_create_is_refused_for_a_second_and_the_pool_keeps_quiet() {
    let world = World::paused(true, options());
    world.fake.set(Mood::Fail(Verdict::Denied));
    for _ in 0..20 {
        assert!(matches!(world.keyring.new_file_key(&DIR), Err(KeyError::Denied(_))));
    }
    assert!(world.keyring.has_ready(&DIR), "a refusal needs no wait");
    // One call for the create; the pool was asked to fill once and stopped at the first answers.
    assert!(world.heard.reasons(Reason::Create) == 1 && world.heard.reasons(Reason::Pool) <= 24);
    world.pass(Duration::from_millis(1100));
    world.fake.set(Mood::Live);
    assert!(world.keyring.new_file_key(&DIR).is_ok());
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
    let world = World::paused(true, KeyringOptions { limits: Limits { per_second: 5, burst: 1 }, ..options() });
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

#[test]
fn what_is_made_in_vain_stays_in_proportion_to_what_is_used() {
    let world = World::paused(true, options());
    for used in [1, 10, 100] {
        let before = world.fake.calls();
        (0..used).for_each(|_| drop(world.keyring.new_file_key(&DIR).unwrap()));
        world.pass(Duration::from_secs(7500));
        let made = world.fake.calls() - before;
        assert!(made >= used && made <= 2 * used + used / 4 + 8, "{made} made for {used}");
        assert_eq!(world.keyring.stats().ready, 0);
    }
}

/// On a clock of its own: a create each `gap`, a call takes `takes`, as many at once as the pool may have.
fn dry_after_start(gap: Duration, takes: Duration, creates: u32) -> (u32, usize) {
    let start = tokio::time::Instant::now();
    let mut state = State::new(16_384, Pool::new(MAX_POOL, 0, options().limits));
    let mut coming: std::collections::VecDeque<tokio::time::Instant> = Default::default();
    let (mut dry, mut made) = (0, 0);
    for n in 0..creates {
        let now = start + gap * n;
        let landed = coming.front().is_some_and(|at| *at <= now);
        while coming.front().is_some_and(|at| *at <= now) {
            let born = coming.pop_front().unwrap();
            state.pool.put(a_ready_key(u64::from(n), born));
        }
        let late = gap * n > Duration::from_millis(500);
        let (ready, low) = state.pool.take(now);
        dry += u32::from(ready.is_none() && late);
        let missing = if low || landed { state.pool_plan(coming.len(), now).missing } else { 0 };
        made += missing;
        // What the rest of the calls leaves to the background.
        (0..missing.min(48_usize.saturating_sub(coming.len()))).for_each(|_| coming.push_back(now + takes));
    }
    (dry, made)
}

#[test]
fn a_pool_under_steady_demand_never_runs_dry_once_it_has_grown() {
    for (gap, takes) in [(500, 20), (1_000, 20), (2_000, 80), (50_000, 200)] {
        let (dry, made) = dry_after_start(Duration::from_micros(gap), Duration::from_millis(takes), 4000);
        assert!(dry == 0 && made > 3900, "a create each {gap} us, {takes} ms a call: {dry} times dry, {made} made");
    }
}

#[test]
fn suggestions_are_fetched_as_far_as_they_are_used() {
    let world = World::paused(true, options());
    let suggest = |range: std::ops::Range<u64>| {
        range.filter(|n| world.keyring.suggest(id(*n), world.fake.slots()) == Suggested::Taken).count()
    };
    assert_eq!(suggest(0..1000), 64, "nobody has used any");
    assert_eq!(world.keyring.suggest(id(0), world.fake.slots()), Suggested::Needless);
    assert_eq!(world.keyring.suggest(id(900), world.fake.slots()), Suggested::Full);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.heard.reasons(Reason::Prefetch), 64);
    (0..64).for_each(|n| drop(world.get(&id(n)).unwrap()));
    assert_eq!(world.fake.calls(), 64, "all were here");
    assert_eq!(suggest(1000..2000), 128, "each use made room for two");
    // Local keystores, locked keyrings and failing services take none.
    let local = World::paused(false, options());
    assert_eq!(local.keyring.suggest(id(1), local.fake.slots()), Suggested::NotNow);
    world.keyring.lock();
    assert_eq!(world.keyring.suggest(id(5000), world.fake.slots()), Suggested::NotNow);
}

#[test]
fn a_denial_ends_what_is_fetched_ahead() {
    let world = World::paused(true, options());
    world.fake.set(Mood::Fail(Verdict::Denied));
    let (keyring, fake) = (world.keyring.clone(), world.fake.clone());
    let (taken, calls, then) = world.run(async move {
        let taken = (0..64).filter(|n| keyring.suggest(id(*n), fake.slots()) == Suggested::Taken).count();
        tokio::time::sleep(Duration::from_millis(200)).await;
        (taken, fake.calls(), keyring.suggest(id(100), fake.slots()))
    });
    assert!(taken == 64 && calls <= 24, "{calls} calls after the first no");
    assert_eq!(then, Suggested::NotNow);
    // What failed waits for no use: it may be suggested again when the service is back.
    world.fake.set(Mood::Live);
    world.pass(Duration::from_secs(2));
    let again = (100..300).filter(|n| world.keyring.suggest(id(*n), world.fake.slots()) == Suggested::Taken).count();
    assert_eq!(again, 64);
}
