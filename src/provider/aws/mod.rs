//! AWS KMS: `GenerateDataKey`, `Encrypt` and `Decrypt` with an encryption context, under a role of the customer's.
//!
//! One client per key, made once. A call costs one signature and one HTTP exchange; deadline, retries and credentials
//! are handled here instead of in the SDK's layers, because here a refusal of STS keeps its code and a call its price.
//!
//! Plaintext keys go into a [`Secret`] at once and the SDK's buffer is wiped. The copies that the SDK makes inside (bodies
//! of requests and answers, as base64) are out of reach here; the process's allocator wipes them when they are freed.

mod check;
mod evidence;
mod http;
mod session;
mod verdict;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::StalledStreamProtectionConfig;
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use zeroize::Zeroizing;

use super::{Context, KeyInfo, KeySettings, KeyUri, Provider, ProviderError, Verdict, Wrapped};
use crate::crypto::Secret;
use crate::format::FileId;

use evidence::{Evidence, Kind, Source};
use http::misconfigured;
use session::{Sessions, Slot};
use verdict::{Operation, Situation, judge};

pub(super) use check::check;
pub use session::session_name;

/// Context keys, readable in the customer's CloudTrail and usable in the conditions of their policies
/// (`kms:EncryptionContext:hyokfs:volume`). Values are ids in lowercase hex.
pub const CONTEXT_VOLUME: &str = "hyokfs:volume";
/// The file's id; absent for the volume secret and the canary.
pub const CONTEXT_FILE: &str = "hyokfs:file";
/// The vendor's name for the customer; absent where none was given.
pub const CONTEXT_TENANT: &str = "hyokfs:tenant";

/// Longest time until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3100);
/// Tries of one call, the first included.
const TRIES: u32 = 3;
/// A single try is never cut shorter than this, unless the deadline is shorter still.
const SHORTEST_TRY: Duration = Duration::from_secs(1);
/// Pause before the second try; twice as long before the third.
const FIRST_PAUSE: Duration = Duration::from_millis(60);

/// The encryption context of one key: what KMS binds the blob to.
pub fn encryption_context(context: &Context<'_>) -> HashMap<String, String> {
    let mut map = HashMap::with_capacity(3);
    map.insert(CONTEXT_VOLUME.to_owned(), context.volume.to_string());
    if let Some(file) = context.file {
        map.insert(CONTEXT_FILE.to_owned(), file.to_string());
    }
    if let Some(tenant) = context.tenant {
        map.insert(CONTEXT_TENANT.to_owned(), tenant.to_owned());
    }
    map
}

/// Builds the client of the key `arn`. Asks no service; the first call does.
///
/// # Errors
/// [`Verdict::Misconfigured`] for an ARN, endpoint or certificate file that can't be used.
pub async fn connect(arn: &str, settings: &KeySettings) -> Result<Arc<dyn Provider>, ProviderError> {
    Ok(Arc::new(AwsKms::new(arn, settings).await?))
}

/// One AWS KMS key.
pub(super) struct AwsKms {
    uri: KeyUri,
    arn: String,
    client: Client,
    sessions: Sessions,
    /// A second client whose credentials are set anew at each probe.
    probe: tokio::sync::Mutex<Probe>,
    grant_tokens: Vec<String>,
    /// KMS refused the grant tokens once: the grant has spread, or is gone.
    tokens_refused: AtomicBool,
    worked_before: AtomicBool,
    deadline: Duration,
}

struct Probe {
    client: Client,
    slot: Slot,
}

