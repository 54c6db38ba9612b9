//! The state of the fake cloud, and everything that can go wrong in it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use super::keys::{KeyKind, Material};

/// The application's secret.
pub const SECRET: &str = "fake~client~secret";

/// What the vault does instead of answering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// 403 with this inner code.
    Forbidden(String),
    /// 403 in the older form: the code stands in `error.code` itself.
    ForbiddenOuter(String),
    /// 403 with the inner code under `innerError`, as one client library prints it.
    ForbiddenCamel(String),
    /// 404 `KeyNotFound`.
    NotFound,
    /// 409 with this inner code.
    Conflict(String),
    /// 429, and how many seconds to wait.
    Throttle(u64),
    /// This status with Key Vault's summary of an error.
    Status(u16),
    /// This status with a page of something that is not Key Vault.
    Page(u16),
    /// 401 with a challenge, whatever token is sent.
    Unauthorized,
    /// 401 with AKV10032: the vault is in another tenant.
    OtherTenant,
    /// 400 `BadParameter`.
    BadParameter,
    /// No answer for so long.
    Hang(Duration),
    /// Bytes that are no HTTP.
    Garbage,
    /// 200 with a body that is not JSON.
    GarbageBody,
    /// The connection ends.
    Drop,
    /// The challenge asks for a token of this resource.
    Challenge(String),
}

/// What the directory does instead of giving a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectoryFault {
    /// An error with this AADSTS number and status.
    Code(u32, u16),
    /// This status without a body.
    Status(u16),
    /// No answer for so long.
    Hang(Duration),
    /// 200 with a body that is not JSON.
    GarbageBody,
}

/// One request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The host asked.
    pub host: String,
    /// `get`, `wrapkey`, `unwrapkey`, `token`, `identity` or `other`.
    pub operation: String,
    /// The path.
    pub path: String,
    /// The answer's status (0: none).
    pub status: u16,
    /// `x-ms-client-request-id`.
    pub client_request_id: String,
    /// `user-agent`.
    pub user_agent: String,
    /// The number of the token that came along (0: none), or that was given.
    pub token: u64,
}

pub struct Version {
    pub id: String,
    pub material: Material,
    pub enabled: bool,
    pub not_before: Option<SystemTime>,
    pub expires: Option<SystemTime>,
}

pub struct FakeKey {
    pub kind: KeyKind,
    pub versions: Vec<Version>,
    pub operations: Vec<String>,
    pub deleted: bool,
}

pub struct Token {
    pub number: u64,
    pub audience: String,
}

pub struct World {
    pub keys: BTreeMap<String, FakeKey>,
    pub tokens: HashMap<String, Token>,
    pub last_token: u64,
    pub token_lifetime: u64,
    pub secret: String,
    pub assertion: Option<String>,
    pub principal: bool,
    pub log: Vec<Line>,
    pub latency: Duration,
    pub directory: Option<DirectoryFault>,
    pub identity: Option<u16>,
    fault: Option<(Fault, Option<String>, Option<u32>)>,
}

impl World {
    pub fn new() -> Self {
        World {
            keys: BTreeMap::new(),
            tokens: HashMap::new(),
            last_token: 0,
            token_lifetime: 3599,
            secret: SECRET.to_owned(),
            assertion: None,
            principal: true,
            log: Vec::new(),
            latency: Duration::ZERO,
            directory: None,
            identity: None,
            fault: None,
        }
    }

    /// A new key with one version; gives the version.
    pub fn create_key(&mut self, name: &str, kind: KeyKind) -> String {
        let operations = ["wrapKey", "unwrapKey"].map(str::to_owned).to_vec();
        self.keys.insert(name.to_owned(), FakeKey { kind, versions: Vec::new(), operations, deleted: false });
        self.rotate(name)
    }

    /// A new version of a key; gives the version.
    pub fn rotate(&mut self, name: &str) -> String {
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id).unwrap();
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = self.key(name);
        let material = Material::generate(key.kind);
        key.versions.push(Version { id: id.clone(), material, enabled: true, not_before: None, expires: None });
        id
    }

    pub fn key(&mut self, name: &str) -> &mut FakeKey {
        self.keys.get_mut(name).unwrap_or_else(|| panic!("no key {name}"))
    }

    /// Disables or enables all versions of a key.
    pub fn enable(&mut self, name: &str, enabled: bool) {
        for version in &mut self.key(name).versions {
            version.enabled = enabled;
        }
    }

    /// Sets the dates of all versions.
    pub fn set_dates(&mut self, name: &str, not_before: Option<SystemTime>, expires: Option<SystemTime>) {
        for version in &mut self.key(name).versions {
            version.not_before = not_before;
            version.expires = expires;
        }
    }

    /// Sets what the key may be used for.
    pub fn set_operations(&mut self, name: &str, operations: &[&str]) {
        self.key(name).operations = operations.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Soft-deletes or recovers a key.
    pub fn delete(&mut self, name: &str, deleted: bool) {
        self.key(name).deleted = deleted;
    }

    /// Removes a key for ever.
    pub fn purge(&mut self, name: &str) {
        self.keys.remove(name);
    }

    /// From now on, until [`World::heal`].
    pub fn fail(&mut self, fault: Fault) {
        self.fault = Some((fault, None, None));
    }

    /// From now on, for one operation only.
    pub fn fail_at(&mut self, operation: &str, fault: Fault) {
        self.fault = Some((fault, Some(operation.to_owned()), None));
    }

    /// For the next `times` requests that carry a token.
    pub fn fail_times(&mut self, fault: Fault, times: u32) {
        self.fault = Some((fault, None, Some(times)));
    }

    /// The vault and the directory work again.
    pub fn heal(&mut self) {
        self.fault = None;
        self.directory = None;
        self.identity = None;
        self.latency = Duration::ZERO;
    }

    /// The application is deleted: no new tokens, but those given stay valid.
    pub fn remove_principal(&mut self) {
        self.principal = false;
    }

    /// All tokens given so far end.
    pub fn revoke_tokens(&mut self) {
        self.tokens.clear();
    }

    pub fn fault_for(&mut self, operation: &str) -> Option<Fault> {
        let (fault, only, times) = self.fault.as_mut()?;
        if only.as_deref().is_some_and(|only| only != operation) {
            return None;
        }
        let fault = fault.clone();
        if let Some(times) = times {
            *times -= 1;
            if *times == 0 {
                self.fault = None;
            }
        }
        Some(fault)
    }

    pub fn challenge_fault(&self) -> Option<&str> {
        match &self.fault {
            Some((Fault::Challenge(resource), ..)) => Some(resource),
            _ => None,
        }
    }

    /// A new token for an audience.
    pub fn issue(&mut self, audience: &str) -> (String, u64) {
        self.last_token += 1;
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).unwrap();
        let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = format!("fake.{}.{text}", self.last_token);
        self.tokens.insert(token.clone(), Token { number: self.last_token, audience: audience.to_owned() });
        (token, self.last_token)
    }

    /// How often an operation was asked for and answered with this status.
    pub fn count(&self, operation: &str, status: u16) -> usize {
        self.log.iter().filter(|line| line.operation == operation && line.status == status).count()
    }
}
