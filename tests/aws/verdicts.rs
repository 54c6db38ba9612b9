//! The table from error to verdict, row by row, over the wire: once for a key that worked before, once for one that
//! never did.

use std::time::Duration;

use hyokfs::provider::{ProviderError, Verdict, aws};
use serde_json::json;

use super::fake::{VENDOR, What, World};
use super::node::{self, node_test, plain, volume};

/// What a row does to the world, given the key's ARN.
type Break = Box<dyn Fn(&mut World, &str) + Send + Sync>;

fn state(state: &'static str) -> Break {
    Box::new(move |world, arn| world.key(arn).state = state.to_owned())
}

fn refusal(state: &'static str, code: &'static str, text: &'static str) -> Break {
    Box::new(move |world, arn| {
        let key = world.key(arn);
        key.state = state.to_owned();
        key.refusal = Some((code.to_owned(), text.to_owned()));
    })
}

fn store(text: &'static str) -> Break {
    Box::new(move |world, arn| world.key(arn).store_trouble = Some(text.to_owned()))
}

fn answer(status: u16, code: &'static str) -> Break {
    Box::new(move |world, _| world.fail(Some("Decrypt"), None, What::error(status, code, "as the service says")))
}

fn fault(what: What) -> Break {
    Box::new(move |world, _| world.fail(Some("Decrypt"), None, what.clone()))
}

struct Row {
    name: &'static str,
    broken: Break,
    code: &'static str,
    /// When the key worked before, and when it never did.
    verdicts: [Verdict; 2],
    /// A part of the message that tells what to do.
    says: &'static str,
}

fn row(
    name: &'static str,
    broken: Break,
    code: &'static str,
    worked: Verdict,
    never: Verdict,
    says: &'static str,
) -> Row {
    Row { name, broken, code, verdicts: [worked, never], says }
}

