//! What every black-box test stands on: a private home, a store, a mount that goes away whatever happens.
//!
//! Nothing is built here: the program under test is the binary that cargo built for this test run. With
//! `HYOKFS_TEST_NATIVE=1` a "mount" is a bind mount of the store, so that the test bodies themselves can be judged
//! against the filesystem below (tests of hyokfs's own commands then do nothing).

#![allow(dead_code, unsafe_code)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything may take before the test calls it a hang. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the bodies run on the plain filesystem.
pub fn native() -> bool {
    std::env::var_os("HYOKFS_TEST_NATIVE").is_some_and(|value| value == "1")
}

/// Polls until `done` gives a value; fails with `what` after `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < limit, "after {:.1} s still waiting: {what}", limit.as_secs_f64());
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Polls until `done` is true.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    wait_for(what, limit, || done().then_some(()));
}

/// The filesystem type of the topmost mount at `path`, read without touching the path itself.
pub fn mounted(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            (left.split(' ').nth(4)? == path.to_str()?).then(|| right.split(' ').next().unwrap_or_default().to_owned())
        })
        .next_back()
}

/// Who has something open, mapped or as its directory below `path`: for the message of a failed unmount.
pub fn holders(path: &Path) -> String {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        if !name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let dir = process.path();
        let mut links = vec![dir.join("cwd"), dir.join("root"), dir.join("exe")];
        links.extend(fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path()));
        for link in links {
            if fs::read_link(&link).is_ok_and(|target| target.starts_with(path)) {
                let command = fs::read(dir.join("cmdline")).unwrap_or_default();
                found.push(format!("{} ({})", link.display(), String::from_utf8_lossy(&command).replace('\0', " ")));
            }
        }
    }
    if found.is_empty() { "nobody that /proc shows".to_owned() } else { found.join(", ") }
}

/// The guards that daemons of a mount point have started and that are still there.
pub fn guards(mountpoint: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        if words.contains(&b"internal-guard".as_slice()) && words.contains(&mountpoint.as_os_str().as_encoded_bytes()) {
            found.push(pid);
        }
    }
    found
}

/// After a daemon's death its guard takes a moment to end the connection and to empty the kernel's caches.
#[track_caller]
fn wait_guards(mountpoint: &Path) {
    wait_until("the guard's end", PATIENCE, || guards(mountpoint).is_empty());
}

