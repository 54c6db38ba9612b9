//! Making things durable: the size tail, the sync, the floor.

use std::io;

use super::state::{Floor, Snapshot, State};
use super::{FileError, PageFile};
use crate::format::page::{PAGE, is_hole};
use crate::store::Disk;
use crate::sys::aligned::with_scratch;
use crate::sys::sync::{Ordering, PoisonError};

/// Pages that are read through, at most, to find out whether the file has holes before the floor is put.
const SCAN: u64 = 1024;

const ZEROS: [u8; PAGE] = [0; PAGE];

impl<D: Disk> PageFile<D> {
    /// Tells the store the size: for flush, release and before a lock. Nothing is synced. Needs no key.
    ///
    /// # Errors
    /// [`FileError::Io`]; the next call tries again.
    pub fn put_tail(&self) -> Result<(), FileError> {
        self.tell_size(&mut self.change())
    }

    /// Makes everything written so far durable: the size tail and one `fdatasync`, during which reads and writes go on.
    /// Needs no key.
    ///
    /// # Errors
    /// [`FileError::Io`]: nothing may be taken as durable.
    pub fn sync(&self) -> Result<(), FileError> {
        self.sync_by(D::sync_data)
    }

    /// As [`PageFile::sync`], with the times, mode and owner of the ciphertext file: one `fsync`.
    ///
    /// # Errors
    /// [`FileError::Io`]: nothing may be taken as durable.
    pub fn sync_all(&self) -> Result<(), FileError> {
        self.sync_by(D::sync_all)
    }

