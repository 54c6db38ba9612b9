#!/usr/bin/env python3
"""What a key service that takes its time costs: the same work on a volume under the local keystore and on one under AWS
KMS (the fake of the tests, with a delay on every call), with one wrapped key per file. Also what a service that does not
answer at all costs programs whose files are open.

  benches/key_latency.py [--delay-ms 20] [--files 2000] [--rounds 3] [--granularity file] [--binary FILE]

Builds the release binary (unless one is given) and the fake. Needs root and /dev/fuse. Prints medians and ratios within
this run, and what daemon and fake used of the processors: the fake is on the same machine, so its share is part of what
is measured.
"""
import argparse, json, os, pathlib, shutil, statistics, subprocess, sys, tarfile, tempfile, time, urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def control(url, method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/_fake/{path}", data=data, method=method), timeout=10).read()


def cpu(pid):
    """Processor seconds of a process."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Volume:
    def __init__(self, work, name, key, extra, env, binary, init=()):
        self.dir, self.binary = work / name, binary
        self.store, self.mnt = self.dir / "store", self.dir / "mnt"
        self.mnt.mkdir(parents=True)
        self.env, self.extra = env | {"XDG_STATE_HOME": str(self.dir / "state")}, extra
        self.hyokfs("init", "--key", key, *init, *extra, str(self.store))

    def hyokfs(self, *words):
        subprocess.run([str(self.binary), *words], env=self.env, check=True, stdout=subprocess.DEVNULL)

    def mount(self):
        self.hyokfs("mount", "--background", *self.extra, str(self.store), str(self.mnt))

    def pid(self):
        status = subprocess.run([str(self.binary), "status", "--json", str(self.mnt)], env=self.env, check=True,
                                stdout=subprocess.PIPE).stdout
        return json.loads(status)["pid"]

    def unmount(self):
        self.hyokfs("unmount", str(self.mnt))

    def cold(self):
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


def make_tree(path, files):
    for i in range(files):
        file = path / f"d{i % 97:02}" / f"e{i % 7}" / f"file-{i:05}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((f"line of file {i}\n" * (20 + i % 400))[: 256 + i * 37 % 16000].encode())


def open_file_rate(mnt, seconds):
    """Reads and writes per second of a program whose file is open; O_DIRECT so that each is a request."""
    import mmap
    fd = os.open(mnt / "open-file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    page, end, count = mmap.mmap(-1, 4096), time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        os.pwritev(fd, [page], (count % 256) * 4096)
        os.preadv(fd, [page], (count % 256) * 4096)
        count += 1
    os.close(fd)
    return count / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=int, default=20)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--granularity", default="file", choices=("file", "directory", "volume"))
    parser.add_argument("--binary", type=pathlib.Path)
    options = parser.parse_args()
    binary = options.binary or TARGET / "release" / "hyokfs"
    if not options.binary:
        subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "hyokfs"], cwd=ROOT, check=True)
    subprocess.run(["cargo", "build", "--quiet", "--example", "fake-keys"], cwd=ROOT, check=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix="hyokfs-latency-"))
    fake = subprocess.Popen([TARGET / "debug/examples/fake-keys", "aws"], stdout=subprocess.PIPE, text=True)
    volumes = []
    try:
        url, key = fake.stdout.readline().split()
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "HYOKFS_"))}
        env |= {"AWS_ACCESS_KEY_ID": "222222222222", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
                "HOME": str(work)}
        local = Volume(work, "local", f"local:{work}/keys", [], env, binary, ["--granularity", options.granularity])
        remote = Volume(work, "remote", key, ["--endpoint", url], env, binary, ["--granularity", options.granularity])
        control(url, "POST", "fault", {"delay_ms": options.delay_ms})
        source, tree = work / "source", work / "tree.tar"
        make_tree(source, options.files)
        with tarfile.open(tree, "w") as tar:
            tar.add(source, "tree")
        figures = {(what, v.dir.name): [] for what in ("untar", "cold grep") for v in (local, remote)}
        used = {(what, who): [] for what in ("untar", "cold grep") for who in ("local", "remote", "fake")}

        def measure(what, volume, words):
            pid = volume.pid()
            before = cpu(pid), cpu(fake.pid)
            took = timed(lambda: subprocess.run(words, stdout=subprocess.DEVNULL, check=what == "untar"))
            figures[what, volume.dir.name].append(took)
            used[what, volume.dir.name].append(cpu(pid) - before[0])
            if volume is remote:
                used[what, "fake"].append(cpu(fake.pid) - before[1])

        for volume in (local, remote):
            volume.mount()
            volumes.append(volume)
        for number in range(options.rounds):
            for volume in (local, remote):
                into = volume.mnt / f"round-{number}"
                into.mkdir()
                settle(volume.store)
                measure("untar", volume, ["tar", "-xf", tree, "-C", into])
            for volume in (local, remote):
                volume.cold()
                measure("cold grep", volume, ["grep", "-rc", "no such words", volume.mnt / f"round-{number}"])
        for what in ("untar", "cold grep"):
            a, b = (statistics.median(figures[what, name]) for name in ("local", "remote"))
            print(f"{what:10} {options.files} files: local {a:.2f} s, {options.delay_ms} ms a call {b:.2f} s: {b / a:.2f}x "
                  f"(all rounds: {' '.join(f'{y / x:.2f}' for x, y in zip(figures[what, 'local'], figures[what, 'remote']))})")
            print("           processor seconds: daemon " + " ".join(
                f"{name} {statistics.median(used[what, name]):.2f}" for name in ("local", "remote", "fake")))
        control(url, "DELETE", "fault")
        before = statistics.median(open_file_rate(remote.mnt, 2) for _ in range(5))
        control(url, "POST", "fault", {"hang_ms": 600_000})
        # Somebody waits for the service meanwhile.
        waiting = [subprocess.Popen(["cat", remote.mnt / "round-0/tree/d00/e0/file-00000.txt"], stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL) for _ in range(8)]
        during = statistics.median(open_file_rate(remote.mnt, 2) for _ in range(5))
        print(f"open file, pairs of 4 KiB write and read: {before:.0f}/s, with a silent service {during:.0f}/s: "
              f"{(during / before - 1) * 100:+.1f} %")
        for process in waiting:
            process.wait()
    finally:
        fake.kill()
        for volume in volumes:
            try:
                volume.unmount()
            except subprocess.CalledProcessError as error:
                print(error, file=sys.stderr)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
