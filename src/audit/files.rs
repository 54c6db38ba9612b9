//! The files of a log: opening after a crash, appending whole batches, beginning a new file when one is full.
//!
//! A batch is in the file whole or not at all as long as this process lives (what a failed write left is cut off
//! again). When the process dies within a write, the next [`Files::open`] leaves the half-written bytes where they are
//! and writes their length and hash into its first record; `verify` accepts exactly that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::event::{Fields, Value};
use super::line::{self, GENESIS, Record, hex};
use super::time::rfc3339;
use super::{AuditError, Config, SigningKey};

/// A larger file than this is no log of ours: rotation keeps them far smaller.
pub(crate) const LARGEST: u64 = 1 << 30;

/// A process that was just started shares the descriptors of the one that started it until it runs its own program,
/// and so holds on to the lock of a log that was closed meanwhile.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// The name of the full file `number` of the log at `path`: `audit.jsonl` becomes `audit-00000001.jsonl`.
pub fn rotated_name(path: &Path, number: u64) -> PathBuf {
    let (stem, extension) = parts(path);
    path.with_file_name(format!("{stem}-{number:08}{extension}"))
}

/// The name without extension, and the extension with its dot.
fn parts(path: &Path) -> (String, String) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let extension = path.extension().map(|ext| format!(".{}", ext.to_string_lossy())).unwrap_or_default();
    (stem, extension)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The numbers of the full files that exist, ascending.
fn numbers(path: &Path) -> Result<Vec<u64>, AuditError> {
    let (stem, extension) = parts(path);
    let reading = || AuditError::io(directory(path), "list the directory");
    let mut found = Vec::new();
    for entry in fs::read_dir(directory(path)).map_err(reading())? {
        let name = entry.map_err(reading())?.file_name();
        let number: Option<u64> = name
            .to_str()
            .and_then(|name| name.strip_prefix(&stem)?.strip_prefix('-')?.strip_suffix(&extension))
            .filter(|digits| digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok());
        found.extend(number);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// All files of the log at `path`, oldest first: what [`super::verify()`] takes.
///
/// # Errors
/// If the directory can't be listed, or there is no file of such a log in it.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, AuditError> {
    let mut all: Vec<PathBuf> = numbers(path)?.into_iter().map(|number| rotated_name(path, number)).collect();
    if path.exists() || all.is_empty() {
        all.push(path.to_owned());
    }
    match all.first().map(fs::metadata) {
        Some(Err(source)) => Err(AuditError::io(path, "find the log")(source)),
        _ => Ok(all),
    }
}

/// The whole file, which must not be larger than [`LARGEST`].
pub(crate) fn read_whole(path: &Path) -> Result<Vec<u8>, AuditError> {
    let mut file = File::open(path).map_err(AuditError::io(path, "open the file"))?;
    slurp(&mut file, path)
}

fn slurp(file: &mut File, path: &Path) -> Result<Vec<u8>, AuditError> {
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(AuditError::io(path, "read the file"))?;
    if bytes.len() as u64 > LARGEST {
        return Err(AuditError::NotALog {
            path: path.to_owned(),
            what: "it is larger than 1 GiB, which no log file of hyokfs gets",
        });
    }
    Ok(bytes)
}

/// The last line with a right hash, and where it ends (without its newline).
fn last_good(bytes: &[u8]) -> Option<(Record, usize)> {
    let mut end = bytes.len();
    loop {
        let start = bytes[..end].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        if let Ok(record) = line::decode(&bytes[start..end]) {
            return Some((record, end));
        }
        end = start.checked_sub(1)?;
    }
}

/// Whether `last`, the last record in `bytes`, ends a run in order: a `close`, or the checkpoint after one.
fn is_closed(bytes: &[u8], last: &Record) -> bool {
    let closes = |record: Record| record.event == "close" && record.hash == last.prev;
    let ends = bytes.rsplit(|&byte| byte == b'\n');
    last.event == "close"
        || last.event == "checkpoint" && ends.filter_map(|line| line::decode(line).ok()).take(2).any(closes)
}

/// `number` and `oldest_kept` of the head, if that is the first record.
fn head_of(bytes: &[u8]) -> Option<(u64, u64)> {
    let head = bytes.split(|&byte| byte == b'\n').find_map(|line| line::decode(line).ok())?;
    Some((head.number("number").filter(|_| head.event == "head")?, head.number("oldest_kept")?))
}

/// A record that waits to be numbered, chained and written.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) time: SystemTime,
    pub(crate) event: &'static str,
    /// The JSON object.
    pub(crate) fields: String,
    /// A checkpoint follows it where there is a signing key.
    pub(crate) signed: bool,
}

/// Where the chain stands: number and hash of the last record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain {
    pub(crate) seq: u64,
    pub(crate) hash: [u8; 32],
}

