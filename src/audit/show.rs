//! Reads a log for people: from a moment or a number on, and on request as it grows.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use super::line::{self, Record};
use super::{AuditError, files, time};

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Where to begin.
#[derive(Debug, Clone, Copy, Default)]
pub enum Since {
    /// With the oldest record.
    #[default]
    Start,
    /// With the first record of this time or later.
    Time(SystemTime),
    /// With this record.
    Seq(u64),
}

/// What to show.
#[derive(Debug, Clone, Copy, Default)]
pub struct Show {
    /// Where to begin.
    pub since: Since,
    /// Wait for more at the end, until the sink says stop.
    pub follow: bool,
}

/// One line, as it was found.
#[derive(Debug)]
pub enum Shown<'a> {
    /// A record whose hash is right (the chain is not checked here), and its line.
    Record(&'a Record, &'a str),
    /// A line that is no record. `verify` tells whether that is the trace of a crash or of a change.
    Damaged(&'a [u8]),
}

impl Since {
    fn wants(&self, record: &Record) -> bool {
        match self {
            Since::Start => true,
            Since::Seq(seq) => record.seq >= *seq,
            // A record whose time can't be read is rather shown than hidden.
            Since::Time(since) => time::parse(&record.time).is_none_or(|time| time >= *since),
        }
    }
}

impl Record {
    /// One line for a person: time, number, event, then the fields as `name=value`.
    pub fn to_text(&self) -> String {
        let mut text = format!("{} {:>6} {}", self.time, self.seq, self.event);
        for (name, value) in &self.fields {
            // Texts are tame already; `to_string` of anything else is JSON.
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.push_str(&format!(" {name}={}", value.escape_debug()));
        }
        text
    }
}

/// Gives the lines of the log at `path` to `sink`, oldest first, until the end of the log, or for ever with `follow`.
/// `sink` says whether to go on. With `follow`, it is called with `None` whenever there is nothing new, five times a
/// second, so that it can end then too.
///
/// # Errors
/// If a file can't be read, or there is none.
pub fn show(path: &Path, what: Show, mut sink: impl FnMut(Option<Shown<'_>>) -> bool) -> Result<(), AuditError> {
    let all = files(path)?;
    for full in all.iter().filter(|file| *file != path) {
        // Rotation may take the oldest away in the meantime.
        match File::open(full) {
            Ok(mut file) => {
                if !Reader::default().drain(full, &mut file, &what.since, true, &mut sink)? {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(AuditError::io(full, "open the file")(error)),
        }
    }
    loop {
        let mut file = match File::open(path) {
            Ok(file) => file,
            // Between the two renames of a rotation.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !what.follow || !sink(None) {
                    return Ok(());
                }
                thread::sleep(LOOK);
                continue;
            }
            Err(error) => return Err(AuditError::io(path, "open the file")(error)),
        };
        let mut reader = Reader::default();
        loop {
            // Asked before reading: what a full file still got before it was renamed is read below.
            let current = !what.follow || is_current(path, &file);
            if !reader.drain(path, &mut file, &what.since, !what.follow || !current, &mut sink)? || !what.follow {
                return Ok(());
            }
            if !current {
                break;
            }
            if !sink(None) {
                return Ok(());
            }
            thread::sleep(LOOK);
        }
    }
}

fn is_current(path: &Path, file: &File) -> bool {
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(here)) => (there.dev(), there.ino()) == (here.dev(), here.ino()),
        // It is about to be replaced.
        (Err(_), _) => true,
        (_, Err(_)) => false,
    }
}

/// Reads a file in pieces and hands out whole lines.
#[derive(Default)]
struct Reader {
    rest: Vec<u8>,
    at: u64,
}

impl Reader {
    /// Hands out all that is there; with `end`, also a last line without newline. False once the sink says stop.
    fn drain(
        &mut self,
        path: &Path,
        file: &mut File,
        since: &Since,
        end: bool,
        sink: &mut impl FnMut(Option<Shown<'_>>) -> bool,
    ) -> Result<bool, AuditError> {
        // A failed write that was cut off again.
        let length = file.metadata().map_err(AuditError::io(path, "look at the file"))?.len();
        if length < self.at {
            self.rest.clear();
            self.at = length;
        }
        file.seek(SeekFrom::Start(self.at)).map_err(AuditError::io(path, "read the file"))?;
        let mut piece = vec![0; 64 << 10];
        loop {
            let count = file.read(&mut piece).map_err(AuditError::io(path, "read the file"))?;
            self.at += count as u64;
            self.rest.extend_from_slice(&piece[..count]);
            let mut done = 0;
            while let Some(length) = self.rest[done..].iter().position(|&byte| byte == b'\n') {
                if !hand_out(&self.rest[done..done + length], since, sink) {
                    return Ok(false);
                }
                done += length + 1;
            }
            self.rest.drain(..done);
            if count == 0 {
                let last = if end { std::mem::take(&mut self.rest) } else { Vec::new() };
                return Ok(last.is_empty() || hand_out(&last, since, sink));
            }
        }
    }
}

fn hand_out(line: &[u8], since: &Since, sink: &mut impl FnMut(Option<Shown<'_>>) -> bool) -> bool {
    match (line::decode(line), std::str::from_utf8(line)) {
        (Ok(record), Ok(text)) => !since.wants(&record) || sink(Some(Shown::Record(&record, text))),
        _ => line.is_empty() || sink(Some(Shown::Damaged(line))),
    }
}
