//! Everything about a key that is not its name: roles, endpoints, credentials, deadlines.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How to reach the customer's key. Every field may be left out; the defaults suit a node in the vendor's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KeySettings {
    /// The vendor's name for the customer; sent as context and shown in the customer's log.
    pub tenant: Option<String>,
    /// One call's longest time, all tries included (`call-deadline-ms`, milliseconds).
    pub call_deadline_ms: u64,
    /// Where the service is, instead of its public address: a VPC endpoint, a private link, an emulator.
    pub endpoint: Option<String>,
    /// A PEM file of certificate authorities to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// AWS: roles to assume one after the other; the last is usually the customer's.
    pub assume_role: Vec<String>,
    /// AWS: the external id that the customer's role asks for; sent with the last role.
    pub external_id: Option<String>,
    /// AWS: the region to use for STS, where it is not the key's.
    pub sts_region: Option<String>,
    /// AWS: where STS is, instead of its public address.
    pub sts_endpoint: Option<String>,
    /// AWS: the profile of the shared configuration to take credentials from.
    pub profile: Option<String>,
    /// AWS: grant tokens to send with every call, while a new grant spreads.
    pub grant_tokens: Vec<String>,
    /// Node and volume as they stand in the role's session name (CloudTrail: who).
    pub session_name: Option<String>,
    /// Azure: the customer's tenant (directory) id.
    pub azure_tenant_id: Option<String>,
    /// Azure: the application's client id, or the user-assigned identity's.
    pub azure_client_id: Option<String>,
    /// Azure: the client id of the machine's user-assigned identity, where it vouches for an application in another
    /// tenant (`federated-managed-identity`).
    pub azure_identity_client_id: Option<String>,
    /// Azure: which credential: `managed-identity`, `federated-managed-identity`, `workload-identity`,
    /// `client-secret`, `client-certificate`, `client-assertion` (default: the first that the environment describes).
    pub azure_credential: Option<String>,
    /// Azure: the authority's address of a sovereign cloud, or `https://login.microsoftonline.com`.
    pub azure_authority: Option<String>,
    /// Azure: a file with the client secret (mode 0600).
    pub azure_client_secret_file: Option<PathBuf>,
    /// Azure: a file with the client certificate and its private key.
    pub azure_client_certificate_file: Option<PathBuf>,
    /// Azure: a file with the client assertion, read anew for each token.
    pub azure_assertion_file: Option<PathBuf>,
    /// Azure: have the service wrap with RSA keys too, for a line per new file in the vault's log.
    pub azure_remote_wrap: bool,
    /// Local keystore: a file with its secret instead of `PATH.secret`.
    pub local_secret_file: Option<PathBuf>,
    /// Whether this key has worked before: then "not found" and "access denied" are the customer's no, else a mistake.
    #[serde(skip)]
    pub worked_before: bool,
}

impl Default for KeySettings {
    fn default() -> Self {
        KeySettings {
            tenant: None,
            call_deadline_ms: 10_000,
            endpoint: None,
            ca_file: None,
            assume_role: Vec::new(),
            external_id: None,
            sts_region: None,
            sts_endpoint: None,
            profile: None,
            grant_tokens: Vec::new(),
            session_name: None,
            azure_tenant_id: None,
            azure_client_id: None,
            azure_identity_client_id: None,
            azure_credential: None,
            azure_authority: None,
            azure_client_secret_file: None,
            azure_client_certificate_file: None,
            azure_assertion_file: None,
            azure_remote_wrap: false,
            local_secret_file: None,
            worked_before: false,
        }
    }
}

impl KeySettings {
    /// One call's longest time.
    pub fn call_deadline(&self) -> Duration {
        Duration::from_millis(self.call_deadline_ms)
    }
}
