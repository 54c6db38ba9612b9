"""What was done, and what was acknowledged when.

The ledger is a file of JSON lines. An operation is written down before it begins, with the position of the disk's log;
an acknowledgement after the call that gave it has returned. A *position* is a number that only grows: the length of
the block log, or a count where there is none.

Content operations (on the file `file`): write, truncate, zero, adopt. Name operations: create, link, unlink, rename,
replace, mkdir, movedir. Databases, each in a directory of its own in the root: database, commit. Files and directories have numbers; 0 is the root. A name operation sets one or two *places*,
(directory, name), to a file, a directory or nothing.
"""

import json
import random

ENDLESS = 1 << 62


def noise(seed, length):
    """The bytes that a write with this seed wrote."""
    return random.Random(seed).randbytes(length)


class Writer:
    """Appends to a ledger. Every line is handed to the kernel at once, so that a killed scribe leaves whole lines."""

    def __init__(self, path, position, first=0):
        self.file = open(path, "ab", buffering=0)
        self.position = position
        self.next = first

    def op(self, kind, **facts):
        number = self.next
        self.next += 1
        self._put({"n": number, "op": kind, "begin": self.position(), **facts})
        return number

    def ack(self, numbers, time, closing=False):
        if numbers:
            self._put({"ack": sorted(numbers), "pos": self.position(), "t": time, "close": closing})

    def void(self, number):
        """The operation was refused as unsupported: it did nothing."""
        self._put({"void": number})

    def note(self, **facts):
        self._put(facts)

    def _put(self, record):
        self.file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")


class Op:
    """One operation. `ack` is the position at which it was acknowledged (ENDLESS: never), `bytes_only` whether only its
    own bytes were (O_DSYNC, msync)."""

    __slots__ = ("n", "kind", "begin", "ack", "bytes_only", "facts")

    def __init__(self, record):
        self.n, self.kind, self.begin = record["n"], record["op"], record["begin"]
        self.ack, self.bytes_only, self.facts = ENDLESS, bool(record.get("dsync")), record

    def __getitem__(self, name):
        return self.facts[name]


class Ledger:
    """A ledger that was read back."""

    def __init__(self, path, closes_before=None):
        """`closes_before`: the time of a kill; the close calls that returned before it acknowledge (None: none do)."""
        self.ops = {}
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                record = json.loads(line)
                if "op" in record:
                    self.ops[record["n"]] = Op(record)
                elif "void" in record:
                    del self.ops[record["void"]]
                elif "ack" in record:
                    if record["close"] and (closes_before is None or record["t"] >= closes_before):
                        continue
                    for number in record["ack"]:
                        if number in self.ops:
                            op = self.ops[number]
                            op.ack = min(op.ack, record["pos"])
                            # A later fsync makes of a partial acknowledgement a full one, from its position on.
        self.order = [self.ops[number] for number in sorted(self.ops)]

    def at(self, position):
        """The model of what may be on the disk at a position."""
        return Model([op for op in self.order if op.begin < position], position)


