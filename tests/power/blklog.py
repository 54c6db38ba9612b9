"""The block log of dm-log-writes, as qemu's blklogwrites writes it: a superblock, then entries with their data."""

import os
import struct

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")


class BadLog(Exception):
    """The file is no block log, or it is cut."""


class Entry:
    """One write, flush or discard. `at` is where its data lies in the log, `end` where the next entry begins."""

    __slots__ = ("offset", "length", "flags", "at", "end")

    def __init__(self, offset, length, flags, at, end):
        self.offset, self.length, self.flags, self.at, self.end = offset, length, flags, at, end

    @property
    def flush(self):
        return bool(self.flags & FLUSH)

    @property
    def fua(self):
        return bool(self.flags & FUA)

    @property
    def discard(self):
        return bool(self.flags & DISCARD)

    def __repr__(self):
        kind = "flush" if self.flush else "discard" if self.discard else "write"
        return f"{kind} {self.length} at {self.offset}"


def entries(path):
    """All entries, in the order in which they were begun."""
    out = []
    with open(path, "rb") as log:
        size = os.fstat(log.fileno()).st_size
        head = log.read(_SUPER.size)
        if len(head) < _SUPER.size:
            raise BadLog(f"{path}: {len(head)} bytes are no block log")
        magic, version, count, sector = _SUPER.unpack(head)
        if magic != MAGIC or version != 1:
            raise BadLog(f"{path}: magic {magic:#x}, version {version}")
        if sector < 512 or sector & (sector - 1):
            raise BadLog(f"{path}: sector size {sector}")
        at = sector
        for number in range(count):
            log.seek(at)
            raw = log.read(_ENTRY.size)
            if len(raw) < _ENTRY.size:
                raise BadLog(f"{path}: entry {number} of {count} is cut")
            where, sectors, flags, extra = _ENTRY.unpack(raw)
            at += sector
            if flags & MARK:
                at += -(-extra // sector) * sector
                continue
            length = sectors * sector
            stored = 0 if flags & DISCARD else length
            if at + stored > size:
                raise BadLog(f"{path}: the data of entry {number} of {count} is cut")
            out.append(Entry(where * sector, length, flags, at, at + stored))
            at += stored
    return out
