//! `hyokfs check`: names what is missing, and what it prints makes it pass.

use hyokfs::provider::check::{self, Report, Step, Subject};
use hyokfs::provider::{KeySettings, KeyUri, policy};
use serde_json::{Value, json};

use super::fake::{FakeAws, VENDOR, What};
use super::node::{self, EXTERNAL_ID, ROLE, node_test, plain, through_role};

fn role_settings(fake: &FakeAws) -> KeySettings {
    KeySettings {
        assume_role: vec![ROLE.to_owned()],
        external_id: Some(EXTERNAL_ID.to_owned()),
        ..node::settings(fake)
    }
}

async fn run(arn: &str, settings: &KeySettings) -> Report {
    let uri: KeyUri = format!("awskms:///{arn}").parse().unwrap();
    check::run(&uri, settings, &Subject::default()).await.unwrap()
}

fn bad(report: &Report) -> Vec<&Step> {
    report.steps.iter().filter(|step| !step.ok).collect()
}

node_test! {
    async fn a_key_that_is_set_up_well_passes_every_step() {
        let (fake, arn, _) = through_role(|_| {}).await;
        let settings = KeySettings { tenant: Some("acme".to_owned()), ..role_settings(&fake) };
        let report = run(&arn, &settings).await;
        assert!(report.ok(), "{report:#?}");
        let steps: Vec<&str> = report.steps.iter().map(|step| step.step.as_str()).collect();
        assert_eq!(steps, [
            "this node's identity",
            "assume arn:aws:iam::222222222222:role/hyokfs",
            "the role is closed without the external id",
            "the role is closed with another external id",
            "describe the key (DescribeKey)",
            "make a key (GenerateDataKey)",
            "wrap a key (Encrypt)",
            "unwrap the key (Decrypt)",
            "another file's context is refused",
            "another tenant's context is refused",
        ]);
        let printed = serde_json::to_value(&report).unwrap();
        assert_eq!(printed["steps"][0]["where"], Value::Null);
        assert!(printed["steps"][0].get("place").is_none());
    }

    async fn each_missing_permission_is_named_and_its_statement_mends_it() {
        for permission in ["kms:DescribeKey", "kms:GenerateDataKey", "kms:Encrypt", "kms:Decrypt"] {
            let (fake, arn, _) = through_role(|_| {}).await;
            let rest: Vec<&str> = ["kms:DescribeKey", "kms:GenerateDataKey", "kms:Encrypt", "kms:Decrypt"]
                .into_iter()
                .filter(|other| *other != permission)
                .collect();
            let allowed = json!({"Statement": [{"Effect": "Allow", "Action": rest, "Resource": arn}]});
            fake.world().roles.get_mut(ROLE).unwrap().policy = allowed;
            let report = run(&arn, &role_settings(&fake)).await;
            let bad = bad(&report);
            assert_eq!(bad.len(), 1, "{permission}: {report:#?}");
            assert_eq!(bad[0].missing.as_deref(), Some(permission));
            assert_eq!(bad[0].code.as_deref(), Some("AccessDeniedException"));
            assert!(bad[0].place.as_deref().unwrap().contains(&arn) && bad[0].request_id.is_some());
            // What is printed, added to the key's policy, is all that is needed.
            let statement = bad[0].statement.clone().unwrap();
            fake.world().key(&arn).policy["Statement"].as_array_mut().unwrap().push(statement);
            let report = run(&arn, &role_settings(&fake)).await;
            assert!(report.ok(), "{permission}: {report:#?}");
        }
    }

    async fn a_trust_that_is_missing_is_printed_and_mends_it() {
        let (fake, arn, _) = through_role(|_| {}).await;
        fake.world().roles.get_mut(ROLE).unwrap().trust = json!({"Statement": []});
        let report = run(&arn, &role_settings(&fake)).await;
        let bad = bad(&report);
        assert_eq!((bad.len(), bad[0].missing.as_deref()), (1, Some("sts:AssumeRole")), "{report:#?}");
        assert_eq!(bad[0].place.as_deref(), Some("the trust policy of arn:aws:iam::222222222222:role/hyokfs"));
        let trust = json!({"Statement": [bad[0].statement]});
        fake.world().roles.get_mut(ROLE).unwrap().trust = trust;
        let report = run(&arn, &role_settings(&fake)).await;
        assert!(report.ok(), "{report:#?}");
    }

    async fn a_role_that_opens_without_the_external_id_fails_the_check() {
        let (fake, arn, _) = through_role(|_| {}).await;
        fake.world().create_role(ROLE, &format!("arn:aws:iam::{VENDOR}:root"), None, &[&arn]);
        let report = run(&arn, &role_settings(&fake)).await;
        let codes: Vec<&str> = bad(&report).iter().map(|step| step.code.as_deref().unwrap()).collect();
        assert_eq!(codes, ["ExternalIdNotRequired", "ExternalIdNotRequired"], "{report:#?}");
        let without = KeySettings { external_id: None, ..role_settings(&fake) };
        let report = run(&arn, &without).await;
        let codes: Vec<&str> = bad(&report).iter().map(|step| step.code.as_deref().unwrap()).collect();
        assert_eq!(codes, ["NoExternalId"], "{report:#?}");
    }

    async fn the_state_and_the_kind_of_the_key_are_looked_at() {
        for (change, code) in [("Disabled", "Disabled"), ("PendingDeletion", "PendingDeletion"), ("usage", "InvalidKeyUsage")] {
            let (fake, arn, _) = through_role(|_| {}).await;
            match change {
                "usage" => fake.world().key(&arn).usage = "SIGN_VERIFY".to_owned(),
                state => fake.world().key(&arn).state = state.to_owned(),
            }
            let report = run(&arn, &role_settings(&fake)).await;
            assert!(!report.ok());
            assert_eq!(bad(&report)[0].code.as_deref(), Some(code), "{report:#?}");
            assert!(bad(&report).iter().all(|step| step.statement.is_none()), "no statement helps here: {report:#?}");
        }
    }

    async fn a_node_without_access_to_sts_says_so_and_stops() {
        let (fake, arn, _) = through_role(|_| {}).await;
        fake.world().fail(Some("GetCallerIdentity"), None, What::error(403, "InvalidClientTokenId", "unknown"));
        let report = run(&arn, &role_settings(&fake)).await;
        assert_eq!((report.steps.len(), report.ok()), (1, false));
        assert!(report.steps[0].message.contains("nothing is wrong at the customer's"), "{report:#?}");
    }

    async fn without_a_role_the_node_itself_is_named() {
        let (fake, arn, _) = plain(|_| {}).await;
        let report = run(&arn, &node::settings(&fake)).await;
        assert!(report.ok(), "{report:#?}");
        fake.world().key(&arn).policy = json!({"Statement": []});
        let report = run(&arn, &node::settings(&fake)).await;
        let statement = bad(&report)[0].statement.clone().unwrap();
        assert_eq!(statement["Principal"]["AWS"], "arn:aws:iam::111111111111:root");
    }

    async fn the_generic_steps_work_for_any_provider() {
        let (fake, arn, provider) = plain(|_| {}).await;
        let report = check::through(&*provider, &node::settings(&fake), &Subject::default()).await.unwrap();
        assert!(report.ok() && report.steps.len() == 5, "{report:#?}");
        fake.world().key(&arn).state = "Disabled".to_owned();
        let report = check::through(&*provider, &node::settings(&fake), &Subject::default()).await.unwrap();
        assert!(!report.ok());
    }

    async fn what_policy_prints_makes_check_pass_and_nothing_more() {
        let volume_id = node::VOLUME.parse().unwrap();
        for (tenant, bound) in [(None, false), (Some("acme"), false), (Some("acme"), true)] {
            let fake = FakeAws::start();
            let arn = fake.world().create_key();
            let mut access = policy::Access::new(format!("awskms:///{arn}").parse().unwrap(), VENDOR).unwrap();
            access.tenant = tenant.map(str::to_owned);
            access.volume = bound.then_some(volume_id);
            let printed: Value = serde_json::from_str(&policy::render(&access, policy::Format::Json).unwrap()).unwrap();
            let role = printed["hand_over"]["role_arn"].as_str().unwrap().to_owned();
            for whole_key_policy in [false, true] {
                {
                    let mut world = fake.world();
                    world.create_role(&role, "nobody", None, &[]);
                    let made = world.roles.get_mut(&role).unwrap();
                    made.trust = printed["role"]["trust_policy"].clone();
                    // With the key's own statements, the role needs no policy of its own.
                    made.policy = if whole_key_policy { json!({"Statement": []}) } else { printed["role"]["permission_policy"].clone() };
                    if whole_key_policy {
                        world.key(&arn).policy = printed["key_policy"].clone();
                    }
                }
                let settings = KeySettings {
                    assume_role: vec![role.clone()],
                    external_id: Some(access.external_id.clone()),
                    tenant: access.tenant.clone(),
                    ..node::settings(&fake)
                };
                let uri: KeyUri = format!("awskms:///{arn}").parse().unwrap();
                let subject = Subject { volume: Some(volume_id) };
                let report = check::aws(&uri, &settings, &subject).await.unwrap();
                assert!(report.ok(), "{tenant:?} {bound} {whole_key_policy}: {report:#?}");
                // Calls for another tenant or without our context stay closed.
                if tenant.is_some() {
                    let rival = KeySettings { tenant: Some("rival".to_owned()), ..settings.clone() };
                    assert!(!check::aws(&uri, &rival, &subject).await.unwrap().ok());
                }
                if bound {
                    assert!(!check::aws(&uri, &settings, &Subject::default()).await.unwrap().ok());
                }
            }
        }
    }
}
