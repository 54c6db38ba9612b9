//! The lock file that keeps a second daemon off a store.
//!
//! The lock is the kernel's (`flock`, which NFS and the cluster filesystems pass to their servers), so it ends with
//! its process however that dies; the file's text only says who holds it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::root::{Store, StoreError, open_beneath};

/// The lock file's name in the store.
pub const LOCK_FILE: &str = ".hyokfs.lock";

/// Who holds a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Process id of the daemon on its host.
    pub pid: u32,
    /// The host's name.
    pub host: String,
    /// Where the volume is mounted; empty for a command that works on the store without mounting it.
    pub mount_point: PathBuf,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "(unknown)".to_owned() } else { name.to_owned() }
}

impl Owner {
    /// This process, from now on.
    pub fn here(mount_point: &Path) -> Owner {
        Owner {
            pid: std::process::id(),
            host: host_name(),
            mount_point: mount_point.to_owned(),
            since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on host {}", self.pid, self.host)?;
        if !self.mount_point.as_os_str().is_empty() {
            write!(f, ", mounted at {}", self.mount_point.display())?;
        }
        write!(f, ", since {} (seconds since 1970)", self.since)
    }
}

/// The held lock; dropping it releases the store.
#[derive(Debug)]
pub struct StoreLock {
    file: File,
    /// The last holder, if it died without releasing: its work may be unfinished.
    pub stale: Option<Owner>,
}

fn read_owner(file: &mut File) -> Option<Owner> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(64 << 10).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn write_owner(file: &mut File, owner: &Owner) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    serde_json::to_writer(&mut *file, owner)?;
    file.write_all(b"\n")?;
    file.sync_data()
}

impl Store {
    /// Takes the store for `owner`, at once or not at all.
    ///
    /// # Errors
    /// [`StoreError::Busy`] names the holder if a live process has it.
    pub fn lock(&self, owner: &Owner) -> Result<StoreLock, StoreError> {
        let fail = |source| StoreError::Io { what: "taking .hyokfs.lock", path: self.path().to_owned(), source };
        let flags = OFlags::RDWR | OFlags::CREATE;
        let mode = Mode::from_raw_mode(0o600);
        let mut file = File::from(open_beneath(self.root(), OsStr::new(LOCK_FILE), flags, mode).map_err(fail)?);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let owner = read_owner(&mut file)
                    .map_or_else(|| "another process (its lock file is not readable)".to_owned(), |o| o.to_string());
                return Err(StoreError::Busy { path: self.path().to_owned(), owner });
            }
            Err(error) => return Err(fail(error.into())),
        }
        let stale = read_owner(&mut file);
        write_owner(&mut file, owner).map_err(fail)?;
        Ok(StoreLock { file, stale })
    }

    /// Who holds the store now, if anyone: for `status` and messages.
    pub fn holder(&self) -> Result<Option<Owner>, StoreError> {
        let fail = |source| StoreError::Io { what: "reading .hyokfs.lock", path: self.path().to_owned(), source };
        let opened = open_beneath(self.root(), OsStr::new(LOCK_FILE), OFlags::RDONLY, Mode::empty());
        let mut file = match opened {
            Ok(file) => File::from(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(Errno::WOULDBLOCK) => Ok(read_owner(&mut file)),
            Err(error) => Err(fail(error.into())),
        }
    }
}

impl StoreLock {
    /// Writes a new owner into the held lock file: after the daemon went to the background under another pid.
    pub fn set_owner(&mut self, owner: &Owner) -> io::Result<()> {
        write_owner(&mut self.file, owner)
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        // An empty file says "released in order"; the kernel's lock goes with the descriptor in any case.
        let _ = self.file.set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_by_name_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let owner = Owner { pid: 77, host: "alpha".into(), mount_point: "/mnt/x".into(), since: 5 };
        let held = store.lock(&owner).unwrap();
        assert_eq!(held.stale, None);
        let again = Store::open(dir.path()).unwrap();
        let error = again.lock(&Owner::here(Path::new("/y"))).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, StoreError::Busy { .. }));
        assert!(text.contains("77") && text.contains("alpha") && text.contains("/mnt/x"), "{text}");
        assert_eq!(again.holder().unwrap(), Some(owner.clone()));
        drop(held);
        assert_eq!(again.holder().unwrap(), None);
        assert_eq!(again.lock(&owner).unwrap().stale, None);
        // What a killed daemon leaves: a text without a lock.
        std::fs::write(dir.path().join(LOCK_FILE), serde_json::to_vec(&owner).unwrap()).unwrap();
        assert_eq!(again.lock(&Owner::here(Path::new(""))).unwrap().stale, Some(owner));
    }
}
