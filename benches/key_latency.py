#!/usr/bin/env python3
"""What a key service that takes its time costs: the same work on a volume under the local keystore and on one under AWS
KMS (the fake of the tests, with a delay on every call). Also what a service that does not answer at all costs programs
whose files are open.

  benches/key_latency.py [--delay-ms 20] [--files 2000] [--rounds 5] [--granularity file] [--key-reserve N]
                         [--pairs 40] [--parts untar,grep,hung] [--binary FILE] [--fake FILE]

Builds release binaries of hyokfs and of the fake (unless they are given). Needs root and /dev/fuse.

In each round both volumes are mounted anew. The tree is unpacked first as the first burst of that mount, for which no
keys are ready (but those of --key-reserve), then once more after the keys that the first burst asked for were made; after
another mount all of it is searched, cold. Ratios are those of one round; beside them stands what daemon and fake used of
the processors, for the fake is on the same machine and its share is part of what is measured.

"hung": a program reads and writes 4 KiB at a time of an open file on a volume in memory, for many short windows in
pairs; in one window of a pair the service answers, in the other it does not, and eight programs wait for it. The control
is the same with a service that answers in both: what it shows is the noise.
"""
import argparse, json, mmap, os, pathlib, shutil, statistics, subprocess, sys, tarfile, tempfile, time, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
WAITERS, WINDOW, SETTLE = 8, 0.5, 0.15


