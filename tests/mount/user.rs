//! As an ordinary user, through fusermount3.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::common::{Store, World, native};

const NOBODY: (u32, u32) = (65_534, 65_534);

/// Runs a shell script as the user.
fn script(store: &Store, text: &str, dir: &std::path::Path) -> (bool, String) {
    let output = store.world.command("sh").args(["-euc", text, "sh"]).arg(dir).output().unwrap();
    (output.status.success(), crate::common::both(&output))
}

#[test]
fn an_ordinary_user_mounts_uses_and_unmounts() {
    if native() {
        return;
    }
    let store = Store::with(World::of_user(NOBODY.0, NOBODY.1), &[]);
    let mount = store.mount();
    let work = "cd \"$1\"; mkdir -p a/b; echo hello > a/b/f; cp a/b/f g; ln g h; ln -s g l; mv h a/h; \
        dd if=/dev/urandom of=big bs=4096 count=300 status=none conv=fsync; sha256sum big > big.sum; chmod 600 big; \
        cat a/b/f l";
    let (fine, said) = script(&store, work, &mount.path);
    assert!(fine && said == "hello\nhello\n", "{said}\n{}", mount.log());
    let mount = mount.remount();
    let (fine, said) = script(&store, "cd \"$1\"; sha256sum -c big.sum; cat a/h; stat -c %u:%a big", &mount.path);
    assert!(fine && said == "big: OK\nhello\n65534:600\n", "{said}\n{}", mount.log());
    let (fine, _) = script(&store, "chown 0:0 \"$1/big\"", &mount.path);
    assert!(!fine, "an ordinary user gave a file to root");
    mount.umount();
    for path in store.ciphertexts() {
        assert_eq!(fs::metadata(path).unwrap().uid(), NOBODY.0, "the store's files are the user's");
    }
}

#[test]
fn a_user_cannot_mount_where_he_may_not_write() {
    if native() {
        return;
    }
    let store = Store::with(World::of_user(NOBODY.0, NOBODY.1), &[]);
    let roots = store.world.path().join("roots");
    fs::create_dir(&roots).unwrap();
    let refused = store.try_mount(&[], &roots);
    assert!(refused.is_err(), "mounted over root's directory");
}
