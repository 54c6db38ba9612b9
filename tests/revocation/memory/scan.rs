//! Looks through all readable memory of a process, as root.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use super::needles::Needle;

/// Where needles were found.
#[derive(Default)]
pub struct Found {
    /// How many places, by kind.
    pub kinds: BTreeMap<&'static str, usize>,
    /// The first places, in words.
    pub places: Vec<String>,
    /// Bytes that were read.
    pub read: u64,
    /// Mappings that the kernel did not let us read (of secret memory, of the kernel's own).
    pub refused: Vec<String>,
}

impl Found {
    pub fn of(&self, kind: &str) -> usize {
        self.kinds.get(kind).copied().unwrap_or(0)
    }
}

struct Mapping {
    start: u64,
    end: u64,
    name: String,
}

fn mappings(pid: u32) -> Vec<Mapping> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let readable = fields.next()?.starts_with('r');
        let name = fields.nth(3).unwrap_or("anonymous").to_owned();
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((readable, Mapping { start: number(start)?, end: number(end)?, name }))
    };
    text.lines().filter_map(parse).filter(|(readable, _)| *readable).map(|(_, mapping)| mapping).collect()
}

/// The threads' names and stack pointers.
fn threads(pid: u32) -> Vec<(String, u64)> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
        let call = fs::read_to_string(entry.path().join("syscall")).unwrap_or_default();
        let pointer = call.split_whitespace().rev().nth(1).and_then(|text| text.strip_prefix("0x"));
        if let Some(pointer) = pointer.and_then(|text| u64::from_str_radix(text, 16).ok()) {
            threads.push((name, pointer));
        }
    }
    threads
}

const CHUNK: usize = 1 << 20;
/// Needles that lie across two chunks are found too.
const OVERLAP: usize = 128;

/// Looks for the needles in everything that is readable.
pub fn scan(pid: u32, needles: &[Needle]) -> Found {
    // Three bytes decide quickly that nothing begins here, eight lead to the candidates.
    let mut filter = vec![0_u64; 1 << 18];
    let mut heads: HashMap<u64, Vec<usize>> = HashMap::new();
    let head = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());
    for (index, needle) in needles.iter().enumerate() {
        assert!(needle.bytes.len() <= OVERLAP);
        let three = (head(&needle.bytes) & 0xff_ffff) as usize;
        filter[three >> 6] |= 1 << (three & 63);
        heads.entry(head(&needle.bytes)).or_default().push(index);
    }
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let threads = threads(pid);
    let mut found = Found::default();
    let mut buffer = vec![0; CHUNK + OVERLAP];
    for mapping in mappings(pid) {
        let mut at = mapping.start;
        while at < mapping.end {
            let length = usize::try_from(mapping.end - at).unwrap().min(CHUNK + OVERLAP);
            match memory.read_exact_at(&mut buffer[..length], at) {
                Ok(()) => {}
                Err(error) => {
                    found.refused.push(format!("{} ({error})", mapping.name));
                    break;
                }
            }
            search(&buffer[..length], at, CHUNK, needles, &filter, &heads, &mut |index, address| {
                let kind = needles[index].kind;
                *found.kinds.entry(kind).or_default() += 1;
                if found.places.len() < 40 {
                    let thread = threads.iter().find(|(_, sp)| (mapping.start..mapping.end).contains(sp));
                    let whose = thread.map_or_else(
                        || mapping.name.clone(),
                        |(name, sp)| format!("stack of {name}, {} from its top", *sp as i64 - address as i64),
                    );
                    let offset = address - mapping.start;
                    found.places.push(format!("{kind} at {address:#x} ({whose}, {offset:#x} into the mapping)"));
                }
            });
            found.read += length.min(CHUNK) as u64;
            at += CHUNK as u64;
        }
    }
    found
}

fn search(
    bytes: &[u8],
    base: u64,
    own: usize,
    needles: &[Needle],
    filter: &[u64],
    heads: &HashMap<u64, Vec<usize>>,
    hit: &mut impl FnMut(usize, u64),
) {
    static ZEROS: [u8; 4096] = [0; 4096];
    let mut at = 0;
    while at + 8 <= bytes.len() && at < own {
        let page_end = (at + 4096).min(bytes.len());
        // A needle may begin in the last bytes of a page that is zero up to there; so the next page is looked at as well.
        if bytes[at..page_end] == ZEROS[..page_end - at] {
            at = page_end;
            continue;
        }
        let end = page_end.min(own).min(bytes.len() - 7);
        for here in at..end {
            let three =
                usize::from(bytes[here]) | usize::from(bytes[here + 1]) << 8 | usize::from(bytes[here + 2]) << 16;
            if filter[three >> 6] & 1 << (three & 63) == 0 {
                continue;
            }
            let head = u64::from_le_bytes(bytes[here..here + 8].try_into().unwrap());
            for &index in heads.get(&head).map_or(&[][..], Vec::as_slice) {
                if bytes[here..].starts_with(&needles[index].bytes) {
                    hit(index, base + here as u64);
                }
            }
        }
        at = page_end;
    }
}

/// The scanner finds what is there: at page borders, at chunk borders, and in its own process.
#[test]
fn the_scanner_finds_what_is_there() -> io::Result<()> {
    let mut haystack = vec![0_u8; 3 * CHUNK];
    let secret: Vec<u8> = crate::common::noise(0x5ca9, 32);
    let needles = [Needle { kind: "planted", bytes: secret.iter().map(|byte| byte ^ 0x55).collect() }];
    let here = haystack.as_ptr() as usize;
    // Relative to the mapping's chunks any of these may straddle a border; the last is at the very end.
    for at in [5, 4096 - here % 4096 - 16, CHUNK - 16, 2 * CHUNK - here % CHUNK - 9, 3 * CHUNK - 32] {
        for (to, from) in haystack[at..].iter_mut().zip(&secret) {
            *to = from ^ 0x55;
        }
    }
    let found = scan(std::process::id(), &needles);
    // The needle itself is in memory too.
    assert!(found.of("planted") >= 6, "{:?}", found.places);
    assert!(found.read > 3 << 20);
    drop(haystack);
    Ok(())
}