/// Every row whose cause KMS itself reports.
fn rows() -> Vec<Row> {
    use Verdict::{Denied as D, Misconfigured as M, Unreachable as U};
    let invalid = "KMSInvalidStateException";
    let mut rows = vec![
        row("disabled", state("Disabled"), "DisabledException", D, D, "enable-key"),
        row("pending deletion", state("PendingDeletion"), invalid, D, D, "cancel-key-deletion"),
        row(
            "pending deletion, other code",
            refusal("PendingDeletion", "DisabledException", "key is pending deletion."),
            "DisabledException",
            D,
            D,
            "cancel-key-deletion",
        ),
        row(
            "deleted",
            Box::new(|world, arn| drop(world.keys.remove(arn.rsplit('/').next().unwrap()))),
            "NotFoundException",
            D,
            M,
            "key",
        ),
        row("material expired", state("PendingImport"), invalid, D, D, "import-key-material"),
        row("store disconnected", state("Unavailable"), invalid, D, D, "connect-custom-key-store"),
        row("being updated", state("Updating"), invalid, U, U, "asked again"),
        row("being created", state("Creating"), invalid, U, U, "asked again"),
        row(
            "policy denies",
            Box::new(|world, arn| {
                world.key(arn).policy = json!({"Statement": [
                    {"Effect": "Allow", "Principal": {"AWS": VENDOR}, "Action": "kms:*", "Resource": "*"},
                    {"Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"}]});
            }),
            "AccessDeniedException",
            D,
            M,
            "kms:Decrypt",
        ),
        row(
            "policy emptied",
            Box::new(|world, arn| world.key(arn).policy = json!({"Statement": []})),
            "AccessDeniedException",
            D,
            M,
            "hyokfs check",
        ),
        row(
            "context condition",
            Box::new(|world, arn| {
                world.key(arn).policy = json!({"Statement": [{"Effect": "Allow", "Principal": {"AWS": VENDOR}, "Action": "kms:*",
                    "Resource": "*", "Condition": {"StringEquals": {"kms:EncryptionContext:hyokfs:tenant": "acme"}}}]});
            }),
            "AccessDeniedException",
            D,
            M,
            "condition",
        ),
    ];
    for text in [
        "KMS operation failed because the external key store proxy did not respond in time. XKS_PROXY_TIMED_OUT",
        "AWS KMS cannot communicate with the external key store proxy.",
        "The external key store proxy is unavailable and unhealthy",
        "a text that nobody has seen yet",
    ] {
        rows.push(row("external store out of reach", store(text), invalid, U, U, "external key store proxy"));
    }
    for text in [
        "KMS operation failed because the external key is not enabled in the external key manager.",
        "AWS KMS could not find the external key in the external key store.",
        "The external key store proxy denied access to the operation.",
    ] {
        rows.push(row("external key taken away", store(text), invalid, D, D, "restores it"));
    }
    rows.push(row(
        "external blob damaged",
        store("The ciphertext or additional authenticated data is corrupted."),
        invalid,
        M,
        M,
        "backup",
    ));
    for code in ["ThrottlingException", "LimitExceededException", "RequestLimitExceeded"] {
        rows.push(row("throttled", answer(400, code), code, U, U, "quota"));
    }
    for code in ["KeyUnavailableException", "DependencyTimeoutException", "KMSInternalException", "InternalFailure"] {
        rows.push(row("busy", answer(500, code), code, U, U, "asked again"));
    }
    rows.push(row("busy", answer(503, "ServiceUnavailable"), "ServiceUnavailable", U, U, "asked again"));
    rows.push(row("any 5xx", answer(502, "SomethingNew"), "SomethingNew", U, U, "asked again"));
    for code in [
        "ExpiredTokenException",
        "UnrecognizedClientException",
        "InvalidSignatureException",
        "IncompleteSignature",
        "RequestExpired",
        "MissingAuthenticationToken",
        "InvalidClientTokenId",
    ] {
        rows.push(row("our credentials", answer(400, code), code, U, U, "nothing is wrong at the customer's"));
    }
    for (code, says) in [
        ("InvalidCiphertextException", "backup"),
        ("IncorrectKeyException", "another key"),
        ("InvalidKeyUsageException", "SYMMETRIC_DEFAULT"),
        ("UnsupportedOperationException", "SYMMETRIC_DEFAULT"),
        ("ValidationException", "SYMMETRIC_DEFAULT"),
        ("InvalidArnException", "key ARN"),
        ("InvalidGrantTokenException", "grant token"),
    ] {
        rows.push(row("wrong call", answer(400, code), code, M, M, says));
    }
    rows.push(row("unknown code", answer(400, "SomethingNewException"), "SomethingNewException", U, M, "CloudTrail"));
    rows.push(row("closed", fault(What::Close), "ConnectionFailed", U, U, "firewall"));
    rows.push(row("captive portal", fault(What::Garbage), "UnreadableAnswer", U, U, "endpoint"));
    rows.push(row("hangs", fault(What::Hang(Duration::from_secs(30))), "Timeout", U, U, "in time"));
    rows
}

/// Asks within `deadline_ms`: long, so that a busy machine changes nothing, except where nothing will answer.
async fn ask(worked: bool, broken: &Break, deadline_ms: u64) -> ProviderError {
    let (fake, arn, provider) = plain(|_| {}).await;
    let (_, canary) = provider.generate(&volume()).await.unwrap();
    // A provider of its own: one that has seen nothing yet, but may be told.
    let mut settings = node::settings(&fake);
    settings.worked_before = worked;
    settings.call_deadline_ms = deadline_ms;
    let provider = aws::connect(&arn, &settings).await.unwrap();
    broken(&mut fake.world(), &arn);
    let ordinary = provider.unwrap(&volume(), &canary.blob).await.err().unwrap();
    let probed = provider.probe(&volume(), &canary.blob).await.unwrap_err();
    assert_eq!((probed.verdict, &probed.code), (ordinary.verdict, &ordinary.code), "the probe sees the same");
    ordinary
}

async fn judge_row(at: usize, row: Row) {
    for (worked, want) in [(true, row.verdicts[0]), (false, row.verdicts[1])] {
        let error = ask(worked, &row.broken, if row.code == "Timeout" { 1_100 } else { 20_000 }).await;
        let at = format!("row {at}: {} (worked before: {worked}): {error:?}", row.name);
        assert_eq!((error.verdict, error.code.as_str()), (want, row.code), "{at}");
        assert!(error.message.contains(row.says), "{at}");
        let keyless = row.name == "external blob damaged" || row.name == "our credentials";
        assert!(keyless || error.message.contains("arn:aws:kms"), "{at}");
        let answered = !matches!(row.code, "ConnectionFailed" | "Timeout");
        assert_eq!(error.request_id.is_some(), answered, "{at}");
    }
}

