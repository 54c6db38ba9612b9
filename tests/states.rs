//! The state machine: every input in every state, and every sequence of inputs up to a depth, against promises that a
//! shadow of the machine keeps count of by itself.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use hyokfs::liveness::Pace;
use hyokfs::provider::Verdict::{self, Denied, Live, Misconfigured, Unreachable};
use hyokfs::supervisor::state::{Action, CONFIRM_WITHIN, Cause, Health, Input, Machine, Refusal, Reply, State};

const ZERO: Duration = Duration::ZERO;

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn pace() -> Pace {
    Pace::new(s(8), s(60)).unwrap()
}

fn reply(verdict: Verdict, at: Duration) -> Reply {
    Reply { verdict, asked: at, at }
}

fn probe(verdict: Verdict, at: Duration) -> Input {
    Input::Probe(reply(verdict, at))
}

fn usage(verdict: Verdict, at: Duration) -> Input {
    Input::Use(reply(verdict, at))
}

/// A machine in each state, with each cause, all at the time 100 s.
fn everywhere() -> Vec<(&'static str, Machine)> {
    let at = s(100);
    let go = |inputs: &[Input]| {
        let mut machine = Machine::unlocked(pace(), at);
        inputs.iter().for_each(|&input| drop(machine.step(at, input)));
        machine
    };
    let lease_over = |finish: bool| {
        let mut machine = Machine::unlocked(pace(), s(40));
        machine.step(at, Input::Tick);
        if finish {
            machine.step(at, Input::LockFinished);
        }
        machine
    };
    let no = probe(Denied, at);
    let yes = probe(Live, at);
    let end = Input::LockFinished;
    vec![
        ("unlocked", go(&[])),
        ("suspicious", go(&[no])),
        ("locking denied", go(&[no, no])),
        ("locking lease over", lease_over(false)),
        ("locking operator", go(&[Input::OperatorLock])),
        ("locking drill", go(&[Input::Drill])),
        ("locking shutdown", go(&[Input::Shutdown])),
        ("locking denied, held", go(&[no, no, Input::OperatorLock])),
        ("locking denied, ending", go(&[no, no, Input::Shutdown])),
        ("locked start", Machine::locked(pace())),
        ("locked denied", go(&[no, no, end])),
        ("locked lease over", lease_over(true)),
        ("locked operator", go(&[Input::OperatorLock, end])),
        ("locked drill", go(&[Input::Drill, end])),
        ("unlocking", go(&[no, no, end, yes])),
        ("unlocking, suspicious", go(&[Input::Drill, end, yes, no])),
        ("unlocking, denied", go(&[Input::Drill, end, yes, no, no])),
        ("unlocking, held", go(&[Input::Drill, end, yes, Input::OperatorLock])),
        ("unlocking, ending", go(&[Input::Drill, end, yes, Input::Shutdown])),
        ("ended", go(&[Input::Shutdown, end])),
    ]
}

fn short(state: State, ended: bool) -> String {
    let cause = |cause: Cause| cause.word().split(' ').next().unwrap().to_owned();
    match state {
        _ if ended => "ended".to_owned(),
        State::Unlocked => "unlocked".to_owned(),
        State::Locking { cause: why } => format!("locking:{}", cause(why)),
        State::Locked { cause: why } => format!("locked:{}", cause(why)),
        State::Unlocking => "unlocking".to_owned(),
    }
}

fn spell(actions: &[Action]) -> String {
    let one = |action: &Action| match action {
        Action::ProbeNow => "probe".to_owned(),
        Action::ProbeIn(span) => format!("in{}", span.as_secs_f32()),
        Action::BeginLock { cause } => format!("lock:{}", cause.word()),
        Action::BeginUnlock => "unlock".to_owned(),
        Action::Shutdown => "end".to_owned(),
        Action::Refuse(Refusal::NotUnlocked) => "refuse:not-unlocked".to_owned(),
        Action::Refuse(Refusal::Ending) => "refuse:ending".to_owned(),
    };
    actions.iter().map(one).collect::<Vec<_>>().join(",")
}

