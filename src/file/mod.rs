//! Plaintext bytes over sealed pages.
//!
//! A [`PageFile`] is one open file. It turns reads and writes of plaintext into reads and writes of whole sealed pages
//! ([`crate::format::page`]), and keeps the promise that a power cut never takes a byte that a sync acknowledged:
//!
//! * every page is written whole, in one aligned write, so a power cut leaves the old page or the new one;
//! * the size is told by the length of the ciphertext file alone (the *size tail*), in memory until [`PageFile::put_tail`];
//! * a last page that is longer than its tail (*overlong*) is sealed anew and synced before the file grows over it;
//! * page 0 records a *floor*, below which nothing may be missing; it is put at leisure, and lowered durably before a
//!   truncation or punch goes below it.
//!
//! There must be one `PageFile` per ciphertext file at a time.

mod error;
mod read;
mod shape;
mod state;
mod sync;
mod write;

pub use error::{Damage, FileError};
pub use state::Snapshot;

use std::sync::Arc;

use crate::format::page::{Geometry, PAGE, PREFIX, PageError, PageKeys, SPARSE, is_hole};
use crate::store::Disk;
use crate::sys::aligned::with_scratch;
use crate::sys::sync::{
    AtomicU64, Mutex, Ordering, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};
use state::{Floor, State};

/// Pages that are read or written at once: a request of 1 MiB at any offset fits.
const RUN: u64 = 264;

/// The plaintext size of a file, from the length of its ciphertext file alone. `header_len` is the volume's.
///
/// # Errors
/// [`FileError::Unfinished`] where the file is shorter than a page; show such a file as empty.
pub fn plain_size(cipher_len: u64, header_len: usize) -> Result<u64, FileError> {
    Geometry::new(header_len)?.plain_size(cipher_len).ok_or(FileError::Unfinished)
}

/// One open file: plaintext bytes over the sealed pages of a [`Disk`]. Reads run in parallel; a change excludes
/// everything else, but nothing waits for a sync.
pub struct PageFile<D: Disk> {
    disk: D,
    geometry: Geometry,
    state: RwLock<State>,
    size: AtomicU64,
    failures: AtomicU64,
    syncing: Mutex<()>,
}

/// What page 0 says.
struct First {
    header: Box<[u8]>,
    floor: Floor,
    data: usize,
}

fn damaged(page: u64, why: impl Into<Damage>) -> FileError {
    FileError::Damaged { page, why: why.into() }
}

impl<D: Disk> PageFile<D> {
    /// Makes the file: writes page 0 with `header` and no data to the empty `disk`. Nothing is synced.
    ///
    /// # Errors
    /// [`FileError::NotEmpty`] if the disk holds anything, [`FileError::Header`] for a header of another length than
    /// 1024, 2048 or 3072 bytes, [`FileError::Io`].
    pub fn create(disk: D, header: &[u8], keys: Arc<PageKeys>) -> Result<Self, FileError> {
        let geometry = Geometry::new(header.len())?;
        if disk.len()? != 0 {
            return Err(FileError::NotEmpty);
        }
        let mut state = State::new(keys, header.into(), 0, 0, Floor::default());
        (state.last_len, state.overlong, state.ragged, state.clean_tail) = (Some(0), Some(false), Some(false), true);
        let file = Self::with_state(disk, geometry, state);
        file.rewrite_page(&mut file.change(), 0)?;
        Ok(file)
    }

    /// Opens the file. `header_len` is the volume's; the header must already have been checked and the keys be the ones
    /// it leads to. Reads page 0.
    ///
    /// # Errors
    /// [`FileError::Unfinished`] for an interrupted creation; [`FileError::Damaged`] if page 0 doesn't open, if the
    /// file is shorter than its floor, or if its size tail is impossible; [`FileError::Io`].
    pub fn open(disk: D, header_len: usize, keys: Arc<PageKeys>) -> Result<Self, FileError> {
        let geometry = Geometry::new(header_len)?;
        let state = read_state(&disk, geometry, keys)?;
        Ok(Self::with_state(disk, geometry, state))
    }

