//! git: add, commit, clone by hard links, repack, fsck.

use std::fs;

use crate::common::Store;
use crate::script;
use crate::tree::make_tree;

#[test]
fn a_repository() {
    let store = Store::new();
    let mount = store.mount();
    let repository = mount.at("repository");
    fs::create_dir(&repository).unwrap();
    make_tree(&repository);
    let git = "git() { command git -c user.name=t -c user.email=t@example.org -c gc.auto=0 -c init.defaultBranch=main \
        -c safe.directory='*' \"$@\"; }; cd \"$1\"; ";
    let run = |text: &str| script(&store.world, &format!("{git}{text}"), &[&repository]);
    run("git init -q; git add -A; git commit -qm one; test -z \"$(git status --porcelain)\"");
    run("sed -i 1d module0*/src/part*/file_2.rs; git rm -qr module11; git mv module12 module99; git commit -qam two");
    run("git checkout -qb side HEAD~1; echo side > side; git add side; git commit -qm side; git checkout -q main; \
         git merge -q side -m merged; git fsck --strict");
    run(
        "git clone -ql . ../linked; git -C ../linked fsck --strict; test \"$(git rev-parse HEAD)\" = \"$(git -C ../linked rev-parse HEAD)\"",
    );
    let head = run("git rev-parse HEAD");
    let mount = mount.remount();
    assert_eq!(run("git rev-parse HEAD"), head);
    run("test -z \"$(git status --porcelain)\"; git fsck --strict; git repack -adq; git fsck --strict; \
         git -C ../linked fsck --strict; git -C ../linked checkout -q HEAD~1; git reset -q --hard HEAD~1; \
         test -z \"$(git status --porcelain)\"");
    mount.umount();
}
