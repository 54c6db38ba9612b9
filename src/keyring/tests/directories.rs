//! Group keys of directories.

use std::sync::Barrier;
use std::time::Duration;

use super::super::options::KeyringOptions;
use super::super::{KeyError, NewKey, Suggested};
use super::fake::{DIR, Mood, VOLUME, World, id, options};
use crate::crypto::envelope::EnvelopeKey;
use crate::crypto::kdf;
use crate::format::slots::{KeySlot, Via};
use crate::format::{DirId, FileId};
use crate::provider::{Operation, Reason, Verdict};

fn per_directory() -> KeyringOptions {
    KeyringOptions { per_directory: true, ..options() }
}

fn get(world: &World, new: &NewKey) -> Result<[u8; 32], KeyError> {
    world.keyring.get(&new.file, &new.slots, &new.commitment).map(|key| *key.expose())
}

/// As after a restart of the daemon: nothing is cached.
fn again(world: &World) {
    world.keyring.unlock(world.fake.clone());
}

#[test]
fn a_directory_s_files_share_one_wrapped_key_and_each_has_its_own() {
    for remote in [true, false] {
        let world = World::paused(remote, per_directory());
        let made: Vec<NewKey> = (0..20).map(|_| world.keyring.new_file_key(&DIR).unwrap()).collect();
        assert_eq!(world.fake.calls(), 1, "remote: {remote}");
        assert!(made.iter().all(|new| new.key.expose() != made[0].key.expose() || new.file == made[0].file));
        let kept: Vec<[u8; 32]> = made.iter().map(|new| *new.key.expose()).collect();
        for new in &made {
            // The documented slots: the file's key under the group's, and that one under the customer's.
            let [sealed, wrapped] = &new.slots[..] else { panic!("{:?}", new.slots) };
            assert_eq!(sealed.via, Via::Group(DIR.0));
            assert_eq!(wrapped.via, Via::GroupKey { slot: 0, group: DIR.0 });
            assert_eq!(wrapped.wrapped, DIR.0, "bound to the directory's id");
            let group = crate::crypto::Secret::copy_from(&world.fake.key_of(&FileId(DIR.0))).unwrap();
            let opened = EnvelopeKey::new(group).open_secret(&[VOLUME.0, new.file.0].concat(), &sealed.wrapped);
            assert_eq!(opened.unwrap().expose(), new.key.expose());
            assert_eq!(new.commitment, kdf::commitment(&new.key, new.file.as_bytes()).unwrap());
        }
        again(&world);
        assert!(!remote || world.keyring.would_wait(&made[0].file, &made[0].slots));
        for (new, key) in made.iter().zip(&kept) {
            assert_eq!(get(&world, new).unwrap(), *key);
            assert!(!world.keyring.would_wait(&made[19].file, &made[19].slots));
        }
        assert_eq!(world.fake.calls(), 2, "one unwrap opened all");
        assert_eq!(world.heard.0.lock().unwrap()[1].0, Operation::Unwrap);
        assert_eq!(world.keyring.stats().in_flight, 0);
        // One key of each file, and the group's.
        assert_eq!(world.keyring.lock(), 21);
    }
}

