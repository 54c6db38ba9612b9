//! Random operations, compared with a tree in memory after each; with remounts in between.

use std::collections::BTreeMap;

use hyokfs::fs::{Kind, SetAttr};
use proptest::prelude::*;

use crate::harness::*;

#[derive(Debug, Clone)]
enum Op {
    Create(u8, u8),
    Mkdir(u8, u8),
    Symlink(u8, u8),
    Unlink(u8, u8),
    Rmdir(u8, u8),
    Rename(u8, u8, u8, u8, bool),
    Link(u8, u8, u8, u8),
    Write(u8, u8, u16, u16),
    Truncate(u8, u8, u16),
    Remount(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let (d, n) = (0..5_u8, 0..4_u8);
    prop_oneof![
        3 => (d.clone(), n.clone()).prop_map(|(a, b)| Op::Create(a, b)),
        3 => (d.clone(), n.clone()).prop_map(|(a, b)| Op::Mkdir(a, b)),
        1 => (d.clone(), n.clone()).prop_map(|(a, b)| Op::Symlink(a, b)),
        2 => (d.clone(), n.clone()).prop_map(|(a, b)| Op::Unlink(a, b)),
        1 => (d.clone(), n.clone()).prop_map(|(a, b)| Op::Rmdir(a, b)),
        4 => (d.clone(), n.clone(), d.clone(), n.clone(), any::<bool>()).prop_map(|(a, b, c, d, x)| Op::Rename(a, b, c, d, x)),
        2 => (d.clone(), n.clone(), d.clone(), n.clone()).prop_map(|(a, b, c, d)| Op::Link(a, b, c, d)),
        3 => (d.clone(), n.clone(), 0..12_000_u16, 1..6_000_u16).prop_map(|(a, b, o, l)| Op::Write(a, b, o, l)),
        2 => (d, n, 0..14_000_u16).prop_map(|(a, b, s)| Op::Truncate(a, b, s)),
        1 => any::<bool>().prop_map(Op::Remount),
    ]
}

/// A tree by paths; files by number, so that links share.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, Node>,
    files: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Debug)]
enum Node {
    Dir,
    File(usize),
    Link(String),
}

impl Model {
    fn children(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        self.nodes.keys().filter(|key| key.starts_with(&prefix)).cloned().collect()
    }

    fn move_tree(&mut self, from: &str, to: &str) {
        for key in self.children(from).into_iter().chain([from.to_owned()]) {
            let node = self.nodes.remove(&key).unwrap();
            self.nodes.insert(format!("{to}{}", &key[from.len()..]), node);
        }
    }
}

/// The directory that number `d` means now: the root or one of those there are.
fn place(model: &Model, d: u8, n: u8) -> String {
    let dirs: Vec<&String> = model.nodes.iter().filter(|(_, node)| **node == Node::Dir).map(|(key, _)| key).collect();
    let name = if n == 3 { "n".repeat(200) } else { format!("n{n}") };
    match d as usize % (dirs.len() + 1) {
        0 => name,
        i => format!("{}/{name}", dirs[i - 1]),
    }
}

fn result(done: Result<(), hyokfs::fs::FsError>) -> i32 {
    match done {
        Ok(()) => 0,
        Err(error) => errno::<()>(Err(error)),
    }
}

