//! Memory maps, shared and private.

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::ptr;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use crate::common::{Store, assert_bytes, noise, read};

/// A mapping of a whole file.
struct Map {
    start: *mut u8,
    length: usize,
}

impl Map {
    fn new(file: &File, length: usize, flags: MapFlags, write: bool) -> Self {
        let protection = if write { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing else knows it.
        let start = unsafe { mmap(ptr::null_mut(), length, protection, flags, file, 0) }.unwrap();
        Map { start: start.cast(), length }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as self, and no test shrinks the file below it while it is read.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.length);
        // SAFETY: inside the mapping, which is writable and borrowed mutably.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.start.add(at), data.len()) }
    }

    fn sync(&self) {
        // SAFETY: the range is exactly the mapping.
        unsafe { msync(self.start.cast(), self.length, MsyncFlags::SYNC) }.unwrap();
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: unmaps what new() mapped, once.
        unsafe { munmap(self.start.cast(), self.length) }.unwrap();
    }
}

fn open(path: &std::path::Path) -> File {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).unwrap()
}

#[test]
fn shared_maps_write_the_file() {
    let store = Store::new();
    let mount = store.mount();
    let file = open(&mount.at("f"));
    let mut want = noise(1, 50_000);
    file.write_all_at(&want, 0).unwrap();
    let mut map = Map::new(&file, 50_000, MapFlags::SHARED, true);
    assert_bytes(map.bytes(), &want, "mapped");
    for at in [0, 3015, 4090, 8191, 49_990] {
        map.put(at, b"0123456789");
        want[at..at + 10].copy_from_slice(b"0123456789");
    }
    assert_bytes(&read(&mount.at("f")), &want, "read sees the mapping's writes at once");
    file.write_all_at(b"by write", 20_000).unwrap();
    want[20_000..20_008].copy_from_slice(b"by write");
    assert_bytes(map.bytes(), &want, "the mapping sees write's bytes at once");
    map.sync();
    // Written after the descriptor is closed.
    drop(file);
    map.put(30_000, b"after close");
    want[30_000..30_011].copy_from_slice(b"after close");
    drop(map);
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("f")), &want, "after a remount");
    mount.umount();
}

#[test]
fn private_maps_do_not() {
    let store = Store::new();
    let mount = store.mount();
    let file = open(&mount.at("f"));
    let want = noise(1, 20_000);
    file.write_all_at(&want, 0).unwrap();
    let mut map = Map::new(&file, 20_000, MapFlags::PRIVATE, true);
    map.put(5000, b"only mine");
    assert_eq!(&map.bytes()[5000..5009], b"only mine");
    assert_bytes(&read(&mount.at("f")), &want, "a private write stays private");
    drop((map, file));
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("f")), &want, "after a remount");
    mount.umount();
}

#[test]
fn a_map_of_an_unlinked_file() {
    let store = Store::new();
    let mount = store.mount();
    let file = open(&mount.at("f"));
    file.write_all_at(&noise(1, 20_000), 0).unwrap();
    let mut map = Map::new(&file, 20_000, MapFlags::SHARED, true);
    fs::remove_file(mount.at("f")).unwrap();
    map.put(100, b"still there");
    map.sync();
    let mut got = [0; 11];
    file.read_exact_at(&mut got, 100).unwrap();
    assert_eq!(&got, b"still there");
    drop((map, file));
    mount.umount();
}

#[test]
fn a_map_over_a_hole_and_a_growing_file() {
    let store = Store::new();
    let mount = store.mount();
    let file = open(&mount.at("f"));
    file.set_len(1 << 20).unwrap();
    let mut map = Map::new(&file, 1 << 20, MapFlags::SHARED, true);
    assert!(map.bytes().iter().all(|byte| *byte == 0));
    map.put(700_000, b"in the hole");
    file.set_len(2 << 20).unwrap();
    map.put((1 << 20) - 4, b"last");
    map.sync();
    drop((map, file));
    let mut want = vec![0; 2 << 20];
    want[700_000..700_011].copy_from_slice(b"in the hole");
    want[(1 << 20) - 4..1 << 20].copy_from_slice(b"last");
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("f")), &want, "after a remount");
    mount.umount();
}

#[test]
fn bytes_after_the_end_of_a_mapped_page_are_not_kept() {
    let store = Store::new();
    let mount = store.mount();
    let file = open(&mount.at("f"));
    file.write_all_at(&noise(1, 5000), 0).unwrap();
    let mut map = Map::new(&file, 8192, MapFlags::SHARED, true);
    // POSIX: what is stored after the end of the file in its last page is not written out.
    map.put(5000, &[0xee; 3000]);
    map.sync();
    drop(map);
    file.set_len(8192).unwrap();
    let mut want = noise(1, 5000);
    want.resize(8192, 0);
    assert_bytes(&read(&mount.at("f")), &want, "grown");
    drop(file);
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("f")), &want, "grown, after a remount");
    mount.umount();
}

#[test]
fn programs_run_from_the_mount() {
    let store = Store::new();
    let mount = store.mount();
    // Copied by another program and started by a third: nobody here ever has it open for writing.
    let copy = store.world.command("cp").arg("/bin/true").arg(mount.at("program")).status().unwrap();
    assert!(copy.success());
    assert!(store.world.command(mount.at("program")).status().unwrap().success());
    let mount = mount.remount();
    assert!(store.world.command(mount.at("program")).status().unwrap().success());
    mount.umount();
}
