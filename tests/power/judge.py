"""Compares what is there with what may be there.

lost      acknowledged data is missing, wrong or unreadable
damaged   something else is wrong: bytes that nobody wrote, an unreadable page, a name that was never given
"""

import errno
import json
import os
import stat

import database

PAGE = 4096


class Verdict:
    def __init__(self):
        self.lost, self.damaged, self.stillborn, self.files, self.bytes = [], [], 0, 0, 0
        self.histories = []

    @property
    def clean(self):
        return not self.lost and not self.damaged

    def __str__(self):
        lines = [f"lost: {text}" for text in self.lost[:5]] + [f"damaged: {text}" for text in self.damaged[:5]]
        more = len(self.lost) + len(self.damaged) - len(lines)
        return "\n".join(lines + ([f"and {more} more"] if more > 0 else []) + self.histories[:2])


class Judge:
    """Judges one tree. `stillborn`: whether a file whose creation was never acknowledged may refuse to be opened."""

    def __init__(self, root, model, stillborn=False):
        self.root, self.model, self.may_be_stillborn, self.verdict = root, model, stillborn, Verdict()
        self.found, self.ambiguous = {}, set()

    def run(self):
        self._directory(0, self.root)
        for path, (sure, most) in sorted(self.model.databases.items()):
            lost, damaged = database.judge(self.root, path, sure, most, self.may_be_stillborn)
            self.verdict.lost += lost
            self.verdict.damaged += damaged
        for file in sorted(self.model.must_be_reachable()):
            if file not in self.found:
                self.verdict.lost.append(f"file {file} was acknowledged and has no name any more")
                self.verdict.histories.append(self.model.history(file))
        for file, paths in self.found.items():
            if len(paths) > 1 and file not in self.model.linked and file not in self.ambiguous:
                self.verdict.damaged.append(f"file {file} was renamed and has both names: {paths}")
        return self.verdict

    def _directory(self, number, path):
        expected = self.model.places.get(number, {})
        try:
            there = set(os.listdir(path))
            if number == 0:
                there -= set(self.model.databases)
        except OSError as error:
            self.verdict.lost.append(f"{self._short(path)}: {error.strerror}")
            return
        for name in sorted(there - set(expected)):
            self.verdict.damaged.append(f"{self._short(path)}/{name[:60]}: nobody gave that name")
        for name, may in sorted(expected.items()):
            self._place(path, name, may, name in there)

    def _place(self, directory, name, may, there):
        path = os.path.join(directory, name)
        short = self._short(path)
        if not there:
            if None not in may:
                self.verdict.lost.append(f"{short}: gone, though its {may[0][0]} was acknowledged under this name")
            return
        certain = None not in may
        if may == [None]:
            self.verdict.lost.append(f"{short}: back, though its removal was acknowledged")
            return
        try:
            kind = os.lstat(path).st_mode
        except OSError as error:
            (self.verdict.lost if certain else self.verdict.damaged).append(f"{short}: stat: {error.strerror}")
            return
        if stat.S_ISDIR(kind):
            dirs = [value[1] for value in may if value and value[0] == "dir"]
            if not dirs:
                self.verdict.damaged.append(f"{short}: a directory in a file's place")
            else:
                self._directory(dirs[0], path)
            return
        files = [value[1] for value in may if value and value[0] == "file"]
        if not files:
            self.verdict.damaged.append(f"{short}: a file in a directory's place")
            return
        self.verdict.files += 1
        try:
            data, bad = read_all(path)
        except OSError as error:
            # Which of the files that the name may have is here can't be told: if one of them may be stillborn, it is that
            # one. An acknowledged one must then be found under another name, or it is missed at the end.
            unsure = [file for file in files if file not in self.model.certain]
            if unsure and self.may_be_stillborn and error.errno == errno.EIO:
                self.verdict.stillborn += 1
                files = unsure
            else:
                target = self.verdict.lost if len(unsure) < len(files) else self.verdict.damaged
                target.append(f"{short}: {error.strerror} at open")
                self.verdict.histories += [self.model.history(file) for file in files]
            for file in files:
                self.found.setdefault(file, []).append(short)
            return
        self.verdict.bytes += len(data)
        results = [(self._content(file, short, data, bad), file) for file in files]
        results.sort(key=lambda result: (len(result[0][0]), len(result[0][1])))
        (lost, damaged), file = results[0]
        self.verdict.lost += lost
        self.verdict.damaged += damaged
        if lost or damaged:
            self.verdict.histories.append(self.model.history(file))
        # Two empty files look alike: each that may be here and would be in order counts as found.
        if len(results) > 1 and not any(results[1][0]):
            self.ambiguous.update(files)
        for result, other in results:
            if other == file or not (any(result) or any(results[0][0])):
                self.found.setdefault(other, []).append(short)

    def _content(self, file, short, data, bad):
        lost, damaged = [], []
        low, high = self.model.sizes(file)
        if len(data) < low:
            lost.append(f"{short} (file {file}): {len(data)} bytes, of which {low} were acknowledged")
        if len(data) > high:
            damaged.append(f"{short} (file {file}): {len(data)} bytes, more than the {high} ever written")
        from ledger import data_of

        for start, end, may, sure in self.model.candidates(file, len(data)):
            unreadable = [(max(a, start), min(b, end)) for a, b in bad if a < end and start < b]
            for a, b in unreadable:
                (lost if sure else damaged).append(f"{short} (file {file}): bytes {a} to {b} can't be read")
            if unreadable:
                continue
            got = data[start:end]
            alternatives = [data_of(op, start, end) for op in may]
            if got in alternatives:
                continue
            wrong = next((i for i, byte in enumerate(got) if all(byte != a[i] for a in alternatives)), None)
            if wrong is not None:
                zero = "zeros" if not any(got[wrong : wrong + 16]) else "other bytes"
                (lost if sure else damaged).append(
                    f"{short} (file {file}): {zero} from byte {start + wrong} (stretch {start} to {end}, operations "
                    f"{[op and op.n for op in may]}, {'acknowledged' if sure else 'any of them allowed'})"
                )
        return lost, damaged

    def _short(self, path):
        parts = os.path.relpath(path, self.root).split("/")
        return "/".join(part if len(part) < 30 else part[:20] + "…" for part in parts)


