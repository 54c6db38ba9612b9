//! A provider whose behaviour a test sets, on a runtime whose clock stands unless everybody waits.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::options::KeyringOptions;
use super::super::{KeyError, Keyring, Limits};
use crate::crypto::{Secret, kdf};
use crate::format::slots::{KeySlot, Via};
use crate::format::{DirId, FileId, VolumeId};
use crate::provider::{
    ARENA_FULL, Context, KeyCall, KeyInfo, KeyUri, Observer, Operation, Provider, ProviderError, Reason, Verdict,
    Wrapped,
};

pub const VOLUME: VolumeId = VolumeId([3; 16]);
pub const DIR: DirId = DirId([8; 16]);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mood {
    Live,
    Fail(Verdict),
    Throttle,
    /// No locked memory is left.
    Full,
    Hang,
}

pub struct Fake {
    uri: KeyUri,
    seed: u64,
    remote: bool,
    mood: Mutex<Mood>,
    /// How long a call takes.
    pub takes: Mutex<Duration>,
    /// A call of a local provider stands still on its thread between these two.
    pub gate: Mutex<Option<Arc<[Barrier; 2]>>>,
    pub calls: AtomicUsize,
    pub at_once: AtomicUsize,
    pub most_at_once: AtomicUsize,
    /// When calls began, on the runtime's clock.
    pub times: Mutex<Vec<Instant>>,
}

impl Fake {
    pub fn new(remote: bool) -> Arc<Self> {
        static SEED: AtomicU64 = AtomicU64::new(1);
        Arc::new(Fake {
            uri: "awskms:///arn:aws:kms:eu-central-1:111122223333:key/fake".parse().unwrap(),
            seed: SEED.fetch_add(1, Ordering::Relaxed),
            remote,
            mood: Mutex::new(Mood::Live),
            takes: Mutex::new(Duration::from_millis(20)),
            gate: Mutex::new(None),
            calls: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            times: Mutex::new(Vec::new()),
        })
    }

    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// The key of a file: known to the test, different in each test.
    pub fn key_of(&self, file: &FileId) -> [u8; 32] {
        let mut text = self.seed.to_le_bytes().to_vec();
        text.extend_from_slice(b"fake key");
        text.extend_from_slice(file.as_bytes());
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text).as_ref().try_into().unwrap()
    }

    fn secret_of(&self, file: &FileId) -> Secret {
        Secret::copy_from(&self.key_of(file)).unwrap()
    }

    pub fn slots(&self) -> Vec<KeySlot> {
        vec![KeySlot { via: Via::Provider(0), wrapped: b"blob".to_vec() }]
    }

    pub fn commitment(&self, file: &FileId) -> [u8; 32] {
        kdf::commitment(&self.secret_of(file), file.as_bytes()).unwrap()
    }

    pub fn get(&self, keyring: &Keyring, file: &FileId) -> Result<Arc<Secret>, KeyError> {
        keyring.get(file, &self.slots(), &self.commitment(file))
    }

    async fn call(&self, file: Option<FileId>) -> Result<Secret, ProviderError> {
        struct Leave<'a>(&'a AtomicUsize);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.calls.fetch_add(1, Ordering::SeqCst);
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        let _leave = Leave(&self.at_once);
        if self.remote {
            self.times.lock().unwrap().push(Instant::now());
            // The key is already here while the call goes on, as it is in a client that decodes an answer.
            let key = self.secret_of(&file.unwrap());
            let takes = *self.takes.lock().unwrap();
            tokio::time::sleep(takes).await;
            drop(key);
        }
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            for barrier in gate.iter() {
                barrier.wait();
            }
        }
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Live => Ok(self.secret_of(&file.unwrap())),
            Mood::Hang => std::future::pending().await,
            Mood::Fail(_) | Mood::Throttle | Mood::Full => {
                let (verdict, code) = match mood {
                    Mood::Fail(verdict) => (verdict, "Fake"),
                    Mood::Full => (Verdict::Unreachable, ARENA_FULL),
                    _ => (Verdict::Unreachable, "ThrottlingException"),
                };
                let (code, message) = (code.to_owned(), "as told".to_owned());
                Err(ProviderError { verdict, code, message, request_id: Some("r-1".to_owned()) })
            }
        }
    }
}

#[async_trait]
impl Provider for Fake {
    fn uri(&self) -> &KeyUri {
        &self.uri
    }
    fn is_remote(&self) -> bool {
        self.remote
    }
    async fn generate(&self, context: &Context<'_>) -> Result<(Secret, Wrapped), ProviderError> {
        assert_eq!((context.volume, context.tenant), (VOLUME, Some("acme")));
        let key = self.call(context.file).await?;
        Ok((key, Wrapped { blob: context.file.unwrap().as_bytes().to_vec(), request_id: Some("g-1".to_owned()) }))
    }
    async fn wrap(&self, _: &Context<'_>, _: &Secret) -> Result<Wrapped, ProviderError> {
        unimplemented!()
    }
    async fn unwrap(&self, context: &Context<'_>, _: &[u8]) -> Result<(Secret, Option<String>), ProviderError> {
        assert_eq!((context.volume, context.tenant), (VOLUME, Some("acme")));
        Ok((self.call(context.file).await?, Some("u-1".to_owned())))
    }
    async fn probe(&self, _: &Context<'_>, _: &[u8]) -> Result<Option<String>, ProviderError> {
        unimplemented!()
    }
    async fn describe(&self) -> Result<KeyInfo, ProviderError> {
        unimplemented!()
    }
}

