//! One kernel request, one call of the filesystem. Decodes and answers; decides nothing.

use std::ffi::OsStr;
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::clean::{Cleaner, READ_BUFFER};
use super::convert;
use super::errno::errno;
use super::session::MAX_REQUEST;
use super::turns::{Turn, Turns};
use super::waiters::Waiters;
use crate::fs::{Caller, Fs, FsError, KeyNeed, SetAttr};
use crate::sys::stack;

/// How long the kernel may answer from its own memory. hyokfs alone writes its store (a lock file sees to it), so
/// nothing changes behind the kernel's back; a lock takes everything back by notification.
const TTL: Duration = Duration::from_secs(4 * 3600);

/// Inode numbers are never used twice within one mount.
const GENERATION: Generation = Generation(0);

/// Requests that the kernel may keep in flight on its own account (read-ahead, write-back).
const MAX_BACKGROUND: u16 = 64;

/// The protocol's version that has `FUSE_NOTIFY_INC_EPOCH`.
const EPOCHS: (u32, u32) = (7, 44);

/// How long the kernel remembers that there is no such name where [`EPOCHS`] is missing: nothing takes such an entry
/// back then, and a volume that is locked in place must not go on to tell which names it has not.
const NEGATIVE_WITHOUT_EPOCHS: Duration = Duration::from_secs(1);

/// A READ or WRITE of so many bytes takes as long as waking another thread.
const LARGE: u32 = 64 << 10;

pub(super) struct Adapter {
    fs: Arc<Fs>,
    waiters: Waiters,
    cleaner: Arc<Cleaner>,
    turns: Arc<Turns>,
    negative: Duration,
}

/// The filesystem, for one request. When it goes the answer has been sent.
struct Served<'a> {
    adapter: &'a Adapter,
    /// The request brought data along.
    large: bool,
    /// It may be one of many parts of one.
    part: bool,
    turn: Turn,
}

impl Deref for Served<'_> {
    type Target = Fs;

    fn deref(&self) -> &Fs {
        &self.adapter.fs
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        let closed = self.adapter.fs.is_closed();
        if closed {
            self.adapter.cleaner.after_answer(self.large);
        }
        self.adapter.turns.end(&self.turn, closed, self.part);
    }
}

impl Adapter {
    pub(super) fn new(fs: Arc<Fs>, cleaner: Arc<Cleaner>, turns: Arc<Turns>) -> Self {
        Adapter { fs, waiters: Waiters::default(), cleaner, turns, negative: TTL }
    }