#[test]
fn a_hundred_threads_unwrap_a_directory_s_key_once_and_make_it_once() {
    let world = World::real(true, per_directory());
    *world.fake.takes.lock().unwrap() = Duration::from_millis(200);
    let barrier = Barrier::new(100);
    let made: Vec<NewKey> = std::thread::scope(|scope| {
        let make = || {
            barrier.wait();
            world.keyring.new_file_key(&DIR).unwrap()
        };
        let threads: Vec<_> = (0..100).map(|_| scope.spawn(make)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(world.fake.calls(), 1);
    again(&world);
    std::thread::scope(|scope| {
        for new in &made {
            let (world, barrier) = (&world, &barrier);
            scope.spawn(move || {
                barrier.wait();
                get(world, new).unwrap();
            });
        }
    });
    assert_eq!((world.fake.calls(), world.heard.reasons(Reason::Open)), (2, 1));
}

#[test]
fn two_keys_of_one_directory_get_along() {
    let world = World::paused(true, per_directory());
    let first = world.keyring.new_file_key(&DIR).unwrap();
    let key = *first.key.expose();
    // Another mount knew no file of the directory and made a key of its own; the fake tells them apart by their bytes.
    let mut other = NewKey { slots: first.slots.clone(), ..world.keyring.new_file_key(&DIR).unwrap() };
    other.slots[1].wrapped = b"of another mount".to_vec();
    again(&world);
    assert_eq!(get(&world, &first).unwrap(), key);
    assert!(world.keyring.would_wait(&other.file, &other.slots), "not the same key, although the same directory's");
    assert_eq!(world.fake.calls(), 2);
    assert!(matches!(get(&world, &other), Err(KeyError::Damaged(_))), "the first file's slot in the other's header");
    assert_eq!(world.fake.calls(), 3);
}

#[test]
fn new_files_use_the_key_that_the_directory_s_files_show() {
    let world = World::paused(true, per_directory());
    assert!(world.keyring.wants_group_of(&DIR));
    let first = world.keyring.new_file_key(&DIR).unwrap();
    assert!(!world.keyring.wants_group_of(&DIR));
    again(&world);
    assert!(world.keyring.wants_group_of(&DIR) && !world.keyring.has_ready(&DIR));
    // A file that was moved here shows its old directory's key, which is not for new files of this one.
    assert!(!world.keyring.adopt(&DirId([9; 16]), &first.slots));
    assert!(world.keyring.adopt(&DIR, &first.slots));
    assert_eq!(world.fake.calls(), 1, "adopting costs no call");
    assert!(!world.keyring.has_ready(&DIR), "it must be unwrapped yet");
    let second = world.keyring.new_file_key(&DIR).unwrap();
    assert!(world.keyring.has_ready(&DIR));
    assert_eq!(second.slots[1], first.slots[1]);
    let last = world.heard.0.lock().unwrap().last().cloned().unwrap();
    assert_eq!((world.fake.calls(), last.0), (2, Operation::Unwrap), "unwrapped, not made");
}

#[test]
fn new_directories_take_their_keys_from_the_pool() {
    let world = World::paused(true, per_directory());
    assert!(world.keyring.new_directory().is_none(), "nothing is ready yet, and a directory waits for nothing");
    world.pass(Duration::from_secs(1));
    let ready = world.keyring.stats().ready;
    assert!(ready > 0);
    let calls = world.fake.calls();
    world.fake.set(Mood::Hang);
    for _ in 0..ready {
        let dir = world.keyring.new_directory().unwrap();
        assert!(world.keyring.has_ready(&dir));
        let new = world.keyring.new_file_key(&dir).unwrap();
        assert_eq!(new.slots[1], KeySlot { via: Via::GroupKey { slot: 0, group: dir.0 }, wrapped: dir.0.to_vec() });
        let pairs = get(&world, &new).unwrap();
        assert_eq!(pairs, *new.key.expose());
    }
    assert!(world.keyring.new_directory().is_none());
    assert!(world.heard.reasons(Reason::Create) == 0 && calls >= ready);
    // Only where keys are wrapped per directory.
    let other = World::paused(true, options());
    assert!(other.keyring.new_directory().is_none() && other.fake.calls() == 0 && !other.keyring.wants_group_of(&DIR));
}

#[test]
fn one_call_ahead_serves_a_directory() {
    let world = World::paused(true, per_directory());
    let made: Vec<NewKey> = (0..30).map(|_| world.keyring.new_file_key(&DIR).unwrap()).collect();
    again(&world);
    let taken: Vec<_> = made.iter().map(|new| world.keyring.suggest(new.file, new.slots.clone())).collect();
    assert_eq!(taken.iter().filter(|taken| **taken == Suggested::Taken).count(), 1);
    assert!(taken[1..].iter().all(|taken| *taken == Suggested::Needless));
    world.pass(Duration::from_secs(1));
    assert!(made.iter().all(|new| get(&world, new).is_ok()));
    assert_eq!((world.fake.calls(), world.heard.reasons(Reason::Prefetch)), (2, 1));
}

#[test]
fn a_no_to_the_group_s_key_is_a_no_to_its_files_and_is_not_asked_again_at_once() {
    let world = World::paused(true, per_directory());
    let made: Vec<NewKey> = (0..5).map(|_| world.keyring.new_file_key(&DIR).unwrap()).collect();
    again(&world);
    world.fake.set(Mood::Fail(Verdict::Denied));
    for new in &made {
        assert!(matches!(get(&world, new), Err(KeyError::Denied(_))));
    }
    assert_eq!(world.fake.calls(), 2);
    assert!(matches!(world.keyring.new_file_key(&DirId([77; 16])), Err(KeyError::Denied(_))));
    assert!(matches!(world.keyring.new_file_key(&DirId([77; 16])), Err(KeyError::Denied(_))));
    assert_eq!(world.fake.calls(), 3);
    world.pass(Duration::from_millis(1100));
    world.fake.set(Mood::Live);
    assert!(get(&world, &made[0]).is_ok() && world.keyring.new_file_key(&DirId([77; 16])).is_ok());
}

#[test]
fn a_lock_while_a_directory_s_key_is_made_leaves_nothing() {
    let world = World::real(true, per_directory());
    world.fake.set(Mood::Hang);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| world.keyring.new_file_key(&DIR).err());
        while world.fake.calls() == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        world.keyring.lock();
        assert!(matches!(waits.join().unwrap(), Some(KeyError::Locked)));
    });
    assert_eq!((world.keyring.stats().cached, world.keyring.stats().in_flight), (0, 0));
    assert!(!crate::sys::arena::arena().contains(&world.fake.key_of(&FileId(DIR.0))));
    world.fake.set(Mood::Live);
    again(&world);
    assert!(world.keyring.new_file_key(&DIR).is_ok());
    assert!(crate::sys::arena::arena().contains(&world.fake.key_of(&FileId(DIR.0))), "the control");
}

#[test]
fn files_with_keys_of_their_own_open_in_such_a_volume_too() {
    let world = World::paused(true, per_directory());
    assert_eq!(world.get(&id(1)).unwrap().expose(), &world.fake.key_of(&id(1)));
}
