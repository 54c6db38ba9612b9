//! What the process gives up before it meets a key: core dumps and being read by others of the same user.

#![allow(unsafe_code)]

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Hardens the process; call it first in `main`, before any thread and any key.
///
/// - `PR_SET_DUMPABLE` 0: no core dump, and `/proc/PID/mem` and `ptrace` only for root;
/// - `RLIMIT_CORE` 0, for it and its children;
/// - `RLIMIT_MEMLOCK` raised to its hard limit: keys live in locked memory;
/// - `RLIMIT_NOFILE` raised to its hard limit: every open file of the mount holds a descriptor in the store.
///
/// # Errors
/// The first call that the kernel refused; the process should then not go on to hold keys.
pub fn harden() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    for resource in [Resource::Memlock, Resource::Nofile] {
        let limit = getrlimit(resource);
        if limit.current != limit.maximum {
            setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
        }
    }
    Ok(())
}

/// Has the process live on when it is asked to end: for one that must outlive the daemon for a moment.
pub fn ignore_terminate() {
    // SAFETY: to ignore a signal runs no code of ours, and no other thread is there yet that could set the same one.
    unsafe {
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::process::dumpable_behavior;

    /// Runs in a child of its own: the limits are the process's and do not come back.
    #[test]
    fn no_core_no_dump_and_all_descriptors() {
        const CHILD: &str = "HYOKFS_TEST_HARDEN_CHILD";
        if std::env::var_os(CHILD).is_none() {
            assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::Dumpable, "the control");
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "sys::harden::tests::no_core_no_dump_and_all_descriptors"])
                .env(CHILD, "1")
                .output()
                .unwrap();
            assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
            return;
        }
        let hard = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: hard }).unwrap();
        harden().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
    }
}
