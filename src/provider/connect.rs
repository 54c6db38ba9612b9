//! From a key's name to the key.

use std::sync::Arc;

use super::local::LocalKey;
use super::{KeySettings, KeyUri, Provider, ProviderError};

/// Gets ready to use a key. The local keystore is not read yet; a cloud's client is built, with credentials found but
/// not necessarily tried: the first call tells.
///
/// # Errors
/// The settings do not fit, or this build has no client for that key service.
pub async fn connect(uri: &KeyUri, settings: &KeySettings) -> Result<Arc<dyn Provider>, ProviderError> {
    match uri {
        KeyUri::Local { path, name } => Ok(Arc::new(LocalKey::new(path.as_deref(), name.as_deref(), settings))),
        #[cfg(feature = "aws")]
        KeyUri::AwsKms { arn } => super::aws::connect(arn, settings).await,
        #[cfg(not(feature = "aws"))]
        KeyUri::AwsKms { .. } => Err(not_built(uri, "AWS KMS", "aws")),
        #[cfg(feature = "azure")]
        KeyUri::AzureKeyVault { host, name, version } => {
            super::azure::connect(host, name, version.as_deref(), settings).await
        }
        #[cfg(not(feature = "azure"))]
        KeyUri::AzureKeyVault { .. } => Err(not_built(uri, "Azure Key Vault", "azure")),
    }
}

#[cfg(any(not(feature = "aws"), not(feature = "azure")))]
fn not_built(uri: &KeyUri, service: &str, feature: &str) -> ProviderError {
    ProviderError {
        verdict: super::Verdict::Misconfigured,
        code: "NotBuilt".to_owned(),
        message: format!(
            "{uri}: this hyokfs was built without {service}; use a released binary, or build with `--features {feature}`"
        ),
        request_id: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::provider::Verdict;

    #[tokio::test]
    async fn a_local_key_connects_without_a_file_and_a_missing_service_names_the_build() {
        let settings = KeySettings::default();
        let uri: KeyUri = "local:/nowhere/keys#acme".parse().unwrap();
        assert_eq!(connect(&uri, &settings).await.unwrap().uri(), &uri);
        for (built, text, feature) in [
            (cfg!(feature = "aws"), "awskms:///arn:aws:kms:eu-central-1:111122223333:key/1234abcd", "--features aws"),
            (cfg!(feature = "azure"), "azurekeyvault://acme.vault.azure.net/keys/hyok", "--features azure"),
        ] {
            if !built {
                let error = connect(&text.parse().unwrap(), &settings).await.err().unwrap();
                assert_eq!(error.verdict, Verdict::Misconfigured);
                assert!(error.message.contains(feature), "{}", error.message);
            }
        }
    }
}
