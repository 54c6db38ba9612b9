//! SQLite: ten thousand transactions in each journal mode, two processes at once, integrity after a remount.

use std::fmt::Write as _;
use std::fs;

use crate::common::Store;
use crate::{must, script};

const TRANSACTIONS: usize = 10_000;

fn transactions(store: &Store, mode: &str, name: &str) {
    let mount = store.mount();
    let database = mount.at(name);
    let file = store.world.path().join(format!("{mode}.sql"));
    let mut sql = format!("PRAGMA journal_mode={mode};\nPRAGMA synchronous=NORMAL;\nPRAGMA mmap_size=4194304;\n");
    sql.push_str("CREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT, number INTEGER);\nCREATE INDEX i ON t(number);\n");
    for n in 0..TRANSACTIONS {
        // Each a transaction: mostly new rows, now and then a change of old ones and a rollback.
        let statement = match n % 10 {
            7 => format!("UPDATE t SET text = text || 'u' WHERE number = {};", n / 2),
            8 => format!("DELETE FROM t WHERE id = {};", n - 8),
            9 => format!("BEGIN; INSERT INTO t VALUES({n}, 'never', 0); ROLLBACK;"),
            _ => format!("INSERT INTO t VALUES({n}, '{}', {n});", "row".repeat(n % 40)),
        };
        writeln!(sql, "{statement}").unwrap();
    }
    fs::write(&file, sql).unwrap();
    script(&store.world, "sqlite3 -bail \"$1\" < \"$2\"", &[&database, &file]);
    let check = |path: &std::path::Path| {
        let query = "PRAGMA integrity_check; SELECT count(*), sum(id), sum(length(text)), sum(number) FROM t;";
        must(&store.world, store.world.command("sqlite3").arg(path).arg(query))
    };
    // The same on the plain filesystem says what is right.
    let reference = store.world.path().join(format!("{mode}.db"));
    script(&store.world, "sqlite3 -bail \"$1\" < \"$2\"", &[&reference, &file]);
    let want = check(&reference);
    assert!(want.starts_with("ok\n6000|") || want.starts_with("ok\n"), "{want}");
    assert_eq!(check(&database), want, "{mode}");
    let mount = mount.remount();
    assert_eq!(check(&database), want, "{mode}, after a remount");
    script(&store.world, "sqlite3 \"$1\" 'VACUUM; REINDEX; PRAGMA wal_checkpoint(TRUNCATE)'", &[&database]);
    assert_eq!(check(&database), want, "{mode}, after a vacuum");
    mount.umount();
}

#[test]
fn write_ahead_log() {
    transactions(&Store::new(), "WAL", "wal.db");
}

#[test]
fn rollback_journal() {
    transactions(&Store::new(), "DELETE", "rollback.db");
}

#[test]
fn truncated_and_persistent_journals() {
    let store = Store::new();
    let mount = store.mount();
    for mode in ["TRUNCATE", "PERSIST"] {
        let database = mount.at(format!("{mode}.db"));
        let text = format!(
            "{{ echo 'PRAGMA journal_mode={mode}; CREATE TABLE t(x);'; for i in $(seq 1 500); do echo \"INSERT INTO t VALUES($i);\"; done; }} | sqlite3 -bail \"$1\""
        );
        script(&store.world, &text, &[&database]);
    }
    let mount = mount.remount();
    for mode in ["TRUNCATE", "PERSIST"] {
        let query = "PRAGMA integrity_check; SELECT count(*), sum(x) FROM t";
        let mut command = store.world.command("sqlite3");
        assert_eq!(must(&store.world, command.arg(mount.at(format!("{mode}.db"))).arg(query)), "ok\n500|125250\n");
    }
    mount.umount();
}

#[test]
fn two_processes_at_once() {
    let store = Store::new();
    let mount = store.mount();
    let text = "sqlite3 \"$1\" 'PRAGMA journal_mode=WAL; CREATE TABLE t(w, n)'; \
        work() { for i in $(seq 1 300); do echo \"INSERT INTO t VALUES($2, $i);\"; done | sqlite3 -bail -cmd '.timeout 60000' \"$1\"; }; \
        work \"$1\" 1 & one=$!; work \"$1\" 2 & two=$!; wait $one; wait $two; \
        sqlite3 \"$1\" 'PRAGMA integrity_check; SELECT w, count(*), sum(n) FROM t GROUP BY w'";
    assert_eq!(script(&store.world, text, &[&mount.at("shared.db")]), "wal\nok\n1|300|45150\n2|300|45150\n");
    mount.umount();
}
