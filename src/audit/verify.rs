//! Checks a log without the process that wrote it.
//!
//! What the chain shows by itself: any change, insertion, exchange or removal of records, except at the two ends. At the
//! old end, files go by rotation, and every file's head says how far that went. At the new end, records can be cut off
//! without a trace in the file: that shows only against something kept elsewhere ([`Expect`]), or, as far as state
//! changes go, against the signatures.

use std::fmt;
use std::path::{Path, PathBuf};

use super::files::read_whole;
use super::line::{self, Bad, GENESIS, Record, hex};
use super::{AuditError, PublicKey};

/// More are counted, not kept.
const MOST_PROBLEMS: usize = 100;

/// What is known about the log from elsewhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expect {
    /// The log must reach at least this record.
    pub seq: Option<u64>,
    /// A record with this hash must be in it.
    pub hash: Option<[u8; 32]>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Its line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.display(), self.what),
            line => write!(f, "{}:{line}: {}", self.file.display(), self.what),
        }
    }
}

/// What [`verify`] found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Records with a right hash.
    pub records: u64,
    /// Number of the first record; more than 1 where old files were removed by rotation.
    pub first_seq: u64,
    /// Number of the last record.
    pub last_seq: u64,
    /// Hash of the last record: keep it elsewhere and give it as [`Expect::hash`] next time.
    pub last_hash: [u8; 32],
    /// Time of the last record.
    pub last_time: String,
    /// Number of the last checkpoint whose signature is right under the given key.
    pub signed_through: Option<u64>,
    /// The public keys that the log itself names, in order. Without a key given from elsewhere they prove nothing.
    pub claimed_keys: Vec<String>,
    /// Half-written ends that were left by a crash and recorded at the next start.
    pub torn: u64,
    /// Records that were dropped because the disk took nothing, by the log's own account.
    pub dropped: u64,
    /// Whether the last record is a `close`, apart from its checkpoint.
    pub closed: bool,
    /// What is wrong; at most 100 are kept.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub problem_count: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_intact(&self) -> bool {
        self.problem_count == 0
    }
}

/// Checks the files of a log, given oldest first ([`super::files()`] lists them), against `public` where it is given: then
/// every start, state change and lock must be signed by that key.
///
/// # Errors
/// Only if a file can't be read; whatever is wrong in them is in the report.
pub fn verify(files: &[PathBuf], public: Option<&PublicKey>, expect: &Expect) -> Result<Report, AuditError> {
    let mut check = Check { public, ..Check::default() };
    for file in files {
        check.file(file, &read_whole(file)?, expect);
    }
    check.finish(files.last().map_or(Path::new(""), |file| file.as_path()), expect);
    Ok(check.report)
}

/// Whether a checkpoint follows such a record in a signed log.
fn is_signed(event: &str) -> bool {
    matches!(event, "head" | "open" | "state" | "lock" | "close")
}

#[derive(Default)]
struct Check<'a> {
    public: Option<&'a PublicKey>,
    report: Report,
    file: PathBuf,
    /// Number and hash of the record before; `None` at the start, and after a line that is damaged.
    before: Option<(u64, [u8; 32])>,
    /// At least one record was seen.
    begun: bool,
    /// The event that still lacks its checkpoint, and its number.
    unsigned: Option<(String, u64)>,
    /// Numbers of the current file, of the first that was given, of the oldest that must be there.
    number: Option<u64>,
    first_number: Option<u64>,
    oldest_kept: Option<u64>,
    found_hash: bool,
}

