//! Directories: their authenticated ids, names in them, making and removing them.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::error::FsError;
use super::inode::{Born, Inode, lock, read, write};
use super::types::{Attr, Caller, Ino, Kind};
use super::{Fs, reach::proc_path, young};
use crate::crypto::kdf::VolumeKeys;
use crate::format::dirrec::{DIR_RECORD, DirRecord};
use crate::format::header::Parents;
use crate::format::name::{self, Entry, NameError, StoreName, TEMPORARY_PREFIX};
use crate::format::{DirId, FileId};
use crate::store::open_beneath;

pub(super) fn temporary() -> Result<String, FsError> {
    Ok(format!("{TEMPORARY_PREFIX}{}", FileId::random().map_err(|_| FsError::Crypto)?))
}

/// Calls `each` with the name and type of every entry but `.` and `..`.
pub(super) fn scan(
    dir: impl AsFd,
    mut each: impl FnMut(&[u8], FileType) -> Result<(), FsError>,
) -> Result<(), FsError> {
    let opened = open_beneath(dir, OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16 << 10];
    let mut entries = RawDir::new(opened, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name, entry.file_type())?;
        }
    }
    Ok(())
}

impl Fs {
    /// The record of a directory, authenticated.
    pub(super) fn read_record(&self, keys: &VolumeKeys, fd: impl AsFd, ino: Ino) -> Result<DirRecord, FsError> {
        let bad = |what: String| FsError::damaged(format!("directory inode {ino}: {what}"));
        let target = match rustix::fs::readlinkat(fd, DIR_RECORD, Vec::new()) {
            Ok(target) => target,
            Err(Errno::NOENT) => return Err(bad(format!("its record {DIR_RECORD} is missing"))),
            Err(Errno::INVAL) => return Err(bad(format!("its record {DIR_RECORD} is no symlink"))),
            Err(error) => return Err(error.into()),
        };
        DirRecord::decode(target.to_bytes(), self.volume, &keys.header).map_err(|error| bad(error.to_string()))
    }

    /// The id of a directory; read and checked against where it stands when it is first needed.
    pub(super) fn dir_id(&self, keys: &VolumeKeys, dir: &Arc<Inode>) -> Result<DirId, FsError> {
        let (epoch, known) = (self.table.epoch(), dir.dir.get());
        if let Some(id) = known
            && dir.epoch.load(Ordering::Acquire) == epoch
        {
            return Ok(*id);
        }
        if Arc::ptr_eq(dir, &self.root) {
            let id = *dir.dir.get_or_init(|| DirId(keys.root));
            if id != DirId(keys.root) {
                return Err(FsError::damaged("the volume has another secret than before"));
            }
            dir.epoch.store(epoch, Ordering::Release);
            return Ok(id);
        }
        let record = self.read_record(keys, self.dir_fd(dir)?, dir.ino)?;
        let parents = self.parents_of(keys, dir)?;
        if record.parents.is_empty() || parents.iter().any(|parent| !record.parents.contains(parent)) {
            return Err(FsError::damaged(format!("directory {} was moved behind hyokfs's back", record.dir)));
        }
        if known.is_some_and(|known| *known != record.dir) {
            return Err(FsError::damaged(format!("directory {} got another record behind hyokfs's back", record.dir)));
        }
        let id = *dir.dir.get_or_init(|| record.dir);
        dir.epoch.store(epoch, Ordering::Release);
        Ok(id)
    }

    /// Changes the directories that a directory may stand in.
    pub(super) fn rebind_dir(
        &self,
        keys: &VolumeKeys,
        dir: &Arc<Inode>,
        change: &dyn Fn(&Parents) -> Parents,
        durable: bool,
    ) -> Result<(), FsError> {
        self.dir_id(keys, dir)?;
        let fd = self.dir_fd(dir)?;
        let record = self.read_record(keys, &fd, dir.ino)?;
        let Parents::Bound(parents) = change(&Parents::Bound(record.parents.clone())) else {
            return Err(FsError::damaged(format!("directory {} has too many parents", record.dir)));
        };
        if parents == record.parents {
            return Ok(());
        }
        let times = rustix::fs::fstat(&fd)?;
        let target = DirRecord { dir: record.dir, parents }.encode(self.volume, &keys.header);
        let temp = temporary()?;
        rustix::fs::symlinkat(target, &fd, &temp)?;
        if let Err(error) = rustix::fs::renameat(&fd, &temp, &fd, DIR_RECORD) {
            let _ = rustix::fs::unlinkat(&fd, &temp, AtFlags::empty());
            return Err(error.into());
        }
        if durable {
            self.sync_dir(dir)?;
        }
        restore_times(&fd, &times)
    }

