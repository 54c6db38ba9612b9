//! Locks under load leave no key.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use super::super::options::KeyringOptions;
use super::super::{KeyError, Keyring};
use super::fake::{DIR, Fake, Heard, Mood, VOLUME, World, id, options};
use crate::provider::Provider;
use crate::sys::arena::arena;

#[test]
fn a_lock_wipes_what_others_still_hold_and_everything_after_is_locked() {
    let world = World::paused(true, options());
    let held = world.get(&id(1)).unwrap();
    drop(world.keyring.new_file_key(&DIR).unwrap());
    world.pass(Duration::from_secs(1));
    let ready = world.keyring.stats().ready;
    assert!(ready > 0 && !held.is_wiped());
    assert_eq!(world.keyring.lock(), 2 + ready);
    assert!(held.is_wiped() && held.expose() == &[0; 32]);
    assert!(world.keyring.cached(&id(1)).is_none());
    assert!(matches!(world.get(&id(1)), Err(KeyError::Locked)));
    assert!(matches!(world.keyring.new_file_key(&DIR), Err(KeyError::Locked)));
    world.keyring.prefetch(id(2), world.fake.slots());
    assert!(!world.keyring.would_wait(&id(2), &world.fake.slots()) && world.keyring.has_ready(&DIR));
    assert_eq!(world.keyring.lock(), 0, "twice is no harm");
    let calls = world.fake.calls();
    world.pass(Duration::from_secs(1000));
    assert_eq!(world.fake.calls(), calls, "nothing goes on in the background");

    let again = Fake::new(true);
    world.keyring.unlock(Arc::clone(&again) as Arc<dyn Provider>);
    assert_eq!(again.get(&world.keyring, &id(1)).unwrap().expose(), &again.key_of(&id(1)));
    assert_eq!(Arc::strong_count(&world.fake), 1, "the old provider was dropped with its clients");
}

/// A call that cannot be given up and ends after the lock, even after the next unlock.
#[test]
fn what_a_call_brings_after_the_lock_is_wiped() {
    for unlock in [false, true] {
        for create in [false, true] {
            let world = World::real(false, options());
            let gate = Arc::new([Barrier::new(2), Barrier::new(2)]);
            *world.fake.gate.lock().unwrap() = Some(Arc::clone(&gate));
            std::thread::scope(|scope| {
                let late = scope.spawn(|| match create {
                    false => world.get(&id(1)).err(),
                    true => world.keyring.new_file_key(&DIR).err(),
                });
                gate[0].wait();
                let start = Instant::now();
                assert_eq!(world.keyring.lock(), 0);
                assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
                if unlock {
                    world.keyring.unlock(world.fake.clone());
                }
                gate[1].wait();
                assert!(matches!(late.join().unwrap(), Some(KeyError::Locked)), "unlock {unlock}, create {create}");
            });
            assert_eq!((world.keyring.stats().cached, world.keyring.stats().in_flight), (0, 0));
            assert!(!arena().contains(&world.fake.key_of(&id(1))));
        }
    }
}

#[test]
fn who_waits_is_told_at_once() {
    let world = World::real(true, options());
    world.fake.set(Mood::Hang);
    std::thread::scope(|scope| {
        let waits: Vec<_> = (0..10)
            .map(|n| {
                scope.spawn({
                    let w = &world;
                    move || w.get(&id(n))
                })
            })
            .collect();
        let creates = scope.spawn(|| world.keyring.new_file_key(&DIR));
        while world.fake.at_once.load(Ordering::SeqCst) < 11 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let start = Instant::now();
        world.keyring.lock();
        for wait in waits {
            assert!(matches!(wait.join().unwrap(), Err(KeyError::Locked)));
        }
        assert!(matches!(creates.join().unwrap(), Err(KeyError::Locked)));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    });
    assert_eq!(world.fake.at_once.load(Ordering::SeqCst), 0, "the calls were given up");
}

/// 16 threads open and create while the keyring is locked and unlocked again; after each lock the whole arena is
/// searched for every key that this test ever made.
/// Ends the threads of a test when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn locks_under_load_leave_no_key_in_the_arena() {
    for remote in [true, false] {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        let fake = Fake::new(remote);
        *fake.takes.lock().unwrap() = Duration::from_micros(300);
        let observer = Arc::new(Heard::default());
        let provider = Arc::clone(&fake) as Arc<dyn Provider>;
        let keyring = Keyring::new(provider, runtime.handle().clone(), VOLUME, options(), observer);
        let keys: HashSet<[u8; 32]> = (0..600).map(|n| fake.key_of(&id(n))).collect();
        let stop = AtomicBool::new(false);
        let (opened, locked) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            // Also when a check fails: the scope waits for its threads, and would hide what failed.
            let _stop = Stop(&stop);
            for thread in 0..16_u64 {
                let (keyring, fake, stop, opened, locked) = (&keyring, &fake, &stop, &opened, &locked);
                scope.spawn(move || {
                    let mut n = thread;
                    while !stop.load(Ordering::Relaxed) {
                        n = (n * 25 + 7) % 600;
                        if n % 8 == 0 {
                            drop(keyring.new_file_key(&DIR));
                        }
                        if n % 16 == 1 {
                            keyring.prefetch(id(n + 1), fake.slots());
                        }
                        match fake.get(keyring, &id(n)) {
                            Ok(key) if key.is_wiped() => drop(locked.fetch_add(1, Ordering::Relaxed)),
                            Ok(key) => {
                                assert!(*key.expose() == fake.key_of(&id(n)) || key.is_wiped());
                                opened.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(KeyError::Locked) => {
                                locked.fetch_add(1, Ordering::Relaxed);
                                std::thread::sleep(Duration::from_micros(200));
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            for _ in 0..20 {
                // Longer where the threads get no processor.
                let control = (0..1000).any(|_| {
                    std::thread::sleep(Duration::from_millis(30));
                    arena().count_of(&keys) > 0
                });
                assert!(control, "the positive control");
                let start = Instant::now();
                keyring.lock();
                let took = start.elapsed();
                // `Fake::get` computes the commitment from a copy of the key that is the test's own: it is outside of
                // the keyring, so it may be met in passing; what stays is a leak.
                let left = || arena().count_of(&keys);
                let clean = (0..200).any(|_| left() == 0);
                assert!(clean, "{} keys are left after a lock", left());
                assert!(took < Duration::from_millis(500), "{took:?}");
                keyring.unlock(Arc::clone(&fake) as Arc<dyn Provider>);
            }
        });
        assert!(opened.load(Ordering::Relaxed) > 100 && locked.load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn sixteen_thousand_keys_are_wiped_within_a_tenth_of_a_second() {
    let world = World::real(false, KeyringOptions { cache: 16_384, ..options() });
    let held: Vec<_> = (0..16_384).map(|n| world.get(&id(n)).unwrap()).collect();
    let start = Instant::now();
    assert_eq!(world.keyring.lock(), 16_384);
    let took = start.elapsed();
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert!(held.iter().all(|key| key.is_wiped()));
}
