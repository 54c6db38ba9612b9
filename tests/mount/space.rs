//! Holes, fallocate in its modes, SEEK_DATA and SEEK_HOLE, statfs, a full store.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek, statvfs};

use crate::common::{Store, World, assert_bytes, errno, native, noise, read};

fn open(path: &std::path::Path) -> File {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).unwrap()
}

#[test]
fn a_sparse_file_takes_no_space() {
    let store = Store::new();
    let mount = store.mount();
    let file = open(&mount.at("sparse"));
    let size = 1u64 << 40;
    file.set_len(size).unwrap();
    file.write_all_at(b"far out", size / 2).unwrap();
    let mut near = [9u8; 4096];
    file.read_exact_at(&mut near, size / 3).unwrap();
    assert_eq!(near, [0; 4096]);
    drop(file);
    let mount = mount.remount();
    let meta = fs::metadata(mount.at("sparse")).unwrap();
    assert_eq!(meta.len(), size);
    assert!(meta.blocks() * 512 < 1 << 20, "{} bytes on disk for a few written", meta.blocks() * 512);
    let mut got = [0; 7];
    File::open(mount.at("sparse")).unwrap().read_exact_at(&mut got, size / 2).unwrap();
    assert_eq!(&got, b"far out");
    mount.umount();
}

#[test]
fn preallocate() {
    let store = Store::new();
    let mount = store.mount();
    let file = open(&mount.at("f"));
    file.write_all_at(b"start", 0).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5, "KEEP_SIZE keeps the size");
    fallocate(&file, FallocateFlags::empty(), 3, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_003);
    let mut want = vec![0; 100_003];
    want[..5].copy_from_slice(b"start");
    assert_bytes(&read(&mount.at("f")), &want, "allocated space reads as zeros");
    drop(file);
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("f")), &want, "after a remount");
    let bad = fallocate(File::open(mount.at("f")).unwrap(), FallocateFlags::empty(), 0, 10).map_err(Into::into);
    assert_eq!(errno(bad), libc::EBADF);
    mount.umount();
}

