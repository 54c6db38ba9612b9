//! Reads directories: their records, the names in them, links, attributes; hands files on.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::content::{Candidate, Open};
use super::queue::{Job, Queue};
use super::report::{Cure, Finding, Kind, Report};
use super::{LOST, Options, Progress, VerifyError};
use crate::format::dirrec::{DIR_RECORD, DirRecord};
use crate::format::name::{self, Entry, LOCK_FILE, LONG_SUFFIX, NameMode, VOLUME_RECORD, VOLUME_RECORD_BACKUP};
use crate::format::page::Geometry;
use crate::format::volume::Volume;
use crate::format::{DirId, FileId};
use crate::keyring::Keyring;
use crate::store::{Store, open_beneath};

/// A directory that is being read, or whose entries still wait.
pub(super) struct Dir {
    pub fd: OwnedFd,
    /// Its id; `None` where its record is lost: then no name in it can be read.
    pub id: Option<DirId>,
    /// Its path in the store; the root's is empty.
    pub path: Vec<u8>,
    /// Its plaintext path, where names are to be shown.
    plain: Option<String>,
}

/// What a name in the store says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// It authenticates.
    Good(Vec<u8>),
    /// It does not, for this reason.
    Bad(String),
    /// The directory's id is lost.
    Unknown,
}

/// An entry of a directory.
pub(super) struct Place {
    pub dir: Arc<Dir>,
    pub entry: Vec<u8>,
    pub named: Named,
}

impl Place {
    pub fn path(&self) -> Vec<u8> {
        join(&self.dir.path, &self.entry)
    }

    pub fn plain(&self) -> Option<String> {
        let Named::Good(name) = &self.named else { return None };
        let above = self.dir.plain.as_ref()?;
        Some(format!("{above}/{}", String::from_utf8_lossy(name)))
    }

    pub fn is_bad(&self) -> bool {
        matches!(self.named, Named::Bad(_))
    }

    pub fn os(&self) -> &OsStr {
        OsStr::from_bytes(&self.entry)
    }

    /// A finding about this entry.
    pub fn finding(&self, kind: Kind, what: impl Into<String>, recoverable: impl Into<String>, cure: Cure) -> Finding {
        Finding {
            path: self.path(),
            name: self.plain(),
            id: None,
            kind,
            what: what.into(),
            recoverable: recoverable.into(),
            lost: Vec::new(),
            mended: false,
            cure,
            inode: None,
        }
    }
}

/// A name of a file that has several.
struct Alias {
    path: Vec<u8>,
    plain: Option<String>,
}

/// A path of the store.
pub(super) fn join(dir: &[u8], entry: &[u8]) -> Vec<u8> {
    if dir.is_empty() { entry.to_vec() } else { [dir, b"/", entry].concat() }
}

/// Work on files.
pub(super) enum FileJob {
    Check(Candidate),
    /// Help with a large file.
    Help(Arc<Open>),
}

#[derive(Default)]
pub(super) struct Counts {
    pub files: AtomicU64,
    directories: AtomicU64,
    pub links: AtomicU64,
    special: AtomicU64,
    pub attributes: AtomicU64,
    pub bytes: AtomicU64,
}

/// What all threads share.
pub(super) struct Walk<'a> {
    pub volume: &'a Volume,
    pub keyring: &'a Arc<Keyring>,
    pub options: Options,
    pub progress: &'a dyn Progress,
    pub geometry: Geometry,
    pub threads: usize,
    pub queue: Queue<Place, FileJob>,
    pub counts: Counts,
    findings: Mutex<Vec<Finding>>,
    failure: Mutex<Option<VerifyError>>,
    /// The names of files that have several, by device and inode number; the pages are read at the first one.
    linked: Mutex<HashMap<(u64, u64), Vec<Alias>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Walks the whole store.
