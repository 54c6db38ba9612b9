//! Bytes: create, read, write, append, truncate, direct I/O, files without a name; each also after a remount.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::common::{Store, assert_bytes, errno, native, noise, read};

/// Sizes around every border of the format: the first page's and a page's capacity, disk pages, several pages.
const SIZES: &[usize] = &[
    0, 1, 15, 16, 100, 3015, 3016, 3017, 4055, 4056, 4057, 4095, 4096, 4097, 7071, 7072, 7073, 8192, 11_127, 11_128,
    11_129, 65_536, 131_072, 1_048_575, 1_048_576, 1_048_577, 3_000_000,
];

#[test]
fn sizes_around_every_border() {
    let store = Store::new();
    let mount = store.mount();
    for &size in SIZES {
        let path = mount.at(format!("s{size}"));
        fs::write(&path, noise(size as u64, size)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), size as u64);
        assert_bytes(&read(&path), &noise(size as u64, size), "just written");
    }
    let mount = mount.remount();
    for &size in SIZES {
        let path = mount.at(format!("s{size}"));
        assert_eq!(fs::metadata(&path).unwrap().len(), size as u64, "the size after a remount");
        assert_bytes(&read(&path), &noise(size as u64, size), "after a remount");
    }
    mount.umount();
}

#[test]
fn writes_anywhere_match_a_model() {
    let store = Store::new();
    let mount = store.mount();
    let path = mount.at("model");
    let mut model: Vec<u8> = Vec::new();
    let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    let mut dice = noise(7, 8 * 3000).chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect::<Vec<_>>();
    let mut roll = |n: u64| dice.pop().unwrap() % n;
    for step in 0..400u64 {
        match roll(10) {
            0 => {
                let size = roll(60_000) as usize;
                file.set_len(size as u64).unwrap();
                model.resize(size, 0);
            }
            1 => {
                drop(file);
                file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            }
            2 => file.sync_data().unwrap(),
            3 | 4 => {
                let at = roll(70_000);
                let mut buffer = vec![0; roll(20_000) as usize];
                let got = file.read_at(&mut buffer, at).unwrap();
                let start = (at as usize).min(model.len());
                let end = (start + buffer.len()).min(model.len());
                assert_bytes(&buffer[..got], &model[start..end], &format!("step {step}"));
            }
            _ => {
                let at = roll(50_000) as usize;
                let data = noise(step, roll(9_000) as usize + 1);
                file.write_all_at(&data, at as u64).unwrap();
                if model.len() < at + data.len() {
                    model.resize(at + data.len(), 0);
                }
                model[at..at + data.len()].copy_from_slice(&data);
            }
        }
        assert_eq!(file.metadata().unwrap().len(), model.len() as u64, "the size at step {step}");
    }
    drop(file);
    assert_bytes(&read(&path), &model, "at the end");
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("model")), &model, "after a remount");
    mount.umount();
}

#[test]
fn append_through_two_descriptors() {
    let store = Store::new();
    let mount = store.mount();
    let path = mount.at("log");
    let open = || OpenOptions::new().create(true).append(true).open(&path).unwrap();
    let (mut first, mut second) = (open(), open());
    let mut want = Vec::new();
    for line in 0..500 {
        let text = format!("line {line}\n");
        if line % 2 == 0 { &mut first } else { &mut second }.write_all(text.as_bytes()).unwrap();
        want.extend_from_slice(text.as_bytes());
    }
    drop((first, second));
    assert_bytes(&read(&path), &want, "two appenders");
    let mount = mount.remount();
    OpenOptions::new().append(true).open(mount.at("log")).unwrap().write_all(b"after").unwrap();
    want.extend_from_slice(b"after");
    assert_bytes(&read(&mount.at("log")), &want, "appended after a remount");
    mount.umount();
}

