//! What the customer pastes so that hyokfs may use their key, and nothing else: roles, policies and role assignments as
//! JSON, Terraform, CloudFormation or Bicep. Pure: asks no service.

mod aws;
mod azure;
mod hcl;

use std::fmt;
use std::str::FromStr;

use crate::format::VolumeId;

use super::KeyUri;

pub use aws::{allow_statement, assume_statement, role_arn};

/// A language that infrastructure is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The documents themselves.
    Json,
    /// HCL for Terraform and OpenTofu.
    Terraform,
    /// An AWS CloudFormation template, as JSON.
    CloudFormation,
    /// Azure Bicep.
    Bicep,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Json => "json",
            Format::Terraform => "terraform",
            Format::CloudFormation => "cloudformation",
            Format::Bicep => "bicep",
        })
    }
}

impl FromStr for Format {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "json" => Ok(Format::Json),
            "terraform" => Ok(Format::Terraform),
            "cloudformation" => Ok(Format::CloudFormation),
            "bicep" => Ok(Format::Bicep),
            _ => Err(PolicyError::Format(text.to_owned())),
        }
    }
}

/// Why nothing was printed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not the name of a format.
    #[error("`{0}` is no format: take json, terraform, cloudformation (AWS) or bicep (Azure)")]
    Format(String),
    /// The key's cloud does not know this format.
    #[error("{format} can't describe access to {key}: take {instead}")]
    NotHere {
        /// What was asked for.
        format: Format,
        /// The key.
        key: String,
        /// What works.
        instead: &'static str,
    },
    /// A local key has no policy.
    #[error("{0} is a local key: there is no policy to print; its file's owner is its administrator")]
    Local(String),
    /// A value that has no place in a policy.
    #[error("{option} `{value}` is not usable: {want}")]
    Value {
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is expected.
        want: &'static str,
    },
    /// The random generator failed.
    #[error("no random external id could be made: give one with --external-id")]
    Random,
}

/// What access is asked for.
#[derive(Debug, Clone)]
pub struct Access {
    /// The customer's key.
    pub key: KeyUri,
    /// Who uses it. AWS: the ARN of the vendor's node role (or a 12-digit account). Azure: the object id of the
    /// vendor's service principal in the customer's tenant.
    pub vendor: String,
    /// AWS: the name of the role to make in the customer's account.
    pub role_name: String,
    /// AWS: what the vendor sends to prove for which customer it acts; unique per customer, not secret.
    pub external_id: String,
    /// Binds the permission to the context `hyokfs:tenant`, where one is given.
    pub tenant: Option<String>,
    /// Binds the permission to one volume, where one is given.
    pub volume: Option<VolumeId>,
}

impl Access {
    /// Access to `key` for `vendor` with the usual role name and a new external id.
    pub fn new(key: KeyUri, vendor: impl Into<String>) -> Result<Self, PolicyError> {
        Ok(Access {
            key,
            vendor: vendor.into(),
            role_name: "hyokfs".to_owned(),
            external_id: new_external_id()?,
            tenant: None,
            volume: None,
        })
    }
}

/// A new external id: 128 random bits as 32 hexadecimal digits (STS takes 2 to 1224 characters).
pub fn new_external_id() -> Result<String, PolicyError> {
    let id = VolumeId::random().map_err(|_| PolicyError::Random)?;
    Ok(id.to_string())
}

/// Prints what the customer pastes.
///
/// # Errors
/// A format that the key's cloud does not have, a local key, or a value that has no place in a policy.
pub fn render(access: &Access, format: Format) -> Result<String, PolicyError> {
    let not_here = |instead| Err(PolicyError::NotHere { format, key: access.key.to_string(), instead });
    match &access.key {
        KeyUri::Local { .. } => Err(PolicyError::Local(access.key.to_string())),
        KeyUri::AwsKms { arn } => {
            let documents = aws::Documents::new(arn, access)?;
            match format {
                Format::Json => Ok(documents.json()),
                Format::Terraform => Ok(documents.terraform()),
                Format::CloudFormation => Ok(documents.cloudformation()),
                Format::Bicep => not_here("json, terraform or cloudformation"),
            }
        }
        KeyUri::AzureKeyVault { host, name, .. } => {
            let assignment = azure::Assignment::new(host, name, access)?;
            match format {
                Format::Bicep => assignment.bicep().map_or_else(|| not_here("json or terraform"), Ok),
                Format::Terraform => Ok(assignment.terraform()),
                Format::Json => Ok(assignment.json()),
                Format::CloudFormation => not_here("bicep, terraform or json"),
            }
        }
    }
}

/// A value of `allowed` characters and sensible length, or the reason why not.
fn check(
    option: &'static str,
    value: &str,
    lengths: std::ops::RangeInclusive<usize>,
    allowed: impl Fn(char) -> bool,
    want: &'static str,
) -> Result<(), PolicyError> {
    if lengths.contains(&value.len()) && value.chars().all(allowed) {
        return Ok(());
    }
    Err(PolicyError::Value { option, value: value.to_owned(), want })
}

#[cfg(test)]
mod tests;
