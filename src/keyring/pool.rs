//! Ready keys for files to come: how many there should be, and when which are made.
//!
//! Two things ask for them. *Pace*: as many as were used in the last fifth of a second are kept while files are being
//! made, for a call takes its time. *Bursts*: unpacking an archive uses thousands in a second, more than calls bring in
//! that time, and who did so once mostly does it again. So the pool remembers what the largest burst of the last hour
//! would have needed, and makes that many while nothing else happens, a few at a time. Nothing is ready that nobody used
//! before: a volume that makes no files makes no keys, and in an hour at most a quarter more are made in vain than were
//! used, and four.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::limits::Limits;
use super::options::MAX_POOL;
use super::state::Ready;

/// How long a ready key may wait for its file. Not shorter than [`LAPSE`], or the reserve would be made again for nobody.
pub(super) const READY_FOR: Duration = Duration::from_secs(3600);
/// A burst counts for one to two of these.
const LAPSE: Duration = Duration::from_secs(1800);
/// Ready keys where next to none are used.
const SMALL: usize = 4;
/// The pace is that of about this long, so that what is made in vain stays in proportion.
/// It must be longer than a call takes, or the pool runs dry under a steady demand.
const PACE: Duration = Duration::from_millis(200);
/// The reserve is made when nobody took a key for so long.
const CALM: Duration = Duration::from_secs(1);
/// How long the reserve is left alone after a call for what can wait failed.
const PAUSE: Duration = Duration::from_secs(30);
/// Keys of the reserve made in a second at most: at 0.3 ms of a processor for each, 6 % of one.
const GENTLE: u32 = 200;
/// Keys of the reserve being made at one time at most: a slow service is not pushed.
const AT_ONCE: usize = 8;

pub(super) struct Pool {
    ready: VecDeque<Ready>,
    most: usize,
    /// Kept whether anybody makes files or not.
    floor: usize,
    /// How long from one key of the reserve to the next.
    gap: Duration,
    /// The reserve's next key is not made earlier.
    not_before: Option<Instant>,
    /// Keys that were taken lately, fading, and when this was reckoned.
    demand: (f64, Option<Instant>),
    bursts: Bursts,
}

/// What to make now, and when to look again without being asked to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub missing: usize,
    pub again: Option<Instant>,
}

impl Pool {
    pub fn new(most: usize, floor: usize, limits: Limits) -> Self {
        let most = most.min(MAX_POOL);
        // A quarter of what may be called at all is left to it, so that it never stands in anybody's way.
        let per_second = if limits.per_second == 0 { GENTLE } else { (limits.per_second / 4).clamp(1, GENTLE) };
        Pool {
            ready: VecDeque::new(),
            most,
            floor: floor.min(most),
            gap: Duration::from_secs(1) / per_second,
            not_before: None,
            demand: (0.0, None),
            bursts: Bursts::new(per_second.into()),
        }
    }

    /// A key; `None` when there is none. Either way it was asked for, and the pool grows with that. Also whether whoever
    /// fills it should look: each key that comes in makes it look, so not for each that goes out.
    pub fn take(&mut self, now: Instant) -> (Option<Ready>, bool) {
        self.drop_expired(now);
        self.demand = (self.demand_at(now) + 1.0, Some(now));
        self.bursts.took(now);
        let ready = self.ready.pop_front();
        let left = self.ready.len();
        (ready, left.is_multiple_of(8) || left * 2 < self.at_pace(now))
    }

    pub fn put(&mut self, ready: Ready) {
        if self.ready.len() < self.most {
            self.ready.push_back(ready);
        }
    }

    pub fn len(&self) -> usize {
        self.ready.len()
    }

    pub fn has_ready(&self, now: Instant) -> bool {
        self.ready.back().is_some_and(|youngest| now < youngest.born + READY_FOR)
    }

