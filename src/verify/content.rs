//! Checks one regular file: header, place, key, and every page. A bad page costs itself alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::VerifyError;
use super::report::{Cure, Finding, Kind, in_words, runs};
use super::walk::{FileJob, Named, Place, Walk, id_text, lock, unreadable};
use crate::crypto::Secret;
use crate::file::{FileError, PageFile};
use crate::format::FileId;
use crate::format::header::{FileHeader, HeaderError, Parents};
use crate::format::page::{PAGE, PageKeys, is_hole};
use crate::keyring::KeyError;
use crate::store::{Disk, RealDisk, open_beneath};
use crate::sys::aligned::{AlignedBuf, with_scratch};

/// Pages that are read at once: 1 MiB.
const STEP: u64 = 256;
/// Pages of a large file that one thread takes at a time: 16 MiB.
const CHUNK: u64 = 4096;
/// How often a key is asked for while the key service cannot be reached: for about 15 s, and the calls' own time.
const TRIES: u32 = 6;
/// The pause before the second try; it doubles each time.
const PAUSE: Duration = Duration::from_millis(500);

/// A regular file to check.
pub(super) struct Candidate {
    pub place: Place,
    /// What the progress was told of it.
    pub bytes: u64,
}

/// A file whose pages are being read, by several threads if it is large.
pub(super) struct Open {
    file: PageFile<RealDisk>,
    place: Place,
    id: FileId,
    inode: Option<(u64, u64)>,
    bytes: u64,
    pages: u64,
    /// The next page that nobody has taken.
    next: AtomicU64,
    /// Threads that are at it, or will be.
    active: AtomicUsize,
    bad: Mutex<Vec<(u64, Trouble)>>,
}

struct Trouble {
    why: String,
    /// The store's fault, not the page's.
    io: bool,
}

/// What the first page is.
enum First {
    Header(Box<FileHeader>),
    /// The file holds nothing: its creation was interrupted.
    Nothing,
    Bad(String, Option<HeaderError>),
}

