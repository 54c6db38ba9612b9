//! The way to the customer's role: the chain, the external id, the session, and what the probe sees that a cached
//! session does not.

use std::time::{Duration, SystemTime};

use hyokfs::provider::{Verdict, aws};
use serde_json::json;

use super::fake::{FakeAws, VENDOR, What};
use super::node::{self, EXTERNAL_ID, ROLE, file, node_test, through_role, volume};

node_test! {
    async fn ordinary_calls_share_one_session() {
        let (fake, _arn, provider) = through_role(|_| {}).await;
        let (_, wrapped) = provider.generate(&file()).await.unwrap();
        for _ in 0..5 {
            provider.unwrap(&file(), &wrapped.blob).await.unwrap();
        }
        let world = fake.world();
        assert_eq!(world.count("AssumeRole"), 1);
        let assumed = &world.log[0].request;
        assert_eq!(assumed["RoleArn"], ROLE);
        assert_eq!(assumed["ExternalId"], EXTERNAL_ID);
        assert_eq!(assumed["RoleSessionName"], "hyokfs-node7-volume");
        assert_eq!(assumed["DurationSeconds"], "900");
        let principal = &world.log[1].principal;
        assert_eq!(principal, "arn:aws:sts::222222222222:assumed-role/hyokfs/hyokfs-node7-volume");
    }

    async fn many_first_calls_at_once_open_one_session() {
        let (fake, _arn, provider) = through_role(|_| {}).await;
        fake.world().fail(Some("AssumeRole"), Some(1), What::Delay(Duration::from_millis(100)));
        let mut calls = Vec::new();
        for _ in 0..20 {
            let provider = std::sync::Arc::clone(&provider);
            calls.push(tokio::spawn(async move { provider.generate(&volume()).await.map(drop) }));
        }
        for call in calls {
            call.await.unwrap().unwrap();
        }
        assert_eq!(fake.world().count("AssumeRole"), 1);
    }

    async fn every_probe_assumes_the_role_anew() {
        let (fake, _arn, provider) = through_role(|_| {}).await;
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        for _ in 0..3 {
            provider.probe(&volume(), &canary.blob).await.unwrap();
        }
        assert_eq!(fake.world().count("AssumeRole"), 4);
    }

    async fn the_probe_sees_a_removed_trust_while_the_session_still_works() {
        let (fake, _arn, provider) = through_role(|_| {}).await;
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        provider.probe(&volume(), &canary.blob).await.unwrap();
        fake.world().roles.get_mut(ROLE).unwrap().trust = json!({"Statement": []});
        provider.unwrap(&volume(), &canary.blob).await.expect("the session outlives the trust");
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "AccessDenied"));
        assert!(error.message.contains(ROLE) && error.message.contains("trust policy"), "{error}");
        assert!(error.request_id.is_some());
        let trust = json!({"Statement": [{"Effect": "Allow", "Principal": {"AWS": VENDOR}, "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": EXTERNAL_ID}}}]});
        fake.world().roles.get_mut(ROLE).unwrap().trust = trust;
        provider.probe(&volume(), &canary.blob).await.expect("restored");
    }

    async fn a_deleted_role_ends_the_session_too() {
        let (fake, _arn, provider) = through_role(|_| {}).await;
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        fake.world().roles.remove(ROLE);
        let error = provider.unwrap(&volume(), &canary.blob).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "AccessDeniedException"));
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "AccessDenied"));
    }

    async fn a_role_that_never_let_us_in_is_a_mistake() {
        let (fake, _arn, provider) = through_role(|settings| settings.external_id = Some("wrong".to_owned())).await;
        let error = provider.generate(&volume()).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "AccessDenied"));
        drop(fake);
        let (_fake, _arn, provider) = through_role(|settings| settings.external_id = None).await;
        assert_eq!(provider.generate(&volume()).await.err().unwrap().verdict, Verdict::Misconfigured);
    }

    async fn an_expired_session_is_opened_again_at_once() {
        let (fake, _arn, provider) = through_role(|_| {}).await;
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        for session in fake.world().sessions.values_mut() {
            session.end = SystemTime::now() - Duration::from_secs(1);
        }
        provider.unwrap(&volume(), &canary.blob).await.unwrap();
        let world = fake.world();
        let tail: Vec<(&str, &str)> =
            world.log[2..].iter().map(|logged| (logged.operation.as_str(), logged.outcome.as_str())).collect();
        assert_eq!(tail, [("Decrypt", "ExpiredTokenException"), ("AssumeRole", "ok"), ("Decrypt", "ok")]);
    }

    async fn roles_are_assumed_in_order_and_only_the_last_gets_the_external_id() {
        let hub = "arn:aws:iam::111111111111:role/hub";
        let fake = FakeAws::start();
        let arn = {
            let mut world = fake.world();
            let arn = world.create_key();
            world.create_role(hub, &format!("arn:aws:iam::{VENDOR}:root"), None, &[]);
            world.create_role(ROLE, hub, Some(EXTERNAL_ID), &[&arn]);
            arn
        };
        let mut settings = node::settings(&fake);
        settings.assume_role = vec![hub.to_owned(), ROLE.to_owned()];
        settings.external_id = Some(EXTERNAL_ID.to_owned());
        let provider = aws::connect(&arn, &settings).await.unwrap();
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        {
            let world = fake.world();
            let chain: Vec<(&str, bool)> = world.log[..2]
                .iter()
                .map(|logged| (logged.resource.as_str(), logged.request.get("ExternalId").is_some()))
                .collect();
            assert_eq!(chain, [(hub, false), (ROLE, true)]);
            assert_eq!(world.log[1].principal, "arn:aws:sts::111111111111:assumed-role/hub/hyokfs-node7-volume");
        }
        // The vendor's own role broken: that says nothing of the customer's will.
        fake.world().roles.get_mut(hub).unwrap().trust = json!({"Statement": []});
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "AccessDenied"));
        assert!(error.message.contains("nothing is wrong at the customer's"), "{error}");
    }

    async fn sts_that_hangs_is_named_and_the_session_serves_on() {
        let (fake, _arn, provider) = through_role(|settings| settings.call_deadline_ms = 3_000).await;
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        fake.world().fail(Some("AssumeRole"), None, What::Hang(Duration::from_secs(20)));
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "Timeout"));
        assert!(error.message.contains("STS"), "{error}");
        provider.unwrap(&volume(), &canary.blob).await.unwrap();
    }

    async fn a_renewal_ahead_of_time_that_hangs_holds_up_one_call_for_a_second() {
        let (fake, _arn, provider) = through_role(|settings| settings.call_deadline_ms = 10_000).await;
        // Under five minutes: time to renew; but good.
        fake.world().session_seconds = Some(200);
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        fake.world().fail(Some("AssumeRole"), None, What::Hang(Duration::from_secs(20)));
        let began = std::time::Instant::now();
        provider.unwrap(&volume(), &canary.blob).await.unwrap();
        let first = began.elapsed();
        assert!(first >= Duration::from_millis(900) && first < Duration::from_secs(9), "{first:?}");
        let tried = fake.world().count("AssumeRole");
        for _ in 0..5 {
            provider.unwrap(&volume(), &canary.blob).await.unwrap();
        }
        assert_eq!(fake.world().count("AssumeRole"), tried, "the next renewal comes after a pause");
        fake.world().faults.clear();
        // Nearly over: now the renewal is waited for.
        fake.world().session_seconds = Some(5);
        provider.probe(&volume(), &canary.blob).await.unwrap();
        let assumed = fake.world().count("AssumeRole");
        fake.world().session_seconds = None;
        provider.unwrap(&volume(), &canary.blob).await.unwrap();
        provider.unwrap(&volume(), &canary.blob).await.unwrap();
        assert_eq!(fake.world().count("AssumeRole"), assumed + 1);
    }

    async fn sts_out_of_order_is_unreachable_and_the_session_serves_on() {
        let (fake, _arn, provider) = through_role(|_| {}).await;
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        fake.world().fail(Some("AssumeRole"), None, What::error(503, "ServiceUnavailable", "later"));
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "ServiceUnavailable"));
        provider.unwrap(&volume(), &canary.blob).await.unwrap();
    }
}

