//! The buffers into which the session's threads receive requests. They belong to the crate that speaks the protocol,
//! which keeps one per thread for the thread's whole life and never wipes it: the plaintext of the last large WRITE
//! stays in it. The process's own allocator sees them being made, by their size, and remembers the thread's own, so
//! that the thread can wipe it when the volume is locked in place.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::cell::Cell;

/// What fuser 0.18 allocates (`src/read_buf.rs`): 16 MiB and a page, as plain bytes. Should another version allocate
/// something else, [`wipe_own`] finds nothing, and the lock's report and its tests say so.
const LAYOUT: (usize, usize) = ((16 << 20) + 4096, 1);

thread_local! {
    // Plain data without a destructor, so that the allocator itself may use it.
    static OWN: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

fn is_one(layout: Layout) -> bool {
    (layout.size(), layout.align()) == LAYOUT
}

/// The allocator has given out `start`.
pub(super) fn made(start: *mut u8, layout: Layout) {
    if is_one(layout) && !start.is_null() {
        OWN.set(start);
    }
}

/// The allocator takes `start` back.
pub(super) fn gone(start: *mut u8, layout: Layout) {
    if is_one(layout) && OWN.get() == start {
        OWN.set(std::ptr::null_mut());
    }
}

/// Zeroes the first `length` bytes of the calling thread's receive buffer, of which a request's header and data fill the
/// front; false if the thread has none.
///
/// To be called when the present request has been answered and nothing of it is looked at any more: the borrow of its
/// bytes still exists further up the stack, but the session's loop goes from here straight into the next `read`, which
/// overwrites the same bytes.
pub fn wipe_own(length: usize) -> bool {
    let start = OWN.get();
    if start.is_null() {
        return false;
    }
    // SAFETY: `made` was told of this block by the allocator on this very thread, and `gone` has not been: it is alive
    // and `LAYOUT.0` bytes long. Only this thread reads or writes it, and it is here.
    unsafe { super::alloc::wipe(start, length.min(LAYOUT.0)) };
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sys::alloc::ZeroOnFree;
    use std::alloc::GlobalAlloc;

    #[test]
    fn a_thread_finds_and_wipes_its_own_buffer_and_nobody_else_s() {
        let layout = Layout::from_size_align(LAYOUT.0, LAYOUT.1).unwrap();
        let other = Layout::from_size_align(LAYOUT.0 - 1, LAYOUT.1).unwrap();
        // SAFETY: sizes and layouts match from call to call, and all accesses are inside.
        unsafe {
            assert!(!wipe_own(100));
            let wrong = ZeroOnFree.alloc_zeroed(other);
            assert!(!wipe_own(100), "a block of another size is none");
            let start = ZeroOnFree.alloc_zeroed(layout);
            start.write_bytes(7, 200);
            assert!(!std::thread::spawn(|| wipe_own(200)).join().unwrap());
            assert_eq!(*start, 7);
            assert!(wipe_own(100));
            assert!((0..100).all(|at| *start.add(at) == 0) && (100..200).all(|at| *start.add(at) == 7));
            ZeroOnFree.dealloc(start, layout);
            assert!(!wipe_own(100), "it is gone");
            ZeroOnFree.dealloc(wrong, other);
        }
    }
}
