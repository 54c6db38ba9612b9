//! Changing a file's shape: cutting, growing, holes.

use std::io;

use super::state::State;
use super::write::Source;
use super::{FileError, PageFile};
use crate::format::page::PAGE;
use crate::store::Disk;

impl<D: Disk> PageFile<D> {
    /// Makes the file `size` bytes long; what is new reads as zeros. The store knows the size at once; nothing is synced
    /// unless the floor must be lowered.
    ///
    /// # Errors
    /// [`FileError::TooBig`], [`FileError::Locked`], [`FileError::Io`], and [`FileError::Damaged`] if a page that must be
    /// sealed anew doesn't open; the size is then the old one.
    pub fn truncate(&self, size: u64) -> Result<(), FileError> {
        let state = &mut *self.change();
        let done = if size < state.size { self.shrink(state, size) } else { self.grow(state, size) };
        self.publish(state);
        done
    }

    fn shrink(&self, state: &mut State, size: u64) -> Result<(), FileError> {
        let geometry = self.geometry;
        if state.keys.is_none() {
            return Err(FileError::Locked);
        }
        self.settle_last(state, false, false)?;
        if size < state.floors.highest() {
            // A floor above the size would make the file unreadable after a power cut.
            state.floors.now.value = state.floors.now.value.min(size);
            self.rewrite_page(state, 0)?;
            self.barrier(state)?;
        }
        let last = geometry.pages(size) - 1;
        let last_len =
            if last + 1 == geometry.pages(state.size) { self.last_len(state)? } else { self.data_len(last)? };
        let cut = self.set_disk_len(state, size);
        if let Err(error) = cut {
            state.in_doubt();
            state.ragged = Some(true);
            return Err(error);
        }
        state.cut_to(size);
        state.last_len = Some(last_len);
        Ok(())
    }

    fn grow(&self, state: &mut State, size: u64) -> Result<(), FileError> {
        if state.keys.is_none() {
            return Err(FileError::Locked);
        }
        if size <= state.size {
            return Ok(());
        }
        self.geometry.cipher_len(size).ok_or(FileError::TooBig)?;
        self.settle_last(state, true, false)?;
        self.set_disk_len(state, size)?;
        let same_page = self.geometry.pages(size) == self.geometry.pages(state.size);
        state.size = size;
        state.ragged = Some(true);
        if !same_page {
            state.last_len = Some(0);
        }
        Ok(())
    }

    /// Reserves room in the store for the range, and grows the file to its end unless `keep_size`.
    ///
    /// # Errors
    /// As [`PageFile::truncate`]; [`io::ErrorKind::Unsupported`] where the store can't reserve room, and the error of a
    /// full store.
    pub fn allocate(&self, off: u64, len: u64, keep_size: bool) -> Result<(), FileError> {
        let state = &mut *self.change();
        if state.keys.is_none() {
            return Err(FileError::Locked);
        }
        let end = self.end_of(off, len)?;
        if off < end {
            self.reserve(off, end)?;
            if !keep_size {
                self.grow(state, end.max(state.size))?;
                self.publish(state);
            }
        }
        Ok(())
    }

    /// Makes the range zero and gives its room back to the store; the size stays.
    ///
    /// # Errors
    /// As [`PageFile::write`].
    pub fn punch(&self, off: u64, len: u64) -> Result<(), FileError> {
        let state = &mut *self.change();
        let end = self.end_of(off, len)?;
        self.make_hole(state, off, end)
    }

