//! Sealed pages: arbitrary bytes never open and never panic, at any place; sealed ones open at their own place alone.
#![no_main]

use std::sync::LazyLock;

use hyokfs::crypto::{Secret, Suite};
use hyokfs::format::page::{CAP, PAGE, PageKeys};
use hyokfs::format::{FileId, VolumeId};
use libfuzzer_sys::fuzz_target;

fn keys(suite: Suite) -> PageKeys {
    let key = |byte| Secret::from_fn(|key| key.fill(byte)).expect("locked memory");
    PageKeys::new(suite, &key(1), &key(2), &VolumeId([1; 16]), &FileId([2; 16])).expect("page keys")
}

static AES: LazyLock<PageKeys> = LazyLock::new(|| keys(Suite::Aes256Gcm));
static CHACHA: LazyLock<PageKeys> = LazyLock::new(|| keys(Suite::ChaCha20Poly1305));

fuzz_target!(|input: (u64, u16, u8, &[u8])| {
    let (index, place, change, bytes) = input;
    let mut plain = [0; CAP];
    for keys in [&*AES, &*CHACHA] {
        assert!(keys.opener().open(index, bytes, &mut plain).is_err());
        let text = &bytes[..bytes.len().min(CAP)];
        let mut slot = [0; PAGE];
        let Ok(()) = keys.sealer(1).expect("a sealer").seal(index, text, &mut slot) else { continue };
        let read = keys.opener().open(index, &slot, &mut plain).expect("what was sealed");
        assert_eq!(&plain[..read], text);
        assert!(keys.opener().open(index.wrapping_add(1), &slot, &mut plain).is_err());
        if change != 0 {
            slot[usize::from(place) % PAGE] ^= change;
            assert!(keys.opener().open(index, &slot, &mut plain).is_err(), "byte {place}");
        }
    }
});
