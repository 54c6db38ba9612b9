//! From an error of KMS or STS to what it says about the customer's will. Pure: every row has a test.
//!
//! Sources: KMS developer guide, "Key states of AWS KMS keys" and "Troubleshooting external key stores"; the API
//! references of Decrypt and AssumeRole. Codes decide; a text decides only where AWS gives nothing else
//! (`KMSInvalidStateException` of an external key store), and there an unknown text is never a denial.

use super::super::{ProviderError, THROTTLED, Verdict};
use super::evidence::{Evidence, Kind, Source};

/// The permission that a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// `kms:Encrypt`
    Encrypt,
    /// `kms:Decrypt`
    Decrypt,
    /// `kms:GenerateDataKey`
    GenerateDataKey,
    /// `kms:DescribeKey`
    DescribeKey,
}

impl Operation {
    pub(super) fn permission(self) -> &'static str {
        match self {
            Operation::Encrypt => "kms:Encrypt",
            Operation::Decrypt => "kms:Decrypt",
            Operation::GenerateDataKey => "kms:GenerateDataKey",
            Operation::DescribeKey => "kms:DescribeKey",
        }
    }
}

/// What the caller knows besides the error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    /// The key's ARN.
    pub key: &'a str,
    /// The customer's role, where one is assumed.
    pub role: Option<&'a str>,
    pub operation: Operation,
    /// Whether this key has ever worked: then "not found" and "access denied" are the customer's no, else a mistake.
    pub worked_before: bool,
}

impl Evidence {
    /// Our session ended, or STS never heard of it: new credentials may help at once.
    pub(super) fn is_stale_session(&self) -> bool {
        self.kind == Kind::Answer && self.code.as_deref().is_some_and(|code| STALE_SESSION.contains(&code))
    }

    /// The service may answer the same call in a moment.
    pub(super) fn is_passing(&self) -> bool {
        match self.kind {
            Kind::Timeout | Kind::Transport | Kind::Unreadable => true,
            Kind::Answer => {
                let code = self.code.as_deref().unwrap_or_default();
                THROTTLED.contains(&code) || BUSY.contains(&code) || self.status.is_some_and(|status| status >= 500)
            }
            Kind::NotSent | Kind::NoCredentials => false,
        }
    }

    /// KMS says that the key's state forbids the call, without a code for which state it is.
    pub(super) fn needs_key_state(&self) -> bool {
        self.source == Source::Kms
            && self.code.as_deref() == Some("KMSInvalidStateException")
            && self.key_state.is_none()
    }
}

const STALE_SESSION: &[&str] =
    &["ExpiredTokenException", "ExpiredToken", "UnrecognizedClientException", "InvalidClientTokenId"];
const OWN_CREDENTIALS: &[&str] = &[
    "ExpiredTokenException",
    "ExpiredToken",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "RequestExpired",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "InvalidIdentityToken",
    "InvalidIdentityTokenException",
    "IDPCommunicationError",
    "IDPCommunicationErrorException",
];
const BUSY: &[&str] = &[
    "KeyUnavailableException",
    "DependencyTimeoutException",
    "KMSInternalException",
    "InternalFailure",
    "InternalError",
    "InternalServerError",
    "ServiceUnavailable",
    "ServiceUnavailableException",
    "RequestTimeout",
    "RequestTimeoutException",
];
const WRONG_CALL: &[&str] =
    &["InvalidKeyUsageException", "UnsupportedOperationException", "ValidationException", "InvalidArnException"];
const WRONG_STS_CALL: &[&str] = &[
    "ValidationError",
    "MalformedPolicyDocument",
    "MalformedPolicyDocumentException",
    "PackedPolicyTooLarge",
    "PackedPolicyTooLargeException",
    "RegionDisabledException",
];

/// The verdict on one failed call.
pub(super) fn judge(evidence: &Evidence, situation: &Situation<'_>) -> ProviderError {
    let (verdict, code, message) = match evidence.kind {
        Kind::Answer => answer(evidence, situation),
        kind => no_answer(kind, evidence, situation),
    };
    ProviderError { verdict, code, message, request_id: evidence.request_id.clone() }
}

type Finding = (Verdict, String, String);

fn service(evidence: &Evidence) -> &'static str {
    match evidence.source {
        Source::Kms => "KMS",
        Source::OwnRole | Source::CustomerRole => "STS",
        Source::Credentials => "the source of this node's credentials (STS, metadata service)",
    }
}

