//! Appends known bytes to one file after the other.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use super::{Ledger, Random, Shared};
use crate::common::noise;

const LONGEST: usize = 512 * 1024;

#[derive(Default)]
struct State {
    /// Bytes written by file number.
    written: BTreeMap<u64, usize>,
    /// Bytes that must be there.
    promised: BTreeMap<u64, usize>,
    current: u64,
}

pub struct Append {
    id: u64,
    sync: bool,
    state: Mutex<State>,
}

impl Append {
    pub fn new(id: u64, sync: bool) -> Append {
        Append { id, sync, state: Mutex::default() }
    }

    fn path(&self, shared: &Shared<'_>, number: u64) -> PathBuf {
        shared.root.join(format!("append-{}-{number}", self.id))
    }

    fn content(&self, number: u64, length: usize) -> Vec<u8> {
        noise(self.id << 32 | number, length)
    }
}

impl Ledger for Append {
    fn promise(&self) {
        let state = &mut *self.state.lock().unwrap();
        for (number, written) in &state.written {
            let promised = state.promised.entry(*number).or_default();
            *promised = (*promised).max(*written);
        }
    }

    fn check(&self, shared: &Shared<'_>, all: bool) {
        let (promised, current) = {
            let state = self.state.lock().unwrap();
            (state.promised.clone(), state.current)
        };
        for (number, length) in promised.into_iter().filter(|(number, _)| all || *number < current) {
            let path = self.path(shared, number);
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; {length} bytes are lost", path.display()));
            assert!(bytes.len() >= length, "{}: {} of {length} promised bytes", path.display(), bytes.len());
            // What comes after the promise may be there or not, but never anything else.
            assert!(bytes == self.content(number, bytes.len()), "{}: other bytes than were written", path.display());
            if !all {
                let mut state = self.state.lock().unwrap();
                fs::remove_file(&path).unwrap();
                state.promised.remove(&number);
                state.written.remove(&number);
            }
        }
    }

    fn work(&self, shared: &Shared<'_>) {
        let mut random = Random(self.id);
        let mut number = 0;
        while !shared.stopped() {
            number += 1;
            self.state.lock().unwrap().current = number;
            let Ok(mut file) = OpenOptions::new().append(true).create_new(true).open(self.path(shared, number)) else {
                shared.pause();
                continue;
            };
            let content = self.content(number, LONGEST);
            let mut at = 0;
            while !shared.stopped() && at < LONGEST {
                let length = (1 + random.below(9000) as usize).min(LONGEST - at);
                if file.write_all(&content[at..at + length]).is_err() {
                    break;
                }
                at += length;
                let mut state = self.state.lock().unwrap();
                state.written.insert(number, at);
                drop(state);
                if self.sync {
                    if file.sync_data().is_err() {
                        break;
                    }
                    self.state.lock().unwrap().promised.insert(number, at);
                }
                shared.count();
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}
