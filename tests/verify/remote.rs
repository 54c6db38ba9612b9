//! A remote key service is asked for many keys at the same time.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hyokfs::crypto::Secret;
use hyokfs::keyring::{Keyring, KeyringOptions, Limits};
use hyokfs::provider::observed::Unobserved;
use hyokfs::provider::{Context, KeyInfo, KeySettings, KeyUri, Provider, ProviderError, Verdict, Wrapped};
use hyokfs::store::Store;
use hyokfs::supervisor::volume::{read_record, unlock};
use hyokfs::verify::{Options, verify};

use crate::common;

const FILES: u32 = 200;
const LATENCY: Duration = Duration::from_millis(50);

/// A local key that answers as slowly as one in a cloud.
struct Far {
    near: Arc<dyn Provider>,
    now: AtomicU32,
    most: AtomicU32,
    calls: AtomicU32,
    /// From this call on the customer says no.
    denied_from: u32,
    /// These calls are not answered.
    lost: Range<u32>,
}

#[async_trait]
impl Provider for Far {
    fn uri(&self) -> &KeyUri {
        self.near.uri()
    }
    fn is_remote(&self) -> bool {
        true
    }
    async fn generate(&self, context: &Context<'_>) -> Result<(Secret, Wrapped), ProviderError> {
        self.near.generate(context).await
    }
    async fn wrap(&self, context: &Context<'_>, key: &Secret) -> Result<Wrapped, ProviderError> {
        self.near.wrap(context, key).await
    }
    async fn unwrap(&self, context: &Context<'_>, blob: &[u8]) -> Result<(Secret, Option<String>), ProviderError> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(LATENCY).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if self.lost.contains(&call) {
            let message = "nobody answers".to_owned();
            return Err(ProviderError {
                verdict: Verdict::Unreachable,
                code: "Lost".into(),
                message,
                request_id: None,
            });
        }
        if call >= self.denied_from {
            let message = "the customer says no".to_owned();
            return Err(ProviderError { verdict: Verdict::Denied, code: "No".into(), message, request_id: None });
        }
        self.near.unwrap(context, blob).await
    }
    async fn probe(&self, context: &Context<'_>, canary: &[u8]) -> Result<Option<String>, ProviderError> {
        self.near.probe(context, canary).await
    }
    async fn describe(&self) -> Result<KeyInfo, ProviderError> {
        self.near.describe().await
    }
}

#[test]
fn many_keys_at_once_and_none_twice() {
    let made = common::Store::new();
    let mount = made.mount();
    for file in 0..FILES {
        std::fs::write(mount.at(format!("{file}")), b"text").unwrap();
    }
    std::fs::hard_link(mount.at("7"), mount.at("seven")).unwrap();
    mount.umount();
    std::fs::write(made.path.join(".hyokfs.tmp.1"), b"").unwrap();

    let store = Store::open(&made.path).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let run = |denied_from, lost, repair| {
        let record = read_record(&store).unwrap();
        let unlocked = runtime.block_on(unlock(record, &KeySettings::default(), Arc::new(Unobserved))).unwrap();
        let (now, most, calls) = Default::default();
        let far = Arc::new(Far { near: unlocked.provider, now, most, calls, denied_from, lost });
        let options = KeyringOptions {
            slot: unlocked.slot,
            limits: Limits { per_second: 0, burst: 1 },
            pool: 0,
            ..KeyringOptions::default()
        };
        let id = unlocked.volume.record.volume;
        let keyring = Keyring::new(far.clone(), runtime.handle().clone(), id, options, Arc::new(Unobserved));
        let start = Instant::now();
        let options = Options { remote: true, repair, ..Options::default() };
        let outcome = verify(&store, &unlocked.volume, &keyring, options, &());
        (outcome, start.elapsed(), far)
    };

    let (report, took, far) = run(u32::MAX, 0..0, false);
    let report = report.unwrap();
    assert_eq!((report.files, report.bytes, report.remaining), (u64::from(FILES) + 1, 4 * u64::from(FILES), 1));
    assert_eq!(far.calls.load(Ordering::SeqCst), FILES, "a key was asked for twice, or not at all");
    assert!(far.most.load(Ordering::SeqCst) >= 8, "only {:?} calls at once", far.most);
    let alone = LATENCY * FILES;
    assert!(took < alone / 4, "{took:?} instead of {alone:?} for one after the other");

    // A short outage is waited for.
    let (report, _, _) = run(u32::MAX, 20..60, false);
    let report = report.unwrap();
    assert_eq!((report.files, report.bytes, report.remaining), (u64::from(FILES) + 1, 4 * u64::from(FILES), 1));

    // A denial in the middle ends it: no report that looks complete, and nothing is changed.
    let (outcome, _, _) = run(50, 0..0, true);
    let said = outcome.unwrap_err().to_string();
    assert!(said.contains("the customer says no") && said.contains("nothing was changed"), "{said}");
    assert!(made.path.join(".hyokfs.tmp.1").exists());
}
