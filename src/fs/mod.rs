//! POSIX semantics over inodes, names and handles. Knows no FUSE types; every operation may be called from any thread.
//!
//! # How an inode is reached
//! An `Inode` exists while the kernel refers to it (look-ups not yet forgotten), while it is open, or while an
//! entry below it does. It knows its *places*: (parent inode, name in the store). Nothing is ever reached by a path.
//! * Directories keep an `O_PATH` descriptor while they are in use; beyond [`FsOptions::max_path_fds`] a clock takes the
//!   least used ones away, and they are opened again through their place.
//! * Other inodes keep none: `stat` and `open` go through a place and prove by device and inode number that it leads to
//!   the same inode. Before an inode loses a name (unlink, being replaced), it is *pinned*: it gets an `O_PATH`
//!   descriptor of its own, kept until it has another name or the kernel forgets it. So what was unlinked stays
//!   reachable, and its inode number is not given to another file while the kernel still uses it.
//!
//! # Order of locks
//! A thread takes them only downwards: `Inode::names` of directories (several: by inode number) → `Inode::opening` →
//! `Inode::places` (several: by inode number) → `Inode::path` → the table's shards → everything else. The directory
//! descriptors that an operation needs are fetched before `places` is taken. `opening` may be held over a call to the key
//! service, so it is per file, and only operations on that same closed file wait for it.
//!
//! # Link targets
//! A symlink's sealed target is the store symlink's own text: up to 3,031 bytes of plaintext on ext4, 728 on XFS, whose
//! symlinks hold 1,023 bytes. Longer targets give `ENAMETOOLONG`.

mod ahead;
mod anew;
mod attr;
mod dirs;
mod error;
mod gate;
mod inode;
mod io;
mod links;
mod live;
mod nodes;
mod reach;
mod readdir;
mod rename;
mod types;
mod xattr;
mod young;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use rustix::fs::Mode;
use rustix::io::Errno;

pub use error::FsError;
pub use types::{Attr, Caller, DirEntry, Fh, Ino, KeyNeed, Kind, ROOT, SetAttr, Settled, Statfs, TimeOrNow};

use crate::crypto::Suite;
use crate::crypto::kdf::VolumeKeys;
use crate::format::VolumeId;
use crate::format::name::NameMode;
use crate::format::volume::{Granularity, Volume};
use crate::keyring::Keyring;
use crate::store::Store;
use inode::{Inode, Table, lock, read, write};
use live::Live;
use reach::Kept;
use readdir::Stream;

/// Choices of a mount.
#[derive(Debug, Clone)]
pub struct FsOptions {
    /// Descriptors of directories that are kept at most.
    pub max_path_fds: usize,
    /// Whether the key service is remote: then opens may wait, and listing a directory fetches its files' keys ahead.
    pub remote: bool,
}

impl Default for FsOptions {
    /// A quarter of the process's descriptors (never more than 65,536), and a local keystore.
    fn default() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
        FsOptions { max_path_fds: usize::try_from(limit / 4).unwrap_or(65_536).min(65_536), remote: false }
    }
}

/// What is still answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Everything.
    Open = 0,
    /// Only what the kernel's cache still has to write.
    Gated = 1,
    /// Nothing, but forgetting and closing.
    Closed = 2,
}

/// An open file or directory.
struct Handle {
    inode: Arc<Inode>,
    live: Option<Arc<Live>>,
    /// The file's failed syncs that this handle's `fsync` has told, or that were before it.
    told: AtomicU64,
    write: bool,
    stream: Option<Mutex<Stream>>,
}

impl Handle {
    fn file(inode: Arc<Inode>, live: Arc<Live>, write: bool) -> Handle {
        let told = AtomicU64::new(live.file.failures());
        Handle { inode, live: Some(live), told, write, stream: None }
    }

    fn directory(inode: Arc<Inode>, stream: Stream) -> Handle {
        Handle { inode, live: None, told: AtomicU64::new(0), write: false, stream: Some(Mutex::new(stream)) }
    }
}

const HANDLE_SHARDS: u64 = 16;

/// A mounted volume.
pub struct Fs {
    store: Arc<Store>,
    volume: VolumeId,
    suite: Suite,
    names: NameMode,
    header_len: usize,
    keys: RwLock<Option<Arc<VolumeKeys>>>,
    keyring: Arc<Keyring>,
    table: Arc<Table>,
    root: Arc<Inode>,
    handles: Vec<RwLock<HashMap<Fh, Arc<Handle>>>>,
    next_handle: AtomicU64,
    phase: AtomicU8,
    kept: Kept,
    written: AtomicU64,
    /// Plaintext bytes of the kernel's cache that were refused.
    refused: AtomicU64,
    settled: AtomicU64,
    /// Inodes whose parents are wider than needed, until their move is durable.
    narrow: Mutex<Vec<Arc<Inode>>>,
    /// Whether `linkat` takes a bare descriptor (needs `CAP_DAC_READ_SEARCH`).
    bare_link: AtomicBool,
    /// Whether the store's filesystem makes files without a name.
    nameless: AtomicBool,
    superuser: bool,
    group: u32,
    warned: AtomicBool,
    prefetch: ahead::Prefetcher,
    options: FsOptions,
}

