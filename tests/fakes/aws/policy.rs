//! Policy documents: as much of IAM's evaluation as hyokfs' own documents and their removal need.
//!
//! Conditions: StringEquals, StringEqualsIfExists, StringLike, StringNotEquals, StringNotEqualsIfExists, Bool, Null.
//! A condition that is not known never holds, so that a document which needs it fails instead of passing by luck.

use std::collections::BTreeMap;

use serde_json::Value;

/// What is asked.
pub struct Ask<'a> {
    /// The caller's ARNs: session, role, account root.
    pub principals: &'a [String],
    pub action: &'a str,
    pub resource: &'a str,
    /// Condition keys, lowercase, and their values.
    pub keys: &'a BTreeMap<String, String>,
}

/// What a document says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    Allow,
    Deny,
    Nothing,
}

/// Evaluates one document. Identity policies have no `Principal`; their statements are about the caller.
pub fn evaluate(document: &Value, ask: &Ask<'_>) -> Say {
    let mut said = Say::Nothing;
    for statement in list(&document["Statement"]) {
        if !matches(statement, ask) {
            continue;
        }
        match statement["Effect"].as_str() {
            Some("Deny") => return Say::Deny,
            Some("Allow") => said = Say::Allow,
            _ => {}
        }
    }
    said
}

fn list(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Null => Vec::new(),
        one => vec![one],
    }
}

fn matches(statement: &Value, ask: &Ask<'_>) -> bool {
    let principal = &statement["Principal"];
    let named = principal.is_null()
        || principal.as_str() == Some("*")
        || list(&principal["AWS"]).iter().chain(&list(&principal["Federated"])).any(|name| {
            name.as_str().is_some_and(|name| {
                name == "*"
                    || ask.principals.iter().any(|own| own == name)
                    // A bare account id means the account's root.
                    || ask.principals.iter().any(|own| *own == format!("arn:aws:iam::{name}:root"))
            })
        });
    let action = list(&statement["Action"]).iter().any(|action| action.as_str().is_some_and(|a| like(a, ask.action)));
    let resource = &statement["Resource"];
    let resource = resource.is_null()
        || list(resource).iter().any(|name| name.as_str().is_some_and(|name| like(name, ask.resource)));
    named && action && resource && conditions(&statement["Condition"], ask.keys)
}

fn conditions(conditions: &Value, keys: &BTreeMap<String, String>) -> bool {
    let Some(operators) = conditions.as_object() else { return true };
    operators.iter().all(|(operator, wants)| {
        wants.as_object().is_some_and(|wants| {
            wants.iter().all(|(key, values)| {
                let have = keys.get(&key.to_ascii_lowercase());
                let any = |test: &dyn Fn(&str, &str) -> bool| {
                    list(values)
                        .iter()
                        .any(|value| value.as_str().is_some_and(|v| have.is_some_and(|have| test(v, have))))
                };
                let equal = any(&|value, have| value == have);
                match operator.as_str() {
                    "StringEquals" | "Bool" => equal,
                    "StringEqualsIfExists" => have.is_none() || equal,
                    "StringLike" => any(&like),
                    // A negated operator holds when the key is absent.
                    "StringNotEquals" | "StringNotEqualsIfExists" => !equal,
                    "Null" => list(values).iter().any(|value| (value.as_str() == Some("true")) == have.is_none()),
                    _ => false,
                }
            })
        })
    })
}

/// `*` stands for anything, `?` for one character; letters of either case.
fn like(pattern: &str, text: &str) -> bool {
    fn go(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skip| go(rest, &text[skip..])),
            Some((first, rest)) => {
                text.split_first().is_some_and(|(have, more)| (*first == b'?' || first == have) && go(rest, more))
            }
        }
    }
    go(pattern.to_ascii_lowercase().as_bytes(), text.to_ascii_lowercase().as_bytes())
}
