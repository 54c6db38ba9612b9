//! The key services. A provider wraps and unwraps 32-byte keys with a key that never leaves the customer.

pub mod check;
pub mod connect;
pub mod observed;
pub mod policy;
pub mod settings;
pub mod uri;

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "azure")]
pub mod azure;
pub mod local;

use std::fmt;

use async_trait::async_trait;

use crate::crypto::{ArenaFull, Secret};
use crate::format::{FileId, VolumeId};

pub use connect::connect;
pub use observed::{KeyCall, Observed, Observer, Operation, Reason, Unobserved};
pub use settings::KeySettings;
pub use uri::KeyUri;

/// What an answer of the key service says about the customer's will (DESIGN: four verdicts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The key was used: the customer allows it.
    Live,
    /// The customer said no: disabled, deleted, policy, grant or role taken away.
    Denied,
    /// Nobody knows: time-out, DNS, 5xx, throttling, our own credentials.
    Unreachable,
    /// Wrong key, region, ciphertext, or it never worked.
    Misconfigured,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Live => "live",
            Verdict::Denied => "denied",
            Verdict::Unreachable => "unreachable",
            Verdict::Misconfigured => "misconfigured",
        })
    }
}

/// Why a call to the key service gave no key.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message} [{code}{}]", .request_id.as_deref().map(|id| format!(", request {id}")).unwrap_or_default())]
pub struct ProviderError {
    /// Never [`Verdict::Live`].
    pub verdict: Verdict,
    /// The service's own code, for example `DisabledException`; short and stable, for logs and scripts.
    pub code: String,
    /// What happened, to which key, and what to do next.
    pub message: String,
    /// The service's id of the request, where it gave one: the line to look for in CloudTrail or the vault's log.
    pub request_id: Option<String>,
}

/// AWS's codes that say "too many calls".
const THROTTLED: &[&str] = &[
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
    "RequestThrottled",
    "RequestLimitExceeded",
    "LimitExceeded",
    "LimitExceededException",
    "SlowDown",
];

/// Ours for Azure's status 429, which carries none.
const AZURE_THROTTLED: &str = "Throttled";

impl ProviderError {
    /// Whether the service asks for fewer calls.
    pub fn is_throttling(&self) -> bool {
        let code = self.code.as_str();
        self.verdict == Verdict::Unreachable && (code == AZURE_THROTTLED || THROTTLED.contains(&code))
    }
}

/// The code of an error that says that the key was there but no locked memory for it.
pub const ARENA_FULL: &str = "ArenaFull";

impl From<ArenaFull> for ProviderError {
    fn from(full: ArenaFull) -> Self {
        let verdict = Verdict::Unreachable;
        ProviderError { verdict, code: ARENA_FULL.to_owned(), message: full.to_string(), request_id: None }
    }
}

/// What a wrapped key is bound to. Ids only: the context is readable in the customer's log.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The volume that the key belongs to.
    pub volume: VolumeId,
    /// The file, or `None` for the volume secret and the canary.
    pub file: Option<FileId>,
    /// The vendor's name for the customer, where `init` was given one.
    pub tenant: Option<&'a str>,
}

/// A key wrapped by the customer's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// The bytes to store and to give to [`Provider::unwrap`].
    pub blob: Vec<u8>,
    /// The service's id of the request.
    pub request_id: Option<String>,
}

/// What the key service tells about the key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KeyInfo {
    /// The key's full name, with its version where it has one.
    pub id: String,
    /// The service's word for the key's state, for example `Enabled`.
    pub state: String,
    /// The key's kind, for example `SYMMETRIC_DEFAULT` or `RSA-3072`.
    pub kind: String,
}

/// One customer key. Every method answers within the settings' deadline and never panics.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// The key's name.
    fn uri(&self) -> &KeyUri;

    /// Whether a call crosses the network: then keys are made ahead and unwrapped ahead.
    fn is_remote(&self) -> bool;

    /// Makes a new 32-byte key and wraps it.
    async fn generate(&self, context: &Context<'_>) -> Result<(Secret, Wrapped), ProviderError>;

    /// Wraps a key that is already there.
    async fn wrap(&self, context: &Context<'_>, key: &Secret) -> Result<Wrapped, ProviderError>;

    /// Unwraps a key; gives it with the service's request id.
    async fn unwrap(&self, context: &Context<'_>, blob: &[u8]) -> Result<(Secret, Option<String>), ProviderError>;

    /// Unwraps the canary with credentials obtained anew, so that an edited role trust or a removed principal is
    /// seen at once; gives the service's request id.
    async fn probe(&self, context: &Context<'_>, canary: &[u8]) -> Result<Option<String>, ProviderError>;

    /// Asks the service about the key.
    async fn describe(&self) -> Result<KeyInfo, ProviderError>;
}
