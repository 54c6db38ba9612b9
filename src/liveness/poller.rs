//! The task that asks.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::task::{JoinHandle, JoinSet};

use super::{Clock, Pace};
use crate::format::VolumeId;
use crate::provider::{Context, Provider, ProviderError, Verdict};

/// Between two probes that are asked for out of turn, so that a storm of requests doesn't become a storm of calls.
const SPACING: Duration = Duration::from_millis(100);

/// The question that a revocation answers with no: an unwrap of the canary with credentials obtained anew. Gives the
/// service's request id.
#[async_trait]
pub trait Probe: Send + Sync + 'static {
    /// Asks once. May be dropped halfway, at its deadline.
    async fn probe(&self) -> Result<Option<String>, ProviderError>;
}

/// Any closure that gives such a future is a probe.
#[async_trait]
impl<F, R> Probe for F
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Result<Option<String>, ProviderError>> + Send,
{
    async fn probe(&self) -> Result<Option<String>, ProviderError> {
        self().await
    }
}

/// The probe of a volume: its canary, unwrapped by its provider.
pub struct ProviderProbe {
    /// The key service.
    pub provider: Arc<dyn Provider>,
    /// The volume.
    pub volume: VolumeId,
    /// The customer's name, where `init` was given one.
    pub tenant: Option<String>,
    /// The wrapped canary of the volume record.
    pub canary: Vec<u8>,
}

#[async_trait]
impl Probe for ProviderProbe {
    async fn probe(&self) -> Result<Option<String>, ProviderError> {
        let context = Context { volume: self.volume, file: None, tenant: self.tenant.as_deref() };
        self.provider.probe(&context, &self.canary).await
    }
}

/// The answer to one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What it says about the customer's will.
    pub verdict: Verdict,
    /// When it was asked (time since boot).
    pub asked: Duration,
    /// When the answer was there (time since boot).
    pub at: Duration,
    /// The same moment by the clock on the wall, for the audit log.
    pub wall: SystemTime,
    /// Whether this probe was started at once because the one before it was denied.
    pub confirms: bool,
    /// The service's request id.
    pub request_id: Option<String>,
    /// The service's code, where it didn't say yes. `ProbeTimeout`: no answer within the deadline.
    pub code: Option<String>,
    /// What happened and what to do, where it didn't say yes.
    pub message: Option<String>,
}

impl Answer {
    /// From the question to the answer.
    pub fn latency(&self) -> Duration {
        self.at.saturating_sub(self.asked)
    }
}

enum Wish {
    Now,
    By(Duration),
}

/// Steers a poller. When all handles are gone, or nobody receives the answers any more, the poller ends.
#[derive(Clone)]
pub struct PollHandle(mpsc::UnboundedSender<Wish>);

impl PollHandle {
    /// Asks at once; if a probe is under way, again after it.
    pub fn probe_now(&self) {
        // A poller that has ended asks nothing more.
        let _ = self.0.send(Wish::Now);
    }

    /// Has the next probe begin at `moment` (time since boot) at the latest. Never puts one off.
    pub fn probe_by(&self, moment: Duration) {
        let _ = self.0.send(Wish::By(moment));
    }
}

/// Starts a poller in the current tokio runtime: the first probe at once, then at `pace`, each up to a tenth earlier
/// than that, at random, so that the mounts of a fleet spread out. Every answer goes to `answers`; while that channel
/// is full, the poller waits.
pub fn spawn(
    probe: Arc<dyn Probe>,
    clock: Arc<dyn Clock>,
    pace: Pace,
    answers: mpsc::Sender<Answer>,
) -> (PollHandle, JoinHandle<()>) {
    let (sender, wishes) = mpsc::unbounded_channel();
    let task = tokio::spawn(Poller { probe, clock, pace, answers, wishes }.run());
    (PollHandle(sender), task)
}

struct Poller {
    probe: Arc<dyn Probe>,
    clock: Arc<dyn Clock>,
    pace: Pace,
    answers: mpsc::Sender<Answer>,
    wishes: mpsc::UnboundedReceiver<Wish>,
}

impl Poller {
    async fn run(mut self) {
        let mut next = self.clock.now();
        let mut spaced = next;
        let (mut denied, mut confirms) = (false, false);
        while self.wait(next, spaced).await {
            let Some(answer) = self.ask(confirms).await else { return };
            let (verdict, asked, at) = (answer.verdict, answer.asked, answer.at);
            if self.answers.send(answer).await.is_err() {
                return;
            }
            spaced = at + SPACING;
            // The first denial is confirmed without waiting for anyone; a further one is not news.
            confirms = verdict == Verdict::Denied && !denied;
            denied = verdict == Verdict::Denied;
            next = if confirms { at } else { (asked + self.jittered(self.pace.after(verdict))).max(spaced) };
        }
    }

    /// Waits until `next`, or earlier if someone wishes so, but not before `spaced`. False: the poller is to end.
    async fn wait(&mut self, mut next: Duration, spaced: Duration) -> bool {
        while self.clock.now() < next {
            let wish = tokio::select! {
                () = self.clock.sleep_until(next) => continue,
                () = self.answers.closed() => return false,
                wish = self.wishes.recv() => wish,
            };
            next = match wish {
                Some(Wish::Now) => next.min(spaced),
                Some(Wish::By(moment)) => next.min(moment.max(spaced)),
                None => return false,
            };
        }
        // The probe that begins now is what everybody wished for until now.
        loop {
            match self.wishes.try_recv() {
                Ok(_) => {}
                Err(error) => return error == TryRecvError::Empty,
            }
        }
    }

    /// One probe, within its deadline. `None`: nobody wants the answer any more.
    async fn ask(&mut self, confirms: bool) -> Option<Answer> {
        let asked = self.clock.now();
        let until = asked + self.pace.deadline();
        // A task of its own, so that a panic in a client library is an answer too; dropping the set ends it.
        let mut task = JoinSet::new();
        let probe = Arc::clone(&self.probe);
        task.spawn(async move { probe.probe().await });
        let result = tokio::select! {
            joined = task.join_next() => match joined {
                Some(Ok(result)) => result,
                _ => Err(unreachable("ProbePanicked", "the key service's client failed inside; the next probe tries again, report this if it goes on")),
            },
            () = self.clock.sleep_until(until) => Err(unreachable(
                "ProbeTimeout",
                "the key service gave no answer in time; check the network path from this machine to it",
            )),
            () = self.answers.closed() => return None,
        };
        let (verdict, request_id, code, message) = match result {
            Ok(request_id) => (Verdict::Live, request_id, None, None),
            Err(error) => (error.verdict, error.request_id, Some(error.code), Some(error.message)),
        };
        let at = self.clock.now();
        Some(Answer { verdict, asked, at, wall: SystemTime::now(), confirms, request_id, code, message })
    }

    /// Up to a tenth less than `span`, never more: the span is a promise.
    fn jittered(&self, span: Duration) -> Duration {
        let mut random = [0; 2];
        match aws_lc_rs::rand::fill(&mut random) {
            Ok(()) => span - span / 10 * u32::from(u16::from_ne_bytes(random)) / 65_536,
            // Without random numbers all come on the dot.
            Err(_) => span,
        }
    }
}

fn unreachable(code: &str, message: &str) -> ProviderError {
    ProviderError {
        verdict: Verdict::Unreachable,
        code: code.to_owned(),
        message: message.to_owned(),
        request_id: None,
    }
}
