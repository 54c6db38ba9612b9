//! The cache, one call for many threads, retries, refusals, rate, group keys.

use std::sync::Barrier;
use std::time::Duration;

use super::super::options::KeyringOptions;
use super::super::{KeyError, Limits};
use super::fake::{DIR, Mood, VOLUME, World, id, options};
use crate::crypto::envelope::EnvelopeKey;
use crate::crypto::{Secret, kdf};
use crate::format::slots::{KeySlot, Via};
use crate::provider::{Operation, Reason, Verdict};

#[test]
fn a_hundred_threads_make_one_call() {
    for remote in [true, false] {
        let world = World::real(remote, options());
        *world.fake.takes.lock().unwrap() = Duration::from_millis(200);
        let barrier = Barrier::new(100);
        std::thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| {
                    barrier.wait();
                    assert_eq!(world.get(&id(1)).unwrap().expose(), &world.fake.key_of(&id(1)));
                });
            }
        });
        assert_eq!(world.fake.calls(), 1, "remote: {remote}");
        assert_eq!(world.keyring.stats().in_flight, 0);
        let heard = world.heard.0.lock().unwrap();
        let call = (Operation::Unwrap, Reason::Open, Verdict::Live, Some(Verdict::Live), Some("u-1".to_owned()));
        assert_eq!(*heard, [call]);
    }
}

#[test]
fn a_cached_key_needs_no_call_and_the_least_used_goes_first() {
    let world = World::paused(true, KeyringOptions { cache: 3, ..options() });
    (1..=3).for_each(|n| drop(world.get(&id(n)).unwrap()));
    drop(world.get(&id(1)).unwrap());
    assert!(world.keyring.cached(&id(2)).is_some());
    assert_eq!(world.fake.calls(), 3);
    drop(world.get(&id(4)).unwrap());
    assert!(world.keyring.cached(&id(3)).is_none(), "the least used");
    assert!(!crate::sys::arena::arena().contains(&world.fake.key_of(&id(3))), "evicted is wiped");
    assert!(crate::sys::arena::arena().contains(&world.fake.key_of(&id(1))), "the control");
    world.keyring.forget(&id(1));
    assert!(!crate::sys::arena::arena().contains(&world.fake.key_of(&id(1))));
    assert_eq!(world.keyring.stats().cached, 2);
}

#[test]
fn a_hung_service_delays_only_who_needs_it_and_those_to_the_deadline() {
    let world = World::real(true, KeyringOptions { deadline: Duration::from_millis(600), ..options() });
    drop(world.get(&id(1)).unwrap());
    world.fake.set(Mood::Hang);
    std::thread::scope(|scope| {
        let hung: Vec<_> = (100..140)
            .map(|n| {
                scope.spawn({
                    let world = &world;
                    move || world.get(&id(n))
                })
            })
            .collect();
        while world.keyring.stats().in_flight < 40 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let start = std::time::Instant::now();
        for _ in 0..1000 {
            assert!(world.get(&id(1)).is_ok() && world.keyring.cached(&id(1)).is_some());
        }
        assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
        assert!(world.keyring.would_wait(&id(2), &world.fake.slots()));
        assert!(!world.keyring.would_wait(&id(1), &world.fake.slots()));
        for thread in hung {
            let error = thread.join().unwrap().unwrap_err();
            assert!(matches!(&error, KeyError::Unreachable(error) if error.code == "Timeout"), "{error}");
        }
    });
    assert_eq!(world.keyring.stats().in_flight, 0);
    assert!(world.fake.most_at_once.load(std::sync::atomic::Ordering::SeqCst) <= 32);
    // The calls that were cut are reported too.
    assert!(world.heard.0.lock().unwrap().iter().any(|heard| heard.2 == Verdict::Unreachable));
    world.fake.set(Mood::Live);
    assert!(world.get(&id(100)).is_ok(), "an outage is not remembered");
}