node_test! {
    async fn every_row_of_the_table_over_the_wire() {
        let rows: Vec<_> = rows().into_iter().enumerate().map(|(at, row)| tokio::spawn(judge_row(at, row))).collect();
        assert!(rows.len() >= 40, "{}", rows.len());
        for row in rows {
            row.await.unwrap();
        }
    }

    async fn success_turns_a_mistake_into_the_customers_no() {
        let (fake, arn, provider) = plain(|_| {}).await;
        fake.world().key(&arn).policy = json!({"Statement": []});
        assert_eq!(provider.generate(&volume()).await.err().unwrap().verdict, Verdict::Misconfigured);
        let open = json!({"Statement": [{"Effect": "Allow", "Principal": {"AWS": VENDOR}, "Action": "kms:*", "Resource": "*"}]});
        fake.world().key(&arn).policy = open;
        provider.generate(&volume()).await.unwrap();
        fake.world().key(&arn).policy = json!({"Statement": []});
        assert_eq!(provider.generate(&volume()).await.err().unwrap().verdict, Verdict::Denied);
    }

    async fn a_state_is_read_from_the_text_where_describe_is_not_allowed() {
        for (state, want) in [
            ("PendingDeletion", Verdict::Denied),
            ("PendingImport", Verdict::Denied),
            ("Unavailable", Verdict::Denied),
            ("Updating", Verdict::Unreachable),
        ] {
            let (fake, arn, provider) = plain(|_| {}).await;
            let (_, canary) = provider.generate(&volume()).await.unwrap();
            fake.world().key(&arn).state = state.to_owned();
            fake.world().fail(Some("DescribeKey"), None, What::error(400, "AccessDeniedException", "no"));
            let error = provider.unwrap(&volume(), &canary.blob).await.err().unwrap();
            assert_eq!(error.verdict, want, "{state}: {error}");
        }
    }

    async fn a_port_where_nobody_listens_is_unreachable() {
        let (fake, arn, _) = plain(|_| {}).await;
        let settings = node::settings(&fake);
        drop(fake);
        let provider = aws::connect(&arn, &settings).await.unwrap();
        let error = provider.generate(&volume()).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "ConnectionFailed"));
        let mut nowhere = settings.clone();
        nowhere.endpoint = Some("https://kms.invalid".to_owned());
        let error = aws::connect(&arn, &nowhere).await.unwrap().generate(&volume()).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "ConnectionFailed"));
    }

    async fn what_sts_says_of_the_customers_role() {
        use Verdict::{Denied as D, Misconfigured as M, Unreachable as U};
        for (status, code, worked, never) in [
            (403, "AccessDenied", D, M),
            (400, "ValidationError", M, M),
            (400, "MalformedPolicyDocument", M, M),
            (400, "PackedPolicyTooLarge", M, M),
            (403, "RegionDisabledException", M, M),
            (403, "ExpiredToken", U, U),
            (403, "InvalidClientTokenId", U, U),
            (403, "SignatureDoesNotMatch", U, U),
            (400, "Throttling", U, U),
            (500, "InternalFailure", U, U),
            (400, "SomethingNew", U, M),
        ] {
            for (before, want) in [(true, worked), (false, never)] {
                let (fake, _arn, provider) = node::through_role(|settings| settings.worked_before = before).await;
                fake.world().fail(Some("AssumeRole"), None, What::error(status, code, "as STS says"));
                let error = provider.generate(&volume()).await.err().unwrap();
                assert_eq!((error.verdict, error.code.as_str()), (want, code), "{before}: {error}");
                let error = provider.probe(&volume(), b"anything").await.unwrap_err();
                assert_eq!((error.verdict, error.code.as_str()), (want, code), "{before}: {error}");
            }
        }
    }
}
