//! Hears of every call to the key service: for the audit log, for the lease, for the status.

use std::sync::mpsc::Sender;

use super::events::{Happened, now};
use super::state;
use crate::audit;
use crate::format::VolumeId;
use crate::provider::Verdict;
use crate::provider::observed::{KeyCall, Observer, Reason};

/// Tells the audit log of every call and the supervisor of every answer of ordinary use.
pub struct Watch {
    /// The volume.
    pub volume: VolumeId,
    /// The log, if there is one.
    pub audit: Option<std::sync::Arc<audit::Log>>,
    /// The supervisor's queue.
    pub events: Sender<Happened>,
}

impl Observer for Watch {
    fn key_call(&self, call: &KeyCall<'_>) {
        if let Some(log) = &self.audit {
            log.key_call(audit::KeyCall {
                operation: call.operation.word(),
                volume: self.volume.0,
                file: call.file.map(|file| file.0),
                reason: call.reason.word(),
                verdict: verdict_word(call.verdict()),
                code: call.result.err().map(|error| error.code.clone()),
                request_id: call.request_id.map(str::to_owned),
                latency: call.latency,
            });
        }
        // Probes and the unwrap of a mount are judged where they are made.
        if matches!(call.reason, Reason::Probe | Reason::Mount | Reason::Init) {
            return;
        }
        let verdict = match (call.proves(), call.verdict()) {
            (Some(verdict), _) => verdict,
            (None, Verdict::Unreachable) => Verdict::Unreachable,
            (None, _) => return,
        };
        let at = now();
        let asked = at.saturating_sub(call.started.elapsed());
        let _ = self.events.send(Happened::Used(state::Reply { verdict, asked, at }));
    }
}

/// The word of a verdict in status and log.
pub fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Live => "live",
        Verdict::Denied => "denied",
        Verdict::Unreachable => "unreachable",
        Verdict::Misconfigured => "misconfigured",
    }
}
