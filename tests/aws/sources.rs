//! The node's own role, as clouds hand it out: instance metadata (IMDSv2), a container's endpoint (ECS, EKS Pod Identity)
//! and a web identity (IRSA), each through the SDK's own default chain; and what a probe sees when it is taken away.

use std::sync::Arc;

use hyokfs::provider::{Provider, Verdict, aws};
use serde_json::json;

use super::fake::metadata::{CONTAINER, CONTAINER_TOKEN};
use super::fake::sts::ISSUER;
use super::fake::{FakeAws, VENDOR};
use super::node::{self, EXTERNAL_ID, ROLE, volume};

/// The vendor's role that its instances and tasks have.
const HUB: &str = "arn:aws:iam::111111111111:role/hub";
const PORT: &str = "HYOKFS_TEST_PORT";

/// Runs `body` on a node that learns the fake's address by environment variables.
fn on(name: &str, environment: impl FnOnce(&str) -> Vec<(&'static str, String)>, body: impl Future<Output = ()>) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut environment = environment(&format!("http://127.0.0.1:{port}"));
    environment.push((PORT, port.to_string()));
    node::run(name, environment, body);
}

/// The fake at the address that the environment names, with the vendor's role, the customer's role and the customer's key.
fn fake() -> (FakeAws, String) {
    let port = std::env::var(PORT).unwrap().parse().unwrap();
    let fake = FakeAws::start_on(port, None).unwrap();
    let mut world = fake.world();
    let arn = world.create_key();
    world.create_role(HUB, &format!("arn:aws:iam::{VENDOR}:root"), None, &[]);
    world.create_role(ROLE, HUB, Some(EXTERNAL_ID), &[&arn]);
    drop(world);
    (fake, arn)
}

async fn provider(fake: &FakeAws, arn: &str, role: Option<&str>) -> Arc<dyn Provider> {
    let mut settings = node::settings(fake);
    settings.assume_role = role.map(str::to_owned).into_iter().collect();
    settings.external_id = role.map(|_| EXTERNAL_ID.to_owned());
    settings.call_deadline_ms = 60_000;
    aws::connect(arn, &settings).await.unwrap()
}

fn asked(fake: &FakeAws, operation: &str) -> usize {
    fake.world().count(operation)
}

fn instance(url: &str) -> Vec<(&'static str, String)> {
    vec![("AWS_EC2_METADATA_DISABLED", "false".to_owned()), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.to_owned())]
}

#[test]
fn an_instance_role_reaches_the_customer_s_role() {
    let name = concat!(module_path!(), "::an_instance_role_reaches_the_customer_s_role");
    on(name, instance, async {
        let (fake, arn) = fake();
        fake.world().node.instance = Some(HUB.to_owned());
        let provider = provider(&fake, &arn, Some(ROLE)).await;
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        for _ in 0..3 {
            provider.unwrap(&volume(), &canary.blob).await.unwrap();
        }
        assert_eq!((asked(&fake, "InstanceToken"), asked(&fake, "InstanceCredentials")), (1, 1));
        assert_eq!(asked(&fake, "AssumeRole"), 1);
        // Every probe assumes the customer's role anew, and so sees an edited trust policy.
        provider.probe(&volume(), &canary.blob).await.unwrap();
        assert_eq!(asked(&fake, "AssumeRole"), 2);
        fake.world().roles.get_mut(ROLE).unwrap().trust = json!({"Statement": []});
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "AccessDenied"));
    });
}

#[test]
fn a_probe_asks_the_instance_for_its_role_anew() {
    let name = concat!(module_path!(), "::a_probe_asks_the_instance_for_its_role_anew");
    on(name, instance, async {
        let (fake, arn) = fake();
        // The instance's own role may use the key: there is no other to assume.
        let direct = "arn:aws:iam::222222222222:role/direct";
        fake.world().create_role(direct, "*", None, &[&arn]);
        fake.world().node.instance = Some(direct.to_owned());
        let provider = provider(&fake, &arn, None).await;
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        for probes in 1..4 {
            provider.probe(&volume(), &canary.blob).await.unwrap();
            provider.unwrap(&volume(), &canary.blob).await.unwrap();
            assert_eq!(asked(&fake, "InstanceCredentials"), 1 + probes, "a probe each, and none for an unwrap");
        }
        // Another instance profile, whose role the customer never let in.
        fake.world().node.instance = Some(HUB.to_owned());
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "AccessDeniedException"));
        // No instance profile at all: the SDK goes on with what it was given, and KMS says whether it is still good.
        fake.world().node.instance = Some(direct.to_owned());
        provider.probe(&volume(), &canary.blob).await.unwrap();
        fake.world().node.instance = None;
        provider.probe(&volume(), &canary.blob).await.unwrap();
        fake.world().roles.remove(direct);
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "AccessDeniedException"));
    });
}