pub(super) fn run(
    store: &Store,
    volume: &Volume,
    keyring: &Arc<Keyring>,
    options: Options,
    progress: &dyn Progress,
) -> Result<(Report, Vec<Finding>), VerifyError> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    // Threads that wait for a remote key service cost nothing.
    let threads = if options.remote { (4 * cores).max(32) } else { cores };
    let walk = Walk {
        volume,
        keyring,
        options,
        progress,
        geometry: Geometry::new(usize::from(volume.record.header_len))?,
        threads,
        queue: Queue::new(),
        counts: Counts::default(),
        findings: Mutex::default(),
        failure: Mutex::default(),
        linked: Mutex::default(),
    };
    let system = |error: io::Error| VerifyError::System(error.to_string());
    let fd = open_beneath(store.root(), OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
    let root = walk.root(fd.map_err(system)?);
    walk.read(&root);
    drop(root);
    std::thread::scope(|scope| -> Result<(), VerifyError> {
        let work = || {
            walk.queue.work(|job| match job {
                Job::Directory(place) => walk.directory(place),
                Job::File(FileJob::Check(candidate)) => walk.file(candidate),
                Job::File(FileJob::Help(open)) => walk.help(&open),
            });
        };
        for number in 1..walk.threads {
            let thread = std::thread::Builder::new().name("verify".to_owned()).spawn_scoped(scope, work);
            match thread {
                Ok(_) => {}
                // Fewer threads do it as well.
                Err(error) => {
                    tracing::debug!(%error, number, "no more threads");
                    break;
                }
            }
        }
        work();
        Ok(())
    })?;
    if let Some(failure) = lock(&walk.failure).take() {
        return Err(failure);
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let report = Report {
        files: count(&walk.counts.files),
        directories: count(&walk.counts.directories),
        links: count(&walk.counts.links),
        special: count(&walk.counts.special),
        attributes: count(&walk.counts.attributes),
        bytes: count(&walk.counts.bytes),
        ..Report::default()
    };
    let mut findings = walk.findings.into_inner().unwrap_or_else(PoisonError::into_inner);
    let linked = walk.linked.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut again = Vec::new();
    for finding in &findings {
        // The first name is the one that was read.
        for alias in finding.inode.and_then(|inode| linked.get(&inode)).into_iter().flatten().skip(1) {
            again.push(Finding { path: alias.path.clone(), name: alias.plain.clone(), ..finding.clone() });
        }
    }
    findings.extend(again);
    Ok((report, findings))
}

/// Reads a directory's record; says what is wrong with it.
pub(super) fn read_record(volume: &Volume, fd: impl AsFd) -> Result<DirRecord, String> {
    let target = rustix::fs::readlinkat(fd, DIR_RECORD, Vec::new()).map_err(|error| match error {
        Errno::NOENT => "its record .hyokfs.dir is missing".to_owned(),
        Errno::INVAL => "its record .hyokfs.dir is no symlink".to_owned(),
        other => format!("its record .hyokfs.dir cannot be read: {other}"),
    })?;
    DirRecord::decode(target.to_bytes(), volume.record.volume, &volume.keys.header)
        .map_err(|_| "its record .hyokfs.dir was altered or is another volume's".to_owned())
}

/// Calls `each` with every entry but `.` and `..`.
pub(super) fn scan(dir: impl AsFd, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let opened = open_beneath(dir, OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 << 10];
    let mut entries = RawDir::new(opened, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name);
        }
    }
    Ok(())
}

/// Whether a directory holds anything that applications see.
pub(super) fn is_visibly_empty(dir: impl AsFd) -> io::Result<bool> {
    let mut empty = true;
    scan(dir, |entry| empty &= !matches!(name::classify(entry), Entry::Short | Entry::Long))?;
    Ok(empty)
}

/// The plaintext name of an entry, given its directory's id.
pub(super) fn read_name(volume: &Volume, dir: impl AsFd, id: &DirId, entry: &[u8]) -> Named {
    let (mode, key) = (volume.record.names, &volume.keys.names);
    let read = match name::classify(entry) {
        Entry::Long if mode == NameMode::Encrypted => {
            let sidecar = name::sidecar_of(entry);
            match rustix::fs::readlinkat(dir, OsStr::from_bytes(&sidecar), Vec::new()) {
                Ok(target) => name::decode_long(key, id, entry, target.to_bytes())
                    .map_err(|_| "the symlink beside it that holds its long name was altered".to_owned()),
                Err(Errno::NOENT) => Err("the symlink beside it that holds its long name is missing".to_owned()),
                Err(Errno::INVAL) => Err("what holds its long name is no symlink".to_owned()),
                Err(error) => Err(format!("the symlink that holds its long name cannot be read: {error}")),
            }
        }
        Entry::Short => name::decode(key, mode, id, entry)
            .map_err(|_| "its name does not authenticate in this directory".to_owned()),
        _ => Err("its name is none that hyokfs gives".to_owned()),
    };
    read.map_or_else(Named::Bad, Named::Good)
}