/// The whole table: one line per state, one column per input; state after it and what is to be done.
#[test]
fn every_state_takes_every_input() {
    let at = s(100);
    let columns = [
        probe(Live, at),
        probe(Denied, at),
        probe(Unreachable, at),
        probe(Misconfigured, at),
        usage(Live, at),
        usage(Denied, at),
        usage(Unreachable, at),
        usage(Misconfigured, at),
        Input::Tick,
        Input::OperatorLock,
        Input::OperatorUnlock,
        Input::LockFinished,
        Input::UnlockFinished,
        Input::UnlockFailed,
        Input::Shutdown,
        Input::Drill,
    ];
    let mut table = String::new();
    for (name, machine) in everywhere() {
        table.push_str(&format!("# {name}\n"));
        for input in columns {
            let mut machine = machine.clone();
            let before = machine.state();
            let actions = machine.step(at, input);
            let word = match input {
                Input::Probe(reply) => format!("probe {}", reply.verdict),
                Input::Use(reply) => format!("use {}", reply.verdict),
                other => format!("{other:?}").to_lowercase(),
            };
            if machine.state() != before || !actions.is_empty() || machine.is_ended() {
                let after = short(machine.state(), machine.is_ended());
                table.push_str(&format!("{word} -> {after} {}\n", spell(&actions)));
            }
        }
    }
    let want = include_str!("states.txt");
    if table != want {
        let odd = table.lines().zip(want.lines()).find(|(a, b)| a != b);
        panic!("the table differs, first in {odd:?}; the whole of it is now:\n{table}");
    }
}

/// What the test itself keeps count of, from nothing but inputs and actions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Shadow {
    machine: Machine,
    now: Duration,
    /// A lock, an unlock that was begun and not reported back.
    locking: bool,
    unlocking: bool,
    /// Keys are in memory or on their way.
    keys: bool,
    /// Of all replies that were taken note of: when the last success was asked.
    success: Option<Duration>,
    /// Denials of probes in a row, of any kind since the last live probe; when the first and last was received.
    denied_probes: u32,
    denied_first: Option<Duration>,
    denied_last: Option<Duration>,
    held: bool,
    shutdown: bool,
    ended: bool,
    /// A live probe later than the last denial was seen since the last lock began.
    live_since_lock: bool,
}

impl Shadow {
    fn new(machine: Machine, now: Duration, keys: bool) -> Shadow {
        Shadow {
            machine,
            now,
            locking: false,
            unlocking: false,
            keys,
            success: keys.then_some(now),
            denied_probes: 0,
            denied_first: None,
            denied_last: None,
            held: false,
            shutdown: false,
            ended: false,
            live_since_lock: false,
        }
    }

    fn note(&mut self, input: Input) {
        match input {
            Input::Probe(reply) | Input::Use(reply) => {
                let is_probe = matches!(input, Input::Probe(_));
                match reply.verdict {
                    Live => {
                        if is_probe || self.keys && !self.locking {
                            self.success = self.success.max(Some(reply.asked));
                        }
                        if is_probe && self.denied_last.is_none_or(|denied| reply.asked >= denied) {
                            (self.denied_probes, self.denied_first, self.denied_last) = (0, None, None);
                            self.live_since_lock = true;
                        }
                    }
                    Denied if is_probe || self.keys && !self.locking => {
                        self.denied_probes += u32::from(is_probe);
                        self.denied_first.get_or_insert(reply.at);
                        self.denied_last = Some(reply.at);
                        self.live_since_lock = false;
                    }
                    _ => {}
                }
            }
            Input::OperatorLock => self.held = true,
            Input::OperatorUnlock if !self.shutdown => self.held = false,
            Input::Shutdown => self.shutdown = true,
            Input::LockFinished if self.locking => (self.locking, self.keys) = (false, false),
            Input::UnlockFinished if self.unlocking => self.unlocking = false,
            Input::UnlockFailed if self.unlocking => (self.unlocking, self.keys) = (false, false),
            _ => {}
        }
    }

