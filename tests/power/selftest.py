"""The judge itself is judged: each doctored state must be seen, and no allowed state may be blamed."""

import contextlib
import errno
import json
import os
import sqlite3
import struct
import tempfile
import unittest

import blklog
import cutter
import database
import judge
import ledger


class Desk(unittest.TestCase):
    """A ledger, and a tree to be judged."""

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = self.temporary.name
        self.root = os.path.join(self.folder, "root")
        os.mkdir(self.root)
        self.clock = 0
        self.path = os.path.join(self.folder, "ledger")
        self.writer = ledger.Writer(self.path, self._tick)

    def tearDown(self):
        self.writer.file.close()
        self.temporary.cleanup()

    def _tick(self):
        self.clock += 10
        return self.clock

    def file(self, name, data):
        with open(os.path.join(self.root, name), "wb") as out:
            out.write(data)

    def judge(self, position=None, stillborn=False):
        model = ledger.Ledger(self.path).at(self.clock + 1 if position is None else position)
        return judge.Judge(self.root, model, stillborn).run()

    def a_file(self, acknowledged=True, size=10_000):
        """Created, written with seed 1."""
        n = self.writer.op("create", file=1, dir=0, name="f")
        m = self.writer.op("write", file=1, off=0, len=size, seed=1)
        if acknowledged:
            self.writer.ack([n, m], 0)
        return ledger.noise(1, size)