    fn with_state(disk: D, geometry: Geometry, state: State) -> Self {
        let size = AtomicU64::new(state.size);
        let failures = AtomicU64::new(0);
        PageFile { disk, geometry, state: RwLock::new(state), size, failures, syncing: Mutex::new(()) }
    }

    /// The plaintext size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The file header as page 0 carries it.
    pub fn header(&self) -> Vec<u8> {
        self.look().header.to_vec()
    }

    /// Puts another header of the same length into page 0. Nothing is synced: call [`PageFile::sync`] where the new
    /// header must be durable before the next step.
    ///
    /// # Errors
    /// [`FileError::Header`] for another length, [`FileError::Locked`], [`FileError::Damaged`] for a page 0 that doesn't
    /// open, [`FileError::Io`]; after these the old header stays.
    pub fn set_header(&self, header: &[u8]) -> Result<(), FileError> {
        if header.len() != self.geometry.header_len() {
            return Err(FileError::Header(crate::format::page::BadHeaderLen(header.len())));
        }
        let state = &mut *self.change();
        if state.keys.is_none() {
            return Err(FileError::Locked);
        }
        self.settle_last(state, false, self.geometry.pages(state.size) == 1)?;
        let old = std::mem::replace(&mut state.header, header.into());
        let done = self.rewrite_page(state, 0);
        if done.is_err() {
            state.header = old;
        }
        done
    }

    /// Forgets the keys: from now on reads and changes give [`FileError::Locked`]. Waits for those under way, but not
    /// for a sync. The keys are wiped when the last `Arc` of them goes.
    pub fn drop_keys(&self) {
        let keys = self.change().keys.take();
        drop(keys);
    }

    /// As [`PageFile::drop_keys`], but does not wait for those under way: false if there are any, and then nothing has
    /// happened. For a lock, which a read that hangs in the store must not hold up.
    pub fn try_drop_keys(&self) -> bool {
        let Some(mut state) = self.try_change() else { return false };
        let keys = state.keys.take();
        drop(state);
        drop(keys);
        true
    }

    /// Takes the keys again after [`PageFile::drop_keys`], and reads everything else anew as [`PageFile::open`] does:
    /// nothing of the time before is believed. A size tail that could not be put before is put now.
    ///
    /// # Errors
    /// As [`PageFile::open`].
    pub fn restore_keys(&self, keys: Arc<PageKeys>) -> Result<(), FileError> {
        let state = &mut *self.change();
        self.tell_size(state)?;
        *state = read_state(&self.disk, self.geometry, keys)?;
        self.publish(state);
        Ok(())
    }

