//! The hash-chained log of key calls and state changes: what an auditor of the customer reads.
//!
//! Every line is one JSON record that holds the hash of the line before it, so a line that is changed, taken out or
//! moved breaks the chain from there on. An optional Ed25519 key signs the chain at every state change. The format,
//! with a verifier in a few lines of Python, is in `docs/audit.md`.
//!
//! Two rules hold everywhere here:
//! - **The log never holds up a lock or a file operation.** Callers put records into a bounded queue; one thread writes
//!   them. On a full disk key-call records are counted and dropped, and a `gap` record says how many once the disk has
//!   room again; state changes are kept and tried again.
//! - **Nothing secret, and no name, is in it.** Ids, codes and counts only; the types of [`event`] leave no room for a
//!   free text.
//!
//! ```no_run
//! use hyokfs::audit::{self, Config, Log, StateChange};
//! # fn main() -> Result<(), audit::AuditError> {
//! let log = Log::open(Config::at("/var/log/hyokfs/audit.jsonl"))?;
//! let ticket = log.state(StateChange { from: "unlocked", to: "locking", cause: "denied", ..StateChange::default() });
//! ticket.wait(std::time::Duration::from_secs(1)); // on disk, if the disk answers
//! log.close(std::time::Duration::from_secs(2));
//! let report = audit::verify(&audit::files("/var/log/hyokfs/audit.jsonl".as_ref())?, None, &audit::Expect::default())?;
//! assert!(report.is_intact());
//! # Ok(())
//! # }
//! ```

pub mod event;
mod files;
mod key;
mod line;
mod log;
mod show;
pub mod time;
mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use event::{Denial, Event, KeyCall, LockRecord, StateChange, Value};
pub use files::{files, rotated_name};
pub use key::{PublicKey, SigningKey, keygen};
pub use line::Record;
pub use log::{Log, Stats, Ticket};
pub use show::{Show, Shown, Since, show};
pub use verify::{Expect, Problem, Report, verify};

/// Why the log can't be opened, read or signed.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The operating system refused something.
    #[error("audit log {}: cannot {doing}: {source}; check that the directory exists and that this user may write there", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as a verb.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process writes this log.
    #[error("audit log {}: another hyokfs process is writing it; give every mount a log of its own with --audit-log", .0.display())]
    Busy(PathBuf),
    /// The file holds something that is no audit log, or its first record is gone.
    #[error("audit log {}: {what}; move the file away (keep it as evidence) and start again, a new log is begun then", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A signing or public key can't be read.
    #[error("audit key {}: {what}", path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: &'static str,
    },
    /// The random generator or the signature failed inside the cryptographic library.
    #[error("the cryptographic library failed while {0}; restart, and if it goes on, check the machine")]
    Crypto(&'static str),
}

impl AuditError {
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> AuditError {
        let path = path.to_owned();
        move |source| AuditError::Io { path, doing, source }
    }
}

/// How a log is kept.
#[derive(Debug)]
pub struct Config {
    /// The file that is written to. Full ones lie beside it with a number in their names ([`rotated_name`]).
    pub path: PathBuf,
    /// Bytes after which a new file is begun. Default 64 MiB.
    pub max_bytes: u64,
    /// How many full files are kept beside the current one; 0 keeps all. Default 16.
    pub keep: u64,
    /// Key-call records that may wait for the disk; more are counted and dropped. Default 65,536.
    pub queue: usize,
    /// How long key-call records are gathered before one write. Default 20 ms.
    pub gather: Duration,
    /// Signs the chain at every state change.
    pub signer: Option<SigningKey>,
}

impl Config {
    /// The defaults, with the log at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Config {
        Config {
            path: path.into(),
            max_bytes: 64 << 20,
            keep: 16,
            queue: 65_536,
            gather: Duration::from_millis(20),
            signer: None,
        }
    }
}
