//! Many threads at once.

use std::sync::Barrier;

use hyokfs::fs::{FsError, ROOT};

use crate::harness::*;

#[test]
fn eight_threads_create_rename_and_remove() {
    let w = World::new();
    for dir in 0..3 {
        w.mkdir(&format!("d{dir}"));
    }
    let dirs: Vec<_> = (0..3).map(|i| w.ino(&format!("d{i}"))).collect();
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for thread in 0..8_usize {
            let (w, dirs, start) = (&w, &dirs, &start);
            scope.spawn(move || {
                start.wait();
                for i in 0..60_usize {
                    let own = format!("t{thread}-{i}");
                    let (here, there) = (dirs[i % 3], dirs[(i + 1) % 3]);
                    let (attr, fh) = w.fs.create(&ME, here, os(&own), 0o644, 0, RW).unwrap();
                    w.fs.write(attr.ino, fh, 0, own.as_bytes(), false, false).unwrap();
                    w.fs.release(attr.ino, fh).unwrap();
                    w.fs.rename(here, os(&own), there, os("shared"), 0).unwrap();
                    // Whoever is last has the name; everybody sees a whole file or none.
                    match w.fs.lookup(there, os("shared")) {
                        Ok(attr) => {
                            match w.fs.open(&ME, attr.ino, libc::O_RDONLY) {
                                Ok(fh) => {
                                    let data = w.read_fh(attr.ino, fh).unwrap();
                                    assert!(data.starts_with(b"t"), "{data:?}");
                                    w.fs.release(attr.ino, fh).unwrap();
                                }
                                Err(error) => panic!("{error:?}"),
                            }
                            w.fs.forget(attr.ino, 1);
                        }
                        Err(FsError::NotFound) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                    match w.fs.unlink(there, os("shared")) {
                        Ok(()) | Err(FsError::NotFound) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                    w.fs.forget(attr.ino, 1);
                }
            });
        }
    });
    for dir in 0..3 {
        assert!(w.names(&format!("d{dir}")).len() <= 1);
    }
}

#[test]
fn a_directory_is_removed_while_others_make_files_in_it() {
    let w = World::new();
    for round in 0..40 {
        let dir = w.mkdir("d");
        let start = Barrier::new(3);
        let (w, start) = (&w, &start);
        let mut left = false;
        std::thread::scope(|scope| {
            let makers: Vec<_> = (0..2)
                .map(|i| {
                    scope.spawn(move || {
                        start.wait();
                        match w.fs.create(&ME, dir, os(&format!("f{i}")), 0o644, 0, RW) {
                            Ok((attr, fh)) => w.fs.release(attr.ino, fh).map(|()| true).unwrap(),
                            Err(FsError::NotFound) => false,
                            Err(error) => panic!("{error:?}"),
                        }
                    })
                })
                .collect();
            start.wait();
            let removed = w.fs.rmdir(ROOT, os("d"));
            let made = makers.into_iter().filter_map(|maker| maker.join().unwrap().then_some(())).count();
            match removed {
                Ok(()) => assert_eq!(made, 0, "round {round}"),
                Err(error) => {
                    assert_eq!(errno::<()>(Err(error)), libc::ENOTEMPTY);
                    left = true;
                }
            }
        });
        if left {
            for name in w.names("d") {
                w.unlink(&format!("d/{name}")).unwrap();
            }
            w.rmdir("d").unwrap();
        }
    }
}

#[test]
fn one_file_is_opened_written_and_closed_by_all() {
    let w = World::new();
    let ino = w.put("f", &[0; 8 * 5000]);
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let w = &w;
            scope.spawn(move || {
                for round in 1..40_u8 {
                    let fh = w.fs.open(&ME, ino, RW).unwrap();
                    w.fs.write(ino, fh, thread * 5000, &[round; 5000], false, false).unwrap();
                    let mut back = [0; 5000];
                    assert_eq!(w.fs.read(ino, fh, thread * 5000, &mut back).unwrap(), 5000);
                    assert_eq!(back, [round; 5000]);
                    w.fs.release(ino, fh).unwrap();
                }
            });
        }
    });
    assert_eq!(w.get("f").unwrap(), vec![39; 8 * 5000]);
}
