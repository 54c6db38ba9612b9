//! Audit logs: any bytes, and the same lines with hashes that fit, so that the checks behind the hash are reached. A log
//! that this program goes on writing stays intact if it was, and is never mended silently.
#![no_main]

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use hyokfs::audit::{self, Config, Expect, Log, PublicKey, Report, Show, Shown, StateChange};
use libfuzzer_sys::fuzz_target;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = PathBuf::from(format!("/dev/shm/hyokfs-fuzz-audit-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    dir
});

/// Gives every line that ends as a record does the hash that fits it, and the hash of the one before as `prev`.
fn chained(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut prev = "0".repeat(64);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let text = String::from_utf8_lossy(line);
        match text.find(",\"prev\":\"") {
            Some(at) if line.ends_with(b"\n") => {
                let body = format!("{},\"prev\":\"{prev}\"", &text[..at]);
                let whole = [b"hyokfs audit line 1\n", body.as_bytes()].concat();
                prev = digest(&SHA256, &whole).as_ref().iter().fold(String::new(), |mut text, byte| {
                    let _ = write!(text, "{byte:02x}");
                    text
                });
                out.extend_from_slice(format!("{body},\"hash\":\"{prev}\"}}\n").as_bytes());
            }
            _ => out.extend_from_slice(line),
        }
    }
    out
}

fn check(path: &std::path::Path, key: Option<&PublicKey>) -> Report {
    audit::verify(&audit::files(path).expect("the file"), key, &Expect::default()).expect("it can be read")
}

fuzz_target!(|bytes: &[u8]| {
    let key = PublicKey::parse(&[b'0'; 64]);
    let path = DIR.join("audit.jsonl");
    for bytes in [bytes.to_vec(), chained(bytes)] {
        for file in std::fs::read_dir(&*DIR).expect("the directory").flatten() {
            let _ = std::fs::remove_file(file.path());
        }
        std::fs::write(&path, &bytes).expect("written");
        check(&path, key.as_ref());
        let before = check(&path, None);
        let mut records = 0;
        audit::show(&path, Show::default(), |shown| {
            if let Some(Shown::Record(record, _)) = shown {
                records += 1;
                assert!(!record.to_text().contains('\n'));
            }
            true
        })
        .expect("it can be read");
        assert!(before.records <= records);
        let Ok(log) = Log::open(Config { gather: Duration::ZERO, ..Config::at(&path) }) else { continue };
        log.state(StateChange { from: "unlocked", to: "locking", cause: "denied", ..StateChange::default() })
            .wait(Duration::from_secs(5));
        assert!(log.close(Duration::from_secs(5)));
        let after = check(&path, None);
        assert!(after.records > before.records || before.problem_count > 0);
        assert!(!before.is_intact() || after.is_intact(), "{:?}", after.problems);
    }
});
