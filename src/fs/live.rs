//! Open regular files: one [`PageFile`] per inode, shared by all its handles.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::error::FsError;
use super::inode::{Inode, lock, read, write};
use super::reach::proc_path;
use super::types::{Kind, now};
use super::{Fs, Phase, young};
use crate::crypto::kdf::VolumeKeys;
use crate::crypto::{Secret, Suite};
use crate::file::PageFile;
use crate::format::header::{FileHeader, Parents};
use crate::format::page::{PAGE, PageKeys};
use crate::format::{DirId, FileId};
use crate::keyring::NewKey;
use crate::store::RealDisk;

/// The time of the last change as applications see it. Our own page writes move the backing file's, so it is kept here
/// and put back.
pub(super) struct Times {
    pub mtime: Timespec,
    /// The backing file's may differ.
    pub stale: bool,
}

/// How much later than applications saw it a time of change may be after a power cut.
const NEAR: Duration = Duration::from_secs(1);

/// The open state of a regular file.
pub(super) struct Live {
    pub file: PageFile<RealDisk>,
    /// The file may carry the mark of one that was never synced.
    pub young: AtomicBool,
    pub times: Mutex<Times>,
}

impl Live {
    fn new(file: PageFile<RealDisk>, stat: &Stat) -> Live {
        let mtime = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
        Live { file, young: AtomicBool::new(true), times: Mutex::new(Times { mtime, stale: false }) }
    }

    /// Makes what was written durable, with `all` the ciphertext file's times, mode and owner, too. On whoever's behalf it
    /// is, the file is no new one from then on.
    pub fn sync(&self, all: bool) -> Result<(), FsError> {
        if all { self.file.sync_all() } else { self.file.sync() }?;
        self.grown_up();
        Ok(())
    }

    /// The file was synced.
    pub fn grown_up(&self) {
        if self.young.swap(false, Ordering::AcqRel) {
            young::unmark(self.file.disk());
        }
    }

    /// The contents were changed. `from_cache`: the kernel keeps the time and will send it.
    pub fn changed(&self, from_cache: bool) {
        let mut times = lock(&self.times);
        times.stale = true;
        if !from_cache {
            times.mtime = now();
        }
    }

    /// Only hyokfs changed its own bytes.
    pub fn touched(&self) {
        lock(&self.times).stale = true;
    }

    /// As [`Live::put_times`], unless the backing file's own time is as good: it differs by what passed between the
    /// change and our write of it. Setting it costs every sync of a log a transaction of the store's journal. After a power
    /// cut the file then shows a time up to [`NEAR`] later; in every other case the exact time is put by the last close.
    pub fn put_far_times(&self) -> Result<(), FsError> {
        let (mtime, now) = (lock(&self.times).mtime, now());
        let since = i128::from(now.tv_sec - mtime.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec - mtime.tv_nsec);
        if since.unsigned_abs() < NEAR.as_nanos() { Ok(()) } else { self.put_times() }
    }

    /// Puts the time of the last change to the backing file if that one differs.
    pub fn put_times(&self) -> Result<(), FsError> {
        let mut times = lock(&self.times);
        if times.stale {
            set_mtime(self.file.disk(), times.mtime)?;
            times.stale = false;
        }
        Ok(())
    }
}

/// Sets the time of the last change of an open file.
pub(super) fn set_mtime(file: impl AsFd, mtime: Timespec) -> Result<(), FsError> {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };
    Ok(rustix::fs::futimens(file, &Timestamps { last_access: omit, last_modification: mtime })?)
}

/// What a ciphertext file's first bytes are.
pub(super) enum Head {
    /// A header's bytes; not yet authenticated.
    Whole(Vec<u8>),
    /// Creation was interrupted.
    Unfinished,
}

pub(super) fn read_head(file: &File, length: usize) -> Result<Head, FsError> {
    let mut bytes = vec![0; length];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Head::Unfinished),
        Err(error) => return Err(error.into()),
    }
    Ok(if bytes.iter().all(|byte| *byte == 0) { Head::Unfinished } else { Head::Whole(bytes) })
}

