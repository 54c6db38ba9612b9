//! A daemon that crashes leaves no core, whatever the limits and the system's pattern say.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use crate::common::{Store, World, noise};
use crate::rig;

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// Has the kernel put cores into a folder of the test, and puts the old pattern back.
struct Cores {
    old: Option<String>,
}

impl Cores {
    fn into(dir: &Path) -> Cores {
        let old = fs::read_to_string(PATTERN).unwrap();
        match fs::write(PATTERN, format!("{}/core.%p", dir.display())) {
            Ok(()) => Cores { old: Some(old) },
            // In a container: the control below then shows whether cores appear at all.
            Err(_) => Cores { old: None },
        }
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        if let Some(old) = &self.old {
            let _ = fs::write(PATTERN, old);
        }
    }
}

fn cores(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for dir in [world.path().to_owned(), world.path().join("cores")] {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        found.extend(names.filter(|name| name.starts_with("core") && name != "cores"));
    }
    found
}

#[test]
fn an_aborted_daemon_leaves_no_core() {
    let store = Store::new();
    let dir = store.world.path().join("cores");
    fs::create_dir(&dir).unwrap();
    let _cores = Cores::into(&dir);
    // The test's processes may dump as much as they like, the daemon too as far as its parent is concerned.
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    rustix::process::setrlimit(rustix::process::Resource::Core, unlimited).unwrap();

    // The control: any other program that is aborted here leaves a core.
    let mut other = store.world.command("sleep").arg("60").spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(other.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::ABORT).unwrap();
    let status = other.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT));
    assert!(status.core_dumped(), "no program leaves a core here, so this test can't tell anything");
    for name in cores(&store.world) {
        let _ = fs::remove_file(dir.join(&name)).or_else(|_| fs::remove_file(store.world.path().join(&name)));
    }

    let mut mount = rig::mount(&store, &[]);
    fs::write(mount.at("f"), noise(1, 100_000)).unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", mount.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap().to_owned();
    mount.signal(rustix::process::Signal::ABORT);
    let status = mount.died();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "it ended with {status}");
    assert!(!status.core_dumped(), "the kernel says that it wrote a core");
    assert_eq!(cores(&store.world), Vec::<String>::new());
    let fields: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(fields[4..6], ["0", "0"], "{core}");
    drop(mount);

    // What was written is there all the same.
    let mount = rig::mount(&store, &[]);
    assert!(fs::metadata(mount.at("f")).is_ok());
    mount.umount();
}
