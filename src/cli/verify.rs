//! `hyokfs verify`.

use super::CliError;
use super::args::VerifyArgs;

/// Authenticates a volume.
pub fn run(_args: VerifyArgs) -> Result<(), CliError> {
    Err(CliError::Refused("not in this build".into()))
}
