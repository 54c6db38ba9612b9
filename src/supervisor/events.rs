//! Everything that can happen to a mount, in one queue.

use std::sync::mpsc::Sender;
use std::time::Duration;

use super::control;
use super::lock::Mounted;
use super::state;
use super::status::LockReport;
use super::volume::VolumeError;
use crate::liveness::{Answer, BootClock, Clock};

/// Why a volume could not be opened, and its mount if that is held: it goes on to be.
pub type StillLocked = (Box<VolumeError>, Option<Box<Mounted>>);

/// One thing that happened.
pub enum Happened {
    /// The key service answered a probe.
    Probed(Answer),
    /// The key service answered an ordinary call.
    Used(state::Reply),
    /// A lock has run to its end; with the mount, if that is held.
    Locked(Box<LockReport>, Option<Box<Mounted>>),
    /// The volume was unlocked and mounted, or could not be; then with the mount that is still held.
    Unlocked(Result<Box<Mounted>, StillLocked>),
    /// The connection of the mount with this number ended, whoever ended it.
    SessionEnded(u64),
    /// A command came through the control socket; the answer goes to the sender.
    Command(control::Request, Sender<control::Reply>),
    /// SIGTERM or SIGINT.
    Signal,
}

/// Time since the machine started, suspend included (`CLOCK_BOOTTIME`): a lease must not stand still while the lid is
/// closed.
pub fn now() -> Duration {
    BootClock.now()
}
