//! The one HTTP client of a key: pooled connections, rustls, a proxy, and which addresses a key may be sent to.

use std::net::IpAddr;
use std::path::Path;
use std::sync::OnceLock;

use aws_sdk_kms::config::SharedHttpClient;
use aws_sdk_kms::config::endpoint::{DefaultResolver, Endpoint, EndpointFuture, Params, ResolveEndpoint};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider as Tls, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::super::{ProviderError, Verdict};

/// A client that trusts the system's certificate authorities, and those of `ca_file` (PEM) besides, and goes through
/// `proxy` where there is one.
///
/// The SDK would panic on a file it can't read certificates from, so the file is checked here.
pub(super) fn client(ca_file: Option<&Path>, proxy: Option<ProxyConfig>) -> Result<SharedHttpClient, ProviderError> {
    let mut trust = TrustStore::default();
    if let Some(path) = ca_file {
        trust = trust.with_pem_certificate(certificates(path)?);
    }
    let context = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|error| misconfigured("BadCertificates", format!("the TLS setup was refused: {error}")))?;
    let Some(proxy) = proxy else {
        return Ok(Builder::new().tls_provider(Tls::rustls(CryptoMode::AwsLc)).tls_context(context).build_https());
    };
    Ok(Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder();
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        connector
            .tls_provider(Tls::rustls(CryptoMode::AwsLc))
            .tls_context(context.clone())
            .proxy_config(proxy.clone())
            .build()
    }))
}

/// The proxy that the environment names (`HTTPS_PROXY`, `NO_PROXY`, also in small letters). Only `https` goes through
/// it: the machine's metadata service and an emulator on this machine speak plain HTTP. Nor do the addresses in `direct`,
/// which were given by hand and lie in one's own network.
pub(super) fn proxy<'a>(
    direct: impl Iterator<Item = &'a str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<ProxyConfig>, ProviderError> {
    let either = |large: &str, small: &str| {
        let set = |name| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        set(large).or_else(|| set(small))
    };
    let Some(address) = either("HTTPS_PROXY", "https_proxy") else { return Ok(None) };
    let address = if address.contains("://") { address } else { format!("http://{address}") };
    let config = ProxyConfig::https(address.as_str()).map_err(|error| {
        misconfigured(
            "BadProxy",
            format!("HTTPS_PROXY can't be used ({error}): write http://HOST:PORT, or take it out of the environment"),
        )
    })?;
    let mut around: Vec<String> = either("NO_PROXY", "no_proxy").into_iter().collect();
    around.extend(direct.filter_map(|url| url.split_once("://")).map(|(_, rest)| host(rest).to_owned()));
    Ok(Some(config.no_proxy(around.join(","))))
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

/// The host in `authority[/path]`.
fn host(rest: &str) -> &str {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

/// Whether `authority[/path]` names this machine.
fn is_this_machine(rest: &str) -> bool {
    if rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@')) {
        return false;
    }
    let host = host(rest);
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
            let error = client(Some(&path), None).unwrap_err();
            assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "BadCertificates"));
            assert!(error.message.contains("ca.pem"), "{error}");
        }
        assert!(
            client(Some(Path::new("/nonexistent/ca.pem")), None).unwrap_err().message.contains("/nonexistent/ca.pem")
        );
    }

    #[test]
    fn a_proxy_comes_from_the_environment_and_a_wrong_one_is_refused() {
        let asked = |pairs: &'static [(&str, &str)]| {
            let variable =
                |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            proxy(["https://vpce-1.example:443/x", "https://[2001:db8::1]:80"].into_iter(), variable)
        };
        assert!(asked(&[]).unwrap().is_none());
        assert!(asked(&[("HTTPS_PROXY", " "), ("HTTP_PROXY", "http://p:1")]).unwrap().is_none());
        for value in ["http://p:3128", "p:3128", "https://user:word@p:3128"] {
            let pairs: &'static [(&str, &str)] =
                Box::leak(Box::new([("https_proxy", value), ("NO_PROXY", "a.b,10.0.0.0/8")]));
            let config = asked(pairs).unwrap().unwrap();
            let told = format!("{config:?}");
            assert!(told.contains("a.b,10.0.0.0/8,vpce-1.example,2001:db8::1"), "{told}");
            client(None, Some(config)).unwrap();
        }
        for value in ["socks5://p:1", "http://", "http://a b"] {
            let pairs: &'static [(&str, &str)] = Box::leak(Box::new([("HTTPS_PROXY", value)]));
            let error = asked(pairs).unwrap_err();
            assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "BadProxy"), "{value}");
        }
    }

    #[test]
    fn a_real_certificate_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&path, made.cert.pem()).unwrap();
        client(Some(&path), None).unwrap();
        client(None, None).unwrap();
    }
}
