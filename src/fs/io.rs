//! Open files: reading, writing, sizes, holes, syncing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::error::FsError;
use super::live::Live;
use super::types::{Caller, Fh, Ino, Kind};
use super::{Fs, Handle};
use crate::file::FileError;

fn invalid(errno: Errno) -> FileError {
    FileError::Io(errno.into())
}

impl Fs {
    /// Opens a regular file. `flags` are `open(2)`'s; `O_APPEND` is the kernel's business.
    pub fn open(&self, caller: &Caller, ino: Ino, flags: i32) -> Result<Fh, FsError> {
        let keys = self.enter()?;
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::File => {}
            Kind::Directory => return Err(FsError::os(Errno::ISDIR)),
            Kind::Symlink => return Err(FsError::os(Errno::LOOP)),
            _ => return Err(FsError::os(Errno::NXIO)),
        }
        let cut = flags & libc::O_TRUNC != 0;
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let live = self.acquire(&keys, &inode, cut)?;
        if cut {
            let done = self.with_live(&inode, &live, |file| file.truncate(0).and_then(|()| file.put_tail()));
            if let Err(error) = done {
                let _ = self.let_go(&inode);
                return Err(error);
            }
            live.changed(false);
            if caller.uid != 0 {
                self.kill_privileges(&inode);
            }
        }
        Ok(self.add_handle(Handle::file(inode, live, write)))
    }

    fn open_file(&self, fh: Fh) -> Result<(Arc<Handle>, Arc<Live>), FsError> {
        let handle = self.handle(fh)?;
        let live = handle.live.clone().ok_or_else(|| FsError::os(Errno::BADF))?;
        Ok((handle, live))
    }

    /// Reads into `buf` from `off` on; gives how much, less only at the end of the file.
    pub fn read(&self, _ino: Ino, fh: Fh, off: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        self.check_open()?;
        let (handle, live) = self.open_file(fh)?;
        let length = self.with_live(&handle.inode, &live, |file| file.read(off, buf))?;
        // A read that hung in the store may end after a lock: it must not bring plaintext back to the kernel.
        self.check_open()?;
        Ok(length)
    }

    /// Writes all of `data`. `from_cache`: the kernel writes its cache back, keeps the time and will send it.
    /// `kill_privs`: clear suid, sgid and capabilities.
    pub fn write(
        &self,
        _ino: Ino,
        fh: Fh,
        off: u64,
        data: &[u8],
        from_cache: bool,
        kill_privs: bool,
    ) -> Result<usize, FsError> {
        if let Err(error) = self.enter_write_back() {
            if from_cache {
                self.refused.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            return Err(error);
        }
        let (handle, live) = self.open_file(fh)?;
        self.with_live(&handle.inode, &live, |file| {
            let before = file.size();
            file.write(off, data)?;
            // No flush comes at close: a longer file says so at once, or a killed daemon would leave it short.
            if file.size() > before { file.put_tail() } else { Ok(()) }
        })?;
        live.changed(from_cache);
        if kill_privs {
            self.kill_privileges(&handle.inode);
        }
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(data.len())
    }

    /// Puts the size to the store.
    pub fn flush(&self, _ino: Ino, fh: Fh) -> Result<(), FsError> {
        self.enter_write_back()?;
        let (_handle, live) = self.open_file(fh)?;
        live.file.put_tail()?;
        live.put_times()
    }

    /// Closes a handle. Works when the volume is locked, too.
    pub fn release(&self, _ino: Ino, fh: Fh) -> Result<(), FsError> {
        match self.take_handle(fh) {
            Some(handle) if handle.live.is_some() => self.let_go(&handle.inode),
            Some(_) => Ok(()),
            None => Err(FsError::os(Errno::BADF)),
        }
    }

    /// Makes the file's contents and size durable; without `datasync` its times and mode, too.
    pub fn fsync(&self, _ino: Ino, fh: Fh, datasync: bool) -> Result<(), FsError> {
        self.enter_write_back()?;
        let (handle, live) = self.open_file(fh)?;
        let synced = if datasync {
            live.sync(false)
        } else {
            live.put_far_times()?;
            live.sync(true)
        };
        // The store told a failed sync to whoever asked for that one: another handle, or hyokfs itself before a truncation
        // or a move. What this handle wrote may be what was lost.
        let failures = live.file.failures();
        let untold = handle.told.swap(failures, Ordering::AcqRel) != failures;
        synced?;
        if untold { Err(FsError::os(Errno::IO)) } else { Ok(()) }
    }

    /// Reserves space, punches holes, zeroes; `mode` is `fallocate(2)`'s.
    pub fn fallocate(&self, _ino: Ino, fh: Fh, off: u64, len: u64, mode: i32) -> Result<(), FsError> {
        const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | KEEP;
        self.enter()?;
        let (handle, live) = self.open_file(fh)?;
        if len == 0 || off.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
            return Err(if len == 0 { FsError::os(Errno::INVAL) } else { FsError::TooBig });
        }
        self.with_live(&handle.inode, &live, |file| {
            match mode {
                0 => file.allocate(off, len, false),
                KEEP => file.allocate(off, len, true),
                PUNCH => file.punch(off, len),
                ZERO => file.zero_range(off, len, false),
                ZERO_KEEP => file.zero_range(off, len, true),
                _ => Err(invalid(Errno::OPNOTSUPP)),
            }?;
            file.put_tail()
        })?;
        if mode == KEEP {
            live.touched();
        } else {
            live.changed(false);
        }
        Ok(())
    }

    /// Finds data or a hole at or after `off`; `whence` is `SEEK_DATA` or `SEEK_HOLE`.
    pub fn lseek(&self, _ino: Ino, fh: Fh, off: u64, whence: i32) -> Result<u64, FsError> {
        self.enter()?;
        let (handle, live) = self.open_file(fh)?;
        if off >= live.file.size() {
            return Err(FsError::os(Errno::NXIO));
        }
        let found = self.with_live(&handle.inode, &live, |file| match whence {
            libc::SEEK_DATA => file.seek_data(off),
            libc::SEEK_HOLE => file.seek_hole(off).map(Some),
            _ => Err(invalid(Errno::INVAL)),
        })?;
        found.ok_or_else(|| FsError::os(Errno::NXIO))
    }
}
