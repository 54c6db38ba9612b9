//! Orders to the program, as JSON: `curl -d '{"do":"disable","key":"hyok"}' http://127.0.0.1:PORT/control`.
//!
//! `create` (`name`, `size`: an RSA key), `versions` (with `key`: their ids); `disable`, `enable` (also one `version`), `delete`, `recover`, `purge`, `rotate` (with `key`); `expire` and `not-before` (with `key` and
//! `seconds` from now); `operations` (`key`, `list`); `forbid` (`code`), `throttle` (`seconds`), `status` (`status`),
//! `hang` (`seconds`), `garbage`, `not-found`, `unauthorized`; `directory` (`code` an AADSTS number), `directory-hang`
//! (`seconds`); `remove-principal`, `restore-principal`, `revoke-tokens`, `latency` (`ms`), `heal`.
//! `GET /log` tells what was asked.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::http::{Reply, Request};
use super::keys::KeyKind;
use super::world::{DirectoryFault, Fault, World};

pub fn obey(request: &Request, world: &Mutex<World>) -> Reply {
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let order: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    match follow(&order, &mut world) {
        Ok(told) => {
            let mut answer = json!({ "ok": true });
            if !told.is_null() {
                answer["versions"] = told;
            }
            Reply::json(200, &answer)
        }
        Err(why) => Reply::json(400, &json!({ "ok": false, "why": why })),
    }
}

fn follow(order: &Value, world: &mut World) -> Result<Value, String> {
    let word = order["do"].as_str().ok_or("`do` is missing")?;
    let number = |name: &str| order[name].as_u64().ok_or_else(|| format!("`{name}` must be a number"));
    let text = |name: &str| order[name].as_str().map(str::to_owned).ok_or_else(|| format!("`{name}` must be a text"));
    if order.get("key").is_some() && !world.keys.contains_key(&text("key")?) {
        return Err("no such key".to_owned());
    }
    match word {
        "create" => {
            let (name, size) = (text("name")?, number("size")? as u32);
            world.create_key(&name, KeyKind::Rsa(size));
        }
        "versions" => {
            let versions = world.key(&text("key")?).versions.iter();
            return Ok(versions.map(|version| Value::from(version.id.clone())).collect());
        }
        "disable" | "enable" => {
            let (key, enabled) = (text("key")?, word == "enable");
            match order["version"].as_str() {
                None => world.enable(&key, enabled),
                Some(id) => {
                    let version = world.key(&key).versions.iter_mut().find(|version| version.id == id);
                    version.ok_or("no such version")?.enabled = enabled;
                }
            }
        }
        "delete" => world.delete(&text("key")?, true),
        "recover" => world.delete(&text("key")?, false),
        "purge" => world.purge(&text("key")?),
        "rotate" => drop(world.rotate(&text("key")?)),
        "expire" => {
            let when = SystemTime::now() + Duration::from_secs(number("seconds")?);
            world.set_dates(&text("key")?, None, Some(when));
        }
        "not-before" => {
            let when = SystemTime::now() + Duration::from_secs(number("seconds")?);
            world.set_dates(&text("key")?, Some(when), None);
        }
        "operations" => {
            let list = order["list"].as_array().ok_or("`list` must be a list")?;
            let list: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            world.set_operations(&text("key")?, &list);
        }
        "forbid" => world.fail(Fault::Forbidden(text("code")?)),
        "throttle" => world.fail(Fault::Throttle(number("seconds")?)),
        "status" => world.fail(Fault::Status(number("status")? as u16)),
        "hang" => world.fail(Fault::Hang(Duration::from_secs(number("seconds")?))),
        "garbage" => world.fail(Fault::Garbage),
        "not-found" => world.fail(Fault::NotFound),
        "unauthorized" => world.fail(Fault::Unauthorized),
        "directory" => world.directory = Some(DirectoryFault::Code(number("code")? as u32, 400)),
        "directory-hang" => world.directory = Some(DirectoryFault::Hang(Duration::from_secs(number("seconds")?))),
        "remove-principal" => world.remove_principal(),
        "restore-principal" => world.principal = true,
        "revoke-tokens" => world.revoke_tokens(),
        "latency" => world.latency = Duration::from_millis(number("ms")?),
        "heal" => world.heal(),
        _ => return Err(format!("`{word}` is no order")),
    }
    Ok(Value::Null)
}

pub fn log(world: &Mutex<World>) -> Reply {
    let world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let lines: Vec<Value> = world
        .log
        .iter()
        .map(|line| {
            json!({
                "host": line.host, "operation": line.operation, "path": line.path, "status": line.status,
                "client_request_id": line.client_request_id, "user_agent": line.user_agent, "token": line.token,
            })
        })
        .collect();
    Reply::json(200, &Value::Array(lines))
}
