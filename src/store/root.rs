//! The store directory: one descriptor, and every access below it as a single name on a directory descriptor.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use crate::format::name::TEMPORARY_PREFIX;

/// The volume record's name in the store.
pub const RECORD: &str = "hyokfs.toml";
/// A copy of the volume record, for when that is lost.
pub const RECORD_BACKUP: &str = "hyokfs.toml.bak";
/// The longest volume record that is read, in bytes; a larger one is refused rather than loaded.
const RECORD_MAX: u64 = 1 << 20;

/// What can go wrong with the store directory itself.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be opened.
    #[error("the store {path} cannot be opened: {source}; check the path and that this user may enter it")]
    Open {
        /// The directory as it was named.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no volume record: not a store, or not yet.
    #[error("{0} is no hyokfs store (it has no {RECORD}): name a store directory, or make one with `hyokfs init`")]
    NoRecord(PathBuf),
    /// A file of the store cannot be read or written.
    #[error("{what} in the store {path}: {source}; check the disk's space and permissions, then try again")]
    Io {
        /// Which file and what was done with it.
        what: &'static str,
        /// The store directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another live mount holds the store.
    #[error(
        "the store {path} is in use by {owner}: unmount it there first (one node at a time may mount a store); \
         a lock left by a dead process is taken over by itself"
    )]
    Busy {
        /// The store directory.
        path: PathBuf,
        /// Who holds it, as its lock file says.
        owner: String,
    },
}

/// An opened store directory. Nothing below it is ever reached by a path of more than one name.
#[derive(Debug)]
pub struct Store {
    root: OwnedFd,
    path: PathBuf,
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Opens the single name `name` in the directory `dir`, never leaving it and never following a symlink
/// (`openat2` with `RESOLVE_BENEATH`; on kernels without it, `openat` with `O_NOFOLLOW`).
///
/// # Errors
/// `EINVAL` for a name with a slash, `.` excepted none of the special names; else what the kernel says.
pub fn open_beneath(dir: impl AsFd, name: &OsStr, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b".." || bytes.contains(&b'/') || bytes.contains(&0) {
        return Err(io::Error::from(Errno::INVAL));
    }
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // NO_SYMLINKS refuses the last name too, O_PATH or not; a symlink's own descriptor needs the older call.
    if !flags.contains(OFlags::PATH) || flags.contains(OFlags::DIRECTORY) {
        match retry(|| rustix::fs::openat2(&dir, name, flags, mode, resolve)) {
            Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => {}
            other => return other,
        }
    }
    retry(|| rustix::fs::openat(&dir, name, flags, mode))
}

impl Store {
    /// Opens the directory at `path` (the only path that is followed as a path).
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let fail = |source: io::Error| StoreError::Open { path: path.to_owned(), source };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = retry(|| rustix::fs::open(path, flags, Mode::empty())).map_err(fail)?;
        let path = std::fs::canonicalize(path).map_err(fail)?;
        Ok(Store { root, path })
    }

    /// The directory's own descriptor.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory's absolute path, for messages only.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn io(&self, what: &'static str) -> impl Fn(io::Error) -> StoreError + '_ {
        move |source| StoreError::Io { what, path: self.path.clone(), source }
    }

    fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = File::from(open_beneath(&self.root, OsStr::new(name), OFlags::RDONLY, Mode::empty())?);
        if file.metadata()?.len() > RECORD_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is larger than 1 MiB, so it is no volume record",
            ));
        }
        let mut bytes = Vec::new();
        file.take(RECORD_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The volume record's bytes, exactly as they stand in `hyokfs.toml`; nothing in them is authenticated yet.
    pub fn read_record(&self) -> Result<Vec<u8>, StoreError> {
        self.read_file(RECORD).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::NoRecord(self.path.clone()),
            _ => self.io("reading hyokfs.toml")(error),
        })
    }

    /// The copy of the volume record, if there is one.
    pub fn read_backup(&self) -> Result<Option<Vec<u8>>, StoreError> {
        match self.read_file(RECORD_BACKUP) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io("reading hyokfs.toml.bak")(error)),
        }
    }

    /// Replaces the volume record so that after a crash it is the old or the new one, whole; then its copy
    /// `hyokfs.toml.bak` becomes equal to it. What is equal already is not written.
    pub fn write_record(&self, bytes: &[u8]) -> Result<(), StoreError> {
        for (name, what) in [(RECORD, "writing hyokfs.toml"), (RECORD_BACKUP, "writing hyokfs.toml.bak")] {
            // What can't be read is replaced.
            if self.read_file(name).is_ok_and(|there| there == bytes) {
                continue;
            }
            self.replace(name, bytes).map_err(self.io(what))?;
        }
        Ok(())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // A name that is taken for a leftover should this be cut short.
        let temp = OsString::from(format!("{TEMPORARY_PREFIX}{name}"));
        match rustix::fs::unlinkat(&self.root, &temp, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = File::from(open_beneath(&self.root, &temp, flags, Mode::from_raw_mode(0o600))?);
        file.write_all(bytes)?;
        file.sync_all()?;
        rustix::fs::renameat_with(&self.root, &temp, &self.root, name, RenameFlags::empty())?;
        retry(|| rustix::fs::fsync(&self.root))
    }

    /// Waits until everything written to the store's filesystem so far is on its disk.
    pub fn sync(&self) -> io::Result<()> {
        retry(|| rustix::fs::syncfs(&self.root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_replaced_whole_and_its_copy_follows() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(matches!(store.read_record(), Err(StoreError::NoRecord(_))));
        assert_eq!(store.read_backup().unwrap(), None);
        store.write_record(b"one").unwrap();
        assert_eq!(store.read_backup().unwrap().as_deref(), Some(&b"one"[..]));
        // A leftover of a crash does not stand in the way.
        let leftover = dir.path().join(".hyokfs.tmp.hyokfs.toml");
        std::fs::write(&leftover, b"torn").unwrap();
        store.write_record(b"two").unwrap();
        assert_eq!(store.read_record().unwrap(), b"two");
        assert_eq!(store.read_backup().unwrap().as_deref(), Some(&b"two"[..]));
        assert!(!leftover.exists());
        // A copy that was lost comes back although the record is not changed.
        std::fs::remove_file(dir.path().join(RECORD_BACKUP)).unwrap();
        store.write_record(b"two").unwrap();
        assert_eq!(store.read_backup().unwrap().as_deref(), Some(&b"two"[..]));
    }

    #[test]
    fn a_record_that_is_a_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("elsewhere"), b"x").unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join(RECORD)).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(matches!(store.read_record(), Err(StoreError::Io { .. })));
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for name in ["..", "a/b", "", "/etc"] {
            let error = open_beneath(store.root(), OsStr::new(name), OFlags::RDONLY, Mode::empty()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{name}");
        }
    }
}
