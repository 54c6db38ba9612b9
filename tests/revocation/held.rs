//! Locked in place: everything says `ENOKEY`, nothing is left in the kernel, nothing reaches the store, and afterwards
//! the same descriptors and mappings work again.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;

use crate::cache::{Mapped, Script, cached_pages};
use crate::common::{Mount, PATIENCE, Store, assert_bytes, errno, mounted, names, noise, read, wait_until};
use crate::rig;

fn both_ways(path: PathBuf) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn no_key<T>(what: &str, result: io::Result<T>) {
    assert_eq!(result.err().and_then(|error| error.raw_os_error()), Some(libc::ENOKEY), "{what}");
}

fn os<T>(result: rustix::io::Result<T>) -> io::Result<T> {
    result.map_err(Into::into)
}

/// Path and bytes of every regular file of the store.
fn stored(store: &Store) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    let of = |path: PathBuf| {
        let (inode, bytes) = (fs::metadata(&path).unwrap().ino(), fs::read(&path).unwrap());
        (path, (inode, bytes))
    };
    store.ciphertexts().into_iter().map(of).collect()
}

/// Whether the kernel can read (or, with `store`, write) this address of ours: a page that cannot be had gives `EFAULT`
/// instead of a signal when the kernel itself touches it.
fn touch(address: *mut u8, store: Option<u8>) -> io::Result<u8> {
    let (reader, writer) = io::pipe()?;
    let mut byte = store.unwrap_or_default();
    let done = match store {
        Some(byte) => {
            (&writer).write_all(&[byte])?;
            // SAFETY: the kernel checks the address; it is inside a mapping of the test's.
            unsafe { libc::read(reader.as_raw_fd(), address.cast(), 1) }
        }
        // SAFETY: as above.
        None => unsafe { libc::write(writer.as_raw_fd(), address.cast(), 1) },
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    if store.is_none() {
        (&reader).read_exact(std::slice::from_mut(&mut byte))?;
    }
    Ok(byte)
}

#[test]
fn everything_says_enokey_and_the_same_descriptors_work_again() {
    const LENGTH: usize = 2 << 20;
    let store = Store::new();
    let mount = rig::mount_held(&store, &[]);
    fs::create_dir(mount.at("d")).unwrap();
    for (seed, name) in ["d/f", "d/clean", "d/gone", "d/read"].into_iter().enumerate() {
        fs::write(mount.at(name), noise(seed as u64, LENGTH)).unwrap();
    }
    std::os::unix::fs::symlink("d/f", mount.at("link")).unwrap();
    assert_eq!(errno(fs::metadata(mount.at("absent"))), libc::ENOENT);
    assert_eq!(fs::read_link(mount.at("link")).unwrap().to_str(), Some("d/f"));
    let (file, clean, gone) =
        (both_ways(mount.at("d/f")), both_ways(mount.at("d/clean")), both_ways(mount.at("d/gone")));
    // Open without a name, as temporary files are.
    fs::remove_file(mount.at("d/gone")).unwrap();
    let dir = File::open(mount.at("d")).unwrap();
    assert_bytes(&read(&mount.at("d/clean")), &noise(1, LENGTH), "before");
    // Dirty when the lock comes, and never synced.
    file.write_all_at(&noise(7, 300_000), 100_000).unwrap();
    gone.write_all_at(b"still here", 5000).unwrap();
    let direct =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(mount.at("d/clean")).unwrap();
    // Only the purge of everything reaches what nobody writes.
    let reader = File::open(mount.at("d/read")).unwrap();
    assert_bytes(&read(&mount.at("d/read")), &noise(3, LENGTH), "before");
    assert!(cached_pages(&reader) > 400, "the control: nothing is cached");
    let device = fs::metadata(&mount.path).unwrap().dev();

    let took = rig::revoke(&mount);
    let report = rig::report(&mount);
    println!("held {took:?} after the key was disabled: {report}");
    assert_eq!((&report["held"], &report["flush_complete"]), (&true.into(), &true.into()), "{report}");
    assert_eq!(report["bytes_given_up"], 0);
    let threads = std::thread::available_parallelism().unwrap().get().clamp(2, 16);
    assert_eq!(report["threads_cleaned"], threads, "{report}");
    assert_eq!(rig::status(&mount)["on_revoke"], "hold");
    let before = stored(&store);
    for open in [&file, &clean, &gone, &reader] {
        assert_eq!(cached_pages(open), 0, "pages are in the page cache");
    }
    no_key("read of what nobody writes", reader.read_at(&mut [0; 10], 0));

    let page = [b'z'; 4096];
    no_key("read", file.read_at(&mut [0; 10], 0));
    no_key("read of what was cached", clean.read_at(&mut [0; 10], 0));
    no_key("write", file.write_at(b"z", 10));
    no_key("write of a whole page", clean.write_at(&page, 0));
    no_key("append", file.write_at(&page, LENGTH as u64));
    no_key("write without a name", gone.write_at(&page, 0));
    no_key("direct read", direct.read_at(&mut aligned()[..], 0));
    no_key("direct write", direct.write_at(&aligned()[..], 0));
    no_key("fstat", file.metadata());
    no_key("fsync", file.sync_all());
    no_key("fdatasync", clean.sync_data());
    no_key("ftruncate", file.set_len(5));
    no_key("fallocate", os(rustix::fs::fallocate(&clean, rustix::fs::FallocateFlags::empty(), 0, 1 << 22)));
    no_key("fchmod", os(rustix::fs::fchmod(&file, 0o600.into())));
    no_key("open", File::open(mount.at("d/f")));
    no_key("stat", fs::metadata(mount.at("d/f")));
    no_key("stat of a name that is not there", fs::symlink_metadata(mount.at("absent")));
    no_key("readlink", fs::read_link(mount.at("link")));
    no_key("readdir", fs::read_dir(&mount.path).and_then(|mut all| all.next().unwrap()));
    no_key("create", File::create(mount.at("new")));
    no_key("mkdir", fs::create_dir(mount.at("new")));
    no_key("unlink", fs::remove_file(mount.at("link")));
    no_key("rename", fs::rename(mount.at("link"), mount.at("other")));
    no_key("symlink", std::os::unix::fs::symlink("x", mount.at("new")));
    no_key("link", fs::hard_link(mount.at("d/f"), mount.at("new")));
    no_key("setxattr", os(rustix::fs::fsetxattr(&file, "user.x", b"x", rustix::fs::XattrFlags::empty())));
    let inside = rustix::fs::openat(&dir, "f", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    no_key("openat", os(inside));
    // Space is told, and the root itself: neither says more than the store does.
    rustix::fs::statvfs(&mount.path).unwrap();
    assert!(fs::symlink_metadata(&mount.path).unwrap().is_dir());
    assert!(stored(&store) == before, "something reached the store while the volume was locked");

    rig::restore(&mount);
    assert_eq!(fs::metadata(&mount.path).unwrap().dev(), device, "it is another mount");
    let mut want = noise(0, LENGTH);
    want[100_000..400_000].copy_from_slice(&noise(7, 300_000));
    let mut bytes = vec![0; LENGTH];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_bytes(&bytes, &want, "through a descriptor of before the lock");
    assert_eq!(file.metadata().unwrap().len(), LENGTH as u64);
    clean.read_exact_at(&mut bytes, 0).unwrap();
    assert_bytes(&bytes, &noise(1, LENGTH), "a file that was only read");
    gone.read_exact_at(&mut bytes[..10], 5000).unwrap();
    assert_eq!(&bytes[..10], b"still here");
    gone.write_all_at(&page, LENGTH as u64).unwrap();
    gone.sync_all().unwrap();
    // The kernel remembers that it could not set the time of the refused fallocate, and says so once.
    no_key("the first fsync after a refused fallocate", clean.sync_all());
    clean.sync_all().unwrap();
    // On it goes, through the same descriptor, and durably.
    file.write_all_at(b"after the lock", LENGTH as u64 - 4).unwrap();
    file.sync_all().unwrap();
    want.truncate(LENGTH - 4);
    want.extend_from_slice(b"after the lock");
    assert_bytes(&read(&mount.at("d/f")), &want, "by path");
    assert_eq!(errno(fs::metadata(mount.at("absent"))), libc::ENOENT);
    assert_eq!(fs::read_link(mount.at("link")).unwrap().to_str(), Some("d/f"));
    assert_eq!(names(&mount.at("d")), ["clean", "f", "read"]);
    assert!(os(rustix::fs::openat(&dir, "f", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())).is_ok());
    reader.read_exact_at(&mut bytes, 0).unwrap();
    assert_bytes(&bytes, &noise(3, LENGTH), "a file that nobody wrote");
    drop((file, clean, gone, reader, direct, dir));
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("d/f")), &want, "after a remount");
    mount.umount();
    store.world.ok([OsStr::new("verify"), store.path.as_os_str()]);
}

