//! Extended attributes: one sealed value each, whose name is a keyed hash of the plaintext name. The name itself stands
//! in the value, so `listxattr` reads the values.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Fs;
use super::error::FsError;
use super::inode::Inode;
use super::reach::proc_path;
use super::types::{Ino, Kind};
use crate::crypto::kdf::VolumeKeys;
use crate::format::small::{self, XATTR_PREFIX};

/// The kernel's own limits.
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 65_536;

fn check_name(name: &OsStr) -> Result<&[u8], FsError> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > NAME_MAX {
        return Err(FsError::os(Errno::RANGE));
    }
    let known = [&b"user."[..], b"trusted.", b"security."];
    if known.iter().any(|prefix| bytes.starts_with(prefix) && bytes.len() > prefix.len()) {
        Ok(bytes)
    } else {
        // `system.posix_acl_access` and all others.
        Err(FsError::os(Errno::OPNOTSUPP))
    }
}

impl Fs {
    fn xattr_key(&self, keys: &VolumeKeys, name: &[u8]) -> Result<String, FsError> {
        small::xattr_key(&keys.names, name).map_err(|_| FsError::Crypto)
    }

    /// The path of the inode itself, as the xattr calls need one.
    fn with_path<T>(&self, inode: &Arc<Inode>, work: impl FnOnce(&str) -> Result<T, FsError>) -> Result<T, FsError> {
        match inode.live() {
            Some(live) => work(&proc_path(live.file.disk())),
            None => {
                let fd = self.path_fd(inode)?;
                work(&proc_path(&*fd))
            }
        }
    }

    fn carries(inode: &Inode) -> bool {
        matches!(inode.kind, Kind::File | Kind::Directory)
    }

    /// Sets an attribute; `flags` are `setxattr(2)`'s.
    pub fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: i32) -> Result<(), FsError> {
        let keys = self.enter()?;
        let inode = self.inode(ino)?;
        let name = check_name(name)?;
        if !Self::carries(&inode) {
            // Only user attributes could be kept there, and the kernel keeps none on these.
            return Err(FsError::os(Errno::PERM));
        }
        let flags =
            u32::try_from(flags).ok().and_then(XattrFlags::from_bits).ok_or_else(|| FsError::os(Errno::INVAL))?;
        if value.len() > VALUE_MAX {
            return Err(FsError::os(Errno::TOOBIG));
        }
        let key = self.xattr_key(&keys, name)?;
        let sealed = small::seal_xattr(&keys.small, self.volume, name, value).map_err(|_| FsError::Crypto)?;
        self.with_path(&inode, |path| Ok(rustix::fs::setxattr(path, key.as_str(), &sealed, flags)?))
    }

    fn fetch(&self, path: &str, key: &OsStr) -> Result<Vec<u8>, FsError> {
        let mut size = 512;
        loop {
            let mut sealed = vec![0; size];
            match rustix::fs::getxattr(path, key, &mut sealed[..]) {
                Ok(length) => {
                    sealed.truncate(length);
                    return Ok(sealed);
                }
                Err(Errno::RANGE) if size < 2 * VALUE_MAX => size = (size * 4).min(2 * VALUE_MAX),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn open_value(&self, keys: &VolumeKeys, ino: Ino, sealed: &[u8]) -> Result<(Vec<u8>, Vec<u8>), FsError> {
        small::open_xattr(&keys.small, self.volume, sealed)
            .ok_or_else(|| FsError::damaged(format!("an extended attribute of inode {ino} was altered")))
    }

    /// The value of an attribute.
    ///
    /// # Errors
    /// `ENODATA` if it has none of this name.
    pub fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>, FsError> {
        let keys = self.enter()?;
        let inode = self.inode(ino)?;
        let name = check_name(name)?;
        if !Self::carries(&inode) {
            return Err(FsError::os(Errno::NODATA));
        }
        let key = self.xattr_key(&keys, name)?;
        let sealed = self.with_path(&inode, |path| self.fetch(path, OsStr::new(&key)))?;
        let (inner, value) = self.open_value(&keys, ino, &sealed)?;
        if inner != name {
            return Err(FsError::damaged(format!("an extended attribute of inode {ino} stands under another's name")));
        }
        Ok(value)
    }

    fn keys_of(&self, path: &str) -> Result<Vec<OsString>, FsError> {
        let mut size = 1024;
        let list = loop {
            let mut list = vec![0; size];
            match rustix::fs::listxattr(path, &mut list[..]) {
                Ok(length) => {
                    list.truncate(length);
                    break list;
                }
                Err(Errno::RANGE) if size < VALUE_MAX => size = (size * 4).min(VALUE_MAX),
                Err(Errno::OPNOTSUPP) => break Vec::new(),
                Err(error) => return Err(error.into()),
            }
        };
        let names = list.split(|byte| *byte == 0).filter(|name| name.starts_with(XATTR_PREFIX.as_bytes()));
        Ok(names.map(|name| OsString::from_vec(name.to_vec())).collect())
    }

    /// The names of all attributes, each with a NUL after it. One that can't be read is left out, with a warning.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let keys = self.enter()?;
        let inode = self.inode(ino)?;
        let mut names = Vec::new();
        if !Self::carries(&inode) {
            return Ok(names);
        }
        self.with_path(&inode, |path| {
            for key in self.keys_of(path)? {
                match self.fetch(path, &key).and_then(|sealed| self.open_value(&keys, ino, &sealed)) {
                    Ok((name, _)) => {
                        names.extend_from_slice(&name);
                        names.push(0);
                    }
                    Err(error) => tracing::warn!(inode = ino, %error, "an extended attribute is not listed"),
                }
            }
            Ok(())
        })?;
        Ok(names)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `ENODATA` if it has none of this name.
    pub fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<(), FsError> {
        let keys = self.enter()?;
        let inode = self.inode(ino)?;
        let name = check_name(name)?;
        if !Self::carries(&inode) {
            return Err(FsError::os(Errno::NODATA));
        }
        let key = self.xattr_key(&keys, name)?;
        self.with_path(&inode, |path| Ok(rustix::fs::removexattr(path, key.as_str())?))
    }

    /// Removes `security.capability` after a change of contents or owner.
    pub(super) fn drop_capability(&self, inode: &Arc<Inode>) {
        let Ok(keys) = self.enter() else { return };
        let dropped = self.xattr_key(&keys, b"security.capability").and_then(|key| {
            self.with_path(inode, |path| match rustix::fs::removexattr(path, key.as_str()) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
                Err(error) => Err(error.into()),
            })
        });
        if let Err(error) = dropped {
            tracing::warn!(inode = inode.ino, %error, "the file's capabilities could not be removed");
        }
    }
}
