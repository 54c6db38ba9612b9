//! Every row, without a wire. What the SDK makes of the wire is tested in `tests/aws`.

use super::*;
use Verdict::{Denied, Misconfigured, Unreachable};

const KEY: &str = "arn:aws:kms:eu-central-1:222222222222:key/1";
const ROLE: &str = "arn:aws:iam::222222222222:role/hyokfs";

fn situation(worked_before: bool) -> Situation<'static> {
    Situation { key: KEY, role: Some(ROLE), operation: Operation::Decrypt, worked_before }
}

/// The verdicts for a key that worked before, and for one that never did.
fn both(evidence: &Evidence) -> (Verdict, Verdict) {
    let [worked, never] = [true, false].map(|worked| {
        let error = judge(evidence, &situation(worked));
        assert_ne!(error.verdict, Verdict::Live);
        assert!(!error.code.is_empty() && error.message.len() > 40, "{error:?}");
        error.verdict
    });
    (worked, never)
}

fn kms(code: &str, text: &str) -> Evidence {
    Evidence::answer(Source::Kms, code, text)
}

#[test]
fn what_kms_answers() {
    for (code, worked, never) in [
        ("DisabledException", Denied, Denied),
        ("NotFoundException", Denied, Misconfigured),
        ("AccessDeniedException", Denied, Misconfigured),
        ("AccessDenied", Denied, Misconfigured),
        ("InvalidCiphertextException", Misconfigured, Misconfigured),
        ("IncorrectKeyException", Misconfigured, Misconfigured),
        ("InvalidKeyUsageException", Misconfigured, Misconfigured),
        ("UnsupportedOperationException", Misconfigured, Misconfigured),
        ("ValidationException", Misconfigured, Misconfigured),
        ("InvalidArnException", Misconfigured, Misconfigured),
        ("InvalidGrantTokenException", Misconfigured, Misconfigured),
        ("ThrottlingException", Unreachable, Unreachable),
        ("LimitExceededException", Unreachable, Unreachable),
        ("RequestLimitExceeded", Unreachable, Unreachable),
        ("KeyUnavailableException", Unreachable, Unreachable),
        ("DependencyTimeoutException", Unreachable, Unreachable),
        ("KMSInternalException", Unreachable, Unreachable),
        ("InternalFailure", Unreachable, Unreachable),
        ("ServiceUnavailable", Unreachable, Unreachable),
        ("ExpiredTokenException", Unreachable, Unreachable),
        ("UnrecognizedClientException", Unreachable, Unreachable),
        ("InvalidClientTokenId", Unreachable, Unreachable),
        ("InvalidSignatureException", Unreachable, Unreachable),
        ("SignatureDoesNotMatch", Unreachable, Unreachable),
        ("IncompleteSignature", Unreachable, Unreachable),
        ("RequestExpired", Unreachable, Unreachable),
        ("MissingAuthenticationToken", Unreachable, Unreachable),
        ("DryRunOperationException", Unreachable, Misconfigured),
        ("NeverHeardOfException", Unreachable, Misconfigured),
    ] {
        assert_eq!(both(&kms(code, "text")), (worked, never), "{code}");
        assert_eq!(judge(&kms(code, "text"), &situation(true)).code, code);
    }
}

#[test]
fn a_server_error_is_never_the_customers_no() {
    for status in [500, 502, 503, 504] {
        let evidence = Evidence { status: Some(status), ..kms("AccessDeniedException", "from some proxy") };
        assert_eq!(both(&evidence), (Unreachable, Unreachable), "{status}");
    }
    // An emulator answers a denial with 403; the code decides, not the status.
    let evidence = Evidence { status: Some(403), ..kms("AccessDeniedException", "no") };
    assert_eq!(both(&evidence), (Denied, Misconfigured));
}

#[test]
fn an_invalid_state_by_describe_key() {
    for (state, verdict) in [
        ("Disabled", Denied),
        ("PendingDeletion", Denied),
        ("PendingReplicaDeletion", Denied),
        ("PendingImport", Denied),
        ("Unavailable", Denied),
        ("Creating", Unreachable),
        ("Updating", Unreachable),
    ] {
        // Whatever the text says.
        for text in ["", "did not respond in time", "ciphertext or additional authenticated data is corrupted"] {
            let evidence = Evidence { key_state: Some(state.to_owned()), ..kms("KMSInvalidStateException", text) };
            assert_eq!(both(&evidence), (verdict, verdict), "{state}: {text}");
        }
    }
}

