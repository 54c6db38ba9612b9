//! What this node remembers of a volume: its fingerprint and the newest generation of its record.
//!
//! Whoever can write the store and knows the customer's public key could replace the volume record whole. The
//! fingerprint is derived from the volume secret, so a replaced record has another one.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::format::VolumeId;

/// Why the volume is not what this node knows.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Another volume secret than at the first mount.
    #[error(
        "the volume's fingerprint is {found}, but {expected} was expected ({}): the record was replaced, or the wrong \
         store is mounted; if the change is meant, remove that file (or give the new --fingerprint)", path.display()
    )]
    Other {
        /// What the store has.
        found: String,
        /// What was expected.
        expected: String,
        /// The file that remembers it.
        path: PathBuf,
    },
    /// An older record than this node has seen.
    #[error(
        "the volume record is of generation {found}, but generation {known} has been seen ({}): an old hyokfs.toml was \
         put back; restore the newest one", path.display()
    )]
    Older {
        /// What the store has.
        found: u64,
        /// What was seen.
        known: u64,
        /// The file that remembers it.
        path: PathBuf,
    },
    /// The state directory cannot be used.
    #[error("cannot remember the volume in {}: {source}; give --state-dir a directory that can be written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Pin {
    fingerprint: String,
    generation: u64,
}

/// `/var/lib/hyokfs` for root, else `$XDG_STATE_HOME/hyokfs`, else `~/.local/state/hyokfs`.
pub fn default_dir() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    match (state, std::env::var_os("HOME")) {
        (Some(state), _) => state.join("hyokfs"),
        (None, Some(home)) if !rustix::process::geteuid().is_root() => PathBuf::from(home).join(".local/state/hyokfs"),
        _ => PathBuf::from("/var/lib/hyokfs"),
    }
}

/// Whether this node has mounted the volume before: then "no such key" is an answer of the customer, not a mistake.
pub fn known(dir: &Path, volume: VolumeId) -> bool {
    file(dir, volume).exists()
}

fn file(dir: &Path, volume: VolumeId) -> PathBuf {
    dir.join("volumes").join(format!("{volume}.json"))
}

/// Compares what the store says with what this node knows, and remembers it at first use.
pub fn check(
    dir: &Path,
    volume: VolumeId,
    fingerprint: &str,
    generation: u64,
    given: Option<&str>,
) -> Result<(), PinError> {
    let path = file(dir, volume);
    let other = |expected: &str| PinError::Other {
        found: fingerprint.to_owned(),
        expected: expected.to_owned(),
        path: path.clone(),
    };
    if let Some(given) = given.filter(|given| *given != fingerprint) {
        return Err(other(given));
    }
    let io = |source| PinError::Io { path: path.clone(), source };
    match fs::read(&path) {
        Ok(bytes) => {
            let known: Pin = serde_json::from_slice(&bytes).map_err(|error| io(error.into()))?;
            if known.fingerprint != fingerprint && given.is_none() {
                return Err(other(&known.fingerprint));
            }
            if known.fingerprint == fingerprint && generation < known.generation {
                return Err(PinError::Older { found: generation, known: known.generation, path });
            }
            if known.fingerprint == fingerprint && generation == known.generation {
                return Ok(());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    write(&path, &Pin { fingerprint: fingerprint.to_owned(), generation }).map_err(io)
}

fn write(path: &Path, pin: &Pin) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(pin)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::{PinError, check, known};
    use crate::format::VolumeId;

    #[test]
    fn the_first_use_is_remembered_and_a_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volume = VolumeId([7; 16]);
        assert!(!known(dir.path(), volume));
        check(dir.path(), volume, "aaaa", 3, None).unwrap();
        assert!(known(dir.path(), volume));
        check(dir.path(), volume, "aaaa", 3, Some("aaaa")).unwrap();
        assert!(matches!(check(dir.path(), volume, "bbbb", 3, None), Err(PinError::Other { .. })));
        assert!(matches!(check(dir.path(), volume, "aaaa", 2, None), Err(PinError::Older { .. })));
        check(dir.path(), volume, "aaaa", 4, None).unwrap();
        assert!(matches!(check(dir.path(), volume, "aaaa", 3, None), Err(PinError::Older { .. })));
    }

    #[test]
    fn a_given_fingerprint_decides_and_replaces_what_was_known() {
        let dir = tempfile::tempdir().unwrap();
        let volume = VolumeId([8; 16]);
        assert!(matches!(check(dir.path(), volume, "aaaa", 1, Some("cccc")), Err(PinError::Other { .. })));
        assert!(!known(dir.path(), volume), "a refused volume is not remembered");
        check(dir.path(), volume, "aaaa", 1, None).unwrap();
        check(dir.path(), volume, "bbbb", 1, Some("bbbb")).unwrap();
        check(dir.path(), volume, "bbbb", 1, None).unwrap();
    }
}
