//! Reading: one read of the covering pages, each opened straight into the caller's buffer where it fits.

use super::state::State;
use super::{Damage, FileError, PageFile, RUN, damaged};
use crate::format::page::{Opener, PAGE, PageError, claimed_len, is_hole};
use crate::store::Disk;
use crate::sys::aligned::{wipe, with_scratch};

impl<D: Disk> PageFile<D> {
    /// Reads plaintext from `off` into `buf`; gives the number of bytes, which is smaller than asked at the end of the
    /// file only. Holes read as zeros.
    ///
    /// # Errors
    /// [`FileError::Damaged`] if any page that the range touches is damaged, [`FileError::Locked`], [`FileError::Io`].
    /// `buf` then holds nothing of use.
    pub fn read(&self, off: u64, buf: &mut [u8]) -> Result<usize, FileError> {
        let state = self.look();
        let keys = state.keys.as_ref().ok_or(FileError::Locked)?;
        let len = state.size.saturating_sub(off).min(buf.len() as u64) as usize;
        let mut opener = keys.opener();
        let mut done = 0;
        while done < len {
            let from = off + done as u64;
            let run_end = self.geometry.start(self.geometry.page_of(from) + RUN);
            let to = (off + len as u64).min(run_end);
            let part = &mut buf[done..done + (to - from) as usize];
            let read = self.read_run(&state, &mut opener, from, part);
            if let Err(error) = read {
                wipe(&mut buf[..len]);
                return Err(error);
            }
            done += (to - from) as usize;
        }
        Ok(len)
    }

    /// Reads a range below the size that touches at most [`RUN`] pages.
    fn read_run(&self, state: &State, opener: &mut Opener<'_>, off: u64, out: &mut [u8]) -> Result<(), FileError> {
        let geometry = self.geometry;
        let end = off + out.len() as u64;
        let (first, last) = (geometry.page_of(off), geometry.page_of(end - 1));
        with_scratch((last - first + 1) as usize * PAGE, |pages, edge| {
            let got = self.fetch(first, pages)?;
            let mut rest = out;
            for (index, (page, at)) in (first..=last).zip(pages.chunks_exact(PAGE).zip((0..).step_by(PAGE))) {
                let start = geometry.start(index);
                let skip = off.saturating_sub(start) as usize;
                let take = (geometry.cap(index) - skip).min(rest.len());
                let part;
                (part, rest) = rest.split_at_mut(take);
                // Beyond what the store had there is a hole; its buffer may hold an earlier request's ciphertext.
                let page = if at < got { page } else { &[] };
                self.open_part(state, opener, index, page, skip, part, edge)?;
            }
            Ok(())
        })
    }

    /// Opens the part of page `index` that starts `skip` bytes into its data.
    #[allow(clippy::too_many_arguments)]
    fn open_part(
        &self,
        state: &State,
        opener: &mut Opener<'_>,
        index: u64,
        page: &[u8],
        skip: usize,
        part: &mut [u8],
        edge: &mut [u8],
    ) -> Result<(), FileError> {
        let slot = page.get(self.geometry.seal_at(index)..).unwrap_or_default();
        let have = if index > 0 && skip == 0 && claimed_len(slot) <= part.len() && !is_hole(page) {
            // The whole page is wanted: it is opened where it goes, and no plaintext lies anywhere else.
            let have = opener.open(index, slot, part).map_err(|why| damaged(index, why))?;
            part[have..].fill(0);
            self.check_floor(state, index, have)?;
            return Ok(());
        } else {
            self.open_page(state, opener, index, page, edge)?
        };
        let prefix = self.geometry.prefix(index);
        let copied = have.saturating_sub(skip).min(part.len());
        part[..copied].copy_from_slice(&edge[prefix + skip..][..copied]);
        part[copied..].fill(0);
        Ok(())
    }

    /// Opens page `index` into `edge` (its data after the prefix); gives how many bytes of data it holds, clipped to
    /// the file's size. A hole holds none.
    pub(super) fn open_page(
        &self,
        state: &State,
        opener: &mut Opener<'_>,
        index: u64,
        page: &[u8],
        edge: &mut [u8],
    ) -> Result<usize, FileError> {
        let mut have = 0;
        if !is_hole(page) {
            let slot = page.get(self.geometry.seal_at(index)..).unwrap_or_default();
            let sealed = opener.open(index, slot, edge).map_err(|why| damaged(index, why))?;
            let data = sealed.checked_sub(self.geometry.prefix(index));
            have = data.ok_or(damaged(index, PageError::Length))?;
        } else if index == 0 {
            return Err(damaged(0, PageError::NoSeal));
        }
        self.check_floor(state, index, have)?;
        let place = state.size.saturating_sub(self.geometry.start(index));
        Ok(have.min(place.min(self.geometry.cap(index) as u64) as usize))
    }

    /// Refuses a page that holds less data than the floor promises.
    fn check_floor(&self, state: &State, index: u64, have: usize) -> Result<(), FileError> {
        let floor = state.floors.now;
        let must = floor.value.saturating_sub(self.geometry.start(index)).min(self.geometry.cap(index) as u64);
        match !floor.sparse && (have as u64) < must {
            true => Err(damaged(index, Damage::BelowFloor)),
            false => Ok(()),
        }
    }
}
