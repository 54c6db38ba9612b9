//! The secret that opens the keystore: a file of its own, or a passphrase.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use super::document::{Protection, damaged, decode, encode};
use super::error::KeystoreError;
use super::store::sync_folder;
use crate::crypto::envelope::EnvelopeKey;
use crate::crypto::secret::{Secret, SecretError};

/// The variable that holds the passphrase.
pub const PASSPHRASE: &str = "HYOKFS_PASSPHRASE";
/// Bound into the seal that tells a wrong secret.
const CHECK: &[u8] = b"hyokfs keystore v1 check";
/// Argon2id for new keystores: RFC 9106's choice for machines without 2 GiB to spare (64 MiB, 3 passes), on one lane.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 1;
/// What a file may ask for at most: it must not take the node's memory.
const MAX_MEMORY_KIB: u32 = 1 << 20;
const MAX_PASSES: u32 = 64;
const MAX_LANES: u32 = 16;
const MAX_SECRET_BYTES: u64 = 4096;

/// Where `PATH`'s secret is unless the settings say otherwise.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".secret");
    PathBuf::from(name)
}

/// The protection of a new keystore with a passphrase.
pub(super) fn with_passphrase() -> Result<Protection, KeystoreError> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| KeystoreError::NoRandom(SecretError::NoRandom))?;
    Ok(Protection::Argon2id { salt: encode(&salt), memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES })
}

/// The seal by which a wrong secret is told.
pub(super) fn check(secret: &EnvelopeKey) -> Result<Vec<u8>, KeystoreError> {
    secret.seal(CHECK, &[0; 32]).map_err(|error| KeystoreError::sealing(error, || damaged(Path::new(""), "a seal")))
}

/// Whether `secret` is the one that made `sealed`.
pub(super) fn fits(secret: &EnvelopeKey, sealed: &[u8], path: &Path) -> Result<(), KeystoreError> {
    // 32 zero bytes are no secret: an envelope takes them for a wiped one and opens nothing.
    if secret.is_wiped() {
        return Err(KeystoreError::WrongSecret(path.to_owned()));
    }
    match secret.open(CHECK, sealed) {
        Ok(_) => Ok(()),
        Err(error) => Err(KeystoreError::sealing(error, || KeystoreError::WrongSecret(path.to_owned()))),
    }
}

/// Reads the keystore's secret or derives it from the passphrase (about 0.1 s). `file`: the file that the settings name.
pub(super) fn secret(protection: &Protection, path: &Path, file: Option<&Path>) -> Result<Secret, KeystoreError> {
    match protection {
        Protection::SecretFile => read_secret(&file.map_or_else(|| beside(path), Path::to_owned)),
        Protection::Argon2id { salt, memory_kib, passes, lanes } => {
            if *memory_kib > MAX_MEMORY_KIB || *passes > MAX_PASSES || *lanes > MAX_LANES {
                return Err(damaged(path, "its passphrase settings ask for more than 1 GiB, 64 passes or 16 lanes"));
            }
            let salt = decode(salt, "the salt", path)?;
            let params = Params::new(*memory_kib, *passes, *lanes, Some(32))
                .map_err(|error| damaged(path, format!("its passphrase settings: {error}")))?;
            let passphrase = passphrase(path, file)?;
            Secret::try_from_fn(|bytes| {
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                    .hash_password_into(&passphrase, &salt, bytes)
                    .map_err(|error| damaged(path, format!("its passphrase settings: {error}")))
            })
        }
    }
}

fn passphrase(path: &Path, file: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, KeystoreError> {
    let mut bytes = match file {
        Some(file) => read_private(file)?,
        None => {
            use std::os::unix::ffi::OsStringExt;
            Zeroizing::new(std::env::var_os(PASSPHRASE).unwrap_or_default().into_vec())
        }
    };
    // Editors and `echo` end a file with a newline that nobody types at a prompt.
    while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        bytes.pop();
    }
    if bytes.is_empty() { Err(KeystoreError::NoPassphrase(path.to_owned())) } else { Ok(bytes) }
}

fn read_secret(file: &Path) -> Result<Secret, KeystoreError> {
    let text = read_private(file)?;
    let digits = text.trim_ascii();
    Secret::try_from_fn(|bytes| {
        let wrong = || damaged(file, "a keystore's secret is 64 hexadecimal digits");
        if digits.len() != 64 {
            return Err(wrong());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| (c as char).to_digit(16).ok_or_else(wrong);
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(())
    })
}

/// A small file that only its owner (and group) may read.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeystoreError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => KeystoreError::SecretMissing(path.to_owned()),
        _ => KeystoreError::Unreadable { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(KeystoreError::SecretExposed { path: path.to_owned(), mode });
    }
    // Room for all of it at once: a growing buffer would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES as usize));
    file.take(MAX_SECRET_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// Makes the secret file of a new keystore (mode 0600, durable), or takes the one that is there: an earlier attempt
/// may have ended between the two files, and an owner may bring a secret.
pub(super) fn make_secret(path: &Path, file: Option<&Path>) -> Result<Secret, KeystoreError> {
    let file = file.map_or_else(|| beside(path), Path::to_owned);
    let unwritable = |source| KeystoreError::Unwritable { path: file.clone(), source };
    let mut new = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file) {
        Ok(new) => new,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return read_secret(&file),
        Err(error) => return Err(unwritable(error)),
    };
    let secret = Secret::random()?;
    let mut text = Zeroizing::new([b'\n'; 65]);
    for (pair, byte) in text.chunks_exact_mut(2).zip(secret.expose()) {
        pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    let written = new.write_all(&text[..]).and_then(|()| new.sync_all()).and_then(|()| sync_folder(&file));
    if let Err(error) = written {
        // A half-written secret would be taken for the real one the next time.
        let _ = std::fs::remove_file(&file);
        return Err(unwritable(error));
    }
    Ok(secret)
}