#[test]
fn an_invalid_state_by_its_text() {
    for (text, enabled, unseen) in [
        ("arn is pending deletion.", Denied, Denied),
        ("arn is pending replica deletion.", Denied, Denied),
        ("arn is pending import.", Denied, Denied),
        ("arn is disabled.", Denied, Denied),
        // Enabled and "unavailable": not the documented state, but some failure.
        ("arn is unavailable.", Unreachable, Denied),
        ("arn is creating.", Unreachable, Unreachable),
        ("arn is updating.", Unreachable, Unreachable),
        ("XKS_PROXY_TIMED_OUT", Unreachable, Unreachable),
        ("the external key store proxy did not respond in time", Unreachable, Unreachable),
        ("KMS cannot communicate with the external key store proxy", Unreachable, Unreachable),
        ("the proxy is unavailable", Unreachable, Unreachable),
        ("because the external key is not enabled", Denied, Denied),
        ("KMS could not find the external key", Denied, Denied),
        ("the proxy denied access to the operation", Denied, Denied),
        ("the ciphertext or additional authenticated data is corrupted", Misconfigured, Misconfigured),
        ("", Unreachable, Unreachable),
        ("something new", Unreachable, Unreachable),
    ] {
        let evidence = kms("KMSInvalidStateException", text);
        assert!(evidence.needs_key_state());
        assert_eq!(both(&evidence), (unseen, unseen), "unseen: {text}");
        let evidence = Evidence { key_state: Some("Enabled".to_owned()), ..evidence };
        assert!(!evidence.needs_key_state());
        assert_eq!(both(&evidence), (enabled, enabled), "enabled: {text}");
    }
}

#[test]
fn what_sts_answers() {
    for (code, customers, own) in [
        ("AccessDenied", (Denied, Misconfigured), (Unreachable, Unreachable)),
        ("IDPRejectedClaim", (Denied, Denied), (Unreachable, Unreachable)),
        ("ValidationError", (Misconfigured, Misconfigured), (Misconfigured, Misconfigured)),
        ("MalformedPolicyDocument", (Misconfigured, Misconfigured), (Misconfigured, Misconfigured)),
        ("PackedPolicyTooLarge", (Misconfigured, Misconfigured), (Misconfigured, Misconfigured)),
        ("RegionDisabledException", (Misconfigured, Misconfigured), (Misconfigured, Misconfigured)),
        ("ExpiredToken", (Unreachable, Unreachable), (Unreachable, Unreachable)),
        ("InvalidIdentityToken", (Unreachable, Unreachable), (Unreachable, Unreachable)),
        ("IDPCommunicationError", (Unreachable, Unreachable), (Unreachable, Unreachable)),
        ("SignatureDoesNotMatch", (Unreachable, Unreachable), (Unreachable, Unreachable)),
        ("Throttling", (Unreachable, Unreachable), (Unreachable, Unreachable)),
        ("NeverHeardOf", (Unreachable, Misconfigured), (Unreachable, Misconfigured)),
    ] {
        assert_eq!(both(&Evidence::answer(Source::CustomerRole, code, "text")), customers, "customer's role: {code}");
        assert_eq!(both(&Evidence::answer(Source::OwnRole, code, "text")), own, "own role: {code}");
    }
}

#[test]
fn no_answer_is_never_the_customers_no() {
    for kind in [Kind::Timeout, Kind::Transport, Kind::Unreadable, Kind::NotSent, Kind::NoCredentials] {
        for source in [Source::Kms, Source::OwnRole, Source::CustomerRole, Source::Credentials] {
            let (worked, never) = both(&Evidence::new(source, kind, "text"));
            let wanted =
                if kind == Kind::NotSent && source != Source::Credentials { Misconfigured } else { Unreachable };
            assert_eq!((worked, never), (wanted, wanted), "{source:?} {kind:?}");
        }
    }
}

#[test]
fn what_is_asked_again() {
    for (code, status, passing) in [
        ("ThrottlingException", Some(400), true),
        ("KMSInternalException", None, true),
        ("NeverHeardOf", Some(503), true),
        ("DisabledException", Some(400), false),
        ("AccessDeniedException", Some(400), false),
        ("ExpiredTokenException", Some(400), false),
    ] {
        assert_eq!(Evidence { status, ..kms(code, "") }.is_passing(), passing, "{code}");
    }
    assert!(kms("ExpiredTokenException", "").is_stale_session());
    assert!(!kms("InvalidSignatureException", "").is_stale_session());
    assert!(Evidence::new(Source::Kms, Kind::Transport, "").is_passing());
    assert!(!Evidence::new(Source::Credentials, Kind::NoCredentials, "").is_passing());
}

#[test]
fn the_message_names_key_permission_and_role() {
    let message = judge(&kms("AccessDeniedException", "no"), &situation(true)).message;
    for part in [KEY, ROLE, "kms:Decrypt", "hyokfs check", "AWS: no"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let without = Situation { role: None, ..situation(true) };
    assert!(judge(&kms("AccessDeniedException", ""), &without).message.contains("this node's identity"));
}