#[test]
fn truncate_down_and_up_leaves_zeros() {
    let store = Store::new();
    let mount = store.mount();
    for &(size, cut) in
        &[(10_000, 0), (10_000, 1), (10_000, 3016), (10_000, 3017), (10_000, 7072), (4056, 4055), (300_000, 123_457)]
    {
        let path = mount.at(format!("t{size}-{cut}"));
        let mut want = noise(9, size);
        fs::write(&path, &want).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(cut as u64).unwrap();
        file.set_len(size as u64 + 5000).unwrap();
        want.truncate(cut);
        want.resize(size + 5000, 0);
        assert_bytes(&read(&path), &want, "cut and grown");
        file.write_all_at(b"end", size as u64 + 9000).unwrap();
        want.resize(size + 9000, 0);
        want.extend_from_slice(b"end");
        drop(file);
        assert_bytes(&read(&path), &want, "written beyond the end");
        fs::write(mount.at(format!("w{size}-{cut}")), &want).unwrap();
    }
    let mount = mount.remount();
    for entry in fs::read_dir(&mount.path).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if let Some(rest) = name.strip_prefix('t') {
            assert_bytes(&read(&path), &read(&mount.at(format!("w{rest}"))), "after a remount");
        }
    }
    mount.umount();
}

#[test]
fn open_truncate_and_exclusive() {
    let store = Store::new();
    let mount = store.mount();
    let path = mount.at("f");
    fs::write(&path, noise(1, 20_000)).unwrap();
    let kept = File::open(&path).unwrap();
    fs::write(&path, b"short").unwrap();
    assert_bytes(&read(&path), b"short", "O_TRUNC");
    assert_eq!(kept.metadata().unwrap().len(), 5, "another descriptor sees the new size");
    let exclusive = OpenOptions::new().write(true).create_new(true).open(&path);
    assert_eq!(errno(exclusive), libc::EEXIST);
    assert_eq!(errno(File::open(mount.at("missing"))), libc::ENOENT);
    assert_eq!(errno(File::open(mount.at("f/below"))), libc::ENOTDIR);
    assert_eq!(errno(OpenOptions::new().write(true).open(&mount.path)), libc::EISDIR);
    drop(kept);
    mount.umount();
}

#[test]
fn write_only_and_read_only_descriptors() {
    let store = Store::new();
    let mount = store.mount();
    let path = mount.at("f");
    let want = noise(2, 12_345);
    fs::write(&path, &want).unwrap();
    // A partial page through a write-only descriptor: the kernel has to read it first.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"middle", 5000).unwrap();
    let mut buffer = [0; 4];
    assert_eq!(errno(file.read_at(&mut buffer, 0)), libc::EBADF);
    assert_eq!(errno(File::open(&path).unwrap().write_at(b"x", 0)), libc::EBADF);
    drop(file);
    let mut model = want;
    model[5000..5006].copy_from_slice(b"middle");
    assert_bytes(&read(&path), &model, "a partial write");
    mount.umount();
}

#[test]
fn an_unlinked_file_lives_while_open() {
    let store = Store::new();
    let mount = store.mount();
    let path = mount.at("gone");
    let mut file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).unwrap();
    file.write_all(&noise(3, 50_000)).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(errno(File::open(&path)), libc::ENOENT);
    file.write_all(b"more after the unlink").unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), 50_021);
    file.seek(SeekFrom::Start(49_990)).unwrap();
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).unwrap();
    assert_bytes(&tail[10..], b"more after the unlink", "the tail");
    // The name is free for another file at once.
    fs::write(&path, b"new").unwrap();
    file.set_len(10).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10);
    assert_bytes(&read(&path), b"new", "the new file of that name");
    drop(file);
    if !native() {
        let left = store.ciphertexts().len();
        assert_eq!(left, 1, "the store keeps what was unlinked and closed");
    }
    mount.umount();
}

/// A buffer at an aligned address.
fn aligned(length: usize) -> (Vec<u8>, usize) {
    let buffer = vec![0u8; length + 4096];
    let start = buffer.as_ptr().align_offset(4096);
    (buffer, start)
}

