//! Azure Key Vault and Managed HSM.
//!
//! A key of a vault (RSA, software or HSM) wraps with RSA-OAEP-256; an AES key of a managed HSM with A256KW. What is
//! stored is described in [`blob`]: it names the key version that wrapped, and is bound to volume, file and tenant.
//! RSA wrapping is done here with the public key (see [`public`]) unless `azure-remote-wrap` is set. Unwrapping is
//! always the service's. The probe unwraps with a token that was obtained for it alone, because a token outlives the
//! principal it was given to by up to 90 minutes.

pub mod blob;
mod certificate;
mod check;
mod credential;
mod http;
mod public;
pub mod verdict;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use azure_core::http::headers::HeaderName;
use azure_core::http::{ClientMethodOptions, Context as SdkContext, Response};
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, KeyClientGetKeyOptions, KeyClientUnwrapKeyOptions, KeyClientWrapKeyOptions,
    KeyOperationParameters, KeyOperationResult,
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use zeroize::Zeroizing;

use super::{ARENA_FULL, Context, KeyInfo, KeySettings, KeyUri, Provider, ProviderError, Verdict, Wrapped};
use crate::crypto::Secret;
use blob::{Algorithm, Blob, BlobError, KeyId, is_word};
pub(super) use check::check;
use credential::Credentials;
use http::{Http, Mark, mistake};
use public::{Facts, State};
use verdict::{Asked, Operation, judge, timed_out};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
/// How long the key's public part and attributes are believed.
const FACTS_FRESH: Duration = Duration::from_secs(300);
/// Tries of one call, the first included.
const TRIES: u32 = 3;
/// The pause before the second try; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(80);

/// A key in a vault or a managed HSM.
pub struct AzureKey {
    uri: KeyUri,
    label: String,
    host: String,
    name: String,
    version: Option<String>,
    remote_wrap: bool,
    deadline: Duration,
    worked: AtomicBool,
    http: Http,
    credentials: Credentials,
    client: RwLock<Arc<KeyClient>>,
    facts: Mutex<Option<(Instant, Arc<Facts>)>>,
    /// Something was denied since the facts were asked for.
    facts_doubtful: AtomicBool,
}

/// Prepares the use of `https://HOST/keys/NAME[/VERSION]`. Nothing is asked of the network yet.
///
/// # Errors
/// [`Verdict::Misconfigured`] if the name, the credential, a file or an address in `settings` can't be used.
pub async fn connect(
    host: &str,
    name: &str,
    version: Option<&str>,
    settings: &KeySettings,
) -> Result<Arc<dyn Provider>, ProviderError> {
    Ok(Arc::new(AzureKey::new(host, name, version, settings)?))
}

