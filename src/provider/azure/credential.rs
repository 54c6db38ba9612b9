//! Who we are to the customer's directory.
//!
//! | `azure-credential` | what it needs |
//! |---|---|
//! | `managed-identity` | a machine in Azure; `azure-client-id` names a user-assigned identity |
//! | `federated-managed-identity` | the same, and an application in the customer's tenant (`azure-tenant-id`, `azure-client-id`) that trusts the identity (`azure-identity-client-id` where it is user-assigned): across tenants, without any secret |
//! | `workload-identity` | Kubernetes: `AZURE_FEDERATED_TOKEN_FILE`, `AZURE_TENANT_ID`, `AZURE_CLIENT_ID` or the options |
//! | `client-assertion` | a file with a signed assertion, read anew for each token |
//! | `client-secret` | a file with the secret, or `AZURE_CLIENT_SECRET` |
//! | `client-certificate` | a PEM file with the certificate and its RSA key in PKCS#8 |

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{Secret as SdkSecret, TokenCredential};
use azure_core::error::ErrorKind;
use azure_core::http::{ClientMethodOptions, ClientOptions};
use azure_identity::{
    ClientAssertion, ClientAssertionCredential, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
};
use zeroize::Zeroizing;

use super::certificate::CertificateAssertion;
use super::http::{Http, mistake};
use crate::provider::{KeySettings, ProviderError};

/// The audience of a token that a federated credential accepts as an assertion.
const EXCHANGE_SCOPE: &str = "api://AzureADTokenExchange/.default";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ManagedIdentity,
    FederatedManagedIdentity,
    WorkloadIdentity,
    ClientAssertion,
    ClientSecret,
    ClientCertificate,
}

/// Builds credentials from the settings and the environment. Files are read each time, so a rotated secret is used at
/// the next token.
pub struct Credentials {
    kind: Kind,
    authority: String,
    settings: KeySettings,
}

impl Credentials {
    /// Decides which credential it is; the first that the settings or the environment describe.
    pub fn new(vault_host: &str, settings: &KeySettings) -> Result<Self, ProviderError> {
        let kind = match settings.azure_credential.as_deref() {
            Some("managed-identity") => Kind::ManagedIdentity,
            Some("federated-managed-identity") => Kind::FederatedManagedIdentity,
            Some("workload-identity") => Kind::WorkloadIdentity,
            Some("client-assertion") => Kind::ClientAssertion,
            Some("client-secret") => Kind::ClientSecret,
            Some("client-certificate") => Kind::ClientCertificate,
            Some(other) => {
                return Err(mistake(
                    "AzureCredential",
                    format!(
                        "azure-credential `{other}` is unknown: write managed-identity, federated-managed-identity, workload-identity, client-assertion, client-secret or client-certificate"
                    ),
                ));
            }
            None if settings.azure_assertion_file.is_some() => Kind::ClientAssertion,
            None if settings.azure_client_secret_file.is_some() => Kind::ClientSecret,
            None if settings.azure_client_certificate_file.is_some() => Kind::ClientCertificate,
            None if environment("AZURE_FEDERATED_TOKEN_FILE").is_some() => Kind::WorkloadIdentity,
            None if environment("AZURE_CLIENT_SECRET").is_some() => Kind::ClientSecret,
            None => Kind::ManagedIdentity,
        };
        let authority = match &settings.azure_authority {
            Some(authority) => authority.clone(),
            None => environment("AZURE_AUTHORITY_HOST").unwrap_or_else(|| default_authority(vault_host).to_owned()),
        };
        if !authority.starts_with("https://") {
            return Err(mistake(
                "AzureAuthority",
                format!(
                    "azure-authority `{authority}` is no https address: write https://login.microsoftonline.com or your cloud's"
                ),
            ));
        }
        Ok(Credentials { kind, authority, settings: settings.clone() })
    }

    /// A credential that holds no token yet.
    pub fn build(&self, http: &Http) -> Result<Arc<dyn TokenCredential>, ProviderError> {
        match self.kind {
            Kind::ManagedIdentity => self.managed_identity(http, self.settings.azure_client_id.clone()),
            Kind::FederatedManagedIdentity => {
                let identity = self.managed_identity(http, self.settings.azure_identity_client_id.clone())?;
                self.assertion(http, IdentityAssertion(identity))
            }
            Kind::WorkloadIdentity => {
                let file = self.settings.azure_assertion_file.clone();
                let file = file.or_else(|| environment("AZURE_FEDERATED_TOKEN_FILE").map(PathBuf::from));
                let file = file.ok_or_else(|| {
                    mistake("AzureCredential", "workload identity has no token file: label the pod azure.workload.identity/use=true, or set AZURE_FEDERATED_TOKEN_FILE".to_owned())
                })?;
                self.assertion(http, AssertionFile(file))
            }
            Kind::ClientAssertion => {
                let file = self.settings.azure_assertion_file.clone().ok_or_else(|| {
                    mistake(
                        "AzureCredential",
                        "client-assertion needs azure-assertion-file: name the file with the signed assertion"
                            .to_owned(),
                    )
                })?;
                self.assertion(http, AssertionFile(file))
            }
            Kind::ClientSecret => {
                let secret = match &self.settings.azure_client_secret_file {
                    Some(file) => read_secret(file)?,
                    None => environment("AZURE_CLIENT_SECRET").map(Zeroizing::new).ok_or_else(|| {
                        mistake(
                            "AzureCredential",
                            "client-secret needs azure-client-secret-file: name the file with the secret".to_owned(),
                        )
                    })?,
                };
                let options = ClientSecretCredentialOptions { client_options: self.options(http) };
                let secret = SdkSecret::new(secret.trim().to_owned());
                let made = ClientSecretCredential::new(&self.tenant()?, self.client()?, secret, Some(options));
                Ok(made.map_err(refused)?)
            }
            Kind::ClientCertificate => {
                let file = self.settings.azure_client_certificate_file.as_deref().ok_or_else(|| {
                    mistake("AzureCredential", "client-certificate needs azure-client-certificate-file: name the PEM file with the certificate and its key".to_owned())
                })?;
                let pem = read_secret(file)?;
                let audience = format!("{}/{}/oauth2/v2.0/token", self.authority.trim_end_matches('/'), self.tenant()?);
                let assertion = CertificateAssertion::from_pem(&pem, self.client()?, audience)
                    .map_err(|why| mistake("ClientCertificate", format!("{}: {why}", file.display())))?;
                self.assertion(http, assertion)
            }
        }
    }

