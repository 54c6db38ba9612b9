//! What is done before anybody asks: unwrapping what a listing suggests, and making keys for files to come.
//!
//! Both give way to opens and creates (fewer calls at once, three quarters of the rate's bucket), try once, and keep
//! quiet for a second after a failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::Inner;
use super::access::{Access, Wanted};
use super::landing::{Aim, Landing};
use super::options::KeyError;
use super::way::{Target, Way};
use crate::provider::Reason;

/// What became of a suggestion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suggested {
    /// It is being fetched.
    Taken,
    /// It is here, on its way, or not to be had.
    Needless,
    /// As many keys are here unused as the reader's pace warrants: suggest it again when some were used.
    Full,
    /// Nothing is fetched ahead now: the keyring is locked, the service has just failed, or the keystore is local.
    NotNow,
}

/// Unwraps queued files until the access ends.
pub(super) async fn prefetch(inner: Arc<Inner>, access: Arc<Access>, mut queue: mpsc::Receiver<Wanted>) {
    let work = async {
        while let Some(wanted) = queue.recv().await {
            let Ok(turn) = Arc::clone(&access.background).acquire_owned().await else { return };
            let Some((aim, way)) = begin(&inner, &wanted) else { continue };
            let Way::Fly(access, flight) = way else { continue };
            let landing = Landing { inner: Arc::clone(&inner), access, aim, flight, landed: false };
            inner.runtime.spawn(async move {
                landing.fly(Reason::Prefetch).await;
                drop(turn);
            });
        }
    };
    access.while_open(work).await;
}

/// Begins a call for what is wanted, if there is anything to call for.
fn begin(inner: &Arc<Inner>, wanted: &Wanted) -> Option<(Aim, Way)> {
    let now = Instant::now();
    let mut state = inner.state();
    let Ok(Target::Call(aim, _)) = inner.target(&mut state, &wanted.file, &wanted.slots) else { return None };
    if state.is_quiet(now) {
        state.window.failed(&aim.place);
        return None;
    }
    let way = inner.way(&mut state, &aim, true, now);
    if matches!(way, Err(KeyError::Denied(_) | KeyError::Misconfigured(_))) {
        state.window.failed(&aim.place);
    }
    way.ok().map(|way| (aim, way))
}

/// Keeps the pool of ready keys until the access ends: as many as demand warrants, none that are too old.
pub(super) async fn fill(inner: Arc<Inner>, access: Arc<Access>) {
    let making = Arc::new(Making::default());
    let work = async {
        loop {
            let plan = {
                let mut state = inner.state();
                if !state.is_current(&access) {
                    return;
                }
                state.pool_plan(making.now.load(Ordering::Relaxed), Instant::now())
            };
            (0..plan.missing).for_each(|_| make(&inner, &access, One::more(&making)));
            let again = async {
                match plan.again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = access.pool.notified() => {}
                () = making.fewer.notified() => {}
                () = again => {}
            }
        }
    };
    access.while_open(work).await;
}

/// The keys that are being made.
#[derive(Default)]
struct Making {
    now: AtomicUsize,
    fewer: Notify,
}

/// One of them.
struct One(Arc<Making>);

impl One {
    fn more(making: &Arc<Making>) -> One {
        making.now.fetch_add(1, Ordering::Relaxed);
        One(Arc::clone(making))
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
        self.0.fewer.notify_one();
    }
}

/// Makes one ready key by a task of the runtime.
fn make(inner: &Arc<Inner>, access: &Arc<Access>, one: One) {
    let (inner, access) = (Arc::clone(inner), Arc::clone(access));
    let runtime = inner.runtime.clone();
    runtime.spawn(async move {
        let _running = access.tally.enter();
        let work = async {
            let Ok(_turn) = access.background.acquire().await else { return None };
            if inner.state().is_quiet(Instant::now()) {
                return None;
            }
            let file = inner.new_id().ok()?;
            Some(inner.make(&access, file, Reason::Pool).await)
        };
        let Some(Some(made)) = access.while_open(work).await else { return };
        let mut state = inner.state();
        if !state.is_current(&access) {
            return;
        }
        match made {
            Ok(ready) => state.pool.put(ready),
            Err(KeyError::ArenaFull(_)) => state.pool.no_room(),
            Err(error) => {
                state.refuse_new(&error, Instant::now());
                state.hush(Instant::now());
            }
        }
        drop(state);
        drop(one);
    });
}
