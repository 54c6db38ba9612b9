//! Overwrites blocks of one file in place, each with a version, as a database does.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::time::Duration;

use super::{Ledger, Random, Shared};
use crate::common::noise;

const BLOCKS: usize = 200;
const BLOCK: usize = 4096;

/// Versions by block; 0: never written.
struct State {
    tried: Vec<u64>,
    written: Vec<u64>,
    promised: Vec<u64>,
}

pub struct Blocks {
    id: u64,
    state: Mutex<State>,
}

impl Blocks {
    pub fn new(id: u64) -> Blocks {
        let state = State { tried: vec![0; BLOCKS], written: vec![0; BLOCKS], promised: vec![0; BLOCKS] };
        Blocks { id, state: Mutex::new(state) }
    }

    fn content(block: usize, version: u64) -> Vec<u8> {
        let mut bytes = version.to_le_bytes().to_vec();
        bytes.extend_from_slice(&noise(version << 16 | block as u64, BLOCK - 8));
        bytes
    }

    /// Compares the file with the ledger, and takes over what is there.
    fn compare(&self, file: &File) -> std::io::Result<()> {
        let mut bytes = vec![0; BLOCKS * BLOCK];
        let mut got = 0;
        while got < bytes.len() {
            match file.read_at(&mut bytes[got..], got as u64)? {
                0 => break,
                n => got += n,
            }
        }
        let state = &mut *self.state.lock().unwrap();
        for (block, found) in bytes.chunks(BLOCK).enumerate() {
            let version = u64::from_le_bytes(found[..8].try_into().unwrap());
            let (promised, tried) = (state.promised[block], state.tried[block]);
            assert!(
                (promised..=tried).contains(&version),
                "block {block} has version {version}; {promised} was promised, {tried} the last that was written"
            );
            let whole =
                if version == 0 { found.iter().all(|b| *b == 0) } else { found == Self::content(block, version) };
            assert!(whole, "block {block} is a mixture of versions, or damaged (version {version})");
            state.written[block] = version;
        }
        Ok(())
    }
}

impl Ledger for Blocks {
    fn promise(&self) {
        let state = &mut *self.state.lock().unwrap();
        state.promised.copy_from_slice(&state.written);
    }

    fn check(&self, shared: &Shared<'_>, all: bool) {
        // While it works, the worker itself compares each time that it opens the file.
        if all {
            self.compare(&File::open(shared.root.join("blocks")).unwrap()).unwrap();
        }
    }

    fn work(&self, shared: &Shared<'_>) {
        let mut random = Random(self.id);
        let mut version = 0;
        let path = shared.root.join("blocks");
        while !shared.stopped() {
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            let Ok(file) = opened.and_then(|file| self.compare(&file).map(|()| file)) else {
                shared.pause();
                continue;
            };
            while !shared.stopped() {
                version += 1;
                let block = random.below(BLOCKS as u64) as usize;
                self.state.lock().unwrap().tried[block] = version;
                if file.write_all_at(&Self::content(block, version), (block * BLOCK) as u64).is_err() {
                    break;
                }
                self.state.lock().unwrap().written[block] = version;
                if version.is_multiple_of(16) {
                    let written = self.state.lock().unwrap().written.clone();
                    if file.sync_data().is_err() {
                        break;
                    }
                    self.state.lock().unwrap().promised = written;
                }
                shared.count();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
