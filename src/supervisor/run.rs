//! The daemon's main loop: feeds the state machine and does what it says.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, SystemTime};

use super::control::{Control, ControlError, Reply, Request};
use super::disk;
use super::events::{Happened, now};
use super::lock::{self, Leave, Mounted};
use super::mounter::Mounter;
use super::observe::{Watch, verdict_word};
use super::state::{Action, Cause, Input, Machine, State};
use super::status::{LastVerdict, LockReport, Status};
use super::volume::{self, VolumeError};
use crate::audit::{self, AuditError, StateChange};
use crate::fuse::MountOptions;
use crate::fuse::mount::{self, Top};
use crate::liveness::{self, Answer, BadPace, BootClock, Pace, PollHandle, ProviderProbe};
use crate::provider::observed::{Observed, Reason};
use crate::provider::{KeySettings, connect};
use crate::store::{Owner, Store, StoreError, StoreLock};
use crate::sys::stack;

/// How long the audit log may take to reach the disk at a state change, so that a slow disk never delays a lock.
const AUDIT_WAIT: Duration = Duration::from_secs(2);
/// The longest sleep of the loop: systemd's watchdog wants a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(1);
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
    /// The longest that opening or making a file waits for its key.
    pub key_wait: Duration,
    /// The fingerprint that the volume must have.
    pub fingerprint: Option<String>,
    /// Unwrapped keys in memory.
    pub key_cache: usize,
    /// Calls per second.
    pub max_rps: u32,
    /// Keys made ahead.
    pub key_pool: usize,
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
                mount::detach(mountpoint, root).map_err(|error| refuse(error.to_string()))?;
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

struct Shown {
    volume: String,
    fingerprint: String,
    key: String,
}

/// A command that is answered when something has happened.
enum Waiting {
    Locked(Sender<Reply>),
    Unlocked(Sender<Reply>),
    Ended(Sender<Reply>),
}

struct Daemon {
    machine: Machine,
    mounted: Option<Box<Mounted>>,
    /// The mount whose end is news.
    current: Option<u64>,
    since: Duration,
    options: RunOptions,
    mounter: Arc<Mounter>,
    pace: Pace,
    poll: PollHandle,
    events: Sender<Happened>,
    log: Option<Arc<audit::Log>>,
    warnings: Vec<String>,
    identity: Shown,
    volume: [u8; 16],
    last: Option<Answer>,
    denial: Option<audit::Denial>,
    last_lock: Option<LockReport>,
    waiting: Vec<Waiting>,
}

impl Daemon {
    fn serve(&mut self, queue: &Receiver<Happened>) {
        loop {
            let limit = self.machine.next_tick().map_or(HEARTBEAT, |at| at.saturating_sub(now()).min(HEARTBEAT));
            let input = match queue.recv_timeout(limit) {
                Ok(happened) => self.take(happened),
                Err(RecvTimeoutError::Timeout) => Some(Input::Tick),
                Err(RecvTimeoutError::Disconnected) => Some(Input::Shutdown),
            };
            self.tell_systemd(&[sd_notify::NotifyState::Watchdog]);
            if let Some(input) = input
                && self.step(input)
            {
                return;
            }
        }
    }

    /// Turns what happened into an input of the machine, where it is one.
    fn take(&mut self, happened: Happened) -> Option<Input> {
        match happened {
            Happened::Probed(answer) => {
                let input =
                    Input::Probe(super::state::Reply { verdict: answer.verdict, asked: answer.asked, at: answer.at });
                self.note(answer);
                Some(input)
            }
            Happened::Used(reply) => Some(Input::Use(reply)),
            Happened::Locked(report) => {
                self.locked(*report);
                Some(Input::LockFinished)
            }
            Happened::Unlocked(Ok(mounted)) => {
                self.current = Some(mounted.number);
                self.mounted = Some(mounted);
                Some(Input::UnlockFinished)
            }
            Happened::Unlocked(Err(error)) => {
                tracing::error!("the volume could not be mounted again: {error}");
                self.answer(false, |waiting| matches!(waiting, Waiting::Unlocked(_)), &error.to_string());
                Some(Input::UnlockFailed)
            }
            Happened::SessionEnded(number) => {
                if self.current != Some(number) {
                    return None;
                }
                tracing::info!("unmounted from outside; the daemon ends");
                Some(Input::Shutdown)
            }
            Happened::Signal => Some(Input::Shutdown),
            Happened::Command(request, reply) => self.command(request, reply),
        }
    }

    fn note(&mut self, answer: Answer) {
        let changed = self.last.as_ref().map(|last| last.verdict) != Some(answer.verdict);
        if changed && let (Some(code), Some(message)) = (&answer.code, &answer.message) {
            tracing::warn!(verdict = verdict_word(answer.verdict), code, "{message}");
        }
        if answer.verdict == crate::provider::Verdict::Denied {
            self.denial.get_or_insert(audit::Denial {
                time: answer.wall,
                code: answer.code.clone().unwrap_or_default(),
                request_id: answer.request_id.clone(),
            });
            let message = answer.message.clone().unwrap_or_default();
            self.answer(false, |waiting| matches!(waiting, Waiting::Unlocked(_)), &message);
        } else if answer.verdict == crate::provider::Verdict::Live && matches!(self.machine.state(), State::Unlocked) {
            self.denial = None;
        }
        self.last = Some(answer);
    }

