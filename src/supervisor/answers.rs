//! What the daemon tells others: answers to commands, the status, the audit log's record of a lock.

use std::sync::mpsc::Sender;
use std::time::SystemTime;

use super::control::{Reply, Request};
use super::daemon::{Daemon, Waiting};
use super::events::now;
use super::lock::OnRevoke;
use super::observe::verdict_word;
use super::run::AUDIT_WAIT;
use super::state::{Cause, Input, State};
use super::status::{LastVerdict, LockReport, Status};
use crate::audit;
use crate::fuse::mount;

impl Daemon {
    pub(super) fn locked(&mut self, report: LockReport) {
        for problem in &report.problems {
            tracing::warn!("{problem}");
        }
        let (wiped_ms, unmounted_ms, held) = (report.wiped_ms, report.unmounted_ms, report.held);
        tracing::info!(keys = report.keys, wiped_ms, unmounted_ms, held, "locked");
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
                bytes_given_up: report.bytes_given_up,
                ..audit::LockRecord::default()
            });
            ticket.wait(AUDIT_WAIT);
        }
        let message = format!("locked in {} ms, {} keys wiped", report.unmounted_ms, report.keys);
        self.last_lock = Some(report);
        self.answer(true, |waiting| matches!(waiting, Waiting::Locked(_)), &message);
    }

    pub(super) fn command(&mut self, request: Request, reply: Sender<Reply>) -> Option<Input> {
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
    pub(super) fn unmount(&mut self, reply: Sender<Reply>) -> Option<Input> {
        if self.mounted.is_none() && self.held.is_none() {
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

    pub(super) fn answer(&mut self, done: bool, which: impl Fn(&Waiting) -> bool, message: &str) {
        for waiting in self.waiting.extract_if(.., |waiting| which(waiting)) {
            let (Waiting::Locked(reply) | Waiting::Unlocked(reply) | Waiting::Ended(reply)) = waiting;
            let _ = reply.send(if done { Reply::Done(message.into()) } else { Reply::Refused(message.into()) });
        }
    }

    pub(super) fn status(&self) -> Status {
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
            on_revoke: match self.options.on_revoke {
                OnRevoke::Unmount => "unmount".into(),
                OnRevoke::Hold => "hold".into(),
            },
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
