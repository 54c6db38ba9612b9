//! One ciphertext file, as the page file sees it: the [`Disk`] trait and the real thing on a descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::sys::aligned::{ALIGN, AlignedBuf};

/// What the page file asks of the store. Offsets and lengths are bytes of ciphertext. A crash may keep or lose each
/// aligned 4096-byte unit of what was written since the last [`Disk::sync_data`], whole and in any order, while changes
/// of length and punches keep their order.
pub trait Disk: Send + Sync {
    /// Reads from `off`. May give fewer bytes than asked; 0 only at the end of the file (or for an empty `buf`).
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize>;
    /// Writes at `off`. May take fewer bytes than given.
    fn write_at(&self, buf: &[u8], off: u64) -> io::Result<usize>;
    /// The length of the file.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes at all.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file or grows it with a hole.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns when everything done so far survives a power cut.
    fn sync_data(&self) -> io::Result<()>;
    /// As [`Disk::sync_data`], with the file's times, mode and owner.
    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
    /// Makes the range a hole; the length stays. `ErrorKind::Unsupported` where the store can't.
    fn punch(&self, off: u64, len: u64) -> io::Result<()>;
    /// Reserves room for the range; contents and length stay. `ErrorKind::Unsupported` where the store can't.
    fn allocate(&self, off: u64, len: u64) -> io::Result<()>;
    /// The first byte at or after `off` that is not in a hole, or `None` where only a hole follows.
    fn seek_data(&self, off: u64) -> io::Result<Option<u64>>;
    /// The first byte at or after `off` that is in a hole; the end of the file counts as one.
    fn seek_hole(&self, off: u64) -> io::Result<u64>;
}

/// A file of the store, open for reading and writing.
#[derive(Debug)]
pub struct RealDisk(OwnedFd);

impl RealDisk {
    /// Takes the descriptor of a regular file, open `O_RDWR` and without `O_APPEND` (which would ignore offsets).
    pub fn new(file: OwnedFd) -> Self {
        RealDisk(file)
    }

    /// Gives the descriptor back.
    pub fn into_inner(self) -> OwnedFd {
        self.0
    }
}

impl AsFd for RealDisk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl RealDisk {
    /// Reads at most the rest of one page past the cache, after a read through it failed. The kernel reads and keeps
    /// several pages as one, and one bad sector makes all of them unreadable. `None` where this page is bad, too.
    fn read_around(&self, buf: &mut [u8], off: u64) -> Option<usize> {
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let direct = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        let mut page = AlignedBuf::new(ALIGN);
        let skip = (off % ALIGN as u64) as usize;
        let got = retry(|| rustix::io::pread(&direct, &mut page[..], off - skip as u64)).ok()?;
        let part = page.get(skip..got).unwrap_or_default();
        let take = part.len().min(buf.len());
        buf[..take].copy_from_slice(&part[..take]);
        Some(take)
    }
}

/// Repeats `call` while a signal interrupts it.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

fn fallocate(file: &OwnedFd, mode: FallocateFlags, off: u64, len: u64) -> io::Result<()> {
    retry(|| match rustix::fs::fallocate(file, mode, off, len) {
        // Some network filesystems answer with the "no such call" of their server.
        Err(Errno::NOSYS) => Err(Errno::OPNOTSUPP),
        other => other,
    })
}

impl Disk for RealDisk {
    fn read_at(&self, buf: &mut [u8], off: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match retry(|| rustix::io::pread(&self.0, &mut buf[done..], off + done as u64)) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    if done > 0 {
                        break;
                    }
                    return self.read_around(buf, off).ok_or(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], off: u64) -> io::Result<usize> {
        retry(|| rustix::io::pwrite(&self.0, buf, off))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(retry(|| rustix::fs::fstat(&self.0))?.st_size as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        retry(|| rustix::fs::ftruncate(&self.0, len))
    }

    fn sync_data(&self) -> io::Result<()> {
        retry(|| rustix::fs::fdatasync(&self.0))
    }

    fn sync_all(&self) -> io::Result<()> {
        retry(|| rustix::fs::fsync(&self.0))
    }

    fn punch(&self, off: u64, len: u64) -> io::Result<()> {
        fallocate(&self.0, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, off, len)
    }

    fn allocate(&self, off: u64, len: u64) -> io::Result<()> {
        fallocate(&self.0, FallocateFlags::KEEP_SIZE, off, len)
    }

    fn seek_data(&self, off: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.0, SeekFrom::Data(off)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            // A store without sparse files: everything up to the end is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok((off < self.len()?).then_some(off)),
            Err(other) => Err(other.into()),
        }
    }

    fn seek_hole(&self, off: u64) -> io::Result<u64> {
        match rustix::fs::seek(&self.0, SeekFrom::Hole(off)) {
            Ok(at) => Ok(at),
            Err(Errno::NXIO) => Ok(off),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => self.len(),
            Err(other) => Err(other.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn disk() -> RealDisk {
        RealDisk::new(tempfile::tempfile().unwrap().into())
    }

    #[test]
    fn reads_stop_at_the_end() {
        let disk = disk();
        assert!(disk.is_empty().unwrap());
        assert_eq!(disk.write_at(&[1; 5000], 0).unwrap(), 5000);
        let mut buf = [9; 6000];
        assert_eq!(disk.read_at(&mut buf, 1000).unwrap(), 4000);
        assert!(buf[..4000].iter().all(|b| *b == 1));
        assert_eq!(disk.read_at(&mut buf, 5000).unwrap(), 0);
        assert_eq!(disk.read_at(&mut buf, 50_000).unwrap(), 0);
        disk.sync_data().unwrap();
    }

    #[test]
    fn punching_and_allocating_keep_the_length() {
        let disk = disk();
        disk.write_at(&[1; 3 * 4096], 0).unwrap();
        disk.punch(4096, 4096).unwrap();
        disk.allocate(0, 10 * 4096).unwrap();
        assert_eq!(disk.len().unwrap(), 3 * 4096);
        let mut buf = [9; 3 * 4096];
        disk.read_at(&mut buf, 0).unwrap();
        assert!(buf[4096..8192].iter().all(|b| *b == 0) && buf[8192..].iter().all(|b| *b == 1));
        disk.set_len(4097).unwrap();
        assert_eq!(disk.len().unwrap(), 4097);
    }

    #[test]
    fn holes_are_found_in_both_directions() {
        let disk = disk();
        disk.set_len(10 * 4096).unwrap();
        disk.write_at(&[1; 4096], 4 * 4096).unwrap();
        assert_eq!(disk.seek_data(0).unwrap(), Some(4 * 4096));
        assert_eq!(disk.seek_hole(4 * 4096).unwrap(), 5 * 4096);
        assert_eq!(disk.seek_data(6 * 4096).unwrap(), None);
        assert_eq!(disk.seek_hole(6 * 4096).unwrap(), 6 * 4096);
    }
}
