"""What is tested: the bare filesystem, hyokfs, gocryptfs, or any command. All look alike to the lanes."""

import json
import os
import shutil
import subprocess

import cleanup


class Failed(Exception):
    """The target did not do what every filesystem must: it could not be mounted, unmounted or verified."""


def run(command, environment=None, what=None):
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=cleanup.PATIENCE,
                              stdin=subprocess.DEVNULL)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{what or command[0]} hangs") from error
    if done.returncode:
        raise Failed(f"{what or ' '.join(command)}: exit code {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


class Target:
    """`store` is a directory on the disk that is cut; `mountpoint` where programs see the files."""

    name = "?"
    stillborn = False  # whether an unacknowledged creation may be left behind as a file that refuses to be opened
    long_names = True  # whether names may have 255 bytes
    close_acknowledges = False  # whether data is safe from a kill of the daemon once close() has returned

    def __init__(self):
        self.daemon = None
        self.output = None

    def available(self):
        return None

    def prepare(self, store):
        """Makes an empty volume."""

    def command(self, store, mountpoint):
        raise NotImplementedError

    def environment(self):
        return None

    def relock(self, mountpoint):
        """The commands that take the volume away in good order and bring it back, if it has such."""

    def mount(self, store, mountpoint):
        """Mounts; gives the directory to work in. The daemon is our child, in the foreground."""
        self.output = mountpoint.rstrip("/") + ".log"
        with open(self.output, "wb") as log:
            self.daemon = subprocess.Popen(self.command(store, mountpoint), stdin=subprocess.DEVNULL, stdout=log,
                                           stderr=log, env=self.environment())  # fmt: skip

        def ready():
            if self.daemon.poll() is not None:
                raise Failed(f"{self.name}: mount: exit code {self.daemon.returncode}: {self.said()}")
            return (cleanup.mounted(mountpoint) or "").startswith("fuse")

        try:
            cleanup.wait_for(f"{self.name}: the mount", ready)
        except TimeoutError as error:
            raise Failed(f"{error}: {self.said()}") from error
        return mountpoint

    def said(self):
        if not self.output or not os.path.exists(self.output):
            return ""
        with open(self.output, encoding="utf-8", errors="replace") as log:
            return log.read()[-1500:].strip()

    def unmount(self, mountpoint):
        cleanup.umount(mountpoint)
        if self.daemon:
            try:
                self.daemon.wait(cleanup.PATIENCE)
            except subprocess.TimeoutExpired as error:
                raise Failed(f"{self.name}: the daemon stays after the unmount: {self.said()}") from error
            if self.daemon.returncode not in (0, -15):
                raise Failed(f"{self.name}: the daemon ended with {self.daemon.returncode}: {self.said()}")
            self.daemon = None

    def kill(self):
        self.daemon.kill()
        self.daemon.wait()
        self.daemon = None

    def discard(self, mountpoint):
        """Whatever state it is in: it goes."""
        if self.daemon:
            cleanup.end_process(self.daemon, 5.0)
            self.daemon = None
        cleanup.umount_lazily(mountpoint)

    def verify(self, store):
        """The target's own check of the store, if it has one; gives what is wrong."""
        return []


class Bare(Target):
    """The filesystem itself: it must lose nothing, or the lane is wrong."""

    name = "bare"

    def mount(self, store, mountpoint):
        return store

    def unmount(self, mountpoint):
        pass

    def discard(self, mountpoint):
        pass


class Hyokfs(Target):
    name = "hyokfs"

    def __init__(self, binary, home):
        super().__init__()
        self.binary, self.home = binary, home
        self.keystore = os.path.join(home, "customer")

    def environment(self):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HYOKFS_", "XDG_"))}
        return {**inherited, "HOME": self.home, "XDG_DATA_HOME": f"{self.home}/data", "XDG_STATE_HOME": f"{self.home}/state",
                "XDG_RUNTIME_DIR": f"{self.home}/run", "HYOKFS_LOG": "warn"}  # fmt: skip

    def available(self):
        return None if os.access(self.binary, os.X_OK) else f"{self.binary} is not there: cargo build --release"

    def prepare(self, store):
        for name in ("data", "state", "run"):
            os.makedirs(os.path.join(self.home, name), exist_ok=True)
        if not os.path.exists(self.keystore):
            run([self.binary, "key", "create", self.keystore], self.environment())
        run([self.binary, "init", "--key", f"local:{self.keystore}", store], self.environment())

    def command(self, store, mountpoint):
        # The state (pinned fingerprints) is the node's, not the disk's: it survives.
        return [self.binary, "mount", "--state-dir", f"{self.home}/state", store, mountpoint]

    def relock(self, mountpoint):
        return [[self.binary, "lock", mountpoint], [self.binary, "unlock", mountpoint]]

    def _verify(self, store, *options):
        done = subprocess.run([self.binary, "verify", "--json", *options, store], capture_output=True, text=True,
                              env=self.environment(), timeout=300)  # fmt: skip
        said = (done.stderr or done.stdout).strip()[:300]
        try:
            findings = json.loads(done.stdout)["findings"]
        except (ValueError, KeyError):
            return [{"kind": "no report", "path": "", "what": f"exit code {done.returncode}: {said}"}]
        if done.returncode and not findings:
            findings.append({"kind": "no finding", "path": "", "what": f"exit code {done.returncode}: {said}"})
        return findings

    def verify(self, store):
        """What a cut leaves half made is no damage, and `verify --repair` sweeps it; then the volume is clean."""
        findings = self._verify(store)
        bad = [finding for finding in findings if finding["kind"] != "leftover"]
        if findings and not bad:
            self._verify(store, "--repair")
            bad = self._verify(store)
        return [f"verify: {json.dumps(finding)}"[:300] for finding in bad]


class Gocryptfs(Target):
    name = "gocryptfs"

    def __init__(self, home):
        super().__init__()
        self.password = os.path.join(home, "password")

    def available(self):
        return None if shutil.which("gocryptfs") else "gocryptfs is not installed"

    def prepare(self, store):
        with open(self.password, "w", encoding="utf-8") as out:
            out.write("test\n")
        run(["gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", self.password, store])

    def command(self, store, mountpoint):
        return ["gocryptfs", "-q", "-fg", "-passfile", self.password, store, mountpoint]


class Securefs(Target):
    name = "securefs"
    long_names = False

    def __init__(self, home):
        super().__init__()
        self.home = home

    def environment(self):
        return {**os.environ, "HOME": self.home}

    def available(self):
        return None if shutil.which("securefs") else "securefs is not installed"

    def prepare(self, store):
        # One round: the password is nobody's secret, and every mount would take seconds.
        run(["securefs", "create", "--pass", "test", "--pbkdf", "scrypt", "--rounds", "1", store])

    def command(self, store, mountpoint):
        return ["securefs", "mount", "--pass", "test", store, mountpoint]


class Command(Target):
    """`CMD… {store} {mountpoint}`: mounts in the foreground; the store's directory is empty at first."""

    def __init__(self, words):
        super().__init__()
        self.name, self.words = os.path.basename(words[0]), words

    def available(self):
        return None if shutil.which(self.words[0]) else f"{self.words[0]} is not there"

    def command(self, store, mountpoint):
        return [word.replace("{store}", store).replace("{mountpoint}", mountpoint) for word in self.words]
