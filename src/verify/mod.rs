//! Authenticates a whole store that is not mounted, and mends what can be mended.
//!
//! [`walk`] reads directories, from the root, on all cores: records, names, links, attributes. [`content`] checks one
//! file: header, place, key, every page. [`record`] checks the volume record and its copy. [`repair`] acts on what they
//! found, when everything has been looked at and nothing else runs; [`rebuild`] finds the id of a directory whose record
//! is lost.
//!
//! Nothing is ever deleted that holds anything: it goes to `.hyokfs.lost` in the store's root, with a line in
//! `moved.jsonl` that says where it stood.

mod content;
mod queue;
mod rebuild;
mod record;
mod repair;
mod report;
mod walk;

use std::sync::Arc;
use std::time::Instant;

use crate::format::page::BadHeaderLen;
use crate::format::volume::Volume;
use crate::keyring::{KeyError, Keyring};
use crate::store::Store;

pub use report::{Action, Finding, Kind, Lost, Report, shown};

/// Where `--repair` puts what authenticates nowhere, in the store's root.
pub const LOST: &str = ".hyokfs.lost";

/// Why a store could not be verified to the end. What was found until then is not told, since it would look complete.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The customer's key is not to be had.
    #[error("verifying stopped, nothing was changed: {0}")]
    Key(#[from] KeyError),
    /// The volume record names a header length that there is not.
    #[error(transparent)]
    Header(#[from] BadHeaderLen),
    /// The system gave no randomness, memory or thread.
    #[error("verifying stopped, nothing was changed: {0}; free some memory, or raise `ulimit -u` and `ulimit -n`")]
    System(String),
}

/// How to verify.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Plaintext names go into the report.
    pub show_names: bool,
    /// Mend what can be mended.
    pub repair: bool,
    /// With `repair`: also set aside files of which only a part can be read.
    pub set_aside_damaged: bool,
    /// With `repair`: also write lost records of directories below the root again, from what stands in them.
    pub rebuild_directories: bool,
    /// The key service is remote: many keys are fetched at the same time.
    pub remote: bool,
}

/// Hears how far it is. Called from many threads.
pub trait Progress: Sync {
    /// So many bytes more are to be read.
    fn found(&self, bytes: u64);
    /// So many of them were read.
    fn done(&self, bytes: u64);
}

/// No progress is shown.
impl Progress for () {
    fn found(&self, _bytes: u64) {}
    fn done(&self, _bytes: u64) {}
}

/// Verifies the volume in `store`. The caller holds the store's lock.
///
/// # Errors
/// See [`VerifyError`]. Damage is no error, but in the report.
pub fn verify(
    store: &Store,
    volume: &Volume,
    keyring: &Arc<Keyring>,
    options: Options,
    progress: &dyn Progress,
) -> Result<Report, VerifyError> {
    let start = Instant::now();
    let records = record::check(store, volume);
    let (mut report, mut findings) = walk::run(store, volume, keyring, options, progress)?;
    findings.extend(records.findings);
    findings.sort_by(|a, b| (&a.path, a.kind).cmp(&(&b.path, b.kind)));
    report.duration = start.elapsed();
    report.megabytes_per_second = report.bytes as f64 / 1e6 / report.duration.as_secs_f64().max(1e-6);
    report.volume = volume.record.volume.to_string();
    if options.repair {
        report.actions = repair::run(store, volume, records.good.as_deref(), &mut findings, options);
    }
    report.set_aside = repair::count_set_aside(store);
    report.remaining = findings.iter().filter(|finding| !finding.mended).count() as u64;
    report.clean = report.remaining == 0;
    report.findings = findings;
    Ok(report)
}
