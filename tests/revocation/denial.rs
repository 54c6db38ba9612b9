//! A key that its owner has denied gets no second chance before its owner says yes.

use std::ffi::OsStr;
use std::fs;
use std::time::Duration;

use crate::common::{Store, mounted, names};
use crate::rig;

#[test]
fn no_way_around_a_denial() {
    let store = Store::new();
    let mut mount = rig::mount(&store, &["--lease", "1h"]);
    fs::write(mount.at("f"), b"secret").unwrap();
    rig::revoke(&mount);
    // The operator asks for it.
    let said = store.world.fails([OsStr::new("unlock"), mount.path.as_os_str()]);
    assert!(said.contains("disabled"), "unclear: {said}");
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(rig::state(&mount), "locked");
    // Or for a lock by hand that is then taken back.
    store.world.ok([OsStr::new("lock"), mount.path.as_os_str()]);
    store.world.fails([OsStr::new("unlock"), mount.path.as_os_str()]);
    assert_eq!(rig::state(&mount), "locked");

    // A drill must not bring it back either.
    let _ = store.world.run([OsStr::new("drill"), OsStr::new("--json"), mount.path.as_os_str()]);
    assert_eq!(rig::state(&mount), "locked");

    // A restart, polite or not, changes nothing.
    mount.signal(rustix::process::Signal::TERM);
    mount.ended();
    let path = mount.path.clone();
    drop(mount);
    for _ in 0..2 {
        let Err(said) = store.try_mount(&["--poll-interval", rig::POLL, "--lease", "1h"], &path) else {
            panic!("mounted under a denied key")
        };
        assert!(said.contains("disabled"), "unclear: {said}");
        assert_eq!(mounted(&path), None);
        assert_eq!(names(&path).len(), 0);
    }
    store.enable_key();
    let mount = rig::mount(&store, &[]);
    assert_eq!(fs::read(mount.at("f")).unwrap(), b"secret");
    mount.umount();
}

#[test]
fn no_way_around_a_denial_by_a_kill() {
    let store = Store::new();
    let mount = rig::mount(&store, &["--lease", "1h"]);
    fs::write(mount.at("f"), b"secret").unwrap();
    let path = mount.path.clone();
    // Killed between the customer's no and the lock, and killed while locked.
    store.disable_key();
    mount.kill_and_leave();
    for _ in 0..2 {
        let Err(said) = store.try_mount(&["--lease", "1h"], &path) else { panic!("mounted under a denied key") };
        assert!(said.contains("disabled"), "unclear: {said}");
        assert!(fs::read(path.join("f")).is_err());
    }
    store.enable_key();
    let mount = rig::mount(&store, &[]);
    rig::revoke(&mount);
    mount.kill_and_leave();
    let Err(said) = store.try_mount(&["--lease", "1h"], &path) else { panic!("mounted under a denied key") };
    assert!(said.contains("disabled"), "unclear: {said}");
    store.enable_key();
    let mount = rig::mount(&store, &[]);
    assert_eq!(fs::read(mount.at("f")).unwrap(), b"secret");
    mount.umount();
}