impl AwsKms {
    pub(super) async fn new(arn: &str, settings: &KeySettings) -> Result<Self, ProviderError> {
        let uri: KeyUri = format!("awskms:///{arn}")
            .parse()
            .map_err(|error: super::uri::BadKeyUri| misconfigured("InvalidArn", error.to_string()))?;
        let region = arn.split(':').nth(3).unwrap_or_default().to_owned();
        for endpoint in settings.endpoint.iter().chain(&settings.sts_endpoint) {
            http::check_endpoint(endpoint)?;
        }
        let direct = settings.endpoint.iter().chain(&settings.sts_endpoint).map(String::as_str);
        let proxy = http::proxy(direct, |name| std::env::var(name).ok())?;
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(Region::new(region.clone()))
            .http_client(http::client(settings.ca_file.as_deref(), proxy)?)
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build());
        if let Some(profile) = &settings.profile {
            loader = loader.profile_name(profile);
        }
        let base = loader.load().await;
        let Some(node) = base.credentials_provider() else {
            return Err(misconfigured("NoCredentials", "the AWS configuration switches credentials off".to_owned()));
        };
        let sessions = Sessions::new(&base, node, &region, settings);
        let build = |slot: &Slot| {
            let mut config = aws_sdk_kms::config::Builder::from(&base)
                .region(Region::new(region.clone()))
                .endpoint_resolver(http::PinnedEndpoint::default())
                .credentials_provider(SharedCredentialsProvider::new(slot.clone()))
                .identity_cache(slot.clone())
                .retry_config(RetryConfig::disabled())
                .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
            if settings.endpoint.is_some() {
                config.set_endpoint_url(settings.endpoint.clone());
            }
            Client::from_conf(config.build())
        };
        let slot = Slot::default();
        Ok(AwsKms {
            uri,
            arn: arn.to_owned(),
            client: build(&sessions.shared),
            probe: tokio::sync::Mutex::new(Probe { client: build(&slot), slot }),
            sessions,
            grant_tokens: settings.grant_tokens.clone(),
            tokens_refused: AtomicBool::new(false),
            worked_before: AtomicBool::new(settings.worked_before),
            deadline: settings.call_deadline().max(Duration::from_millis(1)),
        })
    }

    fn tokens(&self) -> Option<Vec<String>> {
        let send = !self.grant_tokens.is_empty() && !self.tokens_refused.load(Ordering::Relaxed);
        send.then(|| self.grant_tokens.clone())
    }

    fn judge(&self, operation: Operation, evidence: &Evidence) -> ProviderError {
        judge(
            evidence,
            &Situation {
                key: &self.arn,
                role: self.sessions.customer_role(),
                operation,
                worked_before: self.worked_before.load(Ordering::Relaxed),
            },
        )
    }

    /// Makes one call within the deadline: again after what passes, with new credentials after "expired", without grant
    /// tokens after "unknown grant token". `credentials` may take the whole deadline, each `once` a part of it.
    async fn call<T, C, F>(
        &self,
        operation: Operation,
        credentials: impl Fn() -> C,
        once: impl Fn() -> F,
    ) -> Result<T, ProviderError>
    where
        C: Future<Output = Result<(), Evidence>>,
        F: Future<Output = Result<T, Evidence>>,
    {
        let until = Instant::now() + self.deadline;
        let one_try = (self.deadline / TRIES).max(SHORTEST_TRY);
        let mut tries = 0;
        let mut renewed = false;
        loop {
            tries += 1;
            let outcome = match within(until, Duration::MAX, Source::Credentials, credentials()).await {
                Ok(()) => within(until, one_try, Source::Kms, once()).await,
                Err(evidence) => Err(evidence),
            };
            let mut evidence = match outcome {
                Ok(given) => return Ok(given),
                Err(evidence) => evidence,
            };
            let pause = FIRST_PAUSE * tries + jitter();
            let time_left = Instant::now() + pause < until;
            if evidence.is_stale_session() && !renewed && time_left {
                renewed = true;
                self.sessions.forget();
                continue;
            }
            if evidence.code.as_deref() == Some("InvalidGrantTokenException")
                && !self.tokens_refused.swap(true, Ordering::Relaxed)
                && !self.grant_tokens.is_empty()
            {
                continue;
            }
            if evidence.is_passing() && tries < TRIES && time_left {
                tokio::time::sleep(pause).await;
                continue;
            }
            if evidence.needs_key_state() {
                let limit = until.saturating_duration_since(Instant::now()).max(SHORTEST_TRY);
                evidence.key_state = tokio::time::timeout(limit, self.key_state()).await.ok().flatten();
            }
            return Err(self.judge(operation, &evidence));
        }
    }

    /// One try of `call` within the deadline: what check tries, it tries once.
    async fn limit<T>(&self, call: impl Future<Output = Result<T, Evidence>>) -> Result<T, Evidence> {
        within(Instant::now() + self.deadline, Duration::MAX, Source::Kms, call).await
    }

    /// Like [`AwsKms::limit`], with a good session for the shared client.
    async fn limit_in_session<T>(&self, call: impl Future<Output = Result<T, Evidence>>) -> Result<T, Evidence> {
        let both = async {
            self.sessions.ensure().await?;
            call.await
        };
        self.limit(both).await
    }

    /// The key's state, where DescribeKey gives it.
    async fn key_state(&self) -> Option<String> {
        let answer = self.client.describe_key().key_id(&self.arn).set_grant_tokens(self.tokens()).send().await.ok()?;
        Some(answer.key_metadata?.key_state?.as_str().to_owned())
    }

    /// A success: from now on a "not found" or "access denied" is the customer's no.
    fn worked(&self) {
        self.worked_before.store(true, Ordering::Relaxed);
    }

    /// The answer must come from our key: KMS names the key that it used.
    fn check_key(&self, answered: Option<&str>) -> Result<(), ProviderError> {
        let id = self.arn.rsplit('/').next().unwrap_or(&self.arn);
        if answered.is_none_or(|answered| answered.ends_with(id)) {
            return Ok(());
        }
        Err(misconfigured(
            "IncorrectKey",
            format!(
                "the service answered with the key {} instead of {}; check the endpoint setting",
                answered.unwrap_or_default(),
                self.arn
            ),
        ))
    }

    /// Moves the plaintext into a [`Secret`] and wipes the SDK's buffer.
    fn secret(&self, plaintext: Option<Blob>) -> Result<Secret, ProviderError> {
        let buffer = Zeroizing::new(plaintext.map(Blob::into_inner).unwrap_or_default());
        if buffer.len() != 32 {
            return Err(misconfigured(
                "WrongLength",
                format!(
                    "{} gave a key of {} bytes instead of 32; the blob is not one of hyokfs",
                    self.arn,
                    buffer.len()
                ),
            ));
        }
        Secret::from_fn(|secret| secret.copy_from_slice(&buffer))
            .map_err(|full| misconfigured("ArenaFull", full.to_string()))
    }

    async fn decrypt(
        &self,
        client: &Client,
        context: &Context<'_>,
        blob: &[u8],
    ) -> Result<(Option<Blob>, Option<String>, Option<String>), Evidence> {
        let answer = client
            .decrypt()
            .key_id(&self.arn)
            .ciphertext_blob(Blob::new(blob))
            .set_encryption_context(Some(encryption_context(context)))
            .set_grant_tokens(self.tokens())
            .send()
            .await
            .map_err(|error| Evidence::of(Source::Kms, &error))?;
        let request_id = answer.request_id().map(str::to_owned);
        Ok((answer.plaintext, answer.key_id, request_id))
    }
}