#[derive(Debug)]
pub(crate) struct Files {
    path: PathBuf,
    max_bytes: u64,
    keep: u64,
    signer: Option<SigningKey>,
    file: File,
    /// Bytes of the file that are known to be whole records.
    len: u64,
    /// A write failed and what it left could not be cut off yet.
    ragged: bool,
    number: u64,
    /// Number of the oldest file that rotation left, by the heads' own account. What someone else removed stays missing.
    oldest: u64,
    chain: Chain,
    /// The current file has its numbered name already, but its successor could not take its place yet.
    renamed: bool,
    /// Holds the lock on the log.
    _lock: File,
}

fn create(path: &Path, doing: &'static str) -> Result<File, AuditError> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(AuditError::io(path, doing))
}

fn sync_directory(path: &Path) -> Result<(), AuditError> {
    let directory = directory(path);
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(AuditError::io(directory, "sync the directory"))
}

fn torn(fields: &mut Fields, half: &[u8]) {
    if !half.is_empty() {
        fields.put("torn_bytes", Value::Number(half.len() as u64));
        fields.put("torn_sha256", Value::Code(hex(&line::sha256(&[half]))));
    }
}

impl Files {
    /// Opens or begins the log and writes an `open` record.
    pub(crate) fn open(config: Config) -> Result<Files, AuditError> {
        let Config { path, max_bytes, keep, signer, .. } = config;
        let parent = directory(&path);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(AuditError::io(parent, "create the directory"))?;
        let lock_path = beside(&path, ".lock");
        let no_follow = OFlags::NOFOLLOW.bits() as i32;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(no_follow)
            .open(&lock_path)
            .map_err(AuditError::io(&lock_path, "open the lock file"))?;
        let until = Instant::now() + LOCK_PATIENCE;
        while let Err(errno) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            match errno {
                Errno::WOULDBLOCK if Instant::now() < until => thread::sleep(Duration::from_millis(10)),
                Errno::WOULDBLOCK => return Err(AuditError::Busy(path)),
                errno => return Err(AuditError::io(&lock_path, "lock the lock file")(errno.into())),
            }
        }
        // Left by a process that died while it began a new file; nothing but a head is in it.
        match fs::remove_file(beside(&path, ".new")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(AuditError::io(&beside(&path, ".new"), "remove the unfinished file")(error));
            }
            _ => {}
        }

        let newest = numbers(&path)?.last().copied();
        let (file, fresh) = match OpenOptions::new().read(true).append(true).custom_flags(no_follow).open(&path) {
            Ok(file) => (file, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (create(&path, "create the log")?, true),
            Err(error) => return Err(AuditError::io(&path, "open the log")(error)),
        };
        let mut files = Files {
            path,
            max_bytes,
            keep,
            signer,
            file,
            len: 0,
            ragged: false,
            number: newest.unwrap_or(0) + 1,
            oldest: 1,
            chain: Chain { seq: 0, hash: GENESIS },
            renamed: false,
            _lock: lock,
        };
        files.resume(newest)?;
        if fresh {
            sync_directory(&files.path)?;
        }
        Ok(files)
    }

    /// Finds the end of the chain and writes the first records of this run.
    fn resume(&mut self, newest: Option<u64>) -> Result<(), AuditError> {
        let bytes = slurp(&mut self.file, &self.path)?;
        self.len = bytes.len() as u64;
        let not_a_log = |what| AuditError::NotALog { path: self.path.clone(), what };
        let mut first = Vec::new();
        let mut unclean = false;
        let half;
        if let Some((last, end)) = last_good(&bytes) {
            (self.number, self.oldest) =
                head_of(&bytes).ok_or_else(|| not_a_log("its first record is not a log's head"))?;
            self.chain = Chain { seq: last.seq, hash: last.hash };
            unclean = !is_closed(&bytes, &last);
            half = bytes.get(end + 1..).unwrap_or_default();
            if !half.is_empty() {
                let mut fields = Fields::default();
                torn(&mut fields, half);
                first.push(Entry { time: SystemTime::now(), event: "torn", fields: fields.json(), signed: false });
            }
        } else {
            // An empty file, or one whose head was being written.
            let begins = b"{\"seq\":";
            let ours = bytes.iter().all(|&byte| byte == 0) || bytes.iter().zip(begins).all(|(a, b)| a == b);
            if !ours || bytes.len() > 4096 {
                return Err(not_a_log("it holds something that is not an audit log"));
            }
            if let Some(number) = newest {
                let before = rotated_name(&self.path, number);
                let bytes = read_whole(&before)?;
                let (Some((last, _)), Some((_, oldest))) = (last_good(&bytes), head_of(&bytes)) else {
                    return Err(AuditError::NotALog { path: before, what: "its first record is not a log's head" });
                };
                self.oldest = oldest;
                self.chain = Chain { seq: last.seq, hash: last.hash };
                unclean = !is_closed(&bytes, &last);
            }
            half = &bytes;
            first.push(self.head(self.number, half));
        }
        let mut fields = Fields::default();
        fields
            .put("version", Value::Word(env!("CARGO_PKG_VERSION")))
            .put("pid", Value::Number(u64::from(std::process::id())))
            .put("unclean", Value::Flag(unclean));
        self.put_public_key(&mut fields);
        first.push(Entry { time: SystemTime::now(), event: "open", fields: fields.json(), signed: true });
        let ends_with_newline = bytes.last().is_none_or(|&byte| byte == b'\n') && half.is_empty();
        let lead = if ends_with_newline { "" } else { "\n" };
        self.write(lead, &first, true)
    }

    fn put_public_key(&self, fields: &mut Fields) {
        if let Some(signer) = &self.signer {
            fields.put("public_key", Value::Code(signer.public().to_string()));
        }
    }

    /// The first number that is kept when file `number` is the current one.
    fn oldest_kept(&self, number: u64) -> u64 {
        if self.keep == 0 { self.oldest } else { number.saturating_sub(self.keep).max(self.oldest) }
    }

    fn head(&self, number: u64, half: &[u8]) -> Entry {
        let mut fields = Fields::default();
        fields
            .put("format", Value::Number(1))
            .put("number", Value::Number(number))
            .put("oldest_kept", Value::Number(self.oldest_kept(number)));
        self.put_public_key(&mut fields);
        torn(&mut fields, half);
        Entry { time: SystemTime::now(), event: "head", fields: fields.json(), signed: true }
    }

    /// The lines of `entries`, each signed one followed by its checkpoint, and where the chain stands after them.
    fn render(&self, lead: &str, entries: &[Entry]) -> Result<(String, Chain), AuditError> {
        let mut text = String::with_capacity(entries.len() * 512);
        text.push_str(lead);
        let Chain { mut seq, mut hash } = self.chain;
        for entry in entries {
            let time = rfc3339(entry.time);
            seq += 1;
            hash = line::encode(&mut text, seq, &time, entry.event, &entry.fields, &hash);
            if let Some(signer) = self.signer.as_ref().filter(|_| entry.signed) {
                seq += 1;
                let fields = format!(r#"{{"signature":"{}"}}"#, signer.sign(seq, &hash)?);
                hash = line::encode(&mut text, seq, &time, "checkpoint", &fields, &hash);
            }
        }
        Ok((text, Chain { seq, hash }))
    }

    fn write(&mut self, lead: &str, entries: &[Entry], sync: bool) -> Result<(), AuditError> {
        if self.ragged {
            self.file.set_len(self.len).map_err(AuditError::io(&self.path, "cut off a failed write"))?;
            self.ragged = false;
        }
        let (text, chain) = self.render(lead, entries)?;
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            self.ragged = self.file.set_len(self.len).is_err();
            return Err(AuditError::io(&self.path, "write")(error));
        }
        self.len += text.len() as u64;
        self.chain = chain;
        if sync {
            self.sync()?;
        }
        Ok(())
    }

    /// Appends all of `entries`, or nothing and gives the error. Not synced.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> Result<(), AuditError> {
        self.write("", entries, false)
    }

    /// `fdatasync`.
    pub(crate) fn sync(&self) -> Result<(), AuditError> {
        self.file.sync_data().map_err(AuditError::io(&self.path, "sync"))
    }

    pub(crate) fn chain(&self) -> Chain {
        self.chain
    }

    /// Begins a new file if the current one is full. On an error the current file goes on being written.
    pub(crate) fn rotate_if_full(&mut self) -> Result<(), AuditError> {
        if self.len < self.max_bytes {
            return Ok(());
        }
        let full = rotated_name(&self.path, self.number);
        if !self.renamed && full.exists() {
            return Err(AuditError::NotALog { path: full, what: "it stands where the full log file has to go" });
        }
        self.sync()?;
        let new = beside(&self.path, ".new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(AuditError::io(&new, "remove the unfinished file")(error));
            }
            _ => {}
        }
        let number = self.number + 1;
        let (text, chain) = self.render("", &[self.head(number, &[])])?;
        let mut file = create(&new, "create the next file")?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(AuditError::io(&new, "write the next file"))?;
        if !self.renamed {
            fs::rename(&self.path, &full).map_err(AuditError::io(&self.path, "rename the full file"))?;
            self.renamed = true;
        }
        fs::rename(&new, &self.path).map_err(AuditError::io(&new, "rename the next file"))?;
        self.renamed = false;
        (self.file, self.len, self.number, self.chain) = (file, text.len() as u64, number, chain);
        self.oldest = self.oldest_kept(number);
        sync_directory(&self.path)?;
        for old in numbers(&self.path)?.into_iter().filter(|&old| old < self.oldest) {
            let old = rotated_name(&self.path, old);
            fs::remove_file(&old).map_err(AuditError::io(&old, "remove the oldest file"))?;
        }
        Ok(())
    }
}
