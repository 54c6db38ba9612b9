//! The words of the state machine: where a volume stands, what can happen to it, what is then to be done. The machine
//! itself is [`Machine`].

use std::time::Duration;

use crate::provider::Verdict;

pub use super::machine::{CONFIRM_WITHIN, Machine};

/// Why a volume is, or gets, locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// It has not been unlocked yet.
    Start,
    /// The customer said no.
    Denied,
    /// Nobody knows what the customer says, and the last yes is too old.
    LeaseOver,
    /// The operator wants it so.
    Operator,
    /// The daemon is to end.
    Shutdown,
    /// A rehearsal of a denial.
    Drill,
}

impl Cause {
    /// The word for status and audit log.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Start => "start",
            Cause::Denied => "denied",
            Cause::LeaseOver => "lease over",
            Cause::Operator => "operator",
            Cause::Shutdown => "shutdown",
            Cause::Drill => "drill",
        }
    }
}

/// Where the volume stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The keys may be used.
    Unlocked,
    /// The keys are being taken away.
    Locking {
        /// Why.
        cause: Cause,
    },
    /// No key is in memory.
    Locked {
        /// Why.
        cause: Cause,
    },
    /// The volume secret is being unwrapped and the mount brought back.
    Unlocking,
}

impl State {
    /// The word for status and audit log.
    pub fn word(self) -> &'static str {
        match self {
            State::Unlocked => "unlocked",
            State::Locking { .. } => "locking",
            State::Locked { .. } => "locked",
            State::Unlocking => "unlocking",
        }
    }
}

/// An answer of the key service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reply {
    /// What it says.
    pub verdict: Verdict,
    /// When it was asked (time since boot).
    pub asked: Duration,
    /// When it was received (time since boot).
    pub at: Duration,
}

/// What happens to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// A probe was answered.
    Probe(Reply),
    /// An ordinary call was answered: a file's key wrapped or unwrapped.
    Use(Reply),
    /// Time has passed.
    Tick,
    /// The operator locks: it stays locked until the operator unlocks.
    OperatorLock,
    /// The operator takes a lock back.
    OperatorUnlock,
    /// What [`Action::BeginLock`] began is done.
    LockFinished,
    /// What [`Action::BeginUnlock`] began has succeeded.
    UnlockFinished,
    /// What [`Action::BeginUnlock`] began has failed, and left no key in memory.
    UnlockFailed,
    /// The daemon is to end.
    Shutdown,
    /// Lock as if the customer had said no; the next live probe unlocks.
    Drill,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Probe at once.
    ProbeNow,
    /// Have the next probe begin after this time at the latest.
    ProbeIn(Duration),
    /// Begin to lock; report [`Input::LockFinished`].
    BeginLock {
        /// Why.
        cause: Cause,
    },
    /// Begin to unlock; report [`Input::UnlockFinished`] or [`Input::UnlockFailed`].
    BeginUnlock,
    /// End the daemon: no key is in memory. Always the last action.
    Shutdown,
    /// The operator's wish can't be met.
    Refuse(Refusal),
}

/// Why an operator's wish can't be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// A drill needs something to lock.
    #[error("the volume is not unlocked, so there is nothing to rehearse; wait until `hyokfs status` says unlocked")]
    NotUnlocked,
    /// The daemon is on its way out.
    #[error("the mount is being shut down; mount the volume again")]
    Ending,
}

/// What is known about the customer's will, for status and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    /// Nothing was answered yet.
    Unknown,
    /// The last answer was yes.
    Live,
    /// The customer said no, and no probe has said yes since.
    Denied,
    /// No answer; the lease is running down.
    Unreachable,
    /// The key service says that something is set up wrongly; the lease is running down.
    Misconfigured,
}
