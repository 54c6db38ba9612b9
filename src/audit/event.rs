//! What can be written into the log. Texts are either fixed words of this program (`&'static str`) or short codes that
//! came from the key service, which are cut down to harmless characters: so no file name, path or message gets in.

use std::time::{Duration, SystemTime};

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::line::hex;
use super::time::rfc3339;

/// Longest code or request id that is kept, in bytes. AWS request ids have 36, Azure's the same.
const LONGEST: usize = 128;

/// A code or id of the key service, cut down to the characters that such things consist of.
fn tame(text: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || "._:/+=-".contains(c) { c } else { '?' };
    text.chars().take(LONGEST).map(keep).collect()
}

/// A value in the fields of an [`Event`] or [`StateChange`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A count, a size in bytes, a time span in milliseconds.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// The id of a volume, file or directory.
    Id([u8; 16]),
    /// A fixed word of this program.
    Word(&'static str),
    /// A code or request id of the key service; other characters than letters, digits and `._:/+=-` become `?`, and at
    /// most 128 are kept.
    Code(String),
    /// A moment.
    Time(SystemTime),
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Number(number) => serializer.serialize_u64(*number),
            Value::Flag(flag) => serializer.serialize_bool(*flag),
            Value::Id(id) => serializer.serialize_str(&hex(id)),
            Value::Word(word) => serializer.serialize_str(word),
            Value::Code(code) => serializer.serialize_str(&tame(code)),
            Value::Time(time) => serializer.serialize_str(&rfc3339(*time)),
        }
    }
}

/// An ordered list of fields that is written as one JSON object.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    pub(crate) fn put(&mut self, name: &'static str, value: Value) -> &mut Self {
        self.0.push((name, value));
        self
    }

    fn maybe(&mut self, name: &'static str, value: Option<Value>) -> &mut Self {
        if let Some(value) = value {
            self.put(name, value);
        }
        self
    }

    /// The JSON object. A name that was put twice keeps its first value, for a reader must not have to choose.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (at, (name, value)) in self.0.iter().enumerate() {
            if !self.0[..at].iter().any(|(earlier, _)| earlier == name) {
                map.serialize_entry(name, value)?;
            }
        }
        map.end()
    }
}

/// One call to a key service.
#[derive(Debug, Clone)]
pub struct KeyCall {
    /// `unwrap`, `wrap`, `generate`, `probe`, `describe`.
    pub operation: &'static str,
    /// The volume.
    pub volume: [u8; 16],
    /// The file; `None` for the volume's own secret and the canary.
    pub file: Option<[u8; 16]>,
    /// Why the call was made: `open`, `create`, `prefetch`, `pool`, `poll`, `confirm`, `unlock`, `rewrap`, `drill`.
    pub reason: &'static str,
    /// `live`, `denied`, `unreachable`, `misconfigured`.
    pub verdict: &'static str,
    /// The service's code where it was not `live`.
    pub code: Option<String>,
    /// The service's id of the request: the line to look for in CloudTrail or the vault's log.
    pub request_id: Option<String>,
    /// From the question to the answer.
    pub latency: Duration,
}

impl KeyCall {
    pub(crate) fn fields(&self) -> Fields {
        let mut fields = Fields::default();
        fields
            .put("operation", Value::Word(self.operation))
            .put("volume", Value::Id(self.volume))
            .maybe("file", self.file.map(Value::Id))
            .put("reason", Value::Word(self.reason))
            .put("verdict", Value::Word(self.verdict))
            .maybe("code", self.code.clone().map(Value::Code))
            .maybe("request_id", self.request_id.clone().map(Value::Code))
            .put("latency_ms", Value::Number(millis(self.latency)));
        fields
    }
}

