//! The data plane: `GET /keys/NAME[/VERSION]`, `POST /keys/NAME/[VERSION]/wrapkey|unwrapkey`.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::directory::{form, note};
use super::http::{Reply, Request};
use super::keys::Material;
use super::world::{FakeKey, Fault, Version, World};
use super::{HSM, TENANT, VAULT};

pub fn answer(request: &Request, world: &Mutex<World>) -> Reply {
    let latency = world.lock().unwrap_or_else(PoisonError::into_inner).latency;
    if !latency.is_zero() {
        std::thread::sleep(latency);
    }
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    // The SDK writes an absent version as an empty segment.
    let segments: Vec<String> = request.path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let last = segments.last().map(|part| part.to_ascii_lowercase()).unwrap_or_default();
    let operation = match (request.method.as_str(), last.as_str()) {
        ("GET", _) => "get",
        ("POST", "wrapkey" | "unwrapkey") => last.as_str(),
        _ => "other",
    };
    let mut token = 0;
    let reply = decide(request, &mut world, &segments, operation, &mut token)
        .with("x-ms-request-id", format!("fake-{}", world.log.len()))
        .with("x-ms-keyvault-region", "nowhere");
    note(&mut world, request, operation, reply.status(), token);
    reply
}

fn decide(request: &Request, world: &mut World, segments: &[String], operation: &str, token: &mut u64) -> Reply {
    let resource = match request.host() {
        VAULT => "https://vault.azure.net",
        HSM => "https://managedhsm.azure.net",
        _ => return page(404),
    };
    let bearer = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let known = bearer.and_then(|bearer| world.tokens.get(bearer)).filter(|token| token.audience == resource);
    *token = known.map_or(0, |token| token.number);
    let challenged = world.challenge_fault().map(str::to_owned);
    if known.is_none() {
        return challenge(&challenged.unwrap_or_else(|| resource.to_owned()), bearer.is_some());
    }
    if let Some(fault) = world.fault_for(operation) {
        return suffer(&fault, resource);
    }
    if form(request.query.as_bytes()).get("api-version").is_none_or(String::is_empty) {
        return error(400, "BadParameter", "The request URI contains no api-version.", None);
    }
    let (name, version) = match (operation, segments) {
        ("get", [keys, name]) if keys == "keys" => (name, None),
        ("get", [keys, name, version]) if keys == "keys" => (name, Some(version)),
        ("wrapkey" | "unwrapkey", [keys, name, _]) if keys == "keys" => (name, None),
        ("wrapkey" | "unwrapkey", [keys, name, version, _]) if keys == "keys" => (name, Some(version)),
        _ => return error(404, "NotFound", "No such operation.", None),
    };
    let missing = || {
        error(
            404,
            "KeyNotFound",
            &format!(
                "A key with (name/id) {name} was not found in this key vault. If you recently deleted this key you may be able to recover it."
            ),
            None,
        )
    };
    let Some((name, key)) = world.keys.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) else {
        return missing();
    };
    if key.deleted {
        return missing();
    }
    let found = match version {
        Some(version) => key.versions.iter().find(|known| known.id == **version),
        None => key.versions.last(),
    };
    let Some(found) = found else { return missing() };
    let kid = format!("https://{}/keys/{name}/{}", request.host(), found.id);
    match operation {
        "get" => describe(key, found, &kid),
        _ => operate(request, key, found, &kid, operation),
    }
}

fn describe(key: &FakeKey, version: &Version, kid: &str) -> Reply {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut jwk = json!({ "kid": kid, "kty": key.kind.kty(), "key_ops": key.operations });
    if let Material::Rsa { n, e, .. } = &version.material {
        jwk["n"] = URL_SAFE_NO_PAD.encode(n).into();
        jwk["e"] = URL_SAFE_NO_PAD.encode(e).into();
    }
    let mut attributes = json!({ "enabled": version.enabled, "created": 1_700_000_000, "updated": 1_700_000_000, "recoveryLevel": "Recoverable" });
    if let Some(time) = version.expires {
        attributes["exp"] = seconds(time).into();
    }
    if let Some(time) = version.not_before {
        attributes["nbf"] = seconds(time).into();
    }
    Reply::json(200, &json!({ "key": jwk, "attributes": attributes }))
}

