//! The local keystore's file, which its owner may edit by hand: whatever stands in it, it is read or refused, and an
//! edit keeps every key. The secret that the seeds were made with is 64 times the digit 1.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use hyokfs::format::VolumeId;
use hyokfs::provider::local::{Keystore, LocalKey, State};
use hyokfs::provider::{Context, KeySettings, Provider};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
    use std::os::unix::fs::PermissionsExt;
    let path = PathBuf::from(format!("/dev/shm/hyokfs-fuzz-keystore-{}", std::process::id()));
    let secret = path.with_extension("secret");
    std::fs::write(&secret, "1".repeat(64)).expect("written");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("mode 0600");
    path
});

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(&*PATH, bytes).expect("written");
    let settings = KeySettings::default();
    let keystore = Keystore::at(Some(&PATH), &settings);
    let key = LocalKey::new(Some(&PATH), None, &settings);
    let context = Context { volume: VolumeId([1; 16]), file: None, tenant: None };
    let wrapped = RUNTIME.block_on(key.generate(&context));
    if let Ok((_, wrapped)) = &wrapped {
        RUNTIME.block_on(key.unwrap(&context, &wrapped.blob)).expect("what was just wrapped");
    }
    let Ok(keys) = keystore.show() else {
        assert!(wrapped.is_err());
        return;
    };
    assert!(wrapped.is_err() || keys.iter().any(|key| key.name == "default" && key.state == State::Enabled));
    let Some(first) = keys.first() else { return };
    let changed = keystore.disable(&first.name);
    assert_eq!(changed.is_ok(), first.state != State::Destroyed);
    let after = keystore.show().expect("still a keystore");
    assert_eq!(after.len(), keys.len());
    assert!(after.iter().zip(&keys).all(|(a, b)| (&a.name, &a.id, a.created) == (&b.name, &b.id, b.created)));
});
