//! Inodes and the table that finds them by number.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use rustix::fs::{FileType, Stat};

use super::live::Live;
use super::types::{Ino, Kind, ROOT};
use crate::format::{DirId, FileId};

/// Locks; nothing here leaves half-made state behind in a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// One name of an inode.
#[derive(Clone)]
pub(super) struct Place {
    /// The directory it stands in.
    pub parent: Arc<Inode>,
    /// The entry's name in the store.
    pub entry: Arc<OsStr>,
    /// Its plaintext name, until a lock.
    pub plain: Option<Arc<OsStr>>,
}

/// All names known of an inode.
#[derive(Default)]
pub(super) struct Places {
    pub list: Vec<Place>,
    /// The directory that the last removed name stood in: the file stays bound to it while it is held open.
    pub last: Option<DirId>,
}

/// Files made in a directory since its last sync.
#[derive(Default)]
pub(super) struct Born {
    pub files: Vec<Weak<Inode>>,
    /// More than are remembered, so the whole store is to be synced.
    pub many: bool,
}

/// One inode, while the kernel, a handle or an entry below refers to it.
pub(super) struct Inode {
    pub ino: Ino,
    pub kind: Kind,
    pub dev: u64,
    pub backing: u64,
    pub places: RwLock<Places>,
    /// An `O_PATH` descriptor: of a directory in use, or of what has no name any more.
    pub path: Mutex<Option<Arc<OwnedFd>>>,
    /// Whether `path` was used since the clock's hand passed.
    pub used: AtomicBool,
    /// Directories: taken for reading by a look-up, for writing by a change of the entries.
    pub names: RwLock<()>,
    /// Directories: the authenticated id.
    pub dir: OnceLock<DirId>,
    /// Directories: what was made since the last sync.
    pub born: Mutex<Born>,
    /// Group id << 16 | mode bits, as last seen.
    pub perm: AtomicU64,
    /// Files: held while the file is opened, closed, or its header changed.
    pub opening: Mutex<()>,
    /// Files: the shared open state.
    pub live: RwLock<Option<Arc<Live>>>,
    /// Files: the id, once known.
    pub file: OnceLock<FileId>,
    /// Handles.
    pub opens: AtomicU32,
    /// Handles that may write.
    pub writers: AtomicU32,
    /// The table's epoch in which it was last compared with the store.
    pub epoch: AtomicU64,
    /// It was changed or removed behind hyokfs's back while the volume was locked, and the kernel may remember more of it.
    pub stale: AtomicBool,
    /// Files: the size that the kernel was last told.
    pub told: AtomicU64,
    table: Weak<Table>,
}

impl Inode {
    /// The shared open state, if the file is open.
    pub fn live(&self) -> Option<Arc<Live>> {
        if self.kind != Kind::File {
            return None;
        }
        read(&self.live).clone()
    }

    /// Remembers a name.
    pub fn add_place(&self, parent: &Arc<Inode>, entry: &[u8], plain: &OsStr) {
        use std::os::unix::ffi::OsStrExt;
        let entry = OsStr::from_bytes(entry);
        let same = |place: &Place| Arc::ptr_eq(&place.parent, parent) && &*place.entry == entry;
        if read(&self.places).list.iter().any(|place| same(place) && place.plain.is_some()) {
            return;
        }
        let mut places = write(&self.places);
        places.list.retain(|place| !same(place));
        places.list.push(Place { parent: Arc::clone(parent), entry: entry.into(), plain: Some(plain.into()) });
    }

    /// The inode's mode bits and group as last seen.
    pub fn perm(&self) -> (u32, u32) {
        let packed = self.perm.load(Ordering::Relaxed);
        ((packed & 0xffff) as u32, (packed >> 16) as u32)
    }

    pub fn saw(&self, stat: &Stat) {
        let packed = u64::from(stat.st_gid) << 16 | u64::from(stat.st_mode & 0o7777);
        self.perm.store(packed, Ordering::Relaxed);
    }

    /// Whether `stat` is of this inode.
    pub fn is(&self, stat: &Stat) -> bool {
        self.dev == stat.st_dev && self.backing == stat.st_ino
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            table.gone(self);
        }
    }
}

/// A slot of the table: the inode while anything holds it, and the kernel's own hold.
struct Slot {
    weak: Weak<Inode>,
    held: Option<Arc<Inode>>,
    lookups: u64,
}

const SHARDS: usize = 64;

/// All inodes that are in use. An inode's number is the store's own if it lies on the store's device (so numbers stay
/// the same over mounts), else one above 2⁶³.
pub(super) struct Table {
    shards: Vec<Mutex<HashMap<Ino, Slot>>>,
    foreign: Mutex<HashMap<(u64, u64), Ino>>,
    next: AtomicU64,
    device: u64,
    root: u64,
    /// Counts the times that the volume was opened again after a lock.
    epoch: AtomicU64,
}