    /// Makes the range zero and keeps room for it; the file grows to the range's end unless `keep_size`.
    ///
    /// # Errors
    /// As [`PageFile::write`] and [`PageFile::allocate`].
    pub fn zero_range(&self, off: u64, len: u64, keep_size: bool) -> Result<(), FileError> {
        let state = &mut *self.change();
        let end = self.end_of(off, len)?;
        self.make_hole(state, off, end)?;
        if off < end && !keep_size {
            let grown = self.grow(state, end.max(state.size));
            self.publish(state);
            grown?;
        }
        match self.reserve(off, end) {
            // Zero it is, and a store that reserves nothing for anyone can't be asked for more.
            Err(FileError::Io(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn end_of(&self, off: u64, len: u64) -> Result<u64, FileError> {
        let end = off.checked_add(len).ok_or(FileError::TooBig)?;
        self.geometry.cipher_len(end).ok_or(FileError::TooBig)?;
        Ok(end)
    }

    fn reserve(&self, off: u64, end: u64) -> Result<(), FileError> {
        if off >= end {
            return Ok(());
        }
        let (first, last) = (self.geometry.page_of(off), self.geometry.page_of(end - 1));
        Ok(self.disk.allocate(first * PAGE as u64, (last - first + 1) * PAGE as u64)?)
    }

    /// Zeroes the range inside the size: whole pages as holes, the rest by writing.
    fn make_hole(&self, state: &mut State, off: u64, end: u64) -> Result<(), FileError> {
        let geometry = self.geometry;
        if state.keys.is_none() {
            return Err(FileError::Locked);
        }
        let end = end.min(state.size);
        if off >= end {
            return Ok(());
        }
        // The pages that lie wholly inside; page 0, with the header, is none of them.
        let page = geometry.page_of(off);
        let first = if off == geometry.start(page) { page } else { page + 1 }.max(1);
        let behind = if end == state.size { geometry.pages(state.size) } else { geometry.page_of(end) };
        if first >= behind {
            return self.write_range(state, off, end, Source::Zeros);
        }
        let (start, stop) = (geometry.start(first), geometry.start(behind).min(end));
        self.write_range(state, off, start, Source::Zeros)?;
        self.write_range(state, stop, end, Source::Zeros)?;
        self.settle_last(state, false, behind == geometry.pages(state.size))?;
        if start < state.floors.highest_strict() {
            // A hole below a floor that promises full pages would make them unreadable after a power cut.
            state.floors.now.sparse = true;
            self.rewrite_page(state, 0)?;
            self.barrier(state)?;
        }
        match self.disk.punch(first * PAGE as u64, (behind - first) * PAGE as u64) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                return self.write_range(state, start, stop, Source::Zeros);
            }
            Err(error) => {
                state.in_doubt();
                state.ragged = Some(true);
                return Err(error.into());
            }
            Ok(()) => {}
        }
        state.changed();
        state.ragged = Some(true);
        if behind == geometry.pages(state.size) {
            state.last_len = Some(0);
        }
        Ok(())
    }

    /// The first byte at or after `off` that is not in a hole, or `None` where none follows. Holes are whole pages.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn seek_data(&self, off: u64) -> Result<Option<u64>, FileError> {
        let (geometry, state) = (self.geometry, self.look());
        if off >= state.size {
            return Ok(None);
        }
        let page = geometry.page_of(off);
        if page == 0 {
            return Ok(Some(off));
        }
        let found = self.disk.seek_data(page * PAGE as u64)?.map(|at| at / PAGE as u64);
        Ok(found.map(|index| geometry.start(index).max(off)).filter(|at| *at < state.size))
    }

    /// The first byte at or after `off` that is in a hole; the end of the file counts as one. `off` at or beyond the end
    /// gives the size.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn seek_hole(&self, off: u64) -> Result<u64, FileError> {
        let (geometry, state) = (self.geometry, self.look());
        if off >= state.size {
            return Ok(state.size);
        }
        let page = geometry.page_of(off).max(1);
        if page >= geometry.pages(state.size) {
            // Page 0 is never a hole, and it is the last.
            return Ok(state.size);
        }
        let index = self.disk.seek_hole(page * PAGE as u64)?.div_ceil(PAGE as u64);
        Ok(geometry.start(index).max(off).min(state.size))
    }
}
