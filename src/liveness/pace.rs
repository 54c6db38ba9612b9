//! How often the key is asked about.

use std::time::Duration;

use crate::provider::Verdict;

/// Intervals and bounds of polling. Made by [`Pace::new`], which sees to it that they fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pace {
    interval: Duration,
    lease: Duration,
    deadline: Duration,
}

/// A poll interval or lease that can't be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPace {
    /// Outside 1 s to 1 h.
    #[error("a poll interval of {0:?} is out of range; give --poll-interval between 1s and 1h (the default is 5s)")]
    Interval(Duration),
    /// Between 0 and 2 s, or over 24 h.
    #[error(
        "a lease of {0:?} is out of range; give --lease between 2s and 24h (the default is 5m), or 0 for none at all"
    )]
    Lease(Duration),
}

/// Fastest polling that an unreachable key service gets.
const FASTEST: Duration = Duration::from_secs(1);

impl Pace {
    /// `interval` (1 s to 1 h) from the start of one probe to the start of the next; `lease` (2 s to 24 h) that a
    /// success holds. A lease of 0 means none: the first answer that is not a yes, also a missing one, locks.
    pub fn new(interval: Duration, lease: Duration) -> Result<Pace, BadPace> {
        let second = Duration::from_secs(1);
        if interval < second || interval > 3600 * second {
            return Err(BadPace::Interval(interval));
        }
        if !lease.is_zero() && (lease < 2 * second || lease > 24 * 3600 * second) {
            return Err(BadPace::Lease(lease));
        }
        // A short lease needs polls that are closer, or it would run out between two of them.
        let interval = if lease.is_zero() { interval } else { interval.min((lease / 3).max(second)) };
        // Long enough for a chain of roles and a slow answer, short enough that the next poll isn't late.
        let deadline = interval.clamp(second, 5 * second);
        Ok(Pace { interval, lease, deadline })
    }

    /// From the start of a probe to the start of the next, while all is well: the given interval, or a third of the
    /// lease where that is shorter (at least 1 s).
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// How long a success holds; zero: until the next answer that is not a yes.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// How long one probe may take before it counts as unreachable.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How long keys may be used after a success at the most. The lease; where that is 0, the time until the next
    /// probe has to be answered.
    pub fn bound(&self) -> Duration {
        if self.lease.is_zero() { self.interval + self.deadline } else { self.lease }
    }

    /// From the start of a probe with this verdict to the start of the next one: the interval, or a quarter of it (at
    /// least 1 s) while nobody knows.
    pub fn after(&self, verdict: Verdict) -> Duration {
        match verdict {
            Verdict::Live | Verdict::Denied => self.interval,
            Verdict::Unreachable | Verdict::Misconfigured => (self.interval / 4).max(FASTEST).min(self.interval),
        }
    }
}
