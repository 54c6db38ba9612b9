//! Reads file headers ahead of opens and suggests their keys to the keyring, on one thread of its own, so that a reader
//! of many small files does not wait for the key service at each.
//!
//! A listed directory's files are suggested. When the directory above was listed just before, somebody walks a tree:
//! then the directories below and beside it are swept, too, in the store's order, which is the order in which `grep`,
//! `find`, `cp` and `tar` go. How far the sweep runs ahead is the keyring's business: it takes suggestions only as fast
//! as earlier ones are used ([`Suggested::Full`]), so that listing alone costs next to no calls.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::Fs;
use super::error::FsError;
use super::inode::{Inode, read};
use super::live::{Head, read_head};
use super::readdir::Stream;
use crate::crypto::kdf::VolumeKeys;
use crate::format::header::FileHeader;
use crate::format::name::{self, Entry};
use crate::format::slots::KeySlot;
use crate::format::{DirId, FileId};
use crate::keyring::Suggested;
use crate::store::open_beneath;

/// Directories that are swept at one time; each holds a descriptor.
const DEPTH: usize = 48;
/// Two listings, one below the other, within this time are a walk.
const WALK: Duration = Duration::from_secs(2);
/// How often a sweep that ran far enough ahead looks whether its reader has followed.
const LOOK: Duration = Duration::from_millis(1);
/// A sweep whose reader does not follow for this long is given up.
const GIVE_UP: Duration = Duration::from_secs(3);
/// Directories that are remembered as swept.
const REMEMBERED: usize = 1 << 16;
/// Files of a directory that are looked at for its group key.
const LOOKED_AT: usize = 8;

/// A directory was listed from its beginning.
pub(super) struct Listed {
    dir: Weak<Inode>,
    id: DirId,
    above: Option<(Weak<Inode>, DirId)>,
}

/// The thread's door.
pub(super) struct Prefetcher {
    listings: Option<SyncSender<Listed>>,
}

impl Prefetcher {
    /// Starts the thread, if keys come from afar one by one.
    pub fn start(fs: Weak<Fs>, wanted: bool) -> Prefetcher {
        if !wanted {
            return Prefetcher { listings: None };
        }
        let (listings, listed) = sync_channel(64);
        let sweep = Sweep { fs, stack: Vec::new(), seen: HashMap::new(), listed: HashMap::new() };
        let thread = std::thread::Builder::new().name("hyokfs-ahead".to_owned()).spawn(move || sweep.run(&listed));
        if let Err(error) = &thread {
            tracing::warn!(%error, "no thread for fetching keys ahead: first opens will wait for the key service");
        }
        Prefetcher { listings: thread.is_ok().then_some(listings) }
    }

    /// Tells of a listing. Never waits.
    pub fn listed(&self, dir: &Arc<Inode>, id: DirId) {
        let Some(listings) = &self.listings else { return };
        let above = read(&dir.places).list.first().and_then(|place| {
            let id = *place.parent.dir.get()?;
            Some((Arc::downgrade(&place.parent), id))
        });
        // Too many listings at once: then their opens fetch the keys themselves.
        let _ = listings.try_send(Listed { dir: Arc::downgrade(dir), id, above });
    }
}

/// A directory that is being swept.
struct Level {
    id: DirId,
    entries: Stream,
    /// A file whose suggestion was not taken yet.
    pending: Option<(FileId, Vec<KeySlot>)>,
    /// Whether its files are suggested, and what is below it is swept.
    files: bool,
    descend: bool,
}

/// How a step of the sweep went.
enum Step {
    /// There may be more to do.
    On,
    /// Far enough ahead.
    Enough,
    /// Nothing is fetched ahead now.
    Stop,
}

struct Sweep {
    fs: Weak<Fs>,
    stack: Vec<Level>,
    /// Directories that were swept, and whether with what is below them.
    seen: HashMap<DirId, bool>,
    /// When directories were listed.
    listed: HashMap<DirId, Instant>,
}