#[test]
fn only_an_unreachable_service_is_asked_again_and_only_until_the_deadline() {
    let world = World::paused(true, options());
    world.fake.set(Mood::Fail(Verdict::Unreachable));
    assert!(matches!(world.get(&id(1)), Err(KeyError::Unreachable(_))));
    let times = world.fake.times.lock().unwrap().clone();
    assert!((5..=20).contains(&times.len()), "{} tries", times.len());
    let span = times[times.len() - 1] - times[0];
    assert!(span <= Duration::from_secs(10) && span > Duration::from_secs(7), "{span:?}");
    let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] >= Duration::from_millis(50) && pauses[0] <= Duration::from_millis(140), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(2050)), "{pauses:?}");

    for (number, verdict) in [(2, Verdict::Denied), (3, Verdict::Misconfigured)] {
        world.fake.set(Mood::Fail(verdict));
        let before = world.fake.calls();
        assert!(world.get(&id(number)).is_err());
        assert_eq!(world.fake.calls(), before + 1);
    }
    let heard = world.heard.0.lock().unwrap();
    assert!(heard.iter().any(|heard| heard.3 == Some(Verdict::Denied) && heard.4.as_deref() == Some("r-1")));
    assert!(heard.iter().filter(|heard| heard.2 != Verdict::Denied).all(|heard| heard.3.is_none()));
}

#[test]
fn it_recovers_within_one_wait() {
    let world = World::paused(true, options());
    world.fake.set(Mood::Fail(Verdict::Unreachable));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| world.get(&id(1)));
        while world.fake.calls() < 2 {
            std::thread::yield_now();
        }
        world.fake.set(Mood::Live);
        // Either it lived to see the change, or the paused clock ran to the deadline first; then a new wait succeeds.
        if waits.join().unwrap().is_err() {
            assert!(world.get(&id(1)).is_ok());
        }
    });
}

#[test]
fn a_no_is_repeated_for_a_second_without_asking_and_then_asked_again() {
    let world = World::paused(true, options());
    for (number, verdict) in [(1, Verdict::Denied), (2, Verdict::Misconfigured)] {
        world.fake.set(Mood::Fail(verdict));
        let before = world.fake.calls();
        for _ in 0..50 {
            let error = world.get(&id(number)).unwrap_err();
            assert_eq!(matches!(error, KeyError::Denied(_)), verdict == Verdict::Denied);
        }
        assert_eq!(world.fake.calls(), before + 1);
        // Another wrapping of the same file is another question.
        let other = [KeySlot { via: Via::Provider(0), wrapped: b"other".to_vec() }];
        assert!(world.keyring.get(&id(number), &other, &[0; 32]).is_err());
        assert_eq!(world.fake.calls(), before + 2);
        world.pass(Duration::from_millis(1001));
        world.fake.set(Mood::Live);
        assert!(world.get(&id(number)).is_ok());
        assert_eq!(world.fake.calls(), before + 3);
    }
}

#[test]
fn a_local_no_is_never_remembered() {
    let world = World::paused(false, options());
    world.fake.set(Mood::Fail(Verdict::Denied));
    assert!(world.get(&id(1)).is_err());
    assert!(world.keyring.new_file_key(&DIR).is_err());
    world.fake.set(Mood::Live);
    assert!(world.get(&id(1)).is_ok());
    assert!(world.keyring.new_file_key(&DIR).is_ok());
}

#[test]
fn the_rate_holds_over_opens_and_creates() {
    let world = World::paused(
        true,
        KeyringOptions { limits: Limits { per_second: 10, burst: 2 }, deadline: Duration::from_secs(60), ..options() },
    );
    std::thread::scope(|scope| {
        for n in 0..50 {
            let world = &world;
            scope.spawn(move || world.get(&id(n)).unwrap());
            if n % 5 == 0 {
                scope.spawn(move || world.keyring.new_file_key(&DIR).unwrap());
            }
        }
    });
    let mut times = world.fake.times.lock().unwrap().clone();
    times.sort();
    assert!(times.len() >= 60);
    for pair in times.windows(13) {
        assert!(pair[12] - pair[0] >= Duration::from_millis(990), "13 calls in {:?}", pair[12] - pair[0]);
    }
}

