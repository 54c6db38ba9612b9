//! Mends what was found. Runs alone, after everything was looked at; every action is reported, and none removes
//! anything that holds something: that is put aside into `.hyokfs.lost`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::rebuild::rebuild;
use super::report::{Action, Cure, Finding, shown};
use super::small::fetch;
use super::walk::{Named, is_visibly_empty, join, read_name, read_record, scan, stat};
use super::{LOST, Options};
use crate::format::DirId;
use crate::format::name::{Entry, LONG_SUFFIX, NameMode, classify, sidecar_of};
use crate::format::volume::Volume;
use crate::store::{Store, open_beneath};

/// The list of what was put aside, in [`LOST`].
const LIST: &str = "moved.jsonl";

/// How deep the store may be nested for the search of directories.
const DEEPEST: usize = 4096;

/// What has been moved so far: from where, to where, both from the store's root.
type Moves = Vec<(Vec<u8>, Vec<u8>)>;

struct Repair<'a> {
    store: &'a Store,
    volume: &'a Volume,
    actions: Vec<Action>,
    moves: Moves,
    homes: Option<HashMap<DirId, Vec<u8>>>,
    stamp: u64,
    next: u32,
}

/// Acts on `findings` and marks those that are mended.
pub(super) fn run(
    store: &Store,
    volume: &Volume,
    record: Option<&[u8]>,
    findings: &mut [Finding],
    options: Options,
) -> Vec<Action> {
    let stamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let mut repair = Repair { store, volume, actions: Vec::new(), moves: Vec::new(), homes: None, stamp, next: 0 };
    repair.records(record, findings);
    if options.rebuild_directories {
        for finding in findings.iter_mut().filter(|finding| finding.cure == Cure::Rebuild) {
            finding.mended = repair.rebuild(finding);
        }
    }
    // The deepest first: what goes home must not take others' paths with it before they were used.
    let mut order: Vec<usize> = (0..findings.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(depth(&findings[*at].path)));
    for &at in &order {
        if let Cure::Aside { home } = &findings[at].cure
            && !home.is_empty()
        {
            let home = home.clone();
            findings[at].mended = repair.bring_home(&findings[at], &home);
        }
    }
    for finding in findings.iter_mut() {
        match finding.cure.clone() {
            Cure::Remove => finding.mended = repair.remove(finding),
            Cure::Attribute(key) => finding.mended = repair.attribute(finding, &key),
            _ => {}
        }
    }
    // The highest first: what goes aside with its directory need not go by itself.
    order.reverse();
    let mut aside: Vec<Vec<u8>> = Vec::new();
    for &at in &order {
        let finding = &findings[at];
        if finding.mended {
            continue;
        }
        if aside.iter().any(|above| is_below(&finding.path, above)) {
            findings[at].mended = true;
            continue;
        }
        let wanted = match finding.cure {
            Cure::Aside { .. } | Cure::Rebuild => true,
            Cure::AsideIfAsked => options.set_aside_damaged,
            _ => false,
        };
        if wanted && repair.set_aside(finding) {
            aside.push(finding.path.clone());
            findings[at].mended = true;
        }
    }
    for finding in findings.iter_mut() {
        // Two things may be wrong with one item; where one moved it out of the volume, the other is gone too.
        finding.mended |= aside.iter().any(|above| finding.path == *above || is_below(&finding.path, above));
    }
    if !repair.actions.is_empty()
        && let Err(error) = store.sync()
    {
        repair.note(b"", "synced the store", Err(error));
    }
    repair.actions
}

/// How many items lie in `.hyokfs.lost`.
pub(super) fn count_set_aside(store: &Store) -> u64 {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let Ok(fd) = open_beneath(store.root(), OsStr::new(LOST), flags, Mode::empty()) else { return 0 };
    let mut count = 0;
    let counted = scan(fd, |entry| count += u64::from(entry != LIST.as_bytes() && !entry.ends_with(b".name")));
    counted.map_or(0, |()| count)
}

fn depth(path: &[u8]) -> usize {
    path.iter().filter(|byte| **byte == b'/').count()
}

fn is_below(path: &[u8], above: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with(b"/"))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// The entry that a long name's symlink belongs to.
fn long_of(sidecar: &[u8]) -> Option<&[u8]> {
    sidecar.strip_suffix(LONG_SUFFIX.as_bytes()).filter(|_| classify(sidecar) == Entry::Sidecar)
}

fn name_of(entry: &[u8]) -> &OsStr {
    OsStr::from_bytes(entry)
}

