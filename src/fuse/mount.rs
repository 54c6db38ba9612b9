//! Attaches a FUSE connection to a mount point and takes it away again.
//!
//! As root by `mount(2)`; as an ordinary user through the setuid program `fusermount3`, which sends the descriptor of
//! `/dev/fuse` over a socket (libfuse `util/fusermount.c`). The connection can be aborted through the kernel's control
//! filesystem (`Documentation/filesystems/fuse/fuse.rst`), of which the abort file is opened at once: it must be at
//! hand when the mount itself no longer answers.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The filesystem type as it stands in `/proc/mounts`.
pub const FSTYPE: &str = "fuse.hyokfs";

/// The source of the placeholder as it stands in `/proc/mounts`.
pub const PLACEHOLDER: &str = "hyokfs-locked";

/// Why a volume could not be attached to its mount point.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// `/dev/fuse` cannot be opened.
    #[error("cannot open /dev/fuse: {0}: load the kernel's fuse module, or give the container `--device /dev/fuse`")]
    Device(#[source] io::Error),
    /// The mount point is not a directory that can be used.
    #[error("cannot mount on {}: {source}", path.display())]
    Mountpoint {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// `fusermount3` refused or is missing.
    #[error("fusermount3 did not mount {}: {said}", path.display())]
    Fusermount {
        /// The mount point.
        path: PathBuf,
        /// Its own words.
        said: String,
    },
}

/// What the kernel is told when the volume is mounted.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// Users other than the one who mounts may enter.
    pub allow_other: bool,
    /// The mount refuses every change.
    pub read_only: bool,
    /// Programs on the mount may be executed with their owner's rights (only root may ask for it).
    pub suid: bool,
    /// Device files on the mount work (only root may ask for it).
    pub dev: bool,
    /// No program on the mount may be executed.
    pub noexec: bool,
    /// The first column of `/proc/mounts`: the store.
    pub source: PathBuf,
}

/// An attached connection that no session has taken up yet.
pub struct Device {
    pub(super) fd: OwnedFd,
    pub(super) mountpoint: Attached,
}

/// A mount point with a FUSE connection on it; the only owner of its removal.
pub struct Attached {
    path: PathBuf,
    abort: Option<File>,
    root: bool,
    /// Minor device number of the mount: its name under `/sys/class/bdi` and in the control filesystem.
    pub(super) minor: Option<u32>,
    /// The ciphertext that is mounted.
    pub(super) store: PathBuf,
}

impl Device {
    /// Attaches a new connection to `mountpoint`.
    pub fn mount(mountpoint: &Path, options: &MountOptions) -> Result<Device, MountError> {
        let root = rustix::process::geteuid().is_root();
        let fd = if root { mount_as_root(mountpoint, options)? } else { mount_as_user(mountpoint, options)? };
        let minor = minor_of(mountpoint);
        let abort = minor.and_then(|minor| open_abort(minor, root));
        Ok(Device {
            fd,
            mountpoint: Attached { path: mountpoint.to_owned(), abort, root, minor, store: options.source.clone() },
        })
    }
}

fn mount_as_root(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let at = |source: io::Error| MountError::Mountpoint { path: mountpoint.to_owned(), source };
    let meta = std::fs::metadata(mountpoint).map_err(at)?;
    if !meta.is_dir() {
        return Err(at(io::ErrorKind::NotADirectory.into()));
    }
    let fd = openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| MountError::Device(error.into()))?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={}",
        fd.as_raw_fd(),
        super::session::MAX_REQUEST
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = MountFlags::NOATIME;
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::NOEXEC, options.noexec);
    flags.set(MountFlags::RDONLY, options.read_only);
    let data = CString::new(data).map_err(|_| at(io::ErrorKind::InvalidInput.into()))?;
    rustix::mount::mount(&options.source, mountpoint, FSTYPE, flags, Some(data.as_c_str()))
        .map_err(|error| at(error.into()))?;
    Ok(fd)
}

