//! The HTTP clients: one for the vault, one for the authority that gives tokens, one for the machine's own identity.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use azure_core::http::{
    ClientOptions, Context as SdkContext, Request, RetryOptions, Transport, Url,
    headers::{CLIENT_REQUEST_ID, HeaderName},
    policies::{Policy, PolicyResult},
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::provider::{Context, KeySettings, ProviderError, Verdict};

/// Time to establish a connection, TLS included. In a region it takes milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that nobody used for this long is closed.
const IDLE: Duration = Duration::from_secs(90);

/// The transports, shared by all SDK clients of one provider so that connections are reused.
#[derive(Clone)]
pub struct Http {
    vault: Transport,
    authority: Transport,
    metadata: Transport,
}

impl Http {
    /// Builds the clients. They follow no redirect, speak TLS only (except to the machine's metadata service), trust
    /// the system's authorities and those of `ca-file`, and take a proxy from the environment (`HTTPS_PROXY`,
    /// `NO_PROXY`) unless `endpoint` says where the vault is.
    pub fn new(vault_host: &str, settings: &KeySettings) -> Result<Self, ProviderError> {
        let roots = match &settings.ca_file {
            Some(path) => read_roots(path)?,
            None => Vec::new(),
        };
        // Two tries must fit into the whole time.
        let attempt = (settings.call_deadline() / 2).max(Duration::from_millis(50));
        let builder = || {
            reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT.min(attempt))
                .timeout(attempt)
                .pool_idle_timeout(IDLE)
                .redirect(reqwest::redirect::Policy::none())
        };
        let secure = || builder().https_only(true).tls_certs_merge(roots.iter().cloned());
        let vault = match &settings.endpoint {
            Some(endpoint) => secure().no_proxy().dns_resolver(Arc::new(Elsewhere::new(vault_host, endpoint)?)),
            None => secure(),
        };
        Ok(Http {
            vault: transport(vault)?,
            authority: transport(secure())?,
            // A link-local address: a proxy would answer for another machine.
            metadata: transport(builder().no_proxy())?,
        })
    }

    /// Options for the vault's client. The SDK's own retries are off: the provider tries again itself, within one
    /// deadline over everything.
    pub fn vault_options(&self) -> ClientOptions {
        ClientOptions {
            transport: Some(self.vault.clone()),
            retry: RetryOptions::none(),
            per_try_policies: vec![Arc::new(MarkPolicy)],
            ..ClientOptions::default()
        }
    }

    /// Options for credentials that ask the authority.
    pub fn authority_options(&self) -> ClientOptions {
        ClientOptions {
            transport: Some(self.authority.clone()),
            retry: RetryOptions::none(),
            ..ClientOptions::default()
        }
    }

    /// Options for credentials that ask the machine's metadata service.
    pub fn metadata_options(&self) -> ClientOptions {
        ClientOptions {
            transport: Some(self.metadata.clone()),
            retry: RetryOptions::none(),
            ..ClientOptions::default()
        }
    }
}

fn transport(builder: reqwest::ClientBuilder) -> Result<Transport, ProviderError> {
    let client = builder.build().map_err(|error| {
        mistake(
            "TlsSetup",
            format!(
                "no HTTPS client could be set up ({}): install the system's certificate authorities (package ca-certificates), or name a file of them with ca-file",
                chain(&error)
            ),
        )
    })?;
    Ok(Transport::new(Arc::new(client)))
}

fn read_roots(path: &Path) -> Result<Vec<reqwest::Certificate>, ProviderError> {
    let bad = |why: String| {
        mistake(
            "CaFile",
            format!("ca-file {} {why}: name a PEM file with the certificates of your authorities", path.display()),
        )
    };
    let bytes = std::fs::read(path).map_err(|error| bad(format!("cannot be read ({error})")))?;
    let roots = reqwest::Certificate::from_pem_bundle(&bytes).map_err(|error| bad(format!("is damaged ({error})")))?;
    if roots.is_empty() { Err(bad("holds no certificate".to_owned())) } else { Ok(roots) }
}

/// The error's text and its sources', for messages.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

/// An error in what we were told.
pub fn mistake(code: &str, message: String) -> ProviderError {
    ProviderError { verdict: Verdict::Misconfigured, code: code.to_owned(), message, request_id: None }
}

/// Finds the vault's name at another address (a private link, a forwarder), asking the system anew for each
/// connection. TLS still expects the vault's own name.
struct Elsewhere {
    vault: String,
    host: String,
    port: u16,
}

impl Elsewhere {
    fn new(vault_host: &str, endpoint: &str) -> Result<Self, ProviderError> {
        let bad = || {
            mistake(
                "Endpoint",
                format!("endpoint `{endpoint}` is no address: write https://HOST[:PORT] and nothing else"),
            )
        };
        let full = if endpoint.contains("://") { endpoint.to_owned() } else { format!("https://{endpoint}") };
        let url: Url = full.parse().map_err(|_| bad())?;
        let host = url.host_str().filter(|_| url.scheme() == "https" && url.path() == "/").ok_or_else(bad)?;
        let vault = vault_host.split(':').next().unwrap_or(vault_host).to_ascii_lowercase();
        Ok(Elsewhere { vault, host: host.trim_matches(['[', ']']).to_owned(), port: url.port().unwrap_or(0) })
    }
}

impl Resolve for Elsewhere {
    fn resolve(&self, name: Name) -> Resolving {
        let (host, port) = if name.as_str().eq_ignore_ascii_case(&self.vault) {
            (self.host.clone(), self.port)
        } else {
            (name.as_str().to_owned(), 0)
        };
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// What the customer's log shall say about a call. Key Vault's logs keep the client's request id (`CorrelationId`) and
/// its user agent (`clientInfo_s`): the first carries the file's id (the volume's, where there is no file) in the form
/// of a GUID, the second both.
#[derive(Debug, Clone)]
pub struct Mark {
    correlation: String,
    agent: String,
}

impl Mark {
    /// The mark of a call for this context.
    pub fn new(context: &Context<'_>) -> Self {
        let id = context.file.as_ref().map_or_else(|| context.volume.to_string(), ToString::to_string);
        let correlation = format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]);
        let file = context.file.as_ref().map(|file| format!("; file {file}")).unwrap_or_default();
        let agent = format!("hyokfs/{} (volume {}{file})", env!("CARGO_PKG_VERSION"), context.volume);
        Mark { correlation, agent }
    }
}

#[derive(Debug)]
struct MarkPolicy;

#[async_trait::async_trait]
impl Policy for MarkPolicy {
    async fn send(&self, ctx: &SdkContext, request: &mut Request, next: &[Arc<dyn Policy>]) -> PolicyResult {
        if let Some(mark) = ctx.value::<Mark>() {
            request.insert_header(CLIENT_REQUEST_ID, mark.correlation.clone());
            request.insert_header(HeaderName::from_static("user-agent"), mark.agent.clone());
        }
        match next {
            [first, rest @ ..] => first.send(ctx, request, rest).await,
            [] => Err(azure_core::Error::with_message(azure_core::error::ErrorKind::Other, "no transport")),
        }
    }
}
