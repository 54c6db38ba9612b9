//! `status`, `lock`, `unlock`, `unmount`, `drill`: commands that speak to a running daemon.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::PidfdFlags;

use super::CliError;
use super::args::{JsonMountpointArgs, StatusArgs};
use crate::fuse::mount::{self, Top};
use crate::supervisor::control::{self, ControlError, Reply, Request};
use crate::supervisor::status::{LockReport, Status};

/// Long enough for a lock that waits for its flush deadline.
const LONG: Duration = Duration::from_secs(120);
const SHORT: Duration = Duration::from_secs(5);

/// The absolute path of a mount point without touching it: a dead mount answers no `stat`.
pub fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    let at = |source| CliError::Path { path: path.to_owned(), source };
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(std::fs::canonicalize(parent).map_err(at)?.join(name))
        }
        _ => std::fs::canonicalize(path).map_err(at),
    }
}

/// `lock` and `unlock`.
pub fn simple(mountpoint: &Path, request: Request) -> Result<(), CliError> {
    match control::call(&absolute(mountpoint)?, request, LONG)? {
        Reply::Done(message) => {
            println!("{message}");
            Ok(())
        }
        Reply::Refused(why) => Err(CliError::Refused(why)),
        Reply::Status(_) => Err(CliError::Refused("the daemon gave an answer to another question".into())),
    }
}