    fn step(&mut self, input: Input) -> Vec<Action> {
        let operator_unlock = input == Input::OperatorUnlock;
        let before = self.machine.clone();
        if !self.ended {
            self.note(input);
        }
        let actions = self.machine.step(self.now, input);
        for action in &actions {
            match action {
                Action::BeginLock { .. } => {
                    assert!(!self.locking && !self.unlocking && self.keys, "a lock of what is not unlocked");
                    (self.locking, self.live_since_lock) = (true, false);
                }
                Action::BeginUnlock => {
                    assert!(!self.keys && !self.locking && !self.unlocking, "an unlock on top of something");
                    assert!(!operator_unlock, "the operator unlocked");
                    assert!(matches!(input, Input::Probe(Reply { verdict: Live, .. })), "only a live probe unlocks");
                    assert!(self.live_since_lock && self.denied_last.is_none(), "unlocked after a denial");
                    assert!(!self.held, "unlocked although the operator holds it");
                    assert!(!self.shutdown, "unlocked while the daemon ends");
                    (self.unlocking, self.keys) = (true, true);
                }
                Action::Shutdown => {
                    assert!(self.shutdown && !self.keys, "ended with keys in memory");
                    assert_eq!(actions.last(), Some(action));
                    self.ended = true;
                }
                Action::Refuse(_) => {
                    assert!(matches!(input, Input::OperatorLock | Input::OperatorUnlock | Input::Drill));
                    let state = before.state();
                    assert!(state == self.machine.state() || self.machine.is_ended());
                }
                Action::ProbeNow | Action::ProbeIn(_) => assert!(!self.ended),
            }
        }
        self.check();
        actions
    }

    fn check(&self) {
        let machine = &self.machine;
        let usable = machine.state() == State::Unlocked;
        assert_eq!(usable, self.keys && !self.locking && !self.unlocking);
        assert_eq!(matches!(machine.state(), State::Locking { .. }), self.locking);
        assert_eq!(machine.state() == State::Unlocking, self.unlocking);
        assert_eq!(matches!(machine.state(), State::Locked { .. }), !self.keys);
        assert_eq!(machine.is_ended(), self.ended);
        assert_eq!(machine.is_held(), self.held, "the operator's wish");
        if self.ended {
            assert_eq!(machine.next_tick(), None);
            return;
        }
        assert_eq!(machine.lease().last_success, self.success, "the lease counts from another success");
        assert_eq!(machine.may_use_other_key(), self.denied_last.is_none(), "another key after a denial");
        assert_eq!(machine.health() == Health::Denied, self.denied_last.is_some());
        if usable {
            assert!(self.denied_probes < 2, "unlocked after a confirmed denial");
            let first = self.denied_first.unwrap_or(self.now);
            assert!(self.now - first < CONFIRM_WITHIN, "unlocked long after an unrefuted denial");
            let success = self.success.expect("unlocked without any success");
            assert!(self.now < success + s(60), "unlocked longer than the lease");
            assert!(!self.held && !self.shutdown, "unlocked against the operator");
            let tick = machine.next_tick().expect("nothing would end the lease");
            assert!(tick > self.now && tick <= success + s(60), "the next tick is past the lease");
        }
        if let Some(tick) = machine.next_tick() {
            assert!(tick > self.now, "a tick that is due changes nothing: the driver would spin");
        }
        // Whatever happened: what runs ends, and a shutdown ends all.
        let mut rest = machine.clone();
        let mut ends = 0;
        let mut todo = rest.step(self.now, Input::Shutdown);
        while !todo.contains(&Action::Shutdown) {
            ends += 1;
            assert!(ends <= 2, "a shutdown that doesn't end");
            todo = match rest.state() {
                State::Locking { .. } => rest.step(self.now, Input::LockFinished),
                State::Unlocking => rest.step(self.now, Input::UnlockFinished),
                other => panic!("a shutdown rests in {other:?}"),
            };
        }
    }

