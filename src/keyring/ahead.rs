//! What is done before anybody asks: unwrapping what a listing suggests, and making keys for files to come.
//!
//! Both give way to opens and creates (fewer calls at once, half of the rate's bucket), try once, and keep quiet for a
//! second after a failure.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::access::{Access, Wanted};
use super::landing::Landing;
use super::{Inner, Way};
use crate::provider::Reason;

/// Unwraps queued files until the access ends.
pub(super) async fn prefetch(inner: Arc<Inner>, access: Arc<Access>, mut queue: mpsc::Receiver<Wanted>) {
    let work = async {
        while let Some(wanted) = queue.recv().await {
            let Ok(turn) = Arc::clone(&access.background).acquire_owned().await else { return };
            if inner.state().is_quiet(Instant::now()) {
                continue;
            }
            // Cached, in flight, refused, under a group key: nothing to do.
            let Ok(Way::Fly(access, flight, wrapped)) = inner.way(&wanted.file, &wanted.slots, true) else { continue };
            let file = wanted.file;
            let landing = Landing { inner: Arc::clone(&inner), access, file, wrapped, flight, landed: false };
            inner.runtime.spawn(async move {
                landing.fly(Reason::Prefetch).await;
                drop(turn);
            });
        }
    };
    access.while_open(work).await;
}

/// Keeps the pool of ready keys until the access ends: fills it when it is below half, drops what is too old.
pub(super) async fn fill(inner: Arc<Inner>, access: Arc<Access>) {
    let work = async {
        // Nothing is made before somebody creates a file, nor again when it grew too old unused.
        let mut asked = false;
        loop {
            let (missing, expiry) = {
                let mut state = inner.state();
                if !state.is_current(&access) {
                    return;
                }
                state.pool_plan(Instant::now())
            };
            if asked && missing > 0 {
                make(&inner, &access, missing).await;
                continue;
            }
            let expired = async {
                match expiry {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = access.pool.notified() => asked = true,
                () = expired => asked = false,
            }
        }
    };
    access.while_open(work).await;
}

async fn make(inner: &Arc<Inner>, access: &Arc<Access>, missing: usize) {
    let runtime = inner.runtime.clone();
    let mut tasks = JoinSet::new();
    for _ in 0..missing {
        let (inner, access) = (Arc::clone(inner), Arc::clone(access));
        tasks.spawn_on(
            async move {
                let _running = access.tally.enter();
                let Ok(_turn) = access.background.acquire().await else { return };
                if inner.state().is_quiet(Instant::now()) {
                    return;
                }
                let Some(made) = access.while_open(inner.make(&access, Reason::Pool)).await else { return };
                let mut state = inner.state();
                if !state.is_current(&access) {
                    return;
                }
                match made {
                    Ok(ready) => state.put_ready(ready),
                    Err(error) => {
                        state.refuse_new(&error, Instant::now());
                        state.hush(Instant::now());
                    }
                }
            },
            &runtime,
        );
    }
    while tasks.join_next().await.is_some() {}
}
