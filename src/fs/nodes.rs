//! Making and removing files, special files and links.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::error::FsError;
use super::inode::{Inode, lock, write};
use super::live::Live;
use super::reach::proc_path;
use super::types::{Attr, Caller, Fh, Ino, Kind};
use super::{Fs, Handle, dirs::temporary, young};
use crate::crypto::kdf::VolumeKeys;
use crate::format::DirId;
use crate::format::header::Parents;
use crate::format::name::StoreName;
use crate::keyring::NewKey;
use crate::store::open_beneath;

/// Files per directory whose first page an fsync of the directory syncs one by one; beyond, it syncs the store.
const BORN: usize = 64;

impl Fs {
    pub(super) fn chown_fd(&self, fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), FsError> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        Ok(rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Gives a new inode its owner; `mode` are the bits it must end with, if a change of owner may cost some.
    fn give(&self, fd: &impl AsFd, caller: &Caller, dir: &Arc<Inode>, mode: Option<u32>) -> Result<(), FsError> {
        if !self.superuser {
            return Ok(());
        }
        let (uid, gid, passes) = self.owner_in(caller, dir);
        // The kernel made it root's, with the group of the directory if that passes it on.
        let same_group = passes || gid == self.group;
        if uid != 0 || !same_group {
            self.chown_fd(fd, Some(uid), Some(gid))?;
            if let Some(mode) = mode.filter(|mode| mode & 0o6000 != 0) {
                rustix::fs::chmod(proc_path(fd), Mode::from_raw_mode(mode & 0o7777))?;
            }
        }
        Ok(())
    }

    /// Makes an empty regular file under a name that must be free, in the locked directory `dir`.
    #[allow(clippy::too_many_arguments)] // one call's worth of state that has no other use
    fn make_file(
        &self,
        keys: &VolumeKeys,
        caller: &Caller,
        dir: &Arc<Inode>,
        name: &OsStr,
        entry: &StoreName,
        mode: u32,
        new: NewKey,
    ) -> Result<(Arc<Inode>, Arc<Live>, Stat), FsError> {
        let fd = self.dir_fd(dir)?;
        let dir_id = self.dir_id(keys, dir)?;
        let parents = Parents::Bound(vec![dir_id]);
        let id = new.file;
        let bits = Mode::from_raw_mode(mode & 0o7777);
        let to = OsStr::from_bytes(&entry.entry);
        if self.nameless.load(Ordering::Relaxed) {
            let flags = OFlags::TMPFILE | OFlags::RDWR;
            match open_beneath(&fd, OsStr::new("."), flags, bits) {
                Ok(made) => {
                    let file = self.begin_file(keys, made, new, parents)?;
                    self.mark(keys, &file, dir_id);
                    self.give(file.disk(), caller, dir, Some(mode))?;
                    self.add_sidecar(&fd, entry)?;
                    self.link_fd(file.disk(), &fd, to)?;
                    return self.made(dir, name, entry, id, file);
                }
                Err(error) => match Errno::from_io_error(&error) {
                    // A kernel or filesystem without nameless files: with a name from the start.
                    Some(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                        self.nameless.store(false, Ordering::Relaxed);
                    }
                    // What ext4 says of a directory that was removed.
                    Some(Errno::PERM) if rustix::fs::fstat(&*fd)?.st_nlink == 0 => return Err(FsError::NotFound),
                    _ => return Err(error.into()),
                },
            }
        }
        let temp = temporary()?;
        let made = open_beneath(&fd, OsStr::new(&temp), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, bits)?;
        let done = (|| {
            let file = self.begin_file(keys, made, new, parents)?;
            self.mark(keys, &file, dir_id);
            self.give(file.disk(), caller, dir, Some(mode))?;
            self.add_sidecar(&fd, entry)?;
            self.rename_new(&fd, OsStr::new(&temp), to)?;
            Ok(file)
        })();
        match done {
            Ok(file) => self.made(dir, name, entry, id, file),
            Err(error) => {
                let _ = rustix::fs::unlinkat(&fd, &temp, AtFlags::empty());
                Err(error)
            }
        }
    }

    fn mark(&self, keys: &VolumeKeys, file: &crate::file::PageFile<crate::store::RealDisk>, dir: DirId) {
        if let Ok(stat) = rustix::fs::fstat(file.disk()) {
            young::mark(file.disk(), stat.st_ino, &keys.header, self.volume, dir);
        }
    }

    fn made(
        &self,
        dir: &Arc<Inode>,
        name: &OsStr,
        entry: &StoreName,
        id: crate::format::FileId,
        file: crate::file::PageFile<crate::store::RealDisk>,
    ) -> Result<(Arc<Inode>, Arc<Live>, Stat), FsError> {
        let stat = rustix::fs::fstat(file.disk())?;
        let inode = self.found(dir, &entry.entry, name, &stat, 1)?;
        let _ = inode.file.set(id);
        let live = self.adopt(&inode, file, &stat);
        let mut born = lock(&dir.born);
        if born.files.len() < BORN {
            born.files.push(Arc::downgrade(&inode));
        } else {
            born.many = true;
        }
        Ok((inode, live, stat))
    }

    /// Gives a nameless open file its name.
    fn link_fd(&self, file: &impl AsFd, dir: &OwnedFd, to: &OsStr) -> Result<(), FsError> {
        let bare = self.bare_link.load(Ordering::Relaxed);
        if bare {
            match rustix::fs::linkat(file, "", dir, to, AtFlags::EMPTY_PATH) {
                // Without CAP_DAC_READ_SEARCH the kernel says that there is no such file; a removed directory does, too.
                Err(Errno::NOENT | Errno::PERM) => {}
                other => return Ok(other?),
            }
        }
        rustix::fs::linkat(rustix::fs::CWD, proc_path(file), dir, to, AtFlags::SYMLINK_FOLLOW)?;
        if bare {
            self.bare_link.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The key of a new file in `dir`; may wait for the key service.
    fn new_key_in(&self, keys: &VolumeKeys, dir: &Arc<Inode>) -> Result<NewKey, FsError> {
        let id = self.dir_id(keys, dir)?;
        self.find_group(keys, dir, &id);
        Ok(self.keyring.new_file_key(&id)?)
    }

    /// Makes and opens a regular file; opens the one that is there, unless `flags` has `O_EXCL`.
    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
    ) -> Result<(Attr, Fh), FsError> {
        let keys = self.enter()?;
        let dir = self.dir(parent)?;
        let entry = self.entry(&keys, &dir, name)?;
        // The only step that may wait comes before any lock.
        let new = self.new_key_in(&keys, &dir)?;
        let made = {
            let _names = write(&dir.names);
            self.make_file(&keys, caller, &dir, name, &entry, mode, new)
        };
        match made {
            Ok((inode, live, stat)) => {
                let attr = self.attr(&inode, &stat)?;
                let fh = self.add_handle(Handle::file(inode, live, true));
                Ok((attr, fh))
            }
            Err(error) if error.is(Errno::EXIST) && flags & libc::O_EXCL == 0 => {
                let attr = self.lookup(parent, name)?;
                match self.open(caller, attr.ino, flags) {
                    Ok(fh) => Ok((self.getattr(attr.ino, Some(fh))?, fh)),
                    Err(error) => {
                        self.forget(attr.ino, 1);
                        Err(error)
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a regular file, a pipe, a socket or a device.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
    ) -> Result<Attr, FsError> {
        let keys = self.enter()?;
        let dir = self.dir(parent)?;
        let entry = self.entry(&keys, &dir, name)?;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Unknown if mode & 0o170_000 == 0 => FileType::RegularFile,
            kind => kind,
        };
        if kind == FileType::RegularFile {
            let new = self.new_key_in(&keys, &dir)?;
            let (inode, _live, stat) = {
                let _names = write(&dir.names);
                self.make_file(&keys, caller, &dir, name, &entry, mode, new)?
            };
            let attr = self.attr(&inode, &stat)?;
            self.let_go(&inode)?;
            return Ok(attr);
        }
        if !matches!(kind, FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice) {
            return Err(FsError::os(Errno::INVAL));
        }
        let fd = self.dir_fd(&dir)?;
        let _names = write(&dir.names);
        self.place(&dir, &fd, name, &entry, &|temp| {
            rustix::fs::mknodat(&fd, temp, kind, Mode::from_raw_mode(mode & 0o7777), decode_device(rdev))?;
            let node = open_beneath(&fd, temp, OFlags::PATH, Mode::empty())?;
            self.give(&node, caller, &dir, Some(mode))
        })
    }

    /// Makes something under a temporary name by `make`, then gives it its own in the locked directory `dir`.
    pub(super) fn place(
        &self,
        dir: &Arc<Inode>,
        fd: &OwnedFd,
        name: &OsStr,
        entry: &StoreName,
        make: &dyn Fn(&OsStr) -> Result<(), FsError>,
    ) -> Result<Attr, FsError> {
        match self.stat_entry(fd, &entry.entry) {
            Ok(_) => return Err(FsError::os(Errno::EXIST)),
            Err(FsError::NotFound) => {}
            Err(error) => return Err(error),
        }
        let temp = temporary()?;
        let temp = OsStr::new(&temp);
        let done = make(temp)
            .and_then(|()| self.add_sidecar(fd, entry))
            .and_then(|()| self.rename_new(fd, temp, OsStr::from_bytes(&entry.entry)));
        if let Err(error) = done {
            let _ = rustix::fs::unlinkat(fd, temp, AtFlags::empty());
            return Err(error);
        }
        let stat = self.stat_entry(fd, &entry.entry)?;
        let inode = self.found(dir, &entry.entry, name, &stat, 1)?;
        self.attr(&inode, &stat)
    }

    /// Makes the symlink `name` with the text `target`.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &OsStr, target: &[u8]) -> Result<Attr, FsError> {
        let keys = self.enter()?;
        let dir = self.dir(parent)?;
        let entry = self.entry(&keys, &dir, name)?;
        let text = self.seal_target(&keys, target)?;
        let fd = self.dir_fd(&dir)?;
        let _names = write(&dir.names);
        self.place(&dir, &fd, name, &entry, &|temp| {
            match rustix::fs::symlinkat(&text, &fd, temp) {
                Err(Errno::NAMETOOLONG) => return Err(FsError::NameTooLong),
                other => other?,
            }
            if self.superuser {
                let node = open_beneath(&fd, temp, OFlags::PATH, Mode::empty())?;
                self.give(&node, caller, &dir, None)?;
            }
            Ok(())
        })
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<(), FsError> {
        let keys = self.enter()?;
        let dir = self.dir(parent)?;
        let entry = self.entry(&keys, &dir, name)?;
        let fd = self.dir_fd(&dir)?;
        let _names = write(&dir.names);
        let stat = self.stat_entry(&fd, &entry.entry)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(FsError::os(Errno::ISDIR));
        }
        let to = OsStr::from_bytes(&entry.entry);
        match self.table.find(&stat) {
            None => rustix::fs::unlinkat(&fd, to, AtFlags::empty())?,
            Some(inode) => {
                inode.add_place(&dir, &entry.entry, name);
                self.pin(&inode)?;
                {
                    let mut places = write(&inode.places);
                    rustix::fs::unlinkat(&fd, to, AtFlags::empty())?;
                    places.list.retain(|place| !(Arc::ptr_eq(&place.parent, &dir) && &*place.entry == to));
                    places.last = dir.dir.get().copied();
                }
                self.unpin(&inode);
            }
        }
        self.drop_sidecar(&fd, &entry);
        Ok(())
    }

    /// Gives a file one more name.
    pub fn link(&self, ino: Ino, new_parent: Ino, new_name: &OsStr) -> Result<Attr, FsError> {
        let keys = self.enter()?;
        let inode = self.inode(ino)?;
        if inode.kind == Kind::Directory {
            return Err(FsError::os(Errno::PERM));
        }
        let dir = self.dir(new_parent)?;
        let entry = self.entry(&keys, &dir, new_name)?;
        let id = self.dir_id(&keys, &dir)?;
        let fd = self.dir_fd(&dir)?;
        let _names = write(&dir.names);
        match self.stat_entry(&fd, &entry.entry) {
            Ok(_) => return Err(FsError::os(Errno::EXIST)),
            Err(FsError::NotFound) => {}
            Err(error) => return Err(error),
        }
        self.rebind(&keys, &inode, &|parents| parents.with(id), true)?;
        self.add_sidecar(&fd, &entry)?;
        let node = self.path_fd(&inode)?;
        self.link_fd(&node, &fd, OsStr::from_bytes(&entry.entry))?;
        let stat = self.stat_entry(&fd, &entry.entry)?;
        let same = self.found(&dir, &entry.entry, new_name, &stat, 1)?;
        if !Arc::ptr_eq(&same, &inode) {
            self.forget(same.ino, 1);
            return Err(FsError::os(Errno::STALE));
        }
        self.unpin(&inode);
        self.attr(&inode, &stat)
    }
}

/// The device number as `mknod` takes it, from the 32 bits that FUSE carries (the kernel's `new_encode_dev`).
fn decode_device(rdev: u32) -> u64 {
    let major = (rdev & 0xfff00) >> 8;
    let minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00);
    rustix::fs::makedev(major, minor)
}

/// The 32 bits that FUSE carries, from a device number as `stat` gives it.
pub(super) fn encode_device(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
