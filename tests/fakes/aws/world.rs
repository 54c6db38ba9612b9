//! What the fake knows: keys, roles, sessions, faults to come, and what was asked.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::policy::{Ask, Say, evaluate};
use super::{CUSTOMER, REGION};

/// A way to fail.
#[derive(Debug, Clone)]
pub enum What {
    /// An error answer in the service's own protocol.
    Error { status: u16, code: String, message: String },
    /// No answer for so long, then the connection closes.
    Hang(Duration),
    /// The connection closes at once.
    Close,
    /// A page of HTML with status 200.
    Garbage,
    /// The answer, late: looked up after so long.
    Delay(Duration),
    /// The answer as it was when it was asked for, after so long: it is on its way.
    Late(Duration),
}

impl What {
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        What::Error { status, code: code.to_owned(), message: message.to_owned() }
    }
}

/// A fault to come.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Only this operation; `None`: any.
    pub operation: Option<String>,
    /// How often; `None`: until cleared.
    pub times: Option<u32>,
    pub what: What,
}

/// One request and its outcome.
#[derive(Debug, Clone, Default)]
pub struct Logged {
    pub operation: String,
    /// The key's ARN or the role's.
    pub resource: String,
    /// The caller's ARN.
    pub principal: String,
    pub context: BTreeMap<String, String>,
    /// The whole request, for KMS; the form, for STS. Plaintext is left out.
    pub request: Value,
    /// `ok` or the error's code.
    pub outcome: String,
}

impl Logged {
    pub fn failed(operation: &str, outcome: &str) -> Self {
        Logged { operation: operation.to_owned(), outcome: outcome.to_owned(), ..Logged::default() }
    }
}

/// One key.
pub struct Key {
    pub arn: String,
    pub account: String,
    pub material: [u8; 32],
    /// KMS's own word: Enabled, Disabled, PendingDeletion, PendingImport, Unavailable, Creating, Updating.
    pub state: String,
    pub usage: String,
    pub spec: String,
    pub policy: Value,
    /// The external key store's complaint, while DescribeKey goes on saying `Enabled`.
    pub store_trouble: Option<String>,
    /// The text of a refusal, instead of the usual one: KMS documents several.
    pub refusal: Option<(String, String)>,
}

/// One role.
pub struct Role {
    pub account: String,
    pub trust: Value,
    pub policy: Value,
}

/// One session of a role.
pub struct Session {
    pub role: String,
    pub name: String,
    pub token: String,
    pub end: SystemTime,
}

/// Who calls.
pub struct Caller {
    pub account: String,
    /// Session, role and account root, as policies may name them.
    pub principals: Vec<String>,
    /// The role whose policy applies; `None` for an account's root.
    pub role: Option<String>,
}

#[derive(Default)]
pub struct World {
    pub keys: BTreeMap<String, Key>,
    pub roles: BTreeMap<String, Role>,
    pub sessions: BTreeMap<String, Session>,
    pub faults: VecDeque<Fault>,
    pub log: Vec<Logged>,
    /// Grant tokens that KMS knows.
    pub grant_tokens: Vec<String>,
    /// Sessions of this length, seconds, whatever was asked for.
    pub session_seconds: Option<u64>,
    /// What the node's own environment gives.
    pub node: super::metadata::Node,
    counter: u64,
}

impl World {
    /// A number that was not given before.
    pub fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// A key of the customer, with the policy that the console gives: the account decides.
    pub fn create_key(&mut self) -> String {
        self.create_key_in(CUSTOMER)
    }

