//! A lock goes first: all threads of the daemon get the processor before others while it runs.

use rustix::process::{Pid, getpriority_process, setpriority_process};

/// The niceness of a lock.
const FIRST: i32 = -20;

/// While it lives, every thread that the process had at its beginning, and every one that these start, runs with the
/// highest ordinary priority. All of them, not the locking one alone: on a busy machine that one else waits for a mutex
/// whose owner is not given the processor (a purge brings thousands of FORGETs, and they meet the wipe at the table of
/// inodes). Only root may ask for it (`CAP_SYS_NICE`); without the right nothing changes.
pub(super) struct Urgent {
    before: Vec<(Pid, i32)>,
}

impl Urgent {
    /// Raises all threads.
    pub fn begin() -> Urgent {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let ids = tasks.filter_map(|task| Pid::from_raw(task.file_name().to_str()?.parse().ok()?));
        let raise = |thread: Pid| {
            // Of a thread that has ended meanwhile nothing is to be had, and of one that may not be raised nothing to be
            // taken back.
            let before = getpriority_process(Some(thread)).ok()?;
            setpriority_process(Some(thread), FIRST).ok()?;
            Some((thread, before))
        };
        Urgent { before: ids.filter_map(raise).collect() }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        for (thread, nice) in &self.before {
            let _ = setpriority_process(Some(*thread), *nice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_are_raised_and_put_back() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (say, id) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            say.send(rustix::thread::gettid()).unwrap();
            let _ = stopped.recv();
        });
        let ids = [rustix::thread::gettid(), id.recv().unwrap()];
        let nice = |id: Pid| getpriority_process(Some(id)).unwrap();
        let before = ids.map(nice);
        let urgent = Urgent::begin();
        if rustix::process::geteuid().is_root() {
            assert_eq!(ids.map(nice), [FIRST; 2]);
        }
        drop(urgent);
        assert_eq!(ids.map(nice), before);
        drop(stop);
        other.join().unwrap();
    }
}