    fn managed_identity(&self, http: &Http, id: Option<String>) -> Result<Arc<dyn TokenCredential>, ProviderError> {
        let options = ManagedIdentityCredentialOptions {
            client_options: http.metadata_options(),
            user_assigned_id: id.map(UserAssignedId::ClientId),
        };
        Ok(ManagedIdentityCredential::new(Some(options)).map_err(refused)?)
    }

    fn assertion<C: ClientAssertion + 'static>(
        &self,
        http: &Http,
        assertion: C,
    ) -> Result<Arc<dyn TokenCredential>, ProviderError> {
        let options = ClientAssertionCredentialOptions { client_options: self.options(http) };
        let made = ClientAssertionCredential::new(self.tenant()?, self.client()?, assertion, Some(options));
        Ok(made.map_err(refused)?)
    }

    fn options(&self, http: &Http) -> ClientOptions {
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host = self.authority.clone();
        ClientOptions { cloud: Some(Arc::new(CloudConfiguration::Custom(cloud))), ..http.authority_options() }
    }

    fn tenant(&self) -> Result<String, ProviderError> {
        let tenant = self.settings.azure_tenant_id.clone().or_else(|| environment("AZURE_TENANT_ID"));
        tenant.ok_or_else(|| {
            mistake("AzureTenant", "the customer's tenant is not known: set azure-tenant-id (the customer finds it with `az account show --query tenantId`)".to_owned())
        })
    }

    fn client(&self) -> Result<String, ProviderError> {
        let client = self.settings.azure_client_id.clone().or_else(|| environment("AZURE_CLIENT_ID"));
        client.ok_or_else(|| {
            mistake("AzureClient", "the application is not known: set azure-client-id (`az ad app list --display-name NAME --query [].appId`)".to_owned())
        })
    }
}

fn refused(error: azure_core::Error) -> ProviderError {
    mistake(
        "AzureCredential",
        format!("the credential cannot be set up: {error}; check azure-tenant-id, azure-client-id and azure-authority"),
    )
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The authority of the cloud that the vault's name belongs to (Azure Government, Azure operated by 21Vianet, public).
fn default_authority(vault_host: &str) -> &'static str {
    let host = vault_host.split(':').next().unwrap_or(vault_host).to_ascii_lowercase();
    if host.ends_with(".usgovcloudapi.net") {
        "https://login.microsoftonline.us"
    } else if host.ends_with(".azure.cn") {
        "https://login.chinacloudapi.cn"
    } else {
        "https://login.microsoftonline.com"
    }
}

/// Reads a secret that nobody else may read.
fn read_secret(path: &Path) -> Result<Zeroizing<String>, ProviderError> {
    let bad = |why: String| mistake("SecretFile", format!("{} {why}", path.display()));
    let meta = std::fs::metadata(path)
        .map_err(|error| bad(format!("cannot be read ({error}): create it, readable for hyokfs only")))?;
    if meta.mode() & 0o027 != 0 {
        return Err(bad(format!("is open to others (mode {:o}): chmod 600 it", meta.mode() & 0o777)));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| bad(format!("cannot be read ({error}): it must be a text file, readable for hyokfs")))?;
    Ok(Zeroizing::new(text))
}

/// An assertion in a file, read for each token.
struct AssertionFile(PathBuf);

impl fmt::Debug for AssertionFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AssertionFile").field(&self.0).finish()
    }
}

#[async_trait::async_trait]
impl ClientAssertion for AssertionFile {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        let path = self.0.clone();
        let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
        let failed = |why: String| {
            azure_core::Error::with_message(
                ErrorKind::Credential,
                format!(
                    "the assertion file {} cannot be read ({why}): check that it exists and is renewed",
                    self.0.display()
                ),
            )
        };
        let text = read.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
        Ok(text.trim().to_owned())
    }
}

/// The machine's own identity as the assertion for an application in another tenant.
struct IdentityAssertion(Arc<dyn TokenCredential>);

impl fmt::Debug for IdentityAssertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentityAssertion")
    }
}

#[async_trait::async_trait]
impl ClientAssertion for IdentityAssertion {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        Ok(self.0.get_token(&[EXCHANGE_SCOPE], None).await?.token.secret().to_owned())
    }
}
