//! The audit log from outside: written, rotated, torn by crashes, tampered with, read by hyokfs and by the Python
//! program in `docs/audit.md`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use hyokfs::audit::{
    self, AuditError, Config, Denial, Event, Expect, KeyCall, LockRecord, Log, PublicKey, Report, Show, Shown,
    SigningKey, Since, StateChange, Value,
};

const LONG: Duration = Duration::from_secs(20);

fn call(number: u64) -> KeyCall {
    let mut file = [0; 16];
    file[..8].copy_from_slice(&number.to_be_bytes());
    KeyCall {
        operation: "unwrap",
        volume: [7; 16],
        file: Some(file),
        reason: "open",
        verdict: if number.is_multiple_of(3) { "denied" } else { "live" },
        code: number.is_multiple_of(3).then(|| "AccessDeniedException".to_owned()),
        request_id: Some(format!("0000-{number}")),
        latency: Duration::from_millis(number % 100),
    }
}

fn change(to: &'static str) -> StateChange {
    StateChange { volume: [7; 16], from: "unlocked", to, cause: "denied", more: vec![("step", Value::Number(1))] }
}

fn lock() -> LockRecord {
    let denial = Denial { time: SystemTime::now(), code: "DisabledException".into(), request_id: Some("r-1".into()) };
    LockRecord {
        volume: [7; 16],
        cause: "denied",
        denial: Some(denial),
        gate_ms: Some(1),
        wiped_ms: Some(640),
        keys_wiped: 12,
        ..LockRecord::default()
    }
}

/// A log with some of everything, closed.
fn fill(config: Config) {
    let log = Log::open(config).unwrap();
    (0..20).for_each(|number| log.key_call(call(number)));
    assert!(log.state(change("locking")).wait(LONG));
    assert!(log.lock(lock()).wait(LONG));
    assert!(log.event(Event { name: "damaged", fields: vec![("page", Value::Number(3))] }).wait(LONG));
    (20..40).for_each(|number| log.key_call(call(number)));
    assert!(log.close(LONG));
}

fn check(path: &Path, public: Option<&PublicKey>) -> Report {
    audit::verify(&audit::files(path).unwrap(), public, &Expect::default()).unwrap()
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn put(path: &Path, lines: &[String]) {
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

/// The verifier out of the documentation, beside the log.
fn python(place: &Path) -> PathBuf {
    let page = include_str!("../docs/audit.md");
    let (_, rest) = page.split_once("```python\n").unwrap();
    let (program, _) = rest.split_once("```").unwrap();
    let path = place.join("verify.py");
    fs::write(&path, program).unwrap();
    path
}

fn python_accepts(program: &Path, files: &[PathBuf], key: Option<&Path>) -> bool {
    let mut command = Command::new("python3");
    command.arg(program);
    if let Some(key) = key {
        command.arg("--key").arg(key);
    }
    let output = command.args(files).output().expect("python3 is needed to test the verifier in docs/audit.md");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("Traceback"), "{said}");
    assert_eq!(output.status.success(), String::from_utf8_lossy(&output.stdout).contains("intact"), "{said}");
    output.status.success()
}

struct Place {
    dir: tempfile::TempDir,
    log: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("audit.jsonl");
        Place { dir, log }
    }

    fn key(&self, name: &str) -> (PathBuf, PublicKey) {
        let path = self.dir.path().join(name);
        let public = audit::keygen(&path).unwrap();
        (path, public)
    }

    fn signed(&self, key: &Path) -> Config {
        Config { signer: Some(SigningKey::load(key).unwrap()), ..Config::at(&self.log) }
    }
}

