//! Renaming: within a directory, across directories, over something, and exchanging.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, RwLockWriteGuard};

use rustix::fs::{RenameFlags, Stat};
use rustix::io::Errno;

use super::Fs;
use super::error::FsError;
use super::inode::{Inode, Place, Places, lock, write};
use super::types::{Ino, Kind};
use crate::crypto::kdf::VolumeKeys;
use crate::format::name::StoreName;

/// Moves whose old parent is kept in the header at most, before the store is synced to narrow them.
const NARROW: usize = 1024;

/// One side of a rename.
struct Side<'a> {
    dir: Arc<Inode>,
    fd: Arc<OwnedFd>,
    name: &'a OsStr,
    entry: StoreName,
}

impl Side<'_> {
    fn entry(&self) -> &OsStr {
        OsStr::from_bytes(&self.entry.entry)
    }

    fn is(&self, place: &Place) -> bool {
        Arc::ptr_eq(&place.parent, &self.dir) && &*place.entry == self.entry()
    }

    fn place(&self) -> Place {
        Place { parent: Arc::clone(&self.dir), entry: self.entry().into(), plain: Some(self.name.into()) }
    }
}

/// The places of one or two inodes, locked in the order of their numbers.
fn both<'a>(
    a: &'a Arc<Inode>,
    b: Option<&'a Arc<Inode>>,
) -> (RwLockWriteGuard<'a, Places>, Option<RwLockWriteGuard<'a, Places>>) {
    match b {
        Some(b) if b.ino < a.ino => {
            let second = write(&b.places);
            (write(&a.places), Some(second))
        }
        Some(b) => {
            let first = write(&a.places);
            (first, Some(write(&b.places)))
        }
        None => (write(&a.places), None),
    }
}

