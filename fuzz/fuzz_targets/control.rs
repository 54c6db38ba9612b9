//! What comes over the control socket, and the small files of a mount: the lock's owner in the store, and what this node
//! remembers of a volume.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use hyokfs::format::VolumeId;
use hyokfs::store::{Owner, Store};
use hyokfs::supervisor::control::{Reply, Request};
use hyokfs::supervisor::pin;
use libfuzzer_sys::fuzz_target;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = PathBuf::from(format!("/dev/shm/hyokfs-fuzz-control-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("volumes")).expect("a directory");
    dir
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let text = serde_json::to_string(&request).expect("its own text");
        assert_eq!(serde_json::from_str::<Request>(&text).ok(), Some(request));
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(bytes) {
        let text = serde_json::to_string(&reply).expect("its own text");
        assert!(serde_json::from_str::<Reply>(&text).is_ok());
    }
    // Who held the store last: anybody who can write the store says so.
    std::fs::write(DIR.join(".hyokfs.lock"), bytes).expect("written");
    let lock = Store::open(&DIR).expect("the store").lock(&Owner::here("/mnt".as_ref())).expect("nobody holds it");
    if let Some(owner) = &lock.stale {
        let text = serde_json::to_string(owner).expect("its own text");
        assert_eq!(serde_json::from_str::<Owner>(&text).ok().as_ref(), Some(owner));
    }
    drop(lock);
    // A file that says another fingerprint, or a newer generation, or nothing sensible, refuses the volume.
    let volume = VolumeId([1; 16]);
    let path = DIR.join("volumes").join(format!("{volume}.json"));
    std::fs::write(&path, bytes).expect("written");
    if pin::check(&DIR, volume, "abcd", 7, None).is_ok() {
        assert!(pin::check(&DIR, volume, "abcd", 6, None).is_err());
        assert!(pin::check(&DIR, volume, "abce", 7, None).is_err());
    }
});
