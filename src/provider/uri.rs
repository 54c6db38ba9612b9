//! Names of keys, as the ecosystem writes them (Go CDK, sigstore, sops).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The name of a customer key. `Display` and `FromStr` are each other's inverse.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyUri {
    /// `local` or `local:PATH[#NAME]`: the embedded keystore file at PATH (`None`: the default place) and the key's
    /// name in it (`None`: `default`).
    Local {
        /// The keystore file.
        path: Option<PathBuf>,
        /// The key's name.
        name: Option<String>,
    },
    /// `awskms:///arn:aws:kms:REGION:ACCOUNT:key/ID` (an alias ARN is refused: it can be pointed elsewhere).
    AwsKms {
        /// The key's full ARN.
        arn: String,
    },
    /// `azurekeyvault://VAULT.vault.azure.net/keys/NAME[/VERSION]` or a managed HSM's host.
    AzureKeyVault {
        /// The vault's host name, with `:port` where it is not 443.
        host: String,
        /// The key's name.
        name: String,
        /// The key's version (`None`: the newest when wrapping; what was used is stored with the blob).
        version: Option<String>,
    },
}

/// A text is not the name of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` names no key ({why}): write awskms:///arn:aws:kms:REGION:ACCOUNT:key/ID, azurekeyvault://VAULT.vault.azure.net/keys/NAME[/VERSION] or local[:PATH[#NAME]]"
)]
pub struct BadKeyUri {
    text: String,
    why: &'static str,
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyUri::Local { path, name } => {
                f.write_str("local")?;
                if path.is_some() || name.is_some() {
                    f.write_str(":")?;
                }
                if let Some(path) = path {
                    write!(f, "{}", path.display())?;
                }
                name.as_ref().map_or(Ok(()), |name| write!(f, "#{name}"))
            }
            KeyUri::AwsKms { arn } => write!(f, "awskms:///{arn}"),
            KeyUri::AzureKeyVault { host, name, version } => {
                write!(f, "azurekeyvault://{host}/keys/{name}")?;
                version.as_ref().map_or(Ok(()), |version| write!(f, "/{version}"))
            }
        }
    }
}

impl FromStr for KeyUri {
    type Err = BadKeyUri;

    fn from_str(text: &str) -> Result<Self, BadKeyUri> {
        let bad = |why| Err(BadKeyUri { text: text.to_owned(), why });
        if text == "local" {
            return Ok(KeyUri::Local { path: None, name: None });
        }
        if let Some(rest) = text.strip_prefix("local:") {
            let (path, name) = match rest.rsplit_once('#') {
                Some((path, name)) if !name.is_empty() => (path, Some(name.to_owned())),
                Some(_) => return bad("the name after # is empty"),
                None => (rest, None),
            };
            let path = (!path.is_empty()).then(|| PathBuf::from(path));
            return Ok(KeyUri::Local { path, name });
        }
        if let Some(arn) = text.strip_prefix("awskms:///") {
            let parts: Vec<&str> = arn.splitn(6, ':').collect();
            let [head, partition, service, region, account, resource] = parts[..] else {
                return bad("an ARN has six parts");
            };
            if head != "arn" || service != "kms" || !partition.starts_with("aws") {
                return bad("not the ARN of a KMS key");
            }
            if region.is_empty() || account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
                return bad("the region or the 12-digit account is missing");
            }
            return match resource.strip_prefix("key/") {
                Some(id) if !id.is_empty() => Ok(KeyUri::AwsKms { arn: arn.to_owned() }),
                _ => bad("a key's ARN ends in key/ID; an alias can be pointed elsewhere and is refused"),
            };
        }
        if let Some(rest) = text.strip_prefix("azurekeyvault://") {
            let parts: Vec<&str> = rest.split('/').collect();
            return match parts[..] {
                [host, "keys", name] if !host.is_empty() && !name.is_empty() => {
                    Ok(KeyUri::AzureKeyVault { host: host.to_owned(), name: name.to_owned(), version: None })
                }
                [host, "keys", name, version] if !host.is_empty() && !name.is_empty() && !version.is_empty() => {
                    Ok(KeyUri::AzureKeyVault {
                        host: host.to_owned(),
                        name: name.to_owned(),
                        version: Some(version.to_owned()),
                    })
                }
                _ => bad("a vault key is HOST/keys/NAME[/VERSION]"),
            };
        }
        bad("unknown scheme")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::KeyUri;

    #[test]
    fn every_form_comes_back_as_it_was_written() {
        for text in [
            "local",
            "local:/var/lib/keys",
            "local:/var/lib/keys#acme",
            "local:#acme",
            "awskms:///arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "awskms:///arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab",
            "azurekeyvault://acme.vault.azure.net/keys/hyok",
            "azurekeyvault://acme.managedhsm.azure.net/keys/hyok/78deebed173b48e48f55abf87ed4cf71",
        ] {
            assert_eq!(text.parse::<KeyUri>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_names_no_key_is_refused_with_the_forms_that_do() {
        for text in [
            "",
            "locale",
            "local:#",
            "awskms:///alias/x",
            "awskms:///arn:aws:kms:eu-central-1:111122223333:alias/x",
            "awskms:///arn:aws:s3:eu-central-1:111122223333:key/x",
            "awskms:///arn:aws:kms:eu-central-1:1:key/x",
            "azurekeyvault://acme.vault.azure.net/secrets/x",
            "azurekeyvault:///keys/x",
            "gcpkms://x",
        ] {
            let message = text.parse::<KeyUri>().unwrap_err().to_string();
            assert!(message.contains("awskms:///arn"), "{message}");
        }
    }
}
