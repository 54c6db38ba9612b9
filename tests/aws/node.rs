//! A node with known credentials. The SDK reads them from the environment, which a test can't change for itself: each
//! test runs in a process of its own, with nothing of the outer environment.

use std::process::Command;
use std::sync::Arc;

use hyokfs::format::{FileId, VolumeId};
use hyokfs::provider::{Context, KeySettings, Provider, aws};

use super::fake::{FakeAws, VENDOR};

/// Set in the process of a test.
const INSIDE: &str = "HYOKFS_TEST_INSIDE";

/// The environment of the vendor's node: keys of the vendor's account, no instance metadata.
pub fn vendor() -> Vec<(&'static str, String)> {
    vec![("AWS_ACCESS_KEY_ID", VENDOR.to_owned()), ("AWS_SECRET_ACCESS_KEY", "test".to_owned())]
}

/// Runs `body` in a process of its own; `name` is the test's path as the test harness writes it.
pub fn run(name: &str, environment: Vec<(&str, String)>, body: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(body);
        return;
    }
    let name = name.split_once("::").map_or(name, |(_crate, rest)| rest);
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env_clear()
        .env(INSIDE, "1")
        .env("HOME", home.path());
    // Most nodes in these tests have no metadata service; a test that brings one overrides this.
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    for keep in ["PATH", "LD_LIBRARY_PATH", "HYOKFS_TEST_VENV", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
        if let Some(value) = std::env::var_os(keep) {
            command.env(keep, value);
        }
    }
    let out = command.envs(environment).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
}

/// `node_test! { async fn name() { … } }`: a test on the vendor's node.
macro_rules! node_test {
    ($($(#[$meta:meta])* async fn $name:ident() $body:block)+) => {$(
        $(#[$meta])*
        #[test]
        fn $name() {
            let name = concat!(module_path!(), "::", stringify!($name));
            $crate::node::run(name, $crate::node::vendor(), async $body);
        }
    )+};
}
pub(crate) use node_test;

pub const VOLUME: &str = "000102030405060708090a0b0c0d0e0f";
pub const FILE: &str = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";

/// The context of the volume secret and the canary.
pub fn volume() -> Context<'static> {
    Context { volume: VOLUME.parse::<VolumeId>().unwrap(), file: None, tenant: None }
}

/// The context of a file of the tenant acme.
pub fn file() -> Context<'static> {
    Context { file: Some(FILE.parse::<FileId>().unwrap()), tenant: Some("acme"), ..volume() }
}

/// Settings that lead to the fake, with a deadline for tests.
pub fn settings(fake: &FakeAws) -> KeySettings {
    KeySettings {
        endpoint: Some(fake.url()),
        sts_endpoint: Some(fake.url()),
        call_deadline_ms: 20_000,
        session_name: Some("hyokfs-node7-volume".to_owned()),
        ..KeySettings::default()
    }
}

/// A fake, a key of the vendor's own account, and the provider for it without any role.
pub async fn plain(change: impl FnOnce(&mut KeySettings)) -> (FakeAws, String, Arc<dyn Provider>) {
    let fake = FakeAws::start();
    let arn = fake.world().create_key_in(VENDOR);
    let mut settings = settings(&fake);
    change(&mut settings);
    let provider = aws::connect(&arn, &settings).await.unwrap();
    (fake, arn, provider)
}

/// The customer's role in the tests.
pub const ROLE: &str = "arn:aws:iam::222222222222:role/hyokfs";
/// The external id of the customer's role.
pub const EXTERNAL_ID: &str = "7b1f9c1e5d3a4c52";

/// A fake, a key of the customer's account, and the provider for it through the customer's role.
pub async fn through_role(change: impl FnOnce(&mut KeySettings)) -> (FakeAws, String, Arc<dyn Provider>) {
    let fake = FakeAws::start();
    let arn = {
        let mut world = fake.world();
        let arn = world.create_key();
        world.create_role(ROLE, &format!("arn:aws:iam::{VENDOR}:root"), Some(EXTERNAL_ID), &[&arn]);
        arn
    };
    let mut settings = settings(&fake);
    settings.assume_role = vec![ROLE.to_owned()];
    settings.external_id = Some(EXTERNAL_ID.to_owned());
    change(&mut settings);
    let provider = aws::connect(&arn, &settings).await.unwrap();
    (fake, arn, provider)
}