    fn locked(&mut self, report: LockReport) {
        for problem in &report.problems {
            tracing::warn!("{problem}");
        }
        tracing::info!(keys = report.keys, wiped_ms = report.wiped_ms, unmounted_ms = report.unmounted_ms, "locked");
        if let Some(log) = &self.log {
            let ticket = log.lock(audit::LockRecord {
                volume: self.volume,
                cause: self.cause().map_or("start", Cause::word),
                denial: self.denial.clone(),
                gate_ms: Some(report.gated_ms),
                flushed_ms: Some(report.flushed_ms),
                purged_ms: Some(report.purged_ms),
                wiped_ms: Some(report.wiped_ms),
                unmounted_ms: Some(report.unmounted_ms),
                keys_wiped: report.keys as u64,
                files: report.inodes as u64,
                dirty_inodes: report.dirty as u64,
                bytes_flushed: report.bytes_flushed,
                ..audit::LockRecord::default()
            });
            ticket.wait(AUDIT_WAIT);
        }
        let message = format!("locked in {} ms, {} keys wiped", report.unmounted_ms, report.keys);
        self.last_lock = Some(report);
        self.answer(true, |waiting| matches!(waiting, Waiting::Locked(_)), &message);
    }

    fn cause(&self) -> Option<Cause> {
        match self.machine.state() {
            State::Locking { cause } | State::Locked { cause } => Some(cause),
            State::Unlocked | State::Unlocking => None,
        }
    }

    fn command(&mut self, request: Request, reply: Sender<Reply>) -> Option<Input> {
        match request {
            Request::Status => {
                let _ = reply.send(Reply::Status(Box::new(self.status())));
                None
            }
            Request::Lock => match self.machine.state() {
                State::Locked { .. } => {
                    let _ = reply.send(Reply::Done("locked; it stays so until `hyokfs unlock`".into()));
                    Some(Input::OperatorLock)
                }
                _ => {
                    self.waiting.push(Waiting::Locked(reply));
                    Some(Input::OperatorLock)
                }
            },
            Request::Unlock => match self.machine.state() {
                State::Unlocked => {
                    let _ = reply.send(Reply::Done("it is unlocked".into()));
                    None
                }
                _ => {
                    self.waiting.push(Waiting::Unlocked(reply));
                    Some(Input::OperatorUnlock)
                }
            },
            Request::Drill => {
                self.waiting.push(Waiting::Locked(reply));
                Some(Input::Drill)
            }
            Request::Unmount => self.unmount(reply),
        }
    }

    /// Takes an idle mount away; a busy one is refused, since programs would lose their open files.
    fn unmount(&mut self, reply: Sender<Reply>) -> Option<Input> {
        if self.mounted.is_none() {
            self.waiting.push(Waiting::Ended(reply));
            return Some(Input::Shutdown);
        }
        let path = self.options.mountpoint.clone();
        let pid = std::process::id();
        // Answered when the daemon has ended, unless the kernel refuses first.
        self.waiting.push(Waiting::Ended(reply.clone()));
        let tried = std::thread::Builder::new().name("unmount".into()).spawn(move || {
            // The end of the connection ends the daemon.
            if let Err(error) = mount::unmount_idle(&path) {
                let _ = reply.send(Reply::Refused(format!(
                    "{} cannot be unmounted ({error}): close what uses it (`fuser -vm {}`), or cut it off with `kill {pid}`: \
                     everything written is kept",
                    path.display(),
                    path.display()
                )));
            }
        });
        if let Err(error) = tried {
            tracing::error!("no thread to unmount with: {error}");
        }
        None
    }

    /// One step of the machine and everything that follows from it. True: the daemon is done.
    fn step(&mut self, input: Input) -> bool {
        let before = self.machine.state();
        let actions = self.machine.step(now(), input);
        let after = self.machine.state();
        if before != after {
            self.changed(before, after);
        }
        for action in actions {
            match action {
                Action::ProbeNow => self.poll.probe_now(),
                Action::ProbeIn(span) => self.poll.probe_by(now() + span),
                Action::BeginLock { cause } => self.begin_lock(cause),
                Action::BeginUnlock => self.begin_unlock(),
                Action::Refuse(refusal) => {
                    self.answer(false, |waiting| !matches!(waiting, Waiting::Ended(_)), &refusal.to_string());
                }
                Action::Shutdown => {
                    self.end();
                    return true;
                }
            }
        }
        false
    }

