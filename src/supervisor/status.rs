//! What `hyokfs status` shows: a snapshot that the supervisor keeps up to date.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One mount as its daemon sees it. Times are seconds; ages are counted from the moment of the answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// `unlocked`, `locking`, `locked` or `unlocking`.
    pub state: String,
    /// Why it is locked, where it is.
    pub cause: Option<String>,
    /// Seconds since the state was entered.
    pub state_age: f64,
    /// The ciphertext directory.
    pub store: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The volume's id.
    pub volume: String,
    /// The volume's fingerprint: give it to `mount --fingerprint` to be sure of the record.
    pub fingerprint: String,
    /// The customer's key.
    pub key: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// The daemon's version.
    pub version: String,
    /// What a lock does with the mount: `unmount` or `hold`.
    #[serde(default)]
    pub on_revoke: String,
    /// Seconds between two probes.
    pub poll_interval: f64,
    /// The lease, in seconds; 0 locks at the first unreachable answer.
    pub lease: f64,
    /// Seconds until the lease ends; `None` while locked.
    pub lease_left: Option<f64>,
    /// The last verdict about the key.
    pub last_verdict: Option<LastVerdict>,
    /// Unwrapped file keys in memory.
    pub keys_cached: usize,
    /// The report of the last lock.
    pub last_lock: Option<LockReport>,
    /// What the operator should know, each with what to do.
    pub warnings: Vec<String>,
}

/// The newest answer of the key service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastVerdict {
    /// `live`, `denied`, `unreachable` or `misconfigured`.
    pub verdict: String,
    /// The service's code.
    pub code: Option<String>,
    /// What it means and what to do.
    pub message: Option<String>,
    /// The service's request id.
    pub request_id: Option<String>,
    /// Seconds ago.
    pub age: f64,
}

/// What one lock did and when, in milliseconds since it began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockReport {
    /// From then on reads and opens were refused.
    pub gated_ms: u64,
    /// The kernel's dirty pages and the files' tails were in the store.
    pub flushed_ms: u64,
    /// The kernel's caches were empty.
    pub purged_ms: u64,
    /// Every key was wiped.
    pub wiped_ms: u64,
    /// The connection had ended and the mount was gone; or, if it is held, nothing was left in the session's threads.
    pub unmounted_ms: u64,
    /// Keys wiped.
    pub keys: usize,
    /// Files and directories that the kernel knew.
    pub inodes: usize,
    /// Names that the kernel knew.
    pub dentries: usize,
    /// Inodes that may have had dirty pages.
    pub dirty: usize,
    /// Bytes written back between gate and flush.
    pub bytes_flushed: u64,
    /// Bytes of the kernel's cache that were refused, since their keys were gone: no completed `fsync` covers them.
    #[serde(default)]
    pub bytes_given_up: u64,
    /// Whether everything was written back within the deadline.
    pub flush_complete: bool,
    /// Whether the mount was left in its place.
    #[serde(default)]
    pub held: bool,
    /// Threads of a held mount that have wiped what requests had left on them.
    #[serde(default)]
    pub threads_cleaned: usize,
    /// Whether the connection is known to have ended.
    pub ended: bool,
    /// Whether the placeholder stands on the mount point.
    pub placeholder: bool,
    /// What went wrong, in words.
    pub problems: Vec<String>,
}