    pub fn create_key_in(&mut self, account: &str) -> String {
        let id = format!("00000000-0000-4000-8000-{:012x}", self.next());
        let arn = format!("arn:aws:kms:{REGION}:{account}:key/{id}");
        let mut material = [0; 32];
        material.copy_from_slice(digest(&SHA256, format!("material of {id}").as_bytes()).as_ref());
        let policy = json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": {"AWS": format!("arn:aws:iam::{account}:root")},
            "Action": "kms:*", "Resource": "*"}]});
        let key = Key {
            arn: arn.clone(),
            account: account.to_owned(),
            material,
            state: "Enabled".to_owned(),
            usage: "ENCRYPT_DECRYPT".to_owned(),
            spec: "SYMMETRIC_DEFAULT".to_owned(),
            policy,
            store_trouble: None,
            refusal: None,
        };
        self.keys.insert(id, key);
        arn
    }

    /// A role that `trusted` may assume with `external_id`, and that may use `keys`.
    pub fn create_role(&mut self, arn: &str, trusted: &str, external_id: Option<&str>, keys: &[&str]) {
        let mut trust = json!({"Effect": "Allow", "Principal": {"AWS": trusted}, "Action": "sts:AssumeRole"});
        if let Some(id) = external_id {
            trust["Condition"] = json!({"StringEquals": {"sts:ExternalId": id}});
        }
        let account = arn.split(':').nth(4).unwrap_or_default().to_owned();
        let policy = json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": ["kms:Encrypt", "kms:Decrypt", "kms:GenerateDataKey", "kms:DescribeKey"], "Resource": keys},
            {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}]});
        let trust = json!({"Version": "2012-10-17", "Statement": [trust]});
        self.roles.insert(arn.to_owned(), Role { account, trust, policy });
    }

    pub fn key(&mut self, arn: &str) -> &mut Key {
        let id = arn.rsplit('/').next().unwrap();
        self.keys.get_mut(id).unwrap()
    }

    /// From now on every call, or only `operation`, fails like that.
    pub fn fail(&mut self, operation: Option<&str>, times: Option<u32>, what: What) {
        self.faults.push_back(Fault { operation: operation.map(str::to_owned), times, what });
    }

    pub fn take_fault(&mut self, operation: &str) -> Option<What> {
        let at =
            self.faults.iter().position(|fault| fault.operation.as_deref().is_none_or(|only| only == operation))?;
        let fault = &mut self.faults[at];
        let what = fault.what.clone();
        if let Some(times) = &mut fault.times {
            *times -= 1;
            if *times == 0 {
                self.faults.remove(at);
            }
        }
        Some(what)
    }

    /// How many calls of `operation` there were.
    pub fn count(&self, operation: &str) -> usize {
        self.log.iter().filter(|logged| logged.operation == operation).count()
    }

    /// Who holds this access key, or the error's code for KMS.
    pub fn caller(&self, access_key: Option<&str>, token: Option<&str>) -> Result<Caller, &'static str> {
        let Some(access_key) = access_key else { return Err("MissingAuthenticationTokenException") };
        if access_key.len() == 12 && access_key.bytes().all(|byte| byte.is_ascii_digit()) {
            let root = format!("arn:aws:iam::{access_key}:root");
            return Ok(Caller { account: access_key.to_owned(), principals: vec![root], role: None });
        }
        let Some(session) = self.sessions.get(access_key) else { return Err("UnrecognizedClientException") };
        if token != Some(session.token.as_str()) {
            return Err("UnrecognizedClientException");
        }
        if session.end <= SystemTime::now() {
            return Err("ExpiredTokenException");
        }
        let mut parts = session.role.split(':');
        let account = parts.nth(4).unwrap_or_default().to_owned();
        let name = session.role.rsplit('/').next().unwrap_or_default();
        let principals = vec![
            format!("arn:aws:sts::{account}:assumed-role/{name}/{}", session.name),
            session.role.clone(),
            format!("arn:aws:iam::{account}:root"),
        ];
        Ok(Caller { account, principals, role: Some(session.role.clone()) })
    }

    /// Whether `caller` may do `action` on a resource of `owner` that has the policy `resource_policy`.
    pub fn allowed(
        &self,
        caller: &Caller,
        owner: &str,
        resource_policy: &Value,
        action: &str,
        resource: &str,
        keys: &BTreeMap<String, String>,
    ) -> bool {
        let ask = |principals| Ask { principals, action, resource, keys };
        let identity = match &caller.role {
            // The root of an account may do what is its own to do.
            None => Say::Allow,
            Some(role) => match self.roles.get(role) {
                Some(role) => evaluate(&role.policy, &ask(&caller.principals[..0])),
                None => Say::Deny,
            },
        };
        let here = evaluate(resource_policy, &ask(&caller.principals[..]));
        if identity == Say::Deny || here == Say::Deny {
            return false;
        }
        // Named itself, or only through its account?
        let direct = caller.role.is_none()
            || evaluate(resource_policy, &ask(&caller.principals[..caller.principals.len() - 1])) == Say::Allow;
        here == Say::Allow && (identity == Say::Allow || (direct && owner == caller.account))
    }
}