impl Table {
    /// The table of a store whose root is `root`.
    pub fn new(root: &Stat) -> Arc<Table> {
        Arc::new(Table {
            shards: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect(),
            foreign: Mutex::new(HashMap::new()),
            next: AtomicU64::new(1 << 63),
            device: root.st_dev,
            root: root.st_ino,
            epoch: AtomicU64::new(0),
        })
    }

    /// How often the volume was opened again after a lock.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// From now on every inode is compared with the store before it is used.
    pub fn next_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Slot>> {
        // Neighbouring inode numbers fall into different shards.
        &self.shards[(ino % SHARDS as u64) as usize]
    }

    /// The number of what `stat` shows.
    pub fn number(&self, device: u64, backing: u64) -> Ino {
        if device == self.device {
            if backing == self.root {
                return ROOT;
            }
            if backing != ROOT && backing < 1 << 63 {
                return backing;
            }
        }
        *lock(&self.foreign).entry((device, backing)).or_insert_with(|| self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The number of an entry on the store's own device, as a directory listing shows it.
    pub fn listed(&self, backing: u64) -> Ino {
        self.number(self.device, backing)
    }

    /// Finds an inode in use.
    pub fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        let shard = lock(self.shard(ino));
        let slot = shard.get(&ino)?;
        slot.held.clone().or_else(|| slot.weak.upgrade())
    }

    /// Finds the inode that `stat` shows, if it is in use.
    pub fn find(&self, stat: &Stat) -> Option<Arc<Inode>> {
        self.get(self.number(stat.st_dev, stat.st_ino))
    }

    /// Finds or makes the inode that `stat` shows, and counts `lookups` more references of the kernel.
    pub fn intern(self: &Arc<Self>, stat: &Stat, lookups: u64) -> Option<Arc<Inode>> {
        let kind = Kind::of(FileType::from_raw_mode(stat.st_mode))?;
        let ino = self.number(stat.st_dev, stat.st_ino);
        // The old inode of a number must not be dropped under the lock that its drop takes.
        let mut old = None;
        let inode = {
            let mut shard = lock(self.shard(ino));
            let known = shard.get_mut(&ino).and_then(|slot| {
                let inode = slot.held.clone().or_else(|| slot.weak.upgrade())?;
                if inode.kind != kind {
                    old = Some((inode, slot.held.take()));
                    return None;
                }
                slot.lookups += lookups;
                if slot.lookups > 0 && slot.held.is_none() {
                    slot.held = Some(Arc::clone(&inode));
                }
                Some(inode)
            });
            known.unwrap_or_else(|| {
                let inode = Arc::new(self.make(ino, kind, stat));
                let held = (lookups > 0).then(|| Arc::clone(&inode));
                shard.insert(ino, Slot { weak: Arc::downgrade(&inode), held, lookups });
                inode
            })
        };
        drop(old);
        inode.saw(stat);
        Some(inode)
    }

    fn make(self: &Arc<Self>, ino: Ino, kind: Kind, stat: &Stat) -> Inode {
        Inode {
            ino,
            kind,
            dev: stat.st_dev,
            backing: stat.st_ino,
            places: RwLock::default(),
            path: Mutex::default(),
            used: AtomicBool::new(false),
            names: RwLock::new(()),
            dir: OnceLock::new(),
            born: Mutex::default(),
            perm: AtomicU64::new(0),
            opening: Mutex::new(()),
            live: RwLock::default(),
            file: OnceLock::new(),
            opens: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            epoch: AtomicU64::new(self.epoch()),
            stale: AtomicBool::new(false),
            told: AtomicU64::new(0),
            table: Arc::downgrade(self),
        }
    }

    /// The kernel drops `count` of its references.
    pub fn forget(&self, ino: Ino, count: u64) {
        let dropped = {
            let mut shard = lock(self.shard(ino));
            let Some(slot) = shard.get_mut(&ino) else { return };
            slot.lookups = slot.lookups.saturating_sub(count);
            if slot.lookups == 0 && ino != ROOT { slot.held.take() } else { None }
        };
        drop(dropped);
    }

    fn gone(&self, inode: &Inode) {
        let mut shard = lock(self.shard(inode.ino));
        if shard.get(&inode.ino).is_some_and(|slot| slot.weak.strong_count() == 0) {
            shard.remove(&inode.ino);
            if inode.ino >= 1 << 63 {
                lock(&self.foreign).remove(&(inode.dev, inode.backing));
            }
        }
    }

    /// All inodes in use; with `held`, only those that the kernel refers to.
    pub fn all(&self, held: bool) -> Vec<Arc<Inode>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            all.extend(shard.values().filter_map(|slot| match (&slot.held, held) {
                (Some(inode), _) => Some(Arc::clone(inode)),
                (None, false) => slot.weak.upgrade(),
                (None, true) => None,
            }));
        }
        all
    }
}
