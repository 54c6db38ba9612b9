//! The calls to the key service between one unlock and the next lock: how many at once, how many a second, how often
//! tried, and who hears of them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::flight::Tally;
use super::options::{KeyError, KeyringOptions, too_late};
use super::rate::Bucket;
use crate::crypto::Secret;
use crate::format::slots::KeySlot;
use crate::format::{FileId, VolumeId};
use crate::provider::{
    ARENA_FULL, Context, KeyCall, Observer, Operation, Provider, ProviderError, Reason, Verdict, Wrapped,
};

/// Pauses between tries: 100 ms doubled up to 2 s, each cut to a random part of at least half.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Prefetches that may wait; more are dropped.
const PREFETCH_QUEUE: usize = 1024;

/// A file that may be opened next.
pub(super) struct Wanted {
    pub file: FileId,
    pub slots: Vec<KeySlot>,
}

/// The right to use the customer's key, from one unlock to the next lock.
pub(super) struct Access {
    pub provider: Arc<dyn Provider>,
    volume: VolumeId,
    tenant: Option<String>,
    deadline: Duration,
    observer: Arc<dyn Observer>,
    closed: watch::Sender<bool>,
    calls: Semaphore,
    /// What can wait holds one of these besides, so that some of `calls` are always left to what cannot.
    pub background: Arc<Semaphore>,
    rate: Option<Bucket>,
    pub prefetch: mpsc::Sender<Wanted>,
    pub pool: Notify,
    pub tally: Arc<Tally>,
}

impl Access {
    pub fn new(
        provider: Arc<dyn Provider>,
        volume: VolumeId,
        options: &KeyringOptions,
        observer: Arc<dyn Observer>,
        now: Instant,
    ) -> (Arc<Self>, mpsc::Receiver<Wanted>) {
        let concurrency = options.concurrency.clamp(2, Semaphore::MAX_PERMITS);
        let (prefetch, queue) = mpsc::channel(PREFETCH_QUEUE);
        let access = Access {
            provider,
            volume,
            tenant: options.tenant.clone(),
            deadline: options.deadline,
            observer,
            closed: watch::Sender::new(false),
            calls: Semaphore::new(concurrency),
            background: Arc::new(Semaphore::new((concurrency * 3 / 4).max(1))),
            rate: (options.limits.per_second > 0).then(|| Bucket::new(options.limits, now)),
            prefetch,
            pool: Notify::new(),
            tally: Arc::default(),
        };
        (Arc::new(access), queue)
    }

    /// Ends everything that runs under this access.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Runs `work` until it is done or the access ends; then what it holds is dropped, and with it wiped.
    pub async fn while_open<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => None,
            done = work => Some(done),
        }
    }

    fn context(&self, file: FileId) -> Context<'_> {
        Context { volume: self.volume, file: Some(file), tenant: self.tenant.as_deref() }
    }

    /// Unwraps a file's key, trying again while there is time and hope.
    /// `background` says whether nobody waits for it yet; that may change meanwhile.
    pub async fn unwrap(
        &self,
        file: FileId,
        blob: &[u8],
        reason: Reason,
        background: impl Fn() -> bool,
    ) -> Result<Secret, KeyError> {
        self.tries(Operation::Unwrap, file, reason, background, || self.provider_unwrap(file, blob)).await
    }

    /// Makes a new file's key, trying again while there is time and hope.
    pub async fn generate(&self, file: FileId, reason: Reason) -> Result<(Secret, Wrapped), KeyError> {
        let background = || reason == Reason::Pool;
        self.tries(Operation::Generate, file, reason, background, || self.provider_generate(file)).await
    }

    /// One try, without waiting for anything but the provider itself: for providers that answer at once.
    pub async fn unwrap_now(&self, file: FileId, blob: &[u8]) -> Result<Secret, KeyError> {
        Ok(self.told(Operation::Unwrap, file, Reason::Open, self.provider_unwrap(file, blob)).await?)
    }

    /// As [`Access::unwrap_now`], for a new file.
    pub async fn generate_now(&self, file: FileId) -> Result<(Secret, Wrapped), KeyError> {
        Ok(self.told(Operation::Generate, file, Reason::Create, self.provider_generate(file)).await?)
    }

    async fn provider_unwrap(&self, file: FileId, blob: &[u8]) -> Result<(Secret, Option<String>), ProviderError> {
        self.provider.unwrap(&self.context(file), blob).await
    }

    async fn provider_generate(&self, file: FileId) -> Result<((Secret, Wrapped), Option<String>), ProviderError> {
        let (key, wrapped) = self.provider.generate(&self.context(file)).await?;
        let request_id = wrapped.request_id.clone();
        Ok(((key, wrapped), request_id))
    }

    /// Tries until the deadline: only an unreachable service is asked again, and only when somebody waits.
    async fn tries<T, F>(
        &self,
        operation: Operation,
        file: FileId,
        reason: Reason,
        background: impl Fn() -> bool,
        call: impl Fn() -> F,
    ) -> Result<T, KeyError>
    where
        F: Future<Output = Result<(T, Option<String>), ProviderError>>,
    {
        let until = Instant::now() + self.deadline;
        let mut pause = FIRST_PAUSE;
        loop {
            let turn = async {
                // The slot before the token, so that no tokens pile up while every slot hangs. What can wait must not
                // hold a slot meanwhile, and is few enough (`background`) not to pile up many.
                let early = if background() { None } else { self.calls.acquire().await.ok() };
                if let Some(rate) = &self.rate {
                    rate.wait(&background).await;
                }
                match early {
                    Some(slot) => Some(slot),
                    None => self.calls.acquire().await.ok(),
                }
            };
            let Ok(slot) = tokio::time::timeout_at(until, turn).await else {
                return Err(too_late(self.deadline).into());
            };
            let timed = async {
                let answer = tokio::time::timeout_at(until, call()).await;
                answer.unwrap_or_else(|_| Err(too_late(self.deadline)))
            };
            let error = match self.told(operation, file, reason, timed).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            drop(slot);
            if let Some(rate) = self.rate.as_ref().filter(|_| error.is_throttling()) {
                rate.throttled(Instant::now());
            }
            let again = Instant::now() + jittered(pause);
            if error.verdict != Verdict::Unreachable || error.code == ARENA_FULL || background() || again >= until {
                return Err(error.into());
            }
            tokio::time::sleep_until(again).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Makes the call and tells the observer.
    async fn told<T>(
        &self,
        operation: Operation,
        file: FileId,
        reason: Reason,
        call: impl Future<Output = Result<(T, Option<String>), ProviderError>>,
    ) -> Result<T, ProviderError> {
        let started = std::time::Instant::now();
        let answer = call.await;
        let latency = started.elapsed();
        let (result, request_id) = match &answer {
            Ok((_, id)) => (Ok(()), id.as_deref()),
            Err(error) => (Err(error), error.request_id.as_deref()),
        };
        let uri = self.provider.uri();
        let file = Some(file);
        self.observer.key_call(&KeyCall { operation, reason, uri, file, result, started, latency, request_id });
        answer.map(|(done, _)| done)
    }
}

/// A random length between half of `pause` and all of it, so that nodes which failed together do not return together.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 2];
    // Without random bytes the whole pause is as good.
    let part = match aws_lc_rs::rand::fill(&mut random) {
        Ok(()) => f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX),
        Err(_) => 1.0,
    };
    pause.mul_f64(0.5 + part / 2.0)
}
