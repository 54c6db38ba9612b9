//! Named steps of a lock and of a restore, at which a debug build can be made to die. In a release build there is nothing.

/// The variable that names a file; the process dies by `SIGKILL` at the step whose name is in that file. Read at every
/// step, so that a test can choose the step while the daemon runs.
#[cfg(debug_assertions)]
pub const VARIABLE: &str = "HYOKFS_DEBUG_DIE_AT";

/// The step `name` has been done.
#[cfg(debug_assertions)]
pub fn reached(name: &str) {
    let wanted = std::env::var_os(VARIABLE).and_then(|path| std::fs::read_to_string(path).ok());
    if wanted.is_some_and(|wanted| wanted.trim() == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal ends this thread before it gets here; should it not, nothing may happen after the step.
        std::process::abort();
    }
}

/// The step `name` has been done.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reached(_name: &str) {}
