//! AWS: a volume of the customer's key and role, on the emulator; and each way of the customer's to say no.
//!
//! The emulator enforces every cause below (its own limits stand in `fakes/ministack.rs`). Only what it can't evaluate is
//! taken out of the printed policy: the condition on the encryption context, which the fake judges in `tests/aws`.

use std::fs;

use hyokfs::provider::policy::{self, Access, Format};
use serde_json::{Value, json};

use crate::common::{Store, World};
use crate::ministack::{CUSTOMER, Emulator, VENDOR, without_context_conditions};
use crate::story::{Cause, tell};

/// The role of the vendor's nodes.
const NODE: &str = "arn:aws:iam::111111111111:role/hyokfs-node";

/// A customer, a vendor and a volume between them.
pub struct Aws {
    pub emulator: Emulator,
    /// The key's ARN.
    pub key: String,
    trust: Value,
    permissions: String,
    pub store: Store,
}

impl Aws {
    /// Everything that stands before `hyokfs mount`.
    pub fn new() -> Aws {
        let emulator = Emulator::start();
        let key = emulator.create_key(CUSTOMER);
        let access = Access::new(format!("awskms:///{key}").parse().unwrap(), NODE).unwrap();
        let printed: Value = serde_json::from_str(&policy::render(&access, Format::Json).unwrap()).unwrap();
        let trust = printed["role"]["trust_policy"].clone();
        let permissions = without_context_conditions(&printed["role"]["permission_policy"]).to_string();
        let own = json!({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": {"AWS": format!("arn:aws:iam::{VENDOR}:root")}, "Action": "sts:AssumeRole"}]});
        let vendor = |words: &[&str]| emulator.aws(VENDOR, words);
        vendor(&[
            "iam",
            "create-role",
            "--role-name",
            "hyokfs-node",
            "--assume-role-policy-document",
            &own.to_string(),
        ]);
        let assume = printed["vendor_policy"].to_string();
        vendor(&[
            "iam",
            "put-role-policy",
            "--role-name",
            "hyokfs-node",
            "--policy-name",
            "a",
            "--policy-document",
            &assume,
        ]);
        emulator.customer(&[
            "iam",
            "create-role",
            "--role-name",
            "hyokfs",
            "--assume-role-policy-document",
            &trust.to_string(),
        ]);
        put_permissions(&emulator, &permissions);
        let session =
            vendor(&["sts", "assume-role", "--role-arn", NODE, "--role-session-name", "node"])["Credentials"].clone();

        let mut world = World::new();
        let config = world.path().join("acme.toml");
        let text = format!(
            "[key]\nassume-role = [{}]\nexternal-id = {}\nendpoint = \"{url}\"\nsts-endpoint = \"{url}\"\n",
            printed["hand_over"]["role_arn"],
            printed["hand_over"]["external_id"],
            url = emulator.url()
        );
        fs::write(&config, text).unwrap();
        world.set("HYOKFS_CONFIG", config.to_str().unwrap());
        for (name, field) in [
            ("AWS_ACCESS_KEY_ID", "AccessKeyId"),
            ("AWS_SECRET_ACCESS_KEY", "SecretAccessKey"),
            ("AWS_SESSION_TOKEN", "SessionToken"),
        ] {
            world.set(name, session[field].as_str().unwrap());
        }
        world.set("AWS_EC2_METADATA_DISABLED", "true");
        let path = world.path().join("store");
        world.ok(["init", "--key", &format!("awskms:///{key}"), path.to_str().unwrap()]);
        let store = Store { keystore: world.path().join("none"), world, path };
        Aws { emulator, key, trust, permissions, store }
    }

    /// `aws WORDS`, typed by the customer.
    pub fn customer(&self, words: &[&str]) -> Value {
        self.emulator.customer(words)
    }

    /// `aws kms WORDS --key-id KEY`, typed by the customer.
    pub fn kms(&self, words: &[&str]) -> Value {
        self.customer(&[&["kms"], words, &["--key-id", &self.key]].concat())
    }

    fn put_trust(&self, trust: &Value) {
        self.customer(&[
            "iam",
            "update-assume-role-policy",
            "--role-name",
            "hyokfs",
            "--policy-document",
            &trust.to_string(),
        ]);
    }

    fn tell(&self, code: &str, take: &dyn Fn(), give: &dyn Fn()) {
        tell(&self.store, &Cause { code, take, give });
    }
}

fn put_permissions(emulator: &Emulator, permissions: &str) {
    let words = [
        "iam",
        "put-role-policy",
        "--role-name",
        "hyokfs",
        "--policy-name",
        "use-key",
        "--policy-document",
        permissions,
    ];
    emulator.customer(&words);
}

#[test]
fn key_disabled() {
    let aws = Aws::new();
    aws.tell("DisabledException", &|| drop(aws.kms(&["disable-key"])), &|| drop(aws.kms(&["enable-key"])));
}

#[test]
fn key_scheduled_for_deletion_then_cancelled_and_enabled() {
    let aws = Aws::new();
    let take = || drop(aws.kms(&["schedule-key-deletion", "--pending-window-in-days", "7"]));
    let give = || {
        aws.kms(&["cancel-key-deletion"]);
        aws.kms(&["enable-key"]);
    };
    aws.tell("KMSInvalidStateException", &take, &give);
}

#[test]
fn key_policy_denies_the_role() {
    let aws = Aws::new();
    let before = aws.kms(&["get-key-policy", "--policy-name", "default"])["Policy"].as_str().unwrap().to_owned();
    let mut denied: Value = serde_json::from_str(&before).unwrap();
    denied["Statement"].as_array_mut().unwrap().push(json!({"Sid": "NoLonger", "Effect": "Deny",
        "Principal": {"AWS": format!("arn:aws:iam::{CUSTOMER}:role/hyokfs")}, "Action": "kms:Decrypt", "Resource": "*"}));
    let put = |policy: &str| drop(aws.kms(&["put-key-policy", "--policy-name", "default", "--policy", policy]));
    aws.tell("AccessDeniedException", &|| put(&denied.to_string()), &|| put(&before));
}

#[test]
fn role_policy_removed() {
    let aws = Aws::new();
    let take =
        || drop(aws.customer(&["iam", "delete-role-policy", "--role-name", "hyokfs", "--policy-name", "use-key"]));
    aws.tell("AccessDeniedException", &take, &|| put_permissions(&aws.emulator, &aws.permissions));
}

#[test]
fn trust_policy_edited() {
    let aws = Aws::new();
    let nobody = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Deny", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]});
    aws.tell("AccessDenied", &|| aws.put_trust(&nobody), &|| aws.put_trust(&aws.trust));
}

#[test]
fn external_id_changed() {
    let aws = Aws::new();
    let mut other = aws.trust.clone();
    let id = &mut other["Statement"][0]["Condition"]["StringEquals"]["sts:ExternalId"];
    assert!(id.is_string(), "the printed trust policy asks for no external id: {}", aws.trust);
    *id = json!("another-vendor's");
    aws.tell("AccessDenied", &|| aws.put_trust(&other), &|| aws.put_trust(&aws.trust));
}
