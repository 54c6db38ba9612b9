//! A source tree: made by a rule, packed, unpacked onto the mount, compared.

use std::fs;
use std::path::Path;

use crate::common::{Store, noise};
use crate::script;

/// At least 8,000 files in directories like those of a real tree: many small, some of a few pages, a few big; scripts
/// with the execute bit, symlinks, long names.
pub fn make_tree(root: &Path) -> usize {
    let mut files = 0;
    for module in 0..90u64 {
        for part in 0..9u64 {
            let dir = root.join(format!("module{module:02}/src/part{part}"));
            fs::create_dir_all(&dir).unwrap();
            for file in 0..10u64 {
                let id = module * 1000 + part * 10 + file;
                // Sizes as of source files: mostly under 16 KiB, a tail up to 200 KiB.
                let size = match id % 50 {
                    0 => 0,
                    1 => 200_000,
                    n if n < 30 => (id * 7919 % 4000) as usize,
                    _ => (id * 104_729 % 16_000) as usize,
                };
                // Text, as sources are, so that a wrong byte is seen in a readable place.
                let text: Vec<u8> = noise(id, size.div_ceil(2))
                    .iter()
                    .flat_map(|b| [b"0123456789abcdef"[(b >> 4) as usize], b'\n'])
                    .take(size)
                    .collect();
                fs::write(dir.join(format!("file_{file}.rs")), text).unwrap();
                files += 1;
            }
        }
        let dir = root.join(format!("module{module:02}"));
        let script = dir.join("build.sh");
        fs::write(&script, "#!/bin/sh\nexit 0\n").unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("src/part0/file_0.rs", dir.join("main.rs")).unwrap();
        fs::write(dir.join("n".repeat(200)), b"a long name").unwrap();
        files += 3;
    }
    files
}

#[test]
fn unpack_and_compare() {
    let store = Store::new();
    let source = store.world.path().join("source");
    let files = make_tree(&source);
    assert!(files >= 8000, "only {files} files");
    let archive = store.world.path().join("tree.tar");
    script(&store.world, "tar -C \"$1\" --format=posix -cf \"$2\" .", &[&source, &archive]);
    let mount = store.mount();
    let tree = mount.at("tree");
    fs::create_dir(&tree).unwrap();
    script(&store.world, "tar -C \"$1\" -xf \"$2\"", &[&tree, &archive]);
    let same = "diff -r --no-dereference \"$1\" \"$2\"; \
        diff <(cd \"$1\"; find . -printf '%p %m %y %s %l %T@\\n' | grep -v ' d ' | sort) \
             <(cd \"$2\"; find . -printf '%p %m %y %s %l %T@\\n' | grep -v ' d ' | sort) | head -40";
    script(&store.world, same, &[&source, &tree]);
    let mount = mount.remount();
    script(&store.world, same, &[&source, &tree]);
    // Packed from the mount it is the same archive of names and contents; then everything goes.
    script(&store.world, "tar -C \"$1\" --format=posix -cf - . | tar -C \"$2\" -df -", &[&tree, &source]);
    script(&store.world, "cp -a \"$1\" \"$2\"; diff -r --no-dereference \"$1\" \"$2\"", &[&tree, &mount.at("copy")]);
    script(&store.world, "rm -r \"$1\" \"$2\"", &[&tree, &mount.at("copy")]);
    assert_eq!(fs::read_dir(&mount.path).unwrap().count(), 0);
    mount.umount();
    if !crate::common::native() {
        assert_eq!(store.ciphertexts().len(), 0, "the store keeps what was removed");
    }
}
