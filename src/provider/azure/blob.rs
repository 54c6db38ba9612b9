//! The bytes that stand for one wrapped key in a header or in the volume record.
//!
//! ```text
//! version 1 | algorithm 1 | host length 1 | host | name length 1 | name | version length 1 | key version
//!           | ciphertext length 2 (big endian) | ciphertext | nonce 12 | sealed key 32 | tag 16
//! ```
//! Host, name and key version are the `kid` that the service answered with (without `https://` and `/keys/`; a
//! version of 32 lowercase hexadecimal digits is packed into 16 bytes, any other stands as text with the top bit of
//! its length set), so that a blob is always unwrapped with exactly the version that wrapped it.
//!
//! Neither RSA-OAEP as Key Vault offers it nor AES-KW authenticates anything beside the key. So the customer's key
//! wraps a fresh 32-byte key that is used once, and that one seals the real key with AES-256-GCM. The additional
//! authenticated data is everything in front of the nonce and the context (volume, file, tenant): a blob that is moved
//! to another file, volume or tenant, or whose key version was edited, does not open.
//! The envelope does *not* prove who made the blob: anybody can wrap for a public key. That proof is the header's MAC
//! under the volume secret.
//!
//! Length: 83 bytes + host + name + ciphertext (256, 384 or 512 for RSA of 2048, 3072 or 4096 bits, 40 for AES-KW).
//! A key slot holds at most [`MAX_LEN`] bytes, so with RSA-4096 host and name may have 105 bytes together; with every
//! other key the longest names that Azure allows fit.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};

use crate::crypto::{ArenaFull, Secret};
use crate::provider::Context;

/// The most that a key slot of a file header holds.
pub const MAX_LEN: usize = 700;

const VERSION: u8 = 1;
const TAG_LEN: usize = 16;
const KEY_LEN: usize = 32;
const ENVELOPE_LEN: usize = NONCE_LEN + KEY_LEN + TAG_LEN;
const TEXT_VERSION: u8 = 0x80;
const LABEL: &[u8] = b"hyokfs azure wrapped key v1";

/// How the customer's key wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA-OAEP with SHA-256 and MGF1-SHA-256 (RFC 8017 §7.1, JWA `RSA-OAEP-256`).
    RsaOaep256,
    /// AES key wrap with a 256-bit key (RFC 3394, JWA `A256KW`).
    A256Kw,
}

impl Algorithm {
    fn code(self) -> u8 {
        match self {
            Algorithm::RsaOaep256 => 1,
            Algorithm::A256Kw => 2,
        }
    }

    /// Whether a ciphertext of 32 bytes can have this length.
    fn fits(self, ciphertext: usize) -> bool {
        match self {
            Algorithm::RsaOaep256 => (256..=512).contains(&ciphertext),
            Algorithm::A256Kw => ciphertext == KEY_LEN + 8,
        }
    }
}

/// Which version of which key, as the service names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyId {
    /// The vault's host name, lowercase, without port.
    pub host: String,
    /// The key's name.
    pub name: String,
    /// The key's version.
    pub version: String,
}

impl KeyId {
    /// Reads `https://HOST/keys/NAME/VERSION`; `None` if the text is not that.
    pub fn from_kid(kid: &str) -> Option<Self> {
        let rest = kid.strip_prefix("https://")?;
        let mut parts = rest.split('/');
        let (host, keys, name, version) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let host = host.split(':').next()?.to_ascii_lowercase();
        let fine = parts.next().is_none()
            && keys.eq_ignore_ascii_case("keys")
            && is_word(&host, b"-.", 128)
            && is_word(name, b"-", 127)
            && is_word(version, b"", 64);
        fine.then(|| KeyId { host, name: name.to_owned(), version: version.to_owned() })
    }

    /// The `kid` again.
    pub fn kid(&self) -> String {
        format!("https://{}/keys/{}/{}", self.host, self.name, self.version)
    }

