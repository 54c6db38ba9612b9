//! What was found, and what was done about it.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// What is wrong with an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The volume record or its copy is missing, altered or old.
    VolumeRecord,
    /// A directory's record is missing or altered.
    DirectoryRecord,
    /// A file or directory stands in a directory where it does not belong.
    Moved,
    /// A name does not authenticate, or the symlink with a long one is missing or altered.
    Name,
    /// Neither its name nor its contents are of this volume.
    Foreign,
    /// A file's header does not authenticate.
    Header,
    /// A file's key is not to be had from its header.
    Key,
    /// Pages of a file are lost.
    Pages,
    /// A symlink's target is lost.
    Target,
    /// An extended attribute is lost.
    Attribute,
    /// The store's filesystem could not read it.
    Unreadable,
    /// An interrupted operation left it; it holds nothing.
    Leftover,
}

impl Kind {
    /// The word of the report.
    pub fn word(self) -> &'static str {
        match self {
            Kind::VolumeRecord => "volume-record",
            Kind::DirectoryRecord => "directory-record",
            Kind::Moved => "moved",
            Kind::Name => "name",
            Kind::Foreign => "foreign",
            Kind::Header => "header",
            Kind::Key => "key",
            Kind::Pages => "pages",
            Kind::Target => "target",
            Kind::Attribute => "attribute",
            Kind::Unreadable => "unreadable",
            Kind::Leftover => "leftover",
        }
    }
}

/// A run of lost pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// The first lost page.
    pub first_page: u64,
    /// The last lost page.
    pub last_page: u64,
    /// The first lost plaintext byte.
    pub from: u64,
    /// The first plaintext byte after the run.
    pub to: u64,
}

/// What `--repair` does about an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cure {
    /// Nothing that would not lose what is left.
    None,
    /// Removes it: it holds nothing.
    Remove,
    /// Writes a directory's record again, from what stands in it; else puts the directory aside.
    Rebuild,
    /// Puts it back where it belongs, else aside.
    Aside {
        /// The directories it may stand in.
        home: Vec<crate::format::DirId>,
    },
    /// Puts it aside, but only if that is asked for: a part of it can still be read where it is.
    AsideIfAsked,
    /// Removes the attribute, its bytes are kept aside.
    Attribute(std::ffi::OsString),
    /// Writes the volume record and its copy from the good one.
    Records,
}

/// One damaged or left-over item.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Where it is, from the store's root.
    #[serde(serialize_with = "path_text")]
    pub path: Vec<u8>,
    /// Its plaintext path, where names were to be shown and could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The id of the file or directory, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What kind of damage.
    pub kind: Kind,
    /// What is wrong, in words.
    pub what: String,
    /// What is left of it.
    pub recoverable: String,
    /// The lost pages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
    /// Whether `--repair` has mended it.
    pub mended: bool,
    #[serde(skip)]
    pub(super) cure: Cure,
}

/// One action of `--repair`.
#[derive(Debug, Clone, Serialize)]
pub struct Action {
    /// What it was done to, from the store's root.
    #[serde(serialize_with = "path_text")]
    pub path: Vec<u8>,
    /// What was done, or was to be done.
    pub action: String,
    /// Why it could not be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The outcome.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The volume.
    pub volume: String,
    /// Regular files that were looked at.
    pub files: u64,
    /// Directories, the root among them.
    pub directories: u64,
    /// Symlinks.
    pub links: u64,
    /// Pipes, sockets and devices, of which only the names can be checked.
    pub special: u64,
    /// Extended attributes.
    pub attributes: u64,
    /// Plaintext bytes that were read and authenticated.
    pub bytes: u64,
    /// How long it took.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub duration: Duration,
    /// Plaintext bytes per second, in millions.
    pub megabytes_per_second: f64,
    /// Items in `.hyokfs.lost`, which are no part of the volume.
    pub set_aside: u64,
    /// Everything damaged or left over, by path.
    pub findings: Vec<Finding>,
    /// What `--repair` did.
    pub actions: Vec<Action>,
    /// How many findings are still there.
    pub remaining: u64,
    /// Whether the volume is clean now.
    pub clean: bool,
}

/// A path of the store as text: what is no UTF-8 is replaced.
pub fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { String::from_utf8_lossy(path).into_owned() }
}

fn path_text<S: Serializer>(path: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&shown(path))
}

fn seconds<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(span.as_secs_f64())
}

/// Lost pages as runs; `pages` is sorted.
pub(super) fn runs(pages: &[u64], range: impl Fn(u64) -> (u64, u64)) -> Vec<Lost> {
    let mut runs: Vec<Lost> = Vec::new();
    for &page in pages {
        let (from, to) = range(page);
        match runs.last_mut() {
            Some(run) if run.last_page + 1 == page => (run.last_page, run.to) = (page, to),
            _ => runs.push(Lost { first_page: page, last_page: page, from, to }),
        }
    }
    runs
}

/// "pages 3..4, 7 of 10".
pub(super) fn in_words(lost: &[Lost], pages: u64) -> String {
    const SHOWN: usize = 8;
    let run = |run: &Lost| match run.last_page - run.first_page {
        0 => run.first_page.to_string(),
        _ => format!("{}..{}", run.first_page, run.last_page),
    };
    let mut text = lost.iter().take(SHOWN).map(run).collect::<Vec<_>>().join(", ");
    if lost.len() > SHOWN {
        text.push_str(&format!(" and {} more runs", lost.len() - SHOWN));
    }
    let one = matches!(lost, [run] if run.first_page == run.last_page);
    format!("{} {text} of {pages}", if one { "page" } else { "pages" })
}

#[cfg(test)]
mod tests {
    use super::{in_words, runs};

    #[test]
    fn pages_are_told_as_runs() {
        let lost = runs(&[3, 4, 7], |page| (page * 10, page * 10 + 10));
        assert_eq!(lost.len(), 2);
        assert_eq!((lost[0].from, lost[0].to, lost[1].from, lost[1].to), (30, 50, 70, 80));
        assert_eq!(in_words(&lost, 10), "pages 3..4, 7 of 10");
        assert_eq!(in_words(&lost[1..], 10), "page 7 of 10");
    }
}
