//! The locked memory that holds every 32-byte secret of the process.
//!
//! Where the kernel allows it (Linux ≥ 5.14 with secret memory enabled) the memory comes from `memfd_secret(2)`: it is
//! out of the kernel's own map, so that neither `/proc/PID/mem`, `ptrace` nor a kernel read reaches it. Else it is
//! anonymous memory under `mlock(2)` that core dumps leave out and `fork(2)` zeroes. It is never swapped in either case.
//!
//! A slot is 32 bytes. Freed slots are wiped at once; taking and freeing cost O(1) under one mutex.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::mm::{MapFlags, ProtFlags};

/// Bytes of one slot.
pub const SLOT: usize = 32;
/// Bytes that the arena grows by; halved down to [`CHUNK_MIN`] where the limit on locked memory is nearly reached.
const CHUNK: usize = 64 * 1024;
const CHUNK_MIN: usize = 4096;

/// The kernel gives no more locked memory (`RLIMIT_MEMLOCK`, or no memory at all).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel gives no more locked memory")]
pub struct Full;

/// Where the arena's memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `memfd_secret(2)`.
    Secret,
    /// `mmap` + `mlock` + `MADV_DONTDUMP` + `MADV_WIPEONFORK`.
    Locked,
}

/// How full the arena is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Where its memory comes from.
    pub kind: Kind,
    /// Slots that hold a secret now.
    pub in_use: usize,
    /// Slots there are.
    pub slots: usize,
    /// Locked bytes.
    pub bytes: usize,
}

/// A growing set of locked pages, cut into slots.
pub struct Arena {
    inner: Mutex<Inner>,
}

struct Inner {
    kind: Kind,
    chunks: Vec<Chunk>,
    /// Slots that nobody holds; they are all zero.
    free: Vec<NonNull<[u8; SLOT]>>,
    bytes: usize,
}

// SAFETY: the pointers lead into mappings that live as long as the process; `Inner` is only reached under its mutex.
unsafe impl Send for Inner {}

struct Chunk {
    start: NonNull<[u8; SLOT]>,
    slots: usize,
    /// One flag a slot, so that `wipe_all` touches and counts the slots that are held.
    held: Vec<bool>,
}

/// One slot, held by one owner; wiped and given back when dropped.
pub struct Slot {
    arena: &'static Arena,
    bytes: NonNull<[u8; SLOT]>,
}

// SAFETY: a slot is held by exactly one `Slot`; shared access only reads (and `wipe`, see there).
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

/// The process's arena. Its kind is settled at the first use: secret memory unless the kernel has none or the
/// environment says `HYOKFS_ARENA=mlock` (which lets a test read the memory of the daemon).
pub fn arena() -> &'static Arena {
    static ARENA: OnceLock<Arena> = OnceLock::new();
    ARENA.get_or_init(|| {
        let forced = std::env::var_os("HYOKFS_ARENA").is_some_and(|kind| kind == "mlock");
        Arena::new(if !forced && secret_memory(CHUNK_MIN).is_some() { Kind::Secret } else { Kind::Locked })
    })
}

/// Takes a slot of the process's arena, all zero.
pub fn take() -> Result<Slot, Full> {
    arena().take()
}

/// Zeroes every slot of the process's arena that is held, whoever holds it; gives their number. For the end of the
/// process: a single volume's keys are wiped by its keyring.
pub fn wipe_all() -> usize {
    arena().wipe_all()
}

/// How full the process's arena is.
pub fn stats() -> Stats {
    arena().stats()
}