impl AzureKey {
    /// As [`connect`].
    pub fn new(host: &str, name: &str, version: Option<&str>, settings: &KeySettings) -> Result<Self, ProviderError> {
        let bad = |what: &str| {
            mistake(
                "KeyName",
                format!(
                    "azurekeyvault://{host}/keys/{name} can't be: {what}; copy the key's identifier from `az keyvault key show --query key.kid`"
                ),
            )
        };
        let (bare, port) = host.split_once(':').map_or((host, None), |(bare, port)| (bare, Some(port)));
        if !is_word(bare, b"-.", 128) || port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(bad("the host is no host name"));
        }
        if !is_word(name, b"-", 127) {
            return Err(bad("a key's name has 1 to 127 letters, digits and hyphens"));
        }
        if version.is_some_and(|version| !is_word(version, b"", 64)) {
            return Err(bad("a key's version has only letters and digits"));
        }
        let uri =
            KeyUri::AzureKeyVault { host: host.to_owned(), name: name.to_owned(), version: version.map(str::to_owned) };
        let http = Http::new(host, settings)?;
        let credentials = Credentials::new(host, settings)?;
        let client = RwLock::new(new_client(host, &http, &credentials)?);
        Ok(AzureKey {
            label: uri.to_string(),
            uri,
            host: host.to_ascii_lowercase(),
            name: name.to_owned(),
            version: version.map(str::to_owned),
            remote_wrap: settings.azure_remote_wrap,
            deadline: settings.call_deadline(),
            worked: AtomicBool::new(settings.worked_before),
            http,
            credentials,
            client,
            facts: Mutex::new(None),
            facts_doubtful: AtomicBool::new(false),
        })
    }

    /// A client that holds no token.
    fn fresh_client(&self) -> Result<Arc<KeyClient>, ProviderError> {
        new_client(&self.host, &self.http, &self.credentials)
    }

    fn shared_client(&self) -> Arc<KeyClient> {
        Arc::clone(&self.client.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn asked(&self, operation: Operation) -> Asked<'_> {
        Asked { key: &self.label, operation, worked_before: self.worked.load(Ordering::Relaxed) }
    }

    fn is_hsm(&self) -> bool {
        self.host.contains(".managedhsm.")
    }

    /// Runs one call: again after a passing trouble, once more with a new token after a 401, and never beyond the
    /// deadline.
    async fn call<T, F>(
        &self,
        operation: Operation,
        mut client: Arc<KeyClient>,
        run: impl Fn(Arc<KeyClient>) -> F,
    ) -> Result<T, ProviderError>
    where
        F: Future<Output = azure_core::Result<T>>,
    {
        let deadline = Instant::now() + self.deadline;
        let mut renewed = false;
        let mut pause = PAUSE;
        let mut last = None;
        for attempt in 1..=TRIES {
            let Ok(result) = timeout_at(deadline, run(Arc::clone(&client))).await else { break };
            let error = match result {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let answer = judge(&error, &self.asked(operation));
            if answer.stale_token && !renewed {
                renewed = true;
                client = self.fresh_client()?;
                *self.client.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&client);
                last = Some(answer.error);
                continue;
            }
            let wait = answer.retry_after.map_or(pause, |asked_for| asked_for.max(pause));
            if !answer.transient || attempt == TRIES || Instant::now() + wait >= deadline {
                if answer.error.verdict == Verdict::Denied {
                    self.facts_doubtful.store(true, Ordering::Relaxed);
                }
                return Err(answer.error);
            }
            last = Some(answer.error);
            sleep(wait).await;
            pause *= 2;
        }
        Err(last.unwrap_or_else(|| timed_out(&self.asked(operation), self.deadline)))
    }

    /// Asks for the key's public part and attributes.
    async fn ask_facts(&self) -> Result<Facts, ProviderError> {
        let run = |client: Arc<KeyClient>| async move {
            let options = KeyClientGetKeyOptions { key_version: self.version.clone(), ..Default::default() };
            client.get_key(&self.name, Some(options)).await?.into_model()
        };
        let key = self.call(Operation::Get, self.shared_client(), run).await?;
        let facts = Facts::read(&key).map_err(|why| {
            mistake("UnusableKey", format!("{}: {why}; then run `hyokfs check {}`", self.label, self.label))
        })?;
        self.expect_own(&facts.id)?;
        Ok(facts)
    }

    /// The facts, at most [`FACTS_FRESH`] old; concurrent callers share one call.
    async fn facts(&self) -> Result<Arc<Facts>, ProviderError> {
        let get = async {
            let mut kept = self.facts.lock().await;
            let doubtful = self.facts_doubtful.swap(false, Ordering::Relaxed);
            if let Some((asked, facts)) = kept.as_ref()
                && !doubtful
                && asked.elapsed() < FACTS_FRESH
            {
                return Ok(Arc::clone(facts));
            }
            *kept = None;
            let facts = Arc::new(self.ask_facts().await?);
            *kept = Some((Instant::now(), Arc::clone(&facts)));
            Ok(facts)
        };
        match timeout_at(Instant::now() + self.deadline, get).await {
            Ok(result) => result,
            Err(_) => Err(timed_out(&self.asked(Operation::Get), self.deadline)),
        }
    }

    /// The service must speak of the key we asked for.
    fn expect_own(&self, id: &KeyId) -> Result<(), ProviderError> {
        let host = self.host.split(':').next().unwrap_or(&self.host);
        if id.host.eq_ignore_ascii_case(host) && id.name.eq_ignore_ascii_case(&self.name) {
            return Ok(());
        }
        Err(mistake(
            "OtherKey",
            format!(
                "this is not {} but {}: name that key instead, or add it with `hyokfs rewrap --add`",
                self.label,
                id.kid()
            ),
        ))
    }

    /// Wraps the one-time key: here, or in the service.
    async fn wrap_once(
        &self,
        context: &Context<'_>,
        once: &Secret,
    ) -> Result<(Algorithm, KeyId, Vec<u8>, Option<String>), ProviderError> {
        // In a vault every key that can wrap is RSA; a managed HSM has to be asked.
        let facts = if self.remote_wrap && !self.is_hsm() { None } else { Some(self.facts().await?) };
        if let Some(facts) = &facts {
            self.expect_usable(facts)?;
            if !self.remote_wrap
                && facts.may_wrap
                && let Some(ciphertext) = facts.wrap_here(once)
            {
                return Ok((facts.algorithm, facts.id.clone(), ciphertext, None));
            }
        }
        let algorithm = facts.map_or(Algorithm::RsaOaep256, |facts| facts.algorithm);
        match self.wrap_there(context, algorithm, once).await {
            Ok((id, ciphertext, request_id)) => Ok((algorithm, id, ciphertext, request_id)),
            Err(error) => Err(self.explain_wrap(error).await),
        }
    }

    /// Wraps the one-time key in the service.
    async fn wrap_there(
        &self,
        context: &Context<'_>,
        algorithm: Algorithm,
        once: &Secret,
    ) -> Result<(KeyId, Vec<u8>, Option<String>), ProviderError> {
        let mark = Mark::new(context);
        let run = |client: Arc<KeyClient>| {
            let options = KeyClientWrapKeyOptions { key_version: self.version.clone(), method_options: marked(&mark) };
            let parameters = parameters(algorithm, once.expose());
            async move { answer(client.wrap_key(&self.name, parameters.try_into()?, Some(options)).await?) }
        };
        let (result, request_id) = self.call(Operation::Wrap, self.shared_client(), run).await?;
        let garbled = || garbled(&self.label, request_id.clone());
        let ciphertext = result.result.ok_or_else(garbled)?;
        let id = result.kid.as_deref().and_then(KeyId::from_kid).ok_or_else(garbled)?;
        self.expect_own(&id)?;
        Ok((id, ciphertext, request_id))
    }

    /// The service would wrap with a disabled key's public part, and so could we: nobody could open it again.
    fn expect_usable(&self, facts: &Facts) -> Result<(), ProviderError> {
        let (verdict, code, what) = match facts.state(SystemTime::now()) {
            State::Enabled => return Ok(()),
            State::Disabled => (
                Verdict::Denied,
                "KeyDisabled",
                "the customer disabled the key; the customer enables it again with `az keyvault key set-attributes --enabled true`",
            ),
            State::Expired => (
                Verdict::Misconfigured,
                "KeyExpired",
                "the key has expired and wraps nothing new (old files still open); the customer rotates it with `az keyvault key rotate` or moves its end with `az keyvault key set-attributes --expires`",
            ),
            State::NotYetValid => (
                Verdict::Misconfigured,
                "KeyNotYetValid",
                "the key is not valid yet and wraps nothing new; the customer moves its start with `az keyvault key set-attributes --not-before`",
            ),
        };
        self.facts_doubtful.store(true, Ordering::Relaxed);
        Err(ProviderError {
            verdict,
            code: code.to_owned(),
            message: format!("{}: {what}", self.label),
            request_id: None,
        })
    }

    /// A refused wrap may have its reason in the key's dates, which the service's code does not always tell.
    async fn explain_wrap(&self, error: ProviderError) -> ProviderError {
        if !matches!(error.verdict, Verdict::Denied | Verdict::Misconfigured) {
            return error;
        }
        match self.ask_facts().await.map(|facts| self.expect_usable(&facts)) {
            Ok(Err(reason)) => ProviderError { request_id: error.request_id, ..reason },
            _ => error,
        }
    }

    async fn unwrap_with(
        &self,
        client: Arc<KeyClient>,
        context: &Context<'_>,
        bytes: &[u8],
    ) -> Result<(Secret, Option<String>), ProviderError> {
        let blob = Blob::parse(bytes).map_err(|error| self.blob_error(error))?;
        self.expect_own(&blob.key)?;
        let mark = Mark::new(context);
        let run = |client: Arc<KeyClient>| {
            let options = KeyClientUnwrapKeyOptions { method_options: marked(&mark) };
            let parameters = parameters(blob.algorithm, blob.ciphertext);
            let version = &blob.key.version;
            async move { answer(client.unwrap_key(&self.name, version, parameters.try_into()?, Some(options)).await?) }
        };
        let (result, request_id) = self.call(Operation::Unwrap, client, run).await?;
        let plain = Zeroizing::new(result.result.unwrap_or_default());
        if plain.len() != 32 {
            return Err(garbled(&self.label, request_id));
        }
        let once = Secret::from_fn(|place| place.copy_from_slice(&plain))
            .map_err(|error| self.blob_error(BlobError::Arena(error)))?;
        self.worked.store(true, Ordering::Relaxed);
        let secret = blob.open(&once, context).map_err(|error| self.blob_error(error))?;
        Ok((secret, request_id))
    }

    fn blob_error(&self, error: BlobError) -> ProviderError {
        let (verdict, code, advice) = match &error {
            BlobError::Damaged(_) => {
                (Verdict::Misconfigured, "WrappedKeyDamaged", "restore the file from a backup and run `hyokfs verify`")
            }
            BlobError::Newer(_) => (Verdict::Misconfigured, "WrappedKeyNewer", "install the newer hyokfs"),
            BlobError::OtherContext => (
                Verdict::Misconfigured,
                "OtherContext",
                "check the tenant option, and restore the file's header from a backup",
            ),
            BlobError::TooLong(_) => (Verdict::Misconfigured, "KeyNameTooLong", "then run init again"),
            BlobError::Crypto => (Verdict::Unreachable, "Crypto", "the key was not harmed"),
            BlobError::Arena(_) => (Verdict::Unreachable, ARENA_FULL, "the key was not harmed"),
        };
        ProviderError {
            verdict,
            code: code.to_owned(),
            message: format!("{}: {error}; {advice}", self.label),
            request_id: None,
        }
    }
}