    /// All that can happen next. Time passes in the inputs themselves, so that every input meets every age.
    fn inputs(&self) -> Vec<(Duration, Input)> {
        let now = self.now;
        let mut all = vec![
            (ZERO, Input::OperatorLock),
            (ZERO, Input::OperatorUnlock),
            (ZERO, Input::Shutdown),
            (ZERO, Input::Drill),
            (ms(400), Input::Tick),
            (s(30), Input::Tick),
        ];
        for verdict in [Live, Denied, Unreachable] {
            all.push((ms(300), probe(verdict, now + ms(300))));
            all.push((ZERO, usage(verdict, now)));
        }
        all.push((ZERO, probe(Misconfigured, now)));
        // A yes that was asked long ago, and one that was asked before the last answer.
        for asked in [now.saturating_sub(s(31)), now.saturating_sub(ms(1))] {
            all.push((ZERO, Input::Probe(Reply { verdict: Live, asked, at: now })));
        }
        if self.locking {
            all.push((ZERO, Input::LockFinished));
        }
        if self.unlocking {
            all.push((ZERO, Input::UnlockFinished));
            all.push((ZERO, Input::UnlockFailed));
        }
        all
    }
}

fn explore(start: Shadow, depth: usize) -> (usize, usize) {
    let mut seen = HashSet::from([start.clone()]);
    let mut queue = VecDeque::from([(start, 0)]);
    let mut steps = 0;
    let mut kinds = HashSet::new();
    while let Some((shadow, level)) = queue.pop_front() {
        kinds.insert(shadow.machine.state());
        if level == depth || shadow.ended {
            continue;
        }
        for (span, input) in shadow.inputs() {
            let mut next = shadow.clone();
            next.now += span;
            next.step(input);
            steps += 1;
            if !seen.contains(&next) {
                seen.insert(next.clone());
                queue.push_back((next, level + 1));
            }
        }
    }
    assert!(kinds.len() >= 10, "only {} states were met", kinds.len());
    (seen.len(), steps)
}

/// Sequences of any inputs, breadth first, up to eight of them. Sequences that lead to the same machine at the same
/// time are followed once.
#[test]
fn no_sequence_of_inputs_breaks_a_promise_from_unlocked() {
    let (states, steps) = explore(Shadow::new(Machine::unlocked(pace(), s(100)), s(100), true), 8);
    println!("from unlocked: {states} situations, {steps} steps");
}

/// The same from a volume that is not unlocked yet.
#[test]
fn no_sequence_of_inputs_breaks_a_promise_from_locked() {
    let (states, steps) = explore(Shadow::new(Machine::locked(pace()), s(100), false), 8);
    println!("from locked: {states} situations, {steps} steps");
}

/// Longer than the exhaustive search: random walks of 400 inputs, seeded, so that a failure comes again.
#[test]
fn long_random_walks_keep_the_promises() {
    for seed in 1..=300_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut shadow = Shadow::new(Machine::locked(pace()), s(100), false);
        for _ in 0..400 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let mut inputs = shadow.inputs();
            // Shutdown would end most walks at once.
            inputs.retain(|(_, input)| *input != Input::Shutdown || random % 1009 == 0);
            let (span, input) = inputs[(random >> 16) as usize % inputs.len()];
            shadow.now += span;
            shadow.step(input);
        }
    }
}

#[test]
fn a_denial_needs_one_confirmation_and_no_more() {
    let mut machine = Machine::unlocked(pace(), s(100));
    assert_eq!(machine.step(s(105), probe(Denied, s(105))), [Action::ProbeNow]);
    assert!(!machine.may_use_other_key());
    assert_eq!(machine.step(s(105), probe(Denied, s(105))), [Action::BeginLock { cause: Cause::Denied }]);
    assert_eq!(machine.first_denial(), Some(s(105)));
    assert_eq!(machine.step(s(106), Input::LockFinished), [Action::ProbeNow]);
    assert_eq!(machine.step(s(106), probe(Denied, s(106))), []);
    assert_eq!(machine.step(s(107), Input::OperatorUnlock), [Action::ProbeNow]);
    assert_eq!(machine.state(), State::Locked { cause: Cause::Denied });
    assert_eq!(machine.step(s(111), probe(Live, s(111))), [Action::BeginUnlock]);
    assert_eq!(machine.step(s(112), Input::UnlockFinished), []);
    assert_eq!((machine.state(), machine.first_denial()), (State::Unlocked, None));
}