class Books(Desk):
    def test_acknowledged_data_is_demanded(self):
        data = self.a_file()
        self.file("f", data)
        self.assertTrue(self.judge().clean, self.judge())
        for wrong in (data[:-1], data[:5000] + b"x" + data[5001:], bytes(10_000), b"", data[:4096] + bytes(5904)):
            self.file("f", wrong)
            self.assertTrue(self.judge().lost)
        self.file("f", data + b"x")
        self.assertTrue(self.judge().damaged)
        os.unlink(os.path.join(self.root, "f"))
        self.assertTrue(self.judge().lost)

    def test_before_the_acknowledgement_all_is_allowed_but_nonsense(self):
        data = self.a_file(acknowledged=False)
        self.assertTrue(self.judge().clean, "not there")
        for fine in (b"", data, data[:4096], bytes(10_000), data[:4096] + bytes(5904)):
            self.file("f", fine)
            self.assertTrue(self.judge().clean, self.judge())
        self.file("f", data[:100] + b"?" * 9900)
        self.assertTrue(self.judge().damaged)

    def test_an_overwrite_is_old_or_new_until_acknowledged(self):
        old = self.a_file()
        n = self.writer.op("write", file=1, off=4096, len=4096, seed=2)
        new = old[:4096] + ledger.noise(2, 4096) + old[8192:]
        mixed = old[:6000] + new[6000:]
        for fine in (old, new, mixed):
            self.file("f", fine)
            self.assertTrue(self.judge().clean)
        self.file("f", old[:4096] + bytes(4096) + old[8192:])
        self.assertTrue(self.judge().damaged, "zeros in place of both")
        self.file("f", new[:1] + b"x" + new[2:])
        self.assertTrue(self.judge().lost, "a byte beside the overwrite")
        self.writer.ack([n], 0)
        self.file("f", old)
        self.assertTrue(self.judge().lost)
        self.file("f", new)
        self.assertTrue(self.judge().clean)

    def test_a_dsync_write_acknowledges_only_its_bytes(self):
        self.a_file(size=1000)
        self.writer.op("write", file=1, off=1000, len=1000, seed=2)
        n = self.writer.op("write", file=1, off=3000, len=100, seed=3, dsync=True)
        self.writer.ack([n], 0)
        base, tail = ledger.noise(1, 1000), ledger.noise(3, 100)
        for fine in (base + bytes(2000) + tail, base + ledger.noise(2, 1000) + bytes(1000) + tail):
            self.file("f", fine)
            self.assertTrue(self.judge().clean, self.judge())
        self.file("f", base + ledger.noise(2, 1000))
        self.assertTrue(self.judge().lost)
        self.file("f", base + bytes(2100))
        self.assertTrue(self.judge().lost)

    def test_truncation(self):
        data = self.a_file()
        n = self.writer.op("truncate", file=1, size=3000)
        for fine in (data, data[:3000], data[:7000]):
            self.file("f", fine)
            self.assertTrue(self.judge().clean, self.judge())
        self.writer.ack([n], 0)
        self.file("f", data)
        self.assertTrue(self.judge().damaged, "back to the old size")
        m = self.writer.op("write", file=1, off=5000, len=10, seed=4)
        self.writer.ack([m], 0)
        self.file("f", data[:3000] + bytes(2000) + ledger.noise(4, 10))
        self.assertTrue(self.judge().clean)
        self.file("f", data[:5000] + ledger.noise(4, 10))
        self.assertTrue(self.judge().lost, "cut bytes are back")

    def test_names(self):
        data = self.a_file()
        n = self.writer.op("rename", file=1, dir=0, name="f", todir=0, toname="g")
        self.file("f", data)
        self.assertTrue(self.judge().clean)
        self.file("g", data)
        self.assertTrue(self.judge().damaged, "both names")
        os.unlink(os.path.join(self.root, "f"))
        self.assertTrue(self.judge().clean)
        os.unlink(os.path.join(self.root, "g"))
        self.assertTrue(self.judge().lost, "neither name")
        self.writer.ack([n], 0)
        self.file("f", data)
        self.assertTrue(self.judge().lost, "the old name after the acknowledgement")
        os.unlink(os.path.join(self.root, "f"))
        self.file("g", data)
        self.file("never", b"")
        self.assertTrue(self.judge().damaged, "a name that nobody gave")

    def test_unlink_stays(self):
        self.file("f", self.a_file())
        n = self.writer.op("unlink", file=1, dir=0, name="f")
        self.assertTrue(self.judge().clean)
        self.writer.ack([n], 0)
        self.assertTrue(self.judge().lost)
        os.unlink(os.path.join(self.root, "f"))
        self.assertTrue(self.judge().clean)

    def test_replace_is_old_or_new(self):
        old = self.a_file()
        n = self.writer.op("create", file=2, dir=0, name="t")
        m = self.writer.op("write", file=2, off=0, len=500, seed=9)
        self.writer.ack([n, m], 0)
        r = self.writer.op("replace", file=2, victim=1, dir=0, name="t", todir=0, toname="f")
        new = ledger.noise(9, 500)
        self.file("f", old)
        self.file("t", new)
        self.assertTrue(self.judge().clean, self.judge())
        os.unlink(os.path.join(self.root, "t"))
        self.file("f", new)
        self.assertTrue(self.judge().clean, self.judge())
        for wrong in (b"", old[:500], new[:-1]):
            self.file("f", wrong)
            self.assertFalse(self.judge().clean)
        self.writer.ack([r], 0)
        self.file("f", old)
        self.assertFalse(self.judge().clean)

    def test_a_stillborn_file_may_be_the_one_that_a_name_had_before(self):
        """Only a creation that was never acknowledged may refuse to be opened; what replaced it must be somewhere."""
        self.writer.op("create", file=1, dir=0, name="f")
        n = self.writer.op("create", file=2, dir=0, name="t")
        self.writer.ack([n], 0)
        self.writer.op("replace", file=2, victim=1, dir=0, name="t", todir=0, toname="f")
        self.file("f", b"")
        self.file("t", b"")

        def refuse(path):
            if path.endswith("/f"):
                raise OSError(errno.EIO, "Input/output error")
            return original(path)

        original, judge.read_all = judge.read_all, refuse
        try:
            self.assertTrue(self.judge(stillborn=True).clean, self.judge(stillborn=True))
            self.assertFalse(self.judge(stillborn=False).clean)
            os.unlink(os.path.join(self.root, "t"))
            self.assertTrue(self.judge(stillborn=True).lost, "the acknowledged file is nowhere")
        finally:
            judge.read_all = original

    def test_a_file_in_a_directory_that_was_never_synced(self):
        self.writer.op("mkdir", new=1, dir=0, name="d")
        n = self.writer.op("create", file=1, dir=1, name="f")
        self.assertTrue(self.judge().clean)
        self.writer.ack([n], 0)
        self.assertTrue(self.judge().lost)
        os.mkdir(os.path.join(self.root, "d"))
        self.file("d/f", b"")
        self.assertTrue(self.judge().clean)

    def test_the_position_decides(self):
        data = self.a_file()
        acknowledged = self.clock
        self.assertTrue(self.judge(position=acknowledged - 1).clean, "not yet acknowledged")
        self.assertTrue(self.judge(position=acknowledged).lost)
        self.file("f", data)
        self.assertTrue(self.judge(position=1).damaged, "there before it was begun")

    def test_closes_count_only_before_the_kill(self):
        n = self.writer.op("create", file=1, dir=0, name="f")
        self.writer.ack([n], 5.0, closing=True)
        for limit, acknowledged in ((None, False), (5.0, False), (5.1, True)):
            book = ledger.Ledger(self.path, limit)
            self.assertEqual(book.order[0].ack != ledger.ENDLESS, acknowledged, limit)


