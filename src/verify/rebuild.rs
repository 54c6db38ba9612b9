//! Finds the id of a directory whose record is lost, from what stands in it, and writes the record again.
//!
//! Files and directories name, authenticated, the directories they may stand in; and the names in a directory
//! authenticate under its id alone. So the id is told by the first and proven by the second. What nothing proves is where
//! the directory itself may stand: below the root that is the person's word who asks for it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::walk::{Named, is_visibly_empty, read_name, read_record, scan, stat};
use crate::format::dirrec::{DIR_RECORD, DirRecord};
use crate::format::header::{FileHeader, Parents};
use crate::format::name::{Entry, NameMode, TEMPORARY_PREFIX, classify};
use crate::format::volume::Volume;
use crate::format::{DirId, FileId};
use crate::store::open_beneath;

/// Entries that are asked for their directory at most.
const ASKED: usize = 10_000;

/// The directories that an entry says it may stand in.
fn parents(volume: &Volume, dir: &OwnedFd, entry: &[u8]) -> io::Result<Vec<DirId>> {
    let name = OsStr::from_bytes(entry);
    match FileType::from_raw_mode(stat(dir, entry)?.st_mode) {
        FileType::Directory => {
            let fd = open_beneath(dir, name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
            Ok(read_record(volume, fd).map(|record| record.parents).unwrap_or_default())
        }
        FileType::RegularFile => {
            let file = File::from(open_beneath(dir, name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?);
            let mut bytes = vec![0; usize::from(volume.record.header_len)];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(match FileHeader::decode(&bytes, &volume.keys.header, volume.record.volume) {
                Ok(FileHeader { parents: Parents::Bound(ids), .. }) => ids,
                _ => Vec::new(),
            })
        }
        _ => Ok(Vec::new()),
    }
}

/// The id that most of what stands in the directory names, and that most names in it authenticate under.
fn find(volume: &Volume, dir: &OwnedFd, above: DirId) -> io::Result<DirId> {
    let mut entries = Vec::new();
    scan(dir, |entry| {
        if matches!(classify(entry), Entry::Short | Entry::Long) && entries.len() < ASKED {
            entries.push(entry.to_vec());
        }
    })?;
    let mut votes: HashMap<DirId, usize> = HashMap::new();
    for entry in &entries {
        // What can't be read says nothing.
        for id in parents(volume, dir, entry).unwrap_or_default() {
            *votes.entry(id).or_default() += 1;
        }
    }
    let mut ids: Vec<(DirId, usize)> = votes.into_iter().collect();
    ids.retain(|(id, _)| *id != above);
    ids.sort_by_key(|(id, votes)| (std::cmp::Reverse(*votes), *id));
    let fits = |id: &DirId| {
        let good = entries.iter().filter(|entry| matches!(read_name(volume, dir, id, entry), Named::Good(_)));
        good.count() * 2 > entries.len()
    };
    let told = "nothing in it tells its id: restore its record .hyokfs.dir from a backup of the store";
    // Plain names prove nothing, so there the votes alone must decide.
    let tie = matches!(&ids[..], [(_, first), (_, second), ..] if first == second);
    if tie && volume.record.names == NameMode::Plain {
        return Err(io::Error::other(told));
    }
    ids.into_iter().map(|(id, _)| id).find(fits).ok_or_else(|| io::Error::other(told))
}

/// Writes the record of `dir`, which stands in `above`; gives its id. An empty directory gets a new one.
pub(super) fn rebuild(volume: &Volume, dir: &OwnedFd, above: DirId) -> io::Result<DirId> {
    let random = |_| io::Error::other("the system gave no random numbers: try again");
    let id = if is_visibly_empty(dir)? { DirId::random().map_err(random)? } else { find(volume, dir, above)? };
    let record = DirRecord { dir: id, parents: vec![above] };
    let target = record.encode(volume.record.volume, &volume.keys.header);
    let temp = format!("{TEMPORARY_PREFIX}{}", FileId::random().map_err(random)?);
    rustix::fs::symlinkat(target, dir, &temp)?;
    if let Err(error) = rustix::fs::renameat(dir, &temp, dir, DIR_RECORD) {
        let _ = rustix::fs::unlinkat(dir, &temp, AtFlags::empty());
        return Err(error.into());
    }
    rustix::fs::fsync(dir)?;
    Ok(id)
}