impl Fs {
    /// Opens the backing file for reading and writing; for reading only where the store allows no more.
    pub(super) fn open_backing(&self, inode: &Arc<Inode>) -> Result<OwnedFd, FsError> {
        match self.open_node(inode, OFlags::RDWR) {
            Err(error) if error.is(Errno::ROFS) => self.open_node(inode, OFlags::RDONLY),
            // The kernel has checked the caller's rights; a daemon that is not root still meets the file's own bits.
            Err(error) if error.is(Errno::ACCESS) => self.open_forbidden(inode),
            other => other,
        }
    }

    /// Opens an own file whose mode denies it: the mode is opened up for the moment of opening.
    fn open_forbidden(&self, inode: &Arc<Inode>) -> Result<OwnedFd, FsError> {
        let fd = self.path_fd(inode)?;
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        let path = proc_path(&fd);
        rustix::fs::chmod(&path, mode | Mode::RUSR | Mode::WUSR)?;
        let opened = self.open_node(inode, OFlags::RDWR);
        rustix::fs::chmod(&path, mode)?;
        opened
    }

    /// Authenticates a header and checks that the file may be opened where it stands.
    pub(super) fn check_header(
        &self,
        keys: &VolumeKeys,
        inode: &Arc<Inode>,
        bytes: &[u8],
    ) -> Result<FileHeader, FsError> {
        let header = FileHeader::decode(bytes, &keys.header, self.volume).map_err(|error| {
            FsError::damaged(format!("the header of inode {} is not to be trusted: {error}", inode.ino))
        })?;
        for dir in self.parents_of(keys, inode)? {
            if !header.parents.allow(&dir) {
                return Err(FsError::damaged(format!(
                    "the ciphertext of file {} was moved or linked into directory {dir} behind hyokfs's back",
                    header.file
                )));
            }
        }
        let _ = inode.file.set(header.file);
        Ok(header)
    }

    /// The ids of the directories that an inode stands in.
    pub(super) fn parents_of(&self, keys: &VolumeKeys, inode: &Arc<Inode>) -> Result<Vec<DirId>, FsError> {
        let (parents, last) = {
            let places = read(&inode.places);
            (places.list.iter().map(|place| Arc::clone(&place.parent)).collect::<Vec<_>>(), places.last)
        };
        if parents.is_empty() {
            return Ok(last.into_iter().collect());
        }
        parents.iter().map(|parent| self.dir_id(keys, parent)).collect()
    }

    fn page_keys(&self, keys: &VolumeKeys, header: &FileHeader) -> Result<Arc<PageKeys>, FsError> {
        let key = self.keyring.get(&header.file, &header.slots, &header.commitment)?;
        self.derive(keys, header.suite, &key, &header.file)
    }

    fn derive(&self, keys: &VolumeKeys, suite: Suite, key: &Secret, file: &FileId) -> Result<Arc<PageKeys>, FsError> {
        let made = PageKeys::new(suite, key, &keys.mixing, &self.volume, file).map_err(|_| FsError::Crypto)?;
        // A lock may have wiped the key meanwhile; then something else was derived.
        if key.is_wiped() { Err(FsError::Locked) } else { Ok(Arc::new(made)) }
    }

    /// Writes page 0 of a new file into the empty `fd`.
    pub(super) fn begin_file(
        &self,
        keys: &VolumeKeys,
        fd: OwnedFd,
        new: NewKey,
        parents: Parents,
    ) -> Result<PageFile<RealDisk>, FsError> {
        let header = FileHeader {
            suite: self.suite,
            volume: self.volume,
            file: new.file,
            slots: new.slots,
            commitment: new.commitment,
            parents,
        };
        let bytes = header
            .encode(self.header_len, &keys.header)
            .map_err(|error| FsError::damaged(format!("no header can be made for a new file: {error}")))?;
        let pages = self.derive(keys, self.suite, &new.key, &new.file)?;
        Ok(PageFile::create(RealDisk::new(fd), &bytes, pages)?)
    }

