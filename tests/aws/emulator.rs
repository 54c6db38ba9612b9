//! The second opinion: an AWS emulator that others wrote (`ministack`), driven by the customer with `aws`, and used by
//! hyokfs through the real SDK. It checks signatures, trust policies, role policies and key states.

use std::time::{Duration, Instant};

use hyokfs::provider::check::{self, Subject};
use hyokfs::provider::{KeySettings, KeyUri, Verdict, aws, policy};
use serde_json::{Value, json};

use super::ministack::{CUSTOMER, Emulator, VENDOR, without_context_conditions};
use super::node::{file, node_test, volume};

fn settings(emulator: &Emulator) -> KeySettings {
    KeySettings {
        endpoint: Some(emulator.url()),
        sts_endpoint: Some(emulator.url()),
        call_deadline_ms: 10_000,
        session_name: Some("hyokfs-node7".to_owned()),
        ..KeySettings::default()
    }
}

node_test! {
    async fn the_customers_commands_take_the_key_and_give_it_back() {
        let emulator = Emulator::start();
        let arn = emulator.create_key(VENDOR);
        let key = |words: &[&str]| emulator.aws(VENDOR, &[&["kms"], words, &["--key-id", &arn]].concat());
        let provider = aws::connect(&arn, &settings(&emulator)).await.unwrap();
        let (secret, canary) = provider.generate(&volume()).await.unwrap();
        provider.probe(&volume(), &canary.blob).await.unwrap();
        assert_eq!(provider.describe().await.unwrap().state, "Enabled");

        key(&["disable-key"]);
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "DisabledException"));
        assert_eq!(provider.generate(&volume()).await.err().unwrap().verdict, Verdict::Denied);
        assert_eq!(provider.wrap(&volume(), &secret).await.unwrap_err().verdict, Verdict::Denied);
        key(&["enable-key"]);
        provider.probe(&volume(), &canary.blob).await.unwrap();

        key(&["schedule-key-deletion", "--pending-window-in-days", "7"]);
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "KMSInvalidStateException"));
        assert!(error.message.contains("cancel-key-deletion"), "{error}");
        key(&["cancel-key-deletion"]);
        key(&["enable-key"]);
        let (again, _) = provider.unwrap(&volume(), &canary.blob).await.unwrap();
        assert_eq!(again.expose(), secret.expose());

        let error = provider.unwrap(&file(), &canary.blob).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "InvalidCiphertextException"));
    }

    async fn a_key_that_is_not_there_is_a_mistake_or_a_no() {
        let emulator = Emulator::start();
        let arn = format!("arn:aws:kms:eu-central-1:{VENDOR}:key/00000000-0000-4000-8000-000000000000");
        let provider = aws::connect(&arn, &settings(&emulator)).await.unwrap();
        let error = provider.generate(&volume()).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "NotFoundException"));
        let mut known = settings(&emulator);
        known.worked_before = true;
        let provider = aws::connect(&arn, &known).await.unwrap();
        assert_eq!(provider.generate(&volume()).await.err().unwrap().verdict, Verdict::Denied);
    }

    async fn what_policy_prints_opens_the_key_and_taking_it_back_closes_it() {
        let emulator = Emulator::start();
        let arn = emulator.create_key(CUSTOMER);
        let access = policy::Access::new(format!("awskms:///{arn}").parse().unwrap(), VENDOR).unwrap();
        let printed: Value = serde_json::from_str(&policy::render(&access, policy::Format::Json).unwrap()).unwrap();
        let permissions = without_context_conditions(&printed["role"]["permission_policy"]).to_string();
        let trust = printed["role"]["trust_policy"].to_string();
        let role = printed["hand_over"]["role_arn"].as_str().unwrap();
        emulator.customer(&["iam", "create-role", "--role-name", "hyokfs", "--assume-role-policy-document", &trust]);
        emulator.customer(&["iam", "put-role-policy", "--role-name", "hyokfs", "--policy-name", "use-key", "--policy-document", &permissions]);

        let settings = KeySettings {
            assume_role: vec![role.to_owned()],
            external_id: Some(access.external_id.clone()),
            ..settings(&emulator)
        };
        let uri: KeyUri = format!("awskms:///{arn}").parse().unwrap();
        let report = check::aws(&uri, &settings, &Subject::default()).await.unwrap();
        assert!(report.ok(), "{report:#?}");

        let provider = aws::connect(&arn, &settings).await.unwrap();
        let (_, canary) = provider.generate(&volume()).await.unwrap();
        provider.probe(&volume(), &canary.blob).await.unwrap();
        let nobody = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]});
        emulator.customer(&["iam", "update-assume-role-policy", "--role-name", "hyokfs", "--policy-document", &nobody.to_string()]);
        provider.unwrap(&volume(), &canary.blob).await.expect("the session outlives the trust");
        let error = provider.probe(&volume(), &canary.blob).await.unwrap_err();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "AccessDenied"));
        emulator.customer(&["iam", "update-assume-role-policy", "--role-name", "hyokfs", "--policy-document", &trust]);
        provider.probe(&volume(), &canary.blob).await.expect("restored");

        emulator.customer(&["iam", "delete-role-policy", "--role-name", "hyokfs", "--policy-name", "use-key"]);
        let error = provider.unwrap(&volume(), &canary.blob).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Denied, "AccessDeniedException"));
        let report = check::aws(&uri, &settings, &Subject::default()).await.unwrap();
        let missing: Vec<&str> = report.steps.iter().filter_map(|step| step.missing.as_deref()).collect();
        assert_eq!(missing, ["kms:DescribeKey", "kms:GenerateDataKey", "kms:Encrypt", "kms:Decrypt"], "{report:#?}");
        emulator.customer(&["iam", "put-role-policy", "--role-name", "hyokfs", "--policy-name", "use-key", "--policy-document", &permissions]);
        provider.unwrap(&volume(), &canary.blob).await.expect("restored");
    }

    async fn the_printed_template_is_deployed_and_opens_the_role() {
        let emulator = Emulator::start();
        let arn = emulator.create_key(CUSTOMER);
        let access = policy::Access::new(format!("awskms:///{arn}").parse().unwrap(), VENDOR).unwrap();
        let template = policy::render(&access, policy::Format::CloudFormation).unwrap();
        emulator.customer(&["cloudformation", "create-stack", "--stack-name", "hyokfs", "--template-body", &template,
            "--capabilities", "CAPABILITY_NAMED_IAM"]);
        let until = Instant::now() + Duration::from_secs(30);
        let outputs = loop {
            let stack = emulator.customer(&["cloudformation", "describe-stacks", "--stack-name", "hyokfs"])["Stacks"][0].clone();
            if stack["StackStatus"] == "CREATE_COMPLETE" {
                break stack["Outputs"].clone();
            }
            assert!(Instant::now() < until && stack["StackStatus"] == "CREATE_IN_PROGRESS", "{stack:#}");
            std::thread::sleep(Duration::from_millis(100));
        };
        let output = |name: &str| {
            let found = outputs.as_array().unwrap().iter().find(|output| output["OutputKey"] == name);
            found.unwrap_or_else(|| panic!("no {name}: {outputs:#}"))["OutputValue"].as_str().unwrap().to_owned()
        };
        let settings = KeySettings {
            assume_role: vec![output("RoleArn")],
            external_id: Some(output("ExternalId")),
            ..settings(&emulator)
        };
        // The role opens with the external id and is closed without; the use is for the fake to judge (conditions).
        let report = check::aws(&output("Key").parse().unwrap(), &settings, &Subject::default()).await.unwrap();
        let steps: Vec<bool> = report.steps.iter().take(5).map(|step| step.ok).collect();
        assert_eq!(steps, [true; 5], "{report:#?}");
    }
}
