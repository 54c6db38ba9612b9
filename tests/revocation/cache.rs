//! The kernel forgets: no plaintext page, no name and no attribute is served after a lock, to nobody, however it holds
//! on to the mount; and nobody who does can hold the lock up.

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;

use crate::common::{PATIENCE, Store, World, errno, noise, wait_child, wait_until};
use crate::rig;

/// The same number on every architecture.
const CACHESTAT: i64 = 451;

/// How many pages of an open file are in the page cache: cachestat(2), Linux 6.5.
pub fn cached_pages(file: &File) -> u64 {
    #[repr(C)]
    struct Range {
        off: u64,
        len: u64,
    }
    let (range, mut stat) = (Range { off: 0, len: 0 }, [0_u64; 5]);
    // SAFETY: both structures have the layout of the kernel's, and the descriptor is open.
    let done = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, stat.as_mut_ptr(), 0) };
    assert_eq!(done, 0, "cachestat: {}", std::io::Error::last_os_error());
    stat[0]
}

/// A mapping of a whole file, to ask the kernel about and never to touch after the lock.
pub struct Mapped {
    pub start: *mut libc::c_void,
    length: usize,
}

impl Mapped {
    pub fn new(file: &File, length: usize, flags: i32) -> Mapped {
        let protection = libc::PROT_READ | if flags == libc::MAP_SHARED { libc::PROT_WRITE } else { 0 };
        // SAFETY: a fresh mapping that nobody else knows.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Mapped { start, length }
    }

    pub fn touch(&self) -> u64 {
        // SAFETY: the mapping is readable, as long as its file is.
        (0..self.length)
            .step_by(4096)
            .map(|at| u64::from(unsafe { self.start.cast::<u8>().add(at).read_volatile() }))
            .sum()
    }

