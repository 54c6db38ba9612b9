//! Attributes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Mode, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::Fs;
use super::error::FsError;
use super::inode::{Inode, lock};
use super::links::target_len;
use super::nodes::encode_device;
use super::reach::proc_path;
use super::types::{Attr, Caller, Fh, Ino, Kind, ROOT, SetAttr, Statfs, TimeOrNow, now, spec_time, time, timespec};
use crate::file::plain_size;
use crate::format::page::PAGE;

/// Plaintext bytes of a sealed page.
const CAP: u64 = PAGE as u64 - 40;

impl Fs {
    /// What `stat` shows of an inode whose backing attributes are `stat`.
    pub(super) fn attr(&self, inode: &Arc<Inode>, stat: &Stat) -> Result<Attr, FsError> {
        inode.saw(stat);
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        let mut mtime = time(stat.st_mtime, stat.st_mtime_nsec);
        let size = match inode.kind {
            Kind::File => match inode.live() {
                Some(live) => {
                    mtime = spec_time(lock(&live.times).mtime);
                    live.file.size()
                }
                // An interrupted creation shows as empty.
                None => plain_size(length, self.header_len).unwrap_or(0),
            },
            Kind::Symlink => target_len(length),
            Kind::Directory => length,
            _ => 0,
        };
        inode.told.store(size, Ordering::Release);
        let ctime = time(stat.st_ctime, stat.st_ctime_nsec);
        Ok(Attr {
            ino: inode.ino,
            size,
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime,
            ctime,
            crtime: ctime.min(mtime),
            kind: inode.kind,
            perm: (stat.st_mode & 0o7777) as u16,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: encode_device(stat.st_rdev),
            blksize: PAGE as u32,
        })
    }

    /// The attributes of an inode. The root's are told even when the volume is locked.
    pub fn getattr(&self, ino: Ino, fh: Option<Fh>) -> Result<Attr, FsError> {
        if ino != ROOT {
            self.enter()?;
        }
        let inode = match fh {
            Some(fh) => self.handle(fh).map(|handle| Arc::clone(&handle.inode)).or_else(|_| self.inode(ino))?,
            None => self.inode(ino)?,
        };
        let stat = self.stat(&inode)?;
        self.attr(&inode, &stat)
    }

    /// Sets attributes.
    pub fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Result<Attr, FsError> {
        if set.size.is_some() || set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
            self.enter()?;
        } else {
            // The kernel sends the times of what it writes back.
            self.enter_write_back()?;
        }
        let inode = self.inode(ino)?;
        if let Some(size) = set.size {
            self.resize(caller, &inode, size, set.mtime.is_some())?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            self.change_owner(&inode, set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            self.change_mode(&inode, mode & 0o7777)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            self.change_times(&inode, set)?;
        }
        let stat = self.stat(&inode)?;
        self.attr(&inode, &stat)
    }

    fn resize(&self, caller: &Caller, inode: &Arc<Inode>, size: u64, has_time: bool) -> Result<(), FsError> {
        match inode.kind {
            Kind::File => {}
            Kind::Directory => return Err(FsError::os(Errno::ISDIR)),
            _ => return Err(FsError::os(Errno::INVAL)),
        }
        let keys = self.enter()?;
        let live = self.acquire(&keys, inode, size == 0)?;
        let done = self.with_live(inode, &live, |file| file.truncate(size).and_then(|()| file.put_tail()));
        if done.is_ok() {
            live.changed(has_time);
            if caller.uid != 0 {
                self.kill_privileges(inode);
            }
        }
        let put = live.put_times();
        let closed = self.let_go(inode);
        done.and(put).and(closed)
    }

    fn change_owner(&self, inode: &Arc<Inode>, uid: Option<u32>, gid: Option<u32>) -> Result<(), FsError> {
        // The store's kernel clears suid and sgid with this, as POSIX wants, but only for what is not a directory.
        self.chown_fd(&*self.path_fd(inode)?, uid, gid)?;
        if inode.kind == Kind::File {
            self.drop_capability(inode);
        }
        Ok(())
    }

    fn change_mode(&self, inode: &Arc<Inode>, mode: u32) -> Result<(), FsError> {
        if inode.kind == Kind::Symlink {
            return Err(FsError::os(Errno::OPNOTSUPP));
        }
        let bits = Mode::from_raw_mode(mode);
        match inode.live() {
            Some(live) => rustix::fs::fchmod(live.file.disk(), bits)?,
            // The one call that takes no O_PATH descriptor on older kernels; the link leads to the inode itself.
            None => rustix::fs::chmod(proc_path(&*self.path_fd(inode)?), bits)?,
        }
        Ok(())
    }

    fn change_times(&self, inode: &Arc<Inode>, set: &SetAttr) -> Result<(), FsError> {
        let spec = |time: Option<TimeOrNow>| match time {
            None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
            Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW as _ },
            Some(TimeOrNow::At(time)) => timespec(time),
        };
        let times = Timestamps { last_access: spec(set.atime), last_modification: spec(set.mtime) };
        if let Some(live) = inode.live() {
            let mut kept = lock(&live.times);
            rustix::fs::futimens(live.file.disk(), &times)?;
            match set.mtime {
                None => {}
                Some(TimeOrNow::At(time)) => (kept.mtime, kept.stale) = (timespec(time), false),
                Some(TimeOrNow::Now) => (kept.mtime, kept.stale) = (now(), true),
            }
            return Ok(());
        }
        let fd = self.path_fd(inode)?;
        match rustix::fs::utimensat(&fd, "", &times, AtFlags::EMPTY_PATH) {
            // Kernels before 5.8 take no empty path here.
            Err(Errno::INVAL | Errno::NOENT) if inode.kind != Kind::Symlink => {
                Ok(rustix::fs::utimensat(rustix::fs::CWD, proc_path(&*fd), &times, AtFlags::empty())?)
            }
            other => Ok(other?),
        }
    }

    /// Clears suid, sgid (where the group may execute) and file capabilities after a change of the contents. The change
    /// was made, so a failure here is only logged.
    pub(super) fn kill_privileges(&self, inode: &Arc<Inode>) {
        let cleared = self.stat(inode).and_then(|stat| {
            let mode = stat.st_mode & 0o7777;
            let mut left = mode & !0o4000;
            if mode & 0o010 != 0 {
                left &= !0o2000;
            }
            if left == mode { Ok(()) } else { self.change_mode(inode, left) }
        });
        if let Err(error) = cleared {
            tracing::warn!(inode = inode.ino, %error, "the suid and sgid bits could not be cleared");
        }
        self.drop_capability(inode);
    }

    /// Space and inodes; also while the volume is locked, for it tells nothing that the store does not show.
    pub fn statfs(&self) -> Result<Statfs, FsError> {
        let stat = rustix::fs::fstatvfs(self.store.root())?;
        // What fits is a little less than the store's blocks hold: every page carries its seal.
        let scaled = |blocks: u64| (u128::from(blocks) * u128::from(CAP) / PAGE as u128) as u64;
        Ok(Statfs {
            blocks: scaled(stat.f_blocks),
            bfree: scaled(stat.f_bfree),
            bavail: scaled(stat.f_bavail),
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: PAGE as u32,
            namelen: crate::format::name::NAME_MAX as u32,
            frsize: u32::try_from(stat.f_frsize).unwrap_or(PAGE as u32),
        })
    }

    /// Whether what `stat` shows is a regular file.
    pub(super) fn is_file(stat: &Stat) -> bool {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
    }
}