/// The node's own keys come from a profile of the shared files, and from nowhere.
#[test]
fn a_profile_gives_the_credentials() {
    let name = concat!(module_path!(), "::a_profile_gives_the_credentials");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("credentials");
    std::fs::write(&path, format!("[worker]\naws_access_key_id = {VENDOR}\naws_secret_access_key = test\n")).unwrap();
    let environment = vec![("AWS_SHARED_CREDENTIALS_FILE", path.display().to_string())];
    node::run(name, environment, async {
        let (_fake, _arn, provider) = through_role(|settings| settings.profile = Some("worker".to_owned())).await;
        provider.generate(&volume()).await.unwrap();
        let (fake, _arn, provider) = through_role(|settings| settings.profile = None).await;
        let error = provider.generate(&volume()).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Unreachable, "NoCredentials"));
        assert!(error.message.contains("nothing is wrong at the customer's"), "{error}");
        assert!(fake.world().log.is_empty());
    });
}

/// A web identity (EKS, GitHub): the SDK assumes the role inside its own chain, and the refusal is still read.
#[test]
fn a_refused_web_identity_is_read_from_inside_the_chain() {
    let name = concat!(module_path!(), "::a_refused_web_identity_is_read_from_inside_the_chain");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, "a.b.c").unwrap();
    // The port is fixed by the fake inside, so the address goes through a file that names it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let environment = vec![
        ("AWS_WEB_IDENTITY_TOKEN_FILE", path.display().to_string()),
        ("AWS_ROLE_ARN", ROLE.to_owned()),
        ("AWS_ENDPOINT_URL_STS", format!("http://127.0.0.1:{port}")),
        ("HYOKFS_TEST_PORT", port.to_string()),
    ];
    node::run(name, environment, async {
        let port = std::env::var("HYOKFS_TEST_PORT").unwrap().parse().unwrap();
        let fake = FakeAws::start_on(port, None).unwrap();
        let arn = fake.world().create_key();
        for (worked, code, verdict) in [
            (true, "AccessDenied", Verdict::Denied),
            (false, "AccessDenied", Verdict::Misconfigured),
            (true, "IDPRejectedClaim", Verdict::Denied),
            (true, "InvalidIdentityToken", Verdict::Unreachable),
            (true, "ExpiredTokenException", Verdict::Unreachable),
            (true, "IDPCommunicationError", Verdict::Unreachable),
        ] {
            fake.world().faults.clear();
            fake.world().fail(Some("AssumeRoleWithWebIdentity"), None, What::error(403, code, "no"));
            let mut settings = node::settings(&fake);
            settings.worked_before = worked;
            // The SDK's own chain waits between its tries.
            settings.call_deadline_ms = 20_000;
            let error = aws::connect(&arn, &settings).await.unwrap().generate(&volume()).await.err().unwrap();
            assert_eq!((error.verdict, error.code.as_str()), (verdict, code), "{error}");
        }
    });
}
