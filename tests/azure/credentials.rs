//! Every way to prove who we are.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use hyokfs::provider::{KeySettings, Verdict};

use crate::fake::{CLIENT, KeyKind, VAULT};
use crate::rig::{Rig, private_file, volume};

#[tokio::test]
async fn an_assertion_file_is_read_for_each_token() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let path = private_file(&rig.dir, "assertion", "first\n");
    rig.fake.world().assertion = Some("first".to_owned());
    for credential in ["client-assertion", "workload-identity"] {
        let settings = KeySettings {
            azure_credential: Some(credential.to_owned()),
            azure_assertion_file: Some(path.clone()),
            ..rig.settings.clone()
        };
        private_file(&rig.dir, "assertion", "first\n");
        rig.fake.world().assertion = Some("first".to_owned());
        let key = rig.connect(VAULT, &settings).await.unwrap();
        let (_, canary) = key.generate(&volume()).await.unwrap();
        key.probe(&volume(), &canary.blob).await.unwrap();
        rig.fake.world().assertion = Some("second".to_owned());
        let error = key.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "AADSTS700213"));
        private_file(&rig.dir, "assertion", "second");
        key.probe(&volume(), &canary.blob).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let error = key.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "NoToken"));
        assert!(error.message.contains("assertion"), "{error}");
    }
}

#[tokio::test]
async fn a_rotated_client_secret_is_used_by_the_next_probe() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let key = rig.key().await;
    let (_, canary) = key.generate(&volume()).await.unwrap();
    rig.fake.world().secret = "rotated".to_owned();
    assert_eq!(key.probe(&volume(), &canary.blob).await.unwrap_err().code, "AADSTS7000215");
    private_file(&rig.dir, "secret", "rotated");
    key.probe(&volume(), &canary.blob).await.unwrap();
}

#[tokio::test]
async fn a_secret_that_others_can_read_is_refused() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let path = rig.settings.azure_client_secret_file.clone().unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = rig.connect(VAULT, &rig.settings).await.err().unwrap();
    assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "SecretFile"));
    assert!(error.message.contains("chmod 600"), "{error}");
}

#[tokio::test]
async fn settings_that_cannot_work_say_what_is_missing() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    type Case = (fn(&mut KeySettings), &'static str, &'static str);
    let cases: [Case; 8] = [
        (|s| s.azure_credential = Some("password".into()), "AzureCredential", "managed-identity"),
        (|s| s.azure_credential = Some("client-assertion".into()), "AzureCredential", "azure-assertion-file"),
        (
            |s| s.azure_credential = Some("client-certificate".into()),
            "AzureCredential",
            "azure-client-certificate-file",
        ),
        (|s| s.azure_tenant_id = Some("a b".into()), "AzureCredential", "azure-tenant-id"),
        (|s| s.azure_authority = Some("http://127.0.0.1".into()), "AzureAuthority", "https://"),
        (|s| s.endpoint = Some("https://a/b".into()), "Endpoint", "https://HOST"),
        (|s| s.ca_file = Some("/nonexistent".into()), "CaFile", "PEM"),
        (|s| s.azure_client_secret_file = Some("/nonexistent".into()), "SecretFile", "create it"),
    ];
    for (change, code, hint) in cases {
        let mut settings = rig.settings.clone();
        change(&mut settings);
        let error = rig.connect(VAULT, &settings).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, code), "{error}");
        assert!(error.message.contains(hint), "{error}");
    }
}

#[tokio::test]
async fn a_client_certificate_signs_the_assertion_itself() {
    let rig = Rig::new(KeyKind::Rsa(2048));
    let key = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'static>>::as_der(&key).unwrap();
    let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der.as_ref().into(), &rcgen::PKCS_RSA_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
    let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
    let settings = KeySettings {
        azure_credential: Some("client-certificate".to_owned()),
        azure_client_certificate_file: Some(private_file(&rig.dir, "client.pem", &pem)),
        ..rig.settings.clone()
    };
    // The fake does not verify assertions: that the signature is right is the unit test's matter. Here: it is sent.
    let provider = rig.connect(VAULT, &settings).await.unwrap();
    let error = provider.generate(&volume()).await.err().unwrap();
    assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "AADSTS700213"), "{error}");
}