#[test]
fn punch_and_zero() {
    let store = Store::new();
    let mount = store.mount();
    for (name, flags) in [
        ("punch", FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
        ("zero", FallocateFlags::ZERO_RANGE),
        ("zero-keep", FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
    ] {
        let file = open(&mount.at(name));
        let mut want = noise(3, 200_000);
        file.write_all_at(&want, 0).unwrap();
        file.sync_all().unwrap();
        for (at, length) in [(0, 10), (3000, 30), (4096, 4096), (10_000, 50_000), (199_990, 10), (70_000, 4056)] {
            fallocate(&file, flags, at, length).unwrap();
            want[at as usize..(at + length) as usize].fill(0);
            let mut got = vec![0; want.len()];
            file.read_exact_at(&mut got, 0).unwrap();
            assert_bytes(&got, &want, name);
        }
        fallocate(&file, flags, 195_000, 20_000).unwrap();
        want[195_000..].fill(0);
        if name == "zero" {
            want.resize(215_000, 0);
        }
        assert_eq!(file.metadata().unwrap().len(), want.len() as u64, "{name}: the size");
        file.write_all_at(b"again", 20_000).unwrap();
        want[20_000..20_005].copy_from_slice(b"again");
        file.sync_all().unwrap();
        drop(file);
        fs::write(mount.at(format!("{name}.want")), &want).unwrap();
    }
    let mount = mount.remount();
    for name in ["punch", "zero", "zero-keep"] {
        assert_bytes(&read(&mount.at(name)), &read(&mount.at(format!("{name}.want"))), name);
    }
    mount.umount();
}

#[test]
fn a_punched_file_gives_space_back() {
    let store = Store::new();
    let mount = store.mount();
    let file = open(&mount.at("f"));
    file.write_all_at(&noise(1, 4 << 20), 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let file = open(&mount.at("f"));
    let before = file.metadata().unwrap().blocks();
    assert!(before * 512 >= 4 << 20, "{before} blocks hold 4 MiB");
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 1 << 20, 2 << 20).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let mount = mount.remount();
    let after = fs::metadata(mount.at("f")).unwrap().blocks();
    assert!(after * 4 < before * 3, "{before} blocks before the punch, {after} after it");
    mount.umount();
}

#[test]
fn seek_data_and_hole() {
    let store = Store::new();
    let mount = store.mount();
    let file = open(&mount.at("f"));
    file.write_all_at(&noise(1, 8192), 0).unwrap();
    file.write_all_at(&noise(2, 8192), 4 << 20).unwrap();
    file.set_len(8 << 20).unwrap();
    file.sync_all().unwrap();
    let size = 8u64 << 20;
    // Every byte that is not zero lies in a data range that the calls report; a report may be coarser.
    let mut at = 0;
    let mut data = Vec::new();
    loop {
        match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => {
                let end = seek(&file, SeekFrom::Hole(start)).unwrap();
                assert!(start < end && end <= size, "data from {start} to {end}");
                data.push(start..end);
                at = end;
                if at >= size {
                    break;
                }
            }
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => panic!("SEEK_DATA at {at}: {error}"),
        }
    }
    for byte in [0, 8191, 4 << 20, (4 << 20) + 8191] {
        assert!(data.iter().any(|range| range.contains(&byte)), "byte {byte} is data, but only {data:?} was reported");
    }
    assert!(data.iter().map(|r| r.end - r.start).sum::<u64>() < size / 2, "the hole is not reported: {data:?}");
    assert_eq!(seek(&file, SeekFrom::Data(size)), Err(rustix::io::Errno::NXIO));
    assert_eq!(seek(&file, SeekFrom::Hole(0)).map(|hole| hole >= 8192), Ok(true));
    drop(file);
    // A copy that follows the holes is equal.
    let status =
        store.world.command("cp").arg("--sparse=auto").arg(mount.at("f")).arg(mount.at("copy")).status().unwrap();
    assert!(status.success());
    assert_bytes(&read(&mount.at("copy")), &read(&mount.at("f")), "cp");
    mount.umount();
}

#[test]
fn statfs_tells_what_fits_into_the_store() {
    let store = Store::new();
    let mount = store.mount();
    let (below, here) = (statvfs(&store.path).unwrap(), statvfs(&mount.path).unwrap());
    // The room for plaintext: the store's less the seals.
    let (below_size, size) = (below.f_blocks * below.f_frsize, here.f_blocks * here.f_frsize);
    assert!(size <= below_size && size >= below_size / 100 * 97, "{size} of {below_size} bytes");
    assert_eq!(here.f_namemax, 255);
    assert!(here.f_bavail > 0 && here.f_files > 0);
    mount.umount();
}

#[test]
fn a_full_store_says_so_and_recovers() {
    if native() {
        return;
    }
    let world = World::new();
    let small = world.path().join("store");
    world.make_dir(&small);
    rustix::mount::mount("small", &small, "tmpfs", rustix::mount::MountFlags::empty(), c"size=24m").unwrap();
    // Goes after the mount (whose guard is made later) and before the store's folder.
    struct Small(std::path::PathBuf);
    impl Drop for Small {
        fn drop(&mut self) {
            let _ = crate::common::umount_path(&self.0);
        }
    }
    let store = Store::with(world, &[]);
    let _small = Small(small);
    let mount = store.mount();
    fs::write(mount.at("kept"), noise(1, 1 << 20)).unwrap();
    let mut failed = None;
    for n in 0..40 {
        let write = File::create(mount.at(format!("f{n}"))).and_then(|mut file| {
            std::io::Write::write_all(&mut file, &noise(n, 1 << 20))?;
            file.sync_all()
        });
        if let Err(error) = write {
            failed = Some(error);
            break;
        }
    }
    assert_eq!(failed.expect("24 MiB hold no 40 MiB").raw_os_error(), Some(libc::ENOSPC));
    assert_bytes(&read(&mount.at("kept")), &noise(1, 1 << 20), "while the store is full");
    for n in 0..40 {
        let _ = fs::remove_file(mount.at(format!("f{n}")));
    }
    fs::write(mount.at("after"), noise(2, 1 << 20)).unwrap();
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("kept")), &noise(1, 1 << 20), "kept");
    assert_bytes(&read(&mount.at("after")), &noise(2, 1 << 20), "written when there was space again");
    mount.umount();
}