impl Walk<'_> {
    pub fn report(&self, finding: Finding) {
        lock(&self.findings).push(finding);
    }

    /// Ends the work without a report.
    pub fn fail(&self, error: VerifyError) {
        lock(&self.failure).get_or_insert(error);
        self.queue.stop();
    }

    /// Whether this inode is met for the first time.
    pub fn is_new(&self, place: &Place, stat: &Stat) -> bool {
        if stat.st_nlink < 2 {
            return true;
        }
        let mut linked = lock(&self.linked);
        let names = linked.entry((stat.st_dev, stat.st_ino)).or_default();
        names.push(Alias { path: place.path(), plain: place.plain() });
        names.len() == 1
    }

    fn root(&self, fd: OwnedFd) -> Arc<Dir> {
        self.counts.directories.fetch_add(1, Ordering::Relaxed);
        let plain = self.options.show_names.then(String::new);
        let dir = Arc::new(Dir { fd, id: Some(DirId(self.volume.keys.root)), path: Vec::new(), plain });
        let place = Place { dir: Arc::clone(&dir), entry: Vec::new(), named: Named::Unknown };
        self.attributes(&place, &dir.fd);
        dir
    }

    /// Checks a directory's record and place, then reads it.
    fn directory(&self, place: Place) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = match open_beneath(&place.dir.fd, place.os(), flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(error) => return self.unreadable(&place, &error),
        };
        self.counts.directories.fetch_add(1, Ordering::Relaxed);
        let aside = |home: Vec<DirId>| Cure::Aside { home };
        let mut id = None;
        let finding = match read_record(self.volume, &fd) {
            Err(what) if place.is_bad() => {
                let inside = "what is in it was not looked at";
                let finding = place.finding(
                    Kind::Foreign,
                    format!("neither its name nor its record is of this volume ({what})"),
                    inside,
                    aside(Vec::new()),
                );
                return self.report(finding);
            }
            Err(what) => Some(place.finding(
                Kind::DirectoryRecord,
                what,
                "the contents of its files, which were checked; with --repair --rebuild-directories also their names",
                Cure::Rebuild,
            )),
            Ok(record) => {
                id = Some(record.dir);
                let here = place.dir.id.is_none_or(|above| record.parents.contains(&above));
                let whole = "all of it, in the directory that it belongs to";
                match &place.named {
                    // Its name is good here, but it belongs elsewhere and is empty: it was to be replaced.
                    Named::Good(_) if !here && is_visibly_empty(&fd).unwrap_or(false) => {
                        let what = "an empty directory that a rename was to replace when it was interrupted";
                        Some(place.finding(Kind::Leftover, what, "it holds nothing", Cure::Remove))
                    }
                    _ if record.parents.is_empty() || !here => {
                        let what = "the directory was moved here behind hyokfs's back";
                        Some(place.finding(Kind::Moved, what, whole, aside(record.parents)))
                    }
                    Named::Bad(what) => {
                        Some(place.finding(Kind::Name, what.clone(), "all of it but its name", aside(record.parents)))
                    }
                    _ => None,
                }
            }
        };
        if let Some(mut finding) = finding {
            finding.id = id.map(|id| id.to_string());
            self.report(finding);
        }
        self.attributes(&place, &fd);
        self.read(&Arc::new(Dir { fd, id, path: place.path(), plain: place.plain() }));
    }

    pub fn unreadable(&self, place: &Place, error: &io::Error) {
        self.report(unreadable(place, error));
    }

    /// Hands on every entry of a directory.
    fn read(&self, dir: &Arc<Dir>) {
        let read = scan(&dir.fd, |entry| {
            if !self.queue.is_stopped() {
                self.entry(dir, entry);
            }
        });
        if let Err(error) = read {
            let place = Place { dir: Arc::clone(dir), entry: Vec::new(), named: Named::Unknown };
            let mut finding = unreadable(&place, &error);
            finding.path.clone_from(&dir.path);
            self.report(finding);
        }
    }

    fn entry(&self, dir: &Arc<Dir>, entry: &[u8]) {
        let root = dir.path.is_empty();
        let plain = self.volume.record.names == NameMode::Plain;
        let mut place = Place { dir: Arc::clone(dir), entry: entry.to_vec(), named: Named::Unknown };
        match name::classify(entry) {
            Entry::Temporary => return self.temporary(&place),
            Entry::Sidecar if !plain => {
                let long = &entry[..entry.len() - LONG_SUFFIX.len()];
                if let Err(Errno::NOENT) = stat(&dir.fd, long) {
                    let what = "the symlink of a long name whose file is gone";
                    self.report(place.finding(Kind::Leftover, what, "it holds nothing", Cure::Remove));
                }
                return;
            }
            _ if entry == DIR_RECORD.as_bytes() => return,
            Entry::Reserved
                if root
                    && [VOLUME_RECORD, VOLUME_RECORD_BACKUP, LOCK_FILE, LOST].iter().any(|n| n.as_bytes() == entry) =>
            {
                return;
            }
            Entry::Short | Entry::Long | Entry::Sidecar | Entry::Reserved => {}
        }
        // What the filesystem below keeps for itself: NFS's removed but open files, the root of an ext4.
        if !plain && (entry.starts_with(b".nfs") || root && entry == b"lost+found" && self.is_bare(&place)) {
            return;
        }
        place.named = match dir.id {
            Some(id) => read_name(self.volume, &dir.fd, &id, entry),
            None => Named::Unknown,
        };
        let stat = match stat(&dir.fd, entry) {
            Ok(stat) => stat,
            Err(error) => return self.unreadable(&place, &error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.queue.push_directory(place),
            FileType::RegularFile => {
                let bytes = u64::try_from(stat.st_size.min(stat.st_blocks.saturating_mul(512))).unwrap_or(0);
                self.progress.found(bytes);
                let candidate = Candidate { place, bytes };
                if self.options.remote {
                    self.ask_ahead(&candidate);
                }
                if let Some(FileJob::Check(candidate)) = self.queue.push_file(FileJob::Check(candidate)) {
                    self.file(candidate);
                }
            }
            FileType::Symlink => self.link(&place),
            _ => {
                self.counts.special.fetch_add(1, Ordering::Relaxed);
                if let Named::Bad(what) = &place.named {
                    let cure = Cure::Aside { home: Vec::new() };
                    self.report(place.finding(Kind::Name, what.clone(), "it has no contents", cure));
                }
            }
        }
    }

    fn is_bare(&self, place: &Place) -> bool {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let Ok(fd) = open_beneath(&place.dir.fd, place.os(), flags, Mode::empty()) else { return false };
        let mut bare = true;
        scan(fd, |_| bare = false).is_ok() && bare
    }

    fn temporary(&self, place: &Place) {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let holds = match open_beneath(&place.dir.fd, place.os(), flags, Mode::empty()) {
            Ok(fd) => !is_visibly_empty(fd).unwrap_or(false),
            Err(_) => false,
        };
        self.report(if holds {
            place.finding(
                Kind::Foreign,
                "a directory under the name of an interrupted operation, but it holds entries",
                "what is in it was not looked at",
                Cure::Aside { home: Vec::new() },
            )
        } else {
            let what = "left by an operation that was interrupted";
            place.finding(Kind::Leftover, what, "it holds nothing that was ever visible", Cure::Remove)
        });
    }
}

/// Something that the store's filesystem does not give.
pub(super) fn unreadable(place: &Place, error: &io::Error) -> Finding {
    let hint = match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => "; verify as root, or as the user who mounts the volume",
        Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open files (ulimit -n) and verify again",
        _ => "; look at the disk and the kernel's log",
    };
    let what = format!("it cannot be read: {error}{hint}");
    place.finding(Kind::Unreadable, what, "unknown", Cure::None)
}

/// `stat` of an entry.
pub(super) fn stat(dir: impl AsFd, entry: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, OsStr::from_bytes(entry), AtFlags::SYMLINK_NOFOLLOW)
}

/// An id as the report shows it.
pub(super) fn id_text(id: &FileId) -> Option<String> {
    Some(id.to_string())
}
