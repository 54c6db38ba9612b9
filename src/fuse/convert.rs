//! Between the filesystem's own types and the protocol's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use crate::fs::{Attr, Kind, TimeOrNow};

pub(super) fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// Answers "no such file" in a way that the kernel remembers.
pub(super) fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.crtime,
        kind: kind(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

pub(super) fn time(time: fuser::TimeOrNow) -> TimeOrNow {
    match time {
        fuser::TimeOrNow::SpecificTime(time) => TimeOrNow::At(sent(time)),
        fuser::TimeOrNow::Now => TimeOrNow::Now,
    }
}

/// The time that the kernel sent. Before 1970 it sends whole seconds rounded down and nanoseconds to add, which fuser
/// 0.18 takes away instead (`system_time_from_time`).
fn sent(time: SystemTime) -> SystemTime {
    match UNIX_EPOCH.duration_since(time) {
        Ok(before) if before.subsec_nanos() > 0 => time + 2 * Duration::from_nanos(before.subsec_nanos().into()),
        _ => time,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::sent;

    #[test]
    fn times_before_1970_are_the_ones_that_were_sent() {
        // -1000 s and 500 ms to add: what fuser makes of it, and what it was.
        let decoded = UNIX_EPOCH - Duration::new(1000, 500_000_000);
        assert_eq!(sent(decoded), UNIX_EPOCH - Duration::new(999, 500_000_000));
        for same in [UNIX_EPOCH, UNIX_EPOCH - Duration::from_secs(7), UNIX_EPOCH + Duration::new(7, 5)] {
            assert_eq!(sent(same), same);
        }
    }
}
