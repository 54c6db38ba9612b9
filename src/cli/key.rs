//! `hyokfs key`: the embedded keystore, playing the customer.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use super::CliError;
use super::args::{KeyCommand, KeyTarget};
use crate::provider::local::{DEFAULT_KEY, KeyRecord, Keystore, PASSPHRASE, Protect};
use crate::provider::{KeySettings, KeyUri};

/// Runs one of the commands.
pub fn run(command: KeyCommand) -> Result<(), CliError> {
    match command {
        KeyCommand::Create(target) => {
            let protect =
                if std::env::var_os(PASSPHRASE).is_some() { Protect::Passphrase } else { Protect::SecretFile };
            let (keystore, name) = open(target)?;
            say("made", &keystore, &keystore.create(&name, protect)?);
        }
        KeyCommand::Disable(target) => {
            let (keystore, name) = open(target)?;
            say("disabled", &keystore, &keystore.disable(&name)?);
        }
        KeyCommand::Enable(target) => {
            let (keystore, name) = open(target)?;
            say("enabled", &keystore, &keystore.enable(&name)?);
        }
        KeyCommand::Destroy { target, yes } => {
            let (keystore, name) = open(target)?;
            if !yes {
                confirm(&keystore, &name)?;
            }
            say("destroyed", &keystore, &keystore.destroy(&name)?);
        }
        KeyCommand::Show { target, json } => {
            let (keystore, _) = open(target)?;
            let keys = keystore.show()?;
            if json {
                println!("{}", serde_json::to_string_pretty(&keys)?);
            } else {
                println!("{}", keystore.path().display());
                for key in keys {
                    println!("  {:<16} {:<10} {}", key.name, state(&key), key.id);
                }
            }
        }
    }
    Ok(())
}

fn open(target: KeyTarget) -> Result<(Keystore, String), CliError> {
    let settings = KeySettings { local_secret_file: target.secret_file, ..KeySettings::default() };
    let (path, in_uri) = match target.keystore {
        None => (None, None),
        Some(text) if text == "local" || text.starts_with("local:") => {
            match text.parse::<KeyUri>().map_err(|error| CliError::Refused(error.to_string()))? {
                KeyUri::Local { path, name } => (path, name),
                other => return Err(CliError::Refused(format!("{other} is not an embedded keystore"))),
            }
        }
        Some(path) => (Some(PathBuf::from(path)), None),
    };
    let name = target.name.or(in_uri).unwrap_or_else(|| DEFAULT_KEY.to_owned());
    Ok((Keystore::at(path.as_deref(), &settings), name))
}

fn state(key: &KeyRecord) -> String {
    serde_json::to_value(key.state).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn say(what: &str, keystore: &Keystore, key: &KeyRecord) {
    println!("{what} key `{}` of {}", key.name, keystore.path().display());
}

fn confirm(keystore: &Keystore, name: &str) -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Refused("destroying a key is for ever: say so with --yes".into()));
    }
    print!("Every volume under key `{name}` of {} is lost for ever. Type the key's name: ", keystore.path().display());
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    if read.is_err() || answer.trim() != name {
        return Err(CliError::Refused("nothing was destroyed".into()));
    }
    Ok(())
}