#[test]
fn a_log_tells_what_happened_and_is_intact() {
    let place = Place::new();
    fill(Config::at(&place.log));
    let report = check(&place.log, None);
    assert!(report.is_intact(), "{:?}", report.problems);
    // head, open, 40 calls, state, lock, event, close
    assert_eq!((report.records, report.first_seq, report.last_seq, report.closed), (46, 1, 46, true));
    let text = fs::read_to_string(&place.log).unwrap();
    for part in [
        r#""operation":"unwrap","volume":"07070707070707070707070707070707","file":"0000000000000003"#,
        r#""verdict":"denied","code":"AccessDeniedException","request_id":"0000-3","latency_ms":3}"#,
        r#""from":"unlocked","to":"locking","cause":"denied","step":1}"#,
        r#""code":"DisabledException","request_id":"r-1","gate_ms":1,"wiped_ms":640,"keys_wiped":12,"#,
        r#""event":"damaged","fields":{"page":3}"#,
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(&place.log).unwrap()) & 0o777, 0o600);
    assert!(python_accepts(&python(place.dir.path()), std::slice::from_ref(&place.log), None));
}

#[test]
fn any_tampering_is_found_by_hyokfs_and_by_the_python_program() {
    let place = Place::new();
    fill(Config::at(&place.log));
    let program = python(place.dir.path());
    let whole = lines(&place.log);
    let find = |what: &str| {
        let report = check(&place.log, None);
        assert!(!report.is_intact(), "{what} was not found");
        assert!(
            !python_accepts(&program, std::slice::from_ref(&place.log), None),
            "{what} was not found by the Python program"
        );
    };
    for at in [0, 1, 5, 23, 44] {
        let mut less = whole.clone();
        less.remove(at);
        put(&place.log, &less);
        find("a removal");
        let mut moved = whole.clone();
        moved.swap(at, at + 1);
        put(&place.log, &moved);
        find("an exchange");
        let mut twice = whole.clone();
        twice.insert(at, whole[at].clone());
        put(&place.log, &twice);
        find("a repetition");
        let mut changed = whole.clone();
        changed[at] = changed[at].replacen('7', "8", 1);
        assert_ne!(changed[at], whole[at]);
        put(&place.log, &changed);
        find("a change");
        let mut more = whole.clone();
        more.insert(at, "{}".to_owned());
        put(&place.log, &more);
        find("an insertion");
        let mut broken = whole.clone();
        broken[at].truncate(40);
        put(&place.log, &broken);
        find("a cut line");
    }
    let mut text = fs::read_to_string(&place.log).unwrap();
    put(&place.log, &whole);
    text.clear();
    fs::write(&place.log, text).unwrap();
    find("an emptied file");
}

