//! The lock's side: closing the volume step by step, and opening it again under the same handles.

use std::ffi::OsString;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::error::FsError;
use super::inode::{lock, read, write};
use super::types::{Ino, Kind, Settled};
use super::{Fs, Phase};
use crate::format::volume::Volume;

/// How long [`Fs::wipe`] waits for requests that still use the volume's keys.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

impl Fs {
    /// From now on everything is answered with [`FsError::Locked`], except what the kernel needs to write its cache back
    /// (writes, times, syncs), the root's attributes, forgetting and closing.
    pub fn gate(&self) {
        self.phase.fetch_max(Phase::Gated as u8, Ordering::AcqRel);
    }

    /// Opens the gate again: the lock was called off before anything was wiped.
    pub fn ungate(&self) {
        let keys = read(&self.keys);
        if keys.is_some() {
            self.phase.store(Phase::Open as u8, Ordering::Release);
        }
    }

    /// From now on writes are refused, too.
    pub fn close_writes(&self) {
        self.phase.fetch_max(Phase::Closed as u8, Ordering::AcqRel);
    }

    /// Inodes of which the kernel may hold unwritten data: files that are open for writing.
    pub fn dirty_inodes(&self) -> Vec<Ino> {
        let all = self.table.all(false);
        all.iter().filter(|inode| inode.writers.load(Ordering::Acquire) > 0).map(|inode| inode.ino).collect()
    }

    /// Every inode that the kernel refers to.
    pub fn known_inodes(&self) -> Vec<(Ino, Kind)> {
        self.table.all(true).iter().map(|inode| (inode.ino, inode.kind)).collect()
    }

    /// Every name that the kernel may know: parent and plaintext name.
    pub fn known_dentries(&self) -> Vec<(Ino, OsString)> {
        let mut names = Vec::new();
        for inode in self.table.all(false) {
            let places = read(&inode.places);
            for place in &places.list {
                if let Some(plain) = &place.plain {
                    names.push((place.parent.ino, plain.to_os_string()));
                }
            }
        }
        names
    }

    /// Puts sizes and times of all open files to the store and everything on the disk, for which it waits at most `limit`:
    /// a disk that hangs must not keep the keys in memory. What is in the store's page cache by then is ciphertext.
    pub fn settle(&self, limit: Duration) -> Settled {
        let mut settled = Settled::default();
        let mut begun = Vec::new();
        for inode in self.table.all(false) {
            let Some(live) = inode.live() else { continue };
            match live.file.begin_sync().map_err(FsError::from).and_then(|begun| live.put_times().map(|()| begun)) {
                Ok(snapshot) => {
                    settled.files += 1;
                    begun.push((live, snapshot));
                }
                Err(error) => settled.errors.push(format!("inode {}: {error}", inode.ino)),
            }
        }
        let moved = std::mem::take(&mut *lock(&self.narrow));
        match self.sync_store(limit) {
            Ok(()) => {
                for (live, snapshot) in begun {
                    live.file.end_sync(snapshot);
                    live.grown_up();
                }
                if let Some(keys) = read(&self.keys).clone() {
                    self.narrow(&keys, &moved);
                }
            }
            Err(error) => {
                settled.errors.push(format!("syncing the store: {error}"));
                lock(&self.narrow).extend(moved);
            }
        }
        let written = self.written.load(Ordering::Acquire);
        settled.bytes = written - self.settled.swap(written, Ordering::AcqRel).min(written);
        settled
    }

    fn sync_store(&self, limit: Duration) -> io::Result<()> {
        let (store, (done, finished)) = (Arc::clone(&self.store), mpsc::channel());
        let sync = move || {
            let _ = done.send(store.sync());
        };
        std::thread::Builder::new().name("sync".into()).spawn(sync)?;
        finished.recv_timeout(limit).unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "its disk had not written everything within the flush deadline; nothing is lost unless the power fails now",
            ))
        })
    }

    /// Drops every key and plaintext name. Closes what was not closed yet; open handles stay and work again after
    /// [`Fs::reopen`].
    pub fn wipe(&self) {
        self.close_writes();
        let mut keys = write(&self.keys).take();
        for inode in self.table.all(false) {
            if let Some(live) = inode.live() {
                live.file.drop_keys();
            }
            for place in &mut write(&inode.places).list {
                place.plain = None;
            }
        }
        // Requests that came in before the gate may still hold the volume's keys; they end by themselves.
        let until = Instant::now() + LAST_REQUESTS;
        while let Some(shared) = keys.take() {
            match Arc::try_unwrap(shared) {
                Ok(last) => drop(last),
                Err(shared) if Instant::now() < until => {
                    keys = Some(shared);
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(_) => tracing::warn!("a request still holds the volume's keys; they are wiped when it ends"),
            }
        }
        // One of them may have opened a file meanwhile.
        for inode in self.table.all(false) {
            if let Some(live) = inode.live() {
                live.file.drop_keys();
            }
        }
    }

    /// Opens the volume again with the same store and fresh keys. Open files get their keys when they are next used.
    ///
    /// # Errors
    /// [`FsError::Damaged`] if it is another volume.
    pub fn reopen(&self, volume: Volume) -> Result<(), FsError> {
        if volume.record.volume != self.volume {
            return Err(FsError::damaged("the store's record now names another volume"));
        }
        *write(&self.keys) = Some(Arc::new(volume.keys));
        self.phase.store(Phase::Open as u8, Ordering::Release);
        Ok(())
    }
}
