//! From what the SDK reports to what it says about the customer's will. One pure function, [`judge`].
//!
//! It decides on codes: the `code` of Key Vault's inner error, the AADSTS numbers of the directory, the HTTP status.
//! Texts are shown to the operator and decide nothing, except where a code stands inside one (`AADSTS…`, `AKV…`).
//! Whether the key ever worked splits the codes that a typing mistake gives as well as a revocation.
//! A 403 or 404 without Key Vault's error body came from something in between and proves nothing.
//!
//! Sources: Key Vault "REST API error codes" and "Common error codes"; "Microsoft Entra authentication and
//! authorization error codes"; what the public clients' issue trackers show of the bodies.

use std::time::Duration;

use azure_core::Error;
use azure_core::error::ErrorKind;
use azure_core::http::RawResponse;
use azure_core::http::headers::{HeaderName, RETRY_AFTER};

use super::http::chain;
use crate::provider::{AZURE_THROTTLED, ProviderError, Verdict};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
/// The longest part of a service's text that goes into a message.
const QUOTE: usize = 300;

/// What was asked of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read the key's public part and attributes.
    Get,
    /// Wrap.
    Wrap,
    /// Unwrap.
    Unwrap,
}

impl Operation {
    /// The permission's name in Key Vault's access policies.
    pub fn permission(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Wrap => "wrapKey",
            Operation::Unwrap => "unwrapKey",
        }
    }
}

/// The question that an error answered.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The key's name as the user wrote it.
    pub key: &'a str,
    /// What was asked.
    pub operation: Operation,
    /// Whether this key was ever used with success.
    pub worked_before: bool,
}

/// What an error means.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The error to hand on.
    pub error: ProviderError,
    /// Whether the same call may well succeed in a moment.
    pub transient: bool,
    /// How long the service asks to wait.
    pub retry_after: Option<Duration>,
    /// Whether the vault refused the token itself, so that a fresh one may help.
    pub stale_token: bool,
}

/// Judges an error of the SDK.
pub fn judge(error: &Error, asked: &Asked<'_>) -> Answer {
    let facts = Facts::of(error);
    let finding = if facts.credential {
        credential(&facts)
    } else if let Some(status) = facts.status {
        vault(status, &facts, asked)
    } else {
        transport(error, &facts)
    };
    let verdict = match finding.rule {
        Rule::Denied => Verdict::Denied,
        Rule::Unreachable | Rule::Own => Verdict::Unreachable,
        Rule::Mistake => Verdict::Misconfigured,
        Rule::DeniedIfItWorked if asked.worked_before => Verdict::Denied,
        Rule::DeniedIfItWorked => Verdict::Misconfigured,
    };
    let said = quote(&facts.text);
    let message = format!("{}: {}; {} (the service says: {said})", asked.key, finding.what, finding.advice);
    Answer {
        transient: finding.transient,
        retry_after: facts.retry_after,
        stale_token: !facts.credential && facts.status == Some(401) && finding.rule == Rule::Own,
        error: ProviderError { verdict, code: finding.code, message, request_id: facts.request_id },
    }
}

