//! The disk below the store: whether the kernel keeps a page still while it is being written ("stable pages").
//!
//! Without it a page that is overwritten while the disk reads it can reach the disk torn, and a torn sealed page is
//! lost. `queue/stable_writes` (`Documentation/ABI/stable/sysfs-block`) makes the kernel wait; root can set it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Sealed pages are written whole; the disk must do so too.
const PAGE: u64 = 4096;

/// Looks at the disk of `store`, sets what may be set, and gives what the operator should know.
pub fn prepare(store: &Path) -> Vec<String> {
    let Ok(meta) = fs::metadata(store) else { return Vec::new() };
    let device = meta.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mut warnings: Vec<String> = small_blocks(meta.blksize()).into_iter().collect();
    let Some(queue) = queue_of(major, minor) else {
        // A network or stacked filesystem: what is below it cannot be seen from here.
        return warnings;
    };
    let stable = queue.join("stable_writes");
    let unstable = fs::read_to_string(&stable).is_ok_and(|value| value.trim() == "0");
    if unstable && fs::write(&stable, "1").is_err() {
        warnings.push(format!(
            "the store's disk has no stable pages: a power cut can lose a page that is rewritten at that moment; \
             as root: echo 1 > {}",
            stable.display()
        ));
    }
    let block =
        fs::read_to_string(queue.join("physical_block_size")).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if let Some(block) = block.filter(|block| *block < PAGE) {
        tracing::info!(
            block,
            "the store's disk writes blocks smaller than a page; a power cut tears a page only if the disk splits a 4 KiB write"
        );
    }
    warnings
}

/// A filesystem with blocks smaller than a sealed page may write one page to two places and lose it in a power cut
/// (ext4 below 512 MiB has blocks of 1 KiB unless told otherwise).
fn small_blocks(block: u64) -> Option<String> {
    (block < PAGE).then(|| {
        format!(
            "the store's filesystem has blocks of {block} bytes: a power cut can lose a page that is rewritten at that \
             moment; put the store on one with blocks of {PAGE} (mkfs.ext4 -b {PAGE})"
        )
    })
}

fn queue_of(major: u32, minor: u32) -> Option<PathBuf> {
    let device = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    // A partition has no queue of its own; its disk, one level up, has.
    [device.join("queue"), device.parent()?.join("queue")].into_iter().find(|queue| queue.is_dir())
}

#[cfg(test)]
mod tests {
    use super::small_blocks;

    #[test]
    fn blocks_smaller_than_a_page_are_warned_of() {
        assert!(small_blocks(1024).is_some_and(|warning| warning.contains("-b 4096")));
        assert_eq!(small_blocks(4096), None);
        assert_eq!(small_blocks(65_536), None);
    }
}
