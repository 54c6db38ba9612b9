//! Every call to the key service, told to whoever keeps the log and the lease.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{Context, KeyInfo, KeyUri, Provider, ProviderError, Verdict, Wrapped};
use crate::crypto::Secret;
use crate::format::FileId;

/// What the key service was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Make and wrap a new key.
    Generate,
    /// Wrap a given key.
    Wrap,
    /// Unwrap a key.
    Unwrap,
    /// Unwrap the canary with fresh credentials.
    Probe,
    /// Tell about the key.
    Describe,
}

/// Why it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A file is opened.
    Open,
    /// A file is created.
    Create,
    /// The poller asks whether the key may still be used.
    Probe,
    /// A directory was listed; its files may be opened next.
    Prefetch,
    /// A key is made ahead for a file to come.
    Pool,
    /// The volume is mounted or unlocked.
    Mount,
    /// The volume is made.
    Init,
    /// Keys are wrapped anew.
    Rotate,
    /// A rehearsal of revocation.
    Drill,
}

impl Operation {
    /// The word that stands in logs.
    pub fn word(self) -> &'static str {
        match self {
            Operation::Generate => "generate",
            Operation::Wrap => "wrap",
            Operation::Unwrap => "unwrap",
            Operation::Probe => "probe",
            Operation::Describe => "describe",
        }
    }
}

impl Reason {
    /// The word that stands in logs.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Open => "open",
            Reason::Create => "create",
            Reason::Probe => "probe",
            Reason::Prefetch => "prefetch",
            Reason::Pool => "pool",
            Reason::Mount => "mount",
            Reason::Init => "init",
            Reason::Rotate => "rotate",
            Reason::Drill => "drill",
        }
    }
}

/// One finished call to the key service.
#[derive(Debug, Clone, Copy)]
pub struct KeyCall<'a> {
    /// What was asked.
    pub operation: Operation,
    /// Why.
    pub reason: Reason,
    /// The key that was asked.
    pub uri: &'a KeyUri,
    /// The file whose key it was; `None` for the volume's own.
    pub file: Option<FileId>,
    /// What came of it.
    pub result: Result<(), &'a ProviderError>,
    /// When the call was sent. A lease renewed by it runs from here: the customer may have said no since.
    pub started: Instant,
    /// How long the answer took.
    pub latency: Duration,
    /// The service's id of the request.
    pub request_id: Option<&'a str>,
}

impl KeyCall<'_> {
    /// The verdict of this call.
    pub fn verdict(&self) -> Verdict {
        self.result.map_or_else(|error| error.verdict, |()| Verdict::Live)
    }

    /// What the call says about the customer's will, where it says anything: `Live` for a successful unwrap or probe
    /// (making or wrapping keys does not prove that they can be unwrapped), `Denied` for a denial of any of them.
    pub fn proves(&self) -> Option<Verdict> {
        match (self.operation, self.verdict()) {
            (Operation::Unwrap | Operation::Probe, Verdict::Live) => Some(Verdict::Live),
            (Operation::Describe, _) => None,
            (_, Verdict::Denied) => Some(Verdict::Denied),
            _ => None,
        }
    }
}

/// Hears of every call. It is called on the thread that made the call, so it must be quick and must not block.
pub trait Observer: Send + Sync {
    /// A call has ended.
    fn key_call(&self, call: &KeyCall<'_>);
}

/// An observer that hears nothing, for tests and one-off commands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn key_call(&self, _call: &KeyCall<'_>) {}
}

/// A provider whose calls, all for one reason, are told to an observer.
pub struct Observed {
    inner: Arc<dyn Provider>,
    observer: Arc<dyn Observer>,
    reason: Reason,
}

impl Observed {
    /// Wraps a provider.
    pub fn new(inner: Arc<dyn Provider>, observer: Arc<dyn Observer>, reason: Reason) -> Self {
        Observed { inner, observer, reason }
    }

    async fn tell<T>(
        &self,
        operation: Operation,
        file: Option<FileId>,
        call: impl Future<Output = Result<T, ProviderError>>,
        request_id: impl Fn(&T) -> Option<&str>,
    ) -> Result<T, ProviderError> {
        let started = Instant::now();
        let answer = call.await;
        let latency = started.elapsed();
        let (result, request_id) = match &answer {
            Ok(done) => (Ok(()), request_id(done)),
            Err(error) => (Err(error), error.request_id.as_deref()),
        };
        let reason = self.reason;
        let uri = self.inner.uri();
        self.observer.key_call(&KeyCall { operation, reason, uri, file, result, started, latency, request_id });
        answer
    }
}

