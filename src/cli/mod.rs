//! The command line: parses arguments, calls the layer that does the work, prints what it says.

mod args;
mod audit;
mod check;
pub mod config;
mod control;
mod demo;
mod init;
mod key;
mod key_args;
mod log;
mod mount;
mod policy;
mod verify;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::supervisor::control::{ControlError, Request};
use args::{Cli, Command};

/// Why a command failed. Every message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A path that was given cannot be used.
    #[error("{}: {source}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The options do not fit together.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// The daemon could not be reached.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The daemon, or a check, said no.
    #[error("{0}")]
    Refused(String),
    /// The key service said no.
    #[error(transparent)]
    Provider(#[from] crate::provider::ProviderError),
    /// The volume could not be opened or made.
    #[error(transparent)]
    Volume(#[from] crate::supervisor::volume::VolumeError),
    /// The volume could not be mounted.
    #[error(transparent)]
    Mount(#[from] crate::supervisor::RunError),
    /// The embedded keystore could not do it.
    #[error(transparent)]
    Local(#[from] crate::provider::local::KeystoreError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] crate::audit::AuditError),
    /// A policy.
    #[error(transparent)]
    Policy(#[from] crate::provider::policy::PolicyError),
    /// Printing JSON.
    #[error("printing the result: {0}")]
    Json(#[from] serde_json::Error),
    /// Starting the runtime of the key side.
    #[error("starting threads: {0}: raise the limit of processes (ulimit -u)")]
    Threads(#[source] std::io::Error),
}

/// Runs the command of this process; gives its exit code: 0 done, 1 failed, 2 wrong usage.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(as_mount(std::env::args_os().collect())) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyokfs: {}", said(&error));
            ExitCode::FAILURE
        }
    }
}

/// Text for a terminal: nothing in a name may steer it.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// An error for a terminal. It may repeat what stands in a store, or what a service answered.
fn said(error: &CliError) -> String {
    error.to_string().lines().map(plain).collect::<Vec<_>>().join("\n")
}

fn run(cli: Cli) -> Result<(), CliError> {
    if let Command::InternalGuard { store, mountpoint: _, minor } = &cli.command {
        // Its standard output and error are no place for words.
        crate::fuse::guard::watch(store, *minor);
        return Ok(());
    }
    let (format, filter) = (cli.log_format, cli.log.clone());
    if let Command::Mount(args) = cli.command {
        return mount::run(*args, format, filter.as_deref());
    }
    log::init(format, filter.as_deref(), None).map_err(CliError::Refused)?;
    match cli.command {
        Command::Init(args) => init::run(args),
        Command::Mount(_) | Command::InternalGuard { .. } => Ok(()),
        Command::Unmount(arg) => control::unmount(&arg.mountpoint),
        Command::Lock(arg) => control::simple(&arg.mountpoint, Request::Lock),
        Command::Unlock(arg) => control::simple(&arg.mountpoint, Request::Unlock),
        Command::Status(args) => control::status(&args),
        Command::Drill(args) => control::drill(&args),
        Command::Key(command) => key::run(command),
        Command::Check(args) => check::run(args),
        Command::Policy(args) => policy::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Audit(command) => audit::run(command),
        Command::Demo(args) => demo::run(&args),
        Command::InternalSyncfs { mountpoint } => mount::syncfs(&mountpoint),
        Command::InternalStatfs { mountpoint, threads } => mount::statfs(&mountpoint, threads),
    }
}

/// A runtime for the one-shot commands that speak to a key service.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Threads)
}

/// mount(8) calls the helper of a filesystem type as `hyokfs STORE MOUNTPOINT -o OPTS` (through mount.fuse3) or as
/// `mount.hyokfs STORE MOUNTPOINT [-sfnv] [-o OPTS]`: turns both into the `mount` command, in the background.
fn as_mount(mut words: Vec<OsString>) -> Vec<OsString> {
    let called = words.first().map(PathBuf::from);
    let name = called.as_deref().and_then(std::path::Path::file_name).unwrap_or(OsStr::new("hyokfs"));
    let helper = name == "mount.hyokfs" || name == "mount.fuse.hyokfs";
    let first_is_path = words.get(1).is_some_and(|word| word.to_string_lossy().contains('/'));
    let second_is_path = words.get(2).is_some_and(|word| !word.to_string_lossy().starts_with('-'));
    if !(helper || first_is_path && second_is_path) {
        return words;
    }
    words.retain(|word| !matches!(word.to_str(), Some("-s" | "-f" | "-n" | "-v")));
    words.splice(1..1, [OsString::from("mount"), OsString::from("--background")]);
    words
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::{CommandFactory, Parser};

    use super::args::{Cli, Command};
    use super::{CliError, as_mount, said};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_in_an_error_steers_the_terminal() {
        let owner = "process 7 on host \x1b]0;owned\x07\u{9b}2J\r, since 1\nunmount it";
        let said = said(&CliError::Refused(owner.to_owned()));
        assert_eq!(said, "process 7 on host \\u{1b}]0;owned\\u{7}\\u{9b}2J\\r, since 1\nunmount it");
    }

    #[test]
    fn the_forms_of_mount_8_mount_in_the_background() {
        for words in [
            vec!["hyokfs", "/store", "/mnt", "-o", "rw,allow_other"],
            vec!["/sbin/mount.hyokfs", "/store", "/mnt", "-n", "-o", "rw"],
            vec!["mount.fuse.hyokfs", "store", "mnt"],
        ] {
            let cli = Cli::try_parse_from(as_mount(words.iter().map(OsString::from).collect())).unwrap();
            let Command::Mount(args) = cli.command else { panic!("{words:?} is no mount") };
            assert!(args.background, "{words:?}");
        }
        let plain = ["hyokfs", "status"].map(OsString::from).to_vec();
        assert_eq!(as_mount(plain.clone()), plain);
    }
}