fn operate(request: &Request, key: &FakeKey, version: &Version, kid: &str, operation: &str) -> Reply {
    let wrap = operation == "wrapkey";
    let word = if wrap { "wrapKey" } else { "unwrapKey" };
    if !key.operations.iter().any(|known| known == word) {
        let text = format!("Operation {word} is not permitted on this key.");
        return error(403, "Forbidden", &text, Some("KeyOperationForbidden"));
    }
    // Seen in a live subscription: a disabled key still wraps.
    if !wrap && !version.enabled {
        let text = format!("Operation {word} is not allowed on a disabled key.");
        return error(403, "Forbidden", &text, Some("KeyDisabled"));
    }
    // Documented: outside its dates a key unwraps, but does not wrap.
    let now = SystemTime::now();
    if wrap && version.expires.is_some_and(|end| end <= now) {
        return error(403, "Forbidden", "Operation wrapKey is not allowed on an expired key.", None);
    }
    if wrap && version.not_before.is_some_and(|start| start > now) {
        return error(403, "Forbidden", "Operation wrapKey is not allowed on a key that is not yet valid.", None);
    }
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
        return error(400, "BadParameter", "The request body is no JSON.", None);
    };
    let algorithm = body["alg"].as_str().unwrap_or_default();
    let value = body["value"].as_str().and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let result = value.and_then(|value| {
        if wrap { version.material.wrap(algorithm, &value) } else { version.material.unwrap(algorithm, &value) }
    });
    match result {
        Some(result) => Reply::json(200, &json!({ "kid": kid, "value": URL_SAFE_NO_PAD.encode(result) })),
        None => error(400, "BadParameter", "The parameter is incorrect.", None),
    }
}

fn suffer(fault: &Fault, resource: &str) -> Reply {
    let text = "The fake was told to answer so.";
    match fault {
        Fault::Forbidden(inner) => error(403, "Forbidden", text, Some(inner)),
        Fault::ForbiddenOuter(code) => error(403, code, text, None),
        Fault::ForbiddenCamel(inner) => Reply::json(
            403,
            &json!({ "error": { "code": "Forbidden", "message": text, "innerError": { "code": inner } } }),
        ),
        Fault::NotFound => error(404, "KeyNotFound", text, None),
        Fault::Conflict(inner) => error(409, "Conflict", text, Some(inner)),
        Fault::Throttle(seconds) => error(429, "Throttled", text, None).with("retry-after", seconds.to_string()),
        Fault::Status(status) => error(*status, "InternalServerError", text, None),
        Fault::Page(status) => page(*status),
        Fault::Unauthorized => challenge(resource, true),
        Fault::OtherTenant => Reply::json(
            401,
            &json!({ "error": { "code": "Unauthorized", "message": "AKV10032: Invalid issuer. Expected one of https://sts.windows.net/other/" } }),
        )
        .with("www-authenticate", bearer(resource)),
        Fault::BadParameter => error(400, "BadParameter", text, None),
        Fault::Hang(time) => Reply::Silence(*time),
        Fault::Garbage => Reply::Garbage,
        Fault::GarbageBody => Reply::Full { status: 200, headers: Vec::new(), body: b"<html>hello</html>".to_vec() },
        Fault::Drop => Reply::Drop,
        Fault::Challenge(resource) => challenge(resource, true),
    }
}

fn page(status: u16) -> Reply {
    let headers = vec![("content-type", "text/html".to_owned())];
    Reply::Full { status, headers, body: b"<html>a proxy's page</html>".to_vec() }
}

fn bearer(resource: &str) -> String {
    format!("Bearer authorization=\"https://login.microsoftonline.com/{TENANT}\", resource=\"{resource}\"")
}

fn challenge(resource: &str, had_token: bool) -> Reply {
    let text = if had_token {
        "AKV10022: Invalid audience or token."
    } else {
        "AKV10000: Request is missing a Bearer or PoP token."
    };
    error(401, "Unauthorized", text, None).with("www-authenticate", bearer(resource))
}

fn error(status: u16, code: &str, text: &str, inner: Option<&str>) -> Reply {
    let mut body = json!({ "error": { "code": code, "message": text } });
    if let Some(inner) = inner {
        body["error"]["innererror"] = json!({ "code": inner });
    }
    Reply::json(status, &body)
}