def control(url, method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/_fake/{path}", data=data, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def cpu(pid):
    """Processor seconds of a process."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Volume:
    def __init__(self, work, name, key, extra, env, binary, init=(), mount=()):
        self.dir, self.binary = work / name, binary
        self.store, self.mnt = self.dir / "store", self.dir / "mnt"
        self.mnt.mkdir(parents=True)
        self.env, self.extra, self.mounting = env | {"XDG_STATE_HOME": str(self.dir / "state")}, extra, mount
        self.mounted = False
        self.hyokfs("init", "--key", key, *init, *extra, str(self.store))

    def hyokfs(self, *words):
        subprocess.run([str(self.binary), *words], env=self.env, check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.PIPE)

    def mount(self):
        self.hyokfs("mount", "--background", *self.extra, *self.mounting, str(self.store), str(self.mnt))
        self.mounted = True

    def pid(self):
        status = subprocess.run([str(self.binary), "status", "--json", str(self.mnt)], env=self.env, check=True,
                                stdout=subprocess.PIPE).stdout
        return json.loads(status)["pid"]

    def unmount(self):
        self.mounted = False
        self.hyokfs("unmount", str(self.mnt))

    def cold(self):
        if self.mounted:
            self.unmount()
        settle(self.store)
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        self.mount()


def settle(path):
    """Writes back the filesystem of `path` alone: other mounts of the machine may be slow or stuck."""
    subprocess.run(["sync", "-f", path], check=True)


def timed(work):
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return low, middle, high


def make_tree(path, files):
    for i in range(files):
        file = path / f"d{i % 97:02}" / f"e{i % 7}" / f"file-{i:05}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((f"line of file {i}\n" * (20 + i % 400))[: 256 + i * 37 % 16000].encode())


def until_made(url):
    """Waits until no more keys are made."""
    made, still = -1, 0
    while still < 20:
        now = control(url, "GET", "count/GenerateDataKey")["count"]
        still = still + 1 if now == made else 0
        made = now
        time.sleep(0.1)


class Work:
    """Times and processor seconds of each kind of work."""
    KINDS = {"first": "untar, first burst", "again": "untar, again", "grep": "cold grep -r"}

    def __init__(self, url, fake, local, remote):
        self.url, self.fake, self.local, self.remote = url, fake, local, remote
        self.took = {kind: {local: [], remote: []} for kind in self.KINDS}
        self.used = {kind: {local: [], remote: [], fake: []} for kind in self.KINDS}

    def measure(self, kind, volume, words):
        pid = volume.pid()
        before = cpu(pid), cpu(self.fake.pid)
        took = timed(lambda: subprocess.run(words, stdout=subprocess.DEVNULL, check=kind != "grep"))
        self.took[kind][volume].append(took)
        self.used[kind][volume].append(cpu(pid) - before[0])
        if volume is self.remote:
            self.used[kind][self.fake].append(cpu(self.fake.pid) - before[1])

    def round(self, number, tree, parts):
        order = (self.local, self.remote) if number % 2 else (self.remote, self.local)
        if "untar" in parts or number == 0:
            for volume in order:
                volume.cold()
            for kind in ("first", "again"):
                until_made(self.url)
                for volume in order:
                    into = volume.mnt / f"round-{number}-{kind}"
                    into.mkdir()
                    settle(volume.store)
                    self.measure(kind, volume, ["tar", "-xf", tree, "-C", into])
        if "grep" in parts:
            at = f"round-{number if 'untar' in parts else 0}-first"
            for volume in order:
                volume.cold()
                self.measure("grep", volume, ["grep", "-rc", "no such words", volume.mnt / at])

    def tell(self, options):
        for kind, name in self.KINDS.items():
            local, remote = self.took[kind][self.local], self.took[kind][self.remote]
            if not local:
                continue
            low, middle, high = quartiles([b / a for a, b in zip(local, remote)])
            print(f"{name}, {options.files} files: local {statistics.median(local):.2f} s, {options.delay_ms} ms a call "
                  f"{statistics.median(remote):.2f} s: {middle:.2f}x (quartiles {low:.2f} to {high:.2f}, best "
                  f"{min(b / a for a, b in zip(local, remote)):.2f}, {len(local)} rounds)")
            a, b, c = (statistics.median(self.used[kind][who]) for who in (self.local, self.remote, self.fake))
            print(f"    processor seconds: daemon local {a:.2f}, remote {b:.2f}, fake {c:.2f}")


def open_file(file, seconds):
    """What a program whose file is open gets done, O_DIRECT so that each is a request: pairs of a write and a read per
    second, and the median time of a pair, which other work on the machine disturbs far less than their number."""
    page, took, now = mmap.mmap(-1, 4096), [], time.perf_counter()
    end = now + seconds
    while now < end:
        offset, before = len(took) % 256 * 4096, now
        os.pwritev(file, [page], offset)
        os.preadv(file, [page], offset)
        now = time.perf_counter()
        took.append(now - before)
    return len(took) / seconds, statistics.median(took)


def hung(url, volume, pairs):
    """Pairs of windows; gives the change of each, with a service that hangs and with one that does not."""
    names = iter(range(10 ** 6))
    closed = pathlib.Path(volume.mnt) / "closed"
    closed.mkdir()
    for number in range(pairs * 4 * WAITERS + WAITERS):
        (closed / str(number)).write_text("a key that is not in memory\n")
    volume.cold()
    file = os.open(volume.mnt / "open-file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    open_file(file, 1)

    def window(hangs):
        if hangs:
            # Longer than the window; then the calls end and the programs get their keys, so that the next one is clean.
            control(url, "POST", "fault", {"hang_ms": int((SETTLE + WINDOW) * 1000) + 300})
        waiting = [subprocess.Popen(["cat", closed / str(next(names))], stdout=subprocess.DEVNULL) for _ in range(WAITERS)]
        time.sleep(SETTLE)
        figures = open_file(file, WINDOW)
        still = sum(process.poll() is None for process in waiting)
        control(url, "DELETE", "fault")
        if any(process.wait() for process in waiting):
            raise SystemExit("a program got no key after the service was back")
        if hangs and still != WAITERS:
            raise SystemExit(f"{WAITERS - still} of {WAITERS} programs did not wait: the service did not hang")
        return figures

    changes = {(hangs, what): [] for hangs in (True, False) for what in (0, 1)}
    for number in range(pairs):
        for hangs in (True, False):
            if number % 2:
                after, before = window(hangs), window(False)
            else:
                before, after = window(False), window(hangs)
            for what in (0, 1):
                changes[hangs, what].append((after[what] / before[what] - 1) * 100)
    os.close(file)
    for hangs, name in ((True, "silent service"), (False, "control, a service that answers")):
        for what, unit in ((1, "median time"), (0, "number")):
            low, middle, high = quartiles(changes[hangs, what])
            print(f"open file, 4 KiB writes and reads, {name}: {unit} {middle:+.1f} % (quartiles {low:+.1f} to "
                  f"{high:+.1f}, {pairs} pairs of {WINDOW} s)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=int, default=20)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--granularity", default="file", choices=("file", "directory", "volume"))
    parser.add_argument("--key-reserve", type=int, default=0)
    parser.add_argument("--parts", default="untar,grep,hung", type=lambda text: set(text.split(",")))
    parser.add_argument("--binary", type=pathlib.Path)
    parser.add_argument("--fake", type=pathlib.Path)
    options = parser.parse_args()
    if unknown := options.parts - {"untar", "grep", "hung"}:
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    if not (options.binary and options.fake):
        subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "hyokfs", "--example", "fake-keys"], cwd=ROOT,
                       check=True)
    binary = options.binary or TARGET / "release" / "hyokfs"
    program = options.fake or TARGET / "release" / "examples" / "fake-keys"
    work = pathlib.Path(tempfile.mkdtemp(prefix="hyokfs-latency-"))
    memory = pathlib.Path(tempfile.mkdtemp(prefix="hyokfs-latency-", dir="/dev/shm"))
    fake = subprocess.Popen([program, "aws"], stdout=subprocess.PIPE, text=True)
    volumes = []
    try:
        url, key = fake.stdout.readline().split()
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "HYOKFS_"))}
        env |= {"AWS_ACCESS_KEY_ID": "222222222222", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
                "HOME": str(work)}
        init, endpoint = ["--granularity", options.granularity], ["--endpoint", url]
        local = Volume(work, "local", f"local:{work}/keys", [], env, binary, init)
        reserve = ["--key-reserve", str(options.key_reserve)] if options.key_reserve else []
        remote = Volume(work, "remote", key, endpoint, env, binary, init, reserve)
        # Without a delay: in its windows the service answers at once, or not at all.
        silent = Volume(memory, "silent", key, endpoint, env, binary, init)
        volumes += local, remote, silent
        source, tree = work / "source", work / "tree.tar"
        make_tree(source, options.files)
        with tarfile.open(tree, "w") as tar:
            tar.add(source, "tree")
        if options.parts & {"untar", "grep"}:
            control(url, "POST", "fault", {"delay_ms": options.delay_ms})
            figures = Work(url, fake, local, remote)
            for number in range(options.rounds):
                figures.round(number, tree, options.parts)
            figures.tell(options)
            control(url, "DELETE", "fault")
            for volume in (local, remote):
                volume.unmount()
        if "hung" in options.parts:
            silent.mount()
            hung(url, silent, options.pairs)
    finally:
        fake.kill()
        for volume in volumes:
            try:
                if volume.mounted:
                    volume.unmount()
            except subprocess.CalledProcessError as error:
                print(error, error.stderr, file=sys.stderr)
        for directory in (work, memory):
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
