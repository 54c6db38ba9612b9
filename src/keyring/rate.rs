//! The customer's quota: at most so many calls a second.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long at most until it is asked again whether somebody waits.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// A token bucket. It holds a fifth of a second's calls (at least one), so that a few opens after a pause need not wait.
pub(super) struct Bucket {
    per_second: f64,
    room: f64,
    level: Mutex<(f64, Instant)>,
}

impl Bucket {
    /// `per_second` calls from `now` on; the bucket starts full.
    pub fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second.max(1));
        let room = (per_second / 5.0).max(1.0);
        Bucket { per_second, room, level: Mutex::new((room, now)) }
    }

    /// Takes a token, or says how long to wait before asking again. What can wait (`background`) leaves the last half
    /// of the bucket to what cannot.
    pub fn take(&self, now: Instant, background: bool) -> Result<(), Duration> {
        let need = if background { 1.0 + (self.room / 2.0).floor().min(self.room - 1.0) } else { 1.0 };
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, since) = *level;
        let passed = now.saturating_duration_since(since).as_secs_f64();
        let have = (before + passed * self.per_second).min(self.room);
        let enough = have + 1e-9 >= need;
        *level = (if enough { have - 1.0 } else { have }, since.max(now));
        if enough { Ok(()) } else { Err(Duration::from_secs_f64((need - have) / self.per_second)) }
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

    #[test]
    fn gives_the_rate_and_no_more() {
        let start = Instant::now();
        for rate in [1_u32, 3, 10, 1000] {
            let bucket = Bucket::new(rate, start);
            let mut given = 0;
            // Ten seconds, asked every millisecond.
            for millis in 0..10_000 {
                given += u32::from(bucket.take(start + Duration::from_millis(millis), false).is_ok());
            }
            let room = (rate / 5).max(1);
            assert!(given <= 10 * rate + room && given >= 10 * rate - 1, "{rate}: {given}");
        }
    }

    #[test]
    fn what_can_wait_leaves_half_to_what_cannot() {
        let start = Instant::now();
        let bucket = Bucket::new(100, start);
        let background = (0..100).filter(|_| bucket.take(start, true).is_ok()).count();
        let foreground = (0..100).filter(|_| bucket.take(start, false).is_ok()).count();
        assert_eq!((background, foreground), (10, 10));
        // The smallest bucket serves both.
        assert!(Bucket::new(1, start).take(start, true).is_ok());
    }

    #[test]
    fn the_told_wait_is_long_enough() {
        let mut now = Instant::now();
        let bucket = Bucket::new(7, now);
        while bucket.take(now, false).is_ok() {}
        for background in [false, true] {
            let wait = bucket.take(now, background).expect_err("empty");
            assert!(bucket.take(now + wait / 2, background).is_err());
            now += wait + Duration::from_millis(1);
            assert!(bucket.take(now, background).is_ok());
        }
    }
}
