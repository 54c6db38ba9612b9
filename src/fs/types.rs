//! What goes in and out of the filesystem layer.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Timespec};

/// The number of an inode; see [`ROOT`].
pub type Ino = u64;
/// The number of an open file or directory.
pub type Fh = u64;
/// The root directory's inode number.
pub const ROOT: Ino = 1;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id; 0 if the kernel asks for itself.
    pub pid: u32,
}

/// The kind of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl Kind {
    pub(super) fn of(kind: FileType) -> Option<Kind> {
        Some(match kind {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Unknown => return None,
        })
    }
}

/// The attributes of an inode, as `stat` shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number: the store's own where it can be, so it stays over mounts.
    pub ino: Ino,
    /// Plaintext bytes.
    pub size: u64,
    /// 512-byte blocks that the ciphertext occupies.
    pub blocks: u64,
    /// Last access.
    pub atime: SystemTime,
    /// Last change of the contents.
    pub mtime: SystemTime,
    /// Last change of the inode.
    pub ctime: SystemTime,
    /// Creation, where known; else the earliest of the others.
    pub crtime: SystemTime,
    /// Its kind.
    pub kind: Kind,
    /// Permission, suid, sgid and sticky bits (12 bits).
    pub perm: u16,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device.
    pub rdev: u32,
    /// Preferred size of reads and writes, in bytes.
    pub blksize: u32,
}

/// A time to set.
#[derive(Debug, Clone, Copy)]
pub enum TimeOrNow {
    /// This one.
    At(SystemTime),
    /// The present one.
    Now,
}

/// Attributes to set; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Plaintext bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<TimeOrNow>,
    /// Last change of the contents.
    pub mtime: Option<TimeOrNow>,
    /// Last change of the inode; the store sets its own.
    pub ctime: Option<SystemTime>,
    /// The handle that the request came through.
    pub fh: Option<Fh>,
}

/// One directory entry.
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: Ino,
    /// Where to go on after this entry.
    pub next_off: u64,
    /// Its kind.
    pub kind: Kind,
    /// Its plaintext name.
    pub name: &'a OsStr,
    /// Its attributes, if they were asked for. Then the entry counts as looked up, except for `.` and `..`.
    pub attr: Option<Attr>,
}

/// Space and inodes of the volume.
#[derive(Debug, Clone, Copy)]
pub struct Statfs {
    /// Blocks in all, of `frsize` bytes.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for users other than root.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred block size in bytes.
    pub bsize: u32,
    /// The longest name in bytes.
    pub namelen: u32,
    /// The unit of the block counts in bytes.
    pub frsize: u32,
}

/// An operation that may need the key service.
#[derive(Debug, Clone, Copy)]
pub enum KeyNeed {
    /// Opening (or truncating) this file.
    Open(Ino),
    /// Making a file in this directory.
    Create(Ino),
}

/// What [`super::Fs::settle`] did.
#[derive(Debug, Default)]
pub struct Settled {
    /// Open files whose size and times were put to the store.
    pub files: u64,
    /// Plaintext bytes written since the last time.
    pub bytes: u64,
    /// What failed, for the report.
    pub errors: Vec<String>,
}

pub(super) fn time(seconds: i64, nanos: u64) -> SystemTime {
    let nanos = Duration::from_nanos(nanos);
    if seconds >= 0 {
        UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs()) + nanos
    } else {
        UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())).map_or(UNIX_EPOCH, |t| t + nanos)
    }
}

pub(super) fn timespec(time: SystemTime) -> Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        },
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => Timespec { tv_sec: -whole, tv_nsec: 0 },
                nanos => Timespec { tv_sec: -whole - 1, tv_nsec: i64::from(1_000_000_000 - nanos) },
            }
        }
    }
}

pub(super) fn now() -> Timespec {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Timespec { tv_sec: now.tv_sec, tv_nsec: now.tv_nsec }
}

pub(super) fn spec_time(spec: Timespec) -> SystemTime {
    time(spec.tv_sec, u64::try_from(spec.tv_nsec).unwrap_or(0))
}