impl Walk<'_> {
    fn open(&self, place: &Place) -> io::Result<File> {
        // NONBLOCK: should a pipe have taken the file's place, nothing hangs.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let quiet = open_beneath(&place.dir.fd, place.os(), flags | OFlags::NOATIME, Mode::empty());
        let fd = match quiet {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                open_beneath(&place.dir.fd, place.os(), flags, Mode::empty())?
            }
            other => other?,
        };
        Ok(File::from(fd))
    }

    fn first(&self, file: &File) -> io::Result<First> {
        let mut page = vec![0; PAGE];
        let mut got = 0;
        while got < PAGE {
            match file.read_at(&mut page[got..], got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if got < PAGE {
            return Ok(match is_hole(&page[..got]) {
                true => First::Nothing,
                false => First::Bad(format!("the ciphertext was cut to {got} bytes, less than its first page"), None),
            });
        }
        if is_hole(&page) {
            return Ok(match self.holds_pages(file)? {
                false => First::Nothing,
                true => First::Bad("its first page, with header and key, is zero although others follow".into(), None),
            });
        }
        let header = &page[..self.geometry.header_len()];
        Ok(match FileHeader::decode(header, &self.volume.keys.header, self.volume.record.volume) {
            Ok(header) => First::Header(Box::new(header)),
            Err(error) => First::Bad(format!("its header is not to be trusted: {error}"), Some(error)),
        })
    }

    /// Whether anything but zeros follows the first page.
    fn holds_pages(&self, file: &File) -> io::Result<bool> {
        let disk = RealDisk::new(file.try_clone()?.into());
        let mut buffer = vec![0; 64 * PAGE];
        let mut at = PAGE as u64;
        while let Some(data) = disk.seek_data(at)? {
            match disk.read_at(&mut buffer, data)? {
                0 => break,
                n if is_hole(&buffer[..n]) => at = data + n as u64,
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Asks for a file's key before its turn comes.
    pub fn ask_ahead(&self, candidate: &Candidate) {
        let header = self.open(&candidate.place).and_then(|file| self.first(&file));
        if let Ok(First::Header(header)) = header {
            self.keyring.prefetch(header.file, header.slots);
        }
    }

    /// Checks a file.
    pub fn file(&self, candidate: Candidate) {
        let Candidate { place, bytes } = candidate;
        self.counts.files.fetch_add(1, Ordering::Relaxed);
        let opened = self.open(&place).and_then(|file| {
            let stat = rustix::fs::fstat(&file)?;
            let first = self.first(&file)?;
            Ok((file, stat, first))
        });
        let (file, stat, first) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.progress.done(bytes);
                return self.report(unreadable(&place, &error));
            }
        };
        self.attributes(&place, &file);
        let header = match first {
            First::Header(header) => *header,
            First::Nothing | First::Bad(..) => {
                self.progress.done(bytes);
                return self.report(headless(&place, first));
            }
        };
        if let Some(mut finding) = misplaced(&place, &header) {
            finding.id = id_text(&header.file);
            self.report(finding);
        }
        if !self.is_new(&place, &stat) {
            self.progress.done(bytes);
            return;
        }
        let inode = Some((stat.st_dev, stat.st_ino));
        let key = match self.key(&header) {
            Ok(Some(key)) => key,
            Ok(None) => return,
            Err(error) => {
                self.progress.done(bytes);
                // A key that is only out of reach now must not cost the file its place.
                let (left, cure) = match error {
                    KeyError::Damaged(_) => {
                        ("nothing: restore the file from a backup of the store", Cure::AsideIfAsked)
                    }
                    _ => ("unknown: all of it, once its key can be unwrapped", Cure::None),
                };
                let mut finding = place.finding(Kind::Key, error.to_string(), left, cure);
                finding.id = id_text(&header.file);
                finding.inode = inode;
                return self.report(finding);
            }
        };
        let mixing = &self.volume.keys.mixing;
        let keys = match PageKeys::new(header.suite, &key, mixing, &header.volume, &header.file) {
            Ok(_) if key.is_wiped() => return self.fail(KeyError::Locked.into()),
            Ok(keys) => Arc::new(keys),
            Err(error) => return self.fail(VerifyError::System(error.to_string())),
        };
        drop(key);
        let pages_file = file.try_clone().map_err(FileError::from).and_then(|again| {
            let disk = RealDisk::new(again.into());
            PageFile::open(disk, self.geometry.header_len(), Arc::clone(&keys))
        });
        match pages_file {
            Ok(opened) => self.contents(opened, place, &header, inode, bytes),
            Err(error) => {
                let mut finding = self.closed(&place, &header, &file, &keys, &error);
                finding.inode = inode;
                self.progress.done(bytes);
                self.report(finding);
            }
        }
    }

    /// The file's key; `None` if verifying must stop.
    fn key(&self, header: &FileHeader) -> Result<Option<Arc<Secret>>, KeyError> {
        let mut tries = 1;
        loop {
            match self.keyring.get(&header.file, &header.slots, &header.commitment) {
                Ok(key) => return Ok(Some(key)),
                Err(error @ (KeyError::Damaged(_) | KeyError::Misconfigured(_))) => return Err(error),
                Err(KeyError::Unreachable(error)) if tries < TRIES && !self.queue.is_stopped() => {
                    tracing::debug!(%error, tries, "the key is asked for again");
                    std::thread::sleep(PAUSE * 2_u32.pow(tries - 1));
                    tries += 1;
                }
                Err(error) => {
                    self.fail(error.into());
                    return Ok(None);
                }
            }
        }
    }

    /// Reads all pages, with other threads' help if there are many.
    fn contents(
        &self,
        file: PageFile<RealDisk>,
        place: Place,
        header: &FileHeader,
        inode: Option<(u64, u64)>,
        bytes: u64,
    ) {
        let pages = self.geometry.pages(file.size());
        let helpers = (pages.div_ceil(CHUNK) as usize).min(self.threads) - 1;
        let open = Arc::new(Open {
            file,
            place,
            id: header.file,
            inode,
            bytes,
            pages,
            next: AtomicU64::new(0),
            active: AtomicUsize::new(1 + helpers),
            bad: Mutex::default(),
        });
        for _ in 0..helpers {
            self.queue.push_first(FileJob::Help(Arc::clone(&open)));
        }
        self.help(&open);
    }

    /// Reads pages of `open` until none is left.
    pub fn help(&self, open: &Open) {
        let room = (open.file.size().min(STEP * PAGE as u64)) as usize;
        let mut buffer = AlignedBuf::new(room);
        loop {
            let from = open.next.fetch_add(CHUNK, Ordering::Relaxed);
            if from >= open.pages || self.queue.is_stopped() {
                break;
            }
            let to = (from + CHUNK).min(open.pages);
            if let Err(error) = self.chunk(open, from, to, &mut buffer) {
                let trouble = Trouble { why: error.to_string(), io: true };
                lock(&open.bad).push((from, trouble));
            }
        }
        if open.active.fetch_sub(1, Ordering::AcqRel) == 1 && !self.queue.is_stopped() {
            self.finish(open);
        }
    }

    fn chunk(&self, open: &Open, from: u64, to: u64, buffer: &mut [u8]) -> Result<(), FileError> {
        let (geometry, size) = (self.geometry, open.file.size());
        let mut page = from;
        while page < to && size > 0 {
            let data = open.file.seek_data(geometry.start(page))?.map_or(to, |at| geometry.page_of(at).min(to));
            if data > page {
                // If the floor allows the first page of a hole, it allows all that follow.
                for hole in page..data {
                    match open.file.read(geometry.start(hole), &mut [0]) {
                        Ok(_) => break,
                        Err(error) => note(open, hole, &error),
                    }
                }
                page = data;
                continue;
            }
            let hole = open.file.seek_hole(geometry.start(page))?;
            let end = if hole >= size { to } else { geometry.page_of(hole).clamp(page + 1, to) };
            let end = end.min(page + STEP);
            self.run(open, page, end, buffer);
            page = end;
        }
        Ok(())
    }

    /// Reads pages that lie on the disk; after an error one by one.
    fn run(&self, open: &Open, from: u64, to: u64, buffer: &mut [u8]) {
        let range = |page| self.range(open, page);
        let (start, end) = (range(from).0, range(to - 1).1);
        let length = (end - start) as usize;
        let mut good = 0;
        if open.file.read(start, &mut buffer[..length]).is_ok() {
            good = end - start;
        } else {
            for page in from..to {
                let (start, end) = range(page);
                match open.file.read(start, &mut buffer[..(end - start) as usize]) {
                    Ok(_) => good += end - start,
                    Err(error) => note(open, page, &error),
                }
            }
        }
        self.counts.bytes.fetch_add(good, Ordering::Relaxed);
        self.progress.done(((to - from) * PAGE as u64).min(open.bytes));
    }

    /// The plaintext bytes of a page.
    fn range(&self, open: &Open, page: u64) -> (u64, u64) {
        (self.geometry.start(page), self.geometry.start(page + 1).min(open.file.size()))
    }

    fn finish(&self, open: &Open) {
        let mut bad = std::mem::take(&mut *lock(&open.bad));
        if bad.is_empty() {
            return;
        }
        bad.sort_by_key(|(page, _)| *page);
        bad.dedup_by_key(|(page, _)| *page);
        let pages: Vec<u64> = bad.iter().map(|(page, _)| *page).collect();
        let lost = runs(&pages, |page| self.range(open, page));
        let io = bad.iter().any(|(_, trouble)| trouble.io);
        let words = in_words(&lost, open.pages);
        let what = format!("{words} cannot be read: {}", bad[0].1.why);
        let left = match pages.len() as u64 == open.pages {
            true => "nothing: every page is lost; restore the file from a backup of the store".to_owned(),
            false => format!("{words} lost, the rest readable"),
        };
        let (kind, cure) = if io { (Kind::Unreadable, Cure::None) } else { (Kind::Pages, Cure::AsideIfAsked) };
        let mut finding = open.place.finding(kind, what, left, cure);
        finding.id = id_text(&open.id);
        finding.inode = open.inode;
        finding.lost = lost;
        self.report(finding);
    }

    /// A file that can't be opened although header and key are good: which of its pages authenticate?
    fn closed(&self, place: &Place, header: &FileHeader, file: &File, keys: &PageKeys, error: &FileError) -> Finding {
        let io = matches!(error, FileError::Io(_));
        let scanned = self.salvage(file, keys);
        let left = match &scanned {
            Err(error) => format!("unknown: {error}"),
            Ok((_, 0, _)) => "nothing: no page authenticates; restore the file from a backup of the store".to_owned(),
            Ok((_, good, pages)) => format!(
                "nothing through a mount, but {good} of {pages} pages authenticate: with the lost ones from a backup of the store it opens again"
            ),
        };
        let (kind, cure) = match io {
            true => (Kind::Unreadable, Cure::None),
            false => (Kind::Pages, Cure::AsideIfAsked),
        };
        let mut finding = place.finding(kind, error.to_string(), left, cure);
        finding.id = id_text(&header.file);
        if let Ok((bad, _, _)) = scanned {
            finding.lost = runs(&bad, |page| (self.geometry.start(page), self.geometry.start(page + 1)));
        }
        finding
    }

    /// Tries every page by itself: those that are bad, how many are good or holes, and how many there are.
    fn salvage(&self, file: &File, keys: &PageKeys) -> io::Result<(Vec<u64>, u64, u64)> {
        let disk = RealDisk::new(file.try_clone()?.into());
        let pages = disk.len()? / PAGE as u64;
        let (mut bad, mut good) = (Vec::new(), 0);
        let mut opener = keys.opener();
        with_scratch(PAGE, |page, edge| {
            for index in 0..pages {
                let whole = disk.read_at(page, index * PAGE as u64)? == PAGE;
                let slot = &page[self.geometry.seal_at(index)..];
                let hole = index > 0 && is_hole(page);
                if whole && (hole || opener.open(index, slot, edge).is_ok()) {
                    good += u64::from(!hole);
                } else {
                    bad.push(index);
                }
            }
            Ok((bad, good, pages))
        })
    }
}

fn note(open: &Open, page: u64, error: &FileError) {
    let (why, io) = match error {
        FileError::Damaged { why, .. } => (why.to_string(), false),
        other => (other.to_string(), true),
    };
    lock(&open.bad).push((page, Trouble { why, io }));
}

/// A file without a header that can be trusted.
fn headless(place: &Place, first: First) -> Finding {
    let aside = Cure::Aside { home: Vec::new() };
    let lost = "nothing: the header holds the file's key; restore the file from a backup of the store";
    match first {
        First::Nothing if !place.is_bad() => place.finding(
            Kind::Leftover,
            "the file's creation was interrupted before it held anything",
            "it holds nothing",
            Cure::Remove,
        ),
        First::Nothing => {
            let what = "neither its name nor its contents are of this volume (it is empty)";
            place.finding(Kind::Foreign, what, "it is empty", aside)
        }
        First::Bad(what, Some(HeaderError::Version(_) | HeaderError::Field)) => {
            place.finding(Kind::Header, what, "all of it, with a newer hyokfs", Cure::None)
        }
        First::Bad(what, _) if place.is_bad() => {
            let what = format!("neither its name nor its contents are of this volume ({what})");
            place.finding(Kind::Foreign, what, "nothing that hyokfs can read", aside)
        }
        First::Bad(what, _) => place.finding(Kind::Header, what, lost, aside),
        // Not asked for.
        First::Header(_) => place.finding(Kind::Header, "", "", Cure::None),
    }
}

/// What is wrong with where a file stands and what it is called.
fn misplaced(place: &Place, header: &FileHeader) -> Option<Finding> {
    let home = match &header.parents {
        Parents::Bound(ids) => ids.clone(),
        Parents::Unbound => Vec::new(),
    };
    if place.dir.id.is_some_and(|dir| !header.parents.allow(&dir)) {
        let what = format!("the ciphertext of file {} was moved here behind hyokfs's back", header.file);
        let left = "all that is readable of it, in the directory that it belongs to";
        return Some(place.finding(Kind::Moved, what, left, Cure::Aside { home }));
    }
    match &place.named {
        Named::Bad(what) => {
            Some(place.finding(Kind::Name, what.clone(), "all of it but its name", Cure::Aside { home }))
        }
        Named::Good(_) | Named::Unknown => None,
    }
}