#[test]
fn an_instance_without_a_role_is_not_the_customer_s_no() {
    let name = concat!(module_path!(), "::an_instance_without_a_role_is_not_the_customer_s_no");
    on(name, instance, async {
        let (fake, arn) = fake();
        let provider = provider(&fake, &arn, Some(ROLE)).await;
        let error = provider.generate(&volume()).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "NoCredentials"), "{error}");
        assert!(asked(&fake, "InstanceRole") >= 1 && asked(&fake, "AssumeRole") == 0);
        // It gets one, and all is well without a new mount.
        fake.world().node.instance = Some(HUB.to_owned());
        provider.generate(&volume()).await.unwrap();
    });
}

#[test]
fn a_container_s_role_reaches_the_customer_s_role_and_is_asked_for_anew() {
    let name = concat!(module_path!(), "::a_container_s_role_reaches_the_customer_s_role_and_is_asked_for_anew");
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, CONTAINER_TOKEN).unwrap();
    let environment = |url: &str| {
        vec![
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{url}{CONTAINER}")),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.display().to_string()),
        ]
    };
    on(name, environment, async {
        let (fake, arn) = fake();
        let direct = "arn:aws:iam::222222222222:role/direct";
        fake.world().create_role(direct, "*", None, &[&arn]);
        fake.world().node.container = Some(HUB.to_owned());
        let through = provider(&fake, &arn, Some(ROLE)).await;
        let (_, canary) = through.generate(&volume()).await.unwrap();
        through.probe(&volume(), &canary.blob).await.unwrap();
        assert_eq!((asked(&fake, "ContainerCredentials"), asked(&fake, "AssumeRole")), (1, 2));
        fake.world().node.container = Some(direct.to_owned());
        let own = provider(&fake, &arn, None).await;
        own.unwrap(&volume(), &canary.blob).await.unwrap();
        own.probe(&volume(), &canary.blob).await.unwrap();
        assert_eq!(asked(&fake, "ContainerCredentials"), 3);
        // The task's role is taken away: that is the operator's own doing, and no customer's no.
        fake.world().node.container = None;
        let error = own.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "NoCredentials"), "{error}");
    });
}

/// The token of a web identity is renewed in its file (IRSA: by the kubelet); each probe reads it and assumes the role.
#[test]
fn a_web_identity_is_read_and_assumed_anew_by_each_probe() {
    let name = concat!(module_path!(), "::a_web_identity_is_read_and_assumed_anew_by_each_probe");
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "a.system:serviceaccount:acme:worker.c").unwrap();
    let environment = |url: &str| {
        vec![
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.display().to_string()),
            ("AWS_ROLE_ARN", ROLE.to_owned()),
            ("AWS_ROLE_SESSION_NAME", "worker-7".to_owned()),
            ("AWS_ENDPOINT_URL_STS", url.to_owned()),
        ]
    };
    on(name, environment, async {
        let (fake, arn) = fake();
        let token = std::path::PathBuf::from(std::env::var("AWS_WEB_IDENTITY_TOKEN_FILE").unwrap());
        fake.world().roles.get_mut(ROLE).unwrap().trust = json!({"Statement": [{"Effect": "Allow",
            "Principal": {"Federated": ISSUER}, "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {"StringEquals": {"issuer.example:sub": "system:serviceaccount:acme:worker"}}}]});
        let provider = provider(&fake, &arn, None).await;
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        for _ in 0..3 {
            provider.unwrap(&volume(), &canary.blob).await.unwrap();
        }
        assert_eq!(asked(&fake, "AssumeRoleWithWebIdentity"), 1);
        provider.probe(&volume(), &canary.blob).await.unwrap();
        assert_eq!(asked(&fake, "AssumeRoleWithWebIdentity"), 2);
        let principal = fake.world().log.last().unwrap().principal.clone();
        assert_eq!(principal, "arn:aws:sts::222222222222:assumed-role/hyokfs/worker-7");
        // Another service account's token is no way in, although the session goes on.
        std::fs::write(&token, "a.system:serviceaccount:acme:other.c").unwrap();
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "AccessDenied"));
        provider.unwrap(&volume(), &canary.blob).await.unwrap();
        std::fs::write(&token, "a.system:serviceaccount:acme:worker.c").unwrap();
        provider.probe(&volume(), &canary.blob).await.unwrap();
        // The customer takes the trust away.
        fake.world().roles.get_mut(ROLE).unwrap().trust = json!({"Statement": []});
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "AccessDenied"));
    });
}
