//! A disk in memory that can lose power: what was written since the last sync survives in units of 4096 bytes, each or
//! not, in any order; changes of length and punches survive in order, up to some point.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use hyokfs::store::Disk;

const UNIT: u64 = 4096;
type Unit = Arc<[u8; UNIT as usize]>;

/// A small, seeded generator (splitmix64): a run is repeated from its seed alone.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// What is on the medium. Units that are not there are holes.
#[derive(Clone, Default)]
pub struct Medium {
    pub units: BTreeMap<u64, Unit>,
    pub len: u64,
}

/// Something done since the last sync.
#[derive(Clone)]
enum Event {
    Write { unit: u64, content: Unit, end: u64 },
    Len(u64),
    Punch { first: u64, behind: u64 },
}

/// What the disk holds for a crash at some moment: the state of the last sync and everything since.
#[derive(Clone, Default)]
pub struct Volatile {
    base: Medium,
    log: Vec<Event>,
}

/// How a disk deviates from the promise, to prove that the tests notice; the default is an honest disk.
#[derive(Clone, Copy, Default, Debug)]
pub struct Lies {
    /// `sync_data` does nothing and says it did.
    pub no_sync: bool,
    /// A crash may tear a unit between 512-byte sectors.
    pub tearing: bool,
    /// Punches that the file itself does before a cut do nothing and say they did.
    pub no_punch: bool,
    /// Every page lies 512 bytes off, so that it straddles two units.
    pub straddle: bool,
    /// Not a lie: the store says that it can't punch.
    pub cannot_punch: bool,
}

/// Which call goes wrong, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `EIO`, whatever the call is.
    Io,
    /// `ENOSPC` from calls that may need room.
    NoSpace,
    /// A write takes a part only, not up to a page's border.
    Short,
    /// A sync fails with `EIO`, and from then on the store takes for clean what it could not write: it stays in the cache,
    /// and no later sync writes it.
    LostSync,
}

#[derive(Default)]
struct Inner {
    cache: Medium,
    volatile: Volatile,
    /// What a crash just before each sync since the last [`Sim::take_past`] could have left.
    past: Vec<Volatile>,
    lies: Lies,
    /// Barriers that the file itself asks for do nothing while this is set.
    deaf: bool,
    /// The operation under way makes holes for the caller.
    holes: bool,
    /// Where a sync that takes its time has begun: the state then, and the events so far.
    mark: Option<(Medium, usize)>,
    /// Units whose newest content is in the cache only, and will not be written by any sync.
    lost: BTreeSet<u64>,
    fault: Option<(u64, Fault)>,
    hit: bool,
    syncs: u64,
}

/// A handle to one simulated file.
#[derive(Clone)]
pub struct Sim(Arc<Mutex<Inner>>);

fn cut(unit: &Unit, keep: u64) -> Unit {
    let mut content = **unit;
    content[keep as usize..].fill(0);
    Arc::new(content)
}

impl Medium {
    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.units.split_off(&len.div_ceil(UNIT));
            if let Some(unit) = self.units.get_mut(&(len / UNIT)) {
                *unit = cut(unit, len % UNIT);
            }
        }
        self.len = len;
    }
}

impl Volatile {
    /// One state that a power cut may leave.
    pub fn crash(&self, rng: &mut Rng, tearing: bool) -> Medium {
        let log = &self.log[..rng.below(self.log.len() as u64 + 1) as usize];
        let journal = rng.below(log.len() as u64 + 1) as usize;
        let mut versions: BTreeMap<u64, Vec<Option<Unit>>> =
            self.base.units.iter().map(|(at, unit)| (*at, vec![Some(unit.clone())])).collect();
        let mut frozen_from = u64::MAX;
        let mut frozen = BTreeSet::new();
        let mut len = self.base.len;
        for (step, event) in log.iter().enumerate() {
            let kept = step < journal;
            match event {
                Event::Write { unit, content, end } => {
                    if *unit >= frozen_from || frozen.contains(unit) {
                        continue;
                    }
                    versions.entry(*unit).or_insert_with(|| vec![None]).push(Some(content.clone()));
                    // Delayed allocation: the length may lag behind the write that grew it.
                    if kept && *end > len && rng.chance(70) {
                        len = *end;
                    }
                }
                Event::Len(new) if kept => {
                    for (_, all) in versions.range_mut(new.div_ceil(UNIT)..) {
                        *all = vec![None];
                    }
                    if new % UNIT != 0
                        && let Some(all) = versions.get_mut(&(new / UNIT))
                    {
                        all.iter_mut().flatten().for_each(|unit| *unit = cut(unit, new % UNIT));
                    }
                    len = *new;
                }
                Event::Len(new) => frozen_from = frozen_from.min(new / UNIT),
                Event::Punch { first, behind } if kept => {
                    versions.range_mut(first..behind).for_each(|(_, all)| *all = vec![None]);
                }
                Event::Punch { first, behind } => frozen.extend(*first..*behind),
            }
        }
        let mut medium = Medium { units: BTreeMap::new(), len: u64::MAX };
        for (at, all) in versions {
            // The newest and the oldest are where most mistakes show.
            let choice = if rng.chance(30) { all.len() - 1 } else { rng.below(all.len() as u64) as usize };
            let mut chosen = all[choice].clone();
            if tearing && rng.chance(30) {
                let (first, other) = (chosen.clone(), rng.pick(&all).clone());
                let mut mixed = first.map_or([0; UNIT as usize], |unit| *unit);
                let sector = 512 * (1 + rng.below(7) as usize);
                mixed[sector..].copy_from_slice(&other.map_or([0; UNIT as usize], |unit| *unit)[sector..]);
                chosen = Some(Arc::new(mixed));
            }
            if let Some(unit) = chosen {
                medium.units.insert(at, unit);
            }
        }
        medium.set_len(len);
        medium
    }
}

