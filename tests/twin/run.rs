//! One seeded run: operations on a page file over a simulated disk, a power cut at any moment, recovery, and again.

use std::fmt;
use std::sync::Arc;

use hyokfs::crypto::{Secret, Suite};
use hyokfs::file::{FileError, PageFile, Snapshot};
use hyokfs::format::page::PageKeys;
use hyokfs::format::{FileId, VolumeId};

use crate::sim::{Lies, Medium, Rng, Sim, Volatile};

pub const HEADER: usize = 1024;
/// Plaintext bytes in page 0 and in the others, for headers of 1024 bytes.
pub const FIRST: u64 = 3016;
pub const CAP: u64 = 4056;
const MOST: u64 = FIRST + 3 * CAP + 40;

pub fn keys() -> Arc<PageKeys> {
    let secret = |byte| Secret::from_fn(|bytes: &mut [u8; 32]| *bytes = [byte; 32]).unwrap();
    let suite = Suite::Aes256Gcm;
    Arc::new(PageKeys::new(suite, &secret(1), &secret(2), &VolumeId([3; 16]), &FileId([4; 16])).unwrap())
}

pub fn header(byte: u8) -> Vec<u8> {
    vec![byte; HEADER]
}

#[derive(Clone, Debug)]
pub enum Op {
    Write(u64, u64, u8),
    Truncate(u64),
    Punch(u64, u64),
    Zero(u64, u64, bool),
    Allocate(u64, u64, bool),
    Sync,
    PutTail,
    PutFloor,
    SetHeader(u8),
    Reopen,
}

impl Op {
    /// An operation with its ends near the edges of pages, of bytes that no other operation writes.
    pub fn random(rng: &mut Rng, byte: u8) -> Op {
        let (a, b) = (edge(rng), edge(rng));
        let (from, to) = (a.min(b), a.max(b));
        match rng.below(100) {
            0..34 => Op::Write(from, if rng.chance(50) { 1 + rng.below(60) } else { (to - from).max(1) }, byte),
            34..48 => Op::Truncate(from),
            48..54 => Op::Punch(from, to - from),
            54..58 => Op::Zero(from, to - from, rng.chance(50)),
            58..61 => Op::Allocate(from, to - from, rng.chance(50)),
            61..80 => Op::Sync,
            80..85 => Op::PutTail,
            85..93 => Op::PutFloor,
            93..95 => Op::SetHeader(byte),
            _ => Op::Reopen,
        }
    }

    /// What the operation does to the bytes of the file.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        let grow = |bytes: &mut Vec<u8>, end: u64| bytes.resize(bytes.len().max(end as usize), 0);
        let zero = |bytes: &mut Vec<u8>, off: u64, len: u64| {
            let end = bytes.len().min((off + len) as usize);
            if (off as usize) < end {
                bytes[off as usize..end].fill(0);
            }
        };
        match *self {
            Op::Write(off, len, byte) => {
                grow(bytes, off + len);
                bytes[off as usize..(off + len) as usize].fill(byte);
            }
            Op::Truncate(size) => bytes.resize(size as usize, 0),
            Op::Punch(off, len) => zero(bytes, off, len),
            Op::Zero(off, len, keep) => {
                zero(bytes, off, len);
                if !keep && len > 0 {
                    grow(bytes, off + len);
                }
            }
            Op::Allocate(off, len, keep) if !keep && len > 0 => grow(bytes, off + len),
            _ => {}
        }
    }

    /// Does it to the file. `Reopen` is the caller's.
    pub fn perform(&self, file: &PageFile<Sim>) -> Result<(), FileError> {
        match *self {
            Op::Write(off, len, byte) => file.write(off, &vec![byte; len as usize]),
            Op::Truncate(size) => file.truncate(size),
            Op::Punch(off, len) => file.punch(off, len),
            Op::Zero(off, len, keep) => file.zero_range(off, len, keep),
            Op::Allocate(off, len, keep) => file.allocate(off, len, keep),
            Op::Sync => file.sync(),
            Op::PutTail | Op::Reopen => file.put_tail(),
            Op::PutFloor => file.put_floor(),
            Op::SetHeader(byte) => file.set_header(&header(byte)),
        }
    }

    /// The ends of what it touches: between them and the edges of pages every byte has the same history.
    fn ends(&self) -> [u64; 2] {
        match *self {
            Op::Write(off, len, _) | Op::Punch(off, len) | Op::Zero(off, len, _) | Op::Allocate(off, len, _) => {
                [off, off + len]
            }
            Op::Truncate(size) => [size, size],
            _ => [0, 0],
        }
    }
}