#[async_trait]
impl Provider for Observed {
    fn uri(&self) -> &KeyUri {
        self.inner.uri()
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    async fn generate(&self, context: &Context<'_>) -> Result<(Secret, Wrapped), ProviderError> {
        let call = self.inner.generate(context);
        self.tell(Operation::Generate, context.file, call, |(_, wrapped)| wrapped.request_id.as_deref()).await
    }

    async fn wrap(&self, context: &Context<'_>, key: &Secret) -> Result<Wrapped, ProviderError> {
        let call = self.inner.wrap(context, key);
        self.tell(Operation::Wrap, context.file, call, |wrapped| wrapped.request_id.as_deref()).await
    }

    async fn unwrap(&self, context: &Context<'_>, blob: &[u8]) -> Result<(Secret, Option<String>), ProviderError> {
        let call = self.inner.unwrap(context, blob);
        self.tell(Operation::Unwrap, context.file, call, |(_, id)| id.as_deref()).await
    }

    async fn probe(&self, context: &Context<'_>, canary: &[u8]) -> Result<Option<String>, ProviderError> {
        let call = self.inner.probe(context, canary);
        self.tell(Operation::Probe, context.file, call, |id| id.as_deref()).await
    }

    async fn describe(&self) -> Result<KeyInfo, ProviderError> {
        self.tell(Operation::Describe, None, self.inner.describe(), |_| None).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::*;
    use crate::format::VolumeId;
    use crate::provider::KeySettings;
    use crate::provider::local::{self, Keystore, LocalKey};

    #[derive(Default)]
    struct Heard(Mutex<Vec<Told>>);
    type Told = (Operation, Reason, Option<FileId>, Verdict, Option<Verdict>);

    impl Observer for Heard {
        fn key_call(&self, call: &KeyCall<'_>) {
            assert!(call.started.elapsed() >= call.latency);
            let heard = (call.operation, call.reason, call.file, call.verdict(), call.proves());
            self.0.lock().unwrap().push(heard);
        }
    }

    #[tokio::test]
    async fn every_call_is_told_once_with_what_it_proves() {
        let folder = tempfile::tempdir().unwrap();
        let (path, settings) = (folder.path().join("keys"), KeySettings::default());
        local::ensure(Some(&path), None, &settings).unwrap();
        let heard = Arc::new(Heard::default());
        let key = Arc::new(LocalKey::new(Some(&path), None, &settings));
        let observed = Observed::new(key, heard.clone(), Reason::Drill);
        let file = Some(FileId([1; 16]));
        let context = Context { volume: VolumeId([2; 16]), file, tenant: None };
        let (secret, wrapped) = observed.generate(&context).await.unwrap();
        observed.wrap(&context, &secret).await.unwrap();
        observed.unwrap(&context, &wrapped.blob).await.unwrap();
        observed.probe(&context, &wrapped.blob).await.unwrap();
        observed.describe().await.unwrap();
        Keystore::at(Some(&path), &settings).disable("default").unwrap();
        observed.unwrap(&context, &wrapped.blob).await.unwrap_err();
        observed.generate(&context).await.unwrap_err();
        observed.unwrap(&context, b"x").await.unwrap_err();
        let (live, denied) = (Verdict::Live, Verdict::Denied);
        let expected = [
            (Operation::Generate, file, live, None),
            (Operation::Wrap, file, live, None),
            (Operation::Unwrap, file, live, Some(live)),
            (Operation::Probe, file, live, Some(live)),
            (Operation::Describe, None, live, None),
            (Operation::Unwrap, file, denied, Some(denied)),
            (Operation::Generate, file, denied, Some(denied)),
            (Operation::Unwrap, file, denied, Some(denied)),
        ];
        let expected = expected.map(|(op, file, verdict, proves)| (op, Reason::Drill, file, verdict, proves));
        assert_eq!(*heard.0.lock().unwrap(), expected);
    }
}
