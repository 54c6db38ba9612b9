//! Listing directories. Offsets are the store's own (stable while entries come and go); names are decrypted as they pass.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom};

use super::error::FsError;
use super::inode::{Inode, lock, read};
use super::types::{DirEntry, Fh, Ino, Kind};
use super::{Fs, Handle};
use crate::crypto::kdf::VolumeKeys;
use crate::format::DirId;
use crate::format::name::{self, Entry};
use crate::store::open_beneath;

/// Bytes of entries that are fetched from the store at once.
const BATCH: usize = 32 << 10;

pub(super) struct Raw {
    pub name: Vec<u8>,
    backing: u64,
    pub kind: FileType,
    next: u64,
}

/// An open directory.
pub(super) struct Stream {
    fd: OwnedFd,
    waiting: VecDeque<Raw>,
    /// The offset of the first waiting entry.
    at: u64,
}

impl Stream {
    /// From the beginning of the directory.
    pub fn new(fd: OwnedFd) -> Stream {
        Stream { fd, waiting: VecDeque::new(), at: 0 }
    }

    /// The directory.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The next entry, which is then passed; `.` and `..` come, too.
    pub fn next(&mut self) -> Result<Option<Raw>, FsError> {
        if self.waiting.is_empty() {
            self.fill()?;
        }
        Ok(self.waiting.pop_front())
    }

    fn seek(&mut self, off: u64) -> Result<(), FsError> {
        if off != self.at || off == 0 {
            self.waiting.clear();
            rustix::fs::seek(&self.fd, SeekFrom::Start(off))?;
            self.at = off;
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), FsError> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); BATCH];
        let mut entries = RawDir::new(&self.fd, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            self.waiting.push_back(Raw {
                name: entry.file_name().to_bytes().to_vec(),
                backing: entry.ino(),
                kind: entry.file_type(),
                next: entry.next_entry_cookie(),
            });
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }
}

impl Fs {
    /// Opens a directory for listing.
    pub fn opendir(&self, ino: Ino) -> Result<Fh, FsError> {
        let keys = self.enter()?;
        let dir = self.dir(ino)?;
        self.dir_id(&keys, &dir)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = open_beneath(&*self.dir_fd(&dir)?, OsStr::new("."), flags, Mode::empty())?;
        Ok(self.add_handle(Handle::directory(dir, Stream::new(fd))))
    }

    /// Closes a directory. Works when the volume is locked, too.
    pub fn releasedir(&self, fh: Fh) -> Result<(), FsError> {
        self.take_handle(fh).map(|_| ()).ok_or_else(|| FsError::os(rustix::io::Errno::BADF))
    }

    /// Lists a directory from `off` on (0, or the `next_off` of an entry): calls `each` until it says that it is full
    /// (then that entry was not taken) or the end. With `plus`, attributes come along and the kernel holds a reference
    /// to every entry taken but `.` and `..`.
    pub fn readdir(
        &self,
        _ino: Ino,
        fh: Fh,
        off: u64,
        plus: bool,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), FsError> {
        let keys = self.enter()?;
        let handle = self.handle(fh)?;
        let (dir, stream) = match &handle.stream {
            Some(stream) => (&handle.inode, stream),
            None => return Err(FsError::os(rustix::io::Errno::BADF)),
        };
        let id = self.dir_id(&keys, dir)?;
        let fd = self.dir_fd(dir)?;
        let mut stream = lock(stream);
        stream.seek(off)?;
        if off == 0 {
            self.prefetch.listed(dir, id);
        }
        loop {
            if stream.waiting.is_empty() {
                stream.fill()?;
            }
            let Some(raw) = stream.waiting.front() else { return Ok(()) };
            let next = raw.next;
            if self.list_one(&keys, dir, &fd, &id, raw, plus, each)? {
                return Ok(());
            }
            stream.waiting.pop_front();
            stream.at = next;
        }
    }

    /// Hands one entry out; gives whether `each` is full.
    #[allow(clippy::too_many_arguments)] // one call's worth of state that has no other use
    fn list_one(
        &self,
        keys: &VolumeKeys,
        dir: &Arc<Inode>,
        fd: &OwnedFd,
        id: &DirId,
        raw: &Raw,
        plus: bool,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<bool, FsError> {
        if raw.name == b"." || raw.name == b".." {
            let place = read(&dir.places).list.first().map(|place| place.parent.ino);
            let ino = if raw.name == b"." { dir.ino } else { place.unwrap_or(dir.ino) };
            let name = OsStr::from_bytes(&raw.name);
            return Ok(each(DirEntry { ino, next_off: raw.next, kind: Kind::Directory, name, attr: None }));
        }
        let Some(name) = self.plain_name(keys, fd, id, &raw.name) else { return Ok(false) };
        let _names = read(&dir.names);
        let kind = match Kind::of(raw.kind) {
            Some(kind) if !plus => {
                let ino = self.table.listed(raw.backing);
                return Ok(each(DirEntry { ino, next_off: raw.next, kind, name: &name, attr: None }));
            }
            _ => match self.stat_entry(fd, &raw.name) {
                Ok(stat) => stat,
                // It went since the batch was fetched.
                Err(FsError::NotFound) => return Ok(false),
                Err(error) => return Err(error),
            },
        };
        let lookups = u64::from(plus);
        let inode = self.found(dir, &raw.name, &name, &kind, lookups)?;
        let attr = self.attr(&inode, &kind)?;
        let attr = plus.then_some(attr);
        let full = each(DirEntry { ino: inode.ino, next_off: raw.next, kind: inode.kind, name: &name, attr });
        if full {
            self.forget(inode.ino, lookups);
        }
        Ok(full)
    }

    /// The plaintext name of an entry; none for hyokfs's own, and for what can't be decrypted.
    fn plain_name(&self, keys: &VolumeKeys, fd: &OwnedFd, id: &DirId, entry: &[u8]) -> Option<OsString> {
        let plain = match name::classify(entry) {
            Entry::Temporary | Entry::Sidecar | Entry::Reserved => return None,
            Entry::Short => name::decode(&keys.names, self.names, id, entry),
            Entry::Long => {
                let sidecar = name::sidecar_of(entry);
                match rustix::fs::readlinkat(fd, OsStr::from_bytes(&sidecar), Vec::new()) {
                    Ok(target) => name::decode_long(&keys.names, id, entry, target.to_bytes()),
                    Err(_) => Err(name::NameError::Forged),
                }
            }
        };
        match plain {
            // The decoder is strict about its alphabet, but nothing stops a forged plain name.
            Ok(plain) if !plain.is_empty() && plain != b"." && plain != b".." && !plain.contains(&b'/') => {
                Some(OsString::from_vec(plain))
            }
            _ => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        directory = %id,
                        entry = %String::from_utf8_lossy(entry),
                        "an entry of the store is not shown: its name was altered or put there by something else; \
                         `hyokfs verify` lists all such entries (this is logged once)"
                    );
                }
                None
            }
        }
    }
}