    /// Whether the ciphertext file has the length that was last given to it, so that nobody else has cut or lengthened
    /// it meanwhile. True where a failed write left that unknown.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn is_as_left(&self) -> Result<bool, FileError> {
        let known = self.look().disk_len;
        Ok(known.is_none() || known == Some(self.disk.len()?))
    }

    /// Whether the keys are gone.
    pub fn is_locked(&self) -> bool {
        self.look().keys.is_none()
    }

    /// The disk below.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The lock for reading. A panic under the lock leaves nothing half done that later work relies on: what is in the
    /// store is always whole pages, and doubtful knowledge is looked up again.
    fn look(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock for changing.
    fn change(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock for changing, unless a request is at work on the file.
    fn try_change(&self) -> Option<RwLockWriteGuard<'_, State>> {
        match self.state.try_write() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Tells other threads the size.
    fn publish(&self, state: &State) {
        self.size.store(state.size, Ordering::Release);
    }

    /// Fills `buf` from page `first` on; gives how many bytes the store had. What follows in the same page is zeroed.
    fn fetch(&self, first: u64, buf: &mut [u8]) -> Result<usize, FileError> {
        let off = first.checked_mul(PAGE as u64).ok_or(FileError::TooBig)?;
        fetch(&self.disk, off, buf)
    }

    /// Writes whole pages. A write that the store cuts short goes on at a page's border.
    fn store(&self, first: u64, pages: &[u8]) -> Result<(), FileError> {
        let start = first.checked_mul(PAGE as u64).ok_or(FileError::TooBig)?;
        let (mut done, mut stuck) = (0, 0);
        while done < pages.len() {
            let wrote = self.disk.write_at(&pages[done..], start + done as u64)?;
            let whole = wrote.min(pages.len() - done) / PAGE * PAGE;
            stuck = if whole == 0 { stuck + 1 } else { 0 };
            if wrote == 0 || stuck > 8 {
                return Err(FileError::Io(std::io::ErrorKind::WriteZero.into()));
            }
            done += whole;
        }
        Ok(())
    }
}

fn fetch<D: Disk>(disk: &D, off: u64, buf: &mut [u8]) -> Result<usize, FileError> {
    let mut got = 0;
    while got < buf.len() {
        match disk.read_at(&mut buf[got..], off + got as u64)? {
            0 => break,
            n => got += n,
        }
    }
    let border = got.next_multiple_of(PAGE).min(buf.len());
    buf[got..border].fill(0);
    Ok(got)
}

/// Reads what a file that is opened must know.
fn read_state<D: Disk>(disk: &D, geometry: Geometry, keys: Arc<PageKeys>) -> Result<State, FileError> {
    let len = disk.len()?;
    let size = geometry.plain_size(len).ok_or(FileError::Unfinished)?;
    let first = read_first(disk, geometry, &keys)?;
    if !geometry.tail_is_valid(len) {
        return Err(damaged(len / PAGE as u64 - 1, Damage::Tail));
    }
    let Floor { value, sparse } = first.floor;
    if size < value {
        return Err(damaged(geometry.page_of(size), Damage::Truncated));
    }
    let must = value.min(geometry.cap(0) as u64) as usize;
    if !sparse && first.data < must {
        return Err(damaged(0, Damage::BelowFloor));
    }
    let mut state = State::new(keys, first.header, size, len, first.floor);
    state.ragged = match geometry.pages(size) {
        1 => Some((first.data as u64) < size),
        _ if sparse => Some(true),
        _ if value == size => Some(false),
        _ => None,
    };
    Ok(state)
}

/// Reads and opens page 0.
fn read_first<D: Disk>(disk: &D, geometry: Geometry, keys: &PageKeys) -> Result<First, FileError> {
    with_scratch(PAGE, |page, edge| {
        if fetch(disk, 0, page)? < PAGE || is_hole(page) {
            return Err(FileError::Unfinished);
        }
        let (header, slot) = page.split_at(geometry.header_len());
        let sealed = keys.opener().open(0, slot, edge).map_err(|why| damaged(0, why))?;
        let Some(data) = sealed.checked_sub(PREFIX) else {
            return Err(damaged(0, PageError::Length));
        };
        let (value, flags) = read_prefix(edge);
        if flags & !SPARSE != 0 {
            return Err(damaged(0, PageError::Flags));
        }
        Ok(First { header: header.into(), floor: Floor { value, sparse: flags & SPARSE != 0 }, data })
    })
}

/// Floor and flags at the start of page 0's plaintext.
fn read_prefix(plain: &[u8]) -> (u64, u64) {
    let number = |at: usize| plain[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    (number(0), number(8))
}

/// Writes what [`read_prefix`] reads.
fn write_prefix(floor: Floor, plain: &mut [u8]) {
    plain[..8].copy_from_slice(&floor.value.to_le_bytes());
    plain[8..PREFIX].copy_from_slice(&if floor.sparse { SPARSE } else { 0 }.to_le_bytes());
}