class Databases(Desk):
    """SQLite's transactions: what was acknowledged is demanded, what was only begun is allowed."""

    def database(self, mode, transactions):
        base = database.Database(self.root, f"db-{mode}", mode)
        self.writer.op("database", path=base.path)
        base.make()
        for _ in range(transactions):
            base.commit(self.writer, lambda: 0.0)
        base.close()
        return os.path.join(base.folder, "db")

    def change(self, path, statement):
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as link:
            link.execute(statement)

    def test_acknowledged_transactions_are_demanded(self):
        for mode in database.MODES:
            path = self.database(mode, 9)
            self.assertTrue(self.judge().clean, self.judge())
            self.writer.op("commit", path=f"db-{mode}", transaction=10)
            self.assertTrue(self.judge().clean, "begun only")
            with open(path, "rb") as file:
                whole = file.read()
            for statement in ("DELETE FROM t WHERE number = 9", "UPDATE t SET changed = 3 WHERE number = 3",
                              "UPDATE t SET body = x'00' WHERE number = 5", "DELETE FROM t"):  # fmt: skip
                self.change(path, statement)
                self.assertFalse(self.judge().clean, statement)
                with open(path, "wb") as file:
                    file.write(whole)
            with open(path, "wb") as file:
                file.write(whole[:5000])
            self.assertTrue(self.judge().lost, "cut off")
            os.unlink(path)
            self.assertTrue(self.judge().lost, "gone")
            with open(path, "wb") as file:
                file.write(whole)

    def test_nothing_is_demanded_of_one_that_was_only_begun(self):
        self.writer.op("database", path="db-wal")
        self.assertTrue(self.judge().clean)
        self.writer.op("commit", path="db-wal", transaction=1)
        self.assertTrue(self.judge().clean, self.judge())