/// A page for direct I/O.
fn aligned() -> Box<hyokfs::sys::aligned::AlignedBuf> {
    let mut page = hyokfs::sys::aligned::AlignedBuf::new(4096);
    page.fill(b'z');
    Box::new(page)
}

#[test]
fn a_mapping_works_again() {
    const LENGTH: usize = 200_000;
    let store = Store::new();
    let mount = rig::mount_held(&store, &[]);
    fs::write(mount.at("f"), noise(1, LENGTH)).unwrap();
    let file = both_ways(mount.at("f"));
    let (shared, private) =
        (Mapped::new(&file, LENGTH, libc::MAP_SHARED), Mapped::new(&file, LENGTH, libc::MAP_PRIVATE));
    assert!(shared.touch() > 0 && private.touch() > 0);
    let at = |mapped: &Mapped, offset: usize| mapped.start.cast::<u8>().wrapping_add(offset);
    touch(at(&shared, 5000), Some(0xa1)).unwrap();
    // The control, and a program that touches its mapping by itself.
    assert_eq!(touch(at(&shared, 5000), None).unwrap(), 0xa1);
    let code = "import mmap,sys\nf=open('f','r+b')\nm=mmap.mmap(f.fileno(),0)\nx=sum(m[::4096])\nprint('ready',flush=True)\n\
                sys.stdin.readline()\nm[9000]=1\nprint('written',flush=True)\n";
    let mut reckless = Script::start(&store.world, &mount.path, code);
    let mut patient = Script::start(&store.world, &mount.path, code);

    rig::revoke(&mount);
    rig::report(&mount);
    assert_eq!(cached_pages(&file), 0);
    assert_eq!((shared.resident(), private.resident()), (0, 0));
    assert_eq!(errno(touch(at(&shared, 5000), None)), libc::EFAULT);
    assert_eq!(errno(touch(at(&shared, 5000), Some(1))), libc::EFAULT);
    assert_eq!(errno(touch(at(&private, 5000), None)), libc::EFAULT);
    let (status, said) = reckless.go_on();
    assert_eq!((status.signal(), said.as_str()), (Some(libc::SIGBUS), ""));
    // A fault that fails leaves pages behind, but none with anything in it.
    assert_eq!((shared.resident(), private.resident()), (0, 0), "a fault while locked brought a page");

    rig::restore(&mount);
    assert_eq!(touch(at(&shared, 5000), None).unwrap(), 0xa1);
    assert_eq!(touch(at(&private, 100_000), None).unwrap(), noise(1, LENGTH)[100_000]);
    touch(at(&shared, 5001), Some(0xb2)).unwrap();
    let (status, said) = patient.go_on();
    assert!(status.success() && said.trim() == "written", "{status} {said}");
    drop((shared, private, file, reckless, patient));
    let mount = mount.remount();
    let bytes = read(&mount.at("f"));
    assert_eq!((bytes[5000], bytes[5001], bytes[9000]), (0xa1, 0xb2, 1));
    mount.umount();
}

