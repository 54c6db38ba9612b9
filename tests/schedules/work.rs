//! One run: the owners, what they do, and what they demand.

use std::io;
use std::sync::Arc;

use hyokfs::crypto::{Secret, Suite};
use hyokfs::format::page::PageKeys;
use hyokfs::format::{FileId, VolumeId};
use hyokfs::store::Disk;
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::thread;

use crate::file::{FileError, PageFile};
use crate::sim::{Lies, Medium, Rng, Sim};

const HEADER: usize = 1024;
/// Plaintext bytes in page 0 and in the others.
const FIRST: u64 = 3016;
const CAP: u64 = 4056;
/// The owners' bytes lie below; what lies above belongs to the one who cuts.
const FIXED: u64 = FIRST + 2 * CAP;
/// (start, end) of each owner, on both sides of the pages' edges.
const OWNED: [&[(u64, u64)]; 3] = [
    &[(0, 40), (FIRST - 30, FIRST + 30), (FIRST + CAP + 500, FIRST + CAP + 700)],
    &[(40, 900), (FIRST + 30, FIRST + CAP + 20), (FIXED - 50, FIXED)],
    &[(900, FIRST - 30), (FIRST + CAP + 20, FIRST + CAP + 500), (FIRST + CAP + 700, FIXED - 50)],
];

/// A mistake that the test must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// An owner reads the page around its bytes, and writes it whole.
    MixedOutside,
    /// An owner takes its bytes for durable without a sync.
    NoSync,
}

/// The simulated disk; other threads go on before each call, and during a sync.
struct Yielding(Sim);

impl Disk for Yielding {
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        thread::yield_now();
        self.0.read_at(buf, off)
    }
    fn write_at(&self, buf: &[u8], off: u64) -> io::Result<usize> {
        thread::yield_now();
        self.0.write_at(buf, off)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        thread::yield_now();
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.mark();
        thread::yield_now();
        self.0.sync_to_mark();
        Ok(())
    }
    fn punch(&self, off: u64, len: u64) -> io::Result<()> {
        thread::yield_now();
        self.0.punch(off, len)
    }
    fn allocate(&self, off: u64, len: u64) -> io::Result<()> {
        self.0.allocate(off, len)
    }
    fn seek_data(&self, off: u64) -> io::Result<Option<u64>> {
        self.0.seek_data(off)
    }
    fn seek_hole(&self, off: u64) -> io::Result<u64> {
        self.0.seek_hole(off)
    }
}

struct Shared {
    file: PageFile<Yielding>,
    sim: Sim,
    keys: Arc<PageKeys>,
}

fn keys() -> Arc<PageKeys> {
    let secret = |byte| Secret::from_fn(|bytes: &mut [u8; 32]| *bytes = [byte; 32]).unwrap();
    let (volume, file) = (VolumeId([3; 16]), FileId([4; 16]));
    Arc::new(PageKeys::new(Suite::Aes256Gcm, &secret(1), &secret(2), &volume, &file).unwrap())
}

