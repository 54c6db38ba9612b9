//! A SQLite database: one small transaction after the other, each synced. The program is started again whenever the
//! lock has ended it, by an error or (it maps the WAL's index) by a signal.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Ledger, Shared};
use crate::common::PATIENCE;
use crate::common::wait_child;

const PROGRAM: &str = include_str!("sqlite.py");

pub struct Sqlite {
    mode: &'static str,
}

impl Sqlite {
    /// `mode` is the journal's.
    pub fn new(mode: &'static str) -> Sqlite {
        Sqlite { mode }
    }

    fn ledger(&self, shared: &Shared<'_>) -> PathBuf {
        shared.outside.join(format!("{}.ledger", self.mode))
    }

    fn program(&self, shared: &Shared<'_>, task: &str) -> Command {
        let mut command = shared.store.world.command("python3");
        command.args(["-c", PROGRAM, task, self.mode]);
        command.arg(shared.root.join(format!("{}.db", self.mode))).arg(self.ledger(shared));
        command
    }
}

impl Ledger for Sqlite {
    // Every transaction is in the ledger only after its sync: always promised.
    fn promise(&self) {}

    fn check(&self, shared: &Shared<'_>, all: bool) {
        if all {
            let output = self.program(shared, "check").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "SQLite ({} journal): {said}", self.mode);
            println!("SQLite ({} journal): {}", self.mode, said.trim());
        }
    }

    fn work(&self, shared: &Shared<'_>) {
        fs::write(self.ledger(shared), "").unwrap();
        while !shared.stopped() {
            let mut child = self
                .program(shared, "work")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("python3 with sqlite3");
            while child.try_wait().unwrap().is_none() {
                if shared.stopped() {
                    // In the middle of a transaction, as likely as not.
                    child.kill().unwrap();
                    wait_child(&mut child, PATIENCE).expect("the end of SQLite's program");
                }
                shared.pause();
            }
            shared.pause();
        }
    }
}
