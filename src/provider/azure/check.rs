//! The steps of `hyokfs check` for Azure: our token, then get, wrap and unwrap by themselves, then that a wrapped key
//! opens neither with another key version nor for another file.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::super::check::{Step, Subject, no_randomness};
use super::blob::{self, Algorithm, KeyId};
use super::public::State;
use super::verdict::{Asked, Operation, judge, timed_out};
use super::{AzureKey, Context, KeySettings, ProviderError, random};
use crate::crypto::Secret;
use crate::format::FileId;

const VAULT_ROLE: &str = "Key Vault Crypto Service Encryption User";
const HSM_ROLE: &str = "Managed HSM Crypto Service Encryption User";

/// Tries everything in order.
pub(in super::super) async fn check(
    host: &str,
    name: &str,
    version: Option<&str>,
    settings: &KeySettings,
    subject: &Subject,
) -> Result<Vec<Step>, ProviderError> {
    let key = AzureKey::new(host, name, version, settings)?;
    let random_file = || FileId::random().map_err(|_| no_randomness());
    let context = Context { volume: subject.volume()?, file: Some(random_file()?), tenant: settings.tenant.as_deref() };
    let other = Context { file: Some(random_file()?), ..context };
    let mut steps = Vec::new();
    let Some(principal) = token(&key, &mut steps).await else { return Ok(steps) };
    let facts = match key.ask_facts().await {
        Ok(facts) => {
            steps.push(attributes(&key, &facts));
            Some(facts)
        }
        Err(error) => {
            steps.push(fixed(&key, &principal, Operation::Get, Step::refused("read the key", &error), &error));
            None
        }
    };
    let once = random().map_err(|error| key.blob_error(error))?;
    let algorithm = facts.as_ref().map_or(Algorithm::RsaOaep256, |facts| facts.algorithm);
    let mut wrapped = None;
    match key.wrap_there(&context, algorithm, &once).await {
        Ok((id, ciphertext, _)) => {
            steps.push(Step::good("wrap a key", format!("{} wrapped it", id.kid())));
            wrapped = Some((id, ciphertext));
        }
        Err(error) => {
            let error = key.explain_wrap(error).await;
            steps.push(fixed(&key, &principal, Operation::Wrap, Step::refused("wrap a key", &error), &error));
        }
    }
    // Without the permission to wrap, the public key still shows whether we may unwrap.
    if wrapped.is_none()
        && let Some(facts) = &facts
    {
        wrapped = facts.wrap_here(&once).map(|ciphertext| (facts.id.clone(), ciphertext));
    }
    if let Some((id, ciphertext)) = wrapped {
        unwrap(&key, &principal, (algorithm, id, ciphertext), &once, (&context, &other), &mut steps).await?;
    }
    Ok(steps)
}

/// A token, and whom it names (`None`: no token).
async fn token(key: &AzureKey, steps: &mut Vec<Step>) -> Option<String> {
    const STEP: &str = "get a token from the customer's directory";
    let bare = key.host.split(':').next().unwrap_or(&key.host);
    let service = bare.split_once('.').map_or(bare, |(_, service)| service);
    let scope = format!("https://{service}/.default");
    let asked = Asked { key: &key.label, operation: Operation::Get, worked_before: false };
    let given = match key.credentials.build(&key.http) {
        Ok(credential) => {
            timeout_at(Instant::now() + key.deadline, async move { credential.get_token(&[&scope], None).await }).await
        }
        Err(error) => {
            steps.push(Step::refused(STEP, &error));
            return None;
        }
    };
    let error = match given {
        Ok(Ok(token)) => {
            let principal = object_id(token.token.secret());
            let shown = principal.as_deref().map_or_else(String::new, |id| format!(" for the principal {id}"));
            steps.push(Step::good(STEP, format!("it gave one{shown}")));
            return Some(principal.unwrap_or_else(|| "OBJECT_ID_OF_OUR_SERVICE_PRINCIPAL".to_owned()));
        }
        Ok(Err(error)) => judge(&error, &asked).error,
        Err(_) => timed_out(&asked, key.deadline),
    };
    steps.push(Step::refused(STEP, &error));
    None
}

/// The claim `oid` of a token: the principal as role assignments name it. Only shown, never trusted.
fn object_id(token: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    claims["oid"].as_str().filter(|id| blob::is_word(id, b"-", 36)).map(str::to_owned)
}

fn attributes(key: &AzureKey, facts: &super::Facts) -> Step {
    const STEP: &str = "read the key";
    let kid = facts.id.kid();
    match facts.state(SystemTime::now()) {
        State::Enabled => Step::good(STEP, format!("{kid} is enabled ({})", facts.kind)),
        _ => match key.expect_usable(facts) {
            Err(error) => Step::refused(STEP, &error),
            Ok(()) => Step::good(STEP, format!("{kid} has just become usable ({})", facts.kind)),
        },
    }
}

