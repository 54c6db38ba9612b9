//! `hyokfs policy`.

use super::CliError;
use super::args::{PolicyArgs, PolicyFormat};
use crate::provider::policy::{self, Access, Format};

/// Prints what the customer pastes.
pub fn run(args: PolicyArgs) -> Result<(), CliError> {
    let format = match args.format {
        PolicyFormat::Json => Format::Json,
        PolicyFormat::Terraform => Format::Terraform,
        PolicyFormat::Cloudformation => Format::CloudFormation,
        PolicyFormat::Bicep => Format::Bicep,
    };
    let mut access = Access::new(args.key, args.vendor)?;
    access.role_name = args.role_name;
    access.tenant = args.tenant;
    access.volume = args.volume;
    if let Some(id) = args.external_id {
        access.external_id = id;
    }
    println!("{}", policy::render(&access, format)?.trim_end());
    Ok(())
}
