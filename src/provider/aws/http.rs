//! The one HTTP client of a key: pooled connections, rustls, and which addresses a key may be sent to.

use std::net::IpAddr;
use std::path::Path;
use std::sync::OnceLock;

use aws_sdk_kms::config::SharedHttpClient;
use aws_sdk_kms::config::endpoint::{DefaultResolver, Endpoint, EndpointFuture, Params, ResolveEndpoint};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider as Tls, TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::super::{ProviderError, Verdict};

/// A client that trusts the system's certificate authorities, and those of `ca_file` (PEM) besides.
///
/// The SDK would panic on a file it can't read certificates from, so the file is checked here.
pub(super) fn client(ca_file: Option<&Path>) -> Result<SharedHttpClient, ProviderError> {
    let mut trust = TrustStore::default();
    if let Some(path) = ca_file {
        trust = trust.with_pem_certificate(certificates(path)?);
    }
    let context = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|error| misconfigured("BadCertificates", format!("the TLS setup was refused: {error}")))?;
    Ok(Builder::new().tls_provider(Tls::rustls(CryptoMode::AwsLc)).tls_context(context).build_https())
}

fn certificates(path: &Path) -> Result<Vec<u8>, ProviderError> {
    let bad = |why: String| {
        misconfigured("BadCertificates", format!("{}: {why}; give a PEM file of CA certificates", path.display()))
    };
    let pem = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
    let parsed = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(format!("not PEM certificates: {error}")))?;
    if parsed.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    let mut roots = RootCertStore::empty();
    for certificate in parsed {
        roots.add(certificate).map_err(|error| bad(format!("a certificate is not usable: {error}")))?;
    }
    Ok(pem)
}

/// Refuses an address that would carry keys in the clear: plain HTTP is for this machine only.
pub(super) fn check_endpoint(url: &str) -> Result<(), ProviderError> {
    let refuse = |why: &str| {
        Err(misconfigured("BadEndpoint", format!("the endpoint `{url}` {why}; write https://HOST[:PORT] instead")))
    };
    if url.strip_prefix("https://").is_some_and(|rest| !rest.is_empty()) {
        return Ok(());
    }
    let Some(rest) = url.strip_prefix("http://") else {
        return refuse("is not an http(s) address");
    };
    if is_this_machine(rest) { Ok(()) } else { refuse("would send keys unencrypted over the network") }
}

/// Whether `authority[/path]` names this machine.
fn is_this_machine(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return false;
    }
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Finds the endpoint once, by the SDK's own rules (region, FIPS, dual stack, `AWS_ENDPOINT_URL_KMS`, the settings'
/// endpoint), refuses one that would carry keys in the clear, and answers from memory afterwards.
#[derive(Debug, Default)]
pub(super) struct PinnedEndpoint {
    rules: DefaultResolver,
    found: OnceLock<Endpoint>,
}

impl ResolveEndpoint for PinnedEndpoint {
    fn resolve_endpoint<'a>(&'a self, params: &'a Params) -> EndpointFuture<'a> {
        if let Some(endpoint) = self.found.get() {
            return EndpointFuture::ready(Ok(endpoint.clone()));
        }
        let answer = ResolveEndpoint::resolve_endpoint(&self.rules, params);
        EndpointFuture::new(async move {
            let endpoint = answer.await?;
            check_endpoint(endpoint.url())?;
            Ok(self.found.get_or_init(|| endpoint).clone())
        })
    }
}

pub(super) fn misconfigured(code: &str, message: String) -> ProviderError {
    ProviderError { verdict: Verdict::Misconfigured, code: code.to_owned(), message, request_id: None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_travel_in_the_clear_on_this_machine_only() {
        for good in [
            "https://kms.eu-central-1.amazonaws.com",
            "https://vpce-1.kms.eu-central-1.vpce.amazonaws.com:443/",
            "http://127.0.0.1:4566",
            "http://127.3.2.1/",
            "http://localhost:1",
            "http://[::1]:8080/x",
        ] {
            check_endpoint(good).unwrap();
        }
        for bad in [
            "http://kms.eu-central-1.amazonaws.com",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com:80",
            "http://127.0.0.1@example.com/",
            "http://10.0.0.1",
            "http://[2001:db8::1]:80",
            "https://",
            "kms.eu-central-1.amazonaws.com",
            "",
        ] {
            let error = check_endpoint(bad).unwrap_err();
            assert_eq!(error.verdict, Verdict::Misconfigured, "{bad}");
            assert!(error.message.contains("https://HOST"), "{error}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_refused_instead_of_panicking_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        for content in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, content).unwrap();
            let error = client(Some(&path)).unwrap_err();
            assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "BadCertificates"));
            assert!(error.message.contains("ca.pem"), "{error}");
        }
        assert!(client(Some(Path::new("/nonexistent/ca.pem"))).unwrap_err().message.contains("/nonexistent/ca.pem"));
    }

    #[test]
    fn a_real_certificate_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&path, made.cert.pem()).unwrap();
        client(Some(&path)).unwrap();
        client(None).unwrap();
    }
}