class Model:
    """What may be there after a cut at `position`."""

    def __init__(self, ops, position):
        self.position, self.ops = position, ops
        self.contents, self.places, self.files, self.linked = {}, {}, set(), set()
        self.may_be_gone, self.certain = set(), set()
        self.databases = {}  # directory -> [transactions acknowledged, transactions begun]
        for op in ops:
            kind, acked = op.kind, op.ack <= position
            if kind == "database":
                self.databases[op["path"]] = [0, 0]
                continue
            if kind == "commit":
                known = self.databases[op["path"]]
                known[1] = op["transaction"]
                if acked:
                    known[0] = op["transaction"]
                continue
            if kind in ("write", "truncate", "zero", "adopt"):
                self.contents.setdefault(op["file"], []).append((op, acked))
                if acked:
                    self.certain.add(op["file"])
                continue
            if kind in ("create", "link"):
                self.files.add(op["file"])
                self._set(op["dir"], op["name"], ("file", op["file"]), acked)
                if kind == "link":
                    self.linked.add(op["file"])
                if acked:
                    self.certain.add(op["file"])
            elif kind == "unlink":
                self._set(op["dir"], op["name"], None, acked)
                self.may_be_gone.add(op["file"])
            elif kind in ("rename", "replace"):
                self._set(op["dir"], op["name"], None, acked)
                self._set(op["todir"], op["toname"], ("file", op["file"]), acked)
                if kind == "replace" and op["victim"] is not None:
                    self.may_be_gone.add(op["victim"])
            elif kind == "mkdir":
                self._set(op["dir"], op["name"], ("dir", op["new"]), acked)
            elif kind == "movedir":
                self._set(op["dir"], op["name"], None, acked)
                self._set(op["todir"], op["toname"], ("dir", op["sub"]), acked)
            else:
                raise ValueError(f"the ledger has an unknown operation {kind}")

    def _set(self, directory, name, value, acked):
        place = self.places.setdefault(directory, {})
        if acked:
            place[name] = [value]
        else:
            place.setdefault(name, [None])
            if value not in place[name]:
                place[name].append(value)

    def history(self, file):
        """The last operations on a file, for a person who looks for a defect."""
        parts = []
        for op in self.ops:
            if file in (op.facts.get("file"), op.facts.get("victim")):
                facts = {k: v if not isinstance(v, str) else v[:12] for k, v in op.facts.items()
                         if k not in ("n", "op", "begin", "file", "seed", "blob")}  # fmt: skip
                acked = f"acknowledged at {op.ack}" if op.ack <= self.position else "not acknowledged"
                parts.append(f"  {op.n} {op.kind} {facts} begun at {op.begin}, {acked}")
        return f"history of file {file} (the cut is at {self.position}):\n" + "\n".join(parts[-12:])

    def must_be_reachable(self):
        """Files that were acknowledged and that nothing may have removed."""
        return self.certain - self.may_be_gone

    def sizes(self, file):
        """The least and the greatest size that a file may have."""
        low = high = size = 0
        for op, acked in self.contents.get(file, []):
            if op.kind == "write":
                size = max(size, op["off"] + op["len"])
            elif op.kind in ("truncate", "adopt"):
                size = op["size"]
            if acked and op.bytes_only:
                low, high = max(low, op["off"] + op["len"]), max(high, size)
            elif acked:
                low = high = size
            else:
                low, high = min(low, size), max(high, size)
        return low, high

    def candidates(self, file, size):
        """(start, end, alternatives, acknowledged) of a file's stretches up to `size`. An alternative is an operation, or
        None for zeros; `acknowledged` says that exactly one thing may be there."""
        ops = self.contents.get(file, [])
        edges = {0, size}
        for op, _ in ops:
            edges.update(edge for edge in (*extent(op), op["size"] if op.kind == "adopt" else 0) if edge < size)
        edges = sorted(edges)
        for start, end in zip(edges, edges[1:]):
            found = [None]
            sure = False
            for op, acked in ops:
                low, high = extent(op)
                if low <= start and end <= high:
                    value = op if op.kind in ("write", "adopt") and start < low + length(op) else None
                    if acked:
                        found, sure = [value], True
                    elif value not in found:
                        found.append(value)
            yield start, end, found, sure and len(found) == 1


def length(op):
    return op["size"] if op.kind == "adopt" else op["len"]


def extent(op):
    """The bytes that an operation sets: a truncation sets all after its end to zeros."""
    if op.kind == "truncate":
        return op["size"], ENDLESS
    if op.kind == "adopt":
        return 0, ENDLESS
    return op["off"], op["off"] + op["len"]


def data_of(op, start, end):
    """The bytes that an alternative has at [start, end)."""
    if op is None:
        return bytes(end - start)
    if op.kind == "adopt":
        with open(op["blob"], "rb") as blob:
            blob.seek(start)
            return blob.read(end - start)
    return noise(op["seed"], op["len"])[start - op["off"] : end - op["off"]]
