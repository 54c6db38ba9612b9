//! The volume record `hyokfs.toml`: what a volume is and which keys open it.
//!
//! It is TOML so that people can read it, and it is authenticated under the volume secret: `mac` is HMAC-SHA256 of
//! [`VolumeRecord::canonical`], one `name=value` line per field in a fixed order, not of the TOML text.

use std::fmt::Write;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::VolumeId;
use super::header::{FORMAT_VERSION, valid_length};
use super::name::NameMode;
use crate::crypto::Secret;
use crate::crypto::kdf::{DeriveError, VolumeKeys};
use crate::crypto::suite::Suite;

/// The longest lease that a record may allow.
pub const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);

/// Why a volume record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not the TOML that it should be.
    #[error("hyokfs.toml cannot be read: {0}; restore it from hyokfs.toml.bak or a backup")]
    Syntax(String),
    /// Made by a newer program.
    #[error("the volume's format is {0}, this program reads format 1: use a newer hyokfs")]
    Version(u16),
    /// The tag does not fit.
    #[error(
        "hyokfs.toml does not authenticate: it was altered, or is another volume's; restore it from hyokfs.toml.bak or a backup"
    )]
    Forged,
    /// Keys could not be derived.
    #[error(transparent)]
    Derive(#[from] DeriveError),
}

/// What one wrapped key covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// Each file.
    File,
    /// The files that were made in one directory.
    Directory,
    /// The volume.
    Volume,
}

/// One customer key that opens the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordKey {
    /// The number that file headers name it by.
    pub slot: u8,
    /// Its name, as on the command line.
    pub uri: String,
    /// The volume secret, wrapped.
    #[serde(with = "base64_bytes")]
    pub secret: Vec<u8>,
    /// A random key, wrapped, that the poller unwraps.
    #[serde(with = "base64_bytes")]
    pub canary: Vec<u8>,
    /// The volume's group key, wrapped, where one key covers the volume.
    #[serde(default, with = "base64_option", skip_serializing_if = "Option::is_none")]
    pub group: Option<Vec<u8>>,
}

/// The record, as it stands in `hyokfs.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VolumeRecord {
    /// Format version, 1.
    pub format: u16,
    /// Counts the versions of this record; an older one is refused by nodes that have seen a newer.
    pub generation: u64,
    /// The volume's id.
    #[serde(with = "text")]
    pub volume: VolumeId,
    /// The cipher of the pages.
    #[serde(with = "text")]
    pub suite: Suite,
    /// What one wrapped key covers.
    pub granularity: Granularity,
    /// How names stand in the store.
    pub names: NameMode,
    /// Length of every file header, in bytes.
    pub header_len: u16,
    /// The longest poll interval that a mount may choose, in milliseconds.
    pub max_poll_interval_ms: u64,
    /// The longest lease that a mount may choose, in milliseconds.
    pub max_lease_ms: u64,
    /// The vendor's name for the customer, part of every key call's context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The customer keys.
    pub key: Vec<RecordKey>,
    /// HMAC-SHA256 over the canonical form, base64.
    #[serde(with = "base64_bytes")]
    pub mac: Vec<u8>,
}

