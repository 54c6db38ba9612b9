"""The disk fails under a mounted volume: an application is told at the latest at `fsync`, and only what the error hit
is harmed."""

import errno
import json
import os
import time

import cleanup
import judge
import lanes
import ledger
import rig
from check import clean, demand, fails, put, read

FIRST, CAP = 3016, 4056  # plaintext bytes in the sealed page 0, and in each other


def a_page_that_cannot_be_written(binary, folder):
    """One sealed page's sector refuses writes: fsync of that file says so, all else goes on, and after it is well the
    same write succeeds."""
    with rig.Rig(binary, folder) as r:
        hit, beside = ledger.noise(1, 100_000), ledger.noise(2, 100_000)
        put(r.at("hit"), hit)
        put(r.at("beside"), beside)
        r.disk.fail("write", r.sector(r.at("hit"), 7))
        where = FIRST + 6 * CAP + 100
        change = ledger.noise(3, 500)
        with open(r.at("hit"), "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), change, where)
            fails(errno.EIO, "fsync of the page that cannot be written", lambda: os.fsync(file.fileno()))
        demand(read(r.at("beside")) == beside, "another file, while one page cannot be written")
        put(r.at("beside"), beside[:50_000] + hit[:50_000])
        put(r.at("new"), hit)
        r.disk.heal()
        with open(r.at("hit"), "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), change, where)
            os.fsync(file.fileno())
        r.remount()
        demand(read(r.at("hit")) == hit[:where] + change + hit[where + 500 :], "written again after the disk was well")
        demand(read(r.at("beside")) == beside[:50_000] + hit[:50_000], "the other file, written meanwhile")
        demand(read(r.at("new")) == hit, "a file made meanwhile")
        clean(r.verify())


def every_program_is_told(binary, folder):
    """The store tells a failed write-back once. Whoever has the file open is told all the same, and whoever opens it later
    is not."""
    with rig.Rig(binary, folder) as r:
        put(r.at("f"), ledger.noise(1, 100_000))
        r.disk.fail("write", r.sector(r.at("f"), 7))
        with open(r.at("f"), "r+b", buffering=0) as one, open(r.at("f"), "r+b", buffering=0) as other:
            os.pwrite(one.fileno(), b"x" * 500, FIRST + 6 * CAP + 100)
            fails(errno.EIO, "the fsync that meets the error", lambda: os.fsync(one.fileno()))
            r.disk.heal()
            fails(errno.EIO, "the other program's fsync", lambda: os.fsync(other.fileno()))
            for each in (one, other):
                os.fsync(each.fileno())
            with open(r.at("f"), "r+b", buffering=0) as later:
                os.fsync(later.fileno())
        clean(r.verify())


def a_failed_write_that_is_not_repeated(binary, folder):
    """Nobody writes the page again: the old bytes stand, all others are well, and the volume is clean."""
    with rig.Rig(binary, folder) as r:
        hit = ledger.noise(1, 100_000)
        put(r.at("hit"), hit)
        r.disk.fail("write", r.sector(r.at("hit"), 7))
        with open(r.at("hit"), "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"x" * 500, FIRST + 6 * CAP + 100)
            fails(errno.EIO, "fsync", lambda: os.fsync(file.fileno()))
        r.disk.heal()
        r.remount()
        demand(read(r.at("hit")) == hit, "the old bytes, which never left the disk")
        clean(r.verify())


def a_page_that_cannot_be_read(binary, folder):
    """One sealed page's sector cannot be read: it costs the two pages of 4 KiB that its bytes lie in, and no more."""
    with rig.Rig(binary, folder) as r:
        data, other = ledger.noise(1, 300_000), ledger.noise(2, 50_000)
        put(r.at("hit"), data)
        put(r.at("other"), other)
        r.remount()
        r.disk.fail("read", r.sector(r.at("hit"), 20))
        low, high = FIRST + 19 * CAP, FIRST + 20 * CAP
        touched = [(page, page + rig.PAGE) for page in range(low - low % rig.PAGE, high, rig.PAGE)]
        got, bad = judge.read_all(r.at("hit"))
        demand(bad == touched, f"unreadable is {bad}, not only {touched}")
        for start, end in touched:
            got = got[:start] + data[start:end] + got[end:]
        demand(got == data, "the other pages of the file")
        demand(read(r.at("other")) == other, "another file")
        with open(r.at("hit"), "r+b", buffering=0) as file:
            # Wholly new pages need nothing of what stood there.
            os.pwrite(file.fileno(), b"n" * rig.PAGE * 2, 100 * 1024)
            os.fsync(file.fileno())
        r.disk.heal()
        data = data[: 100 * 1024] + b"n" * rig.PAGE * 2 + data[100 * 1024 + rig.PAGE * 2 :]
        demand(read(r.at("hit")) == data, "all of it, after the disk was well, without a remount")
        clean(r.verify())


def a_move_whose_header_cannot_be_written(binary, folder):
    """A file that moves to another directory names both in its header first. While that cannot be written the move fails,
    each time anew, and the file stays readable where it is."""
    for opened in (False, True):
        with rig.Rig(binary, os.path.join(folder, str(opened))) as r:
            data = ledger.noise(1, 20_000)
            os.mkdir(r.at("a"))
            os.mkdir(r.at("b"))
            put(r.at("a", "f"), data)
            r.remount()
            held = open(r.at("a", "f"), "rb") if opened else None
            try:
                r.disk.fail("write", r.sector(r.at("a", "f"), 0))
                for attempt in ("first", "second", "third"):
                    fails(errno.EIO, f"the {attempt} move", lambda: os.rename(r.at("a", "f"), r.at("b", "f")))
                demand(read(r.at("a", "f")) == data, "the file, where it is")
                r.disk.heal()
                os.rename(r.at("a", "f"), r.at("b", "f"))
            finally:
                if held:
                    held.close()
            r.remount()
            demand(read(r.at("b", "f")) == data, "the file, where it went")
            clean(r.verify())


def a_cut_whose_floor_cannot_be_written(binary, folder):
    """A truncation below the recorded floor lowers that one durably first."""
    with rig.Rig(binary, folder) as r:
        data = ledger.noise(1, 100_000)
        put(r.at("f"), data)
        r.remount()
        demand(read(r.at("f")) == data, "before")
        put(r.at("f"), data[:5])
        put(r.at("f"), data)
        r.disk.fail("write", r.sector(r.at("f"), 0))
        for attempt in ("first", "second"):
            fails(errno.EIO, f"the {attempt} cut", lambda: os.truncate(r.at("f"), 9_000))
        r.disk.heal()
        os.truncate(r.at("f"), 9_000)
        r.remount()
        demand(read(r.at("f")) == data[:9_000], "the cut file")
        clean(r.verify())


def a_disk_that_fails_under_load(binary, folder, kind):
    """Everything of a kind fails at some moment while a workload runs. The workload sees an error and stops; when the
    disk is well and all is mounted again, what had been acknowledged is there."""
    for seed in (1, 2, 3):
        with rig.Rig(binary, os.path.join(folder, str(seed))) as r:
            book_path = os.path.join(r.folder, "ledger")
            process = lanes.scribe(r.mnt, book_path, seed, 100_000)
            try:
                cleanup.wait_for("the workload", lambda: os.path.exists(book_path) and os.stat(book_path).st_size > 20_000 * seed)
                r.disk.fail(kind)
                end = time.monotonic() + cleanup.PATIENCE
                while process.poll() is None and time.monotonic() < end:
                    time.sleep(0.02)
                demand(process.poll() is not None, f"the workload goes on for a minute although every {kind} fails")
                said = process.stderr.read()
                with open(book_path, encoding="utf-8") as book:
                    stopped = json.loads(book.read().splitlines()[-1]).get("stopped", f"no error; {said}")
                demand("Input/output" in stopped or "Read-only" in stopped, f"the workload was told: {stopped}")
            finally:
                cleanup.end_process(process)
            r.disk.heal()
            r.remount()
            book = ledger.Ledger(book_path)
            verdict = judge.Judge(r.mnt, book.at(ledger.ENDLESS - 1), True).run()
            demand(verdict.clean, f"seed {seed}: {verdict}")
            demand(sum(op.ack != ledger.ENDLESS for op in book.order) > 20, "something was acknowledged")
            put(r.at("after"), b"works")
            clean(r.verify())


def writes_fail_under_load(binary, folder):
    """All writes."""
    a_disk_that_fails_under_load(binary, folder, "write")


def flushes_fail_under_load(binary, folder):
    """All flushes."""
    a_disk_that_fails_under_load(binary, folder, "flush")


TESTS = [
    a_page_that_cannot_be_written, every_program_is_told, a_failed_write_that_is_not_repeated, a_page_that_cannot_be_read,
    a_move_whose_header_cannot_be_written, a_cut_whose_floor_cannot_be_written, writes_fail_under_load,
    flushes_fail_under_load,
]  # fmt: skip
