import os
import sqlite3
import sys
import time

task, mode, database, ledger = sys.argv[1:]
connection = sqlite3.connect(database, timeout=5, isolation_level=None)
if task == "work":
    connection.execute("PRAGMA journal_mode=" + mode)
    # FULL: every commit is synced, so every commit is a promise.
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, text TEXT)")
    (number,) = connection.execute("SELECT coalesce(max(id), 0) FROM t").fetchone()
    promises = os.open(ledger, os.O_WRONLY | os.O_APPEND)
    while True:
        number += 1
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO t VALUES(?, ?)", (number, str(number) * 50))
        connection.execute("UPDATE t SET text = text || 'u' WHERE id = ?", (number // 2,))
        connection.execute("COMMIT")
        os.write(promises, b"%d\n" % number)
        time.sleep(0.005)
else:
    (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        sys.exit("integrity_check: " + verdict)
    there = {number for (number,) in connection.execute("SELECT id FROM t")}
    with open(ledger) as lines:
        promised = {int(line) for line in lines}
    lost = sorted(promised - there)
    if lost:
        sys.exit("%d of %d committed transactions are lost, the first is %d" % (len(lost), len(promised), lost[0]))
    if not promised:
        sys.exit("no transaction was ever committed")
    print("%d committed transactions, all there" % len(promised))