impl Check<'_> {
    fn problem(&mut self, line: usize, what: impl Into<String>) {
        self.report.problem_count += 1;
        if self.report.problems.len() < MOST_PROBLEMS {
            self.report.problems.push(Problem { file: self.file.clone(), line, what: what.into() });
        }
    }

    fn file(&mut self, file: &Path, bytes: &[u8], expect: &Expect) {
        self.file = file.to_owned();
        let (mut at, mut number, mut first) = (0, 1, true);
        while at < bytes.len() {
            let end = bytes[at..].iter().position(|&byte| byte == b'\n').map(|length| at + length);
            let parsed = line::decode(&bytes[at..end.unwrap_or(bytes.len())]);
            match (parsed, end) {
                (Ok(record), Some(end)) if record.number("torn_bytes").is_none() => {
                    self.record(number, &record, first, expect);
                    (at, number, first) = (end + 1, number + 1, false);
                }
                (Ok(record), Some(end)) => {
                    self.problem(
                        number,
                        "names a half-written end before it that is not there: records were removed here",
                    );
                    self.record(number, &record, first, expect);
                    (at, number, first) = (end + 1, number + 1, false);
                }
                (bad, _) => {
                    if let Some((record, after, lines)) = torn_region(&bytes[at..]) {
                        self.report.torn += 1;
                        self.record(number + lines, &record, first, expect);
                        (at, number, first) = (at + after, number + lines + 1, false);
                        continue;
                    }
                    let what = match (bad, end) {
                        (Ok(_), _) | (Err(Bad::Form), None) => {
                            "the last line is unfinished: the log is being written at this moment, or its process died; \
                             start that process again, or verify again"
                        }
                        (Err(Bad::Hash), _) => "the record was changed: its hash doesn't fit",
                        (Err(Bad::Form), _) => "no record of an audit log: the line was damaged or put in",
                    };
                    self.problem(number, what);
                    self.before = None;
                    let Some(end) = end else { break };
                    (at, number) = (end + 1, number + 1);
                }
            }
        }
        if first {
            self.problem(0, "no whole record is in it");
        }
    }

    fn record(&mut self, line: usize, record: &Record, first: bool, expect: &Expect) {
        self.chain(line, record);
        self.head(line, record, first);
        self.signature(line, record);
        let report = &mut self.report;
        report.records += 1;
        if !self.begun {
            report.first_seq = record.seq;
        }
        self.begun = true;
        report.last_seq = record.seq;
        report.last_hash = record.hash;
        report.last_time.clone_from(&record.time);
        report.closed = record.event == "close" || (report.closed && record.event == "checkpoint");
        if record.event == "gap" {
            report.dropped = report.dropped.saturating_add(record.number("dropped").unwrap_or(0));
        }
        self.found_hash |= expect.hash == Some(record.hash);
        self.before = Some((record.seq, record.hash));
    }

    fn chain(&mut self, line: usize, record: &Record) {
        match self.before {
            Some((seq, hash)) => {
                if record.prev != hash {
                    let what = format!(
                        "the chain breaks between record {seq} and record {}: records were removed, put in or exchanged",
                        record.seq
                    );
                    self.problem(line, what);
                } else if seq.checked_add(1) != Some(record.seq) {
                    self.problem(line, format!("record {} follows record {seq}: the numbers are wrong", record.seq));
                }
            }
            None if !self.begun && ((record.seq == 1) != (record.prev == GENESIS) || record.seq == 0) => {
                self.problem(line, format!("record {} can't be the first of a log", record.seq));
            }
            None => {}
        }
    }

    fn head(&mut self, line: usize, record: &Record, first: bool) {
        if (record.event == "head") != first {
            let what = if first {
                "the file doesn't begin with a head: its beginning was removed"
            } else {
                "a head within a file"
            };
            self.problem(line, what);
        }
        if record.event != "head" {
            return;
        }
        let number = record.number("number");
        if record.number("format") != Some(1) {
            self.problem(line, "a format that this version doesn't know; verify with a newer hyokfs");
        }
        match (self.number, number) {
            (Some(before), Some(number)) if before.checked_add(1) != Some(number) => {
                self.problem(
                    line,
                    format!("file number {number} follows file number {before}: files are missing or exchanged"),
                );
            }
            (_, None) => self.problem(line, "the head has no file number"),
            _ => {}
        }
        if self.first_number.is_none() {
            self.first_number = number;
            if number == Some(1) && record.seq != 1 {
                self.problem(line, "the first file doesn't begin with record 1");
            }
        }
        self.number = number.or(self.number);
        self.oldest_kept = record.number("oldest_kept");
    }

    fn signature(&mut self, line: usize, record: &Record) {
        let claimed = record.text("public_key").filter(|_| matches!(record.event.as_str(), "head" | "open"));
        if let Some(key) = claimed.filter(|&key| self.report.claimed_keys.last().is_none_or(|last| last != key)) {
            self.report.claimed_keys.push(key.to_owned());
        }
        let Some(public) = self.public else { return };
        if record.event == "checkpoint" {
            let signature = record.text("signature").unwrap_or_default();
            if public.verifies(record.seq, &record.prev, signature) {
                self.report.signed_through = Some(record.seq);
            } else {
                self.problem(line, format!("the signature of checkpoint {} is not of the given key", record.seq));
            }
            self.unsigned = None;
        } else if let Some((event, seq)) = self.unsigned.take() {
            // A process that died between a record and its checkpoint; the new start is signed over both.
            if !matches!(record.event.as_str(), "torn" | "open") {
                self.problem(line, format!("record {seq} ({event}) is not signed"));
            }
        }
        if is_signed(&record.event) {
            self.unsigned = Some((record.event.clone(), record.seq));
        }
    }

    fn finish(&mut self, last: &Path, expect: &Expect) {
        self.file = last.to_owned();
        let end = self.report.last_seq;
        if !self.begun {
            self.problem(0, "no record was found");
        }
        // Earlier heads name files that rotation has taken since.
        if let (Some(first), Some(oldest)) = (self.first_number, self.oldest_kept)
            && first > oldest
        {
            self.problem(0, format!("files {oldest} to {} should be there and are missing", first - 1));
        }
        if let Some((event, seq)) = self.unsigned.take() {
            self.problem(
                0,
                format!(
                    "the last {event} record ({seq}) is not signed: the end was cut off, or the process died there"
                ),
            );
        }
        if self.public.is_some() && self.report.signed_through.is_none() {
            self.problem(0, "no record is signed by the given key");
        }
        if let Some(seq) = expect.seq.filter(|&seq| seq > end || !self.begun) {
            self.problem(
                0,
                format!("the log ends with record {end}, but record {seq} was seen before: the end was cut off"),
            );
        }
        if let Some(hash) = expect.hash.filter(|_| !self.found_hash) {
            self.problem(
                0,
                format!("no record has the expected hash {}: the log was cut off or written anew", hex(&hash)),
            );
        }
    }
}

/// If `bytes` begin with a half-written end that a later record accounts for: that record, the place after it, and how
/// many lines the half-written part has. Nothing that was once a whole record may be in that part.
fn torn_region(bytes: &[u8]) -> Option<(Record, usize, usize)> {
    let mut start = 0;
    let mut lines = 0;
    loop {
        let length = bytes[start..].iter().position(|&byte| byte == b'\n')?;
        match line::decode(&bytes[start..start + length]) {
            Ok(record) => {
                let half = &bytes[..start.checked_sub(1)?];
                let fits = record.number("torn_bytes") == Some(half.len() as u64)
                    && record.text("torn_sha256") == Some(&hex(&line::sha256(&[half])))
                    && matches!(record.event.as_str(), "torn" | "head");
                return fits.then_some((record, start + length + 1, lines));
            }
            Err(Bad::Hash) => return None,
            Err(Bad::Form) => (start, lines) = (start + length + 1, lines + 1),
        }
    }
}
