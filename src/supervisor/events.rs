//! Everything that can happen to a mount, in one queue.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::control::{Reply, Request};
use super::lock::Mounted;
use super::status::LockReport;
use super::volume::VolumeError;
use crate::provider::ProviderError;

/// One thing that happened.
pub enum Happened {
    /// The key service answered a probe; `Ok` with its request id.
    Probed(Result<Option<String>, ProviderError>),
    /// An ordinary unwrap succeeded.
    Used,
    /// An ordinary unwrap was denied.
    UseDenied(ProviderError),
    /// A lock has run to its end.
    Locked(Box<LockReport>),
    /// The volume was unlocked and mounted, or could not be.
    Unlocked(Result<Box<Mounted>, Box<VolumeError>>),
    /// The connection of the mount with this number ended, whoever ended it.
    SessionEnded(u64),
    /// A command came through the control socket; the answer goes to the sender.
    Command(Request, Sender<Reply>),
    /// SIGTERM or SIGINT.
    Signal,
}

/// The sending end of the queue; cheap to clone.
pub type Events = Sender<Happened>;

/// A new queue.
pub fn queue() -> (Events, Receiver<Happened>) {
    channel()
}

/// Time since the machine started, suspend included (`CLOCK_BOOTTIME`): a lease must not stand still while the lid is
/// closed.
pub fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
