//! The daemon is killed at every step of a lock and of a restore, and at random moments: no plaintext is left to anybody,
//! nothing lands in the bare directory, and the next mount has everything that was synced.
//!
//! A debug build dies by `SIGKILL` at the step that a file names (`src/sys/step.rs`), so each step is hit exactly.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use rustix::process::{Pid, Signal, kill_process};

use crate::cache::{Script, cached_pages};
use crate::common::{Mount, Store, World, assert_bytes, errno, guards, mounted, names, noise, read, wait_until};
use crate::rig;

const LENGTH: usize = 200_000;

const LOCK: [&str; 9] = [
    "lock: begun",
    "lock: gated",
    "lock: written back",
    "lock: settled",
    "lock: purged",
    "lock: closed",
    "lock: keys wiped",
    "lock: wiped",
    "lock: purged again",
];
const LEAVE: [&str; 3] = ["lock: placeholder beneath", "lock: aborted", "lock: ended"];
const LOCKED: [&str; 2] = ["lock: left", "lock: recorded"];
const MOUNT_AGAIN: [&str; 4] = ["restore: unlocked", "restore: attached", "restore: serving", "restore: recorded"];
const REOPEN: [&str; 4] = ["restore: keys", "restore: emptied", "restore: opened", "restore: recorded"];

/// A volume whose daemons die at the step that the file `die_at` names.
struct Rig {
    store: Store,
    die_at: PathBuf,
    on_revoke: &'static str,
}

/// What programs hold when the daemon is killed.
struct Holders {
    file: File,
    nameless: File,
    dir: File,
    mapping: Script,
    round: u64,
}

impl Rig {
    fn new(on_revoke: &'static str) -> Rig {
        let mut world = World::new();
        let die_at = world.path().join("die-at");
        world.set("HYOKFS_DEBUG_DIE_AT", die_at.to_str().unwrap());
        Rig { store: Store::with(world, &[]), die_at, on_revoke }
    }