#[test]
fn a_cached_session_does_not_clear_a_denial_but_a_probe_does() {
    let mut machine = Machine::unlocked(pace(), s(100));
    machine.step(s(101), usage(Denied, s(101)));
    machine.step(s(101), usage(Live, s(101)));
    assert_eq!(machine.health(), Health::Denied);
    assert_eq!(machine.step(s(101) + ms(100), probe(Live, s(101) + ms(100))), []);
    assert_eq!(machine.health(), Health::Live);
    // The same file is refused again at once: the next probe comes a little later.
    let again = s(101) + ms(200);
    assert_eq!(machine.step(again, usage(Denied, again)), [Action::ProbeIn(ms(400))]);
    assert_eq!(machine.step(again, usage(Denied, again)), []);
}

#[test]
fn a_denial_that_nobody_refutes_locks_within_a_second() {
    let mut machine = Machine::unlocked(pace(), s(100));
    machine.step(s(101), probe(Denied, s(101)));
    assert_eq!(machine.next_tick(), Some(s(102)));
    assert_eq!(machine.step(s(101) + ms(500), probe(Unreachable, s(101) + ms(500))), [Action::ProbeNow]);
    assert_eq!(machine.step(s(101) + ms(999), Input::Tick), []);
    assert_eq!(machine.step(s(102), Input::Tick), [Action::BeginLock { cause: Cause::Denied }]);
}

#[test]
fn a_yes_that_was_asked_before_the_no_is_overtaken() {
    let mut machine = Machine::unlocked(pace(), s(100));
    machine.step(s(103), usage(Denied, s(103)));
    let late = Reply { verdict: Live, asked: s(102), at: s(103) };
    machine.step(s(103), Input::Probe(late));
    assert_eq!(machine.health(), Health::Denied);
    assert_eq!(machine.step(s(104), Input::Tick), [Action::BeginLock { cause: Cause::Denied }]);
}

#[test]
fn an_outage_is_bridged_by_the_lease_and_no_longer() {
    let mut machine = Machine::unlocked(pace(), s(100));
    assert_eq!(machine.step(s(108), probe(Unreachable, s(108))), [Action::ProbeIn(s(2))]);
    assert_eq!(machine.step(s(110), probe(Misconfigured, s(110))), [Action::ProbeIn(s(2))]);
    assert_eq!(machine.health(), Health::Misconfigured);
    assert!(machine.may_use_other_key());
    // Ordinary use met a yes meanwhile: the lease counts from there.
    machine.step(s(120), usage(Live, s(119)));
    assert_eq!(machine.next_tick(), Some(s(179)));
    assert_eq!(machine.lease().remaining(s(170)), s(9));
    assert_eq!(machine.step(s(179) - ms(1), Input::Tick), []);
    assert_eq!(machine.step(s(179), Input::Tick), [Action::BeginLock { cause: Cause::LeaseOver }]);
    machine.step(s(180), Input::LockFinished);
    assert_eq!(machine.step(s(181), Input::OperatorUnlock), [Action::ProbeNow]);
    assert_eq!(machine.step(s(182), probe(Unreachable, s(182))), [Action::ProbeIn(s(2))]);
    assert_eq!(machine.state(), State::Locked { cause: Cause::LeaseOver });
    // An answer to a question that is older than a lease unlocks nothing.
    let stale = Reply { verdict: Live, asked: s(183), at: s(244) };
    assert_eq!(machine.step(s(244), Input::Probe(stale)), []);
    assert_eq!(machine.step(s(245), probe(Live, s(245))), [Action::BeginUnlock]);
}

