#![allow(clippy::unwrap_used)]
use serde_json::{Value, json};

use super::*;

const KEY: &str = "awskms:///arn:aws:kms:eu-central-1:222222222222:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const VENDOR: &str = "arn:aws:iam::111111111111:role/hyokfs-node";
const PRINCIPAL: &str = "00000000-1111-2222-3333-444444444444";

fn access() -> Access {
    Access::new(KEY.parse().unwrap(), VENDOR).unwrap()
}

fn documents(access: &Access) -> Value {
    serde_json::from_str(&render(access, Format::Json).unwrap()).unwrap()
}

#[test]
fn the_role_may_use_one_key_and_nothing_else() {
    let access = access();
    let all = documents(&access);
    let statements = all["role"]["permission_policy"]["Statement"].as_array().unwrap();
    let mut actions: Vec<&str> = statements
        .iter()
        .flat_map(|statement| match &statement["Action"] {
            Value::Array(actions) => actions.iter().map(|action| action.as_str().unwrap()).collect(),
            one => vec![one.as_str().unwrap()],
        })
        .collect();
    actions.sort_unstable();
    assert_eq!(actions, ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey"]);
    for statement in statements {
        assert_eq!(statement["Resource"], KEY.strip_prefix("awskms:///").unwrap());
    }
    assert_eq!(all["role"]["arn"], "arn:aws:iam::222222222222:role/hyokfs");
    assert_eq!(all["hand_over"]["role_arn"], all["role"]["arn"]);
    assert_eq!(all["hand_over"]["external_id"], access.external_id);
    assert_eq!(all["vendor_policy"]["Statement"][0]["Resource"], all["role"]["arn"]);
}

#[test]
fn the_trust_asks_for_the_vendor_and_the_external_id() {
    let access = access();
    let statement = &documents(&access)["role"]["trust_policy"]["Statement"][0];
    assert_eq!(statement["Principal"], json!({"AWS": VENDOR}));
    assert_eq!(statement["Condition"], json!({"StringEquals": {"sts:ExternalId": access.external_id}}));
    assert_eq!(access.external_id.len(), 32);
    assert_ne!(super::new_external_id().unwrap(), access.external_id);
}

#[test]
fn the_use_is_bound_to_tenant_and_volume() {
    let mut access = access();
    let condition =
        |access: &Access| documents(access)["role"]["permission_policy"]["Statement"][0]["Condition"].clone();
    assert_eq!(condition(&access), json!({"Null": {"kms:EncryptionContext:hyokfs:volume": "false"}}));
    access.tenant = Some("acme".to_owned());
    access.volume = Some("00112233445566778899aabbccddeeff".parse().unwrap());
    let want = json!({"StringEquals": {"kms:EncryptionContext:hyokfs:tenant": "acme",
        "kms:EncryptionContext:hyokfs:volume": "00112233445566778899aabbccddeeff"}});
    assert_eq!(condition(&access), want);
    assert_eq!(documents(&access)["key_policy"]["Statement"][1]["Condition"], want);
}

#[test]
fn the_key_policy_leaves_the_administration_to_the_account() {
    let all = documents(&access());
    let statements = all["key_policy"]["Statement"].as_array().unwrap();
    assert_eq!(statements[0]["Principal"], json!({"AWS": "arn:aws:iam::222222222222:root"}));
    assert_eq!(statements[1..], all["key_policy_statements"].as_array().unwrap()[..]);
}

#[test]
fn other_partitions_keep_their_name() {
    let key = "awskms:///arn:aws-us-gov:kms:us-gov-west-1:222222222222:key/mrk-1".parse().unwrap();
    let all = documents(&Access::new(key, "111111111111").unwrap());
    assert_eq!(all["role"]["arn"], "arn:aws-us-gov:iam::222222222222:role/hyokfs");
    let trust = &all["role"]["trust_policy"]["Statement"][0]["Principal"]["AWS"];
    assert_eq!(trust, "arn:aws-us-gov:iam::111111111111:root");
}

#[test]
fn what_has_no_place_in_a_policy_is_refused() {
    for vendor in [
        "",
        "*",
        "arn:aws:iam::*:root",
        "arn:aws:iam::111111111111:role/*",
        "arn:aws:sts::111111111111:assumed-role/a/b",
        "11111111111",
    ] {
        let error = render(&Access { vendor: vendor.to_owned(), ..access() }, Format::Json).unwrap_err();
        assert!(error.to_string().contains("--vendor"), "{error}");
    }
    for (bad, option) in [
        (Access { role_name: "a b".to_owned(), ..access() }, "--role-name"),
        (Access { external_id: "x".to_owned(), ..access() }, "--external-id"),
        (Access { external_id: "a\"b".to_owned(), ..access() }, "--external-id"),
        (Access { tenant: Some("${aws:username}".to_owned()), ..access() }, "--tenant"),
    ] {
        let error = render(&bad, Format::Terraform).unwrap_err().to_string();
        assert!(error.contains(option), "{error}");
    }
    let azure = |host: &str| format!("azurekeyvault://{host}/keys/k").parse().unwrap();
    for (host, vendor) in
        [("acme.vault.azure.net", "not-a-guid"), ("a'b.vault.azure.net", PRINCIPAL), ("x.vault.azure.net", PRINCIPAL)]
    {
        assert!(render(&Access::new(azure(host), vendor).unwrap(), Format::Bicep).is_err(), "{host} {vendor}");
    }
}

#[test]
fn each_cloud_has_its_formats() {
    let wrong = |access: &Access, format| render(access, format).unwrap_err().to_string();
    assert!(wrong(&access(), Format::Bicep).contains("cloudformation"));
    let vault = Access::new("azurekeyvault://acme.vault.azure.net/keys/hyok".parse().unwrap(), PRINCIPAL).unwrap();
    assert!(wrong(&vault, Format::CloudFormation).contains("bicep"));
    let hsm = Access::new("azurekeyvault://acme.managedhsm.azure.net/keys/hyok".parse().unwrap(), PRINCIPAL).unwrap();
    assert!(wrong(&hsm, Format::Bicep).contains("terraform"));
    let local = Access::new("local".parse().unwrap(), VENDOR).unwrap();
    assert!(wrong(&local, Format::Json).contains("local key"));
    assert!("yaml".parse::<Format>().unwrap_err().to_string().contains("cloudformation"));
    for format in [Format::Json, Format::Terraform, Format::CloudFormation, Format::Bicep] {
        assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
    }
}

#[test]
fn azure_gets_one_role_on_one_key() {
    let vault = Access::new("azurekeyvault://acme.vault.azure.net/keys/hyok".parse().unwrap(), PRINCIPAL).unwrap();
    let bicep = render(&vault, Format::Bicep).unwrap();
    for part in ["e147488a-f6f5-4113-8e2d-b22465e65bf6", "name: 'acme'", "name: 'hyok'", PRINCIPAL, "scope: key"] {
        assert!(bicep.contains(part), "{part}: {bicep}");
    }
    assert_eq!(bicep.matches('{').count(), bicep.matches('}').count());
    assert!(render(&vault, Format::Terraform).unwrap().contains("resource_versionless_id"));
    let hsm = Access::new("azurekeyvault://acme.managedhsm.azure.net/keys/hyok".parse().unwrap(), PRINCIPAL).unwrap();
    let terraform = render(&hsm, Format::Terraform).unwrap();
    assert!(terraform.contains("33413926-3206-4cdd-b39a-83574fe37a17") && terraform.contains("\"/keys/hyok\""));
    let json: Value = serde_json::from_str(&render(&hsm, Format::Json).unwrap()).unwrap();
    assert!(json["role_assignment"]["command"].as_str().unwrap().starts_with("az keyvault role assignment create"));
}
