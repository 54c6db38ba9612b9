//! A denied key of a cloud gets no second chance: not by `unlock`, not by a restart of the daemon, not by a mount by hand,
//! not after a kill. (`several.rs` has the same with a second key in the record.)

use std::ffi::OsStr;
use std::fs;

use crate::azure::Azure;
use crate::common::{Store, mounted, names};
use crate::rig;

/// With a volume that holds `f`. `take` is the customer's no, `give` the yes that ends it.
#[track_caller]
pub fn no_second_chance(store: &Store, code: &str, take: &dyn Fn(), give: &dyn Fn()) {
    let options = ["--lease", "1h"];
    let mut mount = rig::mount(store, &options);
    fs::write(mount.at("f"), b"secret").unwrap();
    let path = mount.path.clone();
    take();
    rig::wait_state(&mount, "locked");
    // The operator asks for it; so does one who locks by hand first, and one who rehearses.
    store.world.fails([OsStr::new("unlock"), path.as_os_str()]);
    store.world.ok([OsStr::new("lock"), path.as_os_str()]);
    store.world.fails([OsStr::new("unlock"), path.as_os_str()]);
    let _ = store.world.run([OsStr::new("drill"), path.as_os_str()]);
    assert_eq!(rig::state(&mount), "locked");
    assert!(fs::read(mount.at("f")).is_err());

    // The daemon is started anew, by a supervisor and by hand.
    mount.signal(rustix::process::Signal::TERM);
    mount.ended();
    drop(mount);
    let refused = |how: &str| {
        let Err(said) = store.try_mount(&["--poll-interval", rig::POLL, "--lease", "1h"], &path) else {
            panic!("mounted under a denied key, {how}")
        };
        assert!(said.contains(code), "{how}: {code} is not in the message: {said}");
        assert_eq!(mounted(&path), None, "{how}");
        assert!(names(&path).is_empty(), "{how}");
    };
    refused("restarted");
    refused("restarted again");
    let elsewhere = store.world.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let said = store.world.fails([
        OsStr::new("mount"),
        OsStr::new("--background"),
        store.path.as_os_str(),
        elsewhere.as_os_str(),
    ]);
    assert!(said.contains(code), "{said}");
    assert!(names(&elsewhere).is_empty());

    // Killed while it was locked: what it remembered is gone, and the answer is the same.
    give();
    let mount = rig::mount(store, &options);
    assert_eq!(fs::read(mount.at("f")).unwrap(), b"secret");
    take();
    rig::wait_state(&mount, "locked");
    mount.kill_and_leave();
    refused("killed");

    give();
    let mount = rig::mount(store, &options);
    assert_eq!(fs::read(mount.at("f")).unwrap(), b"secret");
    mount.umount();
}

#[test]
fn a_denied_key_of_azure_gets_no_second_chance() {
    let azure = Azure::new();
    let set = |deleted| azure.fake.world().delete("hyok", deleted);
    no_second_chance(&azure.store, "not found", &|| set(true), &|| set(false));
}