    fn changed(&mut self, before: State, after: State) {
        if std::mem::discriminant(&before) == std::mem::discriminant(&after) {
            return;
        }
        self.since = now();
        let cause = self.cause().map_or("live probe", Cause::word);
        tracing::info!(from = before.word(), to = after.word(), cause, "state");
        self.record(before.word(), after.word(), cause);
        let text = format!("{} ({cause})", after.word());
        self.tell_systemd(&[sd_notify::NotifyState::Status(&text)]);
        if after == State::Unlocked {
            self.denial = None;
            self.answer(true, |waiting| matches!(waiting, Waiting::Unlocked(_)), "unlocked and mounted again");
        }
    }

    /// State changes are waited for, but not longer than is good for a lock.
    fn record(&self, from: &'static str, to: &'static str, cause: &'static str) {
        if let Some(log) = &self.log {
            let ticket = log.state(StateChange { volume: self.volume, from, to, cause, ..StateChange::default() });
            if to != "locking" {
                ticket.wait(AUDIT_WAIT);
            }
        }
    }

    fn begin_lock(&mut self, cause: Cause) {
        self.current = None;
        let Some(mounted) = self.mounted.take() else {
            let _ = self.events.send(Happened::Locked(Box::default()));
            return;
        };
        let leave = if cause == Cause::Shutdown { Leave::Bare } else { Leave::Placeholder };
        let (deadline, events) = (self.options.flush_deadline, self.events.clone());
        let work = move || {
            let report = lock::lock(*mounted, leave, deadline);
            stack::scrub();
            let _ = events.send(Happened::Locked(Box::new(report)));
        };
        if std::thread::Builder::new().name("lock".into()).spawn(work).is_err() {
            // The closure is gone with the mount's last owner: its keys are wiped by their drop.
            tracing::error!("no thread to lock with; the process ends so that no key stays");
            std::process::abort();
        }
    }

    fn begin_unlock(&mut self) {
        let (mounter, events) = (self.mounter.clone(), self.events.clone());
        let failed = self.events.clone();
        let work = move || {
            let result = mounter.mount_again().map_err(Box::new);
            let _ = events.send(Happened::Unlocked(result));
        };
        if let Err(error) = std::thread::Builder::new().name("unlock".into()).spawn(work) {
            let _ = failed.send(Happened::Unlocked(Err(Box::new(VolumeError::Session(error)))));
        }
    }

    /// Nothing is mounted and no key is in memory: takes the placeholder away.
    fn end(&mut self) {
        self.tell_systemd(&[sd_notify::NotifyState::Stopping]);
        let root = rustix::process::geteuid().is_root();
        while mount::top_of(&self.options.mountpoint).is_ok_and(|top| top == Top::Placeholder) {
            if let Err(error) = mount::detach(&self.options.mountpoint, root) {
                tracing::warn!("the placeholder stays: {error}; take it away with `hyokfs unmount`");
                break;
            }
        }
        self.record("locked", "ended", "shutdown");
        self.answer(true, |_| true, "unmounted");
    }

    fn answer(&mut self, done: bool, which: impl Fn(&Waiting) -> bool, message: &str) {
        for waiting in self.waiting.extract_if(.., |waiting| which(waiting)) {
            let (Waiting::Locked(reply) | Waiting::Unlocked(reply) | Waiting::Ended(reply)) = waiting;
            let _ = reply.send(if done { Reply::Done(message.into()) } else { Reply::Refused(message.into()) });
        }
    }

    fn tell_systemd(&self, state: &[sd_notify::NotifyState<'_>]) {
        let _ = sd_notify::notify(state);
    }

    fn status(&self) -> Status {
        let (state, at) = (self.machine.state(), now());
        let unlocked = state == State::Unlocked;
        let mut warnings = self.warnings.clone();
        if let Some(log) = &self.log {
            let stats = log.stats();
            warnings.extend(stats.error.map(|error| format!("audit log: {error}")));
            if stats.dropped > 0 {
                warnings.push(format!("audit log: {} records of key calls were dropped", stats.dropped));
            }
        }
        Status {
            state: state.word().into(),
            cause: self.cause().map(|cause| cause.word().into()),
            state_age: at.saturating_sub(self.since).as_secs_f64(),
            store: self.options.store.clone(),
            mountpoint: self.options.mountpoint.clone(),
            volume: self.identity.volume.clone(),
            fingerprint: self.identity.fingerprint.clone(),
            key: self.identity.key.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            poll_interval: self.pace.interval().as_secs_f64(),
            lease: self.pace.lease().as_secs_f64(),
            lease_left: unlocked.then(|| self.machine.lease().remaining(at).as_secs_f64()),
            last_verdict: self.last.as_ref().map(|answer| LastVerdict {
                verdict: verdict_word(answer.verdict).into(),
                code: answer.code.clone(),
                message: answer.message.clone(),
                request_id: answer.request_id.clone(),
                age: SystemTime::now().duration_since(answer.wall).unwrap_or_default().as_secs_f64(),
            }),
            keys_cached: self.mounted.as_ref().map_or(0, |mounted| mounted.keyring.stats().cached),
            last_lock: self.last_lock.clone(),
            warnings,
        }
    }
}
