"""What was started is ended, whatever happens: mounts, loop devices, processes, folders, last in first out."""

import os
import signal
import subprocess
import sys
import time

PATIENCE = 60.0


class Stack:
    """Undo actions. Used as a context manager; an action that fails is reported and the others still run."""

    def __init__(self):
        self.actions = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.unwind()

    def add(self, what, action, *arguments):
        entry = (what, action, arguments)
        self.actions.append(entry)
        return entry

    def drop(self, entry):
        """Forgets an action that has been done by hand."""
        self.actions.remove(entry)

    def unwind(self):
        while self.actions:
            what, action, arguments = self.actions.pop()
            try:
                action(*arguments)
            except Exception as error:  # noqa: BLE001  (everything else must still be undone)
                print(f"cleaning up ({what}): {error}", file=sys.stderr)


def on_signals():
    """SIGTERM, SIGINT and SIGHUP become an exception, so that every `finally` runs."""

    def stop(number, _frame):
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, stop)


def end_process(process, patience=10.0):
    """SIGTERM, then SIGKILL; waits for the end."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE)


def mounted(path):
    """The type of the topmost mount at a path, read without touching the path."""
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            left, right = line.split(" - ", 1)
            if left.split(" ")[4].replace("\\040", " ") == path:
                found = right.split(" ")[0]
    return found


def wait_for(what, condition, patience=PATIENCE):
    """Polls until the condition gives something."""
    end = time.monotonic() + patience
    pause = 0.002
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"after {patience:.0f} s still waiting: {what}")
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def umount(path, patience=PATIENCE):
    """umount(8), again while the mount is busy."""
    end = time.monotonic() + patience
    while mounted(path):
        done = subprocess.run(["umount", path], capture_output=True, text=True)
        if done.returncode == 0:
            continue
        if time.monotonic() > end:
            raise TimeoutError(f"umount {path}: {done.stderr.strip()}; held by {holders(path)}")
        time.sleep(0.05)


def umount_lazily(path):
    """Takes a mount off the tree, whoever uses it: for what is dead or to be thrown away."""
    for _ in range(8):
        if not mounted(path):
            return
        subprocess.run(["umount", "-l", path], capture_output=True)


def holders(path):
    """Which processes have something open below a path."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))]
        except OSError:
            continue
        for link in links:
            try:
                if os.readlink(link).startswith(path):
                    found.append(link)
            except OSError:
                continue
    return ", ".join(found) or "nobody that /proc shows"


class Loop:
    """A loop device over a file."""

    def __init__(self, path):
        done = subprocess.run(["losetup", "-f", "--show", path], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"losetup {path}: {done.stderr.strip()}")
        self.device = done.stdout.strip()

    def detach(self):
        if self.device:
            subprocess.run(["losetup", "-d", self.device], check=True)
            self.device = None