def read_all(path):
    """A file's bytes, and the ranges that can't be read (zeros stand for them). Raises if it can't be opened."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        data, bad, at = bytearray(), [], 0
        while at < size:
            step = min(1 << 20, size - at)
            try:
                part = os.pread(fd, step, at)
            except OSError:
                part = None
            if part is None:
                # Page by page: the good ones around the bad one count.
                part = bytearray()
                for page in range(at, at + step, PAGE):
                    want = min(PAGE, at + step - page)
                    try:
                        piece = os.pread(fd, want, page)
                        part += piece + bytes(want - len(piece))
                    except OSError:
                        part += bytes(want)
                        bad.append((page, page + want))
            if not part:
                bad.append((at, size))
                data += bytes(size - at)
                break
            data += part
            at += len(part)
        return bytes(data), bad
    finally:
        os.close(fd)


def survey(root, blobs):
    """What is there now, for a scribe that goes on: its bytes copied to `blobs`."""
    dirs, files = [], []
    for path, below, names in os.walk(root):
        below.sort()
        inside = os.path.relpath(path, root)
        if inside != ".":
            dirs.append(inside)
        for name in sorted(names):
            full = os.path.join(path, name)
            try:
                data, bad = read_all(full)
            except OSError:
                # An interrupted creation: it must go without trouble.
                os.unlink(full)
                continue
            if bad:
                raise OSError(errno.EIO, f"{full}: unreadable before the second run")
            blob = os.path.join(blobs, f"blob{len(files)}")
            with open(blob, "wb") as out:
                out.write(data)
            files.append({"path": os.path.relpath(full, root), "size": len(data), "blob": blob,
                          "links": os.stat(full).st_nlink})  # fmt: skip
    os.makedirs(blobs, exist_ok=True)
    target = os.path.join(blobs, "survey.json")
    with open(target, "w", encoding="utf-8") as out:
        json.dump({"dirs": dirs, "files": files}, out)
    return target
