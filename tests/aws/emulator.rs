//! The second opinion: an AWS emulator that others wrote (`ministack`), driven by the customer with `aws`, and used by
//! hyokfs through the real SDK. It checks signatures, trust policies, role policies and key states.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyokfs::provider::check::{self, Subject};
use hyokfs::provider::{KeySettings, KeyUri, Verdict, aws, policy};
use serde_json::{Value, json};

use super::fake::{CUSTOMER, VENDOR};
use super::node::{file, node_test, volume};
use super::printed::venv;

/// A running emulator; killed when dropped.
pub struct Emulator {
    child: Child,
    port: u16,
    home: tempfile::TempDir,
    venv: PathBuf,
}

impl Emulator {
    pub fn start() -> Self {
        let venv = venv();
        let program = venv.join("bin/ministack");
        assert!(program.exists(), "{} is missing: pip install ministack cryptography", program.display());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let home = tempfile::tempdir().unwrap();
        let child = Command::new(program)
            .env_clear()
            .envs([("BIND_HOST", "127.0.0.1"), ("AUTH", "true"), ("IOT_MTLS_ENABLED", "0"), ("PATH", "/usr/bin:/bin")])
            .env("GATEWAY_PORT", port.to_string())
            .env("HOME", home.path())
            .current_dir(home.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut emulator = Emulator { child, port, home, venv };
        let until = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(emulator.child.try_wait().unwrap().is_none(), "the emulator ended at once");
            assert!(Instant::now() < until, "the emulator does not listen after a minute");
            std::thread::sleep(Duration::from_millis(50));
        }
        emulator
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The environment of whoever administers `account`: `aws` finds the emulator and the root's keys.
    pub fn environment<'a>(&self, command: &'a mut Command, account: &str) -> &'a mut Command {
        command
            .env_clear()
            .env("AWS_ACCESS_KEY_ID", account)
            .envs([("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_DEFAULT_REGION", "eu-central-1"), ("LC_ALL", "C.UTF-8")])
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL", self.url())
            .env("PATH", format!("{}:/usr/bin:/bin", self.venv.join("bin").display()))
            .env("HOME", self.home.path())
    }

    /// Runs `aws WORDS` as the root of `account`.
    fn aws(&self, account: &str, words: &[&str]) -> Value {
        let mut command = Command::new(self.venv.join("bin/aws"));
        let out = self.environment(command.args(words).args(["--output", "json"]), account).output().unwrap();
        assert!(out.status.success(), "aws {words:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap_or(Value::Null)
    }

    fn customer(&self, words: &[&str]) -> Value {
        self.aws(CUSTOMER, words)
    }

    fn create_key(&self, account: &str) -> String {
        let made = self.aws(account, &["kms", "create-key", "--description", "hyokfs"]);
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }

    fn settings(&self) -> KeySettings {
        KeySettings {
            endpoint: Some(self.url()),
            sts_endpoint: Some(self.url()),
            call_deadline_ms: 10_000,
            session_name: Some("hyokfs-node7".to_owned()),
            ..KeySettings::default()
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The emulator knows no `kms:EncryptionContext:` condition keys, so a statement that has one never allows anything
/// there. The fake evaluates them (`check.rs`).
fn without_context_conditions(document: &Value) -> Value {
    let mut document = document.clone();
    for statement in document["Statement"].as_array_mut().unwrap() {
        statement.as_object_mut().unwrap().remove("Condition");
    }
    document
}

node_test! {
    async fn the_customers_commands_take_the_key_and_give_it_back() {
        let emulator = Emulator::start();
        let arn = emulator.create_key(VENDOR);
        let key = |words: &[&str]| emulator.aws(VENDOR, &[&["kms"], words, &["--key-id", &arn]].concat());
        let provider = aws::connect(&arn, &emulator.settings()).await.unwrap();
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
        let provider = aws::connect(&arn, &emulator.settings()).await.unwrap();
        let error = provider.generate(&volume()).await.err().unwrap();
        assert_eq!((error.verdict, error.code.as_str()), (Verdict::Misconfigured, "NotFoundException"));
        let mut settings = emulator.settings();
        settings.worked_before = true;
        let provider = aws::connect(&arn, &settings).await.unwrap();
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
            ..emulator.settings()
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
            ..emulator.settings()
        };
        // The role opens with the external id and is closed without; the use is for the fake to judge (conditions).
        let report = check::aws(&output("Key").parse().unwrap(), &settings, &Subject::default()).await.unwrap();
        let steps: Vec<bool> = report.steps.iter().take(5).map(|step| step.ok).collect();
        assert_eq!(steps, [true; 5], "{report:#?}");
    }
}
