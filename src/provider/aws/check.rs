//! The steps of `hyokfs check` for AWS: who the node is, the way to the customer's role and that it is closed without
//! the external id, then each permission by itself.

use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, KeySpec, KeyState, KeyUsageType};

use super::super::check::{Step, Subject, no_randomness};
use super::super::policy::{allow_statement, assume_statement};
use super::evidence::{Evidence, Source};
use super::verdict::Operation;
use super::{AwsKms, Context, FileId, KeySettings, ProviderError, encryption_context};

/// Tries everything in order.
pub(in super::super) async fn check(
    arn: &str,
    settings: &KeySettings,
    subject: &Subject,
) -> Result<Vec<Step>, ProviderError> {
    let key = AwsKms::new(arn, settings).await?;
    let random = || FileId::random().map_err(|_| no_randomness());
    let context = Context { volume: subject.volume()?, file: Some(random()?), tenant: settings.tenant.as_deref() };
    let other = Context { file: Some(random()?), ..context };
    let mut steps = Vec::new();
    let Some(node) = identity(&key, &mut steps).await else { return Ok(steps) };
    if key.sessions.customer_role().is_some() && !role(&key, settings, &node, &mut steps).await {
        return Ok(steps);
    }
    let principal = key.sessions.customer_role().map_or(node, str::to_owned);
    permissions(&key, &principal, &context, &other, &mut steps).await;
    Ok(steps)
}

/// The node's own identity, as policies name it.
async fn identity(key: &AwsKms, steps: &mut Vec<Step>) -> Option<String> {
    const STEP: &str = "this node's identity";
    match key.limit(key.sessions.identity()).await {
        Ok(arn) => {
            let named = principal(&arn);
            steps.push(Step::good(STEP, format!("this node is {named}")));
            Some(named)
        }
        Err(evidence) => {
            steps.push(Step::refused(STEP, &key.judge(Operation::Decrypt, &evidence)));
            None
        }
    }
}

/// `arn:aws:sts::1:assumed-role/NAME/SESSION` as `arn:aws:iam::1:role/NAME`: how a policy names it.
fn principal(arn: &str) -> String {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    match parts[..] {
        ["arn", partition, "sts", _, account, resource] => match resource.strip_prefix("assumed-role/") {
            Some(rest) => {
                let name = rest.split('/').next().unwrap_or(rest);
                format!("arn:{partition}:iam::{account}:role/{name}")
            }
            None => arn.to_owned(),
        },
        _ => arn.to_owned(),
    }
}

/// The customer's role: open with the external id, closed without it and with another one.
async fn role(key: &AwsKms, settings: &KeySettings, node: &str, steps: &mut Vec<Step>) -> bool {
    let role = key.sessions.customer_role().unwrap_or_default().to_owned();
    let hops = settings.assume_role.len();
    // The identity that knocks at the customer's role: the last of the vendor's.
    let knocks = if hops > 1 { settings.assume_role[hops - 2].clone() } else { node.to_owned() };
    let id = settings.external_id.as_deref();
    let trust = format!("the trust policy of {role}");
    let step = format!("assume {role}");
    match key.limit(key.sessions.fresh()).await {
        Ok(_) => steps.push(Step::good(&step, format!("{knocks} may assume it"))),
        Err(evidence) => {
            let refused = Step::refused(&step, &key.judge(Operation::Decrypt, &evidence));
            steps.push(match (evidence.source, is_denial(&evidence)) {
                (Source::CustomerRole, true) => refused.fix("sts:AssumeRole", assume_statement(&knocks, id), &trust),
                (Source::OwnRole, true) => {
                    refused.fix("sts:AssumeRole", assume_statement(node, None), "the trust policy of the vendor's role")
                }
                _ => refused,
            });
            return false;
        }
    }
    let foreign = account(&role) != account(&knocks);
    let step = "the role is closed without the external id";
    match id {
        None if !foreign => steps.push(Step::good(step, "not needed: the role is in the node's own account")),
        None => steps.push(
            Step::bad(
                step,
                "NoExternalId",
                "no external id is configured: whoever makes the vendor act for another customer reaches this key; make \
                 one with `hyokfs policy` and give it with --external-id",
            )
            .fix("sts:ExternalId", assume_statement(&knocks, Some("EXTERNAL-ID")), &trust),
        ),
        Some(id) => {
            let wrong = format!("not-{}", id.chars().take(1000).collect::<String>());
            for (step, sent) in [(step, None), ("the role is closed with another external id", Some(wrong.as_str()))] {
                steps.push(match key.limit(key.sessions.fresh_with(sent)).await {
                    Err(evidence) if is_denial(&evidence) => Step::good(step, "refused, as it must be"),
                    Err(evidence) => Step::refused(step, &key.judge(Operation::Decrypt, &evidence)),
                    Ok(_) => Step::bad(
                        step,
                        "ExternalIdNotRequired",
                        format!("{role} opens without the right external id; replace the statement of its trust policy"),
                    )
                    .fix("sts:ExternalId", assume_statement(&knocks, Some(id)), &trust),
                });
            }
        }
    }
    true
}

