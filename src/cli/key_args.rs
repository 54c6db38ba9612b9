//! How to reach the key: the same options for every command that uses one.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::config::{self, ConfigError};
use crate::provider::KeySettings;

/// Options of the key service. What is left out comes from the configuration file, then from the defaults.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Key service")]
pub struct KeyArgs {
    /// Read options from this TOML file; the command line comes first.
    #[arg(long, value_name = "FILE", env = "HYOKFS_CONFIG")]
    pub config: Option<PathBuf>,
    /// The vendor's name for the customer, sent as context with every call.
    #[arg(long, env = "HYOKFS_TENANT")]
    pub tenant: Option<String>,
    /// Longest time of one call, tries included [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub call_deadline: Option<Duration>,
    /// Address of the service instead of its public one (VPC endpoint, private link, emulator).
    #[arg(long, value_name = "URL", env = "HYOKFS_ENDPOINT")]
    pub endpoint: Option<String>,
    /// PEM file of certificate authorities to trust besides the system's.
    #[arg(long, value_name = "FILE", env = "HYOKFS_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// AWS: role to assume; repeat it for a chain, the customer's role last.
    #[arg(long, value_name = "ARN")]
    pub assume_role: Vec<String>,
    /// AWS: external id that the customer's role asks for.
    #[arg(long, env = "HYOKFS_EXTERNAL_ID")]
    pub external_id: Option<String>,
    /// AWS: region of STS, if not the key's.
    #[arg(long, value_name = "REGION")]
    pub sts_region: Option<String>,
    /// AWS: address of STS instead of its public one.
    #[arg(long, value_name = "URL", env = "HYOKFS_STS_ENDPOINT")]
    pub sts_endpoint: Option<String>,
    /// AWS: profile of the shared configuration.
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// AWS: grant token; may be repeated.
    #[arg(long, value_name = "TOKEN")]
    pub grant_token: Vec<String>,
    /// AWS: session name shown in CloudTrail [default: hyokfs-HOST-VOLUME].
    #[arg(long, value_name = "NAME")]
    pub session_name: Option<String>,
    /// Azure: the customer's tenant (directory) id.
    #[arg(long, value_name = "ID", env = "HYOKFS_AZURE_TENANT_ID")]
    pub azure_tenant_id: Option<String>,
    /// Azure: client id of the application or of the user-assigned identity.
    #[arg(long, value_name = "ID", env = "HYOKFS_AZURE_CLIENT_ID")]
    pub azure_client_id: Option<String>,
    /// Azure: client id of the machine's user-assigned identity, for federated-managed-identity.
    #[arg(long, value_name = "ID")]
    pub azure_identity_client_id: Option<String>,
    /// Azure: have the service wrap with RSA keys too, for a line per new file in the vault's log.
    #[arg(long)]
    pub azure_remote_wrap: bool,
    /// Azure: managed-identity, federated-managed-identity, workload-identity, client-secret, client-certificate or client-assertion.
    #[arg(long, value_name = "KIND")]
    pub azure_credential: Option<String>,
    /// Azure: authority of a sovereign cloud.
    #[arg(long, value_name = "URL")]
    pub azure_authority: Option<String>,
    /// Azure: file with the client secret.
    #[arg(long, value_name = "FILE")]
    pub azure_client_secret_file: Option<PathBuf>,
    /// Azure: file with the client certificate and its key.
    #[arg(long, value_name = "FILE")]
    pub azure_client_certificate_file: Option<PathBuf>,
    /// Azure: file with the client assertion.
    #[arg(long, value_name = "FILE")]
    pub azure_assertion_file: Option<PathBuf>,
    /// Local keystore: file with its secret instead of PATH.secret.
    #[arg(long, value_name = "FILE")]
    pub local_secret_file: Option<PathBuf>,
}

impl KeyArgs {
    /// What was given, over the configuration file, over the defaults.
    pub fn settings(self) -> Result<KeySettings, ConfigError> {
        let base = config::key_settings(self.config.as_deref())?;
        Ok(self.over(base))
    }

    /// Puts what was given over `base`.
    pub fn over(self, mut base: KeySettings) -> KeySettings {
        fn put<T>(slot: &mut Option<T>, value: Option<T>) {
            if value.is_some() {
                *slot = value;
            }
        }
        put(&mut base.tenant, self.tenant);
        if let Some(limit) = self.call_deadline {
            base.call_deadline_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        }
        put(&mut base.endpoint, self.endpoint);
        put(&mut base.ca_file, self.ca_file);
        if !self.assume_role.is_empty() {
            base.assume_role = self.assume_role;
        }
        put(&mut base.external_id, self.external_id);
        put(&mut base.sts_region, self.sts_region);
        put(&mut base.sts_endpoint, self.sts_endpoint);
        put(&mut base.profile, self.profile);
        if !self.grant_token.is_empty() {
            base.grant_tokens = self.grant_token;
        }
        put(&mut base.session_name, self.session_name);
        put(&mut base.azure_tenant_id, self.azure_tenant_id);
        put(&mut base.azure_client_id, self.azure_client_id);
        put(&mut base.azure_identity_client_id, self.azure_identity_client_id);
        base.azure_remote_wrap |= self.azure_remote_wrap;
        put(&mut base.azure_credential, self.azure_credential);
        put(&mut base.azure_authority, self.azure_authority);
        put(&mut base.azure_client_secret_file, self.azure_client_secret_file);
        put(&mut base.azure_client_certificate_file, self.azure_client_certificate_file);
        put(&mut base.azure_assertion_file, self.azure_assertion_file);
        put(&mut base.local_secret_file, self.local_secret_file);
        base
    }
}
