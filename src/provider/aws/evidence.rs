//! What an SDK error tells, in one flat shape, so that [`super::verdict`] needs no SDK types and can be tested row by row.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

/// Who answered, or failed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// KMS.
    Kms,
    /// STS, for a role of ours on the way to the customer's.
    OwnRole,
    /// STS, for the customer's role.
    CustomerRole,
    /// The node's own credentials: environment, profile, container, instance.
    Credentials,
}

/// How the call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The service answered with an error.
    Answer,
    /// No answer in time.
    Timeout,
    /// The connection failed: name, route, TLS, reset.
    Transport,
    /// An answer came, but not one the protocol knows.
    Unreadable,
    /// Nothing was sent, because the call could not be built.
    NotSent,
    /// No credentials were found at all.
    NoCredentials,
}

/// One failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Evidence {
    pub source: Source,
    pub kind: Kind,
    /// The service's error code, without namespace.
    pub code: Option<String>,
    /// The service's text, or the chain of causes.
    pub text: String,
    pub request_id: Option<String>,
    /// The HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// The key's state by DescribeKey, asked when KMS calls the state invalid without saying which it is.
    pub key_state: Option<String>,
}

impl Evidence {
    pub(super) fn new(source: Source, kind: Kind, text: impl Into<String>) -> Self {
        Evidence { source, kind, code: None, text: text.into(), request_id: None, status: None, key_state: None }
    }

    /// The service's answer `code`, for tests and for answers that are judged without an SDK error.
    #[cfg(test)]
    pub(super) fn answer(source: Source, code: &str, text: &str) -> Self {
        Evidence { code: Some(code.to_owned()), ..Evidence::new(source, Kind::Answer, text) }
    }

    /// From the error of an SDK call to `source`. Finds a refusal of STS that the SDK buried in a failure to dispatch.
    pub(super) fn of<E>(source: Source, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        match error {
            SdkError::ServiceError(context) => {
                let status = Some(context.raw().status().as_u16());
                let meta = context.err().meta();
                let request_id = error.request_id().map(str::to_owned);
                match meta.code() {
                    Some(code) => Evidence {
                        code: Some(bare(code).to_owned()),
                        request_id,
                        status,
                        ..Evidence::new(source, Kind::Answer, meta.message().unwrap_or_default())
                    },
                    None => Evidence { request_id, status, ..Evidence::new(source, Kind::Unreadable, chain(error)) },
                }
            }
            SdkError::ResponseError(context) => Evidence {
                status: Some(context.raw().status().as_u16()),
                ..Evidence::new(source, Kind::Unreadable, chain(error))
            },
            SdkError::TimeoutError(_) => Evidence::new(source, Kind::Timeout, chain(error)),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => {
                Evidence::new(source, Kind::Timeout, chain(error))
            }
            SdkError::DispatchFailure(_) => buried(Source::CustomerRole, error)
                .unwrap_or_else(|| Evidence::new(source, Kind::Transport, chain(error))),
            _ => buried(Source::CustomerRole, error)
                .unwrap_or_else(|| Evidence::new(source, Kind::NotSent, chain(error))),
        }
    }

    /// From a failure to load the node's own credentials. `last` says whose role it is, where the chain assumes one
    /// (web identity, a profile with `role_arn`).
    pub(super) fn of_credentials(last: Source, error: &CredentialsError) -> Self {
        buried(last, error).unwrap_or_else(|| {
            let kind = match error {
                CredentialsError::ProviderTimedOut(_) => Kind::Timeout,
                CredentialsError::InvalidConfiguration(_) => Kind::NotSent,
                _ => Kind::NoCredentials,
            };
            Evidence::new(Source::Credentials, kind, chain(error))
        })
    }
}

/// An STS or credentials error somewhere in the chain of causes.
fn buried(role: Source, error: &(dyn Error + 'static)) -> Option<Evidence> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(sts) = error.downcast_ref::<SdkError<AssumeRoleError, HttpResponse>>() {
            return Some(Evidence::of(role, sts));
        }
        if let Some(sts) = error.downcast_ref::<SdkError<AssumeRoleWithWebIdentityError, HttpResponse>>() {
            return Some(Evidence::of(role, sts));
        }
        if let Some(credentials) = error.downcast_ref::<CredentialsError>() {
            return Some(Evidence::of_credentials(role, credentials));
        }
        cause = error.source();
    }
    None
}

/// `com.amazonaws.kms#DisabledException:http://…` as `DisabledException`.
fn bare(code: &str) -> &str {
    let code = code.rsplit('#').next().unwrap_or(code);
    code.split(':').next().unwrap_or(code)
}

/// The error and its causes on one line, without what is said twice.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::bare;

    #[test]
    fn a_code_loses_its_namespace_and_its_address() {
        assert_eq!(bare("DisabledException"), "DisabledException");
        assert_eq!(bare("com.amazonaws.kms#DisabledException"), "DisabledException");
        assert_eq!(bare("kms#DisabledException:http://internal/"), "DisabledException");
    }
}