#[test]
fn direct_io() {
    let store = Store::new();
    let mount = store.mount();
    let path = mount.at("direct");
    let mut want = noise(4, 256 * 1024);
    let mut open = OpenOptions::new();
    open.create(true).truncate(false).read(true).write(true).custom_flags(libc::O_DIRECT);
    let file = open.open(&path).unwrap();
    let (mut buffer, start) = aligned(want.len());
    buffer[start..start + want.len()].copy_from_slice(&want);
    file.write_all_at(&buffer[start..start + want.len()], 0).unwrap();
    // What one wrote past the cache, another reads through it, and the other way round.
    assert_bytes(&read(&path), &want, "written directly, read through the cache");
    let cached = OpenOptions::new().write(true).open(&path).unwrap();
    cached.write_all_at(b"through the cache", 8192).unwrap();
    want[8192..8192 + 17].copy_from_slice(b"through the cache");
    let (mut buffer, start) = aligned(want.len());
    let got = file.read_at(&mut buffer[start..start + want.len()], 0).unwrap();
    assert_bytes(&buffer[start..start + got], &want, "read directly");
    // One sector inside a page.
    buffer[start..start + 512].fill(0x5a);
    file.write_all_at(&buffer[start..start + 512], 512 * 13).unwrap();
    want[512 * 13..512 * 14].fill(0x5a);
    drop((file, cached));
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("direct")), &want, "after a remount");
    mount.umount();
}

#[test]
fn a_file_without_a_name_is_refused_cleanly_or_works() {
    let store = Store::new();
    let mount = store.mount();
    let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(&mount.path);
    match open {
        Ok(mut file) => {
            file.write_all(b"nameless").unwrap();
            let mut got = [0; 8];
            file.read_exact_at(&mut got, 0).unwrap();
            assert_eq!(&got, b"nameless");
        }
        // What programs know and fall back from.
        Err(error) => assert!(
            [libc::EOPNOTSUPP, libc::EISDIR].contains(&error.raw_os_error().unwrap()),
            "O_TMPFILE gave {error}, which programs don't fall back from"
        ),
    }
    assert_eq!(fs::read_dir(&mount.path).unwrap().count(), 0);
    mount.umount();
}

#[test]
fn many_writers_of_one_file() {
    let store = Store::new();
    let mount = store.mount();
    let path = mount.at("shared");
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).unwrap();
    let part = 40_000usize;
    std::thread::scope(|scope| {
        for id in 0..8usize {
            let file = &file;
            scope.spawn(move || {
                let data = noise(id as u64, part);
                for (n, piece) in data.chunks(997).enumerate() {
                    file.write_all_at(piece, (id * part + n * 997) as u64).unwrap();
                }
                let mut got = vec![0; part];
                file.read_exact_at(&mut got, (id * part) as u64).unwrap();
                assert_bytes(&got, &data, "own part");
            });
        }
    });
    let want: Vec<u8> = (0..8).flat_map(|id| noise(id, part)).collect();
    drop(file);
    let mount = mount.remount();
    assert_bytes(&read(&mount.at("shared")), &want, "all parts after a remount");
    mount.umount();
}

#[test]
fn a_big_file() {
    let store = Store::new();
    let mount = store.mount();
    let path = mount.at("big");
    let block = 4 << 20;
    let mut file = File::create(&path).unwrap();
    for n in 0..16 {
        file.write_all(&noise(n, block)).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    let mount = mount.remount();
    let mut file = File::open(mount.at("big")).unwrap();
    let mut buffer = vec![0; block];
    for n in 0..16 {
        file.read_exact(&mut buffer).unwrap();
        assert_bytes(&buffer, &noise(n, block), &format!("block {n}"));
    }
    assert_eq!(file.read(&mut buffer).unwrap(), 0);
    drop(file);
    mount.umount();
}
