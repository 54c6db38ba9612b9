"""The lanes: power cuts at block level, and kills of the daemon."""

import json
import os
import random
import subprocess
import sys
import time

import blklog
import cleanup
import cutter
import judge
import ledger
import recorder
import targets

HERE = os.path.dirname(os.path.abspath(__file__))


class Result:
    """What a lane found."""

    def __init__(self, name):
        self.name, self.images, self.lost, self.damaged, self.failures = name, 0, 0, 0, []
        self.unusable = self.files = self.bytes = self.stillborn = self.operations = self.acknowledged = 0
        self.seconds = 0.0
        self.slowest = (0.0, "")

    def timed(self, what, began):
        """Remembers the slowest step; gives the time now."""
        now = time.monotonic()
        self.slowest = max(self.slowest, (now - began, what))
        return now

    def add(self, other):
        """The same lane with another seed."""
        for name in ("images", "lost", "damaged", "failures", "unusable", "files", "bytes", "stillborn", "operations",
                     "acknowledged", "seconds"):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest = max(self.slowest, other.slowest)

    def take(self, what, verdict):
        self.images += 1
        self.lost += bool(verdict.lost)
        self.damaged += bool(verdict.damaged)
        self.files += verdict.files
        self.bytes += verdict.bytes
        self.stillborn += verdict.stillborn
        if not verdict.clean:
            place = 0 if verdict.lost else len(self.failures)
            self.failures.insert(place, f"{what}:\n{verdict}")

    def fail(self, what, error):
        self.images += 1
        self.damaged += 1
        self.failures.append(f"{what}:\n{error}")

    def __str__(self):
        unusable = f"; {self.unusable} more that the filesystem below refused" if self.unusable else ""
        return (
            f"{self.name}: {self.images} states, {self.lost} with lost data, {self.damaged} damaged "
            f"({self.operations} operations, {self.acknowledged} acknowledged; {self.files} files and "
            f"{self.bytes >> 20} MiB compared, {self.stillborn} interrupted creations{unusable}; {self.seconds:.0f} s, "
            f"slowest step: {self.slowest[1] or 'none timed'}, {self.slowest[0]:.1f} s)"
        )