/// A change of a mount's state.
#[derive(Debug, Clone, Default)]
pub struct StateChange {
    /// The volume.
    pub volume: [u8; 16],
    /// The state before: `unlocked`, `locking`, `locked`, `unlocking`, or `none` at the start.
    pub from: &'static str,
    /// The state after.
    pub to: &'static str,
    /// Why: `denied`, `lease over`, `operator`, `shutdown`, `drill`, `live`, `start`.
    pub cause: &'static str,
    /// What else there is to say.
    pub more: Vec<(&'static str, Value)>,
}

impl StateChange {
    pub(crate) fn fields(self) -> Fields {
        let mut fields = Fields::default();
        fields
            .put("volume", Value::Id(self.volume))
            .put("from", Value::Word(self.from))
            .put("to", Value::Word(self.to))
            .put("cause", Value::Word(self.cause));
        self.more.into_iter().for_each(|(name, value)| {
            fields.put(name, value);
        });
        fields
    }
}

/// The first denied answer of a revocation.
#[derive(Debug, Clone)]
pub struct Denial {
    /// When the answer was received.
    pub time: SystemTime,
    /// The service's code.
    pub code: String,
    /// The service's id of the request.
    pub request_id: Option<String>,
}

/// The proof of a lock: written once it is complete. The times are milliseconds since the first denial was received,
/// or since the lock began where nothing was denied; `None` where a step was not reached.
#[derive(Debug, Clone, Default)]
pub struct LockRecord {
    /// The volume.
    pub volume: [u8; 16],
    /// `denied`, `lease over`, `operator`, `shutdown`, `drill`.
    pub cause: &'static str,
    /// The denial that led to it.
    pub denial: Option<Denial>,
    /// New opens and reads were refused from here on.
    pub gate_ms: Option<u64>,
    /// Dirty data had reached the store, or the deadline for it was over.
    pub flushed_ms: Option<u64>,
    /// Nothing of the volume was left in the kernel's caches.
    pub purged_ms: Option<u64>,
    /// The keys in memory were overwritten.
    pub wiped_ms: Option<u64>,
    /// The mount was gone, or (`hold`) every request answered "locked".
    pub unmounted_ms: Option<u64>,
    /// File, group and volume keys that were overwritten.
    pub keys_wiped: u64,
    /// Files that were open.
    pub files: u64,
    /// Inodes that had data which was not in the store yet.
    pub dirty_inodes: u64,
    /// Bytes that were brought to the store by this lock.
    pub bytes_flushed: u64,
    /// Bytes that could not be brought to the store within the deadline and are lost. No completed `fsync` covers them.
    pub bytes_given_up: u64,
    /// Cached plaintext pages that were still there after the purge; 0 is the promise.
    pub pages_left: u64,
}

impl LockRecord {
    pub(crate) fn fields(self) -> Fields {
        let mut fields = Fields::default();
        fields.put("volume", Value::Id(self.volume)).put("cause", Value::Word(self.cause));
        if let Some(denial) = self.denial {
            fields
                .put("denied_at", Value::Time(denial.time))
                .put("code", Value::Code(denial.code))
                .maybe("request_id", denial.request_id.map(Value::Code));
        }
        fields
            .maybe("gate_ms", self.gate_ms.map(Value::Number))
            .maybe("flushed_ms", self.flushed_ms.map(Value::Number))
            .maybe("purged_ms", self.purged_ms.map(Value::Number))
            .maybe("wiped_ms", self.wiped_ms.map(Value::Number))
            .maybe("unmounted_ms", self.unmounted_ms.map(Value::Number))
            .put("keys_wiped", Value::Number(self.keys_wiped))
            .put("files", Value::Number(self.files))
            .put("dirty_inodes", Value::Number(self.dirty_inodes))
            .put("bytes_flushed", Value::Number(self.bytes_flushed))
            .put("bytes_given_up", Value::Number(self.bytes_given_up))
            .put("pages_left", Value::Number(self.pages_left));
        fields
    }
}

/// Anything else worth a record, for example damaged ciphertext that was met (`damaged`, with file and page).
#[derive(Debug, Clone)]
pub struct Event {
    /// What happened: a fixed word of small letters, digits and `_`, up to 32; not one that the log itself writes
    /// (`head`, `open`, `close`, `torn`, `gap`, `checkpoint`, `key_call`, `state`, `lock`). Another word is written as
    /// `other`, with the field `event`.
    pub name: &'static str,
    /// What it tells.
    pub fields: Vec<(&'static str, Value)>,
}

impl Event {
    /// The event word and the fields to write.
    pub(crate) fn split(self) -> (&'static str, Fields) {
        const OWN: [&str; 9] = ["head", "open", "close", "torn", "gap", "checkpoint", "key_call", "state", "lock"];
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let fits = (1..=32).contains(&self.name.len()) && self.name.bytes().all(plain) && !OWN.contains(&self.name);
        let mut fields = Fields::default();
        if !fits {
            fields.put("event", Value::Code(self.name.to_owned()));
        }
        for (name, value) in self.fields {
            // These two mean something to the verifier.
            if !name.starts_with("torn_") {
                fields.put(name, value);
            }
        }
        (if fits { self.name } else { "other" }, fields)
    }
}

/// Whole milliseconds, rounded down.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_tamed() {
        let call = KeyCall {
            operation: "unwrap",
            volume: [1; 16],
            file: Some([2; 16]),
            reason: "open",
            verdict: "denied",
            code: Some("Access \"Denied\"\n{x}".to_owned() + &"y".repeat(500)),
            request_id: Some("0a1b-2c".to_owned()),
            latency: Duration::from_micros(12_900),
        };
        let json = call.fields().json();
        assert!(json.contains(r#""code":"Access??Denied???x?yyy"#), "{json}");
        assert!(json.contains(r#""file":"02020202020202020202020202020202""#) && json.contains(r#""latency_ms":12}"#));
        assert!(json.len() < 500);
    }

    #[test]
    fn an_event_cannot_pass_for_one_of_the_log_itself() {
        let (name, fields) = Event { name: "checkpoint", fields: vec![("torn_bytes", Value::Number(1))] }.split();
        assert_eq!((name, fields.json().as_str()), ("other", r#"{"event":"checkpoint"}"#));
        let (name, _) = Event { name: "a\"b", fields: vec![] }.split();
        assert_eq!(name, "other");
        let (name, fields) =
            Event { name: "damaged", fields: vec![("page", Value::Number(3)), ("page", Value::Number(4))] }.split();
        assert_eq!((name, fields.json().as_str()), ("damaged", r#"{"page":3}"#));
    }
}