#[test]
fn every_changed_byte_is_found() {
    let place = Place::new();
    let log = Log::open(Config::at(&place.log)).unwrap();
    log.key_call(call(1));
    assert!(log.close(LONG));
    let bytes = fs::read(&place.log).unwrap();
    for at in 0..bytes.len() {
        for bit in [0, 3, 5] {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            fs::write(&place.log, changed).unwrap();
            assert!(!check(&place.log, None).is_intact(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_cut_end_is_found_by_what_was_noted_elsewhere() {
    let place = Place::new();
    fill(Config::at(&place.log));
    let report = check(&place.log, None);
    let whole = lines(&place.log);
    put(&place.log, &whole[..40]);
    let files = [place.log.clone()];
    let verify = |expect| audit::verify(&files, None, &expect).unwrap().is_intact();
    assert!(verify(Expect::default()), "the chain alone can't show it");
    assert!(verify(Expect { seq: Some(40), hash: None }));
    assert!(!verify(Expect { seq: Some(41), hash: None }));
    assert!(!verify(Expect { seq: None, hash: Some(report.last_hash) }));
    put(&place.log, &whole);
    assert!(verify(Expect { seq: Some(46), hash: Some(report.last_hash) }));
}

#[test]
fn signatures_hold_and_another_key_is_refused() {
    let place = Place::new();
    let (key, public) = place.key("audit.key");
    let (_, other) = place.key("other.key");
    assert!(audit::keygen(&key).is_err(), "a key was overwritten");
    let beside = place.dir.path().join("audit.key.pub");
    assert_eq!(PublicKey::load(&beside).unwrap(), public);
    assert_eq!(PublicKey::parse(format!("{public}\n").as_bytes()), Some(public));
    assert!(matches!(SigningKey::load(&beside), Err(AuditError::Key { .. })));
    fill(place.signed(&key));
    let report = check(&place.log, Some(&public));
    assert!(report.is_intact(), "{:?}", report.problems);
    assert_eq!(report.signed_through, Some(report.last_seq));
    assert_eq!(report.claimed_keys, [public.to_string()]);
    let program = python(place.dir.path());
    let files = [place.log.clone()];
    assert!(python_accepts(&program, &files, Some(&beside)));
    assert!(!check(&place.log, Some(&other)).is_intact());
    assert!(!python_accepts(&program, &files, Some(&place.dir.path().join("other.key.pub"))));

    // The end cut off right after a state change.
    let whole = lines(&place.log);
    let state = whole.iter().position(|line| line.contains(r#""event":"state""#)).unwrap();
    put(&place.log, &whole[..=state]);
    assert!(check(&place.log, None).is_intact());
    assert!(!check(&place.log, Some(&public)).is_intact());
    assert!(!python_accepts(&program, &files, Some(&beside)));

    // Written anew without the key: the chain is right, the signatures are not there.
    fs::remove_file(&place.log).unwrap();
    fill(Config::at(&place.log));
    assert!(check(&place.log, None).is_intact());
    assert!(!check(&place.log, Some(&public)).is_intact());
    assert!(!python_accepts(&program, &files, Some(&beside)));
}

#[test]
fn the_chain_goes_on_across_files_and_starts() {
    let place = Place::new();
    let (key, public) = place.key("k");
    for round in 0..4 {
        let log = Log::open(Config { max_bytes: 6_000, keep: 3, ..place.signed(&key) }).unwrap();
        for number in 0..15 {
            log.key_call(call(number));
            assert!(log.state(change("locked")).wait(LONG), "round {round}");
        }
        assert!(log.close(LONG));
    }
    let files = audit::files(&place.log).unwrap();
    assert_eq!(files.len(), 4, "{files:?}");
    let report = check(&place.log, Some(&public));
    assert!(report.is_intact(), "{:?}", report.problems);
    assert!(report.first_seq > 1 && report.closed);
    let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    assert!(text.contains(r#""unclean":false"#) && !text.contains(r#""unclean":true"#), "an orderly end was not seen");
    let program = python(place.dir.path());
    assert!(python_accepts(&program, &files, Some(&place.dir.path().join("k.pub"))));
    for missing in 0..3 {
        let mut some = files.clone();
        some.remove(missing);
        assert!(!audit::verify(&some, None, &Expect::default()).unwrap().is_intact(), "file {missing}");
        assert!(!python_accepts(&program, &some, None));
    }
    assert!(!audit::verify(&[], None, &Expect::default()).unwrap().is_intact(), "nothing is no log");
    let mut swapped = files.clone();
    swapped.swap(1, 2);
    assert!(!audit::verify(&swapped, None, &Expect::default()).unwrap().is_intact());
}

/// A process that dies in the middle of a write, at any byte of it.
#[test]
fn a_log_goes_on_after_a_crash_at_any_byte() {
    let place = Place::new();
    let (key, public) = place.key("k");
    fill(place.signed(&key));
    let whole = fs::read(&place.log).unwrap();
    let close = String::from_utf8_lossy(&whole).find(r#""event":"close""#).unwrap();
    let closed = close + whole[close..].iter().position(|&byte| byte == b'\n').unwrap();
    let program = python(place.dir.path());
    let pub_file = place.dir.path().join("k.pub");
    let ends: Vec<usize> = (0..500).chain((whole.len() - 600)..whole.len()).collect();
    let mut torn = 0;
    for end in ends {
        fs::write(&place.log, &whole[..end]).unwrap();
        let log = Log::open(place.signed(&key)).unwrap_or_else(|error| panic!("{end}: {error}"));
        log.key_call(call(1));
        assert!(log.close(LONG));
        let report = check(&place.log, Some(&public));
        assert!(report.is_intact(), "cut at {end}: {:?}", report.problems);
        let half = end > 0 && whole[end - 1] != b'\n' && whole[end] != b'\n';
        assert_eq!(report.torn, u64::from(half), "cut at {end}");
        // The one line that says how the run before ended; the second start says it of the first.
        if end > whole.len() - 500 {
            let text = fs::read_to_string(&place.log).unwrap();
            assert_eq!(text.contains(r#""unclean":true"#), end < closed, "cut at {end}");
        }
        torn += report.torn;
        if end % 97 == 0 {
            assert!(python_accepts(&program, std::slice::from_ref(&place.log), Some(&pub_file)), "cut at {end}");
        }
        if half && end % 31 == 0 {
            // Exactly the recorded bytes are accepted: not one more, less or other.
            let bytes = fs::read(&place.log).unwrap();
            for change in 0..3 {
                let mut other = bytes.clone();
                match change {
                    0 => other[end - 1] ^= 1,
                    1 => drop(other.remove(end - 1)),
                    _ => other.insert(end, b'x'),
                }
                fs::write(&place.log, other).unwrap();
                assert!(!check(&place.log, None).is_intact(), "cut at {end}, change {change}");
                if end % 93 == 0 {
                    assert!(
                        !python_accepts(&program, std::slice::from_ref(&place.log), None),
                        "cut at {end}, change {change}"
                    );
                }
            }
        }
    }
    assert!(torn > 1000);
}

/// Between the two renames of a rotation, and with a head that was being written.
#[test]
fn a_crash_within_a_rotation_loses_nothing() {
    let place = Place::new();
    fill(Config::at(&place.log));
    fs::rename(&place.log, audit::files(&place.log).map(|_| place.dir.path().join("audit-00000001.jsonl")).unwrap())
        .unwrap();
    for left in [None, Some(&b""[..]), Some(&b"{\"seq\":47,\"time\":\"20"[..]), Some(&[0; 300][..])] {
        let _ = fs::remove_file(&place.log);
        if let Some(left) = left {
            fs::write(&place.log, left).unwrap();
        }
        fs::write(place.dir.path().join("audit.jsonl.new"), "{\"seq\":47,").unwrap();
        fill(Config::at(&place.log));
        let report = check(&place.log, None);
        assert!(report.is_intact(), "{left:?}: {:?}", report.problems);
        assert_eq!((report.first_seq, report.last_seq), (1, 92));
        assert!(python_accepts(&python(place.dir.path()), &audit::files(&place.log).unwrap(), None));
    }
}

/// A changed record must not become a "half-written end" by a restart.
#[test]
fn a_restart_does_not_launder_a_change() {
    let place = Place::new();
    fill(Config::at(&place.log));
    let mut whole = lines(&place.log);
    let last = whole.len() - 1;
    whole[last] = whole[last].replacen("close", "clos3", 1);
    put(&place.log, &whole);
    assert!(Log::open(Config::at(&place.log)).unwrap().close(LONG));
    assert!(!check(&place.log, None).is_intact());
    assert!(!python_accepts(&python(place.dir.path()), std::slice::from_ref(&place.log), None));
}

#[test]
fn strangers_and_second_writers_are_refused() {
    let place = Place::new();
    fs::write(&place.log, "a shopping list\n").unwrap();
    let error = Log::open(Config::at(&place.log)).unwrap_err();
    assert!(matches!(error, AuditError::NotALog { .. }), "{error}");
    assert_eq!(fs::read_to_string(&place.log).unwrap(), "a shopping list\n");
    fs::remove_file(&place.log).unwrap();
    let log = Log::open(Config::at(&place.log)).unwrap();
    assert!(matches!(Log::open(Config::at(&place.log)), Err(AuditError::Busy(_))));
    drop(log);
    assert!(Log::open(Config::at(&place.log)).unwrap().close(LONG));
    let other = place.dir.path().join("elsewhere");
    std::os::unix::fs::symlink(&place.log, &other).unwrap();
    assert!(matches!(Log::open(Config::at(other)), Err(AuditError::Io { .. })));
}

/// Key calls of many threads are gathered into few writes, and none is lost.
#[test]
fn key_calls_of_many_threads_are_all_there() {
    let place = Place::new();
    let log = Log::open(Config::at(&place.log)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..2_500).for_each(|number| log.key_call(call(number))));
        }
    });
    assert!(log.close(LONG));
    let report = check(&place.log, None);
    assert!(report.is_intact(), "{:?}", report.problems);
    assert_eq!((report.records, report.dropped), (20_003, 0));
}

/// A file size limit makes a disk that is full and then is not.
#[test]
fn a_full_disk_holds_nobody_up_and_leaves_a_gap_record() {
    if std::env::var_os("HYOKFS_AUDIT_FULL").is_none() {
        // In a process of its own: the limit holds for all of its files, and the signal that comes with it must be
        // ignored, as it is by the shell and so by what the shell runs.
        let mut again = Command::new("sh");
        again.args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#]).arg(std::env::current_exe().unwrap());
        again.args(["--exact", "a_full_disk_holds_nobody_up_and_leaves_a_gap_record", "--nocapture"]);
        let status = again.env("HYOKFS_AUDIT_FULL", "1").status().unwrap();
        assert!(status.success());
        return;
    }
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let place = Place::new();
    let log = Log::open(Config { queue: 100, ..Config::at(&place.log) }).unwrap();
    let whole = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(fs::metadata(&place.log).unwrap().len()), ..whole }).unwrap();
    let start = std::time::Instant::now();
    let ticket = log.state(change("locking"));
    (0..5_000).for_each(|number| log.key_call(call(number)));
    assert!(start.elapsed() < Duration::from_millis(500), "callers waited {:?}", start.elapsed());
    assert!(!ticket.wait(Duration::from_millis(300)));
    let stats = log.stats();
    assert!(stats.error.is_some() && stats.dropped > 4_000, "{stats:?}");
    setrlimit(Resource::Fsize, whole).unwrap();
    assert!(log.state(change("locked")).wait(LONG));
    assert!(log.close(LONG));
    let report = check(&place.log, None);
    assert!(report.is_intact(), "{:?}", report.problems);
    assert_eq!(report.dropped, stats.dropped);
    let text = fs::read_to_string(&place.log).unwrap();
    assert!(text.contains(r#""to":"locking""#) && text.contains(r#""to":"locked""#), "a state change was lost");
}

#[test]
fn showing_begins_where_it_should_and_follows_over_a_rotation() {
    let place = Place::new();
    let log = Log::open(Config { max_bytes: 4_000, ..Config::at(&place.log) }).unwrap();
    assert!(log.state(change("locked")).wait(LONG));
    let since = |since| {
        let mut seen = Vec::new();
        let sink = |shown: Option<Shown<'_>>| {
            if let Some(Shown::Record(record, line)) = shown {
                assert!(line.ends_with("\"}"));
                seen.push(record.seq);
            }
            true
        };
        audit::show(&place.log, Show { since, follow: false }, sink).unwrap();
        seen
    };
    assert_eq!(since(Since::Start), [1, 2, 3]);
    assert_eq!(since(Since::Seq(3)), [3]);
    assert_eq!(since(Since::Time(SystemTime::now() + Duration::from_secs(60))), Vec::<u64>::new());
    assert_eq!(since(Since::Time(audit::time::parse("2020-01-01").unwrap())), [1, 2, 3]);

    let path = place.log.clone();
    let reader = std::thread::spawn(move || {
        let (mut seen, mut idle) = (Vec::new(), 0);
        let sink = |shown: Option<Shown<'_>>| {
            match shown {
                Some(Shown::Record(record, _)) => {
                    seen.push(record.seq);
                    idle = 0;
                    return record.event != "close";
                }
                Some(Shown::Damaged(line)) => panic!("{}", String::from_utf8_lossy(line)),
                None => idle += 1,
            }
            idle < 50
        };
        audit::show(&path, Show { since: Since::Start, follow: true }, sink).unwrap();
        seen
    });
    for _ in 0..30 {
        assert!(log.state(change("unlocked")).wait(LONG));
        std::thread::sleep(Duration::from_millis(30));
    }
    assert!(log.close(LONG));
    let seen = reader.join().unwrap();
    assert!(audit::files(&place.log).unwrap().len() > 2, "no rotation");
    let last = check(&place.log, None).last_seq;
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
}
