//! The Ed25519 key (RFC 8032) that signs checkpoints. The private key lies in a file of its own as PKCS #8 in PEM, the
//! public one beside it as SubjectPublicKeyInfo in PEM (RFC 8410), so `openssl` reads both.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::AuditError;
use super::line::{hex, unhex};

/// Goes before what is signed, so that a checkpoint's signature fits nothing else.
pub(crate) const LABEL: &[u8] = b"hyokfs audit checkpoint 1\n";
/// SubjectPublicKeyInfo of an Ed25519 key before its 32 bytes (RFC 8410 §4).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Far more than either key needs.
const LARGEST: u64 = 16 << 10;

/// What a checkpoint's signature covers: the label, the checkpoint's own number, the hash of the record before it (and
/// through the chain everything earlier).
pub(crate) fn message(seq: u64, prev: &[u8; 32]) -> Vec<u8> {
    [LABEL, &seq.to_be_bytes(), prev].concat()
}

/// The private key.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public())
    }
}

/// The public key. Shown, and read, as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, AuditError> {
    let file = File::open(path).map_err(AuditError::io(path, "open the key"))?;
    let mut text = Zeroizing::new(Vec::with_capacity(LARGEST as usize + 1));
    file.take(LARGEST + 1).read_to_end(&mut text).map_err(AuditError::io(path, "read the key"))?;
    if text.len() as u64 > LARGEST {
        return Err(AuditError::Key {
            path: path.to_owned(),
            what: "too large for a key; name the file that `hyokfs audit keygen` wrote",
        });
    }
    Ok(text)
}

/// The bytes between `-----BEGIN label-----` and `-----END label-----`.
fn pem(text: &[u8], label: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = std::str::from_utf8(text).ok()?;
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let digits = Zeroizing::new(body.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<u8>>());
    STANDARD.decode(&*digits).ok().map(Zeroizing::new)
}

impl SigningKey {
    /// Reads the private key that [`keygen`] (or `openssl genpkey -algorithm ed25519`) wrote.
    pub fn load(path: &Path) -> Result<SigningKey, AuditError> {
        let text = read(path)?;
        let bad = |what| AuditError::Key { path: path.to_owned(), what };
        let der = pem(&text, "PRIVATE KEY")
            .ok_or_else(|| bad("no PEM block PRIVATE KEY in it; make a key with `hyokfs audit keygen`"))?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
            .map_err(|_| bad("no Ed25519 private key; make one with `hyokfs audit keygen`"))?;
        Ok(SigningKey(pair))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }

    /// The signature of a checkpoint as 128 hexadecimal digits.
    pub(crate) fn sign(&self, seq: u64, prev: &[u8; 32]) -> Result<String, AuditError> {
        let signature = self.0.try_sign(&message(seq, prev)).map_err(|_| AuditError::Crypto("signing a checkpoint"))?;
        Ok(hex(signature.as_ref()))
    }
}

impl PublicKey {
    /// Reads a public key from its PEM file, or from a file with its 64 hexadecimal digits.
    pub fn load(path: &Path) -> Result<PublicKey, AuditError> {
        let text = read(path)?;
        PublicKey::parse(&text).ok_or(AuditError::Key {
            path: path.to_owned(),
            what: "no Ed25519 public key; name the `.pub` file that `hyokfs audit keygen` wrote",
        })
    }

    /// From the text of a PEM file, or from 64 hexadecimal digits.
    pub fn parse(text: &[u8]) -> Option<PublicKey> {
        if let Some(der) = pem(text, "PUBLIC KEY") {
            let bytes: [u8; 32] = der.strip_prefix(&SPKI)?.try_into().ok()?;
            return Some(PublicKey(bytes));
        }
        unhex(text.trim_ascii()).map(PublicKey)
    }

    /// Whether `signature` (128 hexadecimal digits) is this key's for the checkpoint number `seq` after `prev`.
    pub(crate) fn verifies(&self, seq: u64, prev: &[u8; 32], signature: &str) -> bool {
        let Some(signature) = unhex::<64>(signature.as_bytes()) else { return false };
        UnparsedPublicKey::new(&ED25519, self.0).verify(&message(seq, prev), &signature).is_ok()
    }
}

fn write_new(path: &Path, mode: u32, text: &[u8]) -> Result<(), AuditError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(AuditError::io(path, "create the key (an existing one is never overwritten)"))?;
    file.write_all(text).and_then(|()| file.sync_all()).map_err(AuditError::io(path, "write the key"))
}

/// Makes a new key: the private one at `path` (mode 0600), the public one at `path` with `.pub` added. Neither may
/// exist yet. Give the public key to whoever verifies the log.
pub fn keygen(path: &Path) -> Result<PublicKey, AuditError> {
    let pair =
        Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(|_| AuditError::Crypto("making a key"))?;
    let der = Zeroizing::new(pair.as_ref().to_vec());
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| AuditError::Crypto("making a key"))?;
    let public = SigningKey(key).public();
    let body = Zeroizing::new(STANDARD.encode(&*der));
    let text = Zeroizing::new(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", *body));
    write_new(path, 0o600, text.as_bytes())?;
    let spki = STANDARD.encode([&SPKI[..], &public.0].concat());
    let mut beside = path.as_os_str().to_owned();
    beside.push(".pub");
    let text = format!("-----BEGIN PUBLIC KEY-----\n{spki}\n-----END PUBLIC KEY-----\n");
    write_new(beside.as_ref(), 0o644, text.as_bytes())?;
    Ok(public)
}
