//! The customer's quota: at most so many calls a second, and fewer for a while after the service throttled.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::limits::Limits;

/// How long at most until it is asked again whether somebody waits.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);
/// After it was halved, the rate is whole again after this long.
const RECOVERY: Duration = Duration::from_secs(60);
/// Answers of calls that were sent together say "throttled" together: that is one complaint.
const ONE_COMPLAINT: Duration = Duration::from_secs(1);

/// A token bucket.
pub(super) struct Bucket {
    per_second: f64,
    room: f64,
    level: Mutex<Level>,
}

struct Level {
    tokens: f64,
    since: Instant,
    /// Tokens per second now; below `per_second` for a while after a complaint.
    rate: f64,
    complaint: Option<Instant>,
}

impl Bucket {
    /// The bucket starts full.
    pub fn new(limits: Limits, now: Instant) -> Self {
        let (per_second, room) = (f64::from(limits.per_second.max(1)), f64::from(limits.burst.max(1)));
        let level = Level { tokens: room, since: now, rate: per_second, complaint: None };
        Bucket { per_second, room, level: Mutex::new(level) }
    }

    /// Takes a token, or says how long to wait before asking again. What can wait (`background`) leaves the last
    /// quarter of the bucket to what cannot.
    pub fn take(&self, now: Instant, background: bool) -> Result<(), Duration> {
        let need = if background { 1.0 + (self.room / 4.0).ceil().min(self.room - 1.0) } else { 1.0 };
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(level.since).as_secs_f64();
        level.tokens = (level.tokens + passed * level.rate).min(self.room);
        level.rate = (level.rate + passed * self.per_second / RECOVERY.as_secs_f64()).min(self.per_second);
        level.since = level.since.max(now);
        if level.tokens + 1e-9 >= need {
            level.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((need - level.tokens) / level.rate))
    }

    /// The service said that it gets too many calls: half as many from now on, growing again over a minute, and none of
    /// what was saved up.
    pub fn throttled(&self, now: Instant) {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        if level.complaint.is_none_or(|last| now >= last + ONE_COMPLAINT) {
            level.complaint = Some(now);
            level.rate = (level.rate / 2.0).max(1.0);
            level.tokens = 0.0;
        }
    }

    /// Waits for a token.
    pub async fn wait(&self, background: impl Fn() -> bool) {
        while let Err(wait) = self.take(Instant::now(), background()) {
            // A whole millisecond more: the clock's grain would wake us just too early, again and again. And not too
            // long: somebody may have begun to wait for what could wait.
            tokio::time::sleep(wait.min(LONGEST_SLEEP) + Duration::from_millis(1)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(per_second: u32, burst: u32, now: Instant) -> Bucket {
        Bucket::new(Limits { per_second, burst }, now)
    }

    /// Calls given in `seconds`, asked every millisecond.
    fn given(bucket: &Bucket, start: Instant, seconds: u64) -> u32 {
        let ask = |millis| u32::from(bucket.take(start + Duration::from_millis(millis), false).is_ok());
        (0..seconds * 1000).map(ask).sum()
    }

    #[test]
    fn gives_the_burst_and_the_rate_and_no_more() {
        let start = Instant::now();
        for (rate, burst) in [(1_u32, 1), (3, 1), (10, 2), (10, 100), (500, 100)] {
            let given = given(&bucket(rate, burst, start), start, 10);
            assert!(given <= 10 * rate + burst && given + 1 >= 10 * rate + burst, "{rate}, {burst}: {given}");
        }
    }

    #[test]
    fn what_can_wait_leaves_a_quarter_to_what_cannot() {
        let start = Instant::now();
        let bucket = bucket(100, 20, start);
        let background = (0..100).filter(|_| bucket.take(start, true).is_ok()).count();
        let foreground = (0..100).filter(|_| bucket.take(start, false).is_ok()).count();
        assert_eq!((background, foreground), (15, 5));
        // The smallest bucket serves both.
        assert!(super::tests::bucket(1, 1, start).take(start, true).is_ok());
    }

    #[test]
    fn the_told_wait_is_long_enough() {
        let mut now = Instant::now();
        let bucket = bucket(7, 1, now);
        while bucket.take(now, false).is_ok() {}
        for background in [false, true] {
            let wait = bucket.take(now, background).expect_err("empty");
            assert!(bucket.take(now + wait / 2, background).is_err());
            now += wait + Duration::from_millis(1);
            assert!(bucket.take(now, background).is_ok());
        }
    }

    #[test]
    fn a_complaint_halves_the_rate_and_a_minute_gives_it_back() {
        let start = Instant::now();
        let bucket = bucket(100, 50, start);
        // Forty answers to forty calls are one complaint.
        (0..40).for_each(|millis| bucket.throttled(start + Duration::from_millis(millis)));
        let begin = start + Duration::from_millis(40);
        let first = given(&bucket, begin, 2);
        assert!((95..=115).contains(&first), "{first} in the two seconds after the complaint");
        let later = start + Duration::from_secs(70);
        while bucket.take(later, false).is_ok() {}
        let whole = given(&bucket, later, 2);
        assert!((195..=201).contains(&whole), "{whole} a minute later");
        // A service that complains on and on is still asked once a second.
        (0..100).for_each(|n| bucket.throttled(later + Duration::from_secs(2 + n)));
        assert!(given(&bucket, later + Duration::from_secs(102), 3) >= 2);
    }
}
