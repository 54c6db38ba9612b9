//! The start of a daemon: takes the store, mounts the volume, starts the poller and the control socket, and hands over to
//! the main loop.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use super::control::{Control, ControlError, Reply, Request};
use super::daemon::{Daemon, Shown};
use super::disk;
use super::events::{Happened, now};
use super::lock::OnRevoke;
use super::mounter::Mounter;
use super::observe::Watch;
use super::state::Machine;
use super::volume::{self, VolumeError};
use crate::audit::{self, AuditError};
use crate::fuse::MountOptions;
use crate::fuse::mount::{self, Top};
use crate::liveness::{self, BadPace, BootClock, Pace, PollHandle, ProviderProbe};
use crate::provider::observed::{Observed, Reason};
use crate::provider::{KeySettings, connect};
use crate::store::{Owner, Store, StoreError, StoreLock};

/// How long the audit log may take to reach the disk at a state change, so that a slow disk never delays a lock.
pub(super) const AUDIT_WAIT: Duration = Duration::from_secs(2);
/// How long a mount waits for another daemon to let go of the store.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The volume could not be unlocked or mounted.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The poll interval or the lease cannot be kept.
    #[error(transparent)]
    Pace(#[from] BadPace),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Something else is mounted there.
    #[error("{}: {why}", mountpoint.display())]
    Occupied {
        /// The mount point.
        mountpoint: PathBuf,
        /// What, and what to do.
        why: String,
    },
    /// Threads.
    #[error("starting threads: {0}: raise the limit of processes (ulimit -u, TasksMax=)")]
    Threads(#[source] io::Error),
}

/// Everything that a mount was asked to be.
pub struct RunOptions {
    /// The ciphertext.
    pub store: PathBuf,
    /// Where to mount it (absolute).
    pub mountpoint: PathBuf,
    /// How the kernel mounts it.
    pub kernel: MountOptions,
    /// How to reach the key.
    pub settings: KeySettings,
    /// Time between two probes.
    pub poll_interval: Duration,
    /// How long a success holds.
    pub lease: Duration,
    /// The longest a lock waits for unwritten data.
    pub flush_deadline: Duration,
    /// What a lock does with the mount.
    pub on_revoke: OnRevoke,
    /// The longest that opening or making a file waits for its key.
    pub key_wait: Duration,
    /// The fingerprint that the volume must have.
    pub fingerprint: Option<String>,
    /// Unwrapped keys in memory.
    pub key_cache: usize,
    /// Calls per second; left out: what suits the kind of key.
    pub max_rps: Option<u32>,
    /// Keys made ahead.
    pub key_pool: usize,
    /// Keys kept ready from the start.
    pub key_reserve: usize,
    /// The audit log.
    pub audit: Option<audit::Config>,
    /// Where fingerprints are remembered.
    pub state_dir: PathBuf,
}

/// Mounts the volume and serves it until it is unmounted or the process is told to end. `on_ready` runs once the volume
/// is mounted.
pub fn run(mut options: RunOptions, on_ready: impl FnOnce()) -> Result<(), RunError> {
    let store = Arc::new(Store::open(&options.store)?);
    let _lock = lock_store(&store, &options)?;
    clear_mountpoint(&options, &store)?;
    let warnings = disk::prepare(store.path());
    let record = volume::read_record(&store)?;
    let pace = pace(&options, record.max_poll_interval(), record.max_lease())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("keys")
        .enable_all()
        .build()
        .map_err(RunError::Threads)?;
    let log = options.audit.take().map(audit::Log::open).transpose()?.map(Arc::new);
    let (events, queue) = mpsc::channel();
    let watch = Arc::new(Watch { volume: record.volume, audit: log.clone(), events: events.clone() });
    let settings = volume::settings_for(&record, &options.settings, &options.state_dir);

    let mounter =
        Arc::new(Mounter::new(store, settings, &options, runtime.handle().clone(), watch.clone(), events.clone()));
    // Before the mount is there: whoever sees it may ask at once.
    let control = Control::listen(&options.mountpoint)?;
    let (mounted, identity, asked) = mounter.mount(record)?;
    let probe = {
        let uri = identity.uri.clone();
        let provider = runtime.block_on(connect(&uri, &mounter.settings())).map_err(VolumeError::from)?;
        // Observed, so that the audit log hears of every probe.
        let provider = Arc::new(Observed::new(provider, watch.clone(), Reason::Probe));
        let (tenant, canary) = (identity.tenant.clone(), identity.canary.clone());
        ProviderProbe { provider, volume: watch.volume, tenant, canary }
    };
    let poll = start_polling(&runtime, Arc::new(probe), pace, &events);
    forward_signals(&runtime, &events);
    serve_commands(&control, &events)?;

    let mut daemon = Daemon {
        machine: Machine::unlocked(pace, asked),
        current: Some(mounted.number),
        mounted: Some(mounted),
        held: None,
        since: now(),
        options,
        mounter,
        pace,
        poll,
        events,
        log,
        warnings,
        identity: Shown {
            volume: identity.volume.to_string(),
            fingerprint: identity.fingerprint,
            key: identity.uri.to_string(),
        },
        volume: identity.volume.0,
        last: None,
        denial: None,
        last_lock: None,
        waiting: Vec::new(),
    };
    daemon.record("start", "unlocked", "mounted");
    daemon.tell_systemd(&[sd_notify::NotifyState::Ready]);
    tracing::info!(mountpoint = %daemon.options.mountpoint.display(), key = %daemon.identity.key, "mounted");
    on_ready();
    daemon.serve(&queue);
    drop(control);
    if let Some(log) = daemon.log.take() {
        log.close(AUDIT_WAIT);
    }
    // Calls to a hung key service must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(())
}

/// Takes the store's lock; a daemon that is just ending gets a moment to let go of it.
fn lock_store(store: &Store, options: &RunOptions) -> Result<StoreLock, StoreError> {
    let owner = Owner::here(&options.mountpoint);
    let until = now() + LOCK_WAIT;
    loop {
        match store.lock(&owner) {
            Err(StoreError::Busy { .. }) if now() < until => std::thread::sleep(Duration::from_millis(50)),
            result => return result,
        }
    }
}

/// A volume that was killed leaves a dead mount, or a placeholder; both are taken away. Anything live is refused.
fn clear_mountpoint(options: &RunOptions, store: &Store) -> Result<(), RunError> {
    let mountpoint = &options.mountpoint;
    let refuse = |why: String| RunError::Occupied { mountpoint: mountpoint.clone(), why };
    let root = rustix::process::geteuid().is_root();
    loop {
        match mount::top_of(mountpoint).map_err(|error| refuse(error.to_string()))? {
            Top::Bare | Top::Other(_) => return Ok(()),
            top => {
                if super::control::call(mountpoint, Request::Status, Duration::from_secs(2)).is_ok() {
                    return Err(refuse("a hyokfs daemon serves it already; `hyokfs unmount` it first".into()));
                }
                if let Top::Hyokfs(source) = top
                    && std::fs::canonicalize(&source).ok().as_deref() != Some(store.path())
                {
                    return Err(refuse(format!(
                        "a volume of {} is mounted there; `hyokfs unmount` it first",
                        source.display()
                    )));
                }
                tracing::info!(mountpoint = %mountpoint.display(), "taking away what a killed daemon had left");
                mount::abandon(mountpoint, root).map_err(|error| refuse(error.to_string()))?;
            }
        }
    }
}

fn pace(options: &RunOptions, longest_interval: Duration, longest_lease: Duration) -> Result<Pace, BadPace> {
    if options.poll_interval > longest_interval || options.lease > longest_lease {
        tracing::warn!(
            ?longest_interval,
            ?longest_lease,
            "the volume allows no longer poll interval and lease than these; they are used instead"
        );
    }
    Pace::new(options.poll_interval.min(longest_interval), options.lease.min(longest_lease))
}

fn start_polling(
    runtime: &tokio::runtime::Runtime,
    probe: Arc<dyn liveness::Probe>,
    pace: Pace,
    events: &Sender<Happened>,
) -> PollHandle {
    let _inside = runtime.enter();
    let (sender, mut answers) = tokio::sync::mpsc::channel(8);
    let events = events.clone();
    runtime.spawn(async move {
        while let Some(answer) = answers.recv().await {
            if events.send(Happened::Probed(answer)).is_err() {
                return;
            }
        }
    });
    liveness::spawn(probe, Arc::new(BootClock), pace, sender).0
}

fn forward_signals(runtime: &tokio::runtime::Runtime, events: &Sender<Happened>) {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let events = events.clone();
        runtime.spawn(async move {
            let Ok(mut signals) = signal(kind) else { return };
            while signals.recv().await.is_some() {
                let _ = events.send(Happened::Signal);
            }
        });
    }
    // A terminal that goes away must not take the daemon with it.
    runtime.spawn(async move {
        if let Ok(mut signals) = signal(SignalKind::hangup()) {
            while signals.recv().await.is_some() {}
        }
    });
}

fn serve_commands(control: &Control, events: &Sender<Happened>) -> Result<(), RunError> {
    let events = events.clone();
    control
        .serve(move |request| {
            let (sender, reply) = mpsc::channel();
            let ending = || Reply::Refused("the daemon is ending".into());
            if events.send(Happened::Command(request, sender)).is_err() {
                return ending();
            }
            reply.recv().unwrap_or_else(|_| ending())
        })
        .map_err(RunError::Threads)
}
