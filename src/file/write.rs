//! Writing: whole pages, sealed into one aligned buffer and written at once; only the first and the last page of a
//! range are read before, and only where old bytes stay in them.

use std::ops::Range;

use super::state::State;
use super::{FileError, PageFile, RUN, write_prefix};
use crate::format::page::{Opener, PAGE, SEAL, claimed_len, is_hole};
use crate::store::Disk;
use crate::sys::aligned::with_scratch;

/// Where new plaintext comes from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// These bytes, the first of which belongs at the given offset.
    Bytes(u64, &'a [u8]),
    /// Zeros.
    Zeros,
}

impl Source<'_> {
    fn bytes(&self, from: u64, to: u64) -> Option<&[u8]> {
        match self {
            Source::Bytes(base, bytes) => bytes.get((from - base) as usize..(to - base) as usize),
            Source::Zeros => None,
        }
    }

    fn copy(&self, from: u64, out: &mut [u8]) {
        match self.bytes(from, from + out.len() as u64) {
            Some(bytes) => out.copy_from_slice(bytes),
            None => out.fill(0),
        }
    }
}

impl<D: Disk> PageFile<D> {
    /// Writes `data` at `off`. The file grows as needed; a gap before `off` becomes a hole. Nothing is synced, and the
    /// new size reaches the store with the next [`PageFile::put_tail`].
    ///
    /// # Errors
    /// [`FileError::TooBig`], [`FileError::Locked`], [`FileError::Damaged`] if a page of which old bytes must be kept is
    /// damaged, [`FileError::Io`]. After an I/O error some of the range may have been written; the size has grown no
    /// further than what was written.
    pub fn write(&self, off: u64, data: &[u8]) -> Result<(), FileError> {
        let state = &mut *self.change();
        let end = off.checked_add(data.len() as u64).ok_or(FileError::TooBig)?;
        self.write_range(state, off, end, Source::Bytes(off, data))
    }

    /// Writes the range from `source`.
    pub(super) fn write_range(
        &self,
        state: &mut State,
        off: u64,
        end: u64,
        source: Source<'_>,
    ) -> Result<(), FileError> {
        let geometry = self.geometry;
        if state.keys.is_none() {
            return Err(FileError::Locked);
        }
        if off >= end {
            return Ok(());
        }
        geometry.cipher_len(end).ok_or(FileError::TooBig)?;
        let first = geometry.page_of(off);
        let last = geometry.pages(state.size) - 1;
        self.settle_last(state, end > state.size, first <= last && last <= geometry.page_of(end - 1))?;
        let mut from = off;
        while from < end {
            let first = geometry.page_of(from);
            let to = end.min(geometry.start(first + RUN));
            let done = self.store_pages(state, first..geometry.page_of(to - 1) + 1, from, to, source);
            self.publish(state);
            done?;
            from = to;
        }
        Ok(())
    }

    /// Seals page `index` anew as it is: clipped to the size, filled up to its place, with the header and floor of now.
    pub(super) fn rewrite_page(&self, state: &mut State, index: u64) -> Result<(), FileError> {
        let start = self.geometry.start(index);
        self.store_pages(state, index..index + 1, start, start, Source::Zeros)
    }

    /// Makes the last page fit for a change: `grows` beyond it, or `touches` it by a write that seals it anew anyway.
    pub(super) fn settle_last(&self, state: &mut State, grows: bool, touches: bool) -> Result<(), FileError> {
        let geometry = self.geometry;
        let last = geometry.pages(state.size) - 1;
        let tail = geometry.tail(state.size) as usize;
        let len = self.last_len(state)?;
        let overlong = *state.overlong.get_or_insert(len > tail);
        // Pages beyond the size: of a growth that a crash or an error stopped, or an empty last page. They are cut off
        // before anything can grow over them.
        if self.disk_len(state)? / PAGE as u64 > last + 1 {
            self.tell_size(state)?;
        }
        if grows && !state.clean_tail {
            self.clean_tail(state, last + 1)?;
        }
        if overlong && (grows || touches) {
            if len > tail {
                self.rewrite_page(state, last)?;
            }
            self.barrier(state)
        } else if grows && !touches && len > tail {
            self.rewrite_page(state, last)
        } else {
            Ok(())
        }
    }

    /// How much data is sealed in the last page.
    pub(super) fn last_len(&self, state: &mut State) -> Result<usize, FileError> {
        match state.last_len {
            Some(len) => Ok(len),
            None => {
                let len = self.data_len(self.geometry.pages(state.size) - 1)?;
                state.last_len = Some(len);
                Ok(len)
            }
        }
    }

    /// How much data page `index` claims to hold.
    pub(super) fn data_len(&self, index: u64) -> Result<usize, FileError> {
        let geometry = self.geometry;
        let mut seal = [0; SEAL];
        let at = index.checked_mul(PAGE as u64).ok_or(FileError::TooBig)? + geometry.seal_at(index) as u64;
        super::fetch(&self.disk, at, &mut seal)?;
        Ok(claimed_len(&seal).saturating_sub(geometry.prefix(index)).min(geometry.cap(index)))
    }

    /// The length of the ciphertext file.
    pub(super) fn disk_len(&self, state: &mut State) -> Result<u64, FileError> {
        match state.disk_len {
            Some(len) => Ok(len),
            None => {
                let len = self.disk.len()?;
                state.disk_len = Some(len);
                Ok(len)
            }
        }
    }