impl VolumeRecord {
    /// Reads the text without believing it: enough to unwrap the volume secret with.
    pub fn parse(text: &str) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            format: u16,
        }
        let syntax = |error: toml::de::Error| RecordError::Syntax(error.message().to_owned());
        let Version { format } = toml::from_str(text).map_err(syntax)?;
        if format != FORMAT_VERSION {
            return Err(RecordError::Version(format));
        }
        let record: VolumeRecord = toml::from_str(text).map_err(syntax)?;
        let twice = |(i, key): (usize, &RecordKey)| record.key[..i].iter().any(|other| other.slot == key.slot);
        if record.key.iter().enumerate().any(twice) || record.key.iter().any(|key| key.secret.is_empty()) {
            return Err(RecordError::Syntax("a [[key]] without a secret, or two with one slot number".into()));
        }
        if record.key.is_empty() || !valid_length(usize::from(record.header_len)) {
            return Err(RecordError::Syntax("no [[key]], or no such header length".into()));
        }
        Ok(record)
    }

    /// The text of `hyokfs.toml`.
    pub fn to_toml(&self) -> Result<String, RecordError> {
        let body = toml::to_string(self).map_err(|error| RecordError::Syntax(error.to_string()))?;
        Ok(format!(
            "# The record of a hyokfs volume. Without it the volume cannot be opened: keep a copy (hyokfs.toml.bak is one).\n{body}"
        ))
    }

    /// What the tag covers: every field but `mac`, one line each. Line breaks in a text are a record that never
    /// authenticates, since the writer refuses them.
    pub fn canonical(&self) -> Result<String, RecordError> {
        let mut out = String::from("hyokfs volume record\n");
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            let value = value.to_string();
            if value.contains('\n') {
                return Err(RecordError::Syntax(format!("{name} has a line break")));
            }
            writeln!(out, "{name}={value}").map_err(|error| RecordError::Syntax(error.to_string()))
        };
        line("format", &self.format)?;
        line("generation", &self.generation)?;
        line("volume", &self.volume)?;
        line("suite", &self.suite)?;
        line(
            "granularity",
            &match self.granularity {
                Granularity::File => "file",
                Granularity::Directory => "directory",
                Granularity::Volume => "volume",
            },
        )?;
        line(
            "names",
            &match self.names {
                NameMode::Encrypted => "encrypted",
                NameMode::Plain => "plain",
            },
        )?;
        line("header-len", &self.header_len)?;
        line("max-poll-interval-ms", &self.max_poll_interval_ms)?;
        line("max-lease-ms", &self.max_lease_ms)?;
        line("tenant", &self.tenant.as_ref().map_or_else(|| "-".to_owned(), |tenant| format!("+{tenant}")))?;
        line("keys", &self.key.len())?;
        for key in &self.key {
            line("slot", &key.slot)?;
            line("uri", &key.uri)?;
            line("secret", &STANDARD.encode(&key.secret))?;
            line("canary", &STANDARD.encode(&key.canary))?;
            line("group", &key.group.as_ref().map_or_else(|| "-".to_owned(), |group| STANDARD.encode(group)))?;
        }
        Ok(out)
    }

    /// Sets the tag.
    pub fn sign(&mut self, keys: &VolumeKeys) -> Result<(), RecordError> {
        self.mac = keys.record.tag(&[self.canonical()?.as_bytes()]).to_vec();
        Ok(())
    }

    /// Believes the record, given the volume secret that one of its keys unwrapped.
    pub fn authenticate(self, secret: &Secret) -> Result<Volume, RecordError> {
        let keys = VolumeKeys::derive(secret, self.volume.as_bytes())?;
        if !keys.record.verify(&[self.canonical()?.as_bytes()], &self.mac) {
            return Err(RecordError::Forged);
        }
        Ok(Volume { record: self, keys })
    }

    /// The longest poll interval that a mount may choose.
    pub fn max_poll_interval(&self) -> Duration {
        Duration::from_millis(self.max_poll_interval_ms)
    }

    /// The longest lease that a mount may choose.
    pub fn max_lease(&self) -> Duration {
        Duration::from_millis(self.max_lease_ms).min(LONGEST_LEASE)
    }
}

/// A volume whose record is authentic, with its keys.
pub struct Volume {
    /// The record.
    pub record: VolumeRecord,
    /// The keys.
    pub keys: VolumeKeys,
}

mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(de::Error::custom)
    }
}

mod base64_option {
    use serde::{Deserializer, Serializer};