#[test]
fn no_lease_at_all_locks_at_the_first_silence() {
    let pace = Pace::new(s(5), ZERO).unwrap();
    let mut machine = Machine::unlocked(pace, s(100));
    assert_eq!(machine.next_tick(), Some(s(110)));
    let actions = machine.step(s(105), probe(Unreachable, s(105)));
    assert!(actions.contains(&Action::BeginLock { cause: Cause::LeaseOver }), "{actions:?}");
}

#[test]
fn an_operators_lock_outlasts_live_probes() {
    let mut machine = Machine::unlocked(pace(), s(100));
    assert_eq!(machine.step(s(101), Input::OperatorLock), [Action::BeginLock { cause: Cause::Operator }]);
    machine.step(s(102), Input::LockFinished);
    for at in 103..120 {
        assert_eq!(machine.step(s(at), probe(Live, s(at))), []);
    }
    assert_eq!(machine.step(s(120), Input::OperatorUnlock), [Action::ProbeNow]);
    assert_eq!(machine.step(s(120), probe(Live, s(120))), [Action::BeginUnlock]);
    // Locked by the operator while it unlocks: it locks as soon as it has.
    machine.step(s(121), Input::OperatorLock);
    assert_eq!(machine.step(s(121), Input::UnlockFinished), [Action::BeginLock { cause: Cause::Operator }]);
}

#[test]
fn a_denial_while_unlocking_locks_right_after() {
    let mut machine = Machine::locked(pace());
    assert_eq!(machine.step(s(100), probe(Live, s(100))), [Action::BeginUnlock]);
    assert_eq!(machine.step(s(101), probe(Denied, s(101))), [Action::ProbeNow]);
    assert_eq!(machine.step(s(101), probe(Denied, s(101))), []);
    assert_eq!(machine.next_tick(), None);
    assert_eq!(machine.step(s(102), Input::UnlockFinished), [Action::BeginLock { cause: Cause::Denied }]);
}

/// An unlock that takes longer than the lease, and a denial in it: the denial is the cause.
#[test]
fn a_denial_outweighs_a_lease_that_ran_out_while_unlocking() {
    let mut machine = Machine::locked(pace());
    machine.step(s(100), probe(Live, s(100)));
    machine.step(s(161), Input::Tick);
    machine.step(s(162), probe(Denied, s(162)));
    machine.step(s(162), probe(Denied, s(162)));
    assert_eq!(machine.step(s(163), Input::UnlockFinished), [Action::BeginLock { cause: Cause::Denied }]);
}

#[test]
fn a_drill_locks_like_a_denial_and_comes_back_by_itself() {
    let mut machine = Machine::unlocked(pace(), s(100));
    assert_eq!(machine.step(s(101), Input::Drill), [Action::BeginLock { cause: Cause::Drill }]);
    assert_eq!(machine.step(s(101), Input::Drill), [Action::Refuse(Refusal::NotUnlocked)]);
    // A live probe during the lock doesn't stop it.
    assert_eq!(machine.step(s(101), probe(Live, s(101))), []);
    assert_eq!(machine.step(s(102), Input::LockFinished), [Action::ProbeNow]);
    assert_eq!(machine.step(s(102), probe(Live, s(102))), [Action::BeginUnlock]);
}

#[test]
fn paces_fit_together_or_are_refused() {
    assert!(Pace::new(ms(999), s(60)).is_err());
    assert!(Pace::new(s(3601), s(60)).is_err());
    assert!(Pace::new(s(5), s(1)).is_err());
    assert!(Pace::new(s(5), s(24 * 3600 + 1)).is_err());
    let pace = Pace::new(s(60), s(30)).unwrap();
    assert_eq!((pace.interval(), pace.deadline()), (s(10), s(5)));
    assert_eq!(Pace::new(s(5), s(300)).unwrap().after(Unreachable), ms(1250));
    assert_eq!(Pace::new(s(1), s(300)).unwrap().after(Unreachable), s(1));
    assert_eq!(Pace::new(s(5), s(300)).unwrap().after(Denied), s(5));
}