    /// Resident pages, by mincore(2).
    pub fn resident(&self) -> usize {
        let mut flags = vec![0_u8; self.length.div_ceil(4096)];
        // SAFETY: one byte for each page of the mapping.
        let done = unsafe { libc::mincore(self.start, self.length, flags.as_mut_ptr()) };
        assert_eq!(done, 0, "mincore: {}", std::io::Error::last_os_error());
        flags.iter().filter(|flag| *flag & 1 == 1).count()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

#[test]
fn no_page_stays_in_the_page_cache() {
    const LENGTH: usize = 3 << 20;
    let store = Store::new();
    let mount = rig::mount(&store, &[]);
    let mut handles = Vec::new();
    for (at, name) in ["open", "shared", "private", "dirty"].into_iter().enumerate() {
        fs::write(mount.at(name), noise(at as u64, LENGTH)).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(mount.at(name)).unwrap();
        let mut bytes = vec![0; LENGTH];
        file.read_exact_at(&mut bytes, 0).unwrap();
        handles.push(file);
    }
    let shared = Mapped::new(&handles[1], LENGTH, libc::MAP_SHARED);
    let private = Mapped::new(&handles[2], LENGTH, libc::MAP_PRIVATE);
    assert!(shared.touch() > 0 && private.touch() > 0);
    // Written through the mapping and never synced: it must reach the store, too.
    // SAFETY: inside the mapping, which is writable.
    unsafe { shared.start.cast::<u8>().add(LENGTH - 1).write_volatile(0xd1) };
    handles[3].write_all_at(&noise(9, LENGTH), 0).unwrap();
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/name"), b"x").unwrap();
    let dir = File::open(mount.at("dir")).unwrap();
    assert_eq!(fs::read_dir(mount.at("dir")).unwrap().count(), 1);
    {
        // The control: this very descriptor lists; its position is put back for the second time.
        let mut room = [std::mem::MaybeUninit::uninit(); 4096];
        assert!(rustix::fs::RawDir::new(&dir, &mut room).next().is_some_and(|entry| entry.is_ok()));
        rustix::fs::seek(&dir, rustix::fs::SeekFrom::Start(0)).unwrap();
    }

    // The control: all of it is there before.
    let most = LENGTH.div_ceil(4096) as u64 * 9 / 10;
    for file in &handles {
        let cached = cached_pages(file);
        assert!(cached > most, "only {cached} pages are cached before the lock");
    }
    let resident = (shared.resident() as u64, private.resident() as u64);
    assert!(resident.0 > most && resident.1 > most, "not even resident before the lock: {resident:?}");

    rig::revoke(&mount);
    for (file, name) in handles.iter().zip(["open", "shared", "private", "dirty"]) {
        assert_eq!(cached_pages(file), 0, "pages of `{name}` are in the page cache");
        let mut byte = [0];
        assert!(file.read_exact_at(&mut byte, 0).is_err(), "`{name}` is read through an open descriptor");
        assert!(file.metadata().is_err(), "the size of `{name}` is told");
    }
    assert_eq!((shared.resident(), private.resident()), (0, 0), "resident pages of mappings");
    // A descriptor of a directory inside leads nowhere: the kernel has neither names nor a listing.
    for name in ["name", "other"] {
        let opened = rustix::fs::openat(&dir, name, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
        assert!(opened.is_err_and(|error| error != rustix::io::Errno::NOENT), "`{name}` is told to be there or not");
        assert!(rustix::fs::statat(&dir, name, rustix::fs::AtFlags::empty()).is_err());
    }
    let mut listing = [std::mem::MaybeUninit::uninit(); 4096];
    let mut listing = rustix::fs::RawDir::new(&dir, &mut listing);
    assert!(listing.next().is_none_or(|entry| entry.is_err()), "the directory's cached listing is served");
    let report = rig::report(&mount);
    assert_eq!(report["flush_complete"], true, "{report}");

    drop((shared, private, handles, dir));
    rig::restore(&mount);
    assert_eq!(fs::read(mount.at("dirty")).unwrap(), noise(9, LENGTH), "dirty pages of before the lock");
    let bytes = fs::read(mount.at("shared")).unwrap();
    assert_eq!(bytes[LENGTH - 1], 0xd1, "what was written through the mapping");
    assert!(bytes[..LENGTH - 1] == noise(1, LENGTH)[..LENGTH - 1]);
    mount.umount();
}

/// A Python program that says "ready" and then waits for a line before it goes on.
pub struct Script {
    pub child: Child,
    stdin: ChildStdin,
}

impl Script {
    pub fn start(world: &World, dir: &Path, code: &str) -> Script {
        let mut child = world
            .command("python3")
            .args(["-c", code])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready", "the program does not even start");
        let stdin = child.stdin.take().unwrap();
        Script { child, stdin }
    }

    /// Lets it go on, to its end.
    pub fn go_on(&mut self) -> (std::process::ExitStatus, String) {
        let _ = self.stdin.write_all(b"go\n");
        let mut said = String::new();
        let status = wait_child(&mut self.child, PATIENCE).expect("it hangs");
        self.child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_mapping_gives_sigbus() {
    let store = Store::new();
    let mount = rig::mount(&store, &[]);
    fs::write(mount.at("f"), noise(1, 100_000)).unwrap();
    let code = |access: &str| {
        format!(
            "import mmap,sys\nf=open('f','r+b')\nm=mmap.mmap(f.fileno(),0,{access})\nx=sum(m[::4096])\n\
             print('ready',flush=True)\nsys.stdin.readline()\nprint('read',m[5000],flush=True)\n"
        )
    };
    let mut scripts = ["access=mmap.ACCESS_WRITE", "mmap.MAP_PRIVATE,mmap.PROT_READ"]
        .map(|access| Script::start(&store.world, &mount.path, &code(access)));
    rig::revoke(&mount);
    for script in &mut scripts {
        let (status, said) = script.go_on();
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}, and it said `{said}`");
        assert_eq!(said, "");
    }
    mount_comes_back(&mount);
    // The control: without a lock the same program reads on.
    let mut script = Script::start(&store.world, &mount.path, &code("access=mmap.ACCESS_WRITE"));
    let (status, said) = script.go_on();
    assert!(status.success() && said.starts_with("read"), "{status} {said}");
    drop(script);
    mount.umount();
}

fn mount_comes_back(mount: &crate::common::Mount<'_>) {
    rig::restore(mount);
    wait_until("the file", PATIENCE, || fs::metadata(mount.at("f")).is_ok());
}

#[test]
fn nobody_holds_the_lock_up() {
    let store = Store::new();
    let mount = rig::mount(&store, &[]);
    for dir in 0..30 {
        fs::create_dir(mount.at(format!("d{dir}"))).unwrap();
        for file in 0..30 {
            fs::write(mount.at(format!("d{dir}/f{file}")), noise(file, 5000)).unwrap();
        }
    }
    fs::write(mount.at("f"), b"x").unwrap();
    let here = "import os,sys,time\nprint('ready',flush=True)\n";
    let end = "except OSError as e:\n print(e.errno,flush=True)\nsys.stdin.readline()\n";
    let programs = [
        // Stands inside and asks where it is and what is there.
        format!("{here}try:\n while True: os.stat('f'); os.listdir('.'); time.sleep(0.001)\n{end}"),
        // Writes on and on through one descriptor.
        format!("{here}f=os.open('w',os.O_CREAT|os.O_WRONLY)\nb=b'w'*65536\ntry:\n while True: os.pwrite(f,b,(os.times().elapsed*1000)%500*65536//1)\n{end}")
            .replace("(os.times().elapsed*1000)%500*65536//1", "int(time.time()*1000)%500*65536"),
        // Walks the tree for ever.
        format!("{here}def bad(e): raise e\ntry:\n while True:\n  for d,ds,fs in os.walk('.',onerror=bad):\n   for n in fs: os.stat(d+'/'+n)\n{end}"),
        // Sits in a file lock.
        format!("{here}import fcntl\nf=open('f','r+b')\nfcntl.flock(f,fcntl.LOCK_EX)\ntry:\n while True: os.pread(f.fileno(),1,0); time.sleep(0.001)\n{end}"),
        // Makes and removes names.
        format!("{here}n=0\ntry:\n while True:\n  open('t%d'%n,'w').close(); os.unlink('t%d'%n); n+=1\n{end}"),
    ];
    let mut scripts: Vec<Script> = programs.iter().map(|code| Script::start(&store.world, &mount.path, code)).collect();
    let stopped = Script::start(
        &store.world,
        &mount.path,
        "f=open('f','r+b')\nf.write(b'y')\nprint('ready',flush=True)\ninput()\n",
    );
    let pid = rustix::process::Pid::from_raw(stopped.child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_millis(300));

    let took = rig::revoke(&mount);
    let report = status_of_lock(&mount);
    println!("locked {took:?} after the denial with seven programs at work inside: {report}");
    // Every one got an error; none hangs.
    for (script, code) in scripts.iter_mut().zip(&programs) {
        let (status, said) = script.go_on();
        assert!(status.success() && said.trim().parse::<i32>().is_ok(), "{status}, said `{said}`:\n{code}");
    }
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    drop(stopped);
    // The mount point is not the old mount any more.
    assert_eq!(fs::symlink_metadata(&mount.path).unwrap().mode() & 0o7777, 0);
    assert_eq!(errno(File::create(mount.at("new"))), libc::EROFS);
    drop(scripts);
    mount_comes_back(&mount);
    mount.umount();
    store.world.ok([std::ffi::OsStr::new("verify"), store.path.as_os_str()]);
}

fn status_of_lock(mount: &crate::common::Mount<'_>) -> serde_json::Value {
    rig::status(mount)["last_lock"].clone()
}