fn account(arn: &str) -> Option<&str> {
    arn.split(':').nth(4)
}

fn is_denial(evidence: &Evidence) -> bool {
    evidence.code.as_deref().is_some_and(|code| matches!(code, "AccessDenied" | "AccessDeniedException"))
}

/// Each permission by itself, and what KMS must refuse.
async fn permissions(key: &AwsKms, who: &str, context: &Context<'_>, other: &Context<'_>, steps: &mut Vec<Step>) {
    let place = format!(
        "the policy of the key {}; or the policy of {who}, without Principal and with the key's ARN as Resource, where the \
         key's policy leaves access to its account",
        key.arn
    );
    let outcome = |step: &str, operation: Operation, evidence: &Evidence| {
        let refused = Step::refused(step, &key.judge(operation, evidence));
        if !is_denial(evidence) {
            return refused;
        }
        refused.fix(operation.permission(), allow_statement(operation.permission(), who), &place)
    };
    steps.push(describe(key, &outcome).await);

    let step = "make a key (GenerateDataKey)";
    let generated = key
        .limit_in_session(async {
            let call = key.client.generate_data_key().key_id(&key.arn).key_spec(DataKeySpec::Aes256);
            let call = call.set_encryption_context(Some(encryption_context(context))).set_grant_tokens(key.tokens());
            call.send().await.map_err(|error| Evidence::of(Source::Kms, &error))
        })
        .await;
    let mut blob = None;
    steps.push(match generated {
        Ok(answer) => {
            drop(zeroize::Zeroizing::new(answer.plaintext.map(Blob::into_inner).unwrap_or_default()));
            blob = answer.ciphertext_blob;
            Step::good(step, "a wrapped key was made")
        }
        Err(evidence) => outcome(step, Operation::GenerateDataKey, &evidence),
    });

    let step = "wrap a key (Encrypt)";
    let wrapped = key
        .limit_in_session(async {
            let call = key.client.encrypt().key_id(&key.arn).plaintext(Blob::new([0x5a; 32]));
            let call = call.set_encryption_context(Some(encryption_context(context))).set_grant_tokens(key.tokens());
            call.send().await.map_err(|error| Evidence::of(Source::Kms, &error))
        })
        .await;
    steps.push(match wrapped {
        Ok(answer) => {
            blob = blob.or(answer.ciphertext_blob);
            Step::good(step, "a key was wrapped")
        }
        Err(evidence) => outcome(step, Operation::Encrypt, &evidence),
    });

    // Without a blob of its own key, KMS still answers whether Decrypt is allowed at all.
    let has_blob = blob.is_some();
    let blob = blob.map(Blob::into_inner).unwrap_or_else(|| vec![0; 64]);
    let step = "unwrap the key (Decrypt)";
    match key.limit_in_session(key.decrypt(&key.client, context, &blob)).await {
        Ok((plaintext, ..)) => {
            drop(zeroize::Zeroizing::new(plaintext.map(Blob::into_inner).unwrap_or_default()));
            steps.push(Step::good(step, "the key came back"));
        }
        Err(evidence) if !has_blob && evidence.code.as_deref() == Some("InvalidCiphertextException") => {
            steps.push(Step::good(step, "no sign of a refusal; there was no wrapped key to try it on"));
            return;
        }
        Err(evidence) => {
            steps.push(outcome(step, Operation::Decrypt, &evidence));
            return;
        }
    }
    let step = "another file's context is refused";
    steps.push(match key.limit_in_session(key.decrypt(&key.client, other, &blob)).await {
        Err(evidence) if refuses_context(&evidence) => Step::good(step, "refused, as it must be"),
        Err(evidence) => Step::refused(step, &key.judge(Operation::Decrypt, &evidence)),
        Ok(_) => Step::bad(
            step,
            "NotBound",
            "the service opened a key under another file's context: it is not AWS KMS; check --endpoint",
        ),
    });
    if let Some(tenant) = context.tenant {
        let step = "another tenant's context is refused";
        let foreign = format!("not-{tenant}");
        let foreign = Context { tenant: Some(&foreign), ..*context };
        steps.push(match key.limit_in_session(key.decrypt(&key.client, &foreign, &blob)).await {
            Err(evidence) if refuses_context(&evidence) => Step::good(step, "refused, as it must be"),
            Err(evidence) => Step::refused(step, &key.judge(Operation::Decrypt, &evidence)),
            Ok(_) => Step::bad(
                step,
                "NotBound",
                "the service opened a key under another tenant's context: it is not AWS KMS; check --endpoint",
            ),
        });
    }
}

