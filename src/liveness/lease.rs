//! How long the last yes of the customer holds.

use std::time::Duration;

/// The last successful unwrap and how long it holds. A value: whoever shows a status takes a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// When the last successful unwrap was *asked* (time since boot): the customer's yes is no younger than that.
    /// `None` if there was none yet.
    pub last_success: Option<Duration>,
    /// How long it holds.
    pub lease: Duration,
}

impl Lease {
    /// What is left of it at `now`; zero once it is over, or if there never was a success.
    pub fn remaining(&self, now: Duration) -> Duration {
        self.end().map_or(Duration::ZERO, |end| end.saturating_sub(now))
    }

    /// Whether it is over at `now`.
    pub fn is_over(&self, now: Duration) -> bool {
        self.end().is_none_or(|end| now >= end)
    }

    /// When it ends (time since boot); `None` if there never was a success.
    pub fn end(&self) -> Option<Duration> {
        Some(self.last_success?.saturating_add(self.lease))
    }

    /// Takes note of a success that was asked at `asked`. An older one than the last changes nothing.
    pub fn renew(&mut self, asked: Duration) {
        self.last_success = self.last_success.max(Some(asked));
    }
}