    /// Puts a freshly made file in as the open state of `inode`.
    pub(super) fn adopt(&self, inode: &Arc<Inode>, file: PageFile<RealDisk>, stat: &Stat) -> Arc<Live> {
        let live = Arc::new(Live::new(file, stat));
        *write(&inode.live) = Some(Arc::clone(&live));
        inode.opens.fetch_add(1, Ordering::AcqRel);
        // A wipe goes over all open files after it has closed the volume: one of the two sees the other.
        if self.phase() == Phase::Closed {
            live.file.drop_keys();
        }
        live
    }

    /// Opens the file's contents, or shares them if they are open; pair with [`Fs::let_go`]. With `anew`, a file whose
    /// creation was interrupted is made again, empty.
    pub(super) fn acquire(&self, keys: &VolumeKeys, inode: &Arc<Inode>, anew: bool) -> Result<Arc<Live>, FsError> {
        let _opening = lock(&inode.opening);
        if let Some(live) = inode.live() {
            if live.file.is_locked() {
                self.thaw(keys, inode, &live)?;
            }
            inode.opens.fetch_add(1, Ordering::AcqRel);
            return Ok(live);
        }
        let backing = File::from(self.open_backing(inode)?);
        let stat = rustix::fs::fstat(&backing)?;
        let head =
            if (stat.st_size as u64) < PAGE as u64 { Head::Unfinished } else { read_head(&backing, self.header_len)? };
        let file = match head {
            Head::Whole(bytes) => {
                let header = self.check_header(keys, inode, &bytes)?;
                let pages = self.page_keys(keys, &header)?;
                PageFile::open(RealDisk::new(backing.into()), self.header_len, pages)?
            }
            Head::Unfinished => self.make_again(keys, inode, backing, &stat, anew)?,
        };
        Ok(self.adopt(inode, file, &stat))
    }

    /// A file that was being made when the power failed: its name is there, its header is not. It is made again: empty with
    /// `anew`, else of zeros, as other filesystems show such a file; unless it had been synced, so that somebody took its
    /// first page away.
    fn make_again(
        &self,
        keys: &VolumeKeys,
        inode: &Arc<Inode>,
        backing: File,
        stat: &Stat,
        anew: bool,
    ) -> Result<PageFile<RealDisk>, FsError> {
        let dirs = self.parents_of(keys, inode)?;
        if !anew && !young::is_marked(&backing, stat.st_ino, &keys.header, self.volume, &dirs) {
            return Err(FsError::Unfinished);
        }
        let home = match dirs.first() {
            Some(home) => *home,
            None => self.dir_id(keys, &self.root)?,
        };
        let parents = match dirs.len() {
            1..=3 => Parents::Bound(dirs),
            _ => Parents::Unbound,
        };
        let new = self.keyring.new_file_key(&home)?;
        rustix::fs::ftruncate(&backing, 0)?;
        let file = self.begin_file(keys, backing.into(), new, parents)?;
        if !anew {
            let size = crate::file::plain_size(stat.st_size as u64, self.header_len).unwrap_or(0);
            file.truncate(size)?;
            file.put_tail()?;
            tracing::warn!(inode = inode.ino, size, "the file was being made when the power failed: it holds zeros");
        }
        Ok(file)
    }

    /// Gives the keys back to a file that stayed open over a lock.
    fn thaw(&self, keys: &VolumeKeys, inode: &Arc<Inode>, live: &Live) -> Result<(), FsError> {
        let header = self.check_header(keys, inode, &live.file.header())?;
        let pages = self.page_keys(keys, &header)?;
        live.file.restore_keys(pages)?;
        if self.phase() >= Phase::Closed {
            live.file.drop_keys();
            return Err(FsError::Locked);
        }
        Ok(())
    }

    /// Runs `work` on an open file; if its keys went with a lock that is over, takes them again first.
    pub(super) fn with_live<T>(
        &self,
        inode: &Arc<Inode>,
        live: &Live,
        mut work: impl FnMut(&PageFile<RealDisk>) -> Result<T, crate::file::FileError>,
    ) -> Result<T, FsError> {
        match work(&live.file) {
            Err(crate::file::FileError::Locked) => {}
            other => return Ok(other?),
        }
        let keys = self.enter()?;
        let opening = lock(&inode.opening);
        if live.file.is_locked() {
            self.thaw(&keys, inode, live)?;
        }
        drop(opening);
        Ok(work(&live.file)?)
    }

