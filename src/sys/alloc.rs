//! An allocator that zeroes memory before it gives it back, so that no copy of a key or of plaintext outlives its owner
//! on the heap. Declared in `main.rs`: `#[global_allocator] static HEAP: ZeroOnFree = ZeroOnFree;`.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, zeroing on free and on every move.
pub struct ZeroOnFree;

/// Zeroes `length` bytes in a way that the compiler cannot leave out, at the speed of `memset`.
///
/// # Safety
/// `start` must be valid for writes of `length` bytes.
pub(super) unsafe fn wipe(start: *mut u8, length: usize) {
    // SAFETY: the caller's promise.
    unsafe { start.write_bytes(0, length) };
    // The empty assembly may read all memory as far as the compiler knows, so the zeros must be there.
    // SAFETY: it does nothing.
    unsafe { core::arch::asm!("/* {0} */", in(reg) start, options(nostack, preserves_flags)) };
}

// SAFETY: every method hands the system's allocator what the caller promises to hand us.
unsafe impl GlobalAlloc for ZeroOnFree {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let start = unsafe { System.alloc_zeroed(layout) };
        super::receive::made(start, layout);
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the block is the caller's, of the layout's size, until the second line.
        unsafe {
            wipe(start, layout.size());
            super::receive::gone(start, layout);
            System.dealloc(start, layout);
        }
    }

    // Always a move: the system's `realloc` may move too, and then frees the old block unwiped.
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size`, rounded up to the alignment, does not overflow.
        let moved = unsafe { System.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both blocks are at least this long and distinct; the old one is the caller's until the last line.
            unsafe {
                moved.copy_from_nonoverlapping(start, layout.size().min(size));
                self.dealloc(start, layout);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_move_keeps_the_bytes_whether_it_grows_or_shrinks() {
        let layout = Layout::from_size_align(100, 16).unwrap();
        // SAFETY: sizes and layouts match from call to call.
        unsafe {
            let start = ZeroOnFree.alloc_zeroed(layout);
            assert!(!start.is_null());
            start.write_bytes(7, 100);
            let grown = ZeroOnFree.realloc(start, layout, 5000);
            assert!((0..100).all(|at| *grown.add(at) == 7));
            let grown_layout = Layout::from_size_align(5000, 16).unwrap();
            let shrunk = ZeroOnFree.realloc(grown, grown_layout, 10);
            assert!((0..10).all(|at| *shrunk.add(at) == 7));
            assert_eq!(shrunk as usize % 16, 0);
            ZeroOnFree.dealloc(shrunk, Layout::from_size_align(10, 16).unwrap());
        }
    }

    #[test]
    fn wiping_reaches_every_byte_and_not_one_more() {
        let mut bytes = [9_u8; 64];
        // SAFETY: the range is inside the array.
        unsafe { wipe(bytes.as_mut_ptr().add(3), 40) };
        assert!(bytes[3..43].iter().all(|&byte| byte == 0));
        assert!(bytes[..3].iter().chain(&bytes[43..]).all(|&byte| byte == 9));
    }
}
