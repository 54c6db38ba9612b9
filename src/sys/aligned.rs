//! Page-aligned buffers that are reused and wiped: what the page file reads from and writes to the store.
//!
//! A page that reaches the store must leave from aligned, resident memory in one piece, and no request may allocate.
//! Each thread keeps one [`Scratch`]: a run of pages that only ever holds *ciphertext*, and one page (the *edge*) for
//! the plaintext of a page that a request covers only in part. The edge is wiped after every use.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment and granularity in bytes: the size of a memory page and of a sealed page.
pub const ALIGN: usize = 4096;

/// Overwrites `bytes` with zeros in a way that the compiler cannot leave out, at the speed of `memset`.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // SAFETY: the assembly is empty. Its pointer operand and the implied memory clobber only tell the compiler that the
    // zeros may be read, so the fill above cannot be removed as a dead store.
    unsafe { std::arch::asm!("/* {0} */", in(reg) bytes.as_mut_ptr(), options(nostack, preserves_flags)) };
}

/// Zeroed memory, aligned to [`ALIGN`] bytes; wiped before it is given back.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer owns its memory alone, like a `Box<[u8]>`.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference gives only shared access to the bytes.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer of `len` zero bytes.
    pub fn new(len: usize) -> Self {
        if len == 0 {
            return AlignedBuf { start: NonNull::dangling(), len: 0 };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => AlignedBuf { start, len },
            None => handle_alloc_error(layout),
        }
    }

    fn layout(len: usize) -> Layout {
        match Layout::from_size_align(len, ALIGN) {
            Ok(layout) => layout,
            // Only a length beyond isize::MAX gets here, which no allocator could serve either.
            Err(_) => handle_alloc_error(Layout::new::<u8>()),
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialised bytes that this buffer owns (or is dangling with `len` 0).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.len != 0 {
            wipe(self);
            // SAFETY: the memory came from `alloc_zeroed` with this very layout and is not used again.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) };
        }
    }
}

/// One thread's working memory for a request on sealed pages.
pub struct Scratch {
    pages: AlignedBuf,
    edge: AlignedBuf,
}

/// Wipes the edge even when the request panics.
struct Wiping<'a>(&'a mut Scratch);

impl Drop for Wiping<'_> {
    fn drop(&mut self) {
        wipe(&mut self.0.edge);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { pages: AlignedBuf::new(0), edge: AlignedBuf::new(ALIGN) });
}

/// Lends `work` two aligned buffers: `len` bytes for ciphertext, holding whatever the last request left there, and
/// [`ALIGN`] bytes for plaintext, zero at the start and wiped afterwards. Nothing is allocated unless this thread never
/// needed as much before. Plaintext must not be put into the first buffer: it is not wiped between requests.
pub fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [u8], &mut [u8]) -> T) -> T {
    SCRATCH.with(|cell| match cell.try_borrow_mut() {
        Ok(mut scratch) => {
            if scratch.pages.len() < len {
                scratch.pages = AlignedBuf::new(len.next_multiple_of(ALIGN).max(4 * ALIGN));
            }
            let lent = Wiping(&mut scratch);
            let Scratch { pages, edge } = &mut *lent.0;
            work(&mut pages[..len], edge)
        }
        // A request within a request: rare enough to allocate.
        Err(_) => work(&mut AlignedBuf::new(len), &mut AlignedBuf::new(ALIGN)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zero() {
        for len in [0, 1, 4096, 5000, 1 << 20] {
            let buf = AlignedBuf::new(len);
            assert_eq!(buf.len(), len);
            assert!(buf.iter().all(|b| *b == 0));
            assert_eq!(buf.as_ptr() as usize % if len == 0 { 1 } else { ALIGN }, 0);
        }
    }

    #[test]
    fn the_edge_is_wiped_after_use_and_after_a_panic() {
        with_scratch(8192, |pages, edge| {
            assert_eq!(pages.as_ptr() as usize % ALIGN, 0);
            assert_eq!(edge.as_ptr() as usize % ALIGN, 0);
            edge.fill(7);
        });
        with_scratch(10, |pages, edge| {
            assert_eq!(pages.len(), 10);
            assert!(edge.iter().all(|b| *b == 0));
        });
        let fell = std::panic::catch_unwind(|| {
            with_scratch(10, |_, edge| {
                edge.fill(9);
                panic!("as intended");
            })
        });
        assert!(fell.is_err());
        with_scratch(10, |_, edge| assert!(edge.iter().all(|b| *b == 0)));
    }

    #[test]
    fn a_nested_request_gets_memory_of_its_own() {
        with_scratch(4096, |outer, _| {
            outer.fill(1);
            with_scratch(4096, |inner, _| inner.fill(2));
            assert!(outer.iter().all(|b| *b == 1));
        });
    }
}
