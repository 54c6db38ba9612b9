//! Polls the customer's key: asks, at a pace, the one question that a revocation answers with no, and posts the answers.
//!
//! The poller decides nothing. It knows only two things that must not wait for a decision: the first denied answer is
//! confirmed at once, and a key service that doesn't answer is asked more often. What follows from the answers is the
//! state machine's, in `supervisor::state`, which uses the same [`Pace`].
//!
//! All times are spans since boot on `CLOCK_BOOTTIME`, which goes on while the machine sleeps: a lease that ran out in
//! a suspended laptop or virtual machine has run out.

mod clock;
mod lease;
mod pace;
mod poller;

#[cfg(test)]
mod tests;

pub use clock::{BootClock, Clock};
pub use lease::Lease;
pub use pace::{BadPace, Pace};
pub use poller::{Answer, PollHandle, Probe, ProviderProbe, spawn};
