//! What the service tells about the key, and wrapping with its public part.
//!
//! RSA needs the service only to unwrap. Wrapping here saves a call per new file, and no new file waits for the
//! network. It gives the customer nothing away: the public key is public, and a wrapped key says nothing about who
//! made it in either case. What it costs: the vault's log has no line for the making of a file's key.

use std::time::SystemTime;

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents};
use azure_security_keyvault_keys::models::{Key, KeyType};

use super::blob::{Algorithm, KeyId};
use crate::crypto::Secret;

/// The key as the service describes it.
pub struct Facts {
    /// The version that the service answered for.
    pub id: KeyId,
    /// The key's kind, for people.
    pub kind: String,
    /// How it wraps.
    pub algorithm: Algorithm,
    /// The public part, for RSA.
    pub public: Option<OaepPublicEncryptingKey>,
    /// Whether the customer lets it be used at all.
    pub enabled: bool,
    /// Whether it may wrap new keys by its permitted operations.
    pub may_wrap: bool,
    not_before: Option<SystemTime>,
    expires: Option<SystemTime>,
}

/// What a key's attributes say at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Usable.
    Enabled,
    /// The customer switched it off.
    Disabled,
    /// Its end date has passed: the service still unwraps, and refuses to wrap.
    Expired,
    /// Its start date has not come.
    NotYetValid,
}

impl Facts {
    /// Reads the service's answer; the error says what is wrong with the key.
    pub fn read(key: &Key) -> Result<Self, String> {
        let jwk = key.key.as_ref().ok_or("the answer holds no key")?;
        let kid = jwk.kid.as_deref().ok_or("the answer names no key")?;
        let id = KeyId::from_kid(kid).ok_or_else(|| format!("the key's name `{kid}` has no version"))?;
        let kty = jwk.kty.as_ref().ok_or("the answer does not tell the key's type")?;
        let (kind, algorithm, public) = match kty {
            KeyType::Rsa | KeyType::RsaHsm => {
                let (Some(n), Some(e)) = (&jwk.n, &jwk.e) else {
                    return Err("the answer lacks the public key".to_owned());
                };
                let strip = |bytes: &[u8]| bytes.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
                let parts = PublicKeyComponents { n: strip(n), e: strip(e) };
                let key: Result<PublicEncryptingKey, _> = parts.try_into();
                let key = key.map_err(|_| "its public key is damaged or not of 2048 to 4096 bits")?;
                let bits = key.key_size_bits();
                if !(2048..=4096).contains(&bits) {
                    return Err(format!("RSA of {bits} bits is not supported: take 2048, 3072 or 4096"));
                }
                let key = OaepPublicEncryptingKey::new(key).map_err(|_| "its public key is damaged")?;
                (format!("{}-{bits}", kty.as_ref()), Algorithm::RsaOaep256, Some(key))
            }
            KeyType::Oct | KeyType::OctHsm => (kty.as_ref().to_owned(), Algorithm::A256Kw, None),
            other => {
                return Err(format!(
                    "a key of type {} can't wrap: create an RSA key, or an AES-256 key in a managed HSM",
                    other.as_ref()
                ));
            }
        };
        let attributes = key.attributes.as_ref();
        let may_wrap = jwk.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op.eq_ignore_ascii_case("wrapKey")));
        Ok(Facts {
            id,
            kind,
            algorithm,
            public,
            enabled: attributes.and_then(|a| a.enabled).unwrap_or(true),
            may_wrap,
            not_before: attributes.and_then(|a| a.not_before).map(SystemTime::from),
            expires: attributes.and_then(|a| a.expires).map(SystemTime::from),
        })
    }

    /// What the attributes say now.
    pub fn state(&self, now: SystemTime) -> State {
        if !self.enabled {
            State::Disabled
        } else if self.expires.is_some_and(|end| end <= now) {
            State::Expired
        } else if self.not_before.is_some_and(|start| start > now) {
            State::NotYetValid
        } else {
            State::Enabled
        }
    }

    /// Wraps with the public key, as `RSA-OAEP-256` does in the service; `None` for other keys or if it fails.
    pub fn wrap_here(&self, once: &Secret) -> Option<Vec<u8>> {
        let public = self.public.as_ref()?;
        let mut out = vec![0; public.ciphertext_size()];
        let length = public.encrypt(&OAEP_SHA256_MGF1SHA256, once.expose(), &mut out, None).ok()?.len();
        out.truncate(length);
        Some(out)
    }
}
