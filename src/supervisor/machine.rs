//! What follows from the customer's answers: a pure machine without I/O, clock or thread. Whoever drives it gives it
//! the time (since boot, `CLOCK_BOOTTIME`) with every [`Input`], does the [`Action`]s that come back in their order,
//! and calls again at [`Machine::next_tick`] at the latest.
//!
//! ```text
//!              denied ×2 / lease over / operator             probe live
//!  Unlocked ───────────────────────────────▶ Locking ──▶ Locked ─────────▶ Unlocking ──▶ Unlocked
//! ```
//!
//! - A first denial, of a probe or of ordinary use, asks for one probe at once. That probe alone decides: denied locks,
//!   live clears the suspicion. If it gives no decision within [`CONFIRM_WITHIN`], the denial stands: nobody can hold
//!   on to the keys by cutting the network after the customer's first no.
//! - A success of ordinary use renews the lease but never clears a denial: a cached session can outlive the trust that
//!   it came from, only a probe obtains its credentials anew.
//! - Only a live probe that was asked after the last denial unlocks. An operator's unlock merely takes back an
//!   operator's lock and asks for a probe.
//! - `misconfigured` on a mounted volume is no denial and no yes: like `unreachable`, the lease bounds it.
//!
//! `tests/states.rs` tries every input in every state, and all sequences of inputs up to a depth.

use std::time::Duration;

use super::state::{Action, Cause, Health, Input, Refusal, Reply, State};
use crate::liveness::{Lease, Pace};
use crate::provider::Verdict;

/// A first denial that no probe has refuted after this time counts as confirmed.
pub const CONFIRM_WITHIN: Duration = Duration::from_secs(1);
/// After a probe refuted a denial of ordinary use, the next such denial asks for a probe no sooner than this. A policy
/// that refuses single files would make a probe out of every open else.
const REFUTED_REST: Duration = Duration::from_millis(500);

/// The machine. Equal machines behave equally.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Machine {
    pace: Pace,
    lease: Lease,
    state: State,
    health: Health,
    /// When a denial was received that no probe has confirmed or refuted yet.
    suspicion: Option<Duration>,
    /// When the last denial was received, if no probe that was asked later has said yes.
    denied: Option<Duration>,
    /// The first denial of the present revocation.
    first_denial: Option<Duration>,
    /// When a probe refuted a denial for the last time.
    refuted: Option<Duration>,
    /// The operator wants it locked.
    held: bool,
    /// The cause before [`State::Unlocking`].
    was: Cause,
    /// What happened while unlocking: locks as soon as that is over.
    pending: Option<Cause>,
    /// An ordinary call met no answer since the last probe.
    hurried: bool,
    ending: bool,
    ended: bool,
}

impl Machine {
    /// A volume that is not unlocked yet: the first live probe unlocks it.
    pub fn locked(pace: Pace) -> Machine {
        Machine {
            pace,
            lease: Lease { last_success: None, lease: pace.bound() },
            state: State::Locked { cause: Cause::Start },
            health: Health::Unknown,
            suspicion: None,
            denied: None,
            first_denial: None,
            refuted: None,
            held: false,
            was: Cause::Start,
            pending: None,
            hurried: false,
            ending: false,
            ended: false,
        }
    }

    /// A volume that was just unlocked, by an unwrap that was asked at `asked` (time since boot).
    pub fn unlocked(pace: Pace, asked: Duration) -> Machine {
        let mut machine = Machine::locked(pace);
        machine.lease.renew(asked);
        machine.state = State::Unlocked;
        machine.health = Health::Live;
        machine
    }

    /// Where the volume stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// What is known about the customer's will.
    pub fn health(&self) -> Health {
        if self.denied.is_some() { Health::Denied } else { self.health }
    }

    /// The last success and how long it holds.
    pub fn lease(&self) -> Lease {
        self.lease
    }

    /// Whether the operator wants it locked: live probes don't unlock it.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Whether [`Action::Shutdown`] was given out. Nothing has an effect any more.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// When the first denial of the present (or just finished) revocation was received.
    pub fn first_denial(&self) -> Option<Duration> {
        self.first_denial
    }

    /// Whether another of several keys may be tried now. Only on an outage, never after a denial.
    pub fn may_use_other_key(&self) -> bool {
        self.denied.is_none() && !self.ended
    }

