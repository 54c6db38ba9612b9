//! `hyokfs check` as a library: tries every permission by itself, names the missing one, and gives the statement to add.
//!
//! Each service has its own list of steps; this module has their shape, and the steps that every key has.

use serde::Serialize;
use serde_json::Value;

use super::{Context, KeySettings, KeyUri, Provider, ProviderError};
use crate::format::{FileId, VolumeId};

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was tried, as a short sentence.
    pub step: String,
    /// Whether it went as it must. (Some steps must be refused.)
    pub ok: bool,
    /// The service's code, where it refused.
    pub code: Option<String>,
    /// What it means and what to do next; what was seen, where it is well.
    pub message: String,
    /// The permission that is missing, for example `kms:Decrypt`.
    pub missing: Option<String>,
    /// The statement or assignment to add.
    pub statement: Option<Value>,
    /// Where to add it.
    #[serde(rename = "where")]
    pub place: Option<String>,
    /// The service's id of the request.
    pub request_id: Option<String>,
}

impl Step {
    /// A step that went well.
    pub fn good(step: impl Into<String>, message: impl Into<String>) -> Self {
        Step {
            step: step.into(),
            ok: true,
            code: None,
            message: message.into(),
            missing: None,
            statement: None,
            place: None,
            request_id: None,
        }
    }

    /// A step that went wrong, whatever the service said.
    pub fn bad(step: impl Into<String>, code: impl Into<String>, message: impl Into<String>) -> Self {
        Step { ok: false, code: Some(code.into()), ..Step::good(step, message) }
    }

    /// A step that the service refused.
    pub fn refused(step: impl Into<String>, error: &ProviderError) -> Self {
        Step { request_id: error.request_id.clone(), ..Step::bad(step, error.code.clone(), error.message.clone()) }
    }

    /// With what would make it go well.
    pub fn fix(mut self, missing: &str, statement: Value, place: impl Into<String>) -> Self {
        self.missing = Some(missing.to_owned());
        self.statement = Some(statement);
        self.place = Some(place.into());
        self
    }
}

/// All steps of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The key's name.
    pub key: String,
    /// What was tried, in order. A step that needs a failed one is left out.
    pub steps: Vec<Step>,
}

impl Report {
    /// Whether everything went as it must.
    pub fn ok(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.ok)
    }
}

/// For which volume the key is checked: policies may be bound to it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject {
    /// The volume's id; a random one where there is no volume yet.
    pub volume: Option<VolumeId>,
}

impl Subject {
    pub(super) fn volume(&self) -> Result<VolumeId, ProviderError> {
        self.volume.map_or_else(|| VolumeId::random().map_err(|_| no_randomness()), Ok)
    }
}

pub(super) fn no_randomness() -> ProviderError {
    ProviderError {
        verdict: super::Verdict::Misconfigured,
        code: "NoRandomness".to_owned(),
        message: "the process's random generator failed; check /dev/urandom and the seccomp profile".to_owned(),
        request_id: None,
    }
}

/// Checks any key, by its service's own steps where it has some, else by [`through`].
///
/// # Errors
/// Settings that can't be used, before anything is tried.
pub async fn run(uri: &KeyUri, settings: &KeySettings, subject: &Subject) -> Result<Report, ProviderError> {
    match uri {
        #[cfg(feature = "aws")]
        KeyUri::AwsKms { .. } => aws(uri, settings, subject).await,
        #[cfg(feature = "azure")]
        KeyUri::AzureKeyVault { .. } => azure(uri, settings, subject).await,
        _ => through(&*super::connect::connect(uri, settings).await?, settings, subject).await,
    }
}

/// Checks the AWS key `uri`; other kinds of keys have their own entry beside this one, or [`through`].
///
/// # Errors
/// Settings that can't be used, before anything is tried.
#[cfg(feature = "aws")]
pub async fn aws(uri: &KeyUri, settings: &KeySettings, subject: &Subject) -> Result<Report, ProviderError> {
    let KeyUri::AwsKms { arn } = uri else {
        return Err(ProviderError {
            verdict: super::Verdict::Misconfigured,
            code: "InvalidArn".to_owned(),
            message: format!("{uri} is not a key of AWS KMS; name it awskms:///arn:aws:kms:REGION:ACCOUNT:key/ID"),
            request_id: None,
        });
    };
    let steps = super::aws::check(arn, settings, subject).await?;
    Ok(Report { key: uri.to_string(), steps })
}

/// Checks the Azure key `uri`: the token, then each permission by itself, and that another key version is refused.
///
/// # Errors
/// Settings that can't be used, before anything is tried.
#[cfg(feature = "azure")]
pub async fn azure(uri: &KeyUri, settings: &KeySettings, subject: &Subject) -> Result<Report, ProviderError> {
    let KeyUri::AzureKeyVault { host, name, version } = uri else {
        return Err(ProviderError {
            verdict: super::Verdict::Misconfigured,
            code: "KeyName".to_owned(),
            message: format!("{uri} is not a key of Azure; name it azurekeyvault://VAULT.vault.azure.net/keys/NAME"),
            request_id: None,
        });
    };
    let steps = super::azure::check(host, name, version.as_deref(), settings, subject).await?;
    Ok(Report { key: uri.to_string(), steps })
}

/// Checks any key through its provider: describe, generate, wrap, unwrap, and that another file's context is refused.
pub async fn through(
    provider: &dyn Provider,
    settings: &KeySettings,
    subject: &Subject,
) -> Result<Report, ProviderError> {
    let random = || FileId::random().map_err(|_| no_randomness());
    let context = Context { volume: subject.volume()?, file: Some(random()?), tenant: settings.tenant.as_deref() };
    let other = Context { file: Some(random()?), ..context };
    let mut steps = Vec::new();
    steps.push(match provider.describe().await {
        Ok(info) => Step::good("describe the key", format!("{} is {} ({})", info.id, info.state, info.kind)),
        Err(error) => Step::refused("describe the key", &error),
    });
    match provider.generate(&context).await {
        Err(error) => steps.push(Step::refused("make a key", &error)),
        Ok((key, made)) => {
            steps.push(Step::good("make a key", "a wrapped key was made"));
            steps.push(match provider.wrap(&context, &key).await {
                Ok(_) => Step::good("wrap a key", "a key was wrapped"),
                Err(error) => Step::refused("wrap a key", &error),
            });
            steps.push(match provider.unwrap(&context, &made.blob).await {
                Ok((again, _)) if again.expose() == key.expose() => {
                    Step::good("unwrap the key", "the same key came back")
                }
                Ok(_) => Step::bad("unwrap the key", "WrongKey", "another key came back; don't use this key service"),
                Err(error) => Step::refused("unwrap the key", &error),
            });
            steps.push(match provider.unwrap(&other, &made.blob).await {
                Err(error) => Step::good("another file's context is refused", format!("refused with {}", error.code)),
                Ok(_) => Step::bad(
                    "another file's context is refused",
                    "NotBound",
                    "the wrapped key is not bound to its file; don't use this key service",
                ),
            });
        }
    }
    Ok(Report { key: provider.uri().to_string(), steps })
}