#[test]
fn a_service_that_throttles_is_asked_less() {
    let span = |throttled: bool| {
        let limits = Limits { per_second: 100, burst: 60 };
        let world = World::paused(true, KeyringOptions { limits, ..options() });
        if throttled {
            world.fake.set(Mood::Throttle);
            // The last try must not be one that the deadline cuts off.
            let takes = std::mem::take(&mut *world.fake.takes.lock().unwrap());
            assert!(matches!(world.get(&id(1)), Err(KeyError::Unreachable(error)) if error.is_throttling()));
            *world.fake.takes.lock().unwrap() = takes;
            world.fake.set(Mood::Live);
            world.fake.times.lock().unwrap().clear();
        }
        std::thread::scope(|scope| {
            (100..150).for_each(|n| {
                drop(scope.spawn({
                    let world = &world;
                    move || world.get(&id(n)).unwrap()
                }))
            });
        });
        let times = world.fake.times.lock().unwrap().clone();
        *times.iter().max().unwrap() - *times.iter().min().unwrap()
    };
    let (usual, after) = (span(false), span(true));
    assert!(after >= usual + Duration::from_millis(400), "50 calls took {usual:?}, after the complaint {after:?}");
}

#[test]
fn a_key_that_the_header_does_not_commit_to_is_damage() {
    let world = World::paused(true, options());
    assert!(
        matches!(world.keyring.get(&id(1), &world.fake.slots(), &[9; 32]), Err(KeyError::Damaged(file)) if file == id(1))
    );
    assert!(matches!(world.keyring.get(&id(1), &world.fake.slots(), &[9; 32]), Err(KeyError::Damaged(_))));
    assert_eq!(world.fake.calls(), 1);
    assert!(world.get(&id(1)).is_ok(), "the true header still opens");
    let other = [KeySlot { via: Via::Provider(7), wrapped: b"blob".to_vec() }];
    let error = world.keyring.get(&id(2), &other, &[9; 32]).unwrap_err();
    assert!(matches!(&error, KeyError::Misconfigured(error) if error.code == "NoKeySlot"), "{error}");
}

#[test]
fn a_group_key_opens_and_makes_without_a_call() {
    let world = World::paused(true, KeyringOptions { new_in_group: Some([5; 16]), ..options() });
    assert!(
        matches!(world.keyring.new_file_key(&DIR), Err(KeyError::Misconfigured(error)) if error.code == "NoGroupKey")
    );
    let group = || Secret::copy_from(&[0x77; 32]).unwrap();
    world.keyring.set_group([5; 16], group()).unwrap();
    assert!(world.keyring.has_ready(&DIR));
    let new = world.keyring.new_file_key(&DIR).unwrap();
    let slots = [new.slots[0].clone()];
    assert_eq!(new.slots[0].via, Via::Group([5; 16]));
    assert_eq!(new.commitment, kdf::commitment(&new.key, new.file.as_bytes()).unwrap());
    world.keyring.forget(&new.file);
    assert!(!world.keyring.would_wait(&new.file, &slots));
    let again = world.keyring.get(&new.file, &slots, &new.commitment).unwrap();
    assert_eq!(again.expose(), new.key.expose());
    // The slot is the documented envelope, bound to volume and file.
    let place = [VOLUME.0, new.file.0].concat();
    let opened = EnvelopeKey::new(group()).open_secret(&place, &new.slots[0].wrapped).unwrap();
    assert_eq!(opened.expose(), new.key.expose());
    assert!(matches!(world.keyring.get(&id(9), &slots, &new.commitment), Err(KeyError::Damaged(_))), "another file's");
    assert_eq!(world.fake.calls(), 0);
    let wiped = world.keyring.lock();
    assert_eq!(wiped, 2, "one file key and the group key");
    assert!(matches!(world.keyring.set_group([5; 16], group()), Err(KeyError::Locked)));
    world.keyring.unlock(world.fake.clone());
    assert!(world.keyring.get(&new.file, &slots, &new.commitment).is_err(), "the group key went with the lock");
}

#[test]
fn a_runtime_that_is_gone_is_an_error_not_a_hang() {
    let world = World::real(true, options());
    let keyring = world.keyring.clone();
    let fake = world.fake.clone();
    drop(world);
    let error = fake.get(&keyring, &id(1)).unwrap_err();
    assert!(matches!(&error, KeyError::Unreachable(error) if error.code == "NoAnswer"), "{error}");
}