    fn fs(&self) -> Served<'_> {
        // Requests leave states of keys on the worker's stack.
        stack::scrub_at_end();
        Served { adapter: self, large: false, part: false, turn: self.turns.begin() }
    }

    /// As [`Adapter::fs`], for requests that bring data along.
    fn fs_for_data(&self) -> Served<'_> {
        let mut served = self.fs();
        served.large = true;
        served
    }

    /// As [`Adapter::fs`], for requests that take long, so that another thread is to take the next meanwhile.
    fn fs_for_long(&self) -> Served<'_> {
        let served = self.fs();
        self.turns.slow();
        served
    }

    /// Runs `job` here, or on a waiter if it would make a call to the key service.
    fn with_key(&self, need: KeyNeed, job: impl FnOnce(&Fs) + Send + 'static) {
        if !self.fs.may_wait(need) {
            return job(&self.fs());
        }
        let fs = self.fs.clone();
        self.waiters.run(move || job(&fs));
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

macro_rules! answer {
    ($reply:ident, $result:expr, $value:pat => $ok:expr) => {
        match $result {
            Ok($value) => $ok,
            Err(error) => $reply.error(errno(&error)),
        }
    };
}

fn entry(reply: ReplyEntry, result: Result<crate::fs::Attr, FsError>) {
    answer!(reply, result, attr => reply.entry(&TTL, &convert::attr(&attr), GENERATION));
}

fn empty(reply: ReplyEmpty, result: Result<(), FsError>) {
    answer!(reply, result, () => reply.ok());
}

fn xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, FsError>) {
    answer!(reply, result, value => match (size, u32::try_from(value.len())) {
        (0, Ok(length)) => reply.size(length),
        (room, Ok(length)) if length <= room => reply.data(&value),
        _ => reply.error(Errno::ERANGE),
    });
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each by itself: an older kernel that lacks one still gives the others.
        for flag in [
            InitFlags::FUSE_WRITEBACK_CACHE,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "this kernel does not offer it");
            }
        }
        let abi = config.kernel_abi();
        if (abi.0, abi.1) < EPOCHS {
            self.negative = NEGATIVE_WITHOUT_EPOCHS;
        }
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.fs().lookup(parent.0, name) {
            Ok(attr) => reply.entry(&TTL, &convert::attr(&attr), GENERATION),
            Err(FsError::NotFound) => reply.entry(&self.negative, &convert::absent(), GENERATION),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        let mut fs = self.fs();
        fs.part = true;
        fs.forget(ino.0, nlookup);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.fs().getattr(ino.0, fh.map(|fh| fh.0)), attr => reply.attr(&TTL, &convert::attr(&attr)));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(convert::time),
            mtime: mtime.map(convert::time),
            ctime,
            fh: fh.map(|fh| fh.0),
        };
        let caller = caller(request);
        let job = move |fs: &Fs| {
            answer!(reply, fs.setattr(&caller, ino.0, &change), attr => reply.attr(&TTL, &convert::attr(&attr)));
        };
        // Only a new size needs the file's key.
        if size.is_some() { self.with_key(KeyNeed::Open(ino.0), job) } else { job(&self.fs()) }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        answer!(reply, self.fs().readlink(ino.0), target => reply.data(&target));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (caller, name) = (caller(request), name.to_owned());
        self.with_key(KeyNeed::Create(parent.0), move |fs| {
            entry(reply, fs.mknod(&caller, parent.0, &name, mode, umask, rdev))
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        entry(reply, self.fs().mkdir(&caller(request), parent.0, name, mode, umask));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.fs().unlink(parent.0, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.fs().rmdir(parent.0, name));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        entry(reply, self.fs().symlink(&caller(request), parent.0, name, target.as_os_str().as_bytes()));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.fs().rename(parent.0, name, newparent.0, newname, flags.bits()));
    }

    fn link(&self, _: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        entry(reply, self.fs().link(ino.0, newparent.0, newname));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = caller(request);
        self.with_key(KeyNeed::Open(ino.0), move |fs| {
            answer!(reply, fs.open(&caller, ino.0, flags.0), fh => {
                reply.opened(FileHandle(fh), FopenFlags::FOPEN_KEEP_CACHE);
            });
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, name) = (caller(request), name.to_owned());
        self.with_key(KeyNeed::Create(parent.0), move |fs| {
            answer!(reply, fs.create(&caller, parent.0, &name, mode, umask, flags), (attr, fh) => {
                reply.created(&TTL, &convert::attr(&attr), GENERATION, FileHandle(fh), FopenFlags::FOPEN_KEEP_CACHE);
            });
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // Outlives the use of the buffer, which it may have to wipe.
        let fs = if size >= LARGE { self.fs_for_long() } else { self.fs() };
        READ_BUFFER.with_borrow_mut(|buffer| {
            let size = size.min(MAX_REQUEST) as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            answer!(reply, fs.read(ino.0, fh.0, offset, &mut buffer[..size]), length => {
                reply.data(&buffer[..length.min(size)]);
            });
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let fs = self.fs_for_data();
        if data.len() >= LARGE as usize {
            self.turns.slow();
        }
        answer!(reply, fs.write(ino.0, fh.0, offset, data, from_cache, kill), length => {
            reply.written(length.min(data.len()) as u32);
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // The kernel has written its pages back by then whatever we answer; ENOSYS saves a round trip per close.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.fs().release(ino.0, fh.0));
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.fs_for_long().fsync(ino.0, fh.0, datasync));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.fs().opendir(ino.0), fh => {
            reply.opened(FileHandle(fh), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let fs = self.fs();
        let result = fs.readdir(ino.0, fh.0, offset, false, &mut |entry| {
            reply.add(INodeNo(entry.ino), entry.next_off, convert::kind(entry.kind), entry.name)
        });
        answer!(reply, result, () => reply.ok());
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let fs = self.fs();
        let result = fs.readdir(ino.0, fh.0, offset, true, &mut |entry| {
            let attr = entry.attr.as_ref().map_or_else(
                // Without attributes the kernel takes the name and asks later (nodeid 0).
                || FileAttr { kind: convert::kind(entry.kind), ..convert::absent() },
                convert::attr,
            );
            reply.add(attr.ino, entry.next_off, entry.name, &TTL, &attr, GENERATION)
        });
        answer!(reply, result, () => reply.ok());
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        empty(reply, self.fs().releasedir(fh.0));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, self.fs_for_long().fsyncdir(ino.0, fh.0));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        answer!(reply, self.fs().statfs(), s => {
            reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize);
        });
    }

    fn setxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32, reply: ReplyEmpty) {
        empty(reply, self.fs_for_data().setxattr(ino.0, name, value, flags));
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        xattr(reply, size, self.fs().getxattr(ino.0, name));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(reply, size, self.fs().listxattr(ino.0));
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.fs().removexattr(ino.0, name));
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // `default_permissions`: the kernel decides by itself.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.fs().fallocate(ino.0, fh.0, offset, length, mode));
    }

    fn lseek(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Ok(from) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        answer!(reply, self.fs().lseek(ino.0, fh.0, from, whence), at => match i64::try_from(at) {
            Ok(at) => reply.offset(at),
            Err(_) => reply.error(Errno::EOVERFLOW),
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // Pages are sealed for their place and file: the kernel copies through memory instead.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