/// The call took longer than its deadline.
pub fn timed_out(asked: &Asked<'_>, deadline: Duration) -> ProviderError {
    ProviderError {
        verdict: Verdict::Unreachable,
        code: "Timeout".to_owned(),
        message: format!(
            "{}: no answer within {} ms; check the network path to the vault and to the authority, or raise call-deadline-ms",
            asked.key,
            deadline.as_millis()
        ),
        request_id: None,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Denied,
    DeniedIfItWorked,
    Unreachable,
    /// Unreachable because of our own credential.
    Own,
    Mistake,
}

struct Finding {
    rule: Rule,
    code: String,
    what: String,
    advice: &'static str,
    transient: bool,
}

fn finding(rule: Rule, code: impl Into<String>, what: impl Into<String>, advice: &'static str) -> Finding {
    Finding { rule, code: code.into(), what: what.into(), advice, transient: false }
}

#[derive(Debug, Default)]
struct Facts {
    credential: bool,
    status: Option<u16>,
    /// `error.code` of the body, only if the body has Key Vault's form.
    code: Option<String>,
    /// `error.innererror.code`, only beside `code`.
    inner: Option<String>,
    directory: Vec<u32>,
    request_id: Option<String>,
    retry_after: Option<Duration>,
    kind: Option<ErrorKind>,
    text: String,
}

impl Facts {
    fn of(error: &Error) -> Self {
        let mut facts = Facts { text: chain(error), ..Facts::default() };
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<Error>() {
                match error.kind() {
                    ErrorKind::Credential => facts.credential = true,
                    ErrorKind::HttpResponse { status, error_code, raw_response } if facts.status.is_none() => {
                        facts.status = Some(u16::from(*status));
                        facts.directory.extend(
                            error_code
                                .iter()
                                .flat_map(|codes| codes.split(','))
                                .filter_map(|code| code.parse::<u32>().ok()),
                        );
                        if let Some(response) = raw_response {
                            facts.read(response);
                        }
                    }
                    kind @ (ErrorKind::Connection | ErrorKind::Io | ErrorKind::DataConversion | ErrorKind::Other)
                        if facts.kind.is_none() =>
                    {
                        facts.kind = Some(kind.clone());
                    }
                    _ => {}
                }
            }
            next = error.source();
        }
        if facts.credential {
            facts.directory.extend(numbers_after(&facts.text, "AADSTS"));
        }
        facts
    }

    fn read(&mut self, response: &RawResponse) {
        self.request_id = response.headers().get_optional_string(&REQUEST_ID);
        self.retry_after = response
            .headers()
            .get_optional_str(&RETRY_AFTER)
            .and_then(|seconds| seconds.trim().parse().ok())
            .map(Duration::from_secs);
        let Ok(body) = serde_json::from_slice::<serde_json::Value>(response.body().as_ref()) else { return };
        let word = |value: &serde_json::Value| {
            value.as_str().filter(|text| super::blob::is_word(text, b"_.-", 100)).map(str::to_owned)
        };
        let error = &body["error"];
        self.code = word(&error["code"]);
        // Key Vault never sends an inner code without an outer one: such a body is somebody else's, and proves nothing.
        if self.code.is_some() {
            self.inner = word(&error["innererror"]["code"]).or_else(|| word(&error["innerError"]["code"]));
        }
        if let Some(message) = error["message"].as_str() {
            self.text = message.to_owned();
        }
    }
}