impl Fs {
    /// Opens the volume in `store`. The caller holds the store's lock, and has raised the limit of descriptors. Clears
    /// the process's umask: the kernel has applied the callers'.
    ///
    /// # Errors
    /// [`FsError::Io`] if the store's root cannot be read.
    pub fn mount(
        store: Arc<Store>,
        volume: Volume,
        keyring: Arc<Keyring>,
        options: FsOptions,
    ) -> Result<Arc<Fs>, FsError> {
        rustix::process::umask(Mode::empty());
        let stat = rustix::fs::fstat(store.root())?;
        let table = Table::new(&stat);
        let root = table.intern(&stat, 1).ok_or_else(|| FsError::os(Errno::NOTDIR))?;
        *lock(&root.path) = Some(Arc::new(store.root().try_clone_to_owned()?));
        let one_by_one = volume.record.granularity != Granularity::Volume;
        let fs = Arc::new_cyclic(|weak| Fs {
            store,
            volume: volume.record.volume,
            suite: volume.record.suite,
            names: volume.record.names,
            header_len: volume.record.header_len.into(),
            keys: RwLock::new(Some(Arc::new(volume.keys))),
            keyring,
            table,
            root,
            handles: (0..HANDLE_SHARDS).map(|_| RwLock::default()).collect(),
            next_handle: AtomicU64::new(1),
            phase: AtomicU8::new(Phase::Open as u8),
            kept: Kept::new(options.max_path_fds),
            written: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            narrow: Mutex::default(),
            bare_link: AtomicBool::new(true),
            nameless: AtomicBool::new(true),
            superuser: rustix::process::geteuid().is_root(),
            group: rustix::process::getegid().as_raw(),
            warned: AtomicBool::new(false),
            prefetch: ahead::Prefetcher::start(weak.clone(), options.remote && one_by_one),
            options,
        });
        let keys = fs.enter()?;
        fs.dir_id(&keys, &fs.root)?;
        fs.sweep(fs.root.as_ref(), fs.store.root());
        Ok(fs)
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Open,
            1 => Phase::Gated,
            _ => Phase::Closed,
        }
    }

    /// The volume's keys, if the volume is open.
    fn enter(&self) -> Result<Arc<VolumeKeys>, FsError> {
        self.check_open()?;
        read(&self.keys).clone().ok_or(FsError::Locked)
    }

    /// As [`Fs::enter`], for what needs none of the volume's keys.
    fn check_open(&self) -> Result<(), FsError> {
        if self.phase() == Phase::Open { Ok(()) } else { Err(FsError::Locked) }
    }

    /// Lets through what a gated volume still takes: the write-back of the kernel's cache.
    fn enter_write_back(&self) -> Result<(), FsError> {
        if self.phase() == Phase::Closed { Err(FsError::Locked) } else { Ok(()) }
    }

    /// An inode the kernel knows.
    fn inode(&self, ino: Ino) -> Result<Arc<Inode>, FsError> {
        if ino == ROOT {
            return Ok(Arc::clone(&self.root));
        }
        let inode = self.table.get(ino).ok_or_else(|| FsError::os(Errno::STALE))?;
        self.compare(&inode)?;
        Ok(inode)
    }

    /// A directory the kernel knows.
    fn dir(&self, ino: Ino) -> Result<Arc<Inode>, FsError> {
        let dir = self.inode(ino)?;
        if dir.kind == Kind::Directory { Ok(dir) } else { Err(FsError::os(Errno::NOTDIR)) }
    }

    fn handles(&self, fh: Fh) -> &RwLock<HashMap<Fh, Arc<Handle>>> {
        &self.handles[(fh % HANDLE_SHARDS) as usize]
    }

    fn handle(&self, fh: Fh) -> Result<Arc<Handle>, FsError> {
        let handle = read(self.handles(fh)).get(&fh).cloned().ok_or_else(|| FsError::os(Errno::BADF))?;
        self.compare(&handle.inode)?;
        Ok(handle)
    }

    fn add_handle(&self, handle: Handle) -> Fh {
        if handle.write {
            handle.inode.writers.fetch_add(1, Ordering::AcqRel);
        }
        let fh = self.next_handle.fetch_add(1, Ordering::Relaxed);
        write(self.handles(fh)).insert(fh, Arc::new(handle));
        fh
    }

    fn take_handle(&self, fh: Fh) -> Option<Arc<Handle>> {
        let handle = write(self.handles(fh)).remove(&fh)?;
        if handle.write {
            handle.inode.writers.fetch_sub(1, Ordering::AcqRel);
        }
        Some(handle)
    }

    /// The kernel drops `count` references to an inode.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.table.forget(ino, count);
    }

    /// Plaintext bytes taken by [`Fs::write`] since the mount.
    pub fn bytes_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Plaintext bytes of the kernel's cache that were refused since the mount: what a lock has given up.
    pub fn bytes_refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether nothing is answered any more.
    pub fn is_closed(&self) -> bool {
        self.phase() == Phase::Closed
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Whether an operation would wait for the key service. Waits for nothing itself, so it may err towards `true`.
    pub fn may_wait(&self, need: KeyNeed) -> bool {
        if !self.options.remote || self.phase() != Phase::Open {
            return false;
        }
        match need {
            KeyNeed::Create(dir) => {
                let id = self.dir(dir).ok().and_then(|dir| dir.dir.get().copied());
                id.is_none_or(|id| !self.keyring.has_ready(&id))
            }
            KeyNeed::Open(ino) => {
                self.inode(ino).is_ok_and(|inode| inode.kind == Kind::File && self.open_may_wait(&inode))
            }
        }
    }
}