impl Sim {
    pub fn new(medium: Medium, lies: Lies) -> Self {
        let volatile = Volatile { base: medium.clone(), log: Vec::new() };
        Sim(Arc::new(Mutex::new(Inner { cache: medium, volatile, lies, ..Inner::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// What crashes just before each sync since the last call could have left.
    pub fn take_past(&self) -> Vec<Volatile> {
        std::mem::take(&mut self.lock().past)
    }

    /// What a crash now could leave.
    pub fn volatile(&self) -> Volatile {
        self.lock().volatile.clone()
    }

    /// A sync begins that takes its time.
    pub fn mark(&self) {
        let mut inner = self.lock();
        inner.mark = Some((inner.cache.clone(), inner.volatile.log.len()));
    }

    /// It ends, and has made durable what was there when it began, and nothing more.
    pub fn sync_to_mark(&self) {
        let mut inner = self.lock();
        // If another sync has come in between, everything up to the mark is durable already.
        if let Some((base, events)) = inner.mark.take() {
            let before = inner.volatile.clone();
            let log = inner.volatile.log.split_off(events);
            inner.volatile = Volatile { base, log };
            inner.past.push(before);
        }
    }

    /// While set, syncs do nothing.
    pub fn set_deaf(&self, deaf: bool) {
        self.lock().deaf = deaf;
    }

    /// While set, punches are the caller's and honest.
    pub fn set_holes(&self, holes: bool) {
        self.lock().holes = holes;
    }

    /// From now on the `n`-th call (from 1) that `fault` can happen to goes wrong.
    pub fn fail_at(&self, n: u64, fault: Fault) {
        let mut inner = self.lock();
        (inner.fault, inner.hit) = (Some((n, fault)), false);
    }

    /// Whether a call has gone wrong; if so the disk is well again.
    pub fn heal_if_hit(&self) -> bool {
        let mut inner = self.lock();
        let hit = std::mem::take(&mut inner.hit);
        if hit {
            inner.fault = None;
        }
        hit
    }

    /// Changes the medium behind everyone's back.
    pub fn tamper(&self, change: impl FnOnce(&mut Medium)) {
        let mut inner = self.lock();
        change(&mut inner.cache);
        inner.volatile = Volatile { base: inner.cache.clone(), log: Vec::new() };
    }
}

impl Inner {
    /// Whether this call is the one to go wrong.
    fn goes_wrong(&mut self, can: &[Fault]) -> Option<Fault> {
        let (n, fault) = self.fault.as_mut()?;
        if !can.contains(fault) {
            return None;
        }
        *n = n.checked_sub(1)?;
        let fault = (*n == 0).then_some(*fault);
        self.hit |= fault.is_some();
        fault
    }

    fn check(&mut self, can: &[Fault]) -> io::Result<()> {
        match self.goes_wrong(can) {
            None => Ok(()),
            Some(Fault::NoSpace) => Err(io::Error::from_raw_os_error(28)),
            Some(_) => Err(io::Error::from_raw_os_error(5)),
        }
    }

    /// What a sync that succeeds leaves on the medium.
    fn durable(&self) -> Medium {
        let mut medium = self.cache.clone();
        for unit in &self.lost {
            match self.volatile.base.units.get(unit) {
                Some(old) if medium.units.contains_key(unit) => drop(medium.units.insert(*unit, old.clone())),
                _ => drop(medium.units.remove(unit)),
            }
        }
        medium
    }

    fn shift(&self) -> u64 {
        if self.lies.straddle { 512 } else { 0 }
    }

    fn write(&mut self, mut buf: &[u8], mut off: u64) {
        while !buf.is_empty() {
            let (unit, within) = (off / UNIT, (off % UNIT) as usize);
            let take = buf.len().min(UNIT as usize - within);
            let mut content = self.cache.units.get(&unit).map_or([0; UNIT as usize], |unit| **unit);
            content[within..within + take].copy_from_slice(&buf[..take]);
            let content = Arc::new(content);
            (buf, off) = (&buf[take..], off + take as u64);
            self.cache.units.insert(unit, content.clone());
            self.lost.remove(&unit);
            self.cache.len = self.cache.len.max(off);
            self.volatile.log.push(Event::Write { unit, content, end: off });
        }
    }
}

impl Disk for Sim {
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        let mut inner = self.lock();
        inner.check(&[Fault::Io])?;
        let off = off + inner.shift();
        let len = inner.cache.len.saturating_sub(off).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = off + done as u64;
            let within = (at % UNIT) as usize;
            let take = (len - done).min(UNIT as usize - within);
            match inner.cache.units.get(&(at / UNIT)) {
                Some(unit) => buf[done..done + take].copy_from_slice(&unit[within..within + take]),
                None => buf[done..done + take].fill(0),
            }
            done += take;
        }
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], off: u64) -> io::Result<usize> {
        let mut inner = self.lock();
        let off = off + inner.shift();
        match inner.goes_wrong(&[Fault::Io, Fault::NoSpace, Fault::Short]) {
            None => {
                inner.write(buf, off);
                Ok(buf.len())
            }
            Some(Fault::Short) => {
                let some = buf.len().min(buf.len() / 2 + 100);
                inner.write(&buf[..some], off);
                Ok(some)
            }
            Some(fault) => {
                // Like a kernel that ran out of room midway: whole pages before it are there.
                let some = buf.len() / 2 / UNIT as usize * UNIT as usize;
                inner.write(&buf[..some], off);
                if some > 0 {
                    // The rest of the request is asked for again, and fails then.
                    inner.fault = Some((1, fault));
                    return Ok(some);
                }
                Err(io::Error::from_raw_os_error(if fault == Fault::NoSpace { 28 } else { 5 }))
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        let mut inner = self.lock();
        inner.check(&[Fault::Io])?;
        Ok(inner.cache.len.saturating_sub(inner.shift()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.check(&[Fault::Io, Fault::NoSpace])?;
        let len = len + inner.shift();
        inner.cache.set_len(len);
        inner.volatile.log.push(Event::Len(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.check(&[Fault::Io, Fault::NoSpace])?;
        if inner.goes_wrong(&[Fault::LostSync]).is_some() {
            let lost = inner.volatile.log.iter().filter_map(|event| match event {
                Event::Write { unit, .. } => Some(*unit),
                _ => None,
            });
            let lost: Vec<u64> = lost.collect();
            inner.lost.extend(lost);
            inner.volatile.log.retain(|event| !matches!(event, Event::Write { .. }));
            return Err(io::Error::from_raw_os_error(5));
        }
        inner.syncs += 1;
        if !inner.lies.no_sync && !inner.deaf {
            let base = inner.durable();
            let past = std::mem::replace(&mut inner.volatile, Volatile { base, log: Vec::new() });
            inner.past.push(past);
            inner.mark = None;
        }
        Ok(())
    }

    fn punch(&self, off: u64, len: u64) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.lies.cannot_punch {
            return Err(io::ErrorKind::Unsupported.into());
        }
        inner.check(&[Fault::Io, Fault::NoSpace])?;
        if inner.lies.no_punch && !inner.holes {
            return Ok(());
        }
        let off = off + inner.shift();
        let (first, behind) = (off.div_ceil(UNIT), (off + len) / UNIT);
        if !off.is_multiple_of(UNIT) {
            let end = (off + len).min(inner.cache.len);
            let edges = [(off, first * UNIT), (behind * UNIT, end)];
            for (from, to) in edges {
                inner.write(&vec![0; to.saturating_sub(from) as usize], from);
            }
        }
        let keys: Vec<u64> = inner.cache.units.range(first..behind).map(|(at, _)| *at).collect();
        keys.iter().for_each(|at| drop(inner.cache.units.remove(at)));
        inner.volatile.log.push(Event::Punch { first, behind });
        Ok(())
    }

    fn allocate(&self, _off: u64, _len: u64) -> io::Result<()> {
        self.lock().check(&[Fault::Io, Fault::NoSpace])
    }

    fn seek_data(&self, off: u64) -> io::Result<Option<u64>> {
        let mut inner = self.lock();
        inner.check(&[Fault::Io])?;
        let next = inner.cache.units.range(off / UNIT..).next();
        Ok(next.map(|(at, _)| (at * UNIT).max(off)).filter(|at| *at < inner.cache.len))
    }

    fn seek_hole(&self, off: u64) -> io::Result<u64> {
        let mut inner = self.lock();
        inner.check(&[Fault::Io])?;
        let mut at = off / UNIT;
        while inner.cache.units.contains_key(&at) {
            at += 1;
        }
        Ok((at * UNIT).max(off).min(inner.cache.len))
    }
}