#[test]
fn whoever_stands_or_walks_inside_goes_on() {
    let store = Store::new();
    let mount = rig::mount_held(&store, &[]);
    fs::create_dir_all(mount.at("a/b")).unwrap();
    let all: Vec<String> = (0..3000).map(|n| format!("entry-with-a-rather-long-name-{n:05}")).collect();
    for name in &all {
        File::create(mount.at("a").join(name)).unwrap();
    }
    fs::write(mount.at("a/b/f"), b"inside").unwrap();
    let code = "import os,sys\nprint('ready',flush=True)\nsys.stdin.readline()\n\
                print(open('f').read(),os.listdir('.'),os.stat('..').st_ino==os.stat(sys.argv[0] and '..').st_ino)\n\
                open('made','w').write('x')\n";
    let mut script = Script::start(&store.world, &mount.at("a/b"), code);
    let dir = File::open(mount.at("a")).unwrap();
    let mut room = [std::mem::MaybeUninit::uninit(); 4096];
    let mut seen = Vec::new();
    let mut read_some = |most: usize| -> io::Result<bool> {
        let mut entries = rustix::fs::RawDir::new(&dir, &mut room);
        for _ in 0..most {
            let Some(entry) = entries.next() else { return Ok(false) };
            seen.push(entry?.file_name().to_string_lossy().into_owned());
            if entries.is_buffer_empty() && most != usize::MAX {
                break;
            }
        }
        Ok(true)
    };
    assert!(read_some(50).unwrap());
    rig::revoke(&mount);
    no_key("the rest of the listing", read_some(50));
    no_key("a look from outside", fs::metadata(mount.at("a/b/f")));
    rig::restore(&mount);
    while read_some(usize::MAX).unwrap() {}
    seen.retain(|name| name.starts_with("entry"));
    seen.sort();
    assert_eq!(seen, all, "every entry once");
    let (status, said) = script.go_on();
    assert!(status.success() && said.starts_with("inside"), "{status} {said}");
    assert_eq!(fs::read(mount.at("a/b/made")).unwrap(), b"x");
    drop((script, dir));
    mount.umount();
}