/// Again while the keys are away.
fn insist<T>(mut work: impl FnMut() -> Result<T, FileError>) -> T {
    loop {
        match work() {
            Ok(value) => return value,
            Err(FileError::Locked) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// What an owner's ranges hold.
type Own = Vec<((u64, u64), Vec<u8>)>;

fn check<D: Disk>(file: &PageFile<D>, own: &Own, when: &str) {
    for ((start, end), want) in own {
        let mut got = vec![0xee; (end - start) as usize];
        let read = insist(|| file.read(*start, &mut got));
        assert_eq!(read, got.len(), "{when}: bytes {start} to {end} are cut off");
        if let Some(at) = got.iter().zip(want).position(|(a, b)| a != b) {
            let byte = *start + at as u64;
            panic!("{when}: byte {byte} of {start}..{end} is {}, not {}", got[at], want[at]);
        }
    }
}

/// A few of the states that a power cut now could leave.
fn cut_power(shared: &Shared, own: &Own, rng: &mut Rng) {
    let volatile = shared.sim.volatile();
    for _ in 0..3 {
        let crashed = Yielding(Sim::new(volatile.crash(rng, false), Lies::default()));
        let file = PageFile::open(crashed, HEADER, shared.keys.clone()).expect("after a power cut");
        check(&file, own, "after a power cut");
    }
}

fn owner(shared: &Shared, index: usize, mut rng: Rng, flaw: Flaw) {
    let file = &shared.file;
    let mut own: Own = OWNED[index].iter().map(|span| (*span, vec![0; (span.1 - span.0) as usize])).collect();
    for step in 0..4 {
        let which = rng.below(own.len() as u64) as usize;
        let ((start, end), have) = &mut own[which];
        let byte = 1 + index as u8 * 64 + step;
        if flaw == Flaw::MixedOutside {
            let mut whole = vec![0; FIXED as usize];
            insist(|| file.read(0, &mut whole));
            whole[*start as usize..*end as usize].fill(byte);
            insist(|| file.write(0, &whole));
        } else {
            let data = vec![byte; (*end - *start) as usize];
            insist(|| file.write(*start, &data));
        }
        have.fill(byte);
        check(file, &own, "while it is open");
        if rng.chance(60) {
            if flaw != Flaw::NoSync {
                file.sync().unwrap();
            }
            cut_power(shared, &own, &mut rng);
        }
        if rng.chance(30) {
            insist(|| file.put_floor());
        }
    }
}

/// Cuts and extends the file above the owners' bytes.
fn cutter(shared: &Shared, mut rng: Rng) {
    let (file, mut tail) = (&shared.file, Vec::new());
    for step in 0..4 {
        if rng.chance(50) {
            let size = rng.below(CAP + 900);
            insist(|| file.truncate(FIXED + size));
            tail.resize(size as usize, 0);
        } else {
            let data = vec![200 + step; 1 + rng.below(3000) as usize];
            insist(|| file.write(FIXED + tail.len() as u64, &data));
            tail.extend(data);
        }
        let mut got = vec![0; tail.len() + 10];
        let read = insist(|| file.read(FIXED, &mut got));
        assert!(got[..read] == tail, "the end of the file: {read} bytes, {} expected", tail.len());
        if rng.chance(40) {
            file.put_tail().unwrap();
        }
    }
}

/// Takes the keys away and gives them back, and puts other headers.
fn keeper(shared: &Shared, mut rng: Rng) {
    for _ in 0..2 {
        if rng.chance(50) {
            shared.file.drop_keys();
            thread::yield_now();
            shared.file.restore_keys(shared.keys.clone()).unwrap();
        } else {
            let header = vec![1 + rng.below(200) as u8; HEADER];
            insist(|| shared.file.set_header(&header));
            assert!(shared.file.header() == header, "nobody else puts headers");
        }
    }
}

/// One run; the scheduler decides about everything.
pub fn scenario(flaw: Flaw) {
    let (sim, keys) = (Sim::new(Medium::default(), Lies::default()), keys());
    let file = PageFile::create(Yielding(sim.clone()), &[1; HEADER], keys.clone()).unwrap();
    file.truncate(FIXED).unwrap();
    file.sync().unwrap();
    let shared = Arc::new(Shared { file, sim, keys });
    let seed: u64 = thread_rng().r#gen();
    let mut threads = Vec::new();
    let mut start = |work: Box<dyn FnOnce(&Shared) + Send>| {
        let shared = Arc::clone(&shared);
        threads.push(thread::spawn(move || work(&shared)));
    };
    for index in 0..OWNED.len() {
        start(Box::new(move |shared| owner(shared, index, Rng(seed ^ index as u64), flaw)));
    }
    start(Box::new(move |shared| cutter(shared, Rng(seed ^ 77))));
    start(Box::new(move |shared| keeper(shared, Rng(seed ^ 99))));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