fn no_answer(kind: Kind, evidence: &Evidence, situation: &Situation<'_>) -> Finding {
    let (key, text, service) = (situation.key, &evidence.text, service(evidence));
    if (evidence.source == Source::Credentials && kind != Kind::Timeout) || kind == Kind::NoCredentials {
        return (
            Verdict::Unreachable,
            "NoCredentials".to_owned(),
            format!(
                "this node has no usable AWS credentials ({text}); give it an instance or container role, or set \
                 AWS_PROFILE, --profile or AWS_ACCESS_KEY_ID; nothing is wrong at the customer's"
            ),
        );
    }
    match kind {
        Kind::Timeout => (
            Verdict::Unreachable,
            "Timeout".to_owned(),
            format!(
                "{service} did not answer in time for {key} ({text}); check route, security group and VPC endpoint"
            ),
        ),
        Kind::Unreadable => {
            let status = evidence.status.map(|status| format!("HTTP {status}, ")).unwrap_or_default();
            (
                Verdict::Unreachable,
                "UnreadableAnswer".to_owned(),
                format!(
                    "what answered for {service} about {key} does not speak its protocol ({status}{text}); check the \
                     endpoint setting and any proxy in between"
                ),
            )
        }
        Kind::NotSent => (
            Verdict::Misconfigured,
            "BadRequest".to_owned(),
            format!("the call to {service} for {key} could not be made ({text}); check endpoint, region and profile"),
        ),
        _ => (
            Verdict::Unreachable,
            "ConnectionFailed".to_owned(),
            format!(
                "{service} can't be reached for {key} ({text}); check DNS, route, firewall, VPC endpoint and, for a \
                 private certificate, --ca-file"
            ),
        ),
    }
}

fn answer(evidence: &Evidence, situation: &Situation<'_>) -> Finding {
    let code = evidence.code.as_deref().unwrap_or_default();
    let found = |verdict, message: String| (verdict, code.to_owned(), message);
    let (key, text) = (situation.key, evidence.text.as_str());
    if THROTTLED.contains(&code) {
        return found(
            Verdict::Unreachable,
            format!(
                "{} throttles calls for {key} ({text}); lower the rate limit of key calls, choose granularity \
                 `directory` for new volumes, or ask AWS to raise the account's request quota",
                service(evidence)
            ),
        );
    }
    if BUSY.contains(&code) || evidence.status.is_some_and(|status| status >= 500) {
        return found(
            Verdict::Unreachable,
            format!("{} has a passing failure for {key} ({text}); it is asked again by itself", service(evidence)),
        );
    }
    if OWN_CREDENTIALS.contains(&code) {
        return found(
            Verdict::Unreachable,
            format!(
                "{} does not accept this node's own credentials ({text}); renew them and check the node's clock; \
                 nothing is wrong at the customer's",
                service(evidence)
            ),
        );
    }
    match evidence.source {
        Source::Kms => kms(code, evidence, situation),
        Source::OwnRole | Source::CustomerRole | Source::Credentials => sts(code, evidence, situation),
    }
}

/// "No" if the key has worked before, else a mistake in what was configured.
fn no_or_mistake(situation: &Situation<'_>) -> Verdict {
    if situation.worked_before { Verdict::Denied } else { Verdict::Misconfigured }
}

fn said(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" (AWS: {text})") }
}

fn kms(code: &str, evidence: &Evidence, situation: &Situation<'_>) -> Finding {
    let (key, text) = (situation.key, evidence.text.as_str());
    let permission = situation.operation.permission();
    let who = situation.role.map_or_else(|| "this node's identity".to_owned(), |role| format!("the role {role}"));
    let (verdict, message) = match code {
        "DisabledException" => {
            // The documentation gives this code for a key that is pending deletion, too.
            let deletion = text.to_ascii_lowercase().contains("pending deletion");
            (Verdict::Denied, if deletion { pending_deletion(key) } else { disabled(key) })
        }
        "KMSInvalidStateException" => return invalid_state(evidence, situation),
        "AccessDeniedException" | "AccessDenied" => (
            no_or_mistake(situation),
            format!(
                "{who} may not use {permission} on {key}{}. The key's policy and the role's policy must both allow it, \
                 and no grant, SCP, VPC endpoint policy or condition may take it away: `hyokfs check` tries each \
                 permission and prints the statement to add",
                said(text)
            ),
        ),
        "NotFoundException" => (
            no_or_mistake(situation),
            if situation.worked_before {
                format!(
                    "the key {key} is gone{}; a deleted key never comes back, and with it everything it wraps",
                    said(text)
                )
            } else {
                format!("there is no key {key}{}; check account, region and key id of the ARN", said(text))
            },
        ),
        "InvalidCiphertextException" => (
            Verdict::Misconfigured,
            format!(
                "{key} did not wrap this blob, or not for this volume, file and tenant{}; restore the file or the \
                 volume record from a backup, and check --tenant",
                said(text)
            ),
        ),
        "IncorrectKeyException" => (
            Verdict::Misconfigured,
            format!(
                "another key than {key} wrapped this blob{}; name the key that the volume was made with",
                said(text)
            ),
        ),
        "InvalidGrantTokenException" => (
            Verdict::Misconfigured,
            format!("KMS does not know the grant token for {key}{}; drop it: the grant has spread by now", said(text)),
        ),
        code if WRONG_CALL.contains(&code) => (
            Verdict::Misconfigured,
            format!(
                "{key} can't be used for {permission}{}; it must be a symmetric key (SYMMETRIC_DEFAULT) for \
                 ENCRYPT_DECRYPT, named by its key ARN",
                said(text)
            ),
        ),
        _ => unknown(evidence, situation),
    };
    (verdict, code.to_owned(), message)
}