    /// One user of the open state less; the last one puts size, time and floor to the store.
    pub(super) fn let_go(&self, inode: &Arc<Inode>) -> Result<(), FsError> {
        let _opening = lock(&inode.opening);
        if inode.opens.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Ok(());
        }
        let Some(live) = write(&inode.live).take() else { return Ok(()) };
        // Sizes that writes made are the kernel's own; it was never told them.
        inode.told.store(live.file.size(), Ordering::Release);
        let tail = live.file.put_tail().map_err(FsError::from);
        if !live.file.is_locked() {
            let before = lock(&live.times).stale;
            match live.file.put_floor() {
                // Whether page 0 was written is not told; a time that may have moved is put back.
                Ok(()) if !before && self.moved(&live) => live.touched(),
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(inode = inode.ino, %error, "the floor was not recorded; it will be after the next sync")
                }
            }
        }
        let times = live.put_times();
        // What has no name left would be lost to `stat` with the last descriptor.
        tail.and(times)
    }

    fn moved(&self, live: &Live) -> bool {
        let times = lock(&live.times);
        rustix::fs::fstat(live.file.disk())
            .is_ok_and(|stat| (stat.st_mtime, stat.st_mtime_nsec as i64) != (times.mtime.tv_sec, times.mtime.tv_nsec))
    }

    /// Changes the directories that a file or directory may stand in. Needs no file key.
    pub(super) fn rebind(
        &self,
        keys: &VolumeKeys,
        inode: &Arc<Inode>,
        change: &dyn Fn(&Parents) -> Parents,
        durable: bool,
    ) -> Result<(), FsError> {
        match inode.kind {
            Kind::File => self.rebind_file(keys, inode, change, durable),
            Kind::Directory => self.rebind_dir(keys, inode, change, durable),
            _ => Ok(()),
        }
    }

    fn rebind_file(
        &self,
        keys: &VolumeKeys,
        inode: &Arc<Inode>,
        change: &dyn Fn(&Parents) -> Parents,
        durable: bool,
    ) -> Result<(), FsError> {
        let rewrite = |bytes: &[u8]| -> Result<Option<Vec<u8>>, FsError> {
            let mut header = self.check_header(keys, inode, bytes)?;
            let parents = change(&header.parents);
            if parents == header.parents {
                return Ok(None);
            }
            header.parents = parents;
            let bytes = header.encode(self.header_len, &keys.header);
            bytes.map(Some).map_err(|error| FsError::damaged(format!("the header cannot be rewritten: {error}")))
        };
        let _opening = lock(&inode.opening);
        if let Some(live) = inode.live() {
            if let Some(bytes) = rewrite(&live.file.header())? {
                live.touched();
                let old = live.file.header();
                live.file.set_header(&bytes)?;
                if durable && let Err(error) = live.sync(false) {
                    // The next attempt must not find the new header, and take it for durable.
                    if let Err(second) = live.file.set_header(&old) {
                        tracing::warn!(inode = inode.ino, %second, "the old header could not be put back");
                    }
                    return Err(error);
                }
                live.put_times()?;
            }
            return Ok(());
        }
        let backing = File::from(self.open_backing(inode)?);
        let stat = rustix::fs::fstat(&backing)?;
        if (stat.st_size as u64) < PAGE as u64 {
            return Ok(());
        }
        // Header and seal of page 0 are independent, so no key is needed; the page is still written whole.
        crate::sys::aligned::with_scratch(PAGE, |page, _| {
            backing.read_exact_at(page, 0)?;
            if page.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            let Some(bytes) = rewrite(&page[..self.header_len])? else { return Ok(()) };
            let old = page[..self.header_len].to_vec();
            page[..self.header_len].copy_from_slice(&bytes);
            backing.write_all_at(page, 0)?;
            if durable && let Err(error) = rustix::fs::fdatasync(&backing) {
                page[..self.header_len].copy_from_slice(&old);
                if let Err(second) = backing.write_all_at(page, 0) {
                    tracing::warn!(inode = inode.ino, %second, "the old header could not be put back");
                }
                return Err(error.into());
            }
            if durable {
                young::unmark(&backing);
            }
            set_mtime(&backing, Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ })
        })
    }
}