    use super::base64_bytes;

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        base64_bytes::serialize(bytes.as_deref().unwrap_or_default(), serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        base64_bytes::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::{Granularity, RecordError, RecordKey, VolumeRecord};
    use crate::crypto::Secret;
    use crate::crypto::kdf::VolumeKeys;
    use crate::crypto::suite::Suite;
    use crate::format::VolumeId;
    use crate::format::name::NameMode;

    fn secret(byte: u8) -> Secret {
        Secret::from_fn(|bytes| bytes.fill(byte)).unwrap()
    }

    fn record() -> VolumeRecord {
        let mut record = VolumeRecord {
            format: 1,
            generation: 1,
            volume: VolumeId([1; 16]),
            suite: Suite::Aes256Gcm,
            granularity: Granularity::File,
            names: NameMode::Encrypted,
            header_len: 1024,
            max_poll_interval_ms: 60_000,
            max_lease_ms: 3_600_000,
            tenant: Some("acme".into()),
            key: vec![RecordKey { slot: 0, uri: "local:/k".into(), secret: vec![1, 2], canary: vec![3], group: None }],
            mac: Vec::new(),
        };
        record.sign(&VolumeKeys::derive(&secret(1), &[1; 16]).unwrap()).unwrap();
        record
    }

    #[test]
    fn a_record_comes_back_through_its_text() {
        let text = record().to_toml().unwrap();
        let back = VolumeRecord::parse(&text).unwrap();
        assert_eq!(back, record());
        back.authenticate(&secret(1)).unwrap();
    }

    #[test]
    fn every_changed_field_and_every_other_secret_is_refused() {
        let changes: [fn(&mut VolumeRecord); 13] = [
            |r| r.generation = 2,
            |r| r.volume = VolumeId([2; 16]),
            |r| r.suite = Suite::ChaCha20Poly1305,
            |r| r.granularity = Granularity::Volume,
            |r| r.granularity = Granularity::Directory,
            |r| r.names = NameMode::Plain,
            |r| r.header_len = 2048,
            |r| r.max_poll_interval_ms += 1,
            |r| r.max_lease_ms += 1,
            |r| r.tenant = None,
            |r| r.key[0].uri.push('x'),
            |r| r.key[0].canary.push(0),
            |r| r.key[0].group = Some(vec![1]),
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut altered = record();
            change(&mut altered);
            assert!(matches!(altered.authenticate(&secret(1)), Err(RecordError::Forged)), "change {i}");
        }
        assert!(matches!(record().authenticate(&secret(2)), Err(RecordError::Forged)));
    }

    #[test]
    fn slot_numbers_and_secrets_must_make_sense() {
        let mut twice = record();
        twice.key.push(twice.key[0].clone());
        let mut bare = record();
        bare.key[0].secret.clear();
        for wrong in [twice, bare] {
            let text = wrong.to_toml().unwrap();
            assert!(matches!(VolumeRecord::parse(&text), Err(RecordError::Syntax(_))), "{text}");
        }
    }

    /// Computed with Python from `docs/format.md`.
    #[test]
    fn the_canonical_form_is_frozen() {
        assert_eq!(
            record().canonical().unwrap(),
            "hyokfs volume record\nformat=1\ngeneration=1\nvolume=01010101010101010101010101010101\n\
             suite=aes-256-gcm\ngranularity=file\nnames=encrypted\nheader-len=1024\nmax-poll-interval-ms=60000\n\
             max-lease-ms=3600000\ntenant=+acme\nkeys=1\nslot=0\nuri=local:/k\nsecret=AQI=\ncanary=Aw==\ngroup=-\n"
        );
        let tag: String = record().mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(tag, "f560d51f0b70d3988950f667e527bf5deabad6fc904ff0a6c694c9ce554316cc");
    }

    #[test]
    fn what_is_no_record_says_what_to_do() {
        let newer = record().to_toml().unwrap().replace("format = 1", "format = 2");
        assert!(matches!(VolumeRecord::parse(&newer), Err(RecordError::Version(2))));
        for text in ["", "format = 1", "format = 1\nunknown = 2", "\0"] {
            let message = VolumeRecord::parse(text).unwrap_err().to_string();
            assert!(message.contains("backup"), "{message}");
        }
    }
}
