//! `hyokfs verify`.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::VerifyArgs;
use super::{CliError, plain};
use crate::format::volume::{RecordError, VolumeRecord};
use crate::keyring::{Keyring, KeyringOptions, Limits};
use crate::provider::KeySettings;
use crate::provider::observed::Unobserved;
use crate::store::{Owner, Store, StoreError, StoreLock};
use crate::supervisor::volume::{self, Unlocked, VolumeError};
use crate::supervisor::{pin, volume::settings_for};
use crate::verify::{self, Kind, Options, Progress, Report, shown};

/// Bytes read, on a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(shown: bool) -> Bar {
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = "{bar:30} {bytes} of {total_bytes} found  {bytes_per_sec}  {elapsed}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        if shown {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Bar(bar)
    }
}

impl Progress for Bar {
    fn found(&self, bytes: u64) {
        self.0.inc_length(bytes);
    }

    fn done(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

/// Authenticates a volume.
pub fn run(args: VerifyArgs) -> Result<(), CliError> {
    let store = Store::open(&args.store).map_err(VolumeError::from)?;
    let _lock = lock(&store, args.repair)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("keys")
        .enable_all()
        .build()
        .map_err(CliError::Threads)?;
    let base = args.settings.clone().over(KeySettings::default());
    let (unlocked, settings) = unlock(&store, &runtime, &base)?;
    let Unlocked { volume, provider, slot, group, .. } = unlocked;
    let id = volume.record.volume;
    let state = pin::default_dir();
    if args.fingerprint.is_some() || pin::known(&state, id) {
        let (print, generation) = (volume.keys.fingerprint(), verify::newest_generation(&store, &volume));
        pin::check(&state, id, print, generation, args.fingerprint.as_deref()).map_err(VolumeError::from)?;
    }
    // As many descriptors as the system gives: a deep tree holds one for every directory above the present one.
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, files);

    let remote = provider.is_remote();
    let wrapped = volume.record.key.first().map_or(0, |key| key.secret.len());
    let options = KeyringOptions {
        slot,
        tenant: settings.tenant.clone(),
        limits: Limits::of(provider.uri(), wrapped, args.kms_max_rps),
        pool: 0,
        deadline: settings.call_deadline(),
        ..KeyringOptions::default()
    };
    let keyring = Keyring::new(provider, runtime.handle().clone(), id, options, Arc::new(Unobserved));
    if let Some(group) = group {
        keyring.set_group(id.0, group).map_err(VolumeError::from)?;
    }
    let options = Options {
        show_names: args.show_names,
        repair: args.repair,
        set_aside_damaged: args.set_aside_damaged,
        rebuild_directories: args.rebuild_directories,
        remote,
    };
    let bar = Bar::new(std::io::stderr().is_terminal());
    let outcome = verify::verify(&store, &volume, &keyring, options, &bar);
    bar.0.finish_and_clear();
    keyring.lock();
    runtime.shutdown_timeout(Duration::from_millis(200));
    let report = outcome.map_err(|error| CliError::Refused(error.to_string()))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    match report.clean {
        true => Ok(()),
        false => Err(CliError::Refused(advice(&report, &args))),
    }
}

/// Keeps others off the store while it is read. A snapshot on a read-only filesystem is verified without a lock.
fn lock(store: &Store, repair: bool) -> Result<Option<StoreLock>, VolumeError> {
    match store.lock(&Owner::here(Path::new(""))) {
        Err(StoreError::Io { source, .. }) if !repair && source.raw_os_error() == Some(libc::EROFS) => {
            eprintln!(
                "hyokfs: the store is on a read-only filesystem, so it is not locked: it must not change meanwhile"
            );
            Ok(None)
        }
        other => Ok(Some(other?)),
    }
}

/// Unlocks the volume by its record, or by the copy where the record does not do.
fn unlock(
    store: &Store,
    runtime: &tokio::runtime::Runtime,
    base: &KeySettings,
) -> Result<(Unlocked, KeySettings), VolumeError> {
    let parse = |bytes: Vec<u8>| VolumeRecord::parse(&String::from_utf8_lossy(&bytes)).map_err(VolumeError::from);
    let open = |record: VolumeRecord| {
        let settings = settings_for(&record, base, &pin::default_dir());
        let unlocked = runtime.block_on(volume::unlock(record, &settings, Arc::new(Unobserved)))?;
        Ok((unlocked, settings))
    };
    let main = store.read_record().map_err(VolumeError::from).and_then(parse).and_then(open);
    let error = match main {
        Err(error) if !matches!(error, VolumeError::Record(RecordError::Version(_))) => error,
        other => return other,
    };
    let Ok(Some(copy)) = store.read_backup() else { return Err(error) };
    // What is wrong with the record itself says more than what is wrong with its copy.
    parse(copy).and_then(open).map_err(|_| error)
}

fn print(report: &Report) {
    for finding in &report.findings {
        let id = finding.id.as_ref().map(|id| format!(" ({id})")).unwrap_or_default();
        println!("{}: {}{id}", finding.kind.word(), plain(&shown(&finding.path)));
        if let Some(name) = &finding.name {
            println!("    name         {}", plain(name));
        }
        println!("    what         {}", plain(&finding.what));
        for lost in &finding.lost {
            println!(
                "    lost         pages {}..{}, bytes {}..{}",
                lost.first_page, lost.last_page, lost.from, lost.to
            );
        }
        println!("    recoverable  {}", finding.recoverable);
    }
    for action in &report.actions {
        match &action.error {
            None => println!("repair: {}: {}", plain(&shown(&action.path)), plain(&action.action)),
            Some(error) => {
                println!("repair FAILED: {}: {}: {error}", plain(&shown(&action.path)), plain(&action.action))
            }
        }
    }
    println!(
        "{} files, {} directories, {} links, {} special files, {} attributes, {} bytes in {:.1} s ({:.0} MB/s)",
        report.files,
        report.directories,
        report.links,
        report.special,
        report.attributes,
        report.bytes,
        report.duration.as_secs_f64(),
        report.megabytes_per_second
    );
    if report.set_aside > 0 {
        println!("{} items lie in {}, which is no part of the volume", report.set_aside, verify::LOST);
    }
    match (report.clean, report.findings.is_empty()) {
        (true, true) => println!("clean"),
        (true, false) => println!("clean now: everything that was found has been mended"),
        (false, _) => {}
    }
}

fn advice(report: &Report, args: &VerifyArgs) -> String {
    let left = report.findings.iter().filter(|finding| !finding.mended);
    let (leftovers, damaged) = left.fold((0, 0), |(leftovers, damaged), finding| match finding.kind {
        Kind::Leftover => (leftovers + 1, damaged),
        _ => (leftovers, damaged + 1),
    });
    let next = match (args.repair, args.set_aside_damaged) {
        (false, _) => "restore what is damaged from a backup of the store, or run `hyokfs verify --repair`",
        (true, false) => {
            "restore the rest from a backup of the store, or move partly readable files away with --set-aside-damaged"
        }
        (true, true) => "restore the rest from a backup of the store",
    };
    format!("the volume is not clean: {damaged} damaged, {leftovers} left over; {next}")
}
