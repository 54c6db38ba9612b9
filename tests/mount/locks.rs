//! flock and fcntl locks between processes.

use std::fs::{File, OpenOptions};
use std::process::Command;

use rustix::fs::{FlockOperation, fcntl_lock, flock};

use crate::common::{Store, World};

/// What `flock(1)`, another process, gets: whether the lock was free.
fn others_get_flock(world: &World, path: &std::path::Path) -> bool {
    let mut command: Command = world.command("flock");
    command.args(["--nonblock", "--exclusive"]).arg(path).arg("true").status().unwrap().success()
}

#[test]
fn flock_between_processes() {
    let store = Store::new();
    let mount = store.mount();
    let path = mount.at("f");
    let file = File::create(&path).unwrap();
    assert!(others_get_flock(&store.world, &path));
    flock(&file, FlockOperation::LockExclusive).unwrap();
    assert!(!others_get_flock(&store.world, &path), "an exclusive lock keeps others out");
    let second = File::open(&path).unwrap();
    assert_eq!(flock(&second, FlockOperation::NonBlockingLockShared), Err(rustix::io::Errno::WOULDBLOCK));
    flock(&file, FlockOperation::Unlock).unwrap();
    flock(&second, FlockOperation::NonBlockingLockShared).unwrap();
    flock(&file, FlockOperation::NonBlockingLockShared).unwrap();
    assert!(!others_get_flock(&store.world, &path));
    drop((file, second));
    assert!(others_get_flock(&store.world, &path), "closing gives the lock back");
    mount.umount();
}

#[test]
fn record_locks_between_processes() {
    let store = Store::new();
    let mount = store.mount();
    let path = mount.at("f");
    std::fs::write(&path, [0; 100]).unwrap();
    let probe = |from: u32, length: u32| {
        let code = format!(
            "import fcntl,sys\nf=open(sys.argv[1],'r+b')\n\
             try: fcntl.lockf(f, fcntl.LOCK_EX|fcntl.LOCK_NB, {length}, {from})\nexcept OSError: sys.exit(3)"
        );
        store.world.command("python3").args(["-c", &code]).arg(&path).status().unwrap().code().unwrap()
    };
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert_eq!(probe(0, 100), 0);
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(probe(0, 10), 3, "a locked range keeps others out");
    fcntl_lock(&file, FlockOperation::Unlock).unwrap();
    assert_eq!(probe(0, 10), 0);
    drop(file);
    mount.umount();
}
