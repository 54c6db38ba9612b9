//! Takes secrets off the stack. A value that is moved leaves its bytes behind in the frame that it left, where no
//! destructor reaches them: above all the states of HMAC and HKDF, which the cryptographic library passes by value.

/// How deep below the caller the calls that meet keys go, with room: a debug build needs about 40 KiB. Every thread has
/// at least 2 MiB.
const DEPTH: usize = 256 * 1024;

/// Zeroes the part of this thread's stack that the calls before this one have used. Takes some microseconds; call it from
/// the outermost frame that is done with keys.
#[inline(never)]
pub fn scrub() {
    // The compiler must assume that the zeros are looked at, so they are written.
    std::hint::black_box(&mut [0_u8; DEPTH]);
}

/// Scrubs the stack of the current thread when the thread ends, wherever it was started. A thread's stack stays in the
/// process's memory after its end, for the next thread.
pub fn scrub_at_end() {
    struct AtEnd;
    impl Drop for AtEnd {
        fn drop(&mut self) {
            scrub();
        }
    }
    thread_local! {
        static AT_END: AtEnd = const { AtEnd };
    }
    AT_END.with(|_| {});
}

#[cfg(test)]
mod tests {
    use super::{scrub, scrub_at_end};

    #[inline(never)]
    fn leave(byte: u8) -> usize {
        let mut room = [byte; 64 * 1024];
        std::hint::black_box(&mut room);
        room.as_ptr() as usize + room.len() / 2
    }

    /// What stands at an address of this very process, read through the kernel.
    fn look(address: usize) -> u8 {
        use std::os::unix::fs::FileExt;
        let mut byte = [0];
        std::fs::File::open("/proc/self/mem").unwrap().read_exact_at(&mut byte, address as u64).unwrap();
        byte[0]
    }

    #[test]
    fn what_calls_have_left_is_gone() {
        let place = leave(0xa5);
        assert_eq!(look(place), 0xa5, "the control");
        scrub();
        assert_eq!(look(place), 0);
    }

    #[test]
    fn the_stack_of_a_thread_is_clean_at_its_end() {
        let (send, place) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            scrub_at_end();
            send.send(leave(0x5a)).unwrap();
        });
        thread.join().unwrap();
        let place = place.recv().unwrap();
        // The stack may be unmapped by now, which is as good.
        let mut byte = [0];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        if std::os::unix::fs::FileExt::read_exact_at(&memory, &mut byte, place as u64).is_ok() {
            assert_ne!(byte[0], 0x5a);
        }
    }
}