fn mount_as_user(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let refused = |said: String| MountError::Fusermount { path: mountpoint.to_owned(), said };
    let (theirs, ours) = UnixStream::pair().map_err(|error| refused(error.to_string()))?;
    let mut words = vec![
        "default_permissions".to_owned(),
        "subtype=hyokfs".to_owned(),
        "noatime".to_owned(),
        format!("max_read={}", super::session::MAX_REQUEST),
        format!("fsname={}", options.source.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,")),
    ];
    for (on, word) in [(options.allow_other, "allow_other"), (options.read_only, "ro"), (options.noexec, "noexec")] {
        if on {
            words.push(word.to_owned());
        }
    }
    // The socket becomes the program's standard input: so its number is known and nothing else is inherited.
    let child = Command::new("fusermount3")
        .arg("-o")
        .arg(words.join(","))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| refused(format!("{error}: install the package fuse3, or mount as root")))?;
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(|error| refused(error.to_string()))?;
    match received {
        Some(fd) if output.status.success() => Ok(fd),
        _ => {
            let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if said.contains("user_allow_other") {
                said.push_str(": add the line `user_allow_other` to /etc/fuse.conf, or leave allow_other out");
            }
            Err(refused(said))
        }
    }
}

fn receive_descriptor(socket: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0_u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    };
    if message.bytes == 0 {
        return None;
    }
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// The minor device number of the mount on `mountpoint`: `stat` would send a request that nobody answers yet.
fn minor_of(mountpoint: &Path) -> Option<u32> {
    layers(mountpoint).ok()?.pop()?.minor
}

struct Layer {
    id: u64,
    parent: u64,
    minor: Option<u32>,
    top: Top,
}

/// Everything that is mounted exactly on `path`, bottom first, by `/proc/self/mountinfo` (proc(5)).
fn layers(path: &Path) -> io::Result<Vec<Layer>> {
    let wanted = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            std::fs::canonicalize(parent)?.join(name)
        }
        _ => std::fs::canonicalize(path)?,
    };
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<Layer> = table.lines().filter_map(|line| layer(line, &wanted)).collect();
    // A mount that was slid beneath another is listed after it; the parents tell the real order.
    let mut sorted = Vec::with_capacity(found.len());
    let mut below = found.iter().find(|one| found.iter().all(|other| other.id != one.parent)).map(|one| one.parent);
    while let Some(at) = below.and_then(|parent| found.iter().position(|one| one.parent == parent)) {
        let next = found.swap_remove(at);
        below = Some(next.id);
        sorted.push(next);
    }
    Ok(sorted)
}

fn layer(line: &str, wanted: &Path) -> Option<Layer> {
    let (before, after) = line.split_once(" - ")?;
    let fields: Vec<&str> = before.split(' ').collect();
    if unescape(fields.get(4)?).as_os_str() != wanted.as_os_str() {
        return None;
    }
    let mut filesystem = after.split(' ');
    let (fstype, source) = (filesystem.next()?, filesystem.next()?);
    let top = match (fstype, source) {
        (FSTYPE, source) => Top::Hyokfs(PathBuf::from(unescape(source))),
        ("tmpfs", PLACEHOLDER) => Top::Placeholder,
        (other, _) => Top::Other(other.to_owned()),
    };
    let minor = fields.get(2)?.split(':').nth(1)?.parse().ok();
    Some(Layer { id: fields[0].parse().ok()?, parent: fields.get(1)?.parse().ok()?, minor, top })
}

/// Undoes the octal escapes of `/proc/self/mountinfo` (proc(5)).
pub fn unescape(field: &str) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\').then(|| bytes.get(at + 1..at + 4)).flatten();
        match octal.and_then(|digits| std::str::from_utf8(digits).ok()).map(|digits| u8::from_str_radix(digits, 8)) {
            Some(Ok(byte)) => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out)
}