class Logs(unittest.TestCase):
    """The parser and the cutter on a log made by hand."""

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = self.temporary.name
        self.log = os.path.join(self.folder, "log")
        self.base = os.path.join(self.folder, "base")
        with open(self.base, "wb") as out:
            out.truncate(1 << 20)

    def tearDown(self):
        self.temporary.cleanup()

    def write(self, entries, count=None):
        with open(self.log, "wb") as out:
            out.write(struct.pack("<QQQI", blklog.MAGIC, 1, len(entries) if count is None else count, 512).ljust(512, b"\0"))
            for offset, data, flags in entries:
                out.write(struct.pack("<QQQQ", offset // 512, len(data) // 512, flags, 0).ljust(512, b"\0"))
                if not flags & blklog.DISCARD:
                    out.write(data)

    def test_entries(self):
        self.write([(4096, b"a" * 4096, 0), (0, b"", blklog.FLUSH), (8192, bytes(1024), blklog.DISCARD)])
        got = blklog.entries(self.log)
        self.assertEqual([(e.offset, e.length, e.flush, e.discard) for e in got],
                         [(4096, 4096, False, False), (0, 0, True, False), (8192, 1024, False, True)])  # fmt: skip
        self.assertEqual(got[-1].end, os.stat(self.log).st_size)
        self.write([(0, b"a" * 512, 0)], count=2)
        self.assertRaises(blklog.BadLog, blklog.entries, self.log)
        with open(self.log, "r+b") as out:
            out.write(b"nonsense")
        self.assertRaises(blklog.BadLog, blklog.entries, self.log)

    def test_what_was_flushed_is_in_every_image(self):
        block = lambda n: bytes([n]) * 4096  # noqa: E731
        entries = [(4096 * n, block(n), 0) for n in range(1, 9)] + [(0, b"", blklog.FLUSH)]
        entries += [(4096 * n, block(n), 0) for n in range(9, 17)]
        self.write(entries)
        knife = cutter.Cutter(self.base, self.log, self.folder)
        kept = set()
        for seed in range(20):
            path = knife.image(cutter.Cut(17, 0, "subset", seed, False))
            with open(path, "rb") as image:
                data = image.read()
            os.unlink(path)
            for n in range(1, 9):
                self.assertEqual(data[4096 * n : 4096 * (n + 1)], block(n), "a flushed block is missing")
            late = [data[4096 * n : 4096 * (n + 1)] for n in range(9, 17)]
            self.assertTrue(all(part in (bytes(4096), block(9 + i)) for i, part in enumerate(late)), "a torn block")
            kept.add(tuple(any(part) for part in late))
        self.assertGreater(len(kept), 10, "the subsets are all alike")
        path = knife.image(cutter.Cut(17, 0, "prefix", 0, False))
        with open(path, "rb") as image:
            self.assertEqual(image.read()[4096 * 16 : 4096 * 17], block(16))
        knife.close()

    def test_a_lying_disk_forgets_what_was_flushed(self):
        self.write([(4096, b"a" * 4096, 0), (0, b"", blklog.FLUSH), (8192, b"b" * 4096, 0)])
        knife = cutter.Cutter(self.base, self.log, self.folder, lying=100)
        kept = set()
        for seed in range(20):
            path = knife.image(cutter.Cut(3, 0, "lying", seed, False))
            with open(path, "rb") as image:
                kept.add(image.read(8192)[4096:4097])
            os.unlink(path)
        self.assertEqual(kept, {b"a", b"\0"})
        knife.close()

    def test_torn_blocks(self):
        self.write([(4096, b"a" * 4096, 0)])
        knife = cutter.Cutter(self.base, self.log, self.folder)
        torn = 0
        for seed in range(10):
            path = knife.image(cutter.Cut(1, 0, "subset", seed, True))
            with open(path, "rb") as image:
                image.seek(4096)
                torn += 0 < image.read(4096).count(b"a") < 4096
            os.unlink(path)
        self.assertGreater(torn, 5)
        knife.close()


class Noise(unittest.TestCase):
    def test_it_is_the_same_everywhere(self):
        self.assertEqual(ledger.noise(1, 4), ledger.noise(1, 4))
        self.assertNotEqual(ledger.noise(1, 64), ledger.noise(2, 64))

    def test_survey_round_trip(self):
        with tempfile.TemporaryDirectory() as folder:
            root, blobs = os.path.join(folder, "root"), os.path.join(folder, "blobs")
            os.makedirs(os.path.join(root, "d"))
            os.mkdir(blobs)
            with open(os.path.join(root, "d", "f"), "wb") as out:
                out.write(b"content")
            with open(judge.survey(root, blobs), encoding="utf-8") as found:
                survey = json.load(found)
            self.assertEqual(survey["dirs"], ["d"])
            self.assertEqual([(f["path"], f["size"]) for f in survey["files"]], [("d/f", 7)])


if __name__ == "__main__":
    unittest.main()