fn vault(status: u16, facts: &Facts, asked: &Asked<'_>) -> Finding {
    let from_vault = facts.code.is_some();
    let code = facts.inner.as_deref().or(facts.code.as_deref());
    let name = code.map_or_else(|| format!("Http{status}"), str::to_owned);
    let permission = asked.operation.permission();
    match (status, code) {
        (401, _) if numbers_after(&facts.text, "AKV").contains(&10032) => finding(
            Rule::Mistake,
            "AKV10032",
            "the vault belongs to another tenant than the one that gave the token",
            "set azure-tenant-id to the tenant that the vault is in now",
        ),
        (401, _) => finding(
            Rule::Own,
            name,
            "the vault does not take our token",
            "check azure-tenant-id, the node's clock and that azure-authority is the vault's cloud",
        ),
        (403, Some("KeyDisabled")) => finding(
            Rule::Denied,
            name,
            "the customer disabled the key",
            "nothing to do here; the customer enables it again with `az keyvault key set-attributes --enabled true`",
        ),
        (403, Some("KeyExpired" | "KeyNotYetValid")) => finding(
            Rule::Mistake,
            name,
            "the key is outside its validity period, so new keys can't be wrapped (old ones still open)",
            "ask the customer to rotate the key or to change its dates with `az keyvault key set-attributes --expires`",
        ),
        (403, Some("ForbiddenByFirewall" | "ForbiddenByConnection")) => finding(
            Rule::Unreachable,
            name,
            "the vault's network rules keep this node out",
            "if the customer did not mean that, add the node's outgoing address or private endpoint (`az keyvault network-rule add`)",
        ),
        (403, Some("ForbiddenByPolicy")) => finding(
            Rule::Denied,
            name,
            "a policy of the customer forbids the call",
            "ask the customer which Azure Policy or security rule it is",
        ),
        (403, Some("KeyOperationForbidden")) => finding(
            Rule::DeniedIfItWorked,
            name,
            format!("the key's permitted operations lack {permission}"),
            "the customer adds it with `az keyvault key set-attributes --ops wrapKey unwrapKey`",
        ),
        (403, Some(_)) if from_vault => finding(
            Rule::DeniedIfItWorked,
            name,
            format!("we may not {permission} with this key"),
            "the customer assigns the role Key Vault Crypto Service Encryption User on the key (`az role assignment create`; it can take 10 minutes), or in an access policy get, wrapKey, unwrapKey",
        ),
        (404, Some(_)) if from_vault => finding(
            Rule::DeniedIfItWorked,
            name,
            "the vault has no such key or version, or it was deleted",
            "check the name in the key's address; a deleted key comes back with `az keyvault key recover` while its retention lasts",
        ),
        (409, Some("ObjectIsDeletedButRecoverable")) => finding(
            Rule::Denied,
            name,
            "the customer deleted the key (it can still be recovered)",
            "the customer brings it back with `az keyvault key recover`",
        ),
        (409, _) => Finding {
            transient: true,
            ..finding(Rule::Unreachable, name, "the key is being changed or recovered", "wait a moment")
        },
        (429, _) => Finding {
            transient: true,
            ..finding(
                Rule::Unreachable,
                AZURE_THROTTLED,
                "the vault's limit of calls is reached",
                "lower max-rps, use a coarser granularity, or ask the customer for a vault of its own",
            )
        },
        (400, Some(_)) if from_vault => finding(
            Rule::Mistake,
            name,
            "the vault can't use this key or this wrapped key",
            "check that the key is RSA of at least 2048 bits (or AES-256 in a managed HSM) and restore the file's header from a backup if only one file is affected",
        ),
        (408 | 500..=599, _) => Finding {
            transient: true,
            ..finding(
                Rule::Unreachable,
                name,
                format!("Key Vault is in trouble (HTTP {status})"),
                "look at the status of Azure in this region",
            )
        },
        (402..=499, Some(_)) if from_vault => finding(
            Rule::Mistake,
            name,
            format!("Key Vault does not take the call (HTTP {status})"),
            "check the key's address",
        ),
        _ => finding(
            Rule::Unreachable,
            format!("Http{status}"),
            format!("something that is not Key Vault answered (HTTP {status})"),
            "check the proxy, the endpoint and what the vault's name resolves to",
        ),
    }
}