    /// What to make besides the `making` that are being made.
    pub fn plan(&mut self, making: usize, now: Instant) -> Plan {
        self.drop_expired(now);
        let (have, pace) = (self.ready.len() + making, self.at_pace(now));
        if have * 2 < pace {
            return Plan { missing: pace - have, again: self.expiry() };
        }
        // Whole again when the burst is over: then calls take nothing from it.
        let whole = pace.max(self.reserve(now));
        if have >= whole {
            return Plan { missing: 0, again: self.expiry() };
        }
        let calm = self.demand.1.map(|last| last + CALM).max(self.not_before);
        if calm.is_some_and(|calm| now < calm) || making >= AT_ONCE {
            return Plan { missing: 0, again: calm.filter(|calm| now < *calm).or_else(|| self.expiry()) };
        }
        let next = now + self.gap;
        self.not_before = Some(next);
        Plan { missing: 1, again: Some(next) }
    }

    /// Nothing is made now.
    pub fn wait(&mut self, now: Instant) -> Plan {
        self.drop_expired(now);
        Plan { missing: 0, again: self.not_before.filter(|at| now < *at).or_else(|| self.expiry()) }
    }

    /// A call failed: the reserve can wait.
    pub fn pause(&mut self, now: Instant) {
        self.not_before = Some(now + PAUSE);
    }

    /// No locked memory is left for more: what a reserve is for is not worth the keys of open files.
    pub fn no_room(&mut self) {
        self.bursts.forget();
        self.floor = 0;
        self.demand = (0.0, None);
    }

    /// Gives up every key, and what is known of the demand, as for a lock.
    pub fn drain(&mut self) -> impl Iterator<Item = Ready> + '_ {
        self.bursts.forget();
        self.demand = (0.0, None);
        self.not_before = None;
        self.ready.drain(..)
    }

    fn at_pace(&self, now: Instant) -> usize {
        match self.demand.1 {
            Some(last) if now < last + LAPSE => (SMALL + self.demand_at(now) as usize).min(self.most),
            _ => 0,
        }
    }

    /// A quarter more than the burst needed, so that the next one of its size is over before the pace asks for keys.
    fn reserve(&mut self, now: Instant) -> usize {
        let burst = self.bursts.largest(now);
        (burst + burst / 4).max(self.floor).min(self.most)
    }

    fn demand_at(&self, now: Instant) -> f64 {
        let (demand, since) = self.demand;
        let passed = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        demand * (-passed.as_secs_f64() / PACE.as_secs_f64()).exp()
    }

    fn expiry(&self) -> Option<Instant> {
        self.ready.front().map(|oldest| oldest.born + READY_FOR)
    }

    fn drop_expired(&mut self, now: Instant) {
        // They stand nearly in the order of their birth; one that does not goes a moment later.
        while self.ready.front().is_some_and(|oldest| now >= oldest.born + READY_FOR) {
            self.ready.pop_front();
        }
    }
}

/// What bursts would have needed of a pool that is filled at the gentle rate meanwhile: the highest level of a bucket that
/// each taken key fills and that leaks at that rate. Files made one by one, however long, leave it empty.
struct Bursts {
    leak: f64,
    level: f64,
    at: Option<Instant>,
    /// The highest level in this [`LAPSE`], and in the one before.
    peaks: [usize; 2],
    began: Option<Instant>,
}

impl Bursts {
    fn new(leak: f64) -> Self {
        Bursts { leak, level: 0.0, at: None, peaks: [0; 2], began: None }
    }

    fn took(&mut self, now: Instant) {
        self.turn(now);
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.level = (self.level - passed.as_secs_f64() * self.leak).max(0.0) + 1.0;
        self.at = Some(now);
        self.peaks[0] = self.peaks[0].max(self.level as usize);
    }

    fn largest(&mut self, now: Instant) -> usize {
        self.turn(now);
        // Fewer than this the pool holds anyway.
        Some(self.peaks[0].max(self.peaks[1])).filter(|peak| *peak > SMALL).unwrap_or(0)
    }

    fn turn(&mut self, now: Instant) {
        let began = *self.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began);
        if passed >= LAPSE {
            self.peaks = if passed < LAPSE * 2 { [0, self.peaks[0]] } else { [0; 2] };
            self.began = Some(now);
        }
    }

    fn forget(&mut self) {
        *self = Bursts::new(self.leak);
    }
}
