//! The controls over HTTP, for whoever runs the fake as a program. Everything lies under `/_fake/`:
//!
//! ```text
//! POST   /_fake/keys                       a new key of the customer          -> {"arn": …}
//! POST   /_fake/keys/ID/state/STATE        Enabled, Disabled, PendingDeletion, PendingImport, Unavailable, Updating
//! PUT    /_fake/keys/ID/policy             the key policy (JSON document)
//! PUT    /_fake/keys/ID/store-trouble      the external key store's complaint (text); empty ends it
//! DELETE /_fake/keys/ID                    the waiting period is over
//! PUT    /_fake/role                       {"arn", "trust": document, "policy": document}
//! DELETE /_fake/role                       {"arn"}
//! POST   /_fake/fault                      {"operation"?, "times"?, "error": {"status","code","message"} | "hang_ms": N |
//!                                           "delay_ms": N | "garbage": true | "close": true}
//! DELETE /_fake/fault                      no faults any more
//! GET    /_fake/log                        what was asked, and with which outcome
//! GET    /_fake/count/OPERATION            how often that was asked                -> {"count": N}
//! ```

use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Request, Response};
use super::world::{Fault, Role, What, World};

/// Answers one control request.
pub fn answer(world: &mut World, request: &Request) -> Response {
    match run(world, request) {
        Some(body) => Response::json(200, &body),
        None => Response::json(404, &json!({"error": "no such control, key or field; see tests/fakes/aws/admin.rs"})),
    }
}

fn run(world: &mut World, request: &Request) -> Option<Value> {
    let path: Vec<&str> = request.path.trim_start_matches("/_fake/").split('/').collect();
    let body = || serde_json::from_slice::<Value>(&request.body).ok();
    let done = Some(json!({}));
    match (request.method.as_str(), &path[..]) {
        ("POST", ["keys"]) => Some(json!({"arn": world.create_key()})),
        ("POST", ["keys", id, "state", state]) => {
            world.keys.get_mut(*id)?.state = (*state).to_owned();
            done
        }
        ("PUT", ["keys", id, "policy"]) => {
            world.keys.get_mut(*id)?.policy = body()?;
            done
        }
        ("PUT", ["keys", id, "store-trouble"]) => {
            let text = String::from_utf8(request.body.clone()).ok()?;
            world.keys.get_mut(*id)?.store_trouble = (!text.is_empty()).then_some(text);
            done
        }
        ("DELETE", ["keys", id]) => world.keys.remove(*id).map(|_| json!({})),
        ("PUT", ["role"]) => {
            let body = body()?;
            let arn = body["arn"].as_str()?.to_owned();
            let account = arn.split(':').nth(4)?.to_owned();
            world.roles.insert(arn, Role { account, trust: body["trust"].clone(), policy: body["policy"].clone() });
            done
        }
        ("DELETE", ["role"]) => world.roles.remove(body()?["arn"].as_str()?).map(|_| json!({})),
        ("POST", ["fault"]) => {
            let fault = fault(&body()?)?;
            world.faults.push_back(fault);
            done
        }
        ("DELETE", ["fault"]) => {
            world.faults.clear();
            done
        }
        ("GET", ["count", operation]) => Some(json!({"count": world.count(operation)})),
        ("GET", ["log"]) => Some(Value::Array(
            world
                .log
                .iter()
                .map(|logged| {
                    json!({"operation": logged.operation, "resource": logged.resource, "principal": logged.principal,
                        "context": logged.context, "outcome": logged.outcome})
                })
                .collect(),
        )),
        _ => None,
    }
}

fn fault(body: &Value) -> Option<Fault> {
    let time = |field: &str| body[field].as_u64().map(Duration::from_millis);
    let what = if let Some(error) = body.get("error") {
        What::error(u16::try_from(error["status"].as_u64()?).ok()?, error["code"].as_str()?, error["message"].as_str()?)
    } else if let Some(time) = time("hang_ms") {
        What::Hang(time)
    } else if let Some(time) = time("delay_ms") {
        What::Delay(time)
    } else if body["garbage"].as_bool() == Some(true) {
        What::Garbage
    } else if body["close"].as_bool() == Some(true) {
        What::Close
    } else {
        return None;
    };
    let times = match body.get("times") {
        None | Some(Value::Null) => None,
        Some(times) => Some(u32::try_from(times.as_u64()?).ok().filter(|times| *times > 0)?),
    };
    Some(Fault { operation: body["operation"].as_str().map(str::to_owned), times, what })
}
