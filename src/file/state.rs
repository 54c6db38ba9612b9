//! What a page file knows in memory: its size, what may be on the disk after a power cut, and the floor.

use std::sync::Arc;

use crate::format::page::PageKeys;

/// The floor as it stands, or will stand, in page 0: plaintext bytes below `value` exist, and unless `sparse` in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Floor {
    pub value: u64,
    pub sparse: bool,
}

/// The highest floors among several versions of page 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Highest {
    any: u64,
    strict: u64,
}

impl Highest {
    fn add(&mut self, floor: Floor) {
        self.any = self.any.max(floor.value);
        if !floor.sparse {
            self.strict = self.strict.max(floor.value);
        }
    }
}

/// The floor that page 0 carries, and those that a power cut might bring back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Floors {
    /// What page 0 is sealed with.
    pub now: Floor,
    /// Versions that may be on the disk: the one the last sync made durable and all up to the mark.
    old: Highest,
    /// Versions written since the mark of a sync that is under way, or since the last one.
    new: Highest,
}

impl Floors {
    /// The floor as page 0 tells it.
    pub fn read(now: Floor) -> Self {
        let mut all = Highest::default();
        all.add(now);
        Floors { now, old: all, new: all }
    }

    /// Page 0 is about to be written with the floor `now`.
    pub fn written(&mut self) {
        self.new.add(self.now);
    }

    /// A sync begins: what is written from here on it need not cover.
    fn mark(&mut self) {
        self.old.any = self.old.any.max(self.new.any);
        self.old.strict = self.old.strict.max(self.new.strict);
        self.new = Highest::default();
        self.new.add(self.now);
    }

    /// The sync that began at the mark is over.
    fn synced(&mut self) {
        self.old = self.new;
    }

    /// The highest floor that may be on the disk.
    pub fn highest(&self) -> u64 {
        self.old.any.max(self.new.any)
    }

    /// The highest floor without SPARSE that may be on the disk.
    pub fn highest_strict(&self) -> u64 {
        self.old.strict.max(self.new.strict)
    }
}

/// Everything about one open file that its lock protects.
pub(super) struct State {
    /// `None` while locked.
    pub keys: Option<Arc<PageKeys>>,
    /// The file header, as page 0 carries it.
    pub header: Box<[u8]>,
    /// The plaintext size. The store is told it by the next `put_tail`.
    pub size: u64,
    /// The length of the ciphertext file; `None` after a failed write or cut.
    pub disk_len: Option<u64>,
    /// Whether the size tail is known to be a hole. A crash or a failed write can leave a part of a page in it.
    pub clean_tail: bool,
    /// Data bytes sealed in the last page; `None` where nobody has looked yet.
    pub last_len: Option<usize>,
    /// Whether the last page was longer than the size tail when the file was last known durable (at open and at each
    /// sync). Then old bytes could come back after a power cut if the file grew before the page is sealed anew and
    /// synced. `None`: not looked at, and nothing has changed since.
    pub overlong: Option<bool>,
    /// Whether a sync has failed since the last one that covered everything anew.
    pub unsure: bool,
    /// The floors.
    pub floors: Floors,
    /// The size that the last sync made durable, less what was truncated since.
    pub durable: u64,
    /// Whether a page may be a hole or shorter than its place. `None`: not known for the pages above the floor.
    pub ragged: Option<bool>,
    /// The smallest size since the sync under way began.
    cut: u64,
    /// Counts changes.
    changes: u64,
    /// The count of changes that the last sync covered.
    synced: Option<u64>,
    /// Counts syncs that have begun.
    syncs: u64,
}

/// What a sync that has begun will have made durable when it ends with success.
#[derive(Debug)]
#[must_use = "a sync that never ends leaves the file with older knowledge: safe, but slower later"]
pub struct Snapshot {
    size: u64,
    overlong: Option<bool>,
    changes: u64,
    syncs: u64,
    sure: bool,
}

impl State {
    /// The state of a file just opened or made.
    pub fn new(keys: Arc<PageKeys>, header: Box<[u8]>, size: u64, disk_len: u64, floor: Floor) -> Self {
        State {
            keys: Some(keys),
            header,
            size,
            disk_len: Some(disk_len),
            clean_tail: false,
            last_len: None,
            overlong: None,
            unsure: false,
            floors: Floors::read(floor),
            durable: floor.value,
            ragged: None,
            cut: u64::MAX,
            changes: 0,
            synced: None,
            syncs: 0,
        }
    }

    /// Something in the store was, or may have been, changed.
    pub fn changed(&mut self) {
        self.changes += 1;
    }

    /// A write or cut failed: nobody knows how far it got.
    pub fn in_doubt(&mut self) {
        self.changed();
        self.last_len = None;
        self.disk_len = None;
        self.clean_tail = false;
    }

    /// The file became `size` bytes long by a cut.
    pub fn cut_to(&mut self, size: u64) {
        self.size = size;
        self.cut = self.cut.min(size);
        self.durable = self.durable.min(size);
        if size == 0 {
            self.ragged = Some(false);
        }
    }

    /// Whether nothing has changed since the last sync.
    pub fn is_synced(&self) -> bool {
        self.synced == Some(self.changes)
    }

    /// Whether anything has changed since the file was opened.
    pub fn was_changed(&self) -> bool {
        self.changes != 0
    }

    /// A sync begins. `tail` is what the last page should hold at the present size; `sure` says that no sync has failed, or
    /// that what it left in doubt was written again.
    pub fn begin_sync(&mut self, tail: usize, sure: bool) -> Snapshot {
        self.syncs += 1;
        self.floors.mark();
        self.cut = u64::MAX;
        let known = self.was_changed() && sure;
        let overlong = if known { self.last_len.map(|len| len > tail) } else { self.overlong };
        if overlong == Some(true) {
            // Already while the sync is under way: growth that overtakes it must not rely on the state before.
            self.overlong = overlong;
        }
        Snapshot { size: self.size, overlong, changes: self.changes, syncs: self.syncs, sure }
    }

    /// The sync is over, with success.
    pub fn end_sync(&mut self, begun: Snapshot) {
        if begun.syncs != self.syncs {
            // Another one began later: only its end is counted from its own beginning.
            return;
        }
        self.durable = begun.size.min(self.cut);
        self.synced = Some(begun.changes);
        if begun.sure {
            self.unsure = false;
            self.floors.synced();
        }
        // Without an answer the present one stays: it was found by the first change after the sync began.
        if begun.overlong.is_some() {
            self.overlong = begun.overlong;
        }
    }
}