const INNER: &str = "HYOKFS_TEST_IDENTITY_DIR";

/// The machine's identity is found through the environment, so it is tried in a process of its own.
#[test]
fn the_machines_own_identity_works_alone_and_across_tenants() {
    if std::env::var_os(INNER).is_some() {
        return inner();
    }
    let rig = Rig::new(KeyKind::Rsa(2048));
    let identity = format!("{}/msi/token", rig.fake.plain_url());
    let ask = |credential: &str| {
        let name = "the_machines_own_identity_works_alone_and_across_tenants";
        elsewhere(&rig, name, credential, &[("IDENTITY_ENDPOINT", &identity), ("IDENTITY_HEADER", "fake")])
    };
    assert!(ask("managed-identity").contains("RESULT live"));
    assert_eq!(rig.fake.world().count("token", 200), 0, "the identity alone needs no authority");
    assert!(ask("federated-managed-identity").contains("RESULT live"));
    assert!(rig.fake.world().count("token", 200) >= 1);
    rig.fake.world().identity = Some(400);
    let text = ask("managed-identity");
    assert!(text.contains("RESULT Unreachable TokenHttp400"), "{text}");
    rig.fake.world().identity = Some(503);
    let text = ask("managed-identity");
    assert!(text.contains("RESULT Unreachable TokenHttp503"), "{text}");
    rig.fake.world().identity = None;
    rig.fake.world().remove_principal();
    let text = ask("federated-managed-identity");
    assert!(text.contains("RESULT Misconfigured AADSTS700016"), "{text}");
}

/// Secret and proxy are taken from the environment, so this too is tried in a process of its own.
#[test]
fn a_proxy_is_taken_from_the_environment_for_the_authority() {
    if std::env::var_os(INNER).is_some() {
        return inner();
    }
    let rig = Rig::new(KeyKind::Rsa(2048));
    let secret = rig.fake.world().secret.clone();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = format!("http://{closed}");
    let ask = |bypass: &str| {
        let variables = [("AZURE_CLIENT_SECRET", secret.as_str()), ("HTTPS_PROXY", &proxy), ("NO_PROXY", bypass)];
        elsewhere(&rig, "a_proxy_is_taken_from_the_environment_for_the_authority", "client-secret", &variables)
    };
    let text = ask("example.org");
    assert!(text.contains("RESULT Unreachable TokenUnreachable"), "{text}");
    let text = ask("127.0.0.1");
    assert!(text.contains("RESULT live"), "{text}");
}

/// Runs one test of this file again, in a process with these variables, and gives what it printed.
fn elsewhere(rig: &Rig, test: &str, credential: &str, variables: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("credentials::{test}"), "--nocapture"])
        .envs(variables.iter().copied())
        .env(INNER, rig.dir.path())
        .env("HYOKFS_TEST_URL", rig.fake.url())
        .env("HYOKFS_TEST_CREDENTIAL", credential)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("RESULT "), "{text}");
    text
}

fn inner() {
    let dir = std::path::PathBuf::from(std::env::var_os(INNER).unwrap());
    let url = std::env::var("HYOKFS_TEST_URL").unwrap();
    let credential = std::env::var("HYOKFS_TEST_CREDENTIAL").unwrap();
    let settings = KeySettings {
        endpoint: Some(url.clone()),
        ca_file: Some(dir.join("ca.pem")),
        azure_authority: Some(url),
        azure_tenant_id: Some(crate::fake::TENANT.to_owned()),
        azure_client_id: Some(CLIENT.to_owned()),
        azure_credential: Some(credential),
        call_deadline_ms: 3_000,
        ..KeySettings::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let key = hyokfs::provider::azure::connect(VAULT, "hyok", None, &settings).await.unwrap();
        let result = match key.generate(&volume()).await {
            Ok((_, canary)) => key.probe(&volume(), &canary.blob).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(_) => println!("RESULT live"),
            Err(error) => println!("RESULT {:?} {}", error.verdict, error.code),
        }
    });
}