    /// When [`Input::Tick`] is due at the latest (time since boot).
    pub fn next_tick(&self) -> Option<Duration> {
        // Where a lock is under way or sure to come, time changes nothing.
        let lease = match self.state {
            State::Unlocked => self.lease.end(),
            State::Unlocking if self.pending.is_none() => self.lease.end(),
            _ => None,
        };
        let confirm = self.suspicion.map(|since| since.saturating_add(CONFIRM_WITHIN));
        confirm.into_iter().chain(lease).min().filter(|_| !self.ended)
    }

    /// Takes one input at `now` (time since boot) and says what is to be done.
    pub fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.ended {
            if matches!(input, Input::OperatorLock | Input::OperatorUnlock | Input::Drill) {
                actions.push(Action::Refuse(Refusal::Ending));
            }
            return actions;
        }
        match input {
            Input::Probe(reply) => self.probe(now, reply, &mut actions),
            Input::Use(reply) => self.ordinary(reply, &mut actions),
            Input::Tick => {}
            Input::OperatorLock => {
                self.held = true;
                self.lock(Cause::Operator, &mut actions);
            }
            Input::OperatorUnlock => self.operator_unlock(&mut actions),
            Input::LockFinished => self.lock_finished(&mut actions),
            Input::UnlockFinished => self.unlock_finished(&mut actions),
            Input::UnlockFailed => self.unlock_failed(&mut actions),
            Input::Shutdown => self.shutdown(&mut actions),
            Input::Drill => match self.state {
                State::Unlocked => self.lock(Cause::Drill, &mut actions),
                _ => actions.push(Action::Refuse(Refusal::NotUnlocked)),
            },
        }
        self.expire(now, &mut actions);
        actions
    }

    /// Leaves `Unlocked`, at once or, while unlocking, as soon as that is over. No effect in the other states.
    fn lock(&mut self, cause: Cause, actions: &mut Vec<Action>) {
        match self.state {
            State::Unlocked => {
                self.suspicion = None;
                self.state = State::Locking { cause };
                actions.push(Action::BeginLock { cause });
            }
            // A denial is worth more than any other cause.
            State::Unlocking if cause == Cause::Denied => {
                self.suspicion = None;
                self.pending = Some(cause);
            }
            // `held` says so already, and may be taken back.
            State::Unlocking if cause == Cause::Operator => {}
            State::Unlocking => {
                self.pending.get_or_insert(cause);
            }
            State::Locking { .. } | State::Locked { .. } => {}
        }
    }

    /// What time alone does. Runs after every input, so that an answer that renews the lease comes first.
    fn expire(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let unconfirmed = self.suspicion.is_some_and(|since| now >= since.saturating_add(CONFIRM_WITHIN));
        if unconfirmed {
            self.lock(Cause::Denied, actions);
        }
        if self.lease.is_over(now) {
            self.lock(Cause::LeaseOver, actions);
        }
    }

    fn probe(&mut self, now: Duration, reply: Reply, actions: &mut Vec<Action>) {
        self.hurried = false;
        match reply.verdict {
            Verdict::Live => {
                self.lease.renew(reply.asked);
                self.health = Health::Live;
                // A yes that was asked before the last no is overtaken.
                if self.denied.is_none_or(|denied| reply.asked >= denied) {
                    self.live(now, reply, actions);
                }
            }
            Verdict::Denied => {
                let confirmed = self.suspicion.is_some();
                self.note_denial(reply);
                if confirmed {
                    self.lock(Cause::Denied, actions);
                } else {
                    self.suspect(reply, actions);
                }
            }
            Verdict::Unreachable | Verdict::Misconfigured => {
                let misconfigured = reply.verdict == Verdict::Misconfigured;
                self.health = if misconfigured { Health::Misconfigured } else { Health::Unreachable };
                if self.suspicion.is_some() {
                    actions.push(Action::ProbeNow);
                } else {
                    actions.push(Action::ProbeIn(self.pace.after(reply.verdict)));
                }
                if self.pace.lease().is_zero() {
                    self.lock(Cause::LeaseOver, actions);
                }
            }
        }
    }

    fn live(&mut self, now: Duration, reply: Reply, actions: &mut Vec<Action>) {
        self.denied = None;
        if self.suspicion.take().is_some() {
            self.refuted = Some(reply.at);
        }
        match self.state {
            State::Unlocked => self.first_denial = None,
            State::Locked { cause } if !self.held && !self.lease.is_over(now) => {
                self.was = cause;
                self.first_denial = None;
                self.state = State::Unlocking;
                actions.push(Action::BeginUnlock);
            }
            // A lock that has begun is finished first; its end asks for a probe.
            State::Locked { .. } | State::Locking { .. } | State::Unlocking => {}
        }
    }

    fn note_denial(&mut self, reply: Reply) {
        self.denied = self.denied.max(Some(reply.at));
        self.first_denial.get_or_insert(reply.at);
        if let State::Locked { cause } = &mut self.state
            && *cause != Cause::Operator
        {
            *cause = Cause::Denied;
        }
    }

    /// Asks for a confirmation of a first denial. Where nothing is unlocked, there is nothing to confirm.
    fn suspect(&mut self, reply: Reply, actions: &mut Vec<Action>) {
        let unlocked = match self.state {
            State::Unlocked => true,
            State::Unlocking => self.pending != Some(Cause::Denied),
            State::Locking { .. } | State::Locked { .. } => false,
        };
        if !unlocked || self.suspicion.is_some() {
            return;
        }
        self.suspicion = Some(reply.at);
        let rest = self.refuted.map(|refuted| (refuted + REFUTED_REST).saturating_sub(reply.at));
        actions.push(match rest {
            Some(rest) if !rest.is_zero() => Action::ProbeIn(rest),
            _ => Action::ProbeNow,
        });
    }

    fn ordinary(&mut self, reply: Reply, actions: &mut Vec<Action>) {
        // What was on its way when the lock began says nothing about now.
        if !matches!(self.state, State::Unlocked | State::Unlocking) {
            return;
        }
        match reply.verdict {
            Verdict::Live => self.lease.renew(reply.asked),
            Verdict::Denied => {
                self.note_denial(reply);
                self.suspect(reply, actions);
            }
            Verdict::Unreachable if !self.hurried => {
                self.hurried = true;
                actions.push(Action::ProbeIn(self.pace.after(reply.verdict)));
            }
            // `Misconfigured` here is about one file: a damaged or foreign wrapped key.
            Verdict::Unreachable | Verdict::Misconfigured => {}
        }
    }

    fn operator_unlock(&mut self, actions: &mut Vec<Action>) {
        if self.ending {
            actions.push(Action::Refuse(Refusal::Ending));
            return;
        }
        self.held = false;
        match self.state {
            State::Locked { .. } => actions.push(Action::ProbeNow),
            // `Unlocking` looks at `held` when it ends, and so does the end of `Locking`.
            State::Unlocking | State::Unlocked | State::Locking { .. } => {}
        }
    }

    fn lock_finished(&mut self, actions: &mut Vec<Action>) {
        let State::Locking { cause } = self.state else { return };
        let denied = self.denied.is_some() && cause != Cause::Operator;
        self.rest(if denied { Cause::Denied } else { cause }, actions);
        if !self.ended {
            actions.push(if self.held { Action::ProbeIn(self.pace.interval()) } else { Action::ProbeNow });
        }
    }

    fn unlock_finished(&mut self, actions: &mut Vec<Action>) {
        if self.state != State::Unlocking {
            return;
        }
        self.state = State::Unlocked;
        let pending = self.pending.take().or(self.held.then_some(Cause::Operator));
        if let Some(cause) = if self.ending { Some(Cause::Shutdown) } else { pending } {
            self.lock(cause, actions);
        }
    }

    fn unlock_failed(&mut self, actions: &mut Vec<Action>) {
        if self.state != State::Unlocking {
            return;
        }
        self.suspicion = None;
        let denied = self.denied.map(|_| Cause::Denied);
        let held = self.held.then_some(Cause::Operator);
        let cause = denied.or(self.pending.take()).or(held).unwrap_or(self.was);
        self.rest(cause, actions);
        if !self.ended {
            actions.push(Action::ProbeIn(self.pace.interval()));
        }
    }

    /// Comes to rest in `Locked`, and ends there if the daemon is to end.
    fn rest(&mut self, cause: Cause, actions: &mut Vec<Action>) {
        self.pending = None;
        self.state = State::Locked { cause };
        if self.ending {
            self.ended = true;
            actions.push(Action::Shutdown);
        }
    }

    fn shutdown(&mut self, actions: &mut Vec<Action>) {
        self.ending = true;
        match self.state {
            State::Unlocked => self.lock(Cause::Shutdown, actions),
            State::Locked { cause } => self.rest(cause, actions),
            // Both come to an end, and look at `ending` then.
            State::Locking { .. } | State::Unlocking => {}
        }
    }
}
