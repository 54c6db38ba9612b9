//! AWS: a role that the vendor's nodes may assume with the external id, and the four permissions it needs on one key.

use serde_json::{Value, json};

use super::hcl;
use super::{Access, PolicyError, check};
use crate::provider::KeyUri;

/// Permissions that carry an encryption context, so that conditions can bind them.
const BOUND: [&str; 3] = ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"];
/// The permission that carries none: DescribeKey tells a broken key store from a revoked key.
const UNBOUND: &str = "kms:DescribeKey";
const VERSION: &str = "2012-10-17";
/// Longest session of the role, seconds; hyokfs asks for 900.
const MAX_SESSION: u32 = 3600;

/// The ARN of the role `name` in the account of the key `arn`.
pub fn role_arn(key: &str, name: &str) -> String {
    let mut parts = key.split(':').skip(1);
    let partition = parts.next().unwrap_or("aws");
    let account = parts.nth(2).unwrap_or_default();
    format!("arn:{partition}:iam::{account}:role/{name}")
}

/// The statement of a key policy that gives `principal` one permission. (In a policy of the role: without `Principal`,
/// and with the key's ARN as `Resource`.)
pub fn allow_statement(permission: &str, principal: &str) -> Value {
    let name: String = permission.rsplit(':').next().unwrap_or_default().to_owned();
    json!({"Sid": format!("Hyokfs{name}"), "Effect": "Allow", "Principal": {"AWS": principal}, "Action": permission, "Resource": "*"})
}

/// The statement of a role's trust policy that lets `principal` assume it, with the external id where there is one.
pub fn assume_statement(principal: &str, external_id: Option<&str>) -> Value {
    let mut statement =
        json!({"Sid": "HyokfsNodes", "Effect": "Allow", "Principal": {"AWS": principal}, "Action": "sts:AssumeRole"});
    if let Some(id) = external_id {
        statement["Condition"] = json!({"StringEquals": {"sts:ExternalId": id}});
    }
    statement
}

/// The documents of one access.
pub(super) struct Documents<'a> {
    key: &'a str,
    access: &'a Access,
    role: String,
    vendor: String,
}

