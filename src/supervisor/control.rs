//! The control socket: one Unix stream socket per mount, one line of JSON each way.
//!
//! It lives in a directory of mode 0700 (`/run/hyokfs` for root, else `$XDG_RUNTIME_DIR/hyokfs`, else
//! `/tmp/hyokfs-UID`), so only the daemon's own user and root can speak to it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::status::Status;

/// The longest line either side reads, in bytes.
const LONGEST: u64 = 1 << 20;

/// What a command asks of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// How is it?
    Status,
    /// Lock now, by hand.
    Lock,
    /// Take a lock by hand back. Never overrides the customer's no.
    Unlock,
    /// Unmount and end.
    Unmount,
    /// Rehearse a revocation: a simulated denial, the whole lock, and the way back.
    Drill,
}

/// What the daemon answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Its state.
    Status(Box<Status>),
    /// It was done.
    Done(String),
    /// It was not done, and why.
    Refused(String),
}

/// Why a command got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no hyokfs daemon serves {}: see `hyokfs status` for those that run under this user", .0.display())]
    Nobody(PathBuf),
    /// The directory of the sockets is not ours.
    #[error("{} belongs to somebody else or is open to others: remove it and try again", .0.display())]
    Unsafe(PathBuf),
    /// The system said no.
    #[error("control socket {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn directory() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from("/run/hyokfs");
    }
    std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map_or_else(
        || PathBuf::from(format!("/tmp/hyokfs-{}", user.as_raw())),
        |dir| PathBuf::from(dir).join("hyokfs"),
    )
}

/// The socket of a mount point: named by a hash, since a path may be longer than a socket's address (108 bytes).
fn socket_of(mountpoint: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, mountpoint.as_os_str().as_bytes());
    let name: String = digest.as_ref()[..10].iter().map(|byte| format!("{byte:02x}")).collect();
    directory().join(format!("{name}.sock"))
}

/// The daemon's end.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// Calls that are being answered.
    calls: Arc<AtomicUsize>,
}

/// How long the daemon waits at its end until the last answers have been sent.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Control {
    /// Listens for commands about `mountpoint` (absolute).
    pub fn listen(mountpoint: &Path) -> Result<Control, ControlError> {
        let dir = directory();
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| ControlError::Io { path, source }
        };
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(&dir)(error)),
            _ => {}
        }
        let meta = std::fs::symlink_metadata(&dir).map_err(io(&dir))?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            return Err(ControlError::Unsafe(dir));
        }
        let path = socket_of(mountpoint);
        // The store's lock file has already kept a second daemon away, so a socket that is there is a dead one's.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(io(&path))?;
        Ok(Control { listener, path, calls: Arc::default() })
    }

    /// Serves commands until the process ends: each is given to `answer` on a thread of its own.
    pub fn serve(&self, answer: impl Fn(Request) -> Reply + Clone + Send + 'static) -> io::Result<()> {
        let listener = self.listener.try_clone()?;
        let calls = self.calls.clone();
        std::thread::Builder::new().name("control".into()).spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let (answer, calls) = (answer.clone(), calls.clone());
                calls.fetch_add(1, Ordering::SeqCst);
                let count = calls.clone();
                let spawned = std::thread::Builder::new().name("control-call".into()).spawn(move || {
                    if let Err(error) = serve_one(&stream, &answer) {
                        tracing::debug!(%error, "control socket");
                    }
                    count.fetch_sub(1, Ordering::SeqCst);
                });
                if spawned.is_err() {
                    calls.fetch_sub(1, Ordering::SeqCst);
                }
            }
        })?;
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        // The process ends next, and whoever asked for that wants to hear it.
        let until = Instant::now() + LAST_WORDS;
        while self.calls.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn serve_one(mut stream: &UnixStream, answer: &dyn Fn(Request) -> Reply) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line)?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => answer(request),
        Err(error) => Reply::Refused(format!("not a request of this version of hyokfs: {error}")),
    };
    let mut text = serde_json::to_string(&reply)?;
    text.push('\n');
    stream.write_all(text.as_bytes())
}

/// Sends one command to the daemon of `mountpoint` and waits up to `limit` for its answer.
pub fn call(mountpoint: &Path, request: Request, limit: Duration) -> Result<Reply, ControlError> {
    let path = socket_of(mountpoint);
    match call_socket(&path, request, limit) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Err(ControlError::Nobody(mountpoint.to_owned()))
        }
        result => result.map_err(|source| ControlError::Io { path, source }),
    }
}

fn call_socket(path: &Path, request: Request, limit: Duration) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(limit))?;
    let mut text = serde_json::to_string(&request)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon ended before it answered"));
    }
    Ok(serde_json::from_str(&line)?)
}

/// The state of every mount of this user's daemons.
pub fn all(limit: Duration) -> Vec<Status> {
    let Ok(entries) = std::fs::read_dir(directory()) else { return Vec::new() };
    let mut found: Vec<Status> = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "sock"))
        .filter_map(|entry| match call_socket(&entry.path(), Request::Status, limit) {
            Ok(Reply::Status(status)) => Some(*status),
            _ => None,
        })
        .collect();
    found.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    found
}