#[allow(clippy::map_entry)] // the volume is asked first, then the model told
fn apply(w: &mut World, model: &mut Model, op: &Op) {
    match *op {
        Op::Create(d, n) => {
            let path = place(model, d, n);
            let (dir, name) = w.split(&path);
            let made = w.fs.create(&ME, dir, name, 0o644, 0, RW | libc::O_EXCL);
            if model.nodes.contains_key(&path) {
                assert_eq!(errno(made), libc::EEXIST);
            } else {
                let (attr, fh) = made.unwrap();
                w.fs.release(attr.ino, fh).unwrap();
                model.files.push(Vec::new());
                model.nodes.insert(path, Node::File(model.files.len() - 1));
            }
        }
        Op::Mkdir(d, n) => {
            let path = place(model, d, n);
            let (dir, name) = w.split(&path);
            let made = w.fs.mkdir(&ME, dir, name, 0o755, 0);
            if model.nodes.contains_key(&path) {
                assert_eq!(errno(made), libc::EEXIST);
            } else {
                made.unwrap();
                model.nodes.insert(path, Node::Dir);
            }
        }
        Op::Symlink(d, n) => {
            let path = place(model, d, n);
            let (dir, name) = w.split(&path);
            let made = w.fs.symlink(&ME, dir, name, path.as_bytes());
            if model.nodes.contains_key(&path) {
                assert_eq!(errno(made), libc::EEXIST);
            } else {
                made.unwrap();
                model.nodes.insert(path.clone(), Node::Link(path));
            }
        }
        Op::Unlink(d, n) => {
            let path = place(model, d, n);
            let expected = match model.nodes.get(&path) {
                None => libc::ENOENT,
                Some(Node::Dir) => libc::EISDIR,
                Some(_) => 0,
            };
            assert_eq!(result(w.unlink(&path)), expected);
            if expected == 0 {
                model.nodes.remove(&path);
            }
        }
        Op::Rmdir(d, n) => {
            let path = place(model, d, n);
            let expected = match model.nodes.get(&path) {
                None => libc::ENOENT,
                Some(Node::Dir) if model.children(&path).is_empty() => 0,
                Some(Node::Dir) => libc::ENOTEMPTY,
                Some(_) => libc::ENOTDIR,
            };
            assert_eq!(result(w.rmdir(&path)), expected);
            if expected == 0 {
                model.nodes.remove(&path);
            }
        }
        Op::Rename(a, b, c, d, exchange) => rename(w, model, &place(model, a, b), &place(model, c, d), exchange),
        Op::Link(a, b, c, d) => {
            let (from, to) = (place(model, a, b), place(model, c, d));
            let Some(node) = model.nodes.get(&from).cloned() else { return };
            let expected = match () {
                () if node == Node::Dir => libc::EPERM,
                () if model.nodes.contains_key(&to) => libc::EEXIST,
                () => 0,
            };
            assert_eq!(result(w.link(&from, &to).map(drop)), expected);
            if expected == 0 {
                model.nodes.insert(to, node);
            }
        }
        Op::Write(d, n, off, length) => {
            let path = place(model, d, n);
            let Some(Node::File(number)) = model.nodes.get(&path) else { return };
            let (off, length) = (usize::from(off), usize::from(length));
            let data = vec![(off + length) as u8 | 1; length];
            let ino = w.ino(&path);
            let fh = w.fs.open(&ME, ino, libc::O_WRONLY).unwrap();
            w.fs.write(ino, fh, off as u64, &data, off % 2 == 0, false).unwrap();
            w.fs.release(ino, fh).unwrap();
            let file = &mut model.files[*number];
            file.resize(file.len().max(off + length), 0);
            file[off..off + length].copy_from_slice(&data);
        }
        Op::Truncate(d, n, size) => {
            let path = place(model, d, n);
            let Some(Node::File(number)) = model.nodes.get(&path) else { return };
            let set = SetAttr { size: Some(size.into()), ..SetAttr::default() };
            assert_eq!(w.fs.setattr(&ME, w.ino(&path), &set).unwrap().size, u64::from(size));
            model.files[*number].resize(size.into(), 0);
        }
        Op::Remount(true) => w.remount(),
        Op::Remount(false) => w.crash(),
    }
}

fn rename(w: &World, model: &mut Model, from: &str, to: &str, exchange: bool) {
    let (node, target) = (model.nodes.get(from).cloned(), model.nodes.get(to).cloned());
    let below = |a: &str, b: &str| b.starts_with(&format!("{a}/"));
    // Places inside of what moves are none when the operation begins.
    if below(from, to) || below(to, from) {
        return;
    }
    let same = from == to || matches!((&node, &target), (Some(Node::File(a)), Some(Node::File(b))) if a == b);
    let linked = matches!((&node, &target), (Some(Node::Link(a)), Some(Node::Link(b))) if a == b);
    if linked {
        // Two names of one symlink, or two that are alike: the model can't tell.
        return;
    }
    let expected = match (&node, &target) {
        (None, _) => libc::ENOENT,
        (Some(_), None) if exchange => libc::ENOENT,
        _ if same || exchange => 0,
        (Some(Node::Dir), Some(Node::Dir)) if !model.children(to).is_empty() => libc::ENOTEMPTY,
        (Some(Node::Dir), Some(Node::File(_) | Node::Link(_))) => libc::ENOTDIR,
        (Some(Node::File(_) | Node::Link(_)), Some(Node::Dir)) => libc::EISDIR,
        _ => 0,
    };
    let flags = if exchange { libc::RENAME_EXCHANGE } else { 0 };
    assert_eq!(result(w.rename(from, to, flags)), expected, "{from} -> {to}");
    if expected != 0 || same {
        return;
    }
    if exchange {
        model.move_tree(from, "\u{1}");
        model.move_tree(to, from);
        model.move_tree("\u{1}", to);
    } else {
        model.nodes.remove(to);
        model.move_tree(from, to);
    }
}

fn compare(w: &World, model: &Model) {
    let mut seen = BTreeMap::new();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        for (name, kind) in w.list(&dir) {
            let name = name.into_string().unwrap();
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let attr = w.find(&path).unwrap();
            assert_eq!(attr.kind, kind);
            match model.nodes.get(&path) {
                Some(Node::Dir) if kind == Kind::Directory => todo.push(path.clone()),
                Some(Node::File(number)) if kind == Kind::File => {
                    let data = &model.files[*number];
                    assert_eq!(attr.size, data.len() as u64, "{path}");
                    assert!(w.get(&path).unwrap() == *data, "{path}");
                    let links = model.nodes.values().filter(|node| **node == Node::File(*number)).count();
                    assert_eq!(attr.nlink as usize, links);
                }
                Some(Node::Link(target)) if kind == Kind::Symlink => {
                    assert_eq!(w.fs.readlink(attr.ino).unwrap(), target.as_bytes());
                    assert_eq!(attr.size, target.len() as u64);
                }
                other => panic!("{path}: {kind:?}, but {other:?}"),
            }
            seen.insert(path, ());
        }
    }
    assert_eq!(seen.len(), model.nodes.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_agree_with_a_tree_in_memory(ops in proptest::collection::vec(op(), 1..60)) {
        let mut w = World::new();
        let mut model = Model::default();
        for op in &ops {
            apply(&mut w, &mut model, op);
        }
        compare(&w, &model);
        w.remount();
        compare(&w, &model);
    }
}
