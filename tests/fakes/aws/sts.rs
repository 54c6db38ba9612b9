//! STS: AssumeRole, AssumeRoleWithWebIdentity and GetCallerIdentity in the query protocol.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::http::{Request, Response};
use super::world::{Logged, Session, World};

/// An error answer. STS answers 403 to a refusal and 400 to a mistake.
pub fn error(status: u16, code: &str, message: &str) -> Response {
    let body = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{code}</Code>\
         <Message>{}</Message></Error><RequestId>fake-sts</RequestId></ErrorResponse>",
        escape(message)
    );
    Response::new(status, "text/xml", body.into_bytes())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Answers one STS request.
pub fn answer(world: &mut World, request: &Request) -> Response {
    let form = request.form();
    let operation = request.operation();
    let mut logged = Logged {
        operation: operation.clone(),
        resource: form.get("RoleArn").cloned().unwrap_or_default(),
        request: json!(form),
        ..Logged::default()
    };
    let outcome = match operation.as_str() {
        "AssumeRole" => assume(world, request, &form, &mut logged),
        "AssumeRoleWithWebIdentity" => assume_by_web_identity(world, &form, &mut logged),
        "GetCallerIdentity" => identity(world, request),
        _ => Err((400, "InvalidAction", format!("Could not find operation {operation}"))),
    };
    logged.outcome = match &outcome {
        Ok(_) => "ok".to_owned(),
        Err((_, code, _)) => (*code).to_owned(),
    };
    world.log.push(logged);
    match outcome {
        Ok(body) => Response::new(200, "text/xml", body.into_bytes()),
        Err((status, code, message)) => error(status, code, &message),
    }
}

type Outcome = Result<String, (u16, &'static str, String)>;

fn caller(world: &World, request: &Request) -> Result<super::world::Caller, (u16, &'static str, String)> {
    let token = request.headers.get("x-amz-security-token").map(String::as_str);
    world.caller(request.access_key().as_deref(), token).map_err(|code| match code {
        "UnrecognizedClientException" => {
            (403, "InvalidClientTokenId", "The security token included in the request is invalid.".to_owned())
        }
        "ExpiredTokenException" => {
            (403, "ExpiredToken", "The security token included in the request is expired".to_owned())
        }
        _ => (403, "MissingAuthenticationToken", "Request is missing Authentication Token".to_owned()),
    })
}

fn identity(world: &World, request: &Request) -> Outcome {
    let caller = caller(world, request)?;
    Ok(format!(
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult><Arn>{}</Arn>\
         <UserId>FAKE</UserId><Account>{}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>",
        caller.principals[0], caller.account
    ))
}

fn assume(world: &mut World, request: &Request, form: &BTreeMap<String, String>, logged: &mut Logged) -> Outcome {
    let caller = caller(world, request)?;
    logged.principal = caller.principals[0].clone();
    let arn = form.get("RoleArn").cloned().unwrap_or_default();
    let name = form.get("RoleSessionName").cloned().unwrap_or_default();
    let seconds: u64 = form.get("DurationSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(3600);
    if !(900..=43200).contains(&seconds) || !arn.starts_with("arn:") || !(2..=64).contains(&name.len()) {
        return Err((400, "ValidationError", "1 validation error detected".to_owned()));
    }
    let mut keys = BTreeMap::new();
    if let Some(id) = form.get("ExternalId") {
        keys.insert("sts:externalid".to_owned(), id.clone());
    }
    keys.insert("sts:rolesessionname".to_owned(), name.clone());
    let trusted = world.roles.get(&arn).is_some_and(|role| {
        // A trust policy has no Resource; the caller's own policy names the role.
        world.allowed(&caller, &role.account, &role.trust, "sts:AssumeRole", &arn, &keys)
    });
    if !trusted {
        let text =
            format!("User: {} is not authorized to perform: sts:AssumeRole on resource: {arn}", caller.principals[0]);
        return Err((403, "AccessDenied", text));
    }
    Ok(opened(world, "AssumeRole", &arn, &name, seconds))
}

/// The issuer of web identities, which a trust policy names as `Federated`.
pub const ISSUER: &str = "arn:aws:iam::222222222222:oidc-provider/issuer.example";

/// A token is `a.SUBJECT.c`; its signature is not checked.
fn assume_by_web_identity(world: &mut World, form: &BTreeMap<String, String>, logged: &mut Logged) -> Outcome {
    let field = |name: &str| form.get(name).cloned().unwrap_or_default();
    let (arn, name, token) = (field("RoleArn"), field("RoleSessionName"), field("WebIdentityToken"));
    let Some(subject) = token.split('.').nth(1) else {
        return Err((400, "InvalidIdentityToken", "The ID Token provided is not a valid JWT".to_owned()));
    };
    logged.principal = subject.to_owned();
    let caller = super::world::Caller { account: String::new(), principals: vec![ISSUER.to_owned()], role: None };
    let keys = BTreeMap::from([("issuer.example:sub".to_owned(), subject.to_owned())]);
    let trusted = world.roles.get(&arn).is_some_and(|role| {
        world.allowed(&caller, &role.account, &role.trust, "sts:AssumeRoleWithWebIdentity", &arn, &keys)
    });
    if !trusted {
        return Err((403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity".to_owned()));
    }
    Ok(opened(world, "AssumeRoleWithWebIdentity", &arn, &name, 3600))
}

/// Opens a session and tells of it.
fn opened(world: &mut World, operation: &str, arn: &str, name: &str, seconds: u64) -> String {
    let time = Duration::from_secs(world.session_seconds.unwrap_or(seconds));
    let given = open_session(world, arn, name, time);
    format!(
        "<{operation}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{operation}Result><AssumedRoleUser>\
         <AssumedRoleId>AROAFAKE:{name}</AssumedRoleId><Arn>{arn}/{name}</Arn></AssumedRoleUser><Credentials>\
         <AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey>\
         <SessionToken>{}</SessionToken><Expiration>{}</Expiration></Credentials></{operation}Result>\
         </{operation}Response>",
        given.access_key, given.secret, given.token, given.end
    )
}

/// What opens a session.
pub struct Given {
    pub access_key: String,
    pub secret: String,
    pub token: String,
    /// As AWS writes it.
    pub end: String,
}

/// Opens a session of a role.
pub fn open_session(world: &mut World, role: &str, name: &str, time: Duration) -> Given {
    let number = world.next();
    let (access_key, token) = (format!("ASIAFAKE{number:012}"), format!("token-{number}"));
    let end = SystemTime::now() + time;
    let given = Given {
        access_key: access_key.clone(),
        secret: format!("secret-{number}"),
        token: token.clone(),
        end: timestamp(end),
    };
    world.sessions.insert(access_key, Session { role: role.to_owned(), name: name.to_owned(), token, end });
    given
}

/// `2026-11-23T12:34:56Z` (days to date after Howard Hinnant, "chrono-compatible low-level date algorithms").
fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (days, rest) = ((seconds / 86400) as i64, seconds % 86400);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest % 3600 / 60, rest % 60)
}
