"""SQLite on the mount, in both of its journal modes: a transaction whose COMMIT has returned must be there, whole."""

import errno
import os
import sqlite3

import ledger

MODES = ("delete", "wal")


def body(transaction):
    """What a transaction writes: of many sizes, from a few bytes to several pages."""
    length = (transaction * 7919) % (9_000 if transaction % 5 == 0 else 700)
    return ledger.noise(transaction, length + 1)


class Database:
    """A database that is written. `path` is its directory, which nothing else uses."""

    def __init__(self, root, path, mode):
        self.path, self.mode, self.last, self.link = path, mode, 0, None
        self.folder = os.path.join(root, path)

    def make(self):
        os.mkdir(self.folder)
        for each in (self.folder, os.path.dirname(self.folder)):
            fd = os.open(each, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def commit(self, writer, time):
        """One transaction: a new row, and a change of an old one."""
        try:
            if self.link is None:
                self.link = sqlite3.connect(os.path.join(self.folder, "db"), isolation_level=None, timeout=30)
                self.link.execute(f"PRAGMA journal_mode={self.mode}")
                # FULL does not sync the directory after the journal was removed: then a power cut may bring that one back,
                # and with it the state before the transaction, on any filesystem.
                self.link.execute("PRAGMA synchronous=EXTRA")
            number = self.last + 1
            n = writer.op("commit", path=self.path, transaction=number)
            self.link.execute("BEGIN IMMEDIATE")
            self.link.execute("CREATE TABLE IF NOT EXISTS t (number INTEGER PRIMARY KEY, changed INTEGER, body BLOB)")
            self.link.execute("INSERT INTO t VALUES (?, ?, ?)", (number, number, body(number)))
            self.link.execute("UPDATE t SET changed = ? WHERE number = ?", (number, number // 2))
            self.link.execute("COMMIT")
        except sqlite3.Error as error:
            # As any other program would be told.
            raise OSError(errno.EIO, f"Input/output error ({error})") from error
        self.last = number
        writer.ack([n], time())

    def close(self):
        if self.link is not None:
            try:
                self.link.close()
            except sqlite3.Error as error:
                raise OSError(errno.EIO, f"Input/output error ({error})") from error
            self.link = None


def judge(root, path, sure, most, stillborn=False):
    """Gives (lost, damaged): transactions up to `sure` were acknowledged, and `most` were begun. `stillborn`: whether files
    whose creation was never acknowledged may refuse to be opened."""
    folder = os.path.join(root, path)
    if sure == 0 and not os.path.exists(os.path.join(folder, "db")):
        return [], []
    try:
        link = sqlite3.connect(os.path.join(folder, "db"), isolation_level=None, timeout=30)
        try:
            said = link.execute("PRAGMA integrity_check").fetchone()[0]
            if said != "ok":
                return [f"{path}: SQLite's integrity check: {said}"], []
            tables = link.execute("SELECT count(*) FROM sqlite_master WHERE name = 't'").fetchone()[0]
            rows = link.execute("SELECT number, changed, body FROM t ORDER BY number").fetchall() if tables else []
        finally:
            link.close()
    except sqlite3.Error as error:
        if sure:
            return [f"{path}: {error}"], []
        unborn = stillborn and "unable to open" in str(error)
        return [], [] if unborn else [f"{path}: {error}"]
    lost, damaged = [], []
    numbers = [row[0] for row in rows]
    if len(numbers) < sure:
        lost.append(f"{path}: {len(numbers)} transactions, of which {sure} were acknowledged")
    if len(numbers) > most or numbers != list(range(1, len(numbers) + 1)):
        damaged.append(f"{path}: the transactions are {numbers[:5]} to {numbers[-5:]}, {most} were begun")
    last = len(numbers)
    for number, changed, data in rows:
        # A row is changed by the two transactions of twice its number, as far as they are there.
        want = max([number, *(n for n in (2 * number, 2 * number + 1) if n <= last)])
        if data != body(number) or changed != want:
            damaged.append(f"{path}: row {number} is not what transaction {changed} left")
    return lost, damaged