/// What `call` gives, until `until` and for `longest` at most.
async fn within<T>(
    until: Instant,
    longest: Duration,
    source: Source,
    call: impl Future<Output = Result<T, Evidence>>,
) -> Result<T, Evidence> {
    let limit = longest.min(until.saturating_duration_since(Instant::now()));
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        Err(Evidence::new(source, Kind::Timeout, format!("no answer within {} ms", limit.as_millis())))
    })
}

/// Up to 31 ms, so that many callers don't try again in step.
fn jitter() -> Duration {
    let mut byte = [0; 1];
    // Without randomness the pause is merely regular.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    Duration::from_millis(u64::from(byte[0] >> 3))
}

#[async_trait]
impl Provider for AwsKms {
    fn uri(&self) -> &KeyUri {
        &self.uri
    }

    fn is_remote(&self) -> bool {
        true
    }

    async fn generate(&self, context: &Context<'_>) -> Result<(Secret, Wrapped), ProviderError> {
        let answer = self
            .call(
                Operation::GenerateDataKey,
                || self.sessions.ensure(),
                || async {
                    self.client
                        .generate_data_key()
                        .key_id(&self.arn)
                        .key_spec(DataKeySpec::Aes256)
                        .set_encryption_context(Some(encryption_context(context)))
                        .set_grant_tokens(self.tokens())
                        .send()
                        .await
                        .map_err(|error| Evidence::of(Source::Kms, &error))
                },
            )
            .await?;
        let request_id = answer.request_id().map(str::to_owned);
        let secret = self.secret(answer.plaintext)?;
        self.check_key(answer.key_id.as_deref())?;
        let blob = blob_of(answer.ciphertext_blob, &self.arn)?;
        self.worked();
        Ok((secret, Wrapped { blob, request_id }))
    }

