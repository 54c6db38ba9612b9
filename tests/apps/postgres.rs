//! PostgreSQL 15: initdb, pgbench, a crash of the server, page checksums; as its own user.

use crate::common::Store;
use crate::script;

/// Shell functions: `$1` is the data directory, the socket lies beside the mount.
const TOOLS: &str = r#"
bin=/usr/lib/postgresql/15/bin; data=$1; world=$2
as() { setpriv --reuid=postgres --regid=postgres --init-groups env -C "$world/tmp" LC_ALL=C "$@"; }
start() { as $bin/pg_ctl -w -t 120 -D "$data" -l "$world/tmp/pg.log" -o "-k $world/tmp -c listen_addresses= -c max_wal_size=256MB" start >/dev/null || { cat "$world/tmp/pg.log"; exit 1; }; }
stop() { as $bin/pg_ctl -w -t 120 -D "$data" -m "$1" stop >/dev/null; }
query() { as $bin/psql -X -h "$world/tmp" -d postgres -qAtc "$1"; }
check() { query 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history), (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history), (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history), (SELECT count(*) FROM pgbench_accounts)'; query 'SELECT count(*) FROM pgbench_history'; }
"#;

/// The server of a data directory; stopped when the test ends, however it ends: it must not hold the mount.
struct Server {
    data: std::path::PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(text) = std::fs::read_to_string(self.data.join("postmaster.pid"))
            && let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            let gone = || rustix::process::test_kill_process(pid).is_err();
            let start = std::time::Instant::now();
            while !gone() && start.elapsed() < crate::common::PATIENCE {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    }
}

#[test]
fn a_database_cluster() {
    let store = Store::new();
    script(&store.world, "chmod 777 \"$1\"", &[&store.world.path().join("tmp")]);
    let mount = store.mount_with(&["-o", "allow_other"]);
    let data = mount.at("data");
    let world = store.world.path();
    let run = |text: &str| script(&store.world, &format!("{TOOLS}{text}"), &[&data, world]);
    script(
        &store.world,
        "chmod 755 \"$2\"; mkdir -m 700 \"$1\"; chown postgres:postgres \"$1\"",
        &[&data, &mount.path],
    );
    let server = Server { data: data.clone() };
    run("as $bin/initdb -D \"$data\" --data-checksums -A trust -E UTF8 >/dev/null");
    run("start; as $bin/pgbench -h \"$world/tmp\" -i -q -s 5 postgres 2>/dev/null; \
         as $bin/pgbench -h \"$world/tmp\" -c 4 -j 2 -t 500 postgres >/dev/null 2>&1");
    assert_eq!(run("check"), "t|t|t|500000\n2000\n");
    // The server dies without a checkpoint and recovers from its log.
    run("stop immediate; start");
    assert_eq!(run("check"), "t|t|t|500000\n2000\n", "after a crash of the server");
    run("stop fast; as $bin/pg_checksums --check -D \"$data\" >/dev/null");
    let mount = {
        mount.umount();
        store.mount_with(&["-o", "allow_other"])
    };
    run("as $bin/pg_checksums --check -D \"$data\" >/dev/null; start");
    assert_eq!(run("check"), "t|t|t|500000\n2000\n", "after a remount");
    run("as $bin/pgbench -h \"$world/tmp\" -c 2 -t 200 -n postgres >/dev/null 2>&1; query 'VACUUM FULL'");
    assert_eq!(run("check"), "t|t|t|500000\n2400\n", "after a vacuum");
    run("stop fast");
    drop(server);
    mount.umount();
}