    fn encode_into(&self, out: &mut Vec<u8>) -> Option<()> {
        for part in [&self.host, &self.name] {
            out.push(u8::try_from(part.len()).ok()?);
            out.extend_from_slice(part.as_bytes());
        }
        if let Some(packed) = pack_hex(&self.version) {
            out.push(packed.len() as u8);
            out.extend_from_slice(&packed);
        } else {
            let len = u8::try_from(self.version.len()).ok().filter(|len| *len < TEXT_VERSION)?;
            out.push(len | TEXT_VERSION);
            out.extend_from_slice(self.version.as_bytes());
        }
        Some(())
    }
}

/// Whether `text` has 1 to `max` letters, digits and `also`: then it can stand in a URL's path as it is.
pub fn is_word(text: &str, also: &[u8], max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || also.contains(&b))
}

fn pack_hex(text: &str) -> Option<[u8; 16]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut out = [0; 16];
    if text.len() != 32 {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// Why bytes are no blob, or don't open.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The bytes are no blob of this format.
    #[error("the wrapped key is damaged ({0})")]
    Damaged(&'static str),
    /// A newer hyokfs wrote it.
    #[error("the wrapped key has format {0}, which this hyokfs does not know")]
    Newer(u8),
    /// The sealed key was made for another volume, file or tenant, or was changed.
    #[error("the wrapped key belongs to another volume, file or tenant, or was changed")]
    OtherContext,
    /// The key's name is too long for the room a header has.
    #[error(
        "the wrapped key would take {0} bytes and a header has room for {MAX_LEN}: with RSA-4096 the vault's host and the key's name may have 105 characters together; take a shorter name or an RSA-3072 key"
    )]
    TooLong(usize),
    /// The random generator or the cipher failed.
    #[error("the process's cryptography failed: restart hyokfs, and report it if it stays")]
    Crypto,
    /// No locked memory is left.
    #[error(transparent)]
    Arena(#[from] ArenaFull),
}

/// A blob taken apart; it borrows the bytes it came from.
#[derive(Debug)]
pub struct Blob<'a> {
    /// How the customer's key wrapped.
    pub algorithm: Algorithm,
    /// The version that wrapped.
    pub key: KeyId,
    /// What the key service unwraps.
    pub ciphertext: &'a [u8],
    prefix: &'a [u8],
    envelope: &'a [u8],
}

/// Seals `secret` under the one-time key whose wrapped form is `ciphertext`.
pub fn seal(
    algorithm: Algorithm,
    key: &KeyId,
    ciphertext: &[u8],
    once: &Secret,
    context: &Context<'_>,
    secret: &Secret,
) -> Result<Vec<u8>, BlobError> {
    if !algorithm.fits(ciphertext.len()) {
        return Err(BlobError::Damaged("the key service's answer has an impossible length"));
    }
    let mut blob = Vec::with_capacity(MAX_LEN);
    blob.extend_from_slice(&[VERSION, algorithm.code()]);
    key.encode_into(&mut blob).ok_or(BlobError::Damaged("the key's name or version is too long"))?;
    blob.extend_from_slice(&(ciphertext.len() as u16).to_be_bytes());
    blob.extend_from_slice(ciphertext);
    let length = blob.len() + ENVELOPE_LEN;
    if length > MAX_LEN {
        return Err(BlobError::TooLong(length));
    }
    let cipher = RandomizedNonceKey::new(&AES_256_GCM, once.expose()).map_err(|_| BlobError::Crypto)?;
    let aad = additional_data(&blob, context);
    blob.resize(length, 0);
    let start = length - ENVELOPE_LEN;
    let (nonce_place, rest) = blob[start..].split_at_mut(NONCE_LEN);
    let (sealed, tag_place) = rest.split_at_mut(KEY_LEN);
    sealed.copy_from_slice(secret.expose());
    let (nonce, tag) = cipher.seal_in_place_separate_tag(Aad::from(&aad), sealed).map_err(|_| BlobError::Crypto)?;
    nonce_place.copy_from_slice(nonce.as_ref());
    tag_place.copy_from_slice(tag.as_ref());
    Ok(blob)
}

