//! A git repository that is committed to all the time.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;

use super::{Ledger, Shared};
use crate::common::noise;

pub struct Git {
    commits: Mutex<Vec<String>>,
}

impl Git {
    pub fn new() -> Git {
        Git { commits: Mutex::default() }
    }

    fn git(shared: &Shared<'_>, script: &str) -> Output {
        let mut command: Command = shared.store.world.command("sh");
        command.args(["-c", script, "sh"]).arg(shared.root.join("repository"));
        for (name, value) in
            [("AUTHOR_NAME", "a"), ("AUTHOR_EMAIL", "a@a"), ("COMMITTER_NAME", "a"), ("COMMITTER_EMAIL", "a@a")]
        {
            command.env(format!("GIT_{name}"), value);
        }
        command.output().expect("sh and git")
    }

    /// What git leaves when it is cut off; it asks the user to remove it.
    fn remove_locks(dir: &Path) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "lock") {
                let _ = fs::remove_file(&path);
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != "objects" {
                Self::remove_locks(&path);
            }
        }
    }
}

impl Ledger for Git {
    // A commit counts when `git` had ended with success, which needs requests that a gate refuses: always promised.
    fn promise(&self) {}

    fn check(&self, shared: &Shared<'_>, all: bool) {
        if !all {
            return;
        }
        let output = Self::git(shared, "cd \"$1\" && git fsck --full --strict 2>&1 && git rev-list --all");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "git fsck: {said}{}", String::from_utf8_lossy(&output.stderr));
        for word in ["missing", "corrupt", "broken", "error", "empty"] {
            assert!(!said.contains(word), "git fsck: {said}");
        }
        let commits = self.commits.lock().unwrap();
        let lost = commits.iter().filter(|commit| !said.contains(commit.as_str())).count();
        assert_eq!(lost, 0, "{lost} of {} commits are lost", commits.len());
        assert!(!commits.is_empty(), "nothing was ever committed");
        println!("git: {} commits, all there", commits.len());
    }

    fn work(&self, shared: &Shared<'_>) {
        let repository = shared.root.join("repository");
        let mut number = 0;
        while !shared.stopped() {
            number += 1;
            Self::remove_locks(&repository.join(".git"));
            let made = fs::create_dir_all(&repository).and_then(|()| {
                fs::write(repository.join(format!("f{}", number % 7)), noise(number, 3000 + number as usize % 9000))
            });
            if made.is_err() {
                shared.pause();
                continue;
            }
            let script = "cd \"$1\" && { [ -f .git/HEAD ] && [ -f .git/config ] || git init -q . ; } && git config gc.auto 0 && \
                          git add -A && git commit -qm work && git rev-parse --verify HEAD";
            let output = Self::git(shared, script);
            let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if output.status.success() && commit.len() == 40 {
                self.commits.lock().unwrap().push(commit);
                shared.count();
            } else {
                shared.pause();
            }
        }
        Self::remove_locks(&repository.join(".git"));
    }
}