/// `unmount`: through the daemon; what a dead daemon left behind is taken away here.
pub fn unmount(mountpoint: &Path) -> Result<(), CliError> {
    let mountpoint = absolute(mountpoint)?;
    let daemon = match control::call(&mountpoint, Request::Status, SHORT) {
        Ok(Reply::Status(status)) => process(status.pid),
        _ => None,
    };
    match control::call(&mountpoint, Request::Unmount, LONG) {
        Ok(Reply::Done(_)) => {
            // The store is free for the next command when the daemon has gone.
            if let Some(daemon) = &daemon {
                wait_for_end(daemon);
            }
            wait_gone(&mountpoint)
        }
        Ok(Reply::Refused(why)) => Err(CliError::Refused(why)),
        Ok(Reply::Status(_)) => Err(CliError::Refused("the daemon gave an answer to another question".into())),
        Err(ControlError::Nobody(_)) => sweep(&mountpoint),
        // The unmount ends the daemon, which may be faster than its answer.
        Err(ControlError::Io { source, .. }) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            match mount::top_of(&mountpoint) {
                Ok(Top::Hyokfs(_) | Top::Placeholder) => sweep(&mountpoint),
                _ => Ok(()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

fn process(pid: u32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

fn wait_for_end(daemon: &OwnedFd) {
    let limit = Timespec { tv_sec: i64::try_from(LONG.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let _ = rustix::event::poll(&mut [PollFd::new(daemon, PollFlags::IN)], Some(&limit));
}

fn wait_gone(mountpoint: &Path) -> Result<(), CliError> {
    let until = Instant::now() + LONG;
    while Instant::now() < until {
        if !matches!(mount::top_of(mountpoint), Ok(Top::Hyokfs(_) | Top::Placeholder)) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(CliError::Refused(format!("{} is still mounted after {} s", mountpoint.display(), LONG.as_secs())))
}

/// Takes away a dead mount and a left placeholder.
fn sweep(mountpoint: &Path) -> Result<(), CliError> {
    let at = |source| CliError::Path { path: mountpoint.to_owned(), source };
    let root = rustix::process::geteuid().is_root();
    let mut found = false;
    while let Top::Hyokfs(_) | Top::Placeholder = mount::top_of(mountpoint).map_err(at)? {
        mount::abandon(mountpoint, root).map_err(at)?;
        found = true;
    }
    if found {
        println!("{}: the daemon was gone; what it had left is unmounted", mountpoint.display());
        return Ok(());
    }
    Err(ControlError::Nobody(mountpoint.to_owned()).into())
}

/// `status`.
pub fn status(args: &StatusArgs) -> Result<(), CliError> {
    let all = match &args.mountpoint {
        Some(mountpoint) => match control::call(&absolute(mountpoint)?, Request::Status, SHORT)? {
            Reply::Status(status) => vec![*status],
            Reply::Done(_) => Vec::new(),
            Reply::Refused(why) => return Err(CliError::Refused(why)),
        },
        None => control::all(SHORT),
    };
    if args.json {
        let text = match (&args.mountpoint, all.first()) {
            (Some(_), Some(status)) => serde_json::to_string_pretty(status)?,
            _ => serde_json::to_string_pretty(&all)?,
        };
        println!("{text}");
    } else if all.is_empty() {
        println!("no volume of this user is mounted");
    } else {
        all.iter().for_each(show);
    }
    Ok(())
}

fn show(status: &Status) {
    let cause = status.cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
    println!("{}: {}{cause}, for {:.0} s", status.mountpoint.display(), status.state, status.state_age);
    println!("  store        {}", status.store.display());
    println!("  volume       {}  fingerprint {}", status.volume, status.fingerprint);
    println!("  key          {}", status.key);
    let held = if status.on_revoke == "hold" && status.state == "locked" {
        "; held now: everything answers ENOKEY"
    } else {
        ""
    };
    println!("  on revoke    {}{held}", status.on_revoke);
    if let Some(verdict) = &status.last_verdict {
        let code = verdict.code.as_ref().map(|code| format!(" {code}")).unwrap_or_default();
        println!("  last verdict {}{code}, {:.1} s ago", verdict.verdict, verdict.age);
        if let Some(message) = &verdict.message {
            println!("               {message}");
        }
    }
    let left = status.lease_left.map_or_else(|| "-".to_owned(), |left| format!("{left:.0} s left"));
    println!("  lease        {:.0} s, {left}; probed every {:.0} s", status.lease, status.poll_interval);
    println!("  keys cached  {}", status.keys_cached);
    if let Some(lock) = &status.last_lock {
        println!("  last lock    {}", steps(lock));
    }
    for warning in &status.warnings {
        println!("  warning      {warning}");
    }
}

/// The steps of a lock in one line.
pub fn steps(lock: &LockReport) -> String {
    format!(
        "gated {} ms, flushed {} ms, purged {} ms, wiped {} ms ({} keys), {} {} ms",
        lock.gated_ms,
        lock.flushed_ms,
        lock.purged_ms,
        lock.wiped_ms,
        lock.keys,
        if lock.held { "held" } else { "unmounted" },
        lock.unmounted_ms
    )
}

/// `drill`: a simulated denial, the lock it brings, the way back; each step against the promise.
pub fn drill(args: &JsonMountpointArgs) -> Result<(), CliError> {
    let mountpoint = absolute(&args.mountpoint)?;
    let begun = Instant::now();
    match control::call(&mountpoint, Request::Drill, LONG)? {
        Reply::Done(_) => {}
        Reply::Refused(why) => return Err(CliError::Refused(why)),
        Reply::Status(_) => return Err(CliError::Refused("the daemon gave an answer to another question".into())),
    }
    let status = loop {
        if let Ok(Reply::Status(status)) = control::call(&mountpoint, Request::Status, SHORT)
            && status.state == "unlocked"
        {
            break status;
        }
        if begun.elapsed() > LONG {
            return Err(CliError::Refused("the volume has not come back; see `hyokfs status`".into()));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let back = begun.elapsed();
    let lock = status.last_lock.clone().unwrap_or_default();
    let promise = Duration::from_secs(2);
    let kept = Duration::from_millis(lock.unmounted_ms) <= promise;
    if args.json {
        let report = serde_json::json!({
            "lock": lock, "back-ms": back.as_millis() as u64, "lock-promise-ms": promise.as_millis() as u64, "kept": kept,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("drill on {}", mountpoint.display());
        println!("  locked       {}", steps(&lock));
        println!("  promise      locked within {} ms: {}", promise.as_millis(), if kept { "kept" } else { "BROKEN" });
        println!("  unlocked     {} ms after the drill began", back.as_millis());
        for problem in &lock.problems {
            println!("  problem      {problem}");
        }
    }
    if kept && lock.problems.is_empty() {
        return Ok(());
    }
    Err(CliError::Refused("the drill did not keep its promise; the report above says which step".into()))
}
