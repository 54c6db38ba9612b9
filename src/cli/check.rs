//! `hyokfs check`.

use std::path::{Path, PathBuf};

use super::args::CheckArgs;
use super::{CliError, runtime};
use crate::provider::check::{self, Report, Subject};
use crate::provider::{KeySettings, KeyUri};
use crate::store::Store;
use crate::supervisor::{pin, volume};

/// Tries every permission and says which is missing.
pub fn run(args: CheckArgs) -> Result<(), CliError> {
    let base = args.settings.settings()?;
    let path = PathBuf::from(&args.target);
    let (uri, settings, subject) = if path.join(crate::format::name::VOLUME_RECORD).exists() {
        of_store(&path, &base)?
    } else {
        let uri: KeyUri = args.target.parse().map_err(|error| {
            CliError::Refused(format!("{}: neither the store of a volume nor a key: {error}", args.target))
        })?;
        (uri, base, Subject::default())
    };
    let report = runtime()?.block_on(check::run(&uri, &settings, &subject))?;
    print(&report, args.json)?;
    if report.ok() {
        return Ok(());
    }
    Err(CliError::Refused("the key cannot be used as it is; what is missing stands above".into()))
}

fn of_store(path: &Path, base: &KeySettings) -> Result<(KeyUri, KeySettings, Subject), CliError> {
    let store = Store::open(path).map_err(volume::VolumeError::from)?;
    let record = volume::read_record(&store)?;
    let settings = volume::settings_for(&record, base, &pin::default_dir());
    let key = record.key.first().ok_or_else(|| CliError::Refused("hyokfs.toml names no key".into()))?;
    let uri = key.uri.parse().map_err(volume::VolumeError::from)?;
    Ok((uri, settings, Subject { volume: Some(record.volume) }))
}

fn print(report: &Report, json: bool) -> Result<(), CliError> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    println!("{}", report.key);
    for step in &report.steps {
        println!("  {} {}", if step.ok { "ok     " } else { "MISSING" }, step.step);
        if step.ok {
            continue;
        }
        let code = step.code.as_deref().unwrap_or("-");
        println!("          {} [{code}]", step.message);
        if let Some(missing) = &step.missing {
            println!("          missing: {missing}");
        }
        if let (Some(statement), Some(place)) = (&step.statement, &step.place) {
            println!("          add to {place}:");
            for line in serde_json::to_string_pretty(statement)?.lines() {
                println!("            {line}");
            }
        }
    }
    Ok(())
}