/// A code that no documentation names is never the customer's no.
fn unknown(evidence: &Evidence, situation: &Situation<'_>) -> (Verdict, String) {
    let verdict = if situation.worked_before { Verdict::Unreachable } else { Verdict::Misconfigured };
    let message = format!(
        "{} refuses {} with a code that says nothing of the customer's will{}; look the request up in CloudTrail",
        service(evidence),
        situation.key,
        said(&evidence.text)
    );
    (verdict, message)
}

fn disabled(key: &str) -> String {
    format!("the key {key} is disabled; its owner enables it again with `aws kms enable-key --key-id {key}`")
}

fn pending_deletion(key: &str) -> String {
    format!(
        "the key {key} is scheduled for deletion; within the waiting period its owner saves it with \
         `aws kms cancel-key-deletion --key-id {key}` and `aws kms enable-key --key-id {key}`"
    )
}

/// `KMSInvalidStateException`: the state by DescribeKey first, the text for what it leaves open.
fn invalid_state(evidence: &Evidence, situation: &Situation<'_>) -> Finding {
    let (key, text) = (situation.key, evidence.text.as_str());
    let lower = text.to_ascii_lowercase();
    let says = |part: &str| lower.contains(part);
    let state = evidence.key_state.as_deref();
    let unseen = state.is_none();
    let material = format!(
        "the imported material of {key} is deleted or expired; its owner imports the same material again \
         (`aws kms import-key-material`)"
    );
    let store = format!(
        "the key {key} is unavailable because its key store is disconnected; its owner connects it again with \
         `aws kms connect-custom-key-store`"
    );
    let (verdict, message) = match state {
        Some("Disabled") => (Verdict::Denied, disabled(key)),
        Some("PendingDeletion" | "PendingReplicaDeletion") => (Verdict::Denied, pending_deletion(key)),
        Some("PendingImport") => (Verdict::Denied, material),
        Some("Unavailable") => (Verdict::Denied, store),
        Some("Creating" | "Updating") => (Verdict::Unreachable, changing(key)),
        _ if says("pending deletion") || says("pending replica deletion") => (Verdict::Denied, pending_deletion(key)),
        _ if says("pending import") => (Verdict::Denied, material),
        _ if says("is disabled") => (Verdict::Denied, disabled(key)),
        _ if says("is creating") || says("is updating") => (Verdict::Unreachable, changing(key)),
        _ if says("ciphertext or additional authenticated data is corrupted") => (
            Verdict::Misconfigured,
            format!("the external key store can't open this blob{}; restore it from a backup", said(text)),
        ),
        _ if says("external key is not enabled")
            || says("could not find the external key")
            || says("denied access to the operation") =>
        {
            (
                Verdict::Denied,
                format!(
                    "the external key behind {key} was taken away{}; its owner restores it in the key manager",
                    said(text)
                ),
            )
        }
        // The state "Unavailable" is documented for an intentional disconnection only.
        _ if unseen && says(" is unavailable") && !says("proxy") => (Verdict::Denied, store),
        _ => (
            Verdict::Unreachable,
            format!(
                "the key store behind {key} can't be asked{}; its owner checks the external key store proxy",
                said(text)
            ),
        ),
    };
    (verdict, "KMSInvalidStateException".to_owned(), message)
}

fn changing(key: &str) -> String {
    format!("the key {key} is being created or updated; it is asked again by itself")
}

fn sts(code: &str, evidence: &Evidence, situation: &Situation<'_>) -> Finding {
    let text = evidence.text.as_str();
    let role = situation.role.unwrap_or("of the node's configuration");
    let customers = evidence.source == Source::CustomerRole;
    let (verdict, message) = match code {
        "AccessDenied" | "AccessDeniedException" if customers => (
            no_or_mistake(situation),
            format!(
                "the role {role} may not be assumed{}. Its trust policy must name this node's identity and the external \
                 id that is sent, and this node's identity must allow sts:AssumeRole on it: `hyokfs policy` prints the \
                 trust policy, `hyokfs check` tries it",
                said(text)
            ),
        ),
        "IDPRejectedClaim" | "IDPRejectedClaimException" if customers => (
            Verdict::Denied,
            format!(
                "the role {role} no longer trusts this node's web identity{}; its owner restores the trust policy",
                said(text)
            ),
        ),
        "AccessDenied" | "AccessDeniedException" | "IDPRejectedClaim" | "IDPRejectedClaimException" => (
            Verdict::Unreachable,
            format!(
                "a role of the vendor's on the way to the customer's may not be assumed{}; repair its trust policy; \
                 nothing is wrong at the customer's",
                said(text)
            ),
        ),
        code if WRONG_STS_CALL.contains(&code) => (
            Verdict::Misconfigured,
            format!(
                "STS refuses the call for the role {role}{}; check the role's ARN, that its maximum session duration is at \
                 least 15 minutes, and that STS is active in the region (--sts-region)",
                said(text)
            ),
        ),
        _ => unknown(evidence, situation),
    };
    (verdict, code.to_owned(), message)
}

#[cfg(test)]
mod tests;
