//! The daemon's main loop: feeds the state machine and does what it says.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::control::Reply;
use super::events::{Happened, now};
use super::hold::Sweeper;
use super::lock::{self, Leave, Mounted, OnRevoke};
use super::mounter::Mounter;
use super::observe::verdict_word;
use super::run::{AUDIT_WAIT, RunOptions};
use super::state::{Action, Cause, Input, Machine, State};
use super::status::LockReport;
use super::volume::VolumeError;
use crate::audit::{self, StateChange};
use crate::fuse::mount::{self, Top};
use crate::liveness::{Answer, Pace, PollHandle};
use crate::sys::{stack, step};

/// The longest sleep of the loop: systemd's watchdog wants a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(1);

pub(super) struct Shown {
    pub volume: String,
    pub fingerprint: String,
    pub key: String,
}

/// A command that is answered when something has happened.
pub(super) enum Waiting {
    Locked(Sender<Reply>),
    Unlocked(Sender<Reply>),
    Ended(Sender<Reply>),
}

/// A volume that is locked in place.
pub(super) struct Held {
    mounted: Box<Mounted>,
    _sweeper: Sweeper,
}

/// The daemon.
pub(super) struct Daemon {
    pub machine: Machine,
    pub mounted: Option<Box<Mounted>>,
    /// The mount of a volume that is locked in place.
    pub held: Option<Held>,
    /// The mount whose end is news.
    pub current: Option<u64>,
    pub since: Duration,
    pub options: RunOptions,
    pub mounter: Arc<Mounter>,
    pub pace: Pace,
    pub poll: PollHandle,
    pub events: Sender<Happened>,
    pub log: Option<Arc<audit::Log>>,
    pub warnings: Vec<String>,
    pub identity: Shown,
    pub volume: [u8; 16],
    pub last: Option<Answer>,
    pub denial: Option<audit::Denial>,
    pub last_lock: Option<LockReport>,
    pub waiting: Vec<Waiting>,
}

impl Daemon {
    pub(super) fn serve(&mut self, queue: &Receiver<Happened>) {
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
    pub(super) fn take(&mut self, happened: Happened) -> Option<Input> {
        match happened {
            Happened::Probed(answer) => {
                let input =
                    Input::Probe(super::state::Reply { verdict: answer.verdict, asked: answer.asked, at: answer.at });
                self.note(answer);
                Some(input)
            }
            Happened::Used(reply) => Some(Input::Use(reply)),
            Happened::Locked(report, held) => {
                self.hold(held);
                self.locked(*report);
                Some(Input::LockFinished)
            }
            Happened::Unlocked(Ok(mounted)) => {
                self.current = Some(mounted.number);
                self.mounted = Some(mounted);
                Some(Input::UnlockFinished)
            }
            Happened::Unlocked(Err((error, held))) => {
                tracing::error!("the volume could not be opened again: {error}");
                self.hold(held);
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

    pub(super) fn note(&mut self, answer: Answer) {
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

    pub(super) fn cause(&self) -> Option<Cause> {
        match self.machine.state() {
            State::Locking { cause } | State::Locked { cause } => Some(cause),
            State::Unlocked | State::Unlocking => None,
        }
    }

    /// One step of the machine and everything that follows from it. True: the daemon is done.
    pub(super) fn step(&mut self, input: Input) -> bool {
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

    pub(super) fn changed(&mut self, before: State, after: State) {
        if std::mem::discriminant(&before) == std::mem::discriminant(&after) {
            return;
        }
        self.since = now();
        let cause = self.cause().map_or("live probe", Cause::word);
        tracing::info!(from = before.word(), to = after.word(), cause, "state");
        self.record(before.word(), after.word(), cause);
        let text = format!("{} ({cause})", after.word());
        self.tell_systemd(&[sd_notify::NotifyState::Status(&text)]);
        match after {
            State::Locked { .. } => step::reached("lock: recorded"),
            State::Unlocked => step::reached("restore: recorded"),
            State::Locking { .. } | State::Unlocking => {}
        }
        if after == State::Unlocked {
            self.denial = None;
            self.answer(true, |waiting| matches!(waiting, Waiting::Unlocked(_)), "unlocked");
        }
    }

    /// State changes are waited for, but not longer than is good for a lock.
    pub(super) fn record(&self, from: &'static str, to: &'static str, cause: &'static str) {
        if let Some(log) = &self.log {
            let ticket = log.state(StateChange { volume: self.volume, from, to, cause, ..StateChange::default() });
            if to != "locking" {
                ticket.wait(AUDIT_WAIT);
            }
        }
    }

    pub(super) fn begin_lock(&mut self, cause: Cause) {
        let leave = match self.options.on_revoke {
            _ if cause == Cause::Shutdown => Leave::Bare,
            OnRevoke::Unmount => Leave::Placeholder,
            OnRevoke::Hold => Leave::Held,
        };
        if leave != Leave::Held {
            // The end of the connection is our own doing from here on.
            self.current = None;
        }
        let Some(mounted) = self.mounted.take() else {
            let _ = self.events.send(Happened::Locked(Box::default(), None));
            return;
        };
        let (deadline, events) = (self.options.flush_deadline, self.events.clone());
        let work = move || {
            let (report, held) = lock::lock(*mounted, leave, deadline);
            stack::scrub();
            let _ = events.send(Happened::Locked(Box::new(report), held.map(Box::new)));
        };
        if std::thread::Builder::new().name("lock".into()).spawn(work).is_err() {
            // The closure is gone with the mount's last owner: its keys are wiped by their drop.
            tracing::error!("no thread to lock with; the process ends so that no key stays");
            std::process::abort();
        }
    }

    pub(super) fn begin_unlock(&mut self) {
        let (mounter, events) = (self.mounter.clone(), self.events.clone());
        let failed = self.events.clone();
        // Only lent until the thread runs: should there be no thread, it is still here.
        let held = Arc::new(Mutex::new(self.held.take().map(|held| held.mounted)));
        let lent = held.clone();
        let work = move || {
            let held = lent.lock().unwrap_or_else(PoisonError::into_inner).take();
            let result = match held {
                Some(held) => match mounter.reopen(&held) {
                    Ok(()) => Ok(held),
                    Err(error) => Err((Box::new(error), Some(held))),
                },
                None => mounter.mount_again().map_err(|error| (Box::new(error), None)),
            };
            let _ = events.send(Happened::Unlocked(result));
        };
        if let Err(error) = std::thread::Builder::new().name("unlock".into()).spawn(work) {
            let held = held.lock().unwrap_or_else(PoisonError::into_inner).take();
            let _ = failed.send(Happened::Unlocked(Err((Box::new(VolumeError::Session(error)), held))));
        }
    }

    /// Keeps the mount of a locked volume. If its connection has ended meanwhile, that is news by itself.
    fn hold(&mut self, mounted: Option<Box<Mounted>>) {
        self.held = mounted.map(|mounted| Held { _sweeper: Sweeper::start(&mounted), mounted });
    }

    /// No key is in memory: takes away what a lock has left at the mount point, a held mount or the placeholder.
    pub(super) fn end(&mut self) {
        self.tell_systemd(&[sd_notify::NotifyState::Stopping]);
        if let Some(held) = self.held.take() {
            lock::end_held(*held.mounted);
        }
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

    pub(super) fn tell_systemd(&self, state: &[sd_notify::NotifyState<'_>]) {
        let _ = sd_notify::notify(state);
    }
}