    /// Seals the pages `range` with the plaintext `from..to` (inside them, or empty) from `source` and what they held,
    /// and writes them. The caller has settled the last page.
    fn store_pages(
        &self,
        state: &mut State,
        range: Range<u64>,
        from: u64,
        to: u64,
        source: Source<'_>,
    ) -> Result<(), FileError> {
        let geometry = self.geometry;
        let keys = state.keys.clone().ok_or(FileError::Locked)?;
        let size = state.size.max(to);
        let count = (range.end - range.start) as usize;
        // Known before the write, so that only a write can leave the length in doubt.
        let disk_len = self.disk_len(state)?;
        let wrote = with_scratch(count * PAGE, |pages, edge| {
            self.fetch_old(state, &range, from, to, pages)?;
            let mut sealer = keys.sealer(count)?;
            let mut opener = keys.opener();
            for (index, page) in range.clone().zip(pages.chunks_exact_mut(PAGE)) {
                let start = geometry.start(index);
                let place = (size - start).min(geometry.cap(index) as u64) as usize;
                let new = from.max(start)..to.min(start + place as u64);
                if index > 0
                    && new.end.saturating_sub(new.start) == place as u64
                    && let Some(bytes) = source.bytes(new.start, new.end)
                {
                    sealer.seal(index, bytes, page)?;
                    continue;
                }
                let plain = self.mix(state, &mut opener, index, place, new, source, page, edge)?;
                if index == 0 {
                    page[..geometry.header_len()].copy_from_slice(&state.header);
                }
                sealer.seal(index, plain, &mut page[geometry.seal_at(index)..])?;
            }
            if range.start == 0 {
                state.floors.written();
            }
            Ok::<_, FileError>(self.store(range.start, pages))
        })?;
        if let Err(error) = wrote {
            state.in_doubt();
            return Err(error);
        }
        let last = geometry.pages(state.size) - 1;
        if size > state.size {
            // What the growth left behind: a last page that no longer fills its place, or pages never written.
            let full = range.start <= last || (state.last_len == Some(geometry.cap(last)) && range.start == last + 1);
            if !full {
                state.ragged = Some(true);
            }
            state.size = size;
        }
        state.disk_len = Some(disk_len.max(range.end * PAGE as u64));
        if range.contains(&(geometry.pages(size) - 1)) {
            state.last_len = Some(geometry.tail(size) as usize);
        }
        state.changed();
        Ok(())
    }

    /// Whether bytes of the page as it stands will stay.
    fn keeps_old(&self, state: &State, index: u64, from: u64, to: u64) -> bool {
        let start = self.geometry.start(index);
        let old_end = state.size.min(start + self.geometry.cap(index) as u64);
        old_end > start && (from > start || to < old_end)
    }

    /// Reads those pages of a range, the first and the last, of which old bytes will stay; the two of a pair at once.
    fn fetch_old(
        &self,
        state: &State,
        range: &Range<u64>,
        from: u64,
        to: u64,
        pages: &mut [u8],
    ) -> Result<(), FileError> {
        let last = range.end - 1;
        let wanted = |index| self.keeps_old(state, index, from, to);
        let mut get = |index: u64, count: usize| {
            let at = (index - range.start) as usize * PAGE;
            let part = &mut pages[at..at + count * PAGE];
            let got = self.fetch(index, part)?;
            let border = got.next_multiple_of(PAGE).min(part.len());
            part[border..].fill(0);
            Ok(())
        };
        match (wanted(range.start), range.start < last && wanted(last)) {
            (true, true) if range.start + 1 == last => get(range.start, 2),
            (true, true) => get(range.start, 1).and_then(|()| get(last, 1)),
            (true, false) => get(range.start, 1),
            (false, true) => get(last, 1),
            (false, false) => Ok(()),
        }
    }

    /// Puts together in `edge` the plaintext of a page that is not wholly new (or is page 0).
    #[allow(clippy::too_many_arguments)]
    fn mix<'e>(
        &self,
        state: &State,
        opener: &mut Opener<'_>,
        index: u64,
        place: usize,
        new: Range<u64>,
        source: Source<'_>,
        page: &[u8],
        edge: &'e mut [u8],
    ) -> Result<&'e [u8], FileError> {
        let (start, prefix) = (self.geometry.start(index), self.geometry.prefix(index));
        let mut have = 0;
        if self.keeps_old(state, index, new.start, new.end) {
            have = self.open_page(state, opener, index, page, edge)?;
        }
        let data = &mut edge[prefix..prefix + place];
        data[have.min(place)..].fill(0);
        if new.start < new.end {
            source.copy(new.start, &mut data[(new.start - start) as usize..(new.end - start) as usize]);
        }
        if index == 0 {
            write_prefix(state.floors.now, edge);
        }
        Ok(&edge[..prefix + place])
    }

    /// Whether any of the pages is a hole or shorter than its place. Reads them all.
    pub(super) fn is_ragged(&self, state: &State, pages: Range<u64>) -> Result<bool, FileError> {
        let geometry = self.geometry;
        let mut first = pages.start;
        while first < pages.end {
            let count = (pages.end - first).min(RUN) as usize;
            let found = with_scratch(count * PAGE, |buf, _| {
                let got = self.fetch(first, buf)?;
                Ok::<_, FileError>((first..).zip(buf.chunks_exact(PAGE)).zip((0..).step_by(PAGE)).any(
                    |((i, page), at)| {
                        let place = (state.size - geometry.start(i)).min(geometry.cap(i) as u64) as usize;
                        let data = || claimed_len(&page[geometry.seal_at(i)..]).saturating_sub(geometry.prefix(i));
                        at >= got || is_hole(page) || data() < place
                    },
                ))
            })?;
            if found {
                return Ok(true);
            }
            first += count as u64;
        }
        Ok(false)
    }
}
