//! How an inode is reached in the store: by a descriptor if there is one, else by one of its names.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};

use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Fs;
use super::error::FsError;
use super::inode::{Inode, Place, lock, read};
use super::types::Kind;
use crate::store::open_beneath;

/// The path through which the kernel follows a descriptor of ours. Only for calls that take no `O_PATH` descriptor.
pub(super) fn proc_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// How often an inode is looked for under its names before it counts as gone: each further try needs a rename or unlink
/// by another thread in the middle of the one before.
const TRIES: usize = 8;

/// Directory descriptors that are kept, oldest first: a clock with a second chance for those in use.
pub(super) struct Kept {
    queue: Mutex<VecDeque<Weak<Inode>>>,
    limit: usize,
}

impl Kept {
    pub fn new(limit: usize) -> Kept {
        Kept { queue: Mutex::default(), limit: limit.max(16) }
    }

    /// Notes that `inode` keeps a descriptor; takes others' away if there are too many.
    fn note(&self, inode: &Arc<Inode>) {
        // Descriptors are closed after the queue is unlocked: closing may be slow on a network filesystem.
        let mut closed = Vec::new();
        let mut queue = lock(&self.queue);
        queue.push_back(Arc::downgrade(inode));
        let mut turns = 2 * self.limit;
        while queue.len() > self.limit && turns > 0 {
            turns -= 1;
            let Some(weak) = queue.pop_front() else { break };
            let Some(old) = weak.upgrade() else { continue };
            let nameless = read(&old.places).list.is_empty();
            if nameless {
                // It can't be opened again; it goes with the inode.
            } else if old.used.swap(false, Ordering::Relaxed) || Arc::ptr_eq(&old, inode) {
                queue.push_back(weak);
            } else {
                closed.push(lock(&old.path).take());
            }
            drop(old);
        }
        drop(queue);
        drop(closed);
    }
}

impl Fs {
    /// An `O_PATH` descriptor of a directory, kept for the next time.
    pub(super) fn dir_fd(&self, dir: &Arc<Inode>) -> Result<Arc<OwnedFd>, FsError> {
        if let Some(fd) = &*lock(&dir.path) {
            dir.used.store(true, Ordering::Relaxed);
            return Ok(Arc::clone(fd));
        }
        let fd = Arc::new(self.open_node(dir, OFlags::PATH | OFlags::DIRECTORY)?);
        let kept = {
            let mut slot = lock(&dir.path);
            Arc::clone(slot.get_or_insert_with(|| Arc::clone(&fd)))
        };
        if Arc::ptr_eq(&kept, &fd) {
            self.kept.note(dir);
        }
        Ok(kept)
    }

    /// An `O_PATH` descriptor of anything.
    pub(super) fn path_fd(&self, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>, FsError> {
        if inode.kind == Kind::Directory {
            return self.dir_fd(inode);
        }
        if let Some(fd) = &*lock(&inode.path) {
            return Ok(Arc::clone(fd));
        }
        if let Some(live) = inode.live() {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            return Ok(Arc::new(rustix::fs::open(proc_path(live.file.disk()), flags, Mode::empty())?));
        }
        Ok(Arc::new(self.open_node(inode, OFlags::PATH)?))
    }

    /// Holds on to an inode that is about to lose a name: its descriptor keeps it reachable, and its number in use.
    pub(super) fn pin(&self, inode: &Arc<Inode>) -> Result<(), FsError> {
        if lock(&inode.path).is_some() || inode.live().is_some() {
            // The open state may be closed before the inode is forgotten, so a file needs its own descriptor too.
            if inode.kind != Kind::File || lock(&inode.path).is_some() {
                return Ok(());
            }
        }
        let fd = self.path_fd(inode)?;
        lock(&inode.path).get_or_insert(fd);
        Ok(())
    }

    /// After a name went: an inode with other names needs no descriptor, one without any no narrower parents.
    pub(super) fn unpin(&self, inode: &Arc<Inode>) {
        if read(&inode.places).list.is_empty() {
            // It would be kept on the disk until the next sync.
            lock(&self.narrow).retain(|moved| !Arc::ptr_eq(moved, inode));
        } else if inode.kind != Kind::Directory {
            let fd = lock(&inode.path).take();
            drop(fd);
        }
    }

    /// Reaches `inode` by its own descriptor, else by a directory descriptor and a name that lead to it. `by_name` gives
    /// nothing if they lead to another inode.
    fn reach<T>(
        &self,
        inode: &Arc<Inode>,
        by_fd: impl Fn(&OwnedFd) -> Result<T, FsError>,
        by_name: impl Fn(&OwnedFd, &OsStr) -> Result<Option<T>, FsError>,
    ) -> Result<T, FsError> {
        for _ in 0..TRIES {
            let own = lock(&inode.path).clone();
            if let Some(fd) = own {
                return by_fd(&fd);
            }
            let places: Vec<Place> = read(&inode.places).list.clone();
            for place in &places {
                // The directory must not be opened under the lock of the names (it is reached the same way), so
                // whether the name still stands is asked again under the lock.
                let dir = self.dir_fd(&place.parent)?;
                let names = read(&inode.places);
                let same = |p: &Place| Arc::ptr_eq(&p.parent, &place.parent) && p.entry == place.entry;
                if !names.list.iter().any(same) {
                    continue;
                }
                match by_name(&dir, &place.entry) {
                    Ok(Some(done)) => return Ok(done),
                    Ok(None) | Err(FsError::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Err(FsError::os(Errno::STALE))
    }

    /// Opens the inode itself, and proves that it is the same one.
    pub(super) fn open_node(&self, inode: &Arc<Inode>, flags: OFlags) -> Result<OwnedFd, FsError> {
        self.reach(
            inode,
            |fd| {
                if inode.kind == Kind::Directory {
                    return Ok(open_beneath(fd, OsStr::new("."), flags, Mode::empty())?);
                }
                Ok(rustix::fs::open(proc_path(fd), flags | OFlags::CLOEXEC, Mode::empty())?)
            },
            |dir, entry| {
                let fd = open_beneath(dir, entry, flags, Mode::empty())?;
                Ok(inode.is(&rustix::fs::fstat(&fd)?).then_some(fd))
            },
        )
    }

    /// The backing inode's attributes.
    pub(super) fn stat(&self, inode: &Arc<Inode>) -> Result<Stat, FsError> {
        if let Some(live) = inode.live() {
            return Ok(rustix::fs::fstat(live.file.disk())?);
        }
        self.reach(
            inode,
            |fd| Ok(rustix::fs::fstat(fd)?),
            |dir, entry| {
                let stat = rustix::fs::statat(dir, entry, AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(inode.is(&stat).then_some(stat))
            },
        )
    }

    /// `stat` of an entry.
    pub(super) fn stat_entry(&self, dir: &OwnedFd, entry: &[u8]) -> Result<Stat, FsError> {
        Ok(rustix::fs::statat(dir, OsStr::from_bytes(entry), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}
