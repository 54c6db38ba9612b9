//! Entra's token endpoint and the machine's managed identity.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::http::{Reply, Request};
use super::world::{DirectoryFault, Line, World};
use super::{CLIENT, TENANT};

/// `POST /{tenant}/oauth2/v2.0/token`.
pub fn token(request: &Request, world: &Mutex<World>) -> Reply {
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let mut number = 0;
    let reply = give(request, &mut world, &mut number);
    note(&mut world, request, "token", reply.status(), number);
    reply
}

fn give(request: &Request, world: &mut World, number: &mut u64) -> Reply {
    match &world.directory {
        Some(DirectoryFault::Code(code, status)) => return refuse(*code, *status),
        Some(DirectoryFault::Status(status)) => {
            return Reply::Full { status: *status, headers: Vec::new(), body: Vec::new() };
        }
        Some(DirectoryFault::Hang(time)) => return Reply::Silence(*time),
        Some(DirectoryFault::GarbageBody) => {
            return Reply::Full { status: 200, headers: Vec::new(), body: b"<html>login</html>".to_vec() };
        }
        None => {}
    }
    let form = form(&request.body);
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    if request.path.split('/').nth(1) != Some(TENANT) {
        return refuse(90_002, 400);
    }
    if field("client_id") != CLIENT || !world.principal {
        return refuse(700_016, 400);
    }
    let assertion = field("client_assertion");
    let proven = if assertion.is_empty() {
        field("client_secret") == world.secret
    } else {
        // The machine's identity vouches with a token of ours, others with the assertion that was agreed on.
        world.tokens.get(assertion).is_some_and(|token| token.audience == "api://AzureADTokenExchange")
            || world.assertion.as_deref() == Some(assertion)
    };
    if !proven {
        return refuse(if assertion.is_empty() { 7_000_215 } else { 700_213 }, 401);
    }
    let Some(audience) = field("scope").strip_suffix("/.default") else { return refuse(70_011, 400) };
    let (token, given) = world.issue(audience);
    *number = given;
    Reply::json(
        200,
        &json!({ "token_type": "Bearer", "expires_in": world.token_lifetime, "ext_expires_in": world.token_lifetime, "access_token": token }),
    )
}

fn refuse(code: u32, status: u16) -> Reply {
    Reply::json(
        status,
        &json!({
            "error": "invalid_client",
            "error_description": format!("AADSTS{code}: This is the fake's reason. Trace ID: 0 Correlation ID: 0"),
            "error_codes": [code],
            "timestamp": "2026-01-01 00:00:00Z",
            "trace_id": "0",
            "correlation_id": "0",
        }),
    )
}

/// The managed identity, in the form of App Service and of the metadata service.
pub fn identity(request: &Request, world: &Mutex<World>) -> Reply {
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let query = form(request.query.as_bytes());
    let mut number = 0;
    let reply = if let Some(status) = world.identity {
        Reply::json(status, &json!({ "error": "invalid_request", "error_description": "Identity not found" }))
    } else if request.header("metadata") != Some("true") {
        Reply::json(400, &json!({ "error": "bad_request" }))
    } else {
        let resource = query.get("resource").cloned().unwrap_or_default();
        let (token, given) = world.issue(&resource);
        number = given;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Reply::json(
            200,
            &json!({ "access_token": token, "expires_on": (now + world.token_lifetime).to_string(), "token_type": "Bearer", "resource": resource }),
        )
    };
    note(&mut world, request, "identity", reply.status(), number);
    reply
}

pub fn note(world: &mut World, request: &Request, operation: &str, status: u16, token: u64) {
    world.log.push(Line {
        host: request.host().to_owned(),
        operation: operation.to_owned(),
        path: request.path.clone(),
        status,
        client_request_id: request.header("x-ms-client-request-id").unwrap_or_default().to_owned(),
        user_agent: request.header("user-agent").unwrap_or_default().to_owned(),
        token,
    });
}

/// `application/x-www-form-urlencoded`.
pub fn form(bytes: &[u8]) -> HashMap<String, String> {
    let text = String::from_utf8_lossy(bytes);
    text.split('&').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (decode(name), decode(value))).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(|c| (c as char).to_digit(16)).unwrap_or(0) as u8;
                digit() * 16 + digit()
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}