    fn mount(&self) -> Mount<'_> {
        rig::mount(&self.store, &["--on-revoke", self.on_revoke])
    }

    /// Files that are synced, open, mapped and cached; and the control: all of it can be read.
    fn hold(&self, mount: &Mount<'_>, round: u64) -> Holders {
        let _ = fs::create_dir(mount.at("dir"));
        let both = |name: &str| {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(mount.at(name)).unwrap()
        };
        let file = both(&format!("dir/synced-{round}"));
        file.write_all_at(&noise(round, LENGTH), 0).unwrap();
        file.sync_all().unwrap();
        let nameless = both("dir/nameless");
        nameless.write_all_at(&noise(7, LENGTH), 0).unwrap();
        fs::remove_file(mount.at("dir/nameless")).unwrap();
        let _ = fs::remove_file(mount.at("link"));
        std::os::unix::fs::symlink("a secret target", mount.at("link")).unwrap();
        let dir = File::open(mount.at("dir")).unwrap();
        dir.sync_all().unwrap();
        let code = format!(
            "import mmap,sys\nf=open('dir/synced-{round}','r+b')\nm=mmap.mmap(f.fileno(),0)\nf.close()\nx=sum(m[::4096])\n\
             print('ready',flush=True)\nsys.stdin.readline()\nprint('read',m[5000],flush=True)\n"
        );
        let mapping = Script::start(&self.store.world, &mount.path, &code);
        let mut bytes = vec![0; LENGTH];
        for (open, seed) in [(&file, round), (&nameless, 7)] {
            open.read_exact_at(&mut bytes, 0).unwrap();
            assert_bytes(&bytes, &noise(seed, LENGTH), "the control");
            // Again, should somebody on this machine empty all caches at this very moment.
            wait_until("the control: cached pages", rig::PROMISE, || {
                open.read_exact_at(&mut bytes, 0).unwrap();
                cached_pages(open) >= 40
            });
        }
        assert_eq!(fs::read_link(mount.at("link")).unwrap().to_str(), Some("a secret target"));
        assert!(names(&mount.at("dir")).iter().any(|name| *name == *format!("synced-{round}")));
        assert!(fs::metadata(mount.at(format!("dir/synced-{round}"))).is_ok());
        statat(&dir, format!("synced-{round}"), AtFlags::empty()).unwrap();
        Holders { file, nameless, dir, mapping, round }
    }

    /// The daemon is dead: nobody gets anything.
    fn nothing_is_left(&self, mount: &Mount<'_>, mut held: Holders, step: &str) {
        let name = format!("synced-{}", held.round);
        for (open, what) in [(&held.file, "an open file"), (&held.nameless, "an open file without a name")] {
            assert_eq!(cached_pages(open), 0, "{step}: pages of {what} are in the page cache");
            assert!(open.read_at(&mut [0; 10], 0).is_err(), "{step}: {what} is read");
            assert!(open.write_at(&[0; 4096], 0).is_err(), "{step}: {what} takes writes that nobody will store");
            assert!(open.metadata().is_err(), "{step}: the size of {what} is told");
        }
        assert!(statat(&held.dir, &name, AtFlags::empty()).is_err(), "{step}: a name is told below an open directory");
        assert!(openat(&held.dir, &name, OFlags::RDONLY, Mode::empty()).is_err(), "{step}: a file is opened there");
        let (status, said) = held.mapping.go_on();
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{step}: the mapping: {status}, and it said `{said}`");
        // By path: the dead mount, or the placeholder.
        assert!(mounted(&mount.path).is_some(), "{step}: the bare directory is open to everybody");
        for below in [format!("dir/{name}"), "dir".into(), "link".into()] {
            assert!(fs::symlink_metadata(mount.at(&below)).is_err(), "{step}: `{below}` is told to be there");
        }
        assert!(File::open(mount.at(format!("dir/{name}"))).is_err(), "{step}: a file is opened by path");
        assert!(fs::read_link(mount.at("link")).is_err(), "{step}: the link's target is told");
        let listed = fs::read_dir(&mount.path).into_iter().flatten().filter(Result::is_ok).count();
        assert_eq!(listed, 0, "{step}: names are listed");
        let late = errno(fs::write(mount.at("late"), b"plaintext"));
        assert!([libc::ENOTCONN, libc::EROFS].contains(&late), "{step}: a write to the mount point gives {late}");
    }

    /// A new daemon has everything that was synced.
    fn next_mount(&self, rounds: u64, step: &str) {
        let _ = fs::remove_file(&self.die_at);
        self.store.enable_key();
        let begun = Instant::now();
        let path = self.store.world.path().join("mnt");
        let options = ["--poll-interval", rig::POLL, "--on-revoke", self.on_revoke];
        let mount = self.store.try_mount(&options, &path).unwrap_or_else(|said| panic!("{step}: {said}"));
        assert!(begun.elapsed() < rig::PROMISE, "{step}: the next mount took {:?}", begun.elapsed());
        for round in 0..=rounds {
            assert_bytes(&read(&mount.at(format!("dir/synced-{round}"))), &noise(round, LENGTH), step);
        }
        mount.umount();
    }

    /// One round: everything is held, the daemon is brought to its end by `end` while a writer goes on, and then looked at.
    fn round(&self, round: u64, step: &str, end: impl FnOnce(&Mount<'_>)) {
        let mut mount = self.mount();
        let held = self.hold(&mount, round);
        let (stop, taken, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _stop = rig::Stop(&stop);
            let path = mount.path.clone();
            let (stop, taken, refused) = (&stop, &taken, &refused);
            scope.spawn(move || {
                // An ordinary writer that goes on whatever it is told.
                for number in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let done = fs::write(path.join(format!("new-{}", number % 20)), b"plaintext");
                    if done.is_ok() { taken } else { refused }.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            wait_until("the writer", rig::PROMISE, || taken.load(Ordering::Relaxed) > 3);
            end(&mount);
            let status = mount.died();
            assert_eq!(status.signal(), Some(libc::SIGKILL), "{step}: {status}");
            let before = refused.load(Ordering::Relaxed);
            wait_until("the writer goes on", rig::PROMISE, || refused.load(Ordering::Relaxed) > before + 3);
        });
        self.nothing_is_left(&mount, held, step);
        // On top of what is there.
        self.next_mount(round, step);
        drop(mount);
    }

    fn every_step(&self, steps: &[&[&str]]) {
        for (round, step) in (0..).zip(steps.concat()) {
            self.round(round, step, |mount| {
                let locked_before = step.starts_with("restore");
                if locked_before {
                    rig::revoke(mount);
                }
                fs::write(&self.die_at, step).unwrap();
                if locked_before { self.store.enable_key() } else { self.store.disable_key() }
            });
        }
        self.clean();
    }

    /// Kills at moments spread over the time that a lock takes, from a little before it to a little after.
    fn random_moments(&self, kills: u64) {
        let mount = self.mount();
        let held = self.hold(&mount, 0);
        let begun = Instant::now();
        self.lock(&mount).wait().unwrap();
        let span = begun.elapsed().mul_f64(1.2);
        assert_eq!(rig::state(&mount), "locked");
        drop(held);
        mount.umount();
        let mut states = std::collections::BTreeMap::<String, u32>::new();
        for round in 1..=kills {
            let random = u64::from_le_bytes(noise(0xc4a5 + round, 8).try_into().unwrap());
            let after = span.mul_f64((round as f64 - random as f64 / u64::MAX as f64) / kills as f64);
            self.round(round, &format!("{after:?} after the order to lock"), |mount| {
                let mut lock = self.lock(mount);
                std::thread::sleep(after);
                *states.entry(mounted(&mount.path).unwrap_or_default()).or_default() += 1;
                mount.signal(Signal::KILL);
                let _ = lock.wait();
            });
        }
        println!("{} kills in {span:?}; what stood on the mount point at the kill: {states:?}", kills);
        self.clean();
    }

    fn lock(&self, mount: &Mount<'_>) -> std::process::Child {
        let mut command = self.store.world.hyokfs([OsStr::new("lock"), mount.path.as_os_str()]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    }

    /// At the end: the store is sound, and the directory below the mount point is empty.
    fn clean(&self) {
        self.store.world.ok([OsStr::new("verify"), self.store.path.as_os_str()]);
        let bare = self.store.world.path().join("mnt");
        while mounted(&bare).is_some() {
            rustix::mount::unmount(&bare, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
        assert_eq!(names(&bare), Vec::<std::ffi::OsString>::new(), "plaintext in the bare directory");
        assert_eq!(guards(&bare), Vec::<u32>::new(), "a guard stays");
    }
}

#[test]
fn killed_at_every_step_of_a_lock() {
    Rig::new("unmount").every_step(&[&LOCK, &LEAVE, &LOCKED]);
}

#[test]
fn killed_at_every_step_of_a_lock_that_holds() {
    Rig::new("hold").every_step(&[&LOCK, &LOCKED]);
}

#[test]
fn killed_at_every_step_of_a_restore() {
    Rig::new("unmount").every_step(&[&MOUNT_AGAIN]);
}

#[test]
fn killed_at_every_step_of_a_restore_of_what_is_held() {
    Rig::new("hold").every_step(&[&REOPEN]);
}

#[test]
fn killed_at_random_moments_of_a_lock() {
    Rig::new("unmount").random_moments(15);
}

#[test]
fn killed_at_random_moments_of_a_lock_that_holds() {
    Rig::new("hold").random_moments(15);
}

/// The control of all the others, and what is said of it in docs/revocation.md: whoever kills the guard first, and the
/// daemon then, leaves what programs had open in the page cache.
#[test]
fn without_its_guard_a_killed_daemon_leaves_pages_to_those_who_have_them_open() {
    let rig = Rig::new("unmount");
    let mut mount = rig.mount();
    let mut held = rig.hold(&mount, 0);
    let guards = guards(&mount.path);
    assert_eq!(guards.len(), 1, "one guard for one mount");
    kill_process(Pid::from_raw(guards[0] as i32).unwrap(), Signal::KILL).unwrap();
    mount.signal(Signal::KILL);
    mount.died();
    let mut bytes = vec![0; LENGTH];
    held.file.read_exact_at(&mut bytes, 0).unwrap();
    assert_bytes(&bytes, &noise(0, LENGTH), "from the page cache");
    let (status, said) = held.mapping.go_on();
    assert!(status.success() && said.starts_with("read"), "{status} {said}");
    assert_eq!(errno(File::open(mount.at("dir/synced-0"))), libc::ENOTCONN);
    rig.next_mount(0, "without a guard");
    drop((held, mount));
    rig.clean();
}

/// A guard that is not needed ends with its mount, and a daemon that is killed while nobody revokes leaves nothing either.
#[test]
fn killed_while_unlocked() {
    let rig = Rig::new("unmount");
    rig.round(0, "unlocked", |mount| mount.signal(Signal::KILL));
    let mount = rig.mount();
    assert_eq!(guards(&mount.path).len(), 1);
    rig::revoke(&mount);
    assert_eq!(guards(&mount.path).len(), 0, "the guard of a mount that has gone");
    rig::restore(&mount);
    assert_eq!(guards(&mount.path).len(), 1);
    mount.umount();
    rig.clean();
}
