//! KMS: the JSON 1.1 protocol, with AES-256-GCM under the key's material and the encryption context as AAD.

use std::collections::BTreeMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::http::{Request, Response};
use super::world::{Logged, World};

const MAGIC: &[u8] = b"FKMS1";
/// Length of a key id, as in the blob.
const ID_LEN: usize = 36;
/// The real blob of 32 bytes is about this long; filled up so that sizes are true to life.
const FILLER: usize = 83;

type Refusal = (u16, String, String);
type Outcome = Result<Value, Refusal>;

fn refuse<T>(code: &str, message: impl Into<String>) -> Result<T, Refusal> {
    Err((400, code.to_owned(), message.into()))
}

/// An error answer.
pub fn error(status: u16, code: &str, message: &str) -> Response {
    Response::json(status, &json!({"__type": code, "message": message}))
}

/// Answers one KMS request.
pub fn answer(world: &mut World, request: &Request) -> Response {
    let operation = request.operation();
    let body: Value = match serde_json::from_slice(&request.body) {
        Ok(body) => body,
        Err(_) => return error(400, "SerializationException", "not JSON"),
    };
    let mut shown = body.clone();
    if let Some(fields) = shown.as_object_mut() {
        fields.remove("Plaintext");
    }
    let mut logged = Logged {
        operation: operation.clone(),
        resource: body["KeyId"].as_str().unwrap_or_default().to_owned(),
        context: context(&body),
        request: shown,
        ..Logged::default()
    };
    let outcome = run(world, request, &operation, &body, &mut logged);
    logged.outcome = match &outcome {
        Ok(_) => "ok".to_owned(),
        Err((_, code, _)) => code.clone(),
    };
    world.log.push(logged);
    match outcome {
        Ok(body) => Response::json(200, &body),
        Err((status, code, message)) => error(status, &code, &message),
    }
}

fn context(body: &Value) -> BTreeMap<String, String> {
    let pairs = body["EncryptionContext"].as_object();
    pairs
        .map(|pairs| {
            pairs.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
        })
        .unwrap_or_default()
}

fn run(world: &mut World, request: &Request, operation: &str, body: &Value, logged: &mut Logged) -> Outcome {
    let token = request.headers.get("x-amz-security-token").map(String::as_str);
    let caller = match world.caller(request.access_key().as_deref(), token) {
        Ok(caller) => caller,
        Err(code) => return refuse(code, "The security token included in the request is invalid."),
    };
    logged.principal = caller.principals[0].clone();
    if operation == "CreateKey" {
        let arn = world.create_key_in(&caller.account);
        let id = arn.rsplit('/').next().unwrap().to_owned();
        if let Some(policy) = body["Policy"].as_str().and_then(|policy| serde_json::from_str(policy).ok()) {
            world.key(&arn).policy = policy;
        }
        return Ok(json!({"KeyMetadata": metadata(world, &id)}));
    }
    for token in body["GrantTokens"].as_array().into_iter().flatten() {
        if !world.grant_tokens.iter().any(|known| token.as_str() == Some(known)) {
            return refuse("InvalidGrantTokenException", "The grant token is not valid.");
        }
    }
    let id = find(world, &caller.account, operation, body)?;
    let key = &world.keys[&id];
    let mut keys: BTreeMap<String, String> = logged
        .context
        .iter()
        .map(|(name, value)| (format!("kms:EncryptionContext:{name}").to_ascii_lowercase(), value.clone()))
        .collect();
    if matches!(operation, "Encrypt" | "Decrypt") {
        keys.insert("kms:encryptionalgorithm".to_owned(), "SYMMETRIC_DEFAULT".to_owned());
    }
    let action = format!("kms:{operation}");
    if !world.allowed(&caller, &key.account, &key.policy, &action, &key.arn, &keys) {
        return refuse(
            "AccessDeniedException",
            format!("User: {} is not authorized to perform: {action} on resource: {}", logged.principal, key.arn),
        );
    }
    let (arn, material) = (key.arn.clone(), key.material);
    match operation {
        "GenerateDataKey" | "Encrypt" | "Decrypt" => {
            usable(world, &id)?;
            crypto(world, operation, body, &id, &arn, &material, &logged.context)
        }
        "DescribeKey" => Ok(json!({"KeyMetadata": metadata(world, &id)})),
        _ => manage(world, operation, body, &id, &arn),
    }
}

fn manage(world: &mut World, operation: &str, body: &Value, id: &str, arn: &str) -> Outcome {
    let pending = world.keys[id].state == "PendingDeletion";
    let set = |world: &mut World, state: &str| world.keys.get_mut(id).unwrap().state = state.to_owned();
    match operation {
        "DisableKey" | "EnableKey" if pending => {
            refuse("KMSInvalidStateException", format!("{arn} is pending deletion."))
        }
        "DisableKey" => {
            set(world, "Disabled");
            Ok(json!({}))
        }
        "EnableKey" => {
            set(world, "Enabled");
            Ok(json!({}))
        }
        "ScheduleKeyDeletion" => {
            set(world, "PendingDeletion");
            Ok(json!({"KeyId": arn, "KeyState": "PendingDeletion", "DeletionDate": 1_800_000_000}))
        }
        "CancelKeyDeletion" => {
            set(world, "Disabled");
            Ok(json!({"KeyId": arn}))
        }
        "PutKeyPolicy" => match body["Policy"].as_str().and_then(|policy| serde_json::from_str(policy).ok()) {
            Some(policy) => {
                world.keys.get_mut(id).unwrap().policy = policy;
                Ok(json!({}))
            }
            None => refuse("MalformedPolicyDocumentException", "not JSON"),
        },
        "GetKeyPolicy" => Ok(json!({"Policy": world.keys[id].policy.to_string(), "PolicyName": "default"})),
        _ => refuse("UnknownOperationException", "not in this fake"),
    }
}