    async fn wrap(&self, context: &Context<'_>, key: &Secret) -> Result<Wrapped, ProviderError> {
        let answer = self
            .call(
                Operation::Encrypt,
                || self.sessions.ensure(),
                || async {
                    self.client
                        .encrypt()
                        .key_id(&self.arn)
                        .plaintext(Blob::new(&key.expose()[..]))
                        .set_encryption_context(Some(encryption_context(context)))
                        .set_grant_tokens(self.tokens())
                        .send()
                        .await
                        .map_err(|error| Evidence::of(Source::Kms, &error))
                },
            )
            .await?;
        let request_id = answer.request_id().map(str::to_owned);
        self.check_key(answer.key_id.as_deref())?;
        let blob = blob_of(answer.ciphertext_blob, &self.arn)?;
        self.worked();
        Ok(Wrapped { blob, request_id })
    }

    async fn unwrap(&self, context: &Context<'_>, blob: &[u8]) -> Result<(Secret, Option<String>), ProviderError> {
        let (plaintext, key, request_id) = self
            .call(Operation::Decrypt, || self.sessions.ensure(), || self.decrypt(&self.client, context, blob))
            .await?;
        let secret = self.secret(plaintext)?;
        self.check_key(key.as_deref())?;
        self.worked();
        Ok((secret, request_id))
    }

    async fn probe(&self, context: &Context<'_>, canary: &[u8]) -> Result<Option<String>, ProviderError> {
        let probe = self.probe.lock().await;
        let assume = || async {
            probe.slot.put(Some(self.sessions.fresh().await?));
            Ok(())
        };
        let outcome = self.call(Operation::Decrypt, assume, || self.decrypt(&probe.client, context, canary)).await;
        let session = probe.slot.take();
        let (plaintext, key, request_id) = outcome?;
        // The session just proved good: ordinary calls go on with it.
        self.sessions.shared.put(session);
        drop(self.secret(plaintext)?);
        self.check_key(key.as_deref())?;
        self.worked();
        Ok(request_id)
    }

    async fn describe(&self) -> Result<KeyInfo, ProviderError> {
        let answer = self
            .call(
                Operation::DescribeKey,
                || self.sessions.ensure(),
                || async {
                    self.client
                        .describe_key()
                        .key_id(&self.arn)
                        .set_grant_tokens(self.tokens())
                        .send()
                        .await
                        .map_err(|error| Evidence::of(Source::Kms, &error))
                },
            )
            .await?;
        let Some(key) = answer.key_metadata else {
            return Err(misconfigured("UnreadableAnswer", format!("DescribeKey told nothing about {}", self.arn)));
        };
        let state = key.key_state.as_ref().map_or("unknown", |state| state.as_str()).to_owned();
        let kind = key.key_spec.as_ref().map_or("unknown", |spec| spec.as_str()).to_owned();
        Ok(KeyInfo { id: key.arn.unwrap_or_else(|| self.arn.clone()), state, kind })
    }
}

fn blob_of(blob: Option<Blob>, arn: &str) -> Result<Vec<u8>, ProviderError> {
    match blob.map(Blob::into_inner) {
        Some(blob) if !blob.is_empty() => Ok(blob),
        _ => Err(ProviderError {
            verdict: Verdict::Unreachable,
            code: "UnreadableAnswer".to_owned(),
            message: format!("what answered for {arn} gave no wrapped key; check the endpoint setting"),
            request_id: None,
        }),
    }
}
