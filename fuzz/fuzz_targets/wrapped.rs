//! Wrapped keys of Azure and of the local keystore, as they stand in headers: any bytes are borne, and what is taken
//! apart can be put together again.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use hyokfs::crypto::Secret;
use hyokfs::format::{FileId, VolumeId};
use hyokfs::provider::azure::blob::{Blob, KeyId, MAX_LEN, seal};
use hyokfs::provider::local::{Keystore, LocalKey, Protect};
use hyokfs::provider::{Context, KeySettings, Provider};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

static ONCE: LazyLock<Secret> = LazyLock::new(|| Secret::from_fn(|key| key.fill(5)).expect("locked memory"));
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

static LOCAL: LazyLock<LocalKey> = LazyLock::new(|| {
    let path = PathBuf::from(format!("/dev/shm/hyokfs-fuzz-wrapped-{}", std::process::id()));
    let keystore = Keystore::at(Some(&path), &KeySettings::default());
    keystore.create("default", Protect::SecretFile).expect("a keystore");
    LocalKey::new(Some(&path), None, &KeySettings::default())
});

fuzz_target!(|bytes: &[u8]| {
    let context = Context { volume: VolumeId([1; 16]), file: Some(FileId([2; 16])), tenant: Some("acme") };
    assert!(RUNTIME.block_on(LOCAL.unwrap(&context, bytes)).is_err());
    let Ok(blob) = Blob::parse(bytes) else { return };
    assert_eq!(KeyId::from_kid(&blob.key.kid()).as_ref(), Some(&blob.key));
    let _ = blob.open(&ONCE, &context);
    let sealed = seal(blob.algorithm, &blob.key, blob.ciphertext, &ONCE, &context, &ONCE).expect("it had room");
    assert!(sealed.len() <= MAX_LEN);
    let again = Blob::parse(&sealed).expect("its own bytes");
    assert_eq!((again.algorithm, &again.key, again.ciphertext), (blob.algorithm, &blob.key, blob.ciphertext));
    assert_eq!(again.open(&ONCE, &context).expect("the same context").expose(), ONCE.expose());
    assert!(again.open(&ONCE, &Context { file: None, ..context }).is_err());
});