/// Wrong context, or a condition of the policy on the context.
fn refuses_context(evidence: &Evidence) -> bool {
    is_denial(evidence) || evidence.code.as_deref() == Some("InvalidCiphertextException")
}

async fn describe(key: &AwsKms, outcome: &impl Fn(&str, Operation, &Evidence) -> Step) -> Step {
    let step = "describe the key (DescribeKey)";
    let answer = key
        .limit_in_session(async {
            let call = key.client.describe_key().key_id(&key.arn).set_grant_tokens(key.tokens());
            call.send().await.map_err(|error| Evidence::of(Source::Kms, &error))
        })
        .await;
    let found = match answer {
        Err(evidence) => return outcome(step, Operation::DescribeKey, &evidence),
        Ok(answer) => match answer.key_metadata {
            Some(found) => found,
            None => return Step::bad(step, "UnreadableAnswer", "DescribeKey told nothing; check --endpoint"),
        },
    };
    let arn = &key.arn;
    let state = found.key_state.as_ref().map_or("unknown", KeyState::as_str);
    let spec = found.key_spec.as_ref().map_or("unknown", KeySpec::as_str);
    let usage = found.key_usage.as_ref().map_or("unknown", KeyUsageType::as_str);
    if found.key_usage != Some(KeyUsageType::EncryptDecrypt) || found.key_spec != Some(KeySpec::SymmetricDefault) {
        return Step::bad(
            step,
            "InvalidKeyUsage",
            format!("{arn} is {spec} for {usage}; hyokfs needs a symmetric key: `aws kms create-key` without options"),
        );
    }
    match found.key_state {
        Some(KeyState::Enabled) => Step::good(step, format!("{arn} is Enabled ({spec})")),
        Some(KeyState::Disabled) => {
            Step::bad(step, "Disabled", format!("{arn} is disabled: `aws kms enable-key --key-id {arn}`"))
        }
        _ => Step::bad(step, state, format!("{arn} is in the state {state}; its owner brings it back to Enabled")),
    }
}

#[cfg(test)]
mod tests {
    use super::principal;

    #[test]
    fn a_session_is_named_by_its_role() {
        assert_eq!(
            principal("arn:aws:sts::111111111111:assumed-role/node/i-0abc"),
            "arn:aws:iam::111111111111:role/node"
        );
        assert_eq!(principal("arn:aws:iam::111111111111:user/me"), "arn:aws:iam::111111111111:user/me");
        assert_eq!(
            principal("arn:aws:sts::111111111111:federated-user/x"),
            "arn:aws:sts::111111111111:federated-user/x"
        );
    }
}