/// `umount2` with tries while the mount is busy.
pub fn umount_path(path: &Path) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match rustix::mount::unmount(path, rustix::mount::UnmountFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A private place: home, data, state, runtime and temporary folders of one test, all removed at the end.
pub struct World {
    dir: TempDir,
    uid: Option<(u32, u32)>,
    logs: AtomicU32,
    variables: Vec<(String, String)>,
}

impl World {
    /// For the user who runs the tests.
    pub fn new() -> Self {
        Self::owned_by(None)
    }

    /// For a user without rights: `hyokfs` runs as uid and gid.
    pub fn of_user(uid: u32, gid: u32) -> Self {
        // As udev's rule makes it on every distribution; bare containers and virtual machines may have no udev.
        rustix::fs::chmod("/dev/fuse", 0o666.into()).expect("chmod /dev/fuse");
        Self::owned_by(Some((uid, gid)))
    }

    fn owned_by(uid: Option<(u32, u32)>) -> Self {
        let dir = tempfile::Builder::new().prefix("hyokfs-test-").tempdir().expect("a temporary folder");
        let world = World { dir, uid, logs: AtomicU32::new(0), variables: Vec::new() };
        rustix::fs::chmod(world.path(), 0o755.into()).expect("chmod");
        for name in ["home", "data", "state", "runtime", "tmp"] {
            world.make_dir(&world.path().join(name));
        }
        world
    }

    /// Puts a variable into the environment of every command of this world.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// The folder that holds everything of this test.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A folder that belongs to the world's user.
    pub fn make_dir(&self, path: &Path) {
        fs::create_dir_all(path).expect("create a folder");
        if let Some((uid, gid)) = self.uid {
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
        }
    }

    /// Any command in this world's environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", self.path().join("home"))
            .env("XDG_DATA_HOME", self.path().join("data"))
            .env("XDG_STATE_HOME", self.path().join("state"))
            .env("XDG_RUNTIME_DIR", self.path().join("runtime"))
            .env("TMPDIR", self.path().join("tmp"))
            .env_remove("NOTIFY_SOCKET")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.path())
            .stdin(Stdio::null());
        if let Some((uid, gid)) = self.uid {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// `hyokfs ARGS…`, not started yet.
    pub fn hyokfs<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_hyokfs"));
        command.args(args);
        command
    }

    /// Runs `hyokfs ARGS…` to its end.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        let mut command = self.hyokfs(args);
        self.output(&mut command)
    }

    /// Runs a command to its end, its output in files: a daemon that it starts can't keep a pipe of ours open.
    pub fn output(&self, command: &mut Command) -> Output {
        let (out_path, out) = self.log();
        let (err_path, err) = self.log();
        let mut child = command.stdout(out).stderr(err).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let status = wait_child(&mut child, PATIENCE * 5).unwrap_or_else(|| {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} hangs; it said: {}{}", slurp(&out_path), slurp(&err_path))
        });
        Output {
            status,
            stdout: fs::read(out_path).unwrap_or_default(),
            stderr: fs::read(err_path).unwrap_or_default(),
        }
    }

    /// Runs `hyokfs ARGS…`, which must succeed; gives what it printed.
    #[track_caller]
    pub fn ok<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let mut command = self.hyokfs(args);
        let output = self.output(&mut command);
        assert!(output.status.success(), "{command:?} ended with {}:\n{}", output.status, both(&output));
        String::from_utf8(output.stdout).expect("UTF-8 output")
    }

    /// Runs `hyokfs ARGS…`, which must refuse, with a message and without a panic; gives the message.
    #[track_caller]
    pub fn fails<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let mut command = self.hyokfs(args);
        let output = self.output(&mut command);
        let said = both(&output);
        assert!(
            output.status.code().is_some_and(|code| code != 0),
            "{command:?} ended with {}:\n{said}",
            output.status
        );
        assert!(output.status.code() != Some(101) && !said.contains("panicked at"), "{command:?} panicked:\n{said}");
        assert!(!String::from_utf8_lossy(&output.stderr).trim().is_empty(), "{command:?} failed without a word");
        said
    }

    fn log(&self) -> (PathBuf, File) {
        let path = self.path().join(format!("log-{}", self.logs.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&path).expect("a log file");
        (path, file)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What a failed test left mounted in the background goes too: its daemon ends when its mount has gone.
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut left: Vec<_> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        left.retain(|path| Path::new(path).starts_with(self.path()));
        for path in left.iter().rev() {
            let _ = rustix::mount::unmount(*path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Everything that a command printed.
pub fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn slurp(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Waits for a child, at most `limit`.
pub fn wait_child(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A volume with a key in a local keystore of its own.
pub struct Store {
    pub world: World,
    pub path: PathBuf,
    pub keystore: PathBuf,
}

impl Store {
    /// A fresh volume with the defaults.
    pub fn new() -> Self {
        Self::with(World::new(), &[])
    }

    /// A fresh volume with more options for `init`.
    pub fn with(world: World, init: &[&str]) -> Self {
        let path = world.path().join("store");
        let keystore = world.path().join("home/customer");
        world.make_dir(&path);
        let store = Store { path, keystore, world };
        if !native() {
            store.world.ok([OsStr::new("key"), OsStr::new("create"), store.keystore.as_os_str()]);
            let mut args = vec!["init".to_owned(), "--key".to_owned(), store.key()];
            args.extend(init.iter().map(|&option| option.to_owned()));
            args.push(store.path.to_str().expect("UTF-8").to_owned());
            store.world.ok(args);
        }
        store
    }

    /// The key's name.
    pub fn key(&self) -> String {
        format!("local:{}", self.keystore.display())
    }

    /// The customer says no.
    pub fn disable_key(&self) {
        self.world.ok([OsStr::new("key"), OsStr::new("disable"), self.keystore.as_os_str()]);
    }

    /// The customer says yes again.
    pub fn enable_key(&self) {
        self.world.ok([OsStr::new("key"), OsStr::new("enable"), self.keystore.as_os_str()]);
    }

    /// A mount with the defaults.
    #[track_caller]
    pub fn mount(&self) -> Mount<'_> {
        self.mount_with(&[])
    }

    /// A mount with more options.
    #[track_caller]
    pub fn mount_with(&self, options: &[&str]) -> Mount<'_> {
        let path = self.world.path().join("mnt");
        self.world.make_dir(&path);
        self.try_mount(options, &path).unwrap_or_else(|said| panic!("the mount failed:\n{said}"))
    }

    /// A mount at `path`, or what the program said.
    pub fn try_mount(&self, options: &[&str], path: &Path) -> Result<Mount<'_>, String> {
        if native() {
            rustix::mount::mount_bind(&self.path, path).map_err(|error| error.to_string())?;
            return Ok(Mount { store: self, path: path.to_owned(), child: None, log: PathBuf::new(), made: true });
        }
        let (log, file) = self.world.log();
        let mut command = self.world.hyokfs(["mount"]);
        command.args(options).arg(&self.path).arg(path);
        command.stdout(file.try_clone().expect("a log file")).stderr(file);
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent's.
        unsafe {
            command.pre_exec(|| {
                // Should the test be killed, its daemon unmounts and goes.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        // Ready is what the daemon says to its supervisor, as it does under systemd (Type=notify).
        let address = log.with_extension("notify");
        let notify = UnixDatagram::bind(&address).expect("a notify socket");
        rustix::fs::chmod(&address, 0o777.into()).expect("chmod");
        notify.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out");
        command.env("NOTIFY_SOCKET", &address);
        let child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
        let mut mount = Mount { store: self, path: path.to_owned(), child: Some(child), log, made: false };
        let start = Instant::now();
        let mut message = [0; 4096];
        loop {
            if let Ok(length) = notify.recv(&mut message)
                && message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
            {
                break;
            }
            let child = mount.child.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("wait") {
                mount.child = None;
                return Err(format!("{status}: {}", slurp(&mount.log)));
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("not ready after {PATIENCE:?}: {}", slurp(&mount.log)));
            }
        }
        mount.made = true;
        match mounted(path) {
            Some(kind) if kind.starts_with("fuse") => Ok(mount),
            other => Err(format!("the daemon says that it is ready, but {} holds {other:?}", path.display())),
        }
    }

    /// The regular files of the store that hold files of the volume: not the record, not what starts with a dot.
    pub fn ciphertexts(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).expect("read the store") {
                let entry = entry.expect("read the store");
                let name = entry.file_name();
                let kind = entry.file_type().expect("file type");
                if name.as_encoded_bytes().starts_with(b".") || name == "hyokfs.toml" || name == "hyokfs.toml.bak" {
                    continue;
                }
                if kind.is_dir() {
                    walk(&entry.path(), out);
                } else if kind.is_file() {
                    out.push(entry.path());
                }
            }
        }
        let mut out = Vec::new();
        walk(&self.path, &mut out);
        out.sort();
        out
    }

    /// The one ciphertext of a volume with one file.
    #[track_caller]
    pub fn only_ciphertext(&self) -> PathBuf {
        let all = self.ciphertexts();
        assert_eq!(all.len(), 1, "one file expected in the store: {all:?}");
        all.into_iter().next().expect("one")
    }
}

/// A mounted volume. Dropped, it goes away: politely, then by force.
pub struct Mount<'a> {
    pub store: &'a Store,
    pub path: PathBuf,
    child: Option<Child>,
    log: PathBuf,
    /// Whether the mount at `path` is this one's: one that failed must not take another's away.
    made: bool,
}

impl Mount<'_> {
    /// A path below the mount point.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The daemon's process id (0 without a daemon).
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// What the daemon has printed.
    pub fn log(&self) -> String {
        slurp(&self.log)
    }

    /// Unmounts with `hyokfs unmount` (again while busy) and waits for the daemon's clean end.
    #[track_caller]
    pub fn umount(mut self) {
        if native() {
            umount_path(&self.path).unwrap_or_else(|e| panic!("umount: {e}; held by {}", holders(&self.path)));
            return;
        }
        let start = Instant::now();
        loop {
            let output = self.store.world.run([OsStr::new("unmount"), self.path.as_os_str()]);
            if output.status.success() {
                break;
            }
            assert!(
                start.elapsed() < PATIENCE && both(&output).to_lowercase().contains("busy"),
                "hyokfs unmount: {}; held by {}; the daemon said:\n{}",
                both(&output),
                holders(&self.path),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        self.ended();
    }

    /// Waits for the end of the daemon, which must be clean and leave no mount.
    #[track_caller]
    pub fn ended(&mut self) {
        let mut child = self.child.take().expect("a daemon");
        let Some(status) = wait_child(&mut child, PATIENCE) else {
            self.child = Some(child);
            panic!("the daemon stays after the unmount; it said:\n{}", self.log());
        };
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.log());
        assert_eq!(mounted(&self.path), None, "the mount is still there after its daemon's end");
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).expect("a daemon");
        rustix::process::kill_process(pid, signal).expect("kill");
    }

    /// Waits for the end of the daemon, however it comes; its mount stays.
    pub fn died(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a daemon");
        let status = wait_child(&mut child, PATIENCE).expect("the daemon's end");
        wait_guards(&self.path);
        status
    }

    /// `kill -9`, and the dead mount taken away as an operator would.
    pub fn kill(mut self) {
        self.signal(rustix::process::Signal::KILL);
        let mut child = self.child.take().expect("a daemon");
        wait_child(&mut child, PATIENCE).expect("death after SIGKILL");
        wait_guards(&self.path);
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }

    /// `kill -9` only: the dead mount stays.
    pub fn kill_and_leave(mut self) {
        self.signal(rustix::process::Signal::KILL);
        let mut child = self.child.take().expect("a daemon");
        wait_child(&mut child, PATIENCE).expect("death after SIGKILL");
        wait_guards(&self.path);
    }

    /// Unmounts, then mounts the same store again with the same path.
    #[track_caller]
    pub fn remount(self) -> Self {
        let store = self.store;
        self.umount();
        store.mount()
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            if std::thread::panicking() {
                eprintln!("the daemon said:\n{}", slurp(&self.log));
            }
            if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            if wait_child(&mut child, Duration::from_secs(10)).is_none() {
                let _ = child.kill();
                let _ = wait_child(&mut child, Duration::from_secs(10));
            }
        }
        for _ in 0..8 {
            if !self.made
                || mounted(&self.path).is_none()
                || rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH).is_err()
            {
                break;
            }
        }
    }
}

/// Bytes that look random and are the same at every run: `seed` names them.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Compares without printing megabytes.
#[track_caller]
pub fn assert_bytes(got: &[u8], want: &[u8], what: &str) {
    if got == want {
        return;
    }
    let at = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(got.len().min(want.len()));
    panic!("{what}: {} bytes instead of {}, the first difference is at byte {at}", got.len(), want.len());
}

/// A whole file.
#[track_caller]
pub fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    bytes
}

/// The errno of a failed call.
#[track_caller]
pub fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("the call succeeded, which it must not"),
        Err(error) => error.raw_os_error().unwrap_or_else(|| panic!("no errno: {error}")),
    }
}

/// The names in a directory, sorted.
#[track_caller]
pub fn names(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.expect("a directory entry").file_name())
        .collect();
    names.sort();
    names
}