impl Fs {
    fn side<'a>(&self, keys: &VolumeKeys, parent: Ino, name: &'a OsStr) -> Result<Side<'a>, FsError> {
        let dir = self.dir(parent)?;
        let entry = self.entry(keys, &dir, name)?;
        let fd = self.dir_fd(&dir)?;
        Ok(Side { dir, fd, name, entry })
    }

    fn side_stat(&self, side: &Side<'_>) -> Result<Option<Stat>, FsError> {
        match self.stat_entry(&side.fd, &side.entry.entry) {
            Ok(stat) => Ok(Some(stat)),
            Err(FsError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Renames. `flags`: `RENAME_NOREPLACE` or `RENAME_EXCHANGE` or none.
    pub fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<(), FsError> {
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        let flags = RenameFlags::from_bits_retain(flags);
        if flags.contains(known) || !known.contains(flags) {
            return Err(FsError::os(Errno::INVAL));
        }
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let keys = self.enter()?;
        let from = self.side(&keys, parent, name)?;
        let to = self.side(&keys, new_parent, new_name)?;
        let across = !Arc::ptr_eq(&from.dir, &to.dir);
        let (first, second) = if from.dir.ino <= to.dir.ino { (&from.dir, &to.dir) } else { (&to.dir, &from.dir) };
        let _first = write(&first.names);
        let _second = across.then(|| write(&second.names));

        let stat = self.side_stat(&from)?.ok_or(FsError::NotFound)?;
        let moved = self.found(&from.dir, &from.entry.entry, from.name, &stat, 0)?;
        let target = match self.side_stat(&to)? {
            Some(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(FsError::os(Errno::EXIST)),
            Some(stat) => Some(self.found(&to.dir, &to.entry.entry, to.name, &stat, 0)?),
            None if exchange => return Err(FsError::NotFound),
            None => None,
        };
        if target.as_ref().is_some_and(|target| Arc::ptr_eq(target, &moved)) {
            // Two names of one file (or the same name): nothing happens, says POSIX.
            return Ok(());
        }
        if let Some(target) = target.as_ref().filter(|_| !exchange) {
            match (moved.kind == Kind::Directory, target.kind == Kind::Directory) {
                (true, false) => return Err(FsError::os(Errno::NOTDIR)),
                (false, true) => return Err(FsError::os(Errno::ISDIR)),
                (true, true) => self.check_empty(&*self.dir_fd(target)?)?,
                (false, false) => {}
            }
        }
        if across {
            self.allow_move(&keys, &moved, &from, &to)?;
            if let Some(target) = target.as_ref().filter(|_| exchange) {
                self.allow_move(&keys, target, &to, &from)?;
            }
        }
        self.add_sidecar(&to.fd, &to.entry)?;
        match target {
            Some(target) if exchange => self.exchange(&moved, &target, &from, &to)?,
            Some(target) if target.kind == Kind::Directory => self.replace_dir(&moved, &target, &from, &to)?,
            target => self.replace(&moved, target.as_ref(), &from, &to, flags)?,
        }
        if !exchange {
            self.drop_sidecar(&from.fd, &from.entry);
        }
        Ok(())
    }

    /// Before a move across directories: the new parent is durable beside the old one, so that a crash on either side of
    /// the rename leaves a file that opens. The old one goes when the rename is durable ([`Fs::narrow`]).
    fn allow_move(&self, keys: &VolumeKeys, inode: &Arc<Inode>, from: &Side<'_>, to: &Side<'_>) -> Result<(), FsError> {
        if inode.kind == Kind::Directory {
            let mut above = Some(Arc::clone(&to.dir));
            while let Some(dir) = above {
                if Arc::ptr_eq(&dir, inode) {
                    return Err(FsError::os(Errno::INVAL));
                }
                above = super::inode::read(&dir.places).list.first().map(|place| Arc::clone(&place.parent));
            }
            // A directory stands in one place, so what an earlier move left is not needed.
            let (old, new) = (self.dir_id(keys, &from.dir)?, self.dir_id(keys, &to.dir)?);
            self.rebind(keys, inode, &|_| crate::format::header::Parents::Bound(vec![old, new]), true)?;
        } else {
            let new = self.dir_id(keys, &to.dir)?;
            self.rebind(keys, inode, &|parents| parents.with(new), true)?;
        }
        if matches!(inode.kind, Kind::File | Kind::Directory) {
            self.to_narrow(keys, inode);
        }
        Ok(())
    }

    fn to_narrow(&self, keys: &VolumeKeys, inode: &Arc<Inode>) {
        let full = {
            let mut list = lock(&self.narrow);
            list.push(Arc::clone(inode));
            if list.len() > NARROW { std::mem::take(&mut *list) } else { Vec::new() }
        };
        // The last one is only about to be moved.
        let (done, rest) = full.split_at(full.len().saturating_sub(1));
        lock(&self.narrow).extend_from_slice(rest);
        if !done.is_empty() && self.store.sync().is_ok() {
            self.narrow(keys, done);
        }
    }

    /// Takes the old parents out of headers and records of what was moved; the moves must be durable.
    pub(super) fn narrow(&self, keys: &VolumeKeys, moved: &[Arc<Inode>]) {
        for inode in moved {
            let narrowed = (|| {
                let now = self.parents_of(keys, inode)?;
                let links = self.stat(inode)?.st_nlink;
                if now.len() != 1 || (inode.kind == Kind::File && links != 1) {
                    return Ok(());
                }
                self.rebind(keys, inode, &|_| crate::format::header::Parents::Bound(now.clone()), false)
            })();
            if let Err(error) = narrowed {
                tracing::debug!(inode = inode.ino, %error, "an old parent stays in the header");
            }
        }
    }

    /// The rename proper, over nothing or over a file.
    fn replace(
        &self,
        moved: &Arc<Inode>,
        target: Option<&Arc<Inode>>,
        from: &Side<'_>,
        to: &Side<'_>,
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        if let Some(target) = target {
            self.pin(target)?;
        }
        {
            let (mut places, mut gone) = both(moved, target);
            match rustix::fs::renameat_with(&from.fd, from.entry(), &to.fd, to.entry(), flags) {
                // A store without NOREPLACE: the directory is locked, and the name was found free.
                Err(Errno::INVAL) if !flags.is_empty() && target.is_none() => {
                    rustix::fs::renameat(&from.fd, from.entry(), &to.fd, to.entry())?;
                }
                other => other?,
            }
            places.list.retain(|place| !from.is(place));
            places.list.push(to.place());
            if let Some(gone) = &mut gone {
                gone.list.retain(|place| !to.is(place));
                gone.last = to.dir.dir.get().copied();
            }
        }
        if let Some(target) = target {
            self.unpin(target);
        }
        Ok(())
    }

    fn exchange(&self, moved: &Arc<Inode>, target: &Arc<Inode>, from: &Side<'_>, to: &Side<'_>) -> Result<(), FsError> {
        let (mut places, others) = both(moved, Some(target));
        rustix::fs::renameat_with(&from.fd, from.entry(), &to.fd, to.entry(), RenameFlags::EXCHANGE)?;
        places.list.retain(|place| !from.is(place));
        places.list.push(to.place());
        if let Some(mut others) = others {
            others.list.retain(|place| !to.is(place));
            others.list.push(from.place());
        }
        Ok(())
    }

    /// A directory over an empty one. The empty one holds its record, so the store would refuse: the two change places,
    /// and then the empty one goes. A crash between leaves it, empty, under the old name.
    fn replace_dir(
        &self,
        moved: &Arc<Inode>,
        target: &Arc<Inode>,
        from: &Side<'_>,
        to: &Side<'_>,
    ) -> Result<(), FsError> {
        match self.exchange(moved, target, from, to) {
            Ok(()) => self.remove_dir(&from.dir, &from.fd, &from.entry.entry, target),
            Err(error) if error.is(Errno::INVAL) || error.is(Errno::NOSYS) => {
                // A store that exchanges nothing: the empty one goes first.
                self.remove_dir(&to.dir, &to.fd, &to.entry.entry, target)?;
                self.replace(moved, None, from, to, RenameFlags::empty())
            }
            Err(error) => Err(error),
        }
    }
}