impl<'a> Documents<'a> {
    pub(super) fn new(key: &'a str, access: &'a Access) -> Result<Self, PolicyError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "+=,.@-_".contains(c);
        check("--role-name", &access.role_name, 1..=64, plain, "take letters, digits and +=,.@-_ (64 at most)")?;
        let id = |c: char| plain(c) || ":/".contains(c);
        check("--external-id", &access.external_id, 2..=1224, id, "take 2 to 1224 letters, digits and +=,.@:/-_")?;
        if let Some(tenant) = &access.tenant {
            // `*` and `?` have no meaning in StringEquals, and `${` would be a policy variable.
            check("--tenant", tenant, 1..=256, |c| !c.is_control() && c != '$', "take 1 to 256 characters without $")?;
        }
        let vendor = &access.vendor;
        let account = vendor.len() == 12 && vendor.bytes().all(|byte| byte.is_ascii_digit());
        let parts: Vec<&str> = vendor.splitn(6, ':').collect();
        let named = match parts[..] {
            ["arn", partition, "iam", "", account, resource] => {
                partition.starts_with("aws")
                    && account.len() == 12
                    && account.bytes().all(|byte| byte.is_ascii_digit())
                    && (resource == "root" || resource.starts_with("role/") || resource.starts_with("user/"))
                    && !vendor.contains(['*', '$', '"', ' '])
            }
            _ => false,
        };
        if !account && !named {
            let want = "give the ARN of the vendor's node role (arn:aws:iam::ACCOUNT:role/NAME), or a 12-digit account";
            return Err(PolicyError::Value { option: "--vendor", value: vendor.clone(), want });
        }
        let partition = key.split(':').nth(1).unwrap_or("aws");
        let vendor = if account { format!("arn:{partition}:iam::{vendor}:root") } else { vendor.clone() };
        Ok(Documents { key, access, role: role_arn(key, &access.role_name), vendor })
    }

    fn account(&self) -> &str {
        self.key.split(':').nth(4).unwrap_or_default()
    }

    fn partition(&self) -> &str {
        self.key.split(':').nth(1).unwrap_or("aws")
    }

    /// Who may assume the role, and with what.
    fn trust(&self) -> Value {
        json!({"Version": VERSION, "Statement": [assume_statement(&self.vendor, Some(&self.access.external_id))]})
    }

    /// Only hyokfs' calls: for this tenant and volume where they are known, else with a volume in the context at all.
    fn condition(&self) -> Value {
        let mut equals = serde_json::Map::new();
        if let Some(tenant) = &self.access.tenant {
            equals.insert("kms:EncryptionContext:hyokfs:tenant".to_owned(), json!(tenant));
        }
        if let Some(volume) = &self.access.volume {
            equals.insert("kms:EncryptionContext:hyokfs:volume".to_owned(), json!(volume.to_string()));
        }
        if equals.is_empty() {
            return json!({"Null": {"kms:EncryptionContext:hyokfs:volume": "false"}});
        }
        json!({"StringEquals": equals})
    }

    /// What the role may do.
    fn permissions(&self) -> Value {
        json!({"Version": VERSION, "Statement": [
            {"Sid": "HyokfsUse", "Effect": "Allow", "Action": BOUND, "Resource": self.key, "Condition": self.condition()},
            {"Sid": "HyokfsDescribe", "Effect": "Allow", "Action": UNBOUND, "Resource": self.key}]})
    }

    /// What the key's policy needs where it does not leave access to the account's IAM policies.
    fn key_statements(&self) -> Value {
        let principal = json!({"AWS": self.role});
        json!([
            {"Sid": "HyokfsUse", "Effect": "Allow", "Principal": principal, "Action": BOUND, "Resource": "*", "Condition": self.condition()},
            {"Sid": "HyokfsDescribe", "Effect": "Allow", "Principal": principal, "Action": UNBOUND, "Resource": "*"}])
    }

    /// A whole key policy: the account keeps the administration, the role gets the use.
    fn key_policy(&self) -> Value {
        let owner = json!({"Sid": "AccountAdministers", "Effect": "Allow",
            "Principal": {"AWS": format!("arn:{}:iam::{}:root", self.partition(), self.account())}, "Action": "kms:*", "Resource": "*"});
        let mut statements = vec![owner];
        statements.extend(self.key_statements().as_array().cloned().unwrap_or_default());
        json!({"Version": VERSION, "Statement": statements})
    }

    /// What the vendor's own identity needs.
    fn vendor_policy(&self) -> Value {
        json!({"Version": VERSION, "Statement": [
            {"Sid": "HyokfsAssume", "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": self.role}]})
    }

    /// What the customer tells the vendor.
    fn hand_over(&self) -> Value {
        json!({"key": KeyUri::AwsKms { arn: self.key.to_owned() }.to_string(), "role_arn": self.role,
            "external_id": self.access.external_id, "tenant": self.access.tenant})
    }

    pub(super) fn json(&self) -> String {
        pretty(&json!({
            "role": {"name": self.access.role_name, "arn": self.role, "max_session_duration": MAX_SESSION,
                "trust_policy": self.trust(), "permission_policy": self.permissions()},
            "key_policy_statements": self.key_statements(),
            "key_policy": self.key_policy(),
            "vendor_policy": self.vendor_policy(),
            "hand_over": self.hand_over(),
        }))
    }

    pub(super) fn terraform(&self) -> String {
        let mut text = format!(
            "# Lets the vendor's hyokfs nodes use one KMS key. Apply in the account {}.\n\
             # Taking the key away: disable it, or remove this role's trust policy.\n\n\
             terraform {{\n  required_providers {{\n    aws = {{\n      source  = \"hashicorp/aws\"\n      version = \">= 5.0\"\n    }}\n  }}\n}}\n\n\
             variable \"manage_key_policy\" {{\n  description = \"Also replace the key's whole policy. Only for a key whose policy is not managed elsewhere.\"\n  type        = bool\n  default     = false\n}}\n\n",
            self.account()
        );
        let encode = |value: &Value| format!("jsonencode({})", hcl::expression(value, 2));
        text += &format!(
            "resource \"aws_iam_role\" \"hyokfs\" {{\n  name                 = {}\n  description          = \"hyokfs uses a KMS key of this account\"\n  max_session_duration = {MAX_SESSION}\n  assume_role_policy = {}\n}}\n\n",
            hcl::string(&self.access.role_name),
            encode(&self.trust())
        );
        text += &format!(
            "resource \"aws_iam_role_policy\" \"hyokfs\" {{\n  name   = \"use-key\"\n  role   = aws_iam_role.hyokfs.id\n  policy = {}\n}}\n\n",
            encode(&self.permissions())
        );
        text += &format!(
            "resource \"aws_kms_key_policy\" \"hyokfs\" {{\n  count      = var.manage_key_policy ? 1 : 0\n  key_id     = {}\n  depends_on = [aws_iam_role.hyokfs]\n  policy = {}\n}}\n\n",
            hcl::string(self.key),
            encode(&self.key_policy())
        );
        text += "# Hand these over to the vendor.\n";
        text += "output \"role_arn\" {\n  value = aws_iam_role.hyokfs.arn\n}\n\n";
        text += &format!("output \"external_id\" {{\n  value = {}\n}}\n\n", hcl::string(&self.access.external_id));
        text += &format!("output \"key\" {{\n  value = {}\n}}\n", hcl::string(&format!("awskms:///{}", self.key)));
        text
    }

    pub(super) fn cloudformation(&self) -> String {
        pretty(&json!({
            "AWSTemplateFormatVersion": "2010-09-09",
            "Description": "Lets the vendor's hyokfs nodes use one KMS key of this account",
            "Metadata": {
                "Note": "CloudFormation can't edit the policy of a key that another stack or hand made. A key with the default policy needs nothing more; to any other key policy add these statements.",
                "KeyPolicyStatementsToAdd": self.key_statements(),
            },
            "Resources": {"HyokfsRole": {"Type": "AWS::IAM::Role", "Properties": {
                "RoleName": self.access.role_name,
                "Description": "hyokfs uses a KMS key of this account",
                "MaxSessionDuration": MAX_SESSION,
                "AssumeRolePolicyDocument": self.trust(),
                "Policies": [{"PolicyName": "use-key", "PolicyDocument": self.permissions()}],
            }}},
            "Outputs": {
                "RoleArn": {"Description": "Hand over to the vendor", "Value": {"Fn::GetAtt": ["HyokfsRole", "Arn"]}},
                "ExternalId": {"Description": "Hand over to the vendor", "Value": self.access.external_id},
                "Key": {"Description": "Hand over to the vendor", "Value": format!("awskms:///{}", self.key)},
            },
        }))
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