/// An offset near the edge of a page.
fn edge(rng: &mut Rng) -> u64 {
    let base = *rng.pick(&[0, 0, FIRST, FIRST, FIRST + CAP, FIRST + 2 * CAP]);
    match rng.below(4) {
        0 => base,
        1 => (base + rng.below(5)).saturating_sub(2),
        2 => base + rng.below(40),
        _ => base + rng.below(FIRST),
    }
    .min(MOST)
}

/// A broken promise, with everything that repeats it.
pub struct Failure {
    seed: u64,
    ops: Vec<Op>,
    what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}\n  after {:?}", self.seed, self.what, self.ops)
    }
}

pub fn read_all(file: &PageFile<Sim>) -> Result<Vec<u8>, FileError> {
    let mut bytes = vec![0xaa; file.size() as usize];
    let read = file.read(0, &mut bytes)?;
    assert_eq!(read, bytes.len());
    Ok(bytes)
}

/// How to run.
#[derive(Clone, Copy, Default)]
pub struct Plan {
    pub lies: Lies,
    /// The barriers that the file itself asks for do nothing in these operations.
    pub deaf: Deaf,
}

/// In which operations the file's own barriers do nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Deaf {
    #[default]
    None,
    /// Where the file grows.
    Growing,
    /// In cuts and holes.
    Shrinking,
}

/// One run. Gives the number of crash states that were checked.
pub fn run(seed: u64, plan: Plan, keys: &Arc<PageKeys>) -> Result<u64, Failure> {
    let mut run = Run {
        rng: Rng(seed),
        plan,
        keys,
        points: vec![0, FIRST, FIRST + CAP, FIRST + 2 * CAP, FIRST + 3 * CAP],
        ops: Vec::new(),
        states: 0,
        byte: 0,
    };
    let done = run.go();
    done.map(|()| run.states).map_err(|what| Failure { seed, ops: run.ops, what })
}

struct Run<'a> {
    rng: Rng,
    plan: Plan,
    keys: &'a Arc<PageKeys>,
    points: Vec<u64>,
    ops: Vec<Op>,
    states: u64,
    byte: u8,
}