    pub(super) fn sync_dir(&self, dir: &Arc<Inode>) -> Result<(), FsError> {
        let fd = self.dir_fd(dir)?;
        let opened = open_beneath(&fd, OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Ok(rustix::fs::fsync(opened)?)
    }

    /// The store's name for `name` in `dir`.
    pub(super) fn entry(&self, keys: &VolumeKeys, dir: &Arc<Inode>, name: &OsStr) -> Result<StoreName, FsError> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') || bytes.contains(&0) {
            return Err(FsError::os(Errno::INVAL));
        }
        let id = self.dir_id(keys, dir)?;
        name::encode(&keys.names, self.names, &id, bytes).map_err(|error| match error {
            NameError::TooLong => FsError::NameTooLong,
            NameError::Library => FsError::Crypto,
            NameError::Forged => FsError::damaged(error.to_string()),
        })
    }

    /// Makes the symlink that holds a long name; one that is there already says the same.
    pub(super) fn add_sidecar(&self, fd: &OwnedFd, entry: &StoreName) -> Result<(), FsError> {
        let (Some(sidecar), Some(long)) = (entry.sidecar(), &entry.long) else { return Ok(()) };
        let sidecar = OsStr::from_bytes(&sidecar);
        match rustix::fs::symlinkat(long.as_str(), fd, sidecar) {
            Err(Errno::EXIST) => {
                let there = rustix::fs::readlinkat(fd, sidecar, Vec::new());
                if there.is_ok_and(|target| target.to_bytes() == long.as_bytes()) {
                    return Ok(());
                }
                // Not ours: put right.
                rustix::fs::unlinkat(fd, sidecar, AtFlags::empty())?;
                Ok(rustix::fs::symlinkat(long.as_str(), fd, sidecar)?)
            }
            other => Ok(other?),
        }
    }

    /// Removes a long name's symlink after its entry went; a leftover does no harm.
    pub(super) fn drop_sidecar(&self, fd: &OwnedFd, entry: &StoreName) {
        if let Some(sidecar) = entry.sidecar() {
            let _ = rustix::fs::unlinkat(fd, OsStr::from_bytes(&sidecar), AtFlags::empty());
        }
    }

    /// Finds `name` in directory `parent`; the kernel holds one more reference to it.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr, FsError> {
        let keys = self.enter()?;
        let dir = self.dir(parent)?;
        let entry = self.entry(&keys, &dir, name)?;
        let fd = self.dir_fd(&dir)?;
        let _names = read(&dir.names);
        let stat = self.stat_entry(&fd, &entry.entry)?;
        let inode = self.found(&dir, &entry.entry, name, &stat, 1)?;
        self.attr(&inode, &stat)
    }

    /// The inode of a found entry.
    pub(super) fn found(
        &self,
        dir: &Arc<Inode>,
        entry: &[u8],
        name: &OsStr,
        stat: &Stat,
        lookups: u64,
    ) -> Result<Arc<Inode>, FsError> {
        let inode = self.table.intern(stat, lookups).ok_or_else(|| FsError::os(Errno::IO))?;
        if let Err(error) = self.compare(&inode) {
            self.forget(inode.ino, lookups);
            return Err(error);
        }
        inode.add_place(dir, entry, name);
        Ok(inode)
    }

    /// The owner that a new entry in `dir` gets, and whether the directory passes its group on.
    pub(super) fn owner_in(&self, caller: &Caller, dir: &Arc<Inode>) -> (u32, u32, bool) {
        let (mode, gid) = dir.perm();
        let passes = mode & 0o2000 != 0;
        (caller.uid, if passes { gid } else { caller.gid }, passes)
    }

    /// Makes a directory. `umask` was applied by the kernel.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &OsStr, mode: u32, _umask: u32) -> Result<Attr, FsError> {
        let keys = self.enter()?;
        let dir = self.dir(parent)?;
        let entry = self.entry(&keys, &dir, name)?;
        let above = self.dir_id(&keys, &dir)?;
        let fd = self.dir_fd(&dir)?;
        let _names = write(&dir.names);
        match self.stat_entry(&fd, &entry.entry) {
            Ok(_) => return Err(FsError::os(Errno::EXIST)),
            Err(FsError::NotFound) => {}
            Err(error) => return Err(error),
        }
        let temp = temporary()?;
        rustix::fs::mkdirat(&fd, &temp, Mode::RWXU)?;
        let made = (|| {
            let own = open_beneath(&fd, OsStr::new(&temp), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
            let id = match self.keyring.new_directory() {
                Some(id) => id,
                None => DirId::random().map_err(|_| FsError::Crypto)?,
            };
            let target = DirRecord { dir: id, parents: vec![above] }.encode(self.volume, &keys.header);
            rustix::fs::symlinkat(target, &own, DIR_RECORD)?;
            let (uid, gid, passes) = self.owner_in(caller, &dir);
            let before = rustix::fs::fstat(&own)?;
            if self.superuser && (before.st_uid, before.st_gid) != (uid, gid) {
                self.chown_fd(&own, Some(uid), Some(gid))?;
            }
            let mode = mode & 0o7777 | if passes { 0o2000 } else { 0 };
            if before.st_mode & 0o7777 != mode {
                rustix::fs::chmod(proc_path(&own), Mode::from_raw_mode(mode))?;
            }
            self.add_sidecar(&fd, &entry)?;
            self.rename_new(&fd, OsStr::new(&temp), OsStr::from_bytes(&entry.entry))?;
            Ok((own, id))
        })();
        let (own, id) = match made {
            Ok(made) => made,
            Err(error) => {
                self.sweep_one(&fd, temp.as_bytes());
                return Err(error);
            }
        };
        let stat = rustix::fs::fstat(&own)?;
        let inode = self.found(&dir, &entry.entry, name, &stat, 1)?;
        let _ = inode.dir.set(id);
        self.attr(&inode, &stat)
    }

    /// Renames within a directory to a name that must be free.
    pub(super) fn rename_new(&self, fd: &OwnedFd, from: &OsStr, to: &OsStr) -> Result<(), FsError> {
        match rustix::fs::renameat_with(fd, from, fd, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => match rustix::fs::statat(fd, to, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => Ok(rustix::fs::renameat(fd, from, fd, to)?),
                Ok(_) => Err(FsError::os(Errno::EXIST)),
                Err(error) => Err(error.into()),
            },
            other => Ok(other?),
        }
    }

    /// `ENOTEMPTY` if the directory holds anything that applications see.
    pub(super) fn check_empty(&self, fd: &OwnedFd) -> Result<(), FsError> {
        scan(fd, |entry, _| match name::classify(entry) {
            Entry::Short | Entry::Long => Err(FsError::os(Errno::NOTEMPTY)),
            Entry::Sidecar | Entry::Temporary | Entry::Reserved => Ok(()),
        })
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<(), FsError> {
        let keys = self.enter()?;
        let dir = self.dir(parent)?;
        let entry = self.entry(&keys, &dir, name)?;
        let fd = self.dir_fd(&dir)?;
        let _names = write(&dir.names);
        let stat = self.stat_entry(&fd, &entry.entry)?;
        let victim = self.found(&dir, &entry.entry, name, &stat, 0)?;
        if victim.kind != Kind::Directory {
            return Err(FsError::os(Errno::NOTDIR));
        }
        self.remove_dir(&dir, &fd, &entry.entry, &victim)?;
        self.drop_sidecar(&fd, &entry);
        Ok(())
    }

    /// Removes the directory `victim`, which stands as `entry` in `dir` (locked). It goes under a temporary name first,
    /// so that no crash leaves a visible directory without its record.
    pub(super) fn remove_dir(
        &self,
        dir: &Arc<Inode>,
        fd: &OwnedFd,
        entry: &[u8],
        victim: &Arc<Inode>,
    ) -> Result<(), FsError> {
        let own = self.dir_fd(victim)?;
        self.check_empty(&own)?;
        let temp = temporary()?;
        let entry = OsStr::from_bytes(entry);
        let mut places = write(&victim.places);
        rustix::fs::renameat(fd, entry, fd, &temp)?;
        let record = rustix::fs::readlinkat(&own, DIR_RECORD, Vec::new()).ok();
        self.sweep(victim, &*own);
        let _ = rustix::fs::unlinkat(&own, DIR_RECORD, AtFlags::empty());
        if let Err(error) = rustix::fs::unlinkat(fd, &temp, AtFlags::REMOVEDIR) {
            // Something was made in it meanwhile: all as before.
            if let Some(record) = record {
                rustix::fs::symlinkat(record, &own, DIR_RECORD)?;
            }
            rustix::fs::renameat(fd, &temp, fd, entry)?;
            let error = if error == Errno::EXIST { Errno::NOTEMPTY } else { error };
            return Err(error.into());
        }
        places.list.retain(|place| !(Arc::ptr_eq(&place.parent, dir) && &*place.entry == entry));
        places.last = dir.dir.get().copied();
        drop(places);
        self.unpin(victim);
        Ok(())
    }

    /// Removes what interrupted operations left in a directory. What can't be removed stays: it is invisible.
    pub(super) fn sweep(&self, dir: &Inode, fd: impl AsFd) {
        let mut left = Vec::new();
        let mut long = std::collections::HashSet::new();
        let all = scan(&fd, |entry, _| {
            match name::classify(entry) {
                Entry::Temporary | Entry::Sidecar => left.push(entry.to_vec()),
                Entry::Long => {
                    long.insert(name::sidecar_of(entry));
                }
                Entry::Short | Entry::Reserved => {}
            }
            Ok(())
        });
        if let Err(error) = all {
            tracing::debug!(inode = dir.ino, %error, "leftovers were not looked for");
            return;
        }
        for entry in left.into_iter().filter(|entry| !long.contains(entry)) {
            self.sweep_one(&fd, &entry);
        }
    }

    /// Removes one leftover: a file, a symlink, or a directory that holds no more than its own record.
    fn sweep_one(&self, fd: impl AsFd, entry: &[u8]) {
        let name = OsStr::from_bytes(entry);
        match rustix::fs::unlinkat(&fd, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            _ => return,
        }
        let Ok(own) = open_beneath(&fd, name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) else { return };
        if self.check_empty(&own).is_err() {
            return;
        }
        let _ = scan(&own, |inner, kind| {
            if kind != FileType::Directory {
                rustix::fs::unlinkat(&own, OsStr::from_bytes(inner), AtFlags::empty())?;
            }
            Ok(())
        });
        let _ = rustix::fs::unlinkat(&fd, name, AtFlags::REMOVEDIR);
    }

    /// Puts a directory's entries on the disk, with page 0 of the files made there since.
    pub fn fsyncdir(&self, ino: Ino, _fh: u64) -> Result<(), FsError> {
        self.enter_write_back()?;
        let dir = self.dir(ino)?;
        let born = std::mem::take(&mut *lock(&dir.born));
        let synced = self.sync_born(&born).and_then(|()| self.sync_dir(&dir));
        if synced.is_err() {
            lock(&dir.born).many = true;
        }
        synced
    }

    fn sync_born(&self, born: &Born) -> Result<(), FsError> {
        let mut whole = born.many;
        for file in &born.files {
            match file.upgrade() {
                // Without a name left, there is nothing that an entry could lead to.
                Some(inode) if !read(&inode.places).list.is_empty() => match inode.live() {
                    Some(live) => live.sync(false)?,
                    None => {
                        let file = self.open_node(&inode, OFlags::RDONLY)?;
                        rustix::fs::fdatasync(&file)?;
                        young::unmark(&file);
                    }
                },
                Some(_) => {}
                None => whole = true,
            }
        }
        if whole {
            self.store.sync()?;
        }
        Ok(())
    }
}

/// Puts a directory's times back after hyokfs changed its own record in it.
fn restore_times(fd: &OwnedFd, stat: &Stat) -> Result<(), FsError> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    };
    Ok(rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH)?)
}
