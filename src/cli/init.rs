//! `hyokfs init`.

use super::args::{CipherArg, GranularityArg, InitArgs, NamesArg};
use super::{CliError, runtime};
use crate::crypto::suite::Suite;
use crate::format::name::NameMode;
use crate::format::volume::Granularity;
use crate::provider::{KeyUri, local};
use crate::supervisor::volume::{self, NewVolume};

/// Makes a volume and prints what to keep.
pub fn run(args: InitArgs) -> Result<(), CliError> {
    let settings = args.settings.settings()?;
    if let KeyUri::Local { path, name } = &args.key
        && local::ensure(path.as_deref(), name.as_deref(), &settings)?
    {
        let place = local::place(path.as_deref());
        eprintln!("made a keystore at {} (its secret beside it): without both the volume is lost", place.display());
    }
    let new = NewVolume {
        suite: match args.cipher {
            CipherArg::Auto => Suite::auto(),
            CipherArg::Aes256Gcm => Suite::Aes256Gcm,
            CipherArg::ChaCha20Poly1305 => Suite::ChaCha20Poly1305,
        },
        granularity: match args.granularity {
            GranularityArg::File => Granularity::File,
            GranularityArg::Directory => Granularity::Directory,
            GranularityArg::Volume => Granularity::Volume,
        },
        names: match args.names {
            NamesArg::Encrypted => NameMode::Encrypted,
            NamesArg::Plain => NameMode::Plain,
        },
        max_poll_interval: args.max_poll_interval,
        max_lease: args.max_lease,
    };
    let suite = new.suite;
    let made = runtime()?.block_on(volume::create(&args.store, &args.key, &settings, new))?;
    if args.json {
        let report = serde_json::json!({
            "volume": made.volume.to_string(), "fingerprint": made.fingerprint, "cipher": suite.to_string(),
            "key": args.key.to_string(),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("volume      {}", made.volume);
        println!("fingerprint {}   keep it: `mount --fingerprint` is then sure of the record", made.fingerprint);
        println!("cipher      {suite}");
        println!("key         {}", args.key);
    }
    Ok(())
}