impl Run<'_> {
    fn go(&mut self) -> Result<(), String> {
        let sim = Sim::new(Medium::default(), self.plan.lies);
        let file = PageFile::create(sim.clone(), &header(1), self.keys.clone()).map_err(|e| e.to_string())?;
        file.sync().map_err(|e| e.to_string())?;
        sim.take_past();
        let (mut sim, mut file, mut bytes) = (sim, file, Vec::new());
        for phase in 0..4 {
            let count = if phase == 0 { 8 } else { 3 };
            let Some(crashed) = self.phase(&sim, file, bytes, count)? else { return Ok(()) };
            sim = Sim::new(crashed, self.plan.lies);
            file = self.open(&sim)?;
            bytes = read_all(&file).map_err(|e| format!("after a crash: {e}"))?;
            self.ops.push(Op::Reopen);
        }
        Ok(())
    }

    fn open(&self, sim: &Sim) -> Result<PageFile<Sim>, String> {
        PageFile::open(sim.clone(), HEADER, self.keys.clone()).map_err(|e| format!("does not open: {e}"))
    }

    /// Some operations, with crash states checked after (and inside) each; gives one of the states to go on from.
    fn phase(
        &mut self,
        sim: &Sim,
        mut file: PageFile<Sim>,
        mut bytes: Vec<u8>,
        count: usize,
    ) -> Result<Option<Medium>, String> {
        let mut history = vec![bytes.clone()];
        let mut survivor = None;
        let mut slow: Option<(Snapshot, usize)> = None;
        for _ in 0..count {
            self.byte = self.byte % 250 + 1;
            if slow.is_none() && self.rng.chance(8) {
                // A sync that other operations overtake: it acknowledges what was there when it began.
                slow = Some((file.begin_sync().map_err(|e| e.to_string())?, history.len() - 1));
                sim.mark();
            }
            let op = Op::random(&mut self.rng, self.byte);
            self.ops.push(op.clone());
            self.points.extend(op.ends());
            let before = bytes.len();
            op.apply(&mut bytes);
            sim.set_deaf(match self.plan.deaf {
                Deaf::None => false,
                Deaf::Growing => bytes.len() > before,
                Deaf::Shrinking => bytes.len() < before || matches!(op, Op::Punch(..) | Op::Zero(..)),
            });
            sim.set_holes(matches!(op, Op::Punch(..) | Op::Zero(..)));
            op.perform(&file).map_err(|e| format!("{op:?} failed: {e}"))?;
            sim.set_deaf(false);
            if matches!(op, Op::Reopen) {
                slow = None;
                drop(file);
                file = self.open(sim)?;
            }
            history.push(bytes.clone());
            let live = read_all(&file).map_err(|e| format!("cannot be read: {e}"))?;
            if live != bytes {
                let at = (0..bytes.len().max(live.len())).find(|at| live.get(*at) != bytes.get(*at));
                let at = at.unwrap_or(0);
                return Err(format!(
                    "without any crash byte {at} is {:?} instead of {:?}; {} bytes instead of {}",
                    live.get(at),
                    bytes.get(at),
                    live.len(),
                    bytes.len()
                ));
            }
            for past in sim.take_past() {
                for _ in 0..3 {
                    survivor = self.check(&past, &history)?.or(survivor);
                }
            }
            if matches!(op, Op::Sync) {
                history = vec![bytes.clone()];
                slow = slow.map(|(begun, _)| (begun, 0));
            }
            if self.rng.chance(40)
                && let Some((begun, acked)) = slow.take()
            {
                sim.sync_to_mark();
                file.end_sync(begun);
                for past in sim.take_past() {
                    survivor = self.check(&past, &history)?.or(survivor);
                }
                history.drain(..acked);
            }
            let volatile = sim.volatile();
            for _ in 0..5 {
                survivor = self.check(&volatile, &history)?.or(survivor);
            }
        }
        Ok(survivor)
    }

    /// Checks one crash state; now and then gives it back.
    fn check(&mut self, volatile: &Volatile, history: &[Vec<u8>]) -> Result<Option<Medium>, String> {
        let medium = volatile.crash(&mut self.rng, self.plan.lies.tearing);
        self.states += 1;
        let file = self.open(&Sim::new(medium.clone(), self.plan.lies))?;
        let found = read_all(&file).map_err(|e| format!("cannot be read after a crash: {e}"))?;
        let sizes = || history.iter().map(Vec::len);
        if Some(found.len()) < sizes().min() || Some(found.len()) > sizes().max() {
            return Err(format!("{} bytes after a crash, had {:?}", found.len(), sizes().collect::<Vec<_>>()));
        }
        if self.states.is_multiple_of(64) {
            (0..found.len()).try_for_each(|at| check_byte(at, &found, history))?;
        } else {
            for point in &self.points {
                check_byte(*point as usize, &found, history)?;
                check_byte((*point as usize).wrapping_sub(1), &found, history)?;
            }
            check_byte(found.len().wrapping_sub(1), &found, history)?;
        }
        Ok(self.rng.chance(30).then_some(medium))
    }
}

/// An acknowledged byte that nothing has touched since must be there; any other is old, new or zero.
fn check_byte(at: usize, found: &[u8], history: &[Vec<u8>]) -> Result<(), String> {
    let Some(byte) = found.get(at) else { return Ok(()) };
    let acked = history[0].get(at);
    if acked.is_some() && acked != Some(byte) && history.iter().all(|bytes| bytes.get(at) == acked) {
        return Err(format!("acknowledged byte at {at} lost: {byte} instead of {acked:?}"));
    }
    if *byte != 0 && !history.iter().any(|bytes| bytes.get(at) == Some(byte)) {
        return Err(format!("byte at {at} is {byte}, which it never was since the last sync"));
    }
    Ok(())
}