#[async_trait]
impl Provider for AzureKey {
    fn uri(&self) -> &KeyUri {
        &self.uri
    }

    fn is_remote(&self) -> bool {
        true
    }

    async fn generate(&self, context: &Context<'_>) -> Result<(Secret, Wrapped), ProviderError> {
        let key = random().map_err(|error| self.blob_error(error))?;
        let wrapped = self.wrap(context, &key).await?;
        Ok((key, wrapped))
    }

    async fn wrap(&self, context: &Context<'_>, key: &Secret) -> Result<Wrapped, ProviderError> {
        let once = random().map_err(|error| self.blob_error(error))?;
        let (algorithm, id, ciphertext, request_id) = self.wrap_once(context, &once).await?;
        let blob =
            blob::seal(algorithm, &id, &ciphertext, &once, context, key).map_err(|error| self.blob_error(error))?;
        Ok(Wrapped { blob, request_id })
    }

    async fn unwrap(&self, context: &Context<'_>, blob: &[u8]) -> Result<(Secret, Option<String>), ProviderError> {
        self.unwrap_with(self.shared_client(), context, blob).await
    }

    async fn probe(&self, context: &Context<'_>, canary: &[u8]) -> Result<Option<String>, ProviderError> {
        match self.unwrap_with(self.fresh_client()?, context, canary).await {
            Ok((_, request_id)) => Ok(request_id),
            // The service gave the key; that we had no room for it says nothing about the customer.
            Err(error) if error.code == ARENA_FULL => Ok(error.request_id),
            Err(error) => Err(error),
        }
    }

