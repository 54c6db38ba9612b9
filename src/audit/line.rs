//! One line of the log:
//!
//! ```text
//! {"seq":7,"time":"…","event":"state","fields":{…},"prev":"<64 hex>","hash":"<64 hex>"}
//! ```
//!
//! `hash` is SHA-256 over [`LABEL`] and the bytes of the line before `,"hash":`. The bytes as written are what is
//! hashed, so no rule about canonical JSON is needed to check it.

use aws_lc_rs::digest;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Goes into every hash first, so that no hash of another use or format can pass for a line's.
pub(crate) const LABEL: &[u8] = b"hyokfs audit line 1\n";
/// `prev` of the first record of a log.
pub(crate) const GENESIS: [u8; 32] = [0; 32];
/// `,"hash":"` + 64 digits + `"}`.
const TAIL: usize = 9 + 64 + 2;

/// One record of the log, its hash checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// 1 for the first record of the log, then one more each; goes on across files.
    pub seq: u64,
    /// RFC 3339, UTC, milliseconds: when it happened (not when it was written).
    pub time: String,
    /// What happened.
    pub event: String,
    /// What the event tells.
    pub fields: Map<String, Value>,
    /// Hash of the record before.
    pub prev: [u8; 32],
    /// Hash of this one.
    pub hash: [u8; 32],
}

impl Record {
    /// The field `name` if it is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.fields.get(name)?.as_u64()
    }

    /// The field `name` if it is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.as_str()
    }
}

/// Why a line is no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Not of a record's form.
    Form,
    /// A record whose hash doesn't fit its bytes.
    Hash,
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|nibble| DIGITS[usize::from(nibble)] as char).collect()
}

/// Lowercase digits only: one hash has one spelling.
pub(crate) fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// Appends one line with its newline to `out` and gives its hash. `event` needs no escaping, `fields` is a JSON object.
pub(crate) fn encode(out: &mut String, seq: u64, time: &str, event: &str, fields: &str, prev: &[u8; 32]) -> [u8; 32] {
    let start = out.len();
    let prev = hex(prev);
    out.push_str(&format!(r#"{{"seq":{seq},"time":"{time}","event":"{event}","fields":{fields},"prev":"{prev}""#));
    let hash = sha256(&[LABEL, &out.as_bytes()[start..]]);
    out.push_str(&format!(",\"hash\":\"{}\"}}\n", hex(&hash)));
    hash
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    seq: u64,
    time: String,
    event: String,
    fields: Map<String, Value>,
    prev: String,
    hash: String,
}

/// Reads one line, without its newline, and checks its hash.
pub(crate) fn decode(line: &[u8]) -> Result<Record, Bad> {
    let split = line.len().checked_sub(TAIL).ok_or(Bad::Form)?;
    let (body, tail) = line.split_at(split);
    let raw: Raw = serde_json::from_slice(line).map_err(|_| Bad::Form)?;
    let digits = tail.strip_prefix(b",\"hash\":\"").and_then(|rest| rest.strip_suffix(b"\"}")).ok_or(Bad::Form)?;
    let hash = unhex(digits).ok_or(Bad::Form)?;
    let prev = unhex(raw.prev.as_bytes()).ok_or(Bad::Form)?;
    if raw.hash.as_bytes() != digits {
        return Err(Bad::Form);
    }
    if sha256(&[LABEL, body]) != hash {
        return Err(Bad::Hash);
    }
    Ok(Record { seq: raw.seq, time: raw.time, event: raw.event, fields: raw.fields, prev, hash })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_line_goes_both_ways_and_every_changed_byte_is_seen() {
        let mut out = String::new();
        let hash = encode(&mut out, 7, "2026-11-27T01:41:45.000Z", "state", r#"{"to":"locked","n":3}"#, &[9; 32]);
        let line = out.strip_suffix('\n').unwrap().as_bytes();
        let record = decode(line).unwrap();
        assert_eq!((record.seq, record.event.as_str(), record.prev, record.hash), (7, "state", [9; 32], hash));
        assert_eq!((record.text("to"), record.number("n")), (Some("locked"), Some(3)));
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.to_vec();
                changed[at] ^= 1 << bit;
                assert!(decode(&changed).is_err(), "byte {at} bit {bit}");
            }
        }
        for end in 0..line.len() {
            assert!(decode(&line[..end]).is_err());
        }
    }

    #[test]
    fn hexadecimal_has_one_spelling() {
        assert_eq!(hex(&[0, 0xab, 0xff]), "00abff");
        assert_eq!(unhex(b"00abff"), Some([0, 0xab, 0xff]));
        assert_eq!(unhex::<3>(b"00ABFF"), None);
        assert_eq!(unhex::<3>(b"00abf"), None);
        assert_eq!(unhex::<1>(b"+1"), None);
    }
}
