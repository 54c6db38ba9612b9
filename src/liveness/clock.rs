//! Time that goes on while the machine sleeps, and a way to wait for a moment of it.

use std::time::Duration;

use async_trait::async_trait;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Where the poller has its time from.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Time since boot.
    fn now(&self) -> Duration;
    /// Returns at `moment` or soon after it, at once if it is past. Also when the machine slept over it.
    async fn sleep_until(&self, moment: Duration);
}

/// `CLOCK_BOOTTIME` of the kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct BootClock;

/// Without a timer of the right clock, time is looked at this often.
const SLICE: Duration = Duration::from_secs(1);

#[async_trait]
impl Clock for BootClock {
    fn now(&self) -> Duration {
        let time = clock_gettime(ClockId::Boottime);
        // Neither part is ever negative on this clock.
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    async fn sleep_until(&self, moment: Duration) {
        // Timers of the runtime stand still while the machine sleeps, a timer descriptor on this clock does not.
        if moment > self.now() && wait_by_descriptor(moment).await.is_err() {
            // Out of descriptors: look at the clock now and then.
            while let Some(left) = moment.checked_sub(self.now()).filter(|left| !left.is_zero()) {
                tokio::time::sleep(left.min(SLICE)).await;
            }
        }
    }
}

async fn wait_by_descriptor(moment: Duration) -> std::io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let at = Timespec {
        tv_sec: i64::try_from(moment.as_secs()).unwrap_or(i64::MAX),
        // A time of zero would switch the timer off.
        tv_nsec: i64::from(moment.subsec_nanos().max(1)),
    };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
    timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &once)?;
    // The other constructor is `unsafe` for types that might close or swap their descriptor; `OwnedFd` does neither.
    #[allow(deprecated)]
    let timer = AsyncFd::new(timer)?;
    let _expired = timer.readable().await?;
    Ok(())
}
