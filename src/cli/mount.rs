//! `hyokfs mount`: in the foreground, or as a daemon that is started anew without its terminal.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};

use super::args::{LogFormat, MountArgs};
use super::config::{self, MountConfig};
use super::{CliError, control, log};
use crate::audit;
use crate::keyring::MAX_POOL;
use crate::supervisor::{self, RunOptions, pin};
use crate::sys::harden;

/// Set for the daemon that a `--background` mount starts: it says on standard output when it is ready.
const DAEMON: &str = "HYOKFS_DAEMON";

/// Runs the command.
pub fn run(args: MountArgs, format: Option<LogFormat>, filter: Option<&str>) -> Result<(), CliError> {
    let daemon = std::env::var_os(DAEMON).is_some();
    if args.background && !daemon {
        // What can be said at once is said by this process, on its terminal.
        log::init(format, filter, None).map_err(CliError::Refused)?;
        config::mount_config(args)?;
        return start_daemon();
    }
    let config = config::mount_config(args)?;
    log::init(format, filter, log_file(&config)?).map_err(CliError::Refused)?;
    harden::harden().map_err(|error| {
        CliError::Refused(format!(
            "the process cannot be protected ({error}), so it takes no keys; see the seccomp profile"
        ))
    })?;
    let options = options(config)?;
    supervisor::run(options, move || {
        if daemon {
            say_ready();
        }
    })?;
    Ok(())
}

fn log_file(config: &MountConfig) -> Result<Option<File>, CliError> {
    let Some(path) = &config.options.log_file else { return Ok(None) };
    File::options()
        .append(true)
        .create(true)
        .open(path)
        .map(Some)
        .map_err(|source| CliError::Path { path: path.clone(), source })
}

fn options(config: MountConfig) -> Result<RunOptions, CliError> {
    let audit = match &config.options.audit_log {
        Some(path) => {
            let mut log = audit::Config::at(path);
            log.max_bytes = config.options.audit_size.unwrap_or(64) << 20;
            log.keep = config.options.audit_keep.unwrap_or(16) as u64;
            log.signer = config.options.audit_key.as_deref().map(audit::SigningKey::load).transpose()?;
            Some(log)
        }
        None => None,
    };
    Ok(RunOptions {
        mountpoint: control::absolute(&config.mountpoint)?,
        poll_interval: config.poll_interval(),
        lease: config.lease(),
        flush_deadline: config.flush_deadline(),
        on_revoke: config.on_revoke(),
        key_wait: config.key_wait(),
        fingerprint: config.options.fingerprint.clone(),
        key_cache: config.options.key_cache.unwrap_or(16_384),
        max_rps: config.options.kms_max_rps,
        key_pool: config.options.key_pool.unwrap_or(MAX_POOL),
        key_reserve: config.options.key_reserve.unwrap_or(0),
        state_dir: config.options.state_dir.clone().unwrap_or_else(pin::default_dir),
        audit,
        store: std::fs::canonicalize(&config.store)
            .map_err(|source| CliError::Path { path: config.store.clone(), source })?,
        kernel: config.kernel,
        settings: config.settings,
    })
}

/// Starts this program again without a terminal and waits until it says that the volume is mounted, or why not.
fn start_daemon() -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::Refused(format!("cannot start the daemon: {error}"));
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let errors = theirs.try_clone().map_err(failed)?;
    let mut child = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .arg0("hyokfs")
        .env(DAEMON, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::from(OwnedFd::from(errors)))
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    // Everything up to the ready mark is the daemon's word about its start.
    let mut said = Vec::new();
    let mut byte = [0];
    let mut ours = ours;
    while matches!(ours.read(&mut byte), Ok(1)) {
        if byte[0] == READY {
            eprint!("{}", String::from_utf8_lossy(&said));
            return Ok(());
        }
        said.push(byte[0]);
    }
    let _ = child.wait();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    Err(CliError::Refused(said.strip_prefix("hyokfs: ").map(str::to_owned).unwrap_or(said)))
}

const READY: u8 = 0;

fn say_ready() {
    // From now on nobody listens: what is still said there goes nowhere, and must not fail.
    if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::io::write(rustix::stdio::stdout(), &[READY]);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    let _ = rustix::process::setsid();
}

/// The helper of a lock: starts write-back of the whole mount. A process of its own, because a daemon that has its own
/// mount open cannot end.
pub fn syncfs(mountpoint: &Path) -> Result<(), CliError> {
    let at = |error: rustix::io::Errno| CliError::Path { path: mountpoint.to_owned(), source: error.into() };
    let root = rustix::fs::open(mountpoint, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    rustix::fs::syncfs(root.map_err(at)?).map_err(at)
}

/// The helper that makes the kernel send a request to every thread of a session: waits for a line on its standard input,
/// then asks for the mount's space by so many threads at once. It opens nothing that needs a request itself.
pub fn statfs(mountpoint: &Path, threads: usize) -> Result<(), CliError> {
    let at = |error: rustix::io::Errno| CliError::Path { path: mountpoint.to_owned(), source: error.into() };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(mountpoint, flags, Mode::empty()).map_err(at)?;
    let mut line = String::new();
    if !matches!(std::io::stdin().read_line(&mut line), Ok(1..)) {
        return Ok(());
    }
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let root = &root;
            // The answer does not matter. Without a thread for one, the daemon says that it was not reached.
            let _ = std::thread::Builder::new().spawn_scoped(scope, move || rustix::fs::fstatfs(root));
        }
    });
    Ok(())
}