impl Sweep {
    /// Ends when the filesystem, and with it the sender, goes.
    fn run(mut self, listings: &Receiver<Listed>) {
        let mut waits_since: Option<Instant> = None;
        loop {
            if self.stack.is_empty() || waits_since.is_some() {
                // The thread lives on through locks: nothing of a header's check may stay on its stack while it waits.
                crate::sys::stack::scrub();
            }
            let message = if self.stack.is_empty() {
                listings.recv().map_err(|_| TryRecvError::Disconnected)
            } else if waits_since.is_some() {
                listings.recv_timeout(LOOK).map_err(|error| match error {
                    RecvTimeoutError::Timeout => TryRecvError::Empty,
                    RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                })
            } else {
                listings.try_recv()
            };
            let Some(fs) = self.fs.upgrade() else { return };
            match message {
                Ok(listed) => {
                    if self.stack.is_empty() {
                        // Keys of an earlier walk may have left the cache since.
                        self.seen.clear();
                    }
                    self.hear(&fs, listed);
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            match self.step(&fs) {
                Step::On => waits_since = None,
                Step::Enough => {
                    let since = *waits_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > GIVE_UP {
                        self.forget();
                        waits_since = None;
                    }
                }
                Step::Stop => {
                    self.forget();
                    waits_since = None;
                }
            }
        }
    }

    fn forget(&mut self) {
        self.stack.clear();
        self.seen.clear();
    }

    fn hear(&mut self, fs: &Fs, listed: Listed) {
        let now = Instant::now();
        if self.listed.len() >= REMEMBERED {
            self.listed.clear();
        }
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        let recent = |at: &Instant| now.duration_since(*at) < WALK;
        let above = listed.above.filter(|(_, id)| self.listed.get(id).is_some_and(recent));
        self.listed.insert(listed.id, now);
        let walk = above.is_some();
        if let Some((dir, id)) = above {
            self.enter(fs, &dir, id, true);
        }
        self.enter(fs, &listed.dir, listed.id, walk);
    }

    /// Sweeps a directory next, unless it was.
    fn enter(&mut self, fs: &Fs, dir: &Weak<Inode>, id: DirId, descend: bool) {
        let before = self.seen.get(&id).copied();
        if before == Some(true) || before == Some(descend) {
            return;
        }
        if let Some(level) = self.stack.iter_mut().find(|level| level.id == id) {
            // What was passed already is not gone back to; directories mostly come with their listing's first files.
            level.descend = descend;
            self.seen.insert(id, descend);
            return;
        }
        let Some(path) = dir.upgrade().and_then(|dir| fs.dir_fd(&dir).ok()) else { return };
        if let Ok(fd) = open_beneath(&*path, OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
            self.push(fd, id, before.is_none(), descend);
        }
    }

    fn push(&mut self, fd: OwnedFd, id: DirId, files: bool, descend: bool) {
        self.seen.insert(id, descend);
        if self.stack.len() >= DEPTH {
            self.stack.remove(0);
        }
        self.stack.push(Level { id, entries: Stream::new(fd), pending: None, files, descend });
    }

    /// Looks at one entry.
    fn step(&mut self, fs: &Fs) -> Step {
        let Ok(keys) = fs.enter() else { return Step::Stop };
        let Some(level) = self.stack.last_mut() else { return Step::On };
        let wanted = match level.pending.take() {
            Some(wanted) => Some(wanted),
            None => match level.entries.next() {
                Ok(Some(entry)) => match self.look(fs, &keys, &entry.name, entry.kind) {
                    Some(wanted) => Some(wanted),
                    None => return Step::On,
                },
                Ok(None) | Err(_) => {
                    self.stack.pop();
                    return Step::On;
                }
            },
        };
        let (Some((file, slots)), Some(level)) = (wanted, self.stack.last_mut()) else { return Step::On };
        match fs.keyring.suggest(file, slots.clone()) {
            Suggested::Taken | Suggested::Needless => Step::On,
            Suggested::Full => {
                level.pending = Some((file, slots));
                Step::Enough
            }
            Suggested::NotNow => Step::Stop,
        }
    }

    /// What the entry is: a file to suggest, or a directory to sweep next.
    fn look(&mut self, fs: &Fs, keys: &VolumeKeys, entry: &[u8], kind: FileType) -> Option<(FileId, Vec<KeySlot>)> {
        let level = self.stack.last()?;
        if entry == b"." || entry == b".." || !matches!(name::classify(entry), Entry::Short | Entry::Long) {
            return None;
        }
        let (name, above) = (OsStr::from_bytes(entry), level.entries.fd());
        let kind = match kind {
            FileType::Unknown => {
                let stat = rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        match kind {
            FileType::RegularFile if level.files => fs.head_in(keys, above, &level.id, name),
            FileType::Directory if level.descend => {
                let fd = open_beneath(above, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).ok()?;
                let record = fs.read_record(keys, &fd, 0).ok()?;
                let own = record.parents.contains(&level.id);
                if own && self.seen.get(&record.dir) != Some(&true) {
                    let files = !self.seen.contains_key(&record.dir);
                    self.push(fd, record.dir, files, true);
                }
                None
            }
            _ => None,
        }
    }
}

impl Fs {
    /// The id and slots of the file `name` in a directory of the store; none if its key is here already, or if it is
    /// not to be trusted.
    fn head_in(&self, keys: &VolumeKeys, dir: &OwnedFd, id: &DirId, name: &OsStr) -> Option<(FileId, Vec<KeySlot>)> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok().filter(Fs::is_file)?;
        let known = self.table.find(&stat).and_then(|inode| inode.file.get().copied());
        if known.is_some_and(|file| self.keyring.cached(&file).is_some()) {
            return None;
        }
        let header = self.read_header(keys, dir, name)?;
        header.parents.allow(id).then_some((header.file, header.slots))
    }

    /// The authentic header of a file in a directory of the store.
    fn read_header(&self, keys: &VolumeKeys, dir: &OwnedFd, name: &OsStr) -> Option<FileHeader> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME;
        let opened = open_beneath(dir, name, flags, Mode::empty());
        let opened = opened.or_else(|_| open_beneath(dir, name, flags - OFlags::NOATIME, Mode::empty()));
        match read_head(&File::from(opened.ok()?), self.header_len) {
            Ok(Head::Whole(bytes)) => FileHeader::decode(&bytes, &keys.header, self.volume).ok(),
            _ => None,
        }
    }

    /// Before a new file of `dir` gets its key: where each directory has a group key, the one that its files have
    /// already is used again, so that opening all of them stays one call.
    pub(super) fn find_group(&self, keys: &VolumeKeys, dir: &Arc<Inode>, id: &DirId) {
        if !self.keyring.wants_group_of(id) {
            return;
        }
        let Ok(fd) = self.dir_fd(dir) else { return };
        let mut looked_at = 0;
        // The error is no error: it ends the listing.
        let _ = super::dirs::scan(&*fd, |entry, kind| {
            if !matches!(name::classify(entry), Entry::Short | Entry::Long)
                || !matches!(kind, FileType::RegularFile | FileType::Unknown)
            {
                return Ok(());
            }
            let header = self.read_header(keys, &fd, OsStr::from_bytes(entry));
            looked_at += 1;
            let found = header.is_some_and(|header| self.keyring.adopt(id, &header.slots));
            if found || looked_at >= LOOKED_AT { Err(FsError::NotFound) } else { Ok(()) }
        });
    }

    /// Whether opening a file would wait for the key service, by its header where it was not read yet.
    pub(super) fn open_may_wait(&self, inode: &Arc<Inode>) -> bool {
        if inode.live().is_some_and(|live| !live.file.is_locked())
            || inode.file.get().is_some_and(|file| self.keyring.cached(file).is_some())
        {
            return false;
        }
        let Ok(keys) = self.enter() else { return false };
        let Ok(opened) = self.open_node(inode, OFlags::RDONLY | OFlags::NONBLOCK) else { return true };
        match read_head(&File::from(opened), self.header_len) {
            Ok(Head::Whole(bytes)) => match FileHeader::decode(&bytes, &keys.header, self.volume) {
                Ok(header) => self.keyring.would_wait(&header.file, &header.slots),
                // Refused without a key.
                Err(_) => false,
            },
            // Made anew, perhaps.
            Ok(Head::Unfinished) => true,
            Err(_) => false,
        }
    }
}