impl<'a> Blob<'a> {
    /// Takes a blob apart. Any bytes may be given.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BlobError> {
        let short = BlobError::Damaged("too short");
        if bytes.len() > MAX_LEN {
            return Err(BlobError::Damaged("too long"));
        }
        let [version, algorithm, rest @ ..] = bytes else { return Err(short) };
        if *version != VERSION {
            return Err(if *version == 0 { BlobError::Damaged("empty") } else { BlobError::Newer(*version) });
        }
        let algorithm = match algorithm {
            1 => Algorithm::RsaOaep256,
            2 => Algorithm::A256Kw,
            _ => return Err(BlobError::Damaged("unknown algorithm")),
        };
        let mut rest = rest;
        let host = text(take_counted(&mut rest)?)?;
        let name = text(take_counted(&mut rest)?)?;
        let Some((len, tail)) = rest.split_first() else { return Err(short) };
        rest = tail;
        let version = take(&mut rest, usize::from(len & !TEXT_VERSION))?;
        let version = if len & TEXT_VERSION != 0 {
            text(version)?.to_owned()
        } else if version.len() == 16 {
            version.iter().map(|byte| format!("{byte:02x}")).collect()
        } else {
            return Err(BlobError::Damaged("key version"));
        };
        let size = take(&mut rest, 2)?;
        let ciphertext = take(&mut rest, usize::from(u16::from_be_bytes([size[0], size[1]])))?;
        if !algorithm.fits(ciphertext.len()) || rest.len() != ENVELOPE_LEN {
            return Err(BlobError::Damaged("wrong length"));
        }
        let key = KeyId::from_kid(&format!("https://{host}/keys/{name}/{version}"))
            .filter(|key| key.host == host)
            .ok_or(BlobError::Damaged("key name"))?;
        let prefix = &bytes[..bytes.len() - ENVELOPE_LEN];
        Ok(Blob { algorithm, key, ciphertext, prefix, envelope: rest })
    }

    /// Opens the sealed key with the one-time key that the service unwrapped from [`Blob::ciphertext`].
    pub fn open(&self, once: &Secret, context: &Context<'_>) -> Result<Secret, BlobError> {
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, once.expose()).map_err(|_| BlobError::Crypto)?;
        let aad = additional_data(self.prefix, context);
        let (nonce, sealed) = self.envelope.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| BlobError::Damaged("nonce"))?;
        let mut plain = zeroize::Zeroizing::new([0; KEY_LEN + TAG_LEN]);
        plain.copy_from_slice(sealed);
        let opened =
            cipher.open_in_place(nonce, Aad::from(&aad), plain.as_mut_slice()).map_err(|_| BlobError::OtherContext)?;
        Ok(Secret::from_fn(|place| place.copy_from_slice(opened))?)
    }
}

/// Every field with its length in front of it, so that no two contexts give the same bytes.
fn additional_data(prefix: &[u8], context: &Context<'_>) -> Vec<u8> {
    let tenant = context.tenant.unwrap_or_default().as_bytes();
    let file = context.file.as_ref().map_or(&[][..], |file| file.as_bytes().as_slice());
    let mut out = Vec::with_capacity(prefix.len() + LABEL.len() + 48 + tenant.len());
    for part in [LABEL, context.volume.as_bytes(), file, tenant, prefix] {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], BlobError> {
    let (head, tail) = rest.split_at_checked(len).ok_or(BlobError::Damaged("too short"))?;
    *rest = tail;
    Ok(head)
}

fn take_counted<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], BlobError> {
    let (len, tail) = rest.split_first().ok_or(BlobError::Damaged("too short"))?;
    *rest = tail;
    take(rest, usize::from(*len))
}

fn text(bytes: &[u8]) -> Result<&str, BlobError> {
    std::str::from_utf8(bytes).map_err(|_| BlobError::Damaged("key name"))
}

#[cfg(test)]
mod tests;
