//! A client certificate as proof of who we are: an assertion signed with its key, without OpenSSL.
//!
//! The token is a JWT signed with PS256 whose header names the certificate by its SHA-256 thumbprint (`x5t#S256`), as
//! the Microsoft identity platform asks for ("Certificate credentials", assertion format). It lives five minutes and
//! is made anew for each token.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PSS_SHA256;
use aws_lc_rs::{digest, rand};
use azure_core::error::ErrorKind;
use azure_core::http::ClientMethodOptions;
use azure_identity::ClientAssertion;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// How long one assertion is valid, in seconds.
const LIFETIME: u64 = 300;

/// Signs assertions with a certificate's key.
pub struct CertificateAssertion {
    key: KeyPair,
    thumbprint: String,
    client: String,
    audience: String,
}

impl fmt::Debug for CertificateAssertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAssertion").field("client", &self.client).finish_non_exhaustive()
    }
}

impl CertificateAssertion {
    /// Reads a PEM file with one `CERTIFICATE` (the first is taken) and one `PRIVATE KEY` (RSA, PKCS#8, unencrypted).
    pub fn from_pem(pem: &str, client: String, audience: String) -> Result<Self, &'static str> {
        let certificate = section(pem, "CERTIFICATE")
            .ok_or("it holds no certificate: put the certificate and its key into one PEM file")?;
        let key = section(pem, "PRIVATE KEY").ok_or(
            "it holds no PKCS#8 key (BEGIN PRIVATE KEY): convert with `openssl pkcs8 -topk8 -nodes`, or use client-assertion and sign elsewhere",
        )?;
        let key = KeyPair::from_pkcs8(&key)
            .map_err(|_| "its key is no RSA key of 2048 to 8192 bits: use an RSA certificate, or client-assertion")?;
        let thumbprint = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &certificate));
        Ok(CertificateAssertion { key, thumbprint, client, audience })
    }

    fn sign(&self, now: u64) -> Option<String> {
        let mut id = [0; 16];
        rand::fill(&mut id).ok()?;
        let header = serde_json::json!({ "alg": "PS256", "typ": "JWT", "x5t#S256": self.thumbprint });
        let claims = serde_json::json!({
            "aud": self.audience, "iss": self.client, "sub": self.client,
            "jti": URL_SAFE_NO_PAD.encode(id), "nbf": now, "iat": now, "exp": now + LIFETIME,
        });
        let mut token =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(&RSA_PSS_SHA256, &SystemRandom::new(), token.as_bytes(), &mut signature).ok()?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Some(token)
    }
}

#[async_trait::async_trait]
impl ClientAssertion for CertificateAssertion {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.sign(now).ok_or_else(|| {
            azure_core::Error::with_message(
                ErrorKind::Credential,
                "the client certificate's key cannot sign: check the file, or use client-assertion",
            )
        })
    }
}

/// The bytes of the first section of this kind.
fn section(pem: &str, kind: &str) -> Option<Zeroizing<Vec<u8>>> {
    let begin = format!("-----BEGIN {kind}-----");
    let end = format!("-----END {kind}-----");
    let body = pem.split_once(&begin)?.1.split_once(&end)?.0;
    let packed: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
    STANDARD.decode(packed.as_bytes()).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{KeyPair as _, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};

    #[test]
    fn the_assertion_verifies_under_the_certificates_key_and_names_it() {
        let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'static>>::as_der(&key).unwrap();
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            STANDARD.encode(der.as_ref()),
            STANDARD.encode(b"certificate")
        );
        let made = CertificateAssertion::from_pem(&pem, "app".into(), "https://login/t".into()).unwrap();
        let token = made.sign(1_000).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key.public_key())
            .verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
            .unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let header: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        let thumbprint = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, b"certificate"));
        assert_eq!(header["x5t#S256"], thumbprint.as_str());
        assert_eq!(claims["exp"], 1_300);
        assert_eq!(claims["iss"], "app");
        assert!(CertificateAssertion::from_pem("", String::new(), String::new()).is_err());
        assert!(
            CertificateAssertion::from_pem(&pem.replace("PRIVATE KEY", "EC KEY"), String::new(), String::new())
                .is_err()
        );
    }
}