/// The key that is meant: an ARN of any account, or a bare id of the caller's.
fn find(world: &World, account: &str, operation: &str, body: &Value) -> Result<String, Refusal> {
    let named = body["KeyId"].as_str().unwrap_or_default();
    if named.is_empty() && operation == "Decrypt" {
        // KMS reads the key from the blob.
        let blob = bytes(body, "CiphertextBlob")?;
        if let Some(id) = blob_key(&blob).filter(|id| world.keys.contains_key(id)) {
            return Ok(id);
        }
        return refuse(
            "AccessDeniedException",
            "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are \
             not allowed to access.",
        );
    }
    let id = named.rsplit('/').next().unwrap_or_default();
    match world.keys.get(id) {
        Some(key) if named == key.arn || (named == id && key.account == account) => Ok(id.to_owned()),
        _ => refuse("NotFoundException", format!("Key '{named}' does not exist")),
    }
}

/// Whether the key's state allows cryptography.
fn usable(world: &World, id: &str) -> Result<(), Refusal> {
    let key = &world.keys[id];
    if let Some((code, text)) = key.refusal.as_ref().filter(|_| key.state != "Enabled") {
        return refuse(code, text.clone());
    }
    let arn = &key.arn;
    match key.state.as_str() {
        "Enabled" => {}
        "Disabled" => return refuse("DisabledException", format!("{arn} is disabled.")),
        state => {
            let words = match state {
                "PendingDeletion" => "pending deletion",
                "PendingImport" => "pending import",
                "Unavailable" => "unavailable",
                "Creating" => "creating",
                _ => "updating",
            };
            return refuse("KMSInvalidStateException", format!("{arn} is {words}."));
        }
    }
    match &key.store_trouble {
        Some(text) => refuse("KMSInvalidStateException", text.clone()),
        None => Ok(()),
    }
}

fn metadata(world: &World, id: &str) -> Value {
    let key = &world.keys[id];
    json!({"AWSAccountId": key.account, "KeyId": id, "Arn": key.arn, "KeyState": key.state, "Enabled": key.state == "Enabled",
        "KeyUsage": key.usage, "KeySpec": key.spec, "CustomerMasterKeySpec": key.spec, "EncryptionAlgorithms": [key.spec],
        "KeyManager": "CUSTOMER", "Origin": "AWS_KMS", "MultiRegion": false, "CreationDate": 1_780_000_000, "Description": ""})
}

fn bytes(body: &Value, field: &str) -> Result<Vec<u8>, Refusal> {
    match body[field].as_str().and_then(|text| STANDARD.decode(text).ok()) {
        Some(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => refuse("ValidationException", format!("1 validation error detected: {field}")),
    }
}

fn blob_key(blob: &[u8]) -> Option<String> {
    let id = blob.strip_prefix(MAGIC)?.get(..ID_LEN)?;
    String::from_utf8(id.to_vec()).ok()
}

fn crypto(
    world: &mut World,
    operation: &str,
    body: &Value,
    id: &str,
    arn: &str,
    material: &[u8; 32],
    context: &BTreeMap<String, String>,
) -> Outcome {
    if world.keys[id].usage != "ENCRYPT_DECRYPT" {
        return refuse("InvalidKeyUsageException", format!("{arn} key usage is {}", world.keys[id].usage));
    }
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, material).unwrap());
    let aad = json!(context).to_string();
    match operation {
        "GenerateDataKey" | "Encrypt" => {
            let plain = if operation == "Encrypt" {
                bytes(body, "Plaintext")?
            } else {
                if body["KeySpec"].as_str() != Some("AES_256") {
                    return refuse("ValidationException", "this fake makes AES_256 keys only");
                }
                let seed = format!("data key {}", world.next());
                digest(&SHA256, seed.as_bytes()).as_ref().to_vec()
            };
            let mut nonce = [0; NONCE_LEN];
            nonce[..8].copy_from_slice(&world.next().to_be_bytes());
            let mut sealed = plain.clone();
            key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&aad), &mut sealed).unwrap();
            let mut blob = [MAGIC, id.as_bytes(), &nonce, &[0; FILLER]].concat();
            blob.extend_from_slice(&sealed);
            let mut answer = json!({"KeyId": arn, "CiphertextBlob": STANDARD.encode(&blob)});
            if operation == "GenerateDataKey" {
                answer["Plaintext"] = json!(STANDARD.encode(&plain));
            } else {
                answer["EncryptionAlgorithm"] = json!("SYMMETRIC_DEFAULT");
            }
            Ok(answer)
        }
        _ => {
            let blob = bytes(body, "CiphertextBlob")?;
            let invalid = || refuse("InvalidCiphertextException", "");
            let Some(owner) = blob_key(&blob) else { return invalid() };
            if owner != id {
                return refuse(
                    "IncorrectKeyException",
                    "The key ID in the request does not identify a CMK that can perform this operation.",
                );
            }
            let Some(rest) = blob.get(MAGIC.len() + ID_LEN..) else { return invalid() };
            if rest.len() < NONCE_LEN + FILLER {
                return invalid();
            }
            let nonce: [u8; NONCE_LEN] = rest[..NONCE_LEN].try_into().unwrap();
            let mut sealed = rest[NONCE_LEN + FILLER..].to_vec();
            match key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(&aad), &mut sealed) {
                Ok(plain) => Ok(json!({"KeyId": arn, "Plaintext": STANDARD.encode(plain),
                    "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"})),
                Err(_) => invalid(),
            }
        }
    }
}
