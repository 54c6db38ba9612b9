//! A module uses only modules of a lower rank. The ranks are read from the table in `src/lib.rs`, so that the map a
//! newcomer reads and the rule that is enforced can't differ.
//!
//! Test code (files named `tests.rs`, folders named `tests`, and what follows `#[cfg(test)]` `mod … {`) is free.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn source_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// `module -> rank`, from lines such as ``//! | 4 | [`file`] | plaintext bytes |``.
fn ranks(lib: &str) -> BTreeMap<String, u32> {
    lib.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("//!")?.trim().strip_prefix('|')?.split('|').map(str::trim);
            let rank = cells.next()?.parse().ok()?;
            let module = cells.next()?.strip_prefix("[`")?.strip_suffix("`]")?.trim_start_matches("mod@");
            Some((module.to_owned(), rank))
        })
        .collect()
}

/// The modules that `lib.rs` declares.
fn declared(lib: &str) -> Vec<String> {
    lib.lines()
        .filter_map(|line| {
            let line = line.strip_prefix("pub ").unwrap_or(line);
            Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
        })
        .collect()
}

/// The source without comments, string and character literals (their places stay, as spaces), cut before its tests.
fn code_only(source: &str) -> String {
    let source = match source.find("#[cfg(test)]\nmod ") {
        // `mod tests;` names a file that is left out anyway, and code may follow it; `mod tests {` is the rest.
        Some(at) if source[at..].lines().nth(1).is_some_and(|line| line.ends_with('{')) => &source[..at],
        _ => source,
    };
    let bytes = source.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    let blank =
        |out: &mut Vec<u8>, part: &[u8]| out.extend(part.iter().map(|&b| if b == b'\n' { b'\n' } else { b' ' }));
    while i < bytes.len() {
        let rest = &bytes[i..];
        let taken = if rest.starts_with(b"//") {
            rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            rest.windows(2).position(|pair| pair == b"*/").map_or(rest.len(), |at| at + 2)
        } else if rest.starts_with(b"r#\"") {
            rest.windows(2).skip(3).position(|pair| pair == b"\"#").map_or(rest.len(), |at| at + 5)
        } else if rest[0] == b'"' {
            let mut end = 1;
            while end < rest.len() && rest[end] != b'"' {
                end += if rest[end] == b'\\' { 2 } else { 1 };
            }
            (end + 1).min(rest.len())
        } else if rest.starts_with(b"'\"'") || rest.starts_with(b"b'\"'") {
            3 + usize::from(rest[0] == b'b')
        } else {
            0
        };
        if taken == 0 {
            out.push(rest[0]);
            i += 1;
        } else {
            blank(&mut out, &rest[..taken]);
            i += taken;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn ident(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    &text[..end]
}

/// The top-level names in a `{a::b, c, self}` group that starts at `text`.
fn group(text: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let mut expect = false;
    let mut names = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            '{' => {
                depth += 1;
                expect = depth == 1;
            }
            '}' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            ',' if depth == 1 => expect = true,
            c if c.is_whitespace() => {}
            _ if expect && depth == 1 => {
                names.push(ident(&text[at..]));
                expect = false;
            }
            _ => {}
        }
    }
    names
}

/// Every top-level module that `code`, standing in `module` at `depth` path segments below the crate, names:
/// (line, name).
fn uses(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut note = |at: usize, after: &str| {
        let line = code[..at].matches('\n').count() + 1;
        let after = after.trim_start();
        if after.starts_with('{') {
            found.extend(group(after).into_iter().map(|name| (line, name.to_owned())));
        } else {
            found.push((line, ident(after).to_owned()));
        }
    };
    for (at, token) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            note(at, &code[at + token.len()..]);
        }
    }
    // `super::super::x` climbs too: as many as the depth reach the crate.
    let climb = "super::".repeat(depth);
    if depth > 0 {
        for (at, token) in code.match_indices(&climb) {
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                note(at, &code[at + token.len()..]);
            }
        }
    }
    found.retain(|(_, name)| !name.is_empty() && name != "super");
    found
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "tests" {
                files(&path, out);
            }
        } else if name.ends_with(".rs") && name != "tests.rs" && !name.ends_with("_tests.rs") {
            out.push(path);
        }
    }
}