    async fn describe(&self) -> Result<KeyInfo, ProviderError> {
        let facts = self.ask_facts().await?;
        let state = match facts.state(SystemTime::now()) {
            State::Enabled => "Enabled",
            State::Disabled => "Disabled",
            State::Expired => "Expired",
            State::NotYetValid => "NotYetValid",
        };
        Ok(KeyInfo { id: facts.id.kid(), state: state.to_owned(), kind: facts.kind })
    }
}

fn new_client(host: &str, http: &Http, credentials: &Credentials) -> Result<Arc<KeyClient>, ProviderError> {
    let options = KeyClientOptions {
        client_options: http.vault_options(),
        // A token for the vault must never go to a host that merely asks for one.
        verify_challenge_resource: Some(true),
        ..KeyClientOptions::default()
    };
    let client = KeyClient::new(&format!("https://{host}"), credentials.build(http)?, Some(options));
    client.map(Arc::new).map_err(|error| {
        mistake("Endpoint", format!("https://{host} can't be used ({error}): check the key's address"))
    })
}

fn random() -> Result<Secret, BlobError> {
    let mut filled = Ok(());
    let secret = Secret::from_fn(|place| filled = aws_lc_rs::rand::fill(place))?;
    filled.map_err(|_| BlobError::Crypto)?;
    Ok(secret)
}

fn marked(mark: &Mark) -> ClientMethodOptions<'static> {
    ClientMethodOptions { context: SdkContext::new().with_value(mark.clone()) }
}

fn parameters(algorithm: Algorithm, value: &[u8]) -> KeyOperationParameters {
    let algorithm = match algorithm {
        Algorithm::RsaOaep256 => EncryptionAlgorithm::RsaOaep256,
        Algorithm::A256Kw => EncryptionAlgorithm::A256Kw,
    };
    KeyOperationParameters { algorithm: Some(algorithm), value: Some(value.to_vec()), ..Default::default() }
}

fn answer(response: Response<KeyOperationResult>) -> azure_core::Result<(KeyOperationResult, Option<String>)> {
    let request_id = response.headers().get_optional_string(&REQUEST_ID);
    Ok((response.into_model()?, request_id))
}

fn garbled(label: &str, request_id: Option<String>) -> ProviderError {
    ProviderError {
        verdict: Verdict::Unreachable,
        code: "GarbledAnswer".to_owned(),
        message: format!(
            "{label}: the answer is not Key Vault's; check the proxy, the endpoint and what the vault's name resolves to"
        ),
        request_id,
    }
}
