//! The README can't drift: what it says to type is checked against the program, and the blocks marked
//! ```` ```sh run ```` are executed, in order, as one script.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn hyokfs() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_hyokfs"))
}

struct Block {
    line: usize,
    run: bool,
    text: String,
}

fn shell_blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    let mut foreign = false;
    for (number, line) in text.lines().enumerate() {
        if let Some(info) = line.strip_prefix("```") {
            if let Some(block) = open.take() {
                blocks.push(block);
            } else if foreign {
                foreign = false;
            } else {
                let words: Vec<_> = info.split_whitespace().collect();
                match words.first() {
                    Some(&"sh") => {
                        open = Some(Block { line: number + 1, run: words.contains(&"run"), text: String::new() });
                    }
                    _ => foreign = true,
                }
            }
        } else if let Some(block) = &mut open {
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    assert!(open.is_none() && !foreign, "a code block is never closed");
    blocks
}

fn documents() -> Vec<(PathBuf, String)> {
    let mut paths = vec![root().join("README.md")];
    if let Ok(docs) = fs::read_dir(root().join("docs")) {
        paths
            .extend(docs.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md")));
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path, text)
        })
        .collect()
}

fn help(words: &[&str]) -> Option<String> {
    let output = Command::new(hyokfs()).args(words).arg("--help").output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The options that a help text names: `--poll-interval`, `-o`.
fn options(help: &str) -> BTreeSet<String> {
    help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
        .filter(|word| word.starts_with('-') && !word.trim_matches('-').is_empty())
        .map(str::to_owned)
        .collect()
}

/// The words of each `hyokfs …` command in a shell text: continued lines joined, cut at `|`, `;`, `&`, `>`, `#`.
fn commands(text: &str) -> Vec<Vec<String>> {
    text.replace("\\\n", " ")
        .lines()
        .filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let at = words.iter().position(|word| *word == "hyokfs" || word.ends_with("/hyokfs"))?;
            let before_is_plain = words[..at]
                .iter()
                .all(|word| ["sudo", "$", "time", "run"].contains(word) || word.starts_with('-') || word.contains('='));
            before_is_plain.then(|| {
                words[at + 1..]
                    .iter()
                    .take_while(|word| !word.starts_with(['|', ';', '&', '>', '#', '<']))
                    .map(|word| word.trim_end_matches(';').to_owned())
                    .collect()
            })
        })
        .collect()
}

#[test]
fn every_command_and_option_exists() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (path, text) in documents() {
        for block in shell_blocks(&text) {
            for command in commands(&block.text) {
                seen += 1;
                let place = format!("{}:{}: hyokfs {}", path.display(), block.line, command.join(" "));
                let plain: Vec<_> = command.iter().map(String::as_str).take_while(|w| !w.starts_with('-')).collect();
                // The longest chain of words that the program knows as (sub)commands.
                let known = (1..=plain.len().min(2)).rev().find_map(|n| Some((n, help(&plain[..n])?)));
                let (depth, text) = match known {
                    Some(known) => known,
                    None if plain.is_empty() => (0, help(&[]).unwrap()),
                    None => {
                        wrong.push(format!("{place}: no such command"));
                        continue;
                    }
                };
                let options = options(&text);
                for word in &command[depth..] {
                    let name = word.split('=').next().unwrap();
                    if name.starts_with('-') && name != "-" && !options.contains(name) && name != "--version" {
                        wrong.push(format!("{place}: no option {name}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "the documents name what the program lacks:\n{}", wrong.join("\n"));
    assert!(seen >= 5, "only {seen} hyokfs commands found in the README's sh blocks");
}

#[test]
fn shell_blocks_parse() {
    for (path, text) in documents() {
        for block in shell_blocks(&text) {
            let status = Command::new("bash").args(["-n", "-c", &block.text]).status().unwrap();
            assert!(status.success(), "{}:{}: bash can't parse this block", path.display(), block.line);
        }
    }
}

#[test]
fn blocks_marked_run_work() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let blocks: Vec<_> = shell_blocks(&text).into_iter().filter(|block| block.run).collect();
    assert!(!blocks.is_empty(), "README.md has no block marked ```sh run");
    let home = tempfile::tempdir().unwrap();
    let mut script = String::from("set -euo pipefail\n");
    for block in &blocks {
        script.push_str(&format!("echo '== README.md:{}' >&2\n{}\n", block.line, block.text));
    }
    let real_home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    let or = |name: &str, sub: &str| std::env::var(name).unwrap_or_else(|_| format!("{real_home}/{sub}"));
    let target = std::env::var("CARGO_TARGET_DIR").map_or_else(|_| root().join("target"), PathBuf::from);
    let path = format!("{}:{}", hyokfs().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let log = fs::File::create(home.path().join("readme.log")).unwrap();
    let mut child = Command::new("bash")
        .args(["-c", &script])
        .current_dir(root())
        .env("HOME", home.path())
        .env("XDG_DATA_HOME", home.path().join("data"))
        .env("XDG_STATE_HOME", home.path().join("state"))
        .env("XDG_RUNTIME_DIR", home.path())
        .env("CARGO_HOME", or("CARGO_HOME", ".cargo"))
        .env("RUSTUP_HOME", or("RUSTUP_HOME", ".rustup"))
        .env("CARGO_TARGET_DIR", target)
        .env("PATH", path)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    let log = fs::read_to_string(home.path().join("readme.log")).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left: Vec<_> = mounts.lines().filter(|line| line.contains(home.path().to_str().unwrap())).collect();
    assert!(status.success(), "the README's commands failed ({status}):\n{log}");
    assert!(left.is_empty(), "the README's commands left mounts: {left:?}");
}

#[test]
fn the_block_parser_sees_what_it_should() {
    let text = "a\n```sh run\nhyokfs init --key local \\\n  S\nhyokfs status | jq .\n```\n```text\nhyokfs no\n```\n```sh\necho\n```\n";
    let blocks = shell_blocks(text);
    assert_eq!(blocks.iter().map(|b| (b.line, b.run)).collect::<Vec<_>>(), [(2, true), (10, false)]);
    assert_eq!(commands(&blocks[0].text), [vec!["init", "--key", "local", "S"], vec!["status"]]);
    assert!(
        options("  -o <OPTS>  x\n      --key <K>, [--lease=5m]")
            .is_superset(&["-o", "--key", "--lease"].map(str::to_owned).into())
    );
}
