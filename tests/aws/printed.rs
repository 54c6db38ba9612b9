//! What `hyokfs policy` prints, read by the tools that its readers use: cfn-lint, an HCL parser, a Bicep parser.

use std::process::Command;

use hyokfs::provider::policy::{Access, Format, render};
use serde_json::Value;

use super::ministack::venv;

const KEY: &str = "awskms:///arn:aws:kms:eu-central-1:222222222222:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const VENDOR: &str = "arn:aws:iam::111111111111:role/hyokfs-node";
const PRINCIPAL: &str = "00000000-1111-2222-3333-444444444444";

fn python(program: &str, text: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("printed");
    std::fs::write(&file, text).unwrap();
    let out = Command::new(venv().join("bin/python")).args(["-c", program]).arg(&file).output().unwrap();
    assert!(out.status.success(), "{}\n{text}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn every_access(key: &str, vendor: &str) -> Vec<Access> {
    let plain = Access::new(key.parse().unwrap(), vendor).unwrap();
    let bound = Access {
        tenant: Some("Ac\"me & %{ Söhne".to_owned()),
        volume: Some("00112233445566778899aabbccddeeff".parse().unwrap()),
        ..plain.clone()
    };
    vec![plain, bound]
}

#[test]
fn cloudformation_passes_cfn_lint() {
    for access in every_access(KEY, VENDOR) {
        let template = render(&access, Format::CloudFormation).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("hyokfs.json");
        std::fs::write(&file, &template).unwrap();
        let out = Command::new(venv().join("bin/cfn-lint"))
            .args(["--regions", "eu-central-1", "--"])
            .arg(&file)
            .output()
            .unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{text}\n{template}");
    }
}

#[test]
fn terraform_is_hcl_and_says_what_the_json_says() {
    let program = "import sys, json, hcl2; print(json.dumps(hcl2.load(open(sys.argv[1]))))";
    for access in every_access(KEY, VENDOR) {
        let text = render(&access, Format::Terraform).unwrap();
        let parsed: Value = serde_json::from_str(&python(program, &text)).unwrap();
        let resources = parsed["resource"].as_array().unwrap();
        assert_eq!(resources.len(), 3, "{parsed:#}");
        let outputs = parsed["output"].as_array().unwrap();
        assert_eq!(outputs.len(), 3);
        let text = parsed.to_string();
        for part in ["sts:ExternalId", access.external_id.as_str(), VENDOR, "kms:GenerateDataKey", "kms:DescribeKey"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    for (key, kind) in [
        ("azurekeyvault://acme.vault.azure.net/keys/hyok", "azurerm_role_assignment"),
        (
            "azurekeyvault://acme.managedhsm.azure.net/keys/hyok",
            "azurerm_key_vault_managed_hardware_security_module_role_assignment",
        ),
    ] {
        let access = Access::new(key.parse().unwrap(), PRINCIPAL).unwrap();
        let parsed = python(program, &render(&access, Format::Terraform).unwrap());
        assert!(parsed.contains(kind), "{parsed}");
    }
}

#[test]
fn bicep_is_bicep() {
    let access = Access::new("azurekeyvault://acme.vault.azure.net/keys/hyok".parse().unwrap(), PRINCIPAL).unwrap();
    let program = "import sys, json, pathlib, pycep; print(json.dumps(pycep.BicepParser().parse(file_path=pathlib.Path(sys.argv[1]))))";
    let parsed: Value = serde_json::from_str(&python(program, &render(&access, Format::Bicep).unwrap())).unwrap();
    let resources = parsed["resources"].as_object().unwrap();
    assert_eq!(resources.len(), 3, "{parsed:#}");
    assert_eq!(resources["hyokfs"]["type"], "Microsoft.Authorization/roleAssignments", "{parsed:#}");
}