fn credential(facts: &Facts) -> Finding {
    for number in &facts.directory {
        let code = format!("AADSTS{number}");
        let known = match number {
            7_000_112 | 70_001 | 1_000_031 => finding(
                Rule::Denied,
                code,
                "our application is disabled in the customer's tenant",
                "the customer enables it again under Enterprise applications",
            ),
            65_001 | 90_094 | 90_099 | 650_056 => finding(
                Rule::Denied,
                code,
                "the customer's consent to our application is gone",
                "the customer's administrator consents again (`az ad app permission admin-consent`)",
            ),
            53_003 | 530_032 => finding(
                Rule::Denied,
                code,
                "the customer's conditional access forbids the sign-in",
                "ask the customer to allow this workload identity from this node",
            ),
            700_016 | 700_011 | 7_000_229 => finding(
                Rule::DeniedIfItWorked,
                code,
                "the customer's tenant doesn't know our application",
                "check azure-tenant-id and azure-client-id; the customer adds it with `az ad sp create --id`",
            ),
            90_002 | 900_023 => finding(
                Rule::DeniedIfItWorked,
                code,
                "there is no such tenant",
                "check azure-tenant-id and azure-authority",
            ),
            7_000_215 | 7_000_222 | 70_002 | 700_027 | 700_030 | 700_024 => finding(
                Rule::Own,
                code,
                "the directory does not take our secret, certificate or assertion (the customer has not said no)",
                "renew it (`az ad app credential reset`) before the lease runs out",
            ),
            70_021 | 700_213 | 700_212 | 700_211 => finding(
                Rule::Own,
                code,
                "no federated credential matches our assertion",
                "compare issuer, subject and audience with `az ad app federated-credential list`",
            ),
            90_006 | 90_012 | 90_090 | 90_091 | 90_033 => Finding {
                transient: true,
                ..finding(
                    Rule::Unreachable,
                    code,
                    "the directory is in trouble",
                    "wait; look at the status of Microsoft Entra",
                )
            },
            _ => continue,
        };
        return known;
    }
    if let Some(number) = facts.directory.first() {
        return finding(
            Rule::Own,
            format!("AADSTS{number}"),
            "the directory gave no token",
            "look the code up under https://login.microsoftonline.com/error and check tenant, client and credential",
        );
    }
    match (facts.status, &facts.kind) {
        (Some(status @ (408 | 410 | 429 | 500..=599)), _) => Finding {
            transient: true,
            ..finding(
                Rule::Own,
                format!("TokenHttp{status}"),
                format!("no token: the authority or the metadata service answered HTTP {status}"),
                "wait; it passes or the lease runs out",
            )
        },
        (Some(status), _) => finding(
            Rule::Own,
            format!("TokenHttp{status}"),
            format!("no token: the authority or the metadata service answered HTTP {status}"),
            "check that the machine has the identity that azure-client-id names (`az vm identity show`)",
        ),
        (None, Some(ErrorKind::Connection | ErrorKind::Io)) => Finding {
            transient: true,
            ..finding(
                Rule::Own,
                "TokenUnreachable",
                "no token: the authority or the machine's metadata service does not answer",
                "check the network path, the proxy and azure-authority; outside Azure there is no managed identity, so set azure-credential",
            )
        },
        _ => {
            finding(Rule::Own, "NoToken", "no token could be obtained", "check azure-credential and the files it names")
        }
    }
}

fn transport(error: &Error, facts: &Facts) -> Finding {
    let transient = |found| Finding { transient: true, ..found };
    match error.kind() {
        // The SDK's refusal to send a token for one service to another; see its KeyVaultAuthorizer.
        ErrorKind::Other if facts.text.contains("challenge resource") => finding(
            Rule::Mistake,
            "ChallengeMismatch",
            "the answering host asks for a token of another service",
            "check the vault's host name and endpoint: the token was not sent",
        ),
        ErrorKind::Connection | ErrorKind::Io if facts.text.contains("certificate") => finding(
            Rule::Unreachable,
            "Tls",
            "the vault's certificate is not trusted",
            "if a proxy opens TLS, name its authority with ca-file; else check what the vault's name resolves to",
        ),
        ErrorKind::Connection | ErrorKind::Io if facts.text.contains("dns error") => transient(finding(
            Rule::Unreachable,
            "Dns",
            "the vault's name does not resolve",
            "check the name and the resolver; the name of a deleted vault is gone too",
        )),
        ErrorKind::Connection => transient(finding(
            Rule::Unreachable,
            "Connection",
            "the vault can't be reached",
            "check the network path, the proxy and the firewall",
        )),
        ErrorKind::Io => transient(finding(
            Rule::Unreachable,
            "Interrupted",
            "the vault did not answer in time, or the connection broke",
            "check the network path",
        )),
        _ => finding(
            Rule::Unreachable,
            "GarbledAnswer",
            "the answer is not Key Vault's",
            "check the proxy, the endpoint and what the vault's name resolves to",
        ),
    }
}

/// The numbers that follow directly on `prefix` in `text`.
fn numbers_after<'a>(text: &'a str, prefix: &'a str) -> Vec<u32> {
    text.match_indices(prefix)
        .filter_map(|(at, _)| {
            let digits = &text[at + prefix.len()..];
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            digits[..end].parse().ok()
        })
        .collect()
}

/// The first line, cut to a length that fits a log.
fn quote(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut cut: String = line.chars().filter(|c| !c.is_control()).take(QUOTE).collect();
    if cut.len() < line.len() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests;