    fn sync_by(&self, sync: impl Fn(&D) -> io::Result<()>) -> Result<(), FileError> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = self.begin_sync()?;
        if let Err(error) = sync(&self.disk) {
            self.failed(&mut self.change());
            return Err(error.into());
        }
        self.end_sync(begun);
        Ok(())
    }

    /// How many syncs of this file have failed, the file's own ones among them. The store tells an error once for each
    /// descriptor, and there is but one: whoever asks for a sync on behalf of several programs must compare, so that each
    /// of them is told.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Acquire)
    }

    /// A sync failed. The store may now take for clean what never reached the disk.
    fn failed(&self, state: &mut State) {
        state.unsure = true;
        self.failures.fetch_add(1, Ordering::AcqRel);
    }

    /// Before a sync: if one has failed, another would succeed without writing what that one left. What later steps rely
    /// on is written once more: page 0 with its floor, and a last page that was overlong. Gives whether that was done.
    fn write_again(&self, state: &mut State) -> Result<bool, FileError> {
        if !state.unsure {
            return Ok(true);
        }
        if state.keys.is_none() {
            return Ok(false);
        }
        let last = self.geometry.pages(state.size) - 1;
        let overlong = (last > 0 && state.overlong == Some(true)).then_some(last);
        for page in [Some(0), overlong].into_iter().flatten() {
            match self.rewrite_page(state, page) {
                Ok(()) => {}
                Err(FileError::Damaged { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The first half of a sync that the caller does for many files at once (`syncfs`): puts the tail and remembers what
    /// the sync will cover. After the store has been synced, give the result to [`PageFile::end_sync`]. Needs no key.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn begin_sync(&self) -> Result<Snapshot, FileError> {
        self.snapshot(&mut self.change())
    }

    /// As [`PageFile::begin_sync`], but nothing if a request is at work on the file: a lock cannot wait for one that
    /// hangs in the store.
    pub fn try_begin_sync(&self) -> Option<Result<Snapshot, FileError>> {
        self.try_change().map(|mut state| self.snapshot(&mut state))
    }

    fn snapshot(&self, state: &mut State) -> Result<Snapshot, FileError> {
        self.tell_size(state)?;
        if state.was_changed() {
            self.last_len(state)?;
        }
        let sure = self.write_again(state)?;
        Ok(state.begin_sync(self.geometry.tail(state.size) as usize, sure))
    }

    /// The second half: everything up to `begun` is durable now. Not to be called if the sync failed.
    pub fn end_sync(&self, begun: Snapshot) {
        self.change().end_sync(begun);
    }

    /// Records in page 0 that everything up to the size that the last sync made durable must be there from now on. Call
    /// it at leisure after a sync: at release, or when idle. It writes page 0 where the record changes, reads up to
    /// 4 MiB to learn whether the file has holes, and syncs only where the record turns from "in full" to "sparse".
    ///
    /// # Errors
    /// [`FileError::Locked`], [`FileError::Damaged`] if page 0 doesn't open, [`FileError::Io`]; the old record stays.
    pub fn put_floor(&self) -> Result<(), FileError> {
        let state = &mut *self.change();
        if state.keys.is_none() {
            return Err(FileError::Locked);
        }
        let old = state.floors.now;
        let value = state.durable.min(state.size).max(old.value);
        if value == 0 || (value == old.value && (state.ragged != Some(false) || !old.sparse)) {
            return Ok(());
        }
        if state.ragged != Some(false) && state.is_synced() {
            // Above a strict floor only the pages from there on can be ragged, unless a hole was made since.
            let known = if state.ragged.is_none() { self.geometry.page_of(old.value) } else { 0 };
            let pages = known..self.geometry.pages(state.size);
            if pages.end - pages.start <= SCAN {
                state.ragged = Some(self.is_ragged(state, pages)?);
            }
        } else if state.ragged.is_none() {
            // What is there now need not be what the sync made durable: the next sync will tell.
            return Ok(());
        }
        self.settle_last(state, false, self.geometry.pages(state.size) == 1)?;
        let new = Floor { value, sparse: state.ragged != Some(false) };
        state.floors.now = new;
        if let Err(error) = self.rewrite_page(state, 0) {
            state.floors.now = old;
            return Err(error);
        }
        if new.sparse && !old.sparse && old.value > 0 {
            // Whoever opens the file next sees SPARSE and would punch holes without a sync, while the disk may still
            // hold a record without it.
            self.barrier(state)?;
        }
        Ok(())
    }

    /// Makes everything durable while the lock is held: before a step that must not overtake what came before it.
    pub(super) fn barrier(&self, state: &mut State) -> Result<(), FileError> {
        let begun = self.snapshot(state)?;
        if let Err(error) = self.disk.sync_data() {
            self.failed(state);
            return Err(error.into());
        }
        state.end_sync(begun);
        Ok(())
    }

    /// Gives the ciphertext file the length that tells the size.
    pub(super) fn tell_size(&self, state: &mut State) -> Result<(), FileError> {
        self.set_disk_len(state, state.size)
    }

    /// Gives the ciphertext file the length that tells `size`.
    pub(super) fn set_disk_len(&self, state: &mut State, size: u64) -> Result<(), FileError> {
        let target = self.geometry.cipher_len(size).ok_or(FileError::TooBig)?;
        let len = self.disk_len(state)?;
        if len == target {
            return Ok(());
        }
        let border = target - target % PAGE as u64;
        if target > border && len / PAGE as u64 > target / PAGE as u64 {
            // A cut inside a page would leave the start of its seal under the tail: a torn page, should the file grow
            // again. So that page becomes a hole first.
            self.erase(state, border)?;
        }
        state.changed();
        state.disk_len = None;
        self.disk.set_len(target)?;
        state.disk_len = Some(target);
        Ok(())
    }

    /// Makes sure that page `index`, the first behind the last, is a hole as far as the size tail reaches over it.
    pub(super) fn clean_tail(&self, state: &mut State, index: u64) -> Result<(), FileError> {
        let border = index * PAGE as u64;
        let tail = self.disk_len(state)?.saturating_sub(border).min(PAGE as u64) as usize;
        let clean = with_scratch(tail, |buf, _| super::fetch(&self.disk, border, buf).map(|got| is_hole(&buf[..got])))?;
        // After a failed sync the zeros may be in the cache only.
        if !clean || state.unsure {
            state.changed();
            self.erase(state, border)?;
        }
        state.clean_tail = true;
        Ok(())
    }

    /// Makes the page at `border` a hole, before any later change of the length.
    fn erase(&self, state: &mut State, border: u64) -> Result<(), FileError> {
        match self.disk.punch(border, PAGE as u64) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                // A write is not ordered before a change of length as a punch is: it has to be durable. It must not
                // change the length itself, which would tell another size.
                let (end, mut at) = (self.disk.len()?.min(border + PAGE as u64), border);
                while at < end {
                    match self.disk.write_at(&ZEROS[..(end - at) as usize], at)? {
                        0 => return Err(FileError::Io(io::ErrorKind::WriteZero.into())),
                        wrote => at += wrote as u64,
                    }
                }
                self.disk.sync_data().inspect_err(|_| self.failed(state))?;
                Ok(())
            }
            other => Ok(other?),
        }
    }
}