/// What an observer heard.
#[derive(Default)]
pub struct Heard(pub Mutex<Vec<Told>>);

/// What was asked and why, its verdict, what it proves, and the request id.
pub type Told = (Operation, Reason, Verdict, Option<Verdict>, Option<String>);

impl Observer for Heard {
    fn key_call(&self, call: &KeyCall<'_>) {
        assert!(call.file.is_some());
        let id = call.request_id.map(str::to_owned);
        self.0.lock().unwrap().push((call.operation, call.reason, call.verdict(), call.proves(), id));
    }
}

impl Heard {
    pub fn reasons(&self, reason: Reason) -> usize {
        self.0.lock().unwrap().iter().filter(|heard| heard.1 == reason).count()
    }
}

/// How a paused clock runs while nobody has anything to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    /// A millisecond at a time.
    Creeps,
    /// To the next timer.
    Jumps,
    Stands,
}

pub struct World {
    pub fake: Arc<Fake>,
    pub keyring: Arc<Keyring>,
    pub heard: Arc<Heard>,
    stop: Arc<tokio::sync::Notify>,
    clock: Arc<watch::Sender<Clock>>,
    driver: Option<std::thread::JoinHandle<()>>,
    pub runtime: tokio::runtime::Handle,
}

pub fn options() -> KeyringOptions {
    let limits = Limits { per_second: 0, burst: 1 };
    KeyringOptions { tenant: Some("acme".to_owned()), limits, concurrency: 32, ..KeyringOptions::default() }
}

impl World {
    /// A keyring on a runtime of one thread whose clock is paused: while tasks wait for time it runs a millisecond at a
    /// time, and it jumps only in [`World::pass`], so that no test outruns a far-off timer.
    pub fn paused(remote: bool, options: KeyringOptions) -> Self {
        Self::new(remote, options, true)
    }

    /// A keyring on a runtime with the real clock.
    pub fn real(remote: bool, options: KeyringOptions) -> Self {
        Self::new(remote, options, false)
    }

    fn new(remote: bool, options: KeyringOptions, paused: bool) -> Self {
        let stop = Arc::new(tokio::sync::Notify::new());
        let stopped = Arc::clone(&stop);
        let clock = Arc::new(watch::Sender::new(if paused { Clock::Creeps } else { Clock::Jumps }));
        let mut clocks = clock.subscribe();
        let (give, take) = std::sync::mpsc::channel();
        let driver = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(paused).build().unwrap();
            give.send(runtime.handle().clone()).unwrap();
            runtime.spawn(async move {
                // A timer of this task would let the clock run on after the last jump.
                loop {
                    let clock = *clocks.borrow_and_update();
                    match clock {
                        Clock::Creeps => tokio::time::sleep(Duration::from_millis(1)).await,
                        Clock::Jumps => clocks.changed().await.unwrap_or_default(),
                        Clock::Stands => tokio::task::yield_now().await,
                    }
                    if clock != Clock::Jumps {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                }
            });
            runtime.block_on(stopped.notified());
        });
        let runtime = take.recv().unwrap();
        let fake = Fake::new(remote);
        let heard = Arc::new(Heard::default());
        let keyring = Keyring::new(
            Arc::clone(&fake) as Arc<dyn Provider>,
            runtime.clone(),
            VOLUME,
            options,
            Arc::clone(&heard) as Arc<dyn Observer>,
        );
        World { fake, keyring, heard, stop, clock, driver: Some(driver), runtime }
    }

    pub fn get(&self, file: &FileId) -> Result<Arc<Secret>, KeyError> {
        self.fake.get(&self.keyring, file)
    }

    /// Lets `time` pass on the runtime's clock.
    pub fn pass(&self, time: Duration) {
        self.run(async move { tokio::time::sleep(time).await });
    }

    /// Runs `work` on the runtime, whose clock jumps meanwhile: between its steps no time passes but what it waits for.
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (give, take) = std::sync::mpsc::channel();
        let clock = Arc::clone(&self.clock);
        self.runtime.spawn(async move {
            let before = clock.send_replace(Clock::Jumps);
            let result = work.await;
            clock.send_replace(before);
            give.send(result).unwrap();
        });
        take.recv().unwrap()
    }

    /// Runs `work`, whose calls must take no time, while the clock stands.
    pub fn at_once<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = self.clock.send_replace(Clock::Stands);
        let result = work();
        self.clock.send_replace(before);
        result
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.notify_one();
        self.driver.take().unwrap().join().unwrap();
    }
}

pub fn id(number: u64) -> FileId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    FileId(bytes)
}