#[test]
fn programs_at_work_get_an_error_and_go_on_afterwards() {
    let store = Store::new();
    let mount = rig::mount_held(&store, &[]);
    for file in 0..50 {
        fs::write(mount.at(format!("f{file}")), noise(file, 5000)).unwrap();
    }
    let body = |work: &str| {
        format!(
            "import os,sys,time\nprint('ready',flush=True)\nfd=os.open('own-'+str(os.getpid()),os.O_CREAT|os.O_RDWR)\n\
             n=locked=after=0\nwhile after<20:\n try:\n  n+=1\n  {work}\n  after+=locked>0\n except OSError as e:\n  \
             assert e.errno==126,e\n  locked+=1\n  time.sleep(0.01)\nprint('went on',flush=True)\n"
        )
    };
    let mut scripts = [
        "os.pwrite(fd,b'w'*65536,n%500*65536)",
        "os.pwrite(fd,b'w'*100,n*100); os.fsync(fd)",
        "os.listdir('.'); os.stat('f%d'%(n%50)); os.stat('absent') if n%7==0 and False else 0",
        "x=os.open('t%d'%n,os.O_CREAT|os.O_WRONLY); os.close(x); os.unlink('t%d'%n)",
        "os.pread(os.open('f%d'%(n%50),os.O_RDONLY),10,0); os.closerange(4,200)",
    ]
    .map(|work| Script::start(&store.world, &mount.path, &body(work)));
    std::thread::sleep(std::time::Duration::from_millis(400));
    for _ in 0..2 {
        rig::revoke(&mount);
        println!("{}", rig::report(&mount));
        // Nothing that they try dirties a page any more.
        let own = rig::status(&mount);
        assert_eq!(own["keys_cached"], 0);
        rig::restore(&mount);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    for script in &mut scripts {
        let (status, said) = script.go_on();
        assert!(status.success() && said.trim() == "went on", "{status} {said}");
    }
    drop(scripts);
    mount.umount();
    store.world.ok([OsStr::new("verify"), store.path.as_os_str()]);
}

/// Names are encrypted, so the ciphertext of a file is found by what its descriptor's inode number says: they are equal.
fn ciphertext(store: &Store, mount: &Mount<'_>, name: &str) -> PathBuf {
    let inode = fs::metadata(mount.at(name)).unwrap().ino();
    store.ciphertexts().into_iter().find(|path| fs::metadata(path).unwrap().ino() == inode).unwrap()
}

#[test]
fn what_was_changed_in_the_store_meanwhile_is_not_served_from_memory() {
    let store = Store::new();
    let mount = rig::mount_held(&store, &[]);
    let kinds = ["kept", "removed", "replaced", "shortened", "restored"];
    for name in kinds {
        fs::write(mount.at(name), noise(1, 50_000)).unwrap();
        File::open(mount.at(name)).unwrap().sync_all().unwrap();
    }
    let path = |name| ciphertext(&store, &mount, name);
    let (removed, replaced, shortened, restored) =
        (path("removed"), path("replaced"), path("shortened"), path("restored"));
    let old = fs::read(&restored).unwrap();
    let open = kinds.map(|name| both_ways(mount.at(name)));
    for (file, name) in open.iter().zip(kinds) {
        file.write_all_at(&noise(2, 20_000), 10_000).unwrap();
        file.sync_all().unwrap();
        assert_eq!(read(&mount.at(name)).len(), 50_000);
    }
    // A page that nobody put into words yet: the size is told by the store's file alone.
    rig::revoke(&mount);
    rig::report(&mount);
    fs::remove_file(&removed).unwrap();
    let copy = store.world.path().join("copy");
    fs::copy(&replaced, &copy).unwrap();
    let before = fs::metadata(&replaced).unwrap().ino();
    fs::rename(&copy, &replaced).unwrap();
    assert_ne!(fs::metadata(&replaced).unwrap().ino(), before);
    let length = fs::metadata(&shortened).unwrap().len();
    OpenOptions::new().write(true).open(&shortened).unwrap().set_len(length - 3 * 4096).unwrap();
    // As a tool that copies into place would do it: the same inode, the same length, other bytes.
    OpenOptions::new().write(true).open(&restored).unwrap().write_all_at(&old, 0).unwrap();
    rig::restore(&mount);

    let mut bytes = vec![0; 50_000];
    let mut now = noise(1, 50_000);
    now[10_000..30_000].copy_from_slice(&noise(2, 20_000));
    open[0].read_exact_at(&mut bytes, 0).unwrap();
    assert_bytes(&bytes, &now, "the control");
    for (at, name) in [(1, "removed"), (2, "replaced"), (3, "shortened")] {
        assert_eq!(errno(open[at].read_at(&mut [0; 10], 0)), libc::ESTALE, "read of what was {name}");
        assert_eq!(errno(open[at].write_at(&[0; 4096], 0)), libc::ESTALE, "write to what was {name}");
        assert_eq!(errno(open[at].metadata()), libc::ESTALE, "fstat of what was {name}");
        assert_eq!(errno(open[at].sync_all()), libc::ESTALE, "fsync of what was {name}");
    }
    assert_eq!(errno(File::open(mount.at("removed"))), libc::ENOENT);
    assert_bytes(&read(&mount.at("replaced")), &now, "the copy in its place");
    assert_eq!(errno(File::open(mount.at("shortened"))), libc::ESTALE, "while the old one is still open");
    // It is authentic, only older: what is served is what the store holds.
    open[4].read_exact_at(&mut bytes, 0).unwrap();
    assert_bytes(&bytes, &noise(1, 50_000), "what was restored in place");
    drop(open);
    // Nobody has it open any more: found anew, and cut below what an fsync had recorded.
    wait_until("the kernel forgets the shortened file", PATIENCE, || {
        File::open(mount.at("shortened")).is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
    });
    mount.umount();
}

#[test]
fn ended_killed_and_unmounted_while_locked() {
    let store = Store::new();
    // SIGTERM: the mount goes, although somebody has a file open.
    let mut mount = rig::mount_held(&store, &[]);
    fs::write(mount.at("f"), noise(1, 10_000)).unwrap();
    let open = both_ways(mount.at("f"));
    rig::revoke(&mount);
    mount.signal(rustix::process::Signal::TERM);
    mount.ended();
    assert_eq!(errno(open.read_at(&mut [0], 0)), libc::ENOTCONN);
    drop(open);
    assert_eq!(names(&mount.path), Vec::<std::ffi::OsString>::new(), "something is in the bare directory");
    // While the key is denied nobody gets in.
    assert!(store.try_mount(&["--on-revoke", "hold"], &mount.path).is_err());
    assert_eq!(mounted(&mount.path), None);
    store.enable_key();

    // Killed: a dead mount without a page in it, and a new daemon takes its place.
    let mut mount = rig::mount_held(&store, &[]);
    let open = both_ways(mount.at("f"));
    assert_eq!(read(&mount.at("f")), noise(1, 10_000));
    rig::revoke(&mount);
    mount.signal(rustix::process::Signal::KILL);
    mount.died();
    assert_eq!(errno(fs::metadata(&mount.path)), libc::ENOTCONN);
    // Before the first try: a read that fails leaves an empty page behind.
    assert_eq!(cached_pages(&open), 0);
    assert_eq!(errno(open.read_at(&mut [0], 0)), libc::ENOTCONN);
    store.enable_key();
    let options = ["--poll-interval", rig::POLL, "--on-revoke", "hold"];
    let again = store.try_mount(&options, &mount.path).unwrap();
    assert_eq!(read(&again.at("f")), noise(1, 10_000));
    assert_eq!(errno(open.read_at(&mut [0], 0)), libc::ENOTCONN, "a descriptor of the dead mount");
    drop(open);

    // Busy, it stays; idle, `hyokfs unmount` takes it away, locked as it is.
    let open = both_ways(again.at("f"));
    rig::revoke(&again);
    let said = store.world.fails([OsStr::new("unmount"), again.path.as_os_str()]);
    assert!(said.contains("cannot be unmounted"), "{said}");
    assert_eq!(rig::state(&again), "locked");
    drop(open);
    again.umount();
    store.enable_key();
}

#[test]
fn a_drill_and_an_operator_s_lock() {
    let store = Store::new();
    let mount = rig::mount_held(&store, &[]);
    fs::write(mount.at("f"), noise(1, 10_000)).unwrap();
    let open = both_ways(mount.at("f"));
    for _ in 0..3 {
        let report = store.world.ok([OsStr::new("drill"), OsStr::new("--json"), mount.path.as_os_str()]);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!((&report["kept"], &report["lock"]["held"]), (&true.into(), &true.into()), "{report}");
        assert_eq!(open.read_at(&mut [0; 10], 0).unwrap(), 10);
    }
    store.world.ok([OsStr::new("lock"), mount.path.as_os_str()]);
    no_key("read", open.read_at(&mut [0], 0));
    let said = store.world.ok([OsStr::new("status"), mount.path.as_os_str()]);
    assert!(said.contains("held"), "{said}");
    // A customer's no in the meantime is stronger than the operator's unlock.
    store.disable_key();
    store.world.fails([OsStr::new("unlock"), mount.path.as_os_str()]);
    no_key("read", open.read_at(&mut [0], 0));
    store.enable_key();
    store.world.ok([OsStr::new("unlock"), mount.path.as_os_str()]);
    assert_eq!(open.read_at(&mut [0; 10], 0).unwrap(), 10);
    assert!(open.as_fd().as_raw_fd() > 0);
    drop(open);
    mount.umount();
}