def scribe(root, ledger_path, seed, ops, log=None, store=None, adopt=None, target=None):
    words = [sys.executable, os.path.join(HERE, "scribe.py"), "--root", root, "--ledger", ledger_path,
             "--seed", str(seed), "--ops", str(ops)]  # fmt: skip
    for name, value in (("--log", log), ("--store", store), ("--adopt", adopt)):
        if value:
            words += [name, value]
    if target and not target.long_names:
        words.append("--short-names")
    if target and target.relock(root):
        words += ["--relock", json.dumps(target.relock(root))]
    inherited = target and target.environment() or os.environ
    environment = {**inherited, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def make_dirs(folder, *names):
    paths = [os.path.join(folder, name) for name in names]
    for path in paths:
        os.makedirs(path, exist_ok=True)
    return paths


class Power:
    """One recorded run on one filesystem, and the images cut from it."""

    def __init__(self, target, fs, folder, seed, ops, torn=False, lying=0):
        self.target, self.fs, self.folder, self.seed, self.ops = target, fs, folder, seed, ops
        self.torn, self.lying = torn, lying
        kind = " on a lying disk" if lying else " torn at 512 bytes" if torn else ""
        self.result = Result(f"{target.name} on {fs}{kind}")
        self.base, self.log = (os.path.join(folder, n) for n in ("base.img", "block.log"))
        self.ledger = None

    def run(self, images, again=0):
        """Records, cuts `images` times; `again` of the images are used, recorded and cut once more."""
        begun = time.monotonic()
        os.makedirs(self.folder, exist_ok=True)
        self._empty_volume()
        first = self._record(self.base, self.seed)
        self._cut(self.base, images, first, again)
        self.result.seconds = time.monotonic() - begun
        return self.result

    def _empty_volume(self):
        recorder.make_image(self.base, self.fs)
        (disk,) = make_dirs(self.folder, "disk")
        with cleanup.Stack() as undo:
            loop = cleanup.Loop(self.base)
            undo.add("the loop device", loop.detach)
            subprocess.run(["mount", "-t", self.fs, "-o", recorder.OPTIONS[self.fs], loop.device, disk], check=True)
            undo.add("the new filesystem", cleanup.umount, disk)
            store = os.path.join(disk, "store")
            os.mkdir(store)
            self.target.prepare(store)

    def _record(self, base, seed, adopt=None):
        """Runs the workload on a copy of `base` under the recorder; gives the first entry that may be cut at."""
        image = os.path.join(self.folder, "disk.img")
        cutter.copy_sparse(base, image)
        disk, mountpoint = make_dirs(self.folder, "disk", "mnt")
        self.ledger = os.path.join(self.folder, f"ledger-{seed}")
        with cleanup.Stack() as undo:
            disk_log = recorder.Recorder(image, self.log, self.folder, self.fs, disk)
            undo.add("the recorder", disk_log.close)
            undo.add("the target", self.target.discard, mountpoint)
            store = os.path.join(disk, "store")
            root = self.target.mount(store, mountpoint)
            start, clock = disk_log.position(), time.monotonic()
            process = scribe(root, self.ledger, seed, self.ops, self.log, store, adopt, self.target)
            undo.add("the scribe", cleanup.end_process, process)
            try:
                _, said = process.communicate(timeout=600)
            except subprocess.TimeoutExpired as error:
                raise targets.Failed(f"{self.result.name}: the workload hangs") from error
            if process.returncode:
                raise targets.Failed(f"{self.result.name}: the workload: {said.strip()}; daemon: {self.target.said()}")
            clock = self.result.timed("the workload", clock)
            self.target.unmount(mountpoint)
            self.result.timed("unmount after the workload", clock)
        os.unlink(image)
        entries = blklog.entries(self.log)
        return next((i for i, entry in enumerate(entries) if entry.end > start), len(entries))

    def _cut(self, base, images, first, again=0):
        book = ledger.Ledger(self.ledger)
        self.result.operations += len(book.order)
        self.result.acknowledged += sum(op.ack != ledger.ENDLESS for op in book.order)
        knife = cutter.Cutter(base, self.log, self.folder, self.lying)
        try:
            plan = knife.plan(images, self.seed, self.torn, first)
            twice = {number * len(plan) // again for number in range(again)} if again else set()
            kept = []
            for number, cut in enumerate(plan):
                path = knife.image(cut)
                try:
                    what = f"{self.result.name}, {cut}"
                    survey = self._judge(path, book, cut, what, number in twice)
                    if survey:
                        kept.append((path + ".again", survey, cut))
                finally:
                    os.unlink(path)
        finally:
            knife.close()
            os.unlink(knife.rolling)
        for number, (path, survey, cut) in enumerate(kept):
            try:
                begin = self._record(path, self.seed + 7919 * (number + 1), survey)
                self._cut(path, max(2, images // (4 * len(kept))), begin)
            except targets.Failed as error:
                self.result.fail(f"{self.result.name}, used again after {cut}", error)
            finally:
                os.unlink(path)

    def _judge(self, image, book, cut, what, again):
        """Judges one image; with `again` also keeps it, as it is after recovery, and what is in it."""
        disk, mountpoint = make_dirs(self.folder, "disk", "mnt")
        found, clock = None, time.monotonic()
        with cleanup.Stack() as undo:
            loop = cleanup.Loop(image)
            undo.add("the loop device", loop.detach)
            mounted = subprocess.run(
                ["mount", "-t", self.fs, "-o", recorder.OPTIONS[self.fs], loop.device, disk], capture_output=True, text=True
            )
            if mounted.returncode and self.torn:
                # ext4's superblock spans two sectors: torn, it is refused, whatever lies above.
                self.result.unusable += 1
                return None
            if mounted.returncode:
                self.result.fail(what, f"the filesystem below can't be mounted: {mounted.stderr.strip()}")
                return None
            entry = undo.add("the image", cleanup.umount, disk)
            undo.add("the target", self.target.discard, mountpoint)
            store = os.path.join(disk, "store")
            try:
                clock = self.result.timed("the disk", clock)
                root = self.target.mount(store, mountpoint)
                clock = self.result.timed("mount", clock)
                verdict = judge.Judge(root, book.at(cut.position), self.target.stillborn).run()
                clock = self.result.timed("reading", clock)
                if not verdict.clean:
                    verdict.histories.insert(0, "the daemon said: " + self.target.said()[-600:])
                if again and verdict.clean:
                    blobs = os.path.join(self.folder, f"blobs-{cut.index}")
                    os.makedirs(blobs, exist_ok=True)
                    found = judge.survey(root, blobs)
                self._still_works(root, verdict)
                clock = self.result.timed("writing", clock)
                self.target.unmount(mountpoint)
                clock = self.result.timed("unmount", clock)
                verdict.damaged += self.target.verify(store)
                clock = self.result.timed("verify", clock)
                self.result.take(what, verdict)
            except (targets.Failed, TimeoutError) as error:
                self.result.fail(what, error)
                return None
            if found:
                cleanup.umount(disk)
                undo.drop(entry)
                cutter.copy_sparse(image, image + ".again")
        return found

    @staticmethod
    def _still_works(root, verdict):
        """After the cut the volume takes new files and gives old ones up."""
        path = os.path.join(root, "after-the-cut")
        try:
            with open(path, "wb") as out:
                out.write(b"works" * 2000)
                out.flush()
                os.fsync(out.fileno())
            with open(path, "rb") as back:
                if back.read() != b"works" * 2000:
                    verdict.damaged.append("a file written after the cut reads back wrong")
            os.unlink(path)
        except OSError as error:
            verdict.damaged.append(f"writing after the cut: {error}")


class Kill:
    """The daemon is killed at random moments and mounted again at once, on the same store."""

    def __init__(self, target, fs, folder, seed):
        self.target, self.fs, self.folder, self.seed = target, fs, folder, seed
        self.result = Result(f"{target.name} on {fs}, kill -9")

    def run(self, kills):
        begun = time.monotonic()
        os.makedirs(self.folder, exist_ok=True)
        image = os.path.join(self.folder, "kill.img")
        recorder.make_image(image, self.fs)
        disk, mountpoint = make_dirs(self.folder, "disk", "mnt")
        dice = random.Random(self.seed)
        with cleanup.Stack() as undo:
            undo.add("the image", os.unlink, image)
            loop = cleanup.Loop(image)
            undo.add("the loop device", loop.detach)
            subprocess.run(["mount", "-t", self.fs, "-o", recorder.OPTIONS[self.fs], loop.device, disk], check=True)
            undo.add("the filesystem", cleanup.umount, disk)
            store = os.path.join(disk, "store")
            os.mkdir(store)
            self.target.prepare(store)
            undo.add("the target", self.target.discard, mountpoint)
            root = self.target.mount(store, mountpoint)
            before = {}
            for number in range(kills):
                what = f"{self.result.name}, kill {number} of seed {self.seed}"
                try:
                    before = self._round(number, dice, store, mountpoint, root, before, what)
                except (targets.Failed, TimeoutError) as error:
                    self.result.fail(what, error)
                    self.target.discard(mountpoint)
                    self.target.mount(store, mountpoint)
            self.target.unmount(mountpoint)
            problems = self.target.verify(store)
            if problems:
                self.result.fail(f"{self.result.name}, after all kills", "\n".join(problems))
        self.result.seconds = time.monotonic() - begun
        return self.result

    def _round(self, number, dice, store, mountpoint, root, before, what):
        folder = os.path.join(root, f"round{number:03d}")
        os.mkdir(folder)
        book_path = os.path.join(self.folder, f"ledger{number}")
        with cleanup.Stack() as undo:
            process = scribe(folder, book_path, self.seed * 1000 + number, 100_000)
            undo.add("the scribe", cleanup.end_process, process)
            lines = dice.randint(3, 150)

            def busy():
                if process.poll() is not None:
                    raise targets.Failed(f"the workload ended by itself: {process.stderr.read().strip()}")
                return os.path.exists(book_path) and _lines(book_path) >= lines

            cleanup.wait_for("the workload", busy)
            # Not in step with the lines: anywhere within the operations that follow.
            time.sleep(dice.random() * 0.02)
            killed = time.monotonic()
            self.target.kill()
            cleanup.umount_lazily(mountpoint)
            root = self.target.mount(store, mountpoint)
            try:
                process.communicate(timeout=cleanup.PATIENCE)
            except subprocess.TimeoutExpired as error:
                raise targets.Failed("the workload hangs after the kill of the daemon") from error
        book = ledger.Ledger(book_path, killed if self.target.close_acknowledges else None)
        self.result.operations += len(book.order)
        self.result.acknowledged += sum(op.ack != ledger.ENDLESS for op in book.order)
        verdict = judge.Judge(os.path.join(root, f"round{number:03d}"), book.at(ledger.ENDLESS - 1), self.target.stillborn).run()
        after = digest(root)
        for path, old in before.items():
            if after.get(path) != old:
                verdict.lost.append(f"{path}: was judged in an earlier round and has changed since")
        self.result.take(what, verdict)
        return after


def _lines(path):
    with open(path, "rb") as file:
        return file.read().count(b"\n")


def digest(root):
    """A hash of every file's bytes (or the error that it gives), by path."""
    import hashlib

    found = {}
    for path, below, names in os.walk(root):
        below.sort()
        for name in names:
            full = os.path.join(path, name)
            try:
                data, bad = judge.read_all(full)
                found[os.path.relpath(full, root)] = (hashlib.sha256(data).hexdigest(), tuple(bad))
            except OSError as error:
                found[os.path.relpath(full, root)] = error.errno
    return found