fn open_abort(minor: u32, root: bool) -> Option<File> {
    if let Ok(file) = File::options().write(true).open(format!("/sys/fs/fuse/connections/{minor}/abort")) {
        return Some(file);
    }
    if !root {
        return None;
    }
    // Not every container has the control filesystem mounted; a detached mount of it is seen by this process alone.
    let control = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    fsconfig_create(control.as_fd()).ok()?;
    let tree = fsmount(control.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).ok()?;
    openat(&tree, format!("{minor}/abort"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok().map(File::from)
}

impl Attached {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the connection: every waiting and every later request fails with `ENOTCONN`. Cached pages stay readable
    /// through descriptors that are already open, so they must have been purged before.
    pub fn abort(&mut self) -> bool {
        self.abort.as_mut().is_some_and(|file| file.write_all(b"1").is_ok())
    }

    /// A second handle of the abort file, for a process that ends the connection when this one is gone.
    pub(super) fn abort_handle(&self) -> Option<File> {
        self.abort.as_ref().and_then(|file| file.try_clone().ok())
    }

    /// Slides a read-only, empty directory of mode 000 beneath the mount, so that there is no moment in which a
    /// program could write plaintext into the bare directory. Root only; `MOVE_MOUNT_BENEATH` needs Linux 6.5.
    /// Gives whether it is in place.
    pub fn place_beneath(&self) -> bool {
        self.root
            && placeholder().is_ok_and(|tree| {
                move_mount(
                    tree.as_fd(),
                    "",
                    CWD,
                    &self.path,
                    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH,
                )
                .is_ok()
            })
    }

    /// Takes the mount out of the tree. Open files go on to exist, but their connection should have been aborted.
    pub fn detach(&self) -> io::Result<()> {
        detach(&self.path, self.root)
    }
}

/// Lazily unmounts whatever is topmost on `path`.
pub fn detach(path: &Path, root: bool) -> io::Result<()> {
    if root {
        return Ok(unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?);
    }
    fusermount(&["-u", "-z"], path)
}

/// Takes away what a daemon that is gone has left on `path`. A daemon that was killed while its store hung may still be
/// waiting in the kernel for a page that nobody will bring; ending the connection first lets it go (root only).
pub fn abandon(path: &Path, root: bool) -> io::Result<()> {
    if root && unmount(path, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW).is_ok() {
        return Ok(());
    }
    detach(path, root)
}

fn fusermount(flags: &[&str], path: &Path) -> io::Result<()> {
    let output = Command::new("fusermount3").args(flags).arg("--").arg(path).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if said.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, said))
}

fn placeholder() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", PLACEHOLDER)?;
    fsconfig_set_string(context.as_fd(), "mode", "000")?;
    fsconfig_set_string(context.as_fd(), "size", "4096")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Puts the placeholder on top of the bare directory `path`, where it could not be slid beneath the mount. Root only.
pub fn place_on(path: &Path) -> io::Result<()> {
    let tree = placeholder()?;
    Ok(move_mount(tree.as_fd(), "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// What stands on top of a path, by `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Top {
    /// Nothing is mounted exactly there.
    Bare,
    /// The placeholder of a locked volume.
    Placeholder,
    /// A volume of hyokfs, live or dead; with its store.
    Hyokfs(PathBuf),
    /// Something else; with its type.
    Other(String),
}

/// Looks what stands on top of `path` without touching it (a dead mount would not answer).
pub fn top_of(path: &Path) -> io::Result<Top> {
    Ok(layers(path)?.pop().map_or(Top::Bare, |layer| layer.top))
}

/// Whether the placeholder stands on `path`, on top or beneath.
pub fn has_placeholder(path: &Path) -> bool {
    layers(path).is_ok_and(|layers| layers.iter().any(|layer| layer.top == Top::Placeholder))
}

/// Takes the mount on `path` out of the tree if nobody uses it (`ResourceBusy` otherwise).
pub fn unmount_idle(path: &Path) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(unmount(path, UnmountFlags::NOFOLLOW)?);
    }
    fusermount(&["-u"], path)
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn octal_escapes_of_mountinfo_are_undone() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
        assert_eq!(unescape("/cut\\04"), "/cut\\04");
    }
}