impl Arena {
    fn new(kind: Kind) -> Self {
        Arena { inner: Mutex::new(Inner { kind, chunks: Vec::new(), free: Vec::new(), bytes: 0 }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a slot, all zero.
    pub fn take(&'static self) -> Result<Slot, Full> {
        let mut inner = self.lock();
        if inner.free.is_empty() {
            inner.grow()?;
        }
        let bytes = inner.free.pop().ok_or(Full)?;
        inner.mark(bytes, true);
        Ok(Slot { arena: self, bytes })
    }

    /// Zeroes every slot that is held; the holders read zeros from then on. Gives their number.
    pub fn wipe_all(&self) -> usize {
        let inner = self.lock();
        let mut wiped = 0;
        for chunk in &inner.chunks {
            for index in (0..chunk.slots).filter(|&index| chunk.held[index]) {
                // SAFETY: `index` is below the number of slots of the chunk's mapping.
                zero(unsafe { chunk.start.add(index) });
                wiped += 1;
            }
        }
        wiped
    }

    /// How full it is.
    pub fn stats(&self) -> Stats {
        let inner = self.lock();
        let slots = inner.bytes / SLOT;
        Stats { kind: inner.kind, in_use: slots - inner.free.len(), slots, bytes: inner.bytes }
    }

    /// Whether `needle` stands anywhere in the arena, in held and in free slots.
    #[cfg(test)]
    pub fn contains(&self, needle: &[u8; SLOT]) -> bool {
        self.count_of(&std::collections::HashSet::from([*needle])) > 0
    }

    /// How many slots, held or free, hold one of `needles`.
    #[cfg(test)]
    pub fn count_of(&self, needles: &std::collections::HashSet<[u8; SLOT]>) -> usize {
        let inner = self.lock();
        let slots = inner.chunks.iter().flat_map(|chunk| {
            (0..chunk.slots).map(|index| {
                // SAFETY: the index is inside the mapping; an owner that writes meanwhile makes this miss, not crash.
                unsafe { chunk.start.add(index).read_volatile() }
            })
        });
        slots.filter(|slot| needles.contains(slot)).count()
    }
}

impl Inner {
    fn grow(&mut self) -> Result<(), Full> {
        let mut length = CHUNK;
        let start = loop {
            let mapped = match self.kind {
                Kind::Secret => secret_memory(length),
                Kind::Locked => locked_memory(length),
            };
            match mapped {
                Some(start) => break start,
                None if length > CHUNK_MIN => length /= 2,
                None => return Err(Full),
            }
        };
        let slots = length / SLOT;
        // Last slot first, so that the list hands them out from the front of the chunk.
        // SAFETY: every index is inside the new mapping of `slots` slots.
        self.free.extend((0..slots).rev().map(|index| unsafe { start.add(index) }));
        self.chunks.push(Chunk { start, slots, held: vec![false; slots] });
        self.chunks.sort_by_key(|chunk| chunk.start);
        self.bytes += length;
        Ok(())
    }

    fn mark(&mut self, slot: NonNull<[u8; SLOT]>, held: bool) {
        let after = self.chunks.partition_point(|chunk| chunk.start <= slot);
        if let Some(chunk) = after.checked_sub(1).and_then(|index| self.chunks.get_mut(index)) {
            let index = (slot.as_ptr() as usize - chunk.start.as_ptr() as usize) / SLOT;
            if let Some(flag) = chunk.held.get_mut(index) {
                *flag = held;
            }
        }
    }
}

impl Slot {
    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; SLOT] {
        // SAFETY: the slot is ours until drop, mapped, aligned (alignment 1) and always initialised.
        unsafe { self.bytes.as_ref() }
    }

    /// The 32 bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8; SLOT] {
        // SAFETY: as in `bytes`, and `&mut self` says that nobody else reads.
        unsafe { self.bytes.as_mut() }
    }

    /// Zeroes the bytes although others may hold the slot too (behind an `Arc`); they read zeros from then on. A reader
    /// in that very moment may see a mix of key and zeros; it must ask [`Slot::is_zero`] after it has used the bytes.
    pub fn wipe(&self) {
        zero(self.bytes);
    }

    /// Whether the bytes are all zero now, read afresh from memory.
    pub fn is_zero(&self) -> bool {
        compiler_fence(Ordering::SeqCst);
        let words = self.bytes.cast::<u64>();
        // SAFETY: a slot is 32 bytes at an address that is a multiple of 32.
        (0..SLOT / 8).all(|index| unsafe { words.add(index).read_volatile() } == 0)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        zero(self.bytes);
        let mut inner = self.arena.lock();
        inner.mark(self.bytes, false);
        inner.free.push(self.bytes);
    }
}

/// Zeroes one slot in a way that the compiler cannot leave out.
fn zero(slot: NonNull<[u8; SLOT]>) {
    let words = slot.cast::<u64>();
    for index in 0..SLOT / 8 {
        // SAFETY: a slot is 32 bytes at an address that is a multiple of 32, in a mapping that is never undone.
        unsafe { words.add(index).write_volatile(0) };
    }
    compiler_fence(Ordering::SeqCst);
}

/// `length` bytes from `memfd_secret(2)` (manual page memfd_secret(2)); `None` where the kernel has or gives none.
fn secret_memory(length: usize) -> Option<NonNull<[u8; SLOT]>> {
    use std::os::fd::FromRawFd;
    // SAFETY: the call takes one flags word and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC as libc::c_uint) };
    let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0)?;
    // SAFETY: the descriptor is new and ours. It is closed at the end of this function; the mapping stays.
    let fd = unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) };
    rustix::fs::ftruncate(&fd, length as u64).ok()?;
    // SAFETY: the kernel chooses the address; nothing else uses it.
    let start = unsafe {
        rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)
    };
    let start = NonNull::new(start.ok()?)?;
    // A shared mapping cannot be wiped in the child, so the child does not get it.
    // SAFETY: the range is the mapping just made.
    let kept = unsafe { rustix::mm::madvise(start.as_ptr(), length, rustix::mm::Advice::LinuxDontFork) };
    settle(start, length, kept.is_ok())
}