async fn unwrap(
    key: &AzureKey,
    principal: &str,
    (algorithm, id, ciphertext): (Algorithm, KeyId, Vec<u8>),
    once: &Secret,
    (context, other): (&Context<'_>, &Context<'_>),
    steps: &mut Vec<Step>,
) -> Result<(), ProviderError> {
    const VERSION: &str = "another key version is refused";
    const FILE: &str = "another file's context is refused";
    let secret = random().map_err(|error| key.blob_error(error))?;
    let seal = |id: &KeyId| {
        blob::seal(algorithm, id, &ciphertext, once, context, &secret).map_err(|error| key.blob_error(error))
    };
    let bytes = seal(&id)?;
    match key.unwrap_with(key.shared_client(), context, &bytes).await {
        Ok((again, _)) if again.expose() == secret.expose() => {
            steps.push(Step::good("unwrap the key", "the same key came back"));
        }
        Ok(_) => {
            steps.push(Step::bad("unwrap the key", "WrongKey", "another key came back; don't use this key service"));
            return Ok(());
        }
        Err(error) => {
            let step = Step::refused("unwrap the key", &error);
            steps.push(fixed(key, principal, Operation::Unwrap, step, &error));
            return Ok(());
        }
    }
    let absent = FileId::random().map_err(|_| no_randomness())?.to_string();
    let elsewhere = seal(&KeyId { version: absent, ..id })?;
    steps.push(match key.unwrap_with(key.shared_client(), context, &elsewhere).await {
        Err(error) if error.verdict != super::Verdict::Unreachable => {
            Step::good(VERSION, format!("refused with {}", error.code))
        }
        Err(error) => Step::refused(VERSION, &error),
        Ok(_) => Step::bad(
            VERSION,
            "NotVersioned",
            "the service unwrapped with a version that does not exist; don't use this key service",
        ),
    });
    steps.push(match key.unwrap_with(key.shared_client(), other, &bytes).await {
        Err(error) if error.code == "OtherContext" => Step::good(FILE, format!("refused with {}", error.code)),
        Err(error) => Step::refused(FILE, &error),
        Ok(_) => {
            Step::bad(FILE, "NotBound", "the wrapped key is not bound to its file; don't use this build of hyokfs")
        }
    });
    Ok(())
}

/// With the assignment that gives the permission, where a permission is what lacks.
fn fixed(key: &AzureKey, principal: &str, operation: Operation, step: Step, error: &ProviderError) -> Step {
    let hsm = key.is_hsm();
    let vault = key.host.split('.').next().unwrap_or(&key.host);
    let (name, host) = (&key.name, &key.host);
    let word = match operation {
        Operation::Get => "read",
        Operation::Wrap => "wrap",
        Operation::Unwrap => "unwrap",
    };
    match error.code.as_str() {
        "ForbiddenByRbac" | "AccessDenied" | "Forbidden" => {
            let (role, action, command) = if hsm {
                (
                    HSM_ROLE,
                    format!("Microsoft.KeyVault/managedHsm/keys/{word}/action"),
                    format!(
                        "az keyvault role assignment create --hsm-name {vault} --role '{HSM_ROLE}' --assignee-object-id {principal} --assignee-principal-type ServicePrincipal --scope /keys/{name}"
                    ),
                )
            } else {
                let action = if word == "read" { "read".to_owned() } else { format!("{word}/action") };
                (
                    VAULT_ROLE,
                    format!("Microsoft.KeyVault/vaults/keys/{action}"),
                    format!(
                        "az role assignment create --role '{VAULT_ROLE}' --assignee-object-id {principal} --assignee-principal-type ServicePrincipal --scope \"$(az keyvault show --name {vault} --query id --output tsv)/keys/{name}\""
                    ),
                )
            };
            let policy = (!hsm).then(|| {
                format!("az keyvault set-policy --name {vault} --object-id {principal} --key-permissions get wrapKey unwrapKey")
            });
            let statement = json!({
                "role_assignment": { "role_name": role, "principal_id": principal, "scope": format!("{host}/keys/{name}"), "command": command },
                "access_policy_instead": policy,
            });
            step.fix(&action, statement, format!("the access control of the key https://{host}/keys/{name}"))
        }
        "KeyOperationForbidden" => {
            let flag = if hsm { "--hsm-name" } else { "--vault-name" };
            let command =
                format!("az keyvault key set-attributes {flag} {vault} --name {name} --ops wrapKey unwrapKey");
            step.fix(
                operation.permission(),
                json!({ "key_ops": ["wrapKey", "unwrapKey"], "command": command }),
                format!("the permitted operations of the key https://{host}/keys/{name}"),
            )
        }
        _ => step,
    }
}