impl Repair<'_> {
    fn note(&mut self, path: &[u8], action: impl Into<String>, done: io::Result<()>) -> bool {
        let error = done.err().map(|error| error.to_string());
        let ok = error.is_none();
        self.actions.push(Action { path: path.to_vec(), action: action.into(), error });
        ok
    }

    /// Where something that stood at `path` is now.
    fn now(&self, path: &[u8]) -> Vec<u8> {
        let mut path = path.to_vec();
        for (from, to) in &self.moves {
            if path == *from {
                path.clone_from(to);
            } else if let Some(rest) = path.strip_prefix(&from[..]).filter(|rest| rest.starts_with(b"/")) {
                path = [to, rest].concat();
            }
        }
        path
    }

    /// Opens a directory of the store by its path, one name after the other.
    fn open_dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut fd = open_beneath(self.store.root(), OsStr::new("."), flags, Mode::empty())?;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            fd = open_beneath(&fd, name_of(part), flags, Mode::empty())?;
        }
        Ok(fd)
    }

    /// The directory that an entry stands in, and its name there.
    fn place(&self, path: &[u8]) -> io::Result<(OwnedFd, Vec<u8>)> {
        let path = self.now(path);
        let (dir, entry) = split(&path);
        Ok((self.open_dir(dir)?, entry.to_vec()))
    }

    fn is_long(&self, entry: &[u8]) -> bool {
        self.volume.record.names == NameMode::Encrypted && classify(entry) == Entry::Long
    }

    fn records(&mut self, record: Option<&[u8]>, findings: &mut [Finding]) {
        let Some(bytes) = record else { return };
        for finding in findings.iter_mut().filter(|finding| finding.cure == Cure::Records) {
            let done = self.store.write_record(bytes).map_err(|error| io::Error::other(error.to_string()));
            finding.mended = self.note(&finding.path, "rewrote it from the authentic one", done);
        }
    }

    /// Writes a directory's record again.
    fn rebuild(&mut self, finding: &Finding) -> bool {
        let done = (|| {
            let dir = self.open_dir(&finding.path)?;
            let above = match split(&finding.path).0 {
                b"" => DirId(self.volume.keys.root),
                above => read_record(self.volume, self.open_dir(above)?).map_err(io::Error::other)?.dir,
            };
            rebuild(self.volume, &dir, above)
        })();
        match done {
            Ok(id) => {
                // What is found from here on may stand in it.
                self.homes = None;
                self.note(&finding.path, format!("wrote its record again: it is directory {id}; verify again"), Ok(()))
            }
            Err(error) => self.note(&finding.path, "was to write its record again", Err(error)),
        }
    }

    fn remove(&mut self, finding: &Finding) -> bool {
        let place = self.place(&finding.path);
        if let Ok((dir, entry)) = &place
            && let Some(long) = long_of(entry)
            && stat(dir, long).is_ok()
        {
            return self.note(&finding.path, "kept it: what it names is back", Ok(()));
        }
        let done = place.and_then(|(dir, entry)| {
            remove_one(&dir, &entry)?;
            if self.is_long(&entry) {
                match rustix::fs::unlinkat(&dir, name_of(&sidecar_of(&entry)), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        });
        self.note(&finding.path, "removed it: it held nothing", done)
    }

    /// Keeps the bytes of an attribute aside, then removes it.
    fn attribute(&mut self, finding: &Finding, key: &OsStr) -> bool {
        let kept = (|| {
            let fd = match self.place(&finding.path)? {
                (dir, entry) if entry.is_empty() => dir,
                (dir, entry) => open_beneath(&dir, name_of(&entry), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?,
            };
            let value = fetch(&fd, key)?;
            let (lost, name) = self.lost()?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            self.list(&lost, finding, &name, Some(key))?;
            let mut file = File::from(open_beneath(&lost, OsStr::new(&name), flags, Mode::from_raw_mode(0o600))?);
            file.write_all(&value)?;
            file.sync_all()?;
            rustix::fs::fremovexattr(&fd, key)?;
            Ok(name)
        })();
        let attribute = key.to_string_lossy();
        match kept {
            Ok(name) => {
                let action = format!("removed the attribute {attribute}; its bytes are in {LOST}/{name}");
                self.note(&finding.path, action, Ok(()))
            }
            Err(error) => self.note(&finding.path, format!("was to remove the attribute {attribute}"), Err(error)),
        }
    }

    /// Moves an item to the directory that it belongs to, if its name authenticates there and is free.
    fn bring_home(&mut self, finding: &Finding, home: &[DirId]) -> bool {
        for id in home {
            let Some(target) = self.homes().get(id).cloned() else { continue };
            let target = self.now(&target);
            let from = self.now(&finding.path);
            if target == split(&from).0 || target == from || is_below(&target, &from) {
                continue;
            }
            let done = (|| {
                let (dir, entry) = self.place(&finding.path)?;
                let into = self.open_dir(&target)?;
                // A long name's symlink stands beside it, or has stayed behind.
                let good = |beside: &OwnedFd| matches!(read_name(self.volume, beside, id, &entry), Named::Good(_));
                let along = good(&dir);
                if !along && !good(&into) {
                    return Ok(false);
                }
                match stat(&into, &entry) {
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                    Ok(_) => return Ok(false),
                }
                if along && self.is_long(&entry) {
                    move_sidecar(&dir, &sidecar_of(&entry), &into, &sidecar_of(&entry))?;
                }
                move_new(&dir, &entry, &into, &entry)?;
                Ok(true)
            })();
            match done {
                Ok(false) => {}
                Ok(true) => {
                    let to = join(&target, split(&from).1);
                    self.note(&finding.path, format!("moved it back to {}", shown(&to)), Ok(()));
                    self.moves.push((from, to));
                    return true;
                }
                Err(error) => {
                    self.note(&finding.path, format!("was to move it back to {}", shown(&target)), Err(error));
                }
            }
        }
        false
    }

    fn set_aside(&mut self, finding: &Finding) -> bool {
        let done = (|| {
            let (dir, entry) = self.place(&finding.path)?;
            let (lost, name) = self.lost()?;
            self.list(&lost, finding, &name, None)?;
            move_new(&dir, &entry, &lost, name.as_bytes())?;
            if self.is_long(&entry) {
                move_sidecar(&dir, &sidecar_of(&entry), &lost, &sidecar_of(name.as_bytes()))?;
            }
            Ok(name)
        })();
        match done {
            Ok(name) => self.note(&finding.path, format!("put it aside as {LOST}/{name}"), Ok(())),
            Err(error) => self.note(&finding.path, format!("was to put it aside into {LOST}"), Err(error)),
        }
    }

    /// The directory for what is put aside, and a free name in it.
    fn lost(&mut self) -> io::Result<(OwnedFd, String)> {
        match rustix::fs::mkdirat(self.store.root(), LOST, Mode::RWXU) {
            Ok(()) => rustix::fs::fsync(self.store.root())?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let lost = open_beneath(self.store.root(), OsStr::new(LOST), flags, Mode::empty())?;
        loop {
            self.next += 1;
            let name = format!("{}-{:04}", self.stamp, self.next);
            match stat(&lost, name.as_bytes()) {
                Err(Errno::NOENT) => return Ok((lost, name)),
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
        }
    }

    /// Writes down, durably and before it is done, what goes where.
    fn list(&self, lost: &OwnedFd, finding: &Finding, name: &str, attribute: Option<&OsStr>) -> io::Result<()> {
        let line = serde_json::json!({
            "from": shown(&finding.path), "to": name, "id": finding.id, "what": finding.what,
            "attribute": attribute.map(OsStr::to_string_lossy),
        });
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND;
        let mut list = File::from(open_beneath(lost, OsStr::new(LIST), flags, Mode::from_raw_mode(0o600))?);
        list.write_all(format!("{line}\n").as_bytes())?;
        list.sync_all()
    }

    /// Where every directory is that stands where it belongs.
    fn homes(&mut self) -> &HashMap<DirId, Vec<u8>> {
        if self.homes.is_none() {
            let mut found = HashMap::new();
            if let Ok(root) = self.open_dir(b"") {
                let id = DirId(self.volume.keys.root);
                found.insert(id, Vec::new());
                self.find(&root, id, &[], 0, &mut found);
            }
            self.homes = Some(found);
        }
        self.homes.get_or_insert_default()
    }

    fn find(&self, dir: &OwnedFd, id: DirId, path: &[u8], level: usize, found: &mut HashMap<DirId, Vec<u8>>) {
        let mut inner = Vec::new();
        let read = scan(dir, |entry| {
            let directory = stat(dir, entry).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
            if directory && matches!(classify(entry), Entry::Short | Entry::Long) {
                inner.push(entry.to_vec());
            }
        });
        if read.is_err() || level >= DEEPEST {
            return;
        }
        for entry in inner {
            if !matches!(read_name(self.volume, dir, &id, &entry), Named::Good(_)) {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let Ok(fd) = open_beneath(dir, name_of(&entry), flags, Mode::empty()) else { continue };
            let Ok(record) = read_record(self.volume, &fd) else { continue };
            if record.parents.contains(&id) {
                let path = join(path, &entry);
                self.find(&fd, record.dir, &path, level + 1, found);
                found.insert(record.dir, path);
            }
        }
    }
}

/// Removes a file, a symlink, or a directory that holds nothing visible.
fn remove_one(dir: &OwnedFd, entry: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name_of(entry), AtFlags::empty()) {
        Ok(()) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let own = open_beneath(dir, name_of(entry), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    if !is_visibly_empty(&own)? {
        return Err(Errno::NOTEMPTY.into());
    }
    let mut inner = Vec::new();
    scan(&own, |name| inner.push(name.to_vec()))?;
    for name in inner {
        rustix::fs::unlinkat(&own, name_of(&name), AtFlags::empty())?;
    }
    Ok(rustix::fs::unlinkat(dir, name_of(entry), AtFlags::REMOVEDIR)?)
}

/// Renames to a name that must be free.
fn move_new(from: &OwnedFd, entry: &[u8], to: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::renameat_with(from, name_of(entry), to, name_of(name), RenameFlags::NOREPLACE) {
        // A store that can't; the store is locked and the name was found free.
        Err(Errno::INVAL | Errno::NOSYS) => Ok(rustix::fs::renameat(from, name_of(entry), to, name_of(name))?),
        other => Ok(other?),
    }
}

/// Takes a long name's symlink along, where there is one.
fn move_sidecar(from: &OwnedFd, entry: &[u8], to: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::renameat(from, name_of(entry), to, name_of(name)) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