/// `length` bytes of anonymous memory, locked, not in core dumps, zero in forked children; `None` at the limit.
fn locked_memory(length: usize) -> Option<NonNull<[u8; SLOT]>> {
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses the address; nothing else uses it.
    let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, rights, MapFlags::PRIVATE) };
    let start = NonNull::new(start.ok()?)?;
    // SAFETY: the range is the mapping just made.
    let kept = unsafe {
        rustix::mm::mlock(start.as_ptr(), length).is_ok()
            && rustix::mm::madvise(start.as_ptr(), length, rustix::mm::Advice::LinuxDontDump).is_ok()
            && rustix::mm::madvise(start.as_ptr(), length, rustix::mm::Advice::LinuxWipeOnFork).is_ok()
    };
    settle(start, length, kept)
}

/// Touches every page now, so that a lack of memory shows here and not at the first key; or undoes the mapping.
fn settle(start: NonNull<core::ffi::c_void>, length: usize, kept: bool) -> Option<NonNull<[u8; SLOT]>> {
    if !kept {
        // SAFETY: the range is a mapping made by the caller that nobody uses yet.
        let _ = unsafe { rustix::mm::munmap(start.as_ptr(), length) };
        return None;
    }
    let start = start.cast::<[u8; SLOT]>();
    for index in 0..length / SLOT {
        // SAFETY: the index is inside the mapping.
        zero(unsafe { start.add(index) });
    }
    Some(start)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fresh(kind: Kind) -> &'static Arena {
        Box::leak(Box::new(Arena::new(kind)))
    }

    #[test]
    fn slots_are_distinct_zero_and_zero_again_after_use() {
        for kind in [Kind::Secret, Kind::Locked] {
            let arena = fresh(kind);
            let mut slots: Vec<Slot> = (0..5000).map(|_| arena.take().unwrap()).collect();
            for (number, slot) in slots.iter_mut().enumerate() {
                assert!(slot.is_zero());
                slot.bytes_mut()[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
            }
            for (number, slot) in slots.iter().enumerate() {
                assert_eq!(slot.bytes()[..8], (number as u64 + 1).to_le_bytes());
            }
            let stats = arena.stats();
            assert_eq!((stats.kind, stats.in_use), (kind, 5000));
            assert!(stats.slots >= 5000 && stats.bytes == stats.slots * SLOT);
            let mut pattern = [0; SLOT];
            pattern[..8].copy_from_slice(&4321_u64.to_le_bytes());
            assert!(arena.contains(&pattern), "the positive control");
            drop(slots);
            assert!(!arena.contains(&pattern));
            let after = arena.stats();
            assert_eq!((after.in_use, after.slots), (0, stats.slots));
            let again: Vec<Slot> = (0..5000).map(|_| arena.take().unwrap()).collect();
            assert!(again.iter().all(Slot::is_zero));
            assert_eq!(arena.stats().slots, stats.slots, "freed slots are used again");
        }
    }

    #[test]
    fn wiping_all_zeroes_what_is_held_and_counts_it() {
        let arena = fresh(Kind::Locked);
        let mut slots: Vec<Slot> = (0..3000).map(|_| arena.take().unwrap()).collect();
        slots.iter_mut().for_each(|slot| slot.bytes_mut().fill(0xA5));
        slots.truncate(2500);
        assert!(arena.contains(&[0xA5; SLOT]));
        assert_eq!(arena.wipe_all(), 2500);
        assert!(slots.iter().all(|slot| slot.is_zero() && slot.bytes() == &[0; SLOT]));
        assert!(!arena.contains(&[0xA5; SLOT]));
        slots[7].bytes_mut().fill(1);
        slots[7].wipe();
        assert!(slots[7].is_zero());
    }

    #[test]
    fn many_threads_never_share_a_slot() {
        let arena = fresh(Kind::Locked);
        std::thread::scope(|scope| {
            for thread in 1..=8_u8 {
                scope.spawn(move || {
                    for round in 0..200 {
                        let mut mine: Vec<Slot> = (0..round % 40).map(|_| arena.take().unwrap()).collect();
                        mine.iter_mut().for_each(|slot| slot.bytes_mut().fill(thread));
                        assert!(mine.iter().all(|slot| slot.bytes() == &[thread; SLOT]));
                    }
                });
            }
        });
        assert_eq!(arena.stats().in_use, 0);
    }

    /// Runs in a child of its own: the limit is the process's, and the arena's kind is settled once.
    #[test]
    fn a_limit_on_locked_memory_gives_a_clear_error_not_a_crash() {
        const CHILD: &str = "HYOKFS_TEST_ARENA_CHILD";
        if std::env::var_os(CHILD).is_none() {
            for kind in ["mlock", "secret"] {
                let child = std::process::Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "sys::arena::tests::a_limit_on_locked_memory_gives_a_clear_error_not_a_crash"])
                    .env(CHILD, "1")
                    .env("HYOKFS_ARENA", kind)
                    .output()
                    .unwrap();
                assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
            }
            return;
        }
        // The limit binds only without CAP_IPC_LOCK, which root has.
        if rustix::process::geteuid().is_root() {
            let none = rustix::thread::CapabilitySets {
                effective: rustix::thread::CapabilitySet::empty(),
                permitted: rustix::thread::CapabilitySet::empty(),
                inheritable: rustix::thread::CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, none).unwrap();
        }
        let limit = rustix::process::Rlimit { current: Some(100 * 1024), maximum: Some(100 * 1024) };
        rustix::process::setrlimit(rustix::process::Resource::Memlock, limit).unwrap();
        let mut slots = Vec::new();
        let refused = loop {
            match take() {
                Ok(slot) => slots.push(slot),
                Err(full) => break full,
            }
            assert!(slots.len() < 100_000, "the limit does not bind");
        };
        assert_eq!(refused, Full);
        // 64 KiB + 32 KiB + 4 KiB fit: growth went down in halves.
        assert!(slots.len() * SLOT > 90 * 1024, "{} slots", slots.len());
        slots.pop();
        assert!(take().is_ok(), "a freed slot is there again");
    }
}