/// What breaks the rule in one file: one line of text each.
fn breaches(file: &Path, source: &str, ranks: &BTreeMap<String, u32>) -> Vec<String> {
    let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let module = parts[0].trim_end_matches(".rs").to_owned();
    let Some(&own) = ranks.get(&module) else { return vec![format!("{}: {module} has no rank", file.display())] };
    let last = parts.last().unwrap();
    let depth = if last == "mod.rs" { parts.len() - 1 } else { parts.len() };
    uses(&code_only(source), depth)
        .into_iter()
        .filter(|(_, name)| *name != module)
        .filter_map(|(line, name)| match ranks.get(&name) {
            Some(&rank) if rank < own => None,
            Some(&rank) => Some(format!("{}:{line}: {module} (rank {own}) uses {name} (rank {rank})", file.display())),
            None => Some(format!("{}:{line}: {module} uses crate::{name}, which has no rank", file.display())),
        })
        .collect()
}

#[test]
fn every_module_has_a_rank() {
    let lib = fs::read_to_string(source_root().join("lib.rs")).unwrap();
    let ranks = ranks(&lib);
    let declared = declared(&lib);
    assert!(declared.len() >= 10, "lib.rs declares only {declared:?}");
    for module in &declared {
        assert!(ranks.contains_key(module), "lib.rs declares `{module}`, but its table gives it no rank");
    }
    for module in ranks.keys() {
        assert!(declared.contains(module), "the table of lib.rs ranks `{module}`, which isn't declared");
    }
}

#[test]
fn modules_use_only_lower_ranks() {
    let root = source_root();
    let ranks = ranks(&fs::read_to_string(root.join("lib.rs")).unwrap());
    let mut all = Vec::new();
    files(&root, &mut all);
    let mut wrong = Vec::new();
    for path in all.iter().filter(|path| !["lib.rs", "main.rs"].contains(&path.file_name().unwrap().to_str().unwrap()))
    {
        let source = fs::read_to_string(path).unwrap();
        wrong.extend(breaches(path.strip_prefix(&root).unwrap(), &source, &ranks));
    }
    assert!(wrong.is_empty(), "modules reach up or sideways:\n{}", wrong.join("\n"));
}

/// The rule itself is tested: each of these lines must be seen, and nothing else.
#[test]
fn the_parser_sees_what_it_should() {
    let ranks: BTreeMap<_, _> =
        [("low", 1), ("mid", 2), ("side", 2), ("high", 3)].map(|(name, rank)| (name.to_owned(), rank)).into();
    let seen = |file: &str, source: &str| breaches(Path::new(file), source, &ranks).len();
    assert_eq!(seen("mid/mod.rs", "use crate::low::Thing;\nuse crate::mid::Own;"), 0);
    assert_eq!(seen("mid/mod.rs", "use crate::high::Thing;"), 1);
    assert_eq!(seen("mid/mod.rs", "use crate::side::Thing;"), 1);
    assert_eq!(seen("mid/a.rs", "use crate::{low::{A, B}, high::C, side};"), 2);
    assert_eq!(seen("mid/a.rs", "fn f() { crate::high::call() }"), 1);
    assert_eq!(seen("mid/a.rs", "pub(in crate::high) fn f() {}"), 1);
    assert_eq!(seen("mid/a.rs", "use super::super::high::X;"), 1);
    assert_eq!(seen("mid/mod.rs", "use super::high::X;"), 1);
    assert_eq!(seen("mid/a.rs", "use super::high::X;"), 0, "super of mid/a.rs is mid");
    assert_eq!(seen("mid/a.rs", "// use crate::high::X;\n/* crate::high */ let s = \"crate::high\";"), 0);
    assert_eq!(seen("mid/a.rs", "let c = '\"'; use crate::high::X; let d = '\"';"), 1);
    assert_eq!(seen("mid/a.rs", "let r = r#\"crate::high::\"#; use crate::high::X;"), 1);
    assert_eq!(seen("mid/a.rs", "#[cfg(test)]\nmod tests {\n use crate::high::X;\n}"), 0);
    assert_eq!(seen("mid/a.rs", "#[cfg(test)]\nmod tests;\nuse crate::high::X;"), 1);
    assert_eq!(seen("mid/a.rs", "use crate::unknown::X;"), 1);
}
