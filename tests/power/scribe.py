"""The workload: changes files below a directory and keeps the ledger. A process of its own, so that it can hang or die.

usage: scribe.py --root DIR --ledger FILE --seed N --ops N [--log BLOCKLOG] [--store DIR] [--adopt FILE]
       [--relock JSON] [--short-names]
"""

import argparse
import ctypes
import errno
import json
import mmap
import os
import random
import subprocess
import sys
import time

import database
import ledger

LIBC = ctypes.CDLL(None, use_errno=True)
PUNCH_KEEP = 3
# What operations get when the daemon below was killed.
DEAD = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV, errno.EINTR, errno.ENOENT}
UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS}


class Scribe:
    def __init__(self, root, writer, seed, store, relock=None, short=False):
        self.short = short
        self.relock_commands, self.relocks, self.databases = relock, 0, {}
        self.root, self.ledger, self.dice, self.store = root, writer, random.Random(seed), store
        self.seed = seed * 1_000_003
        self.dirs = {0: None}  # number -> (parent, name)
        self.files = {}  # number -> {"place": (dir, name), "size": int, "extra": (dir, name) or None}
        self.fds = {}  # file -> descriptor, oldest first
        self.content = {}  # file -> numbers of content operations not yet acknowledged
        self.names = {}  # directory -> numbers of name operations not yet acknowledged
        self.next_file = self.next_dir = 1
        self.generation = ""  # keeps the names of a second run apart from the first one's

    # Paths

    def dir_path(self, number):
        parts = []
        while number:
            number, name = self.dirs[number]
            parts.append(name)
        return os.path.join(self.root, *reversed(parts))

    def path(self, place):
        return os.path.join(self.dir_path(place[0]), place[1])

    def fresh_name(self, prefix, number):
        # Now and then a name too long to be stored as it is.
        long = self.dice.random() < 0.15 and not self.short
        return f"{prefix}{self.generation}{number:05d}" + ("-" + "long" * 50 if long else "")

    def length(self):
        return self.dice.choice([self.dice.randint(1, 200), self.dice.randint(1, 9_000), self.dice.randint(1, 9_000),
                                 self.dice.randint(20_000, 120_000)])  # fmt: skip

    def descriptor(self, file):
        if file not in self.fds:
            while len(self.fds) >= 8:
                self.close(next(iter(self.fds)))
            self.fds[file] = os.open(self.path(self.files[file]["place"]), os.O_RDWR)
        return self.fds[file]

    # Acknowledgements

    def fsync(self, file):
        fd = self.descriptor(file)
        pending = list(self.content.get(file, ()))
        (os.fsync if self.dice.random() < 0.5 else os.fdatasync)(fd)
        self.acknowledge(file, pending)

    def acknowledge(self, file, pending, closing=False):
        self.ledger.ack(pending, time.monotonic(), closing)
        if not closing:
            self.content.setdefault(file, set()).difference_update(pending)

    def sync_dirs(self, *numbers):
        """Acknowledges name operations all of whose directories have been synced."""
        pending = {n: dirs for number in numbers for n, dirs in self.names.get(number, {}).items()}
        for number in set(numbers):
            fd = os.open(self.dir_path(number), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        done = []
        for n, dirs in pending.items():
            dirs.difference_update(numbers)
            if not dirs:
                done.append(n)
        for number in set(numbers):
            self.names.pop(number, None)
        self.ledger.ack(done, time.monotonic())

    def named(self, n, *dirs):
        left = set(dirs)
        for number in left.copy():
            self.names.setdefault(number, {})[n] = left

    def content_op(self, file, kind, **facts):
        n = self.ledger.op(kind, file=file, **facts)
        self.content.setdefault(file, set()).add(n)
        return n

    # Operations

    def put(self, file, offset, length, fd=None, dsync=False):
        self.seed += 1
        facts = {"dsync": True} if dsync else {}
        n = self.content_op(file, "write", off=offset, len=length, seed=self.seed, **facts)
        fd = self.descriptor(file) if fd is None else fd
        data = ledger.noise(self.seed, length)
        done = 0
        while done < length:
            done += os.pwrite(fd, data[done:], offset + done)
        self.files[file]["size"] = max(self.files[file]["size"], offset + length)
        return n

    def some_file(self):
        return self.dice.choice(list(self.files)) if self.files else self.create()

    def create(self, name=None, directory=None):
        file = self.next_file
        self.next_file += 1
        directory = self.dice.choice(list(self.dirs)) if directory is None else directory
        place = (directory, name or self.fresh_name("f", file))
        n = self.ledger.op("create", file=file, dir=place[0], name=place[1])
        self.named(n, directory)
        # The file's own fsync makes its creation certain, as on ext4 and XFS.
        self.content[file] = {n}
        self.files[file] = {"place": place, "size": 0, "extra": None}
        fd = os.open(self.path(place), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        while len(self.fds) >= 8:
            self.close(next(iter(self.fds)))
        self.fds[file] = fd
        if self.dice.random() < 0.9:
            self.put(file, 0, self.length())
        self.maybe_sync(file, 0.7)
        return file

    def maybe_sync(self, file, chance=0.6):
        if self.dice.random() < chance:
            self.fsync(file)

    def append(self):
        file = self.some_file()
        if self.files[file]["size"] < 400_000:
            self.put(file, self.files[file]["size"] + self.dice.choice([0, 0, 0, 0, 5_000]), self.length())
        self.maybe_sync(file)

    def overwrite(self):
        file = self.some_file()
        size = self.files[file]["size"]
        if not size:
            return
        for _ in range(self.dice.randint(1, 4)):
            offset = self.dice.randrange(size)
            if self.dice.random() < 0.5:
                offset -= offset % 4096
            self.put(file, offset, min(self.length(), size - offset))
        self.maybe_sync(file, 0.7)

    def dsync(self):
        file = self.some_file()
        fd = os.open(self.path(self.files[file]["place"]), os.O_RDWR | os.O_DSYNC)
        try:
            n = self.put(file, self.dice.randrange(self.files[file]["size"] + 1), self.dice.randint(1, 6_000), fd, True)
            self.ledger.ack([n], time.monotonic())
            self.content[file].discard(n)
        finally:
            os.close(fd)

    def map_sync(self):
        file = self.some_file()
        size = self.files[file]["size"]
        if not size:
            return
        offset = self.dice.randrange(size)
        length = min(self.dice.randint(1, 20_000), size - offset)
        with mmap.mmap(self.descriptor(file), size) as mapped:
            self.seed += 1
            n = self.content_op(file, "write", off=offset, len=length, seed=self.seed, dsync=True)
            mapped[offset : offset + length] = ledger.noise(self.seed, length)
            if self.dice.random() < 0.7:
                mapped.flush()
                self.ledger.ack([n], time.monotonic())
                self.content[file].discard(n)

    def truncate(self):
        file = self.some_file()
        size = self.dice.randint(0, self.files[file]["size"] + 6_000)
        self.content_op(file, "truncate", size=size)
        os.ftruncate(self.descriptor(file), size)
        self.files[file]["size"] = size
        if self.dice.random() < 0.5:
            self.put(file, size, self.dice.randint(1, 9_000))
        self.maybe_sync(file)

    def punch(self):
        file = self.some_file()
        size = self.files[file]["size"]
        if not size:
            return
        fd = self.descriptor(file)
        offset = self.dice.randrange(size)
        length = min(self.length(), size - offset)
        n = self.content_op(file, "zero", off=offset, len=length)
        if LIBC.fallocate(fd, PUNCH_KEEP, ctypes.c_int64(offset), ctypes.c_int64(length)):
            code = ctypes.get_errno()
            if code not in UNSUPPORTED:
                raise OSError(code, os.strerror(code))
            self.ledger.void(n)
            self.content[file].discard(n)
        self.maybe_sync(file)

    def sync_one(self):
        self.fsync(self.some_file())

    def close(self, file=None):
        if not self.fds:
            return
        file = self.dice.choice(list(self.fds)) if file is None else file
        pending = list(self.content.get(file, ()))
        os.close(self.fds.pop(file))
        self.acknowledge(file, pending, closing=True)

    def replace(self):
        """Writes a new file, syncs it, renames it over an old one: the old or the new is there, whole."""
        victim = self.some_file()
        todir, toname = self.files[victim]["place"]
        if self.files[victim]["extra"]:
            return
        file = self.create(directory=todir)
        self.fsync(file)
        place = self.files[file]["place"]
        n = self.ledger.op("replace", file=file, victim=victim, dir=place[0], name=place[1], todir=todir, toname=toname)
        self.named(n, todir)
        os.rename(self.path(place), self.path((todir, toname)))
        self.forget(victim)
        self.files[file]["place"] = (todir, toname)
        if self.dice.random() < 0.7:
            self.sync_dirs(todir)

    def forget(self, file):
        if file in self.fds:
            os.close(self.fds.pop(file))
        self.files.pop(file)
        self.content.pop(file, None)

    def move(self):
        file = self.some_file()
        source = self.files[file]["place"]
        target = (self.dice.choice(list(self.dirs)), self.fresh_name("m", self.ledger.next))
        n = self.ledger.op("rename", file=file, dir=source[0], name=source[1], todir=target[0], toname=target[1])
        self.named(n, source[0], target[0])
        os.rename(self.path(source), self.path(target))
        self.files[file]["place"] = target
        if self.dice.random() < 0.6:
            self.sync_dirs(source[0], target[0])
        elif self.dice.random() < 0.5:
            self.append_to(file)

    def append_to(self, file):
        self.put(file, self.files[file]["size"], self.dice.randint(1, 5_000))
        self.fsync(file)

    def link(self):
        file = self.some_file()
        if self.files[file]["extra"]:
            return
        target = (self.dice.choice(list(self.dirs)), self.fresh_name("l", self.ledger.next))
        n = self.ledger.op("link", file=file, dir=target[0], name=target[1])
        self.named(n, target[0])
        os.link(self.path(self.files[file]["place"]), self.path(target))
        self.files[file]["extra"] = target
        if self.dice.random() < 0.6:
            self.sync_dirs(target[0])

    def unlink(self):
        if len(self.files) < 6:
            return
        file = self.some_file()
        if self.files[file]["extra"]:
            return
        place = self.files[file]["place"]
        n = self.ledger.op("unlink", file=file, dir=place[0], name=place[1])
        self.named(n, place[0])
        os.unlink(self.path(place))
        self.forget(file)
        if self.dice.random() < 0.7:
            self.sync_dirs(place[0])

    def mkdir(self):
        if len(self.dirs) > 12:
            return
        number = self.next_dir
        self.next_dir += 1
        parent = self.dice.choice(list(self.dirs))
        name = self.fresh_name("d", number)
        n = self.ledger.op("mkdir", new=number, dir=parent, name=name)
        self.named(n, parent)
        os.mkdir(self.path((parent, name)))
        self.dirs[number] = (parent, name)
        if self.dice.random() < 0.5:
            self.sync_dirs(parent)
        if self.dice.random() < 0.7:
            # Acknowledged in a directory that itself never was synced.
            self.fsync(self.create(directory=number))

    def movedir(self):
        movable = [d for d in self.dirs if d]
        if not movable:
            return
        sub = self.dice.choice(movable)
        target = self.dice.choice(list(self.dirs))
        up = target
        while up:
            if up == sub:
                return
            up = self.dirs[up][0]
        source = self.dirs[sub]
        place = (target, self.fresh_name("e", self.ledger.next))
        n = self.ledger.op("movedir", sub=sub, dir=source[0], name=source[1], todir=place[0], toname=place[1])
        self.named(n, source[0], place[0])
        os.rename(self.path(source), self.path(place))
        self.dirs[sub] = place
        if self.dice.random() < 0.6:
            self.sync_dirs(source[0], place[0])

    def sync_some_dir(self):
        self.sync_dirs(self.dice.choice(list(self.dirs)))

    def stir(self):
        """Sends what the store's filesystem has in its cache to the disk, acknowledging nothing."""
        if self.store:
            fd = os.open(self.store, os.O_RDONLY)
            try:
                LIBC.syncfs(fd)
            finally:
                os.close(fd)

    def transaction(self):
        """A transaction of SQLite, in one of its journal modes."""
        mode = self.dice.choice(database.MODES)
        if mode not in self.databases:
            base = self.databases[mode] = database.Database(self.root, f"db{self.generation}-{mode}", mode)
            self.ledger.op("database", path=base.path)
            base.make()
        for _ in range(self.dice.randint(1, 3)):
            self.databases[mode].commit(self.ledger, time.monotonic)

    def relock(self):
        """An orderly lock, and the return: it acknowledges everything that was written before it."""
        if not self.relock_commands or self.relocks == 3:
            return
        self.relocks += 1
        for base in self.databases.values():
            base.close()
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
        pending = {n for known in self.content.values() for n in known}
        pending |= {n for known in self.names.values() for n in known}
        for number, command in enumerate(self.relock_commands):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise OSError(errno.ENOTRECOVERABLE, f"{' '.join(command)}: {done.stderr.strip()}")
            if number == 0:
                self.ledger.ack(pending, time.monotonic())
                self.content = {file: set() for file in self.content}
                self.names.clear()

    OPERATIONS = [
        (create, 14), (append, 12), (overwrite, 24), (dsync, 6), (map_sync, 6), (truncate, 9), (punch, 4),
        (sync_one, 14), (close, 7), (replace, 8), (move, 5), (link, 2), (unlink, 5), (mkdir, 4), (movedir, 2),
        (sync_some_dir, 4), (stir, 6), (transaction, 8), (relock, 2),
    ]  # fmt: skip

    def run(self, count):
        choices = [operation for operation, weight in self.OPERATIONS for _ in range(weight)]
        for _ in range(count):
            self.dice.choice(choices)(self)
        for base in self.databases.values():
            base.close()
        for fd in self.fds.values():
            os.close(fd)

    def adopt(self, survey):
        """Goes on from what is there: its bytes count as acknowledged."""
        self.generation = "-again-"
        numbers = {"": 0}
        for entry in survey["dirs"]:
            number = self.next_dir
            self.next_dir += 1
            parent, name = os.path.split(entry)
            numbers[entry] = number
            n = self.ledger.op("mkdir", new=number, dir=numbers[parent], name=name)
            self.dirs[number] = (numbers[parent], name)
            self.ledger.ack([n], time.monotonic())
        for entry in survey["files"]:
            file = self.next_file
            self.next_file += 1
            parent, name = os.path.split(entry["path"])
            n = self.ledger.op("create", file=file, dir=numbers[parent], name=name)
            m = self.ledger.op("adopt", file=file, size=entry["size"], blob=entry["blob"])
            self.ledger.ack([n, m], time.monotonic())
            # A file with more names is left as it is: "extra" keeps it from being removed.
            extra = (numbers[parent], name) if entry["links"] > 1 else None
            self.files[file] = {"place": (numbers[parent], name), "size": entry["size"], "extra": extra}
            if extra:
                # Changed through one name it would change under another that the ledger takes for another file.
                self.files.pop(file)


def main():
    parser = argparse.ArgumentParser()
    for name in ("root", "ledger", "log", "store", "adopt", "relock"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--short-names", action="store_true")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--ops", type=int, required=True)
    arguments = parser.parse_args()
    count = iter(range(1, ledger.ENDLESS))
    position = (lambda: os.stat(arguments.log).st_size) if arguments.log else (lambda: next(count))
    writer = ledger.Writer(arguments.ledger, position)
    relock = json.loads(arguments.relock) if arguments.relock else None
    scribe = Scribe(arguments.root, writer, arguments.seed, arguments.store, relock, arguments.short_names)
    if arguments.adopt:
        with open(arguments.adopt, encoding="utf-8") as survey:
            scribe.adopt(json.load(survey))
    try:
        scribe.run(arguments.ops)
    except OSError as error:
        writer.note(stopped=str(error))
        if error.errno in DEAD and not arguments.log:
            return 3
        print(f"scribe: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
