"""A volume on a small ext4 on a disk that can be told to fail: qemu-storage-daemon with `blkdebug` put in by QMP."""

import json
import os
import re
import shutil
import socket
import subprocess

import cleanup
import recorder
import targets
from check import Skip

PAGE = 4096
EIO = 5
FLUSHES = 8


class Qmp:
    """The control socket of qemu-storage-daemon."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.lines = self.socket.makefile("rw", encoding="utf-8")
        json.loads(self.lines.readline())
        self.do("qmp_capabilities")

    def do(self, command, **arguments):
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def close(self):
        self.lines.close()
        self.socket.close()


class Disk:
    """A block device over `image`; `fail` makes it fail from then on, `heal` makes it well again."""

    def __init__(self, image, folder):
        self.undo = cleanup.Stack()
        self.injected = 0
        try:
            export, control = (os.path.join(folder, name) for name in ("export.img", "qmp"))
            with open(export, "wb"):
                pass
            said = os.path.join(folder, "qemu.log")
            with open(said, "wb") as output:
                process = subprocess.Popen(
                    [
                        "qemu-storage-daemon",
                        "--chardev", f"socket,id=c0,path={control},server=on,wait=off", "--monitor", "chardev=c0",
                        "--blockdev", f"driver=file,node-name=f0,filename={image}",
                        "--blockdev", "driver=raw,node-name=r0,file=f0",
                        "--export", f"type=fuse,id=e0,node-name=r0,mountpoint={export},writable=on,allow-other=on",
                    ],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                )  # fmt: skip
            self.undo.add("qemu-storage-daemon", cleanup.end_process, process)
            self.undo.add("the export", cleanup.umount_lazily, export)

            def exported():
                if process.poll() is not None:
                    with open(said, encoding="utf-8") as log:
                        raise RuntimeError(f"qemu-storage-daemon ended: {log.read().strip()}")
                return cleanup.mounted(export) and os.path.exists(control)

            cleanup.wait_for("qemu-storage-daemon's export", exported)
            self.qmp = Qmp(control)
            self.undo.add("the control socket", self.qmp.close)
            loop = cleanup.Loop(export)
            self.undo.add("the loop device", loop.detach)
            self.device, self.export = loop.device, export
        except BaseException:
            self.undo.unwind()
            raise

    def fail(self, kind, sector=None):
        """Every read or write, or the next eight flushes, fail with EIO; with `sector` (512 bytes) only those that touch it."""
        self.injected += 1
        rule = {"event": "none", "iotype": kind, "errno": EIO, "once": kind == "flush", "immediately": False}
        if sector is not None:
            rule["sector"] = sector
        # To heal is to flush first, so flushes can't fail for ever.
        rules = [rule] * (FLUSHES if kind == "flush" else 1)
        self.bad = f"bad{self.injected}"
        self.qmp.do("blockdev-add", **{"driver": "blkdebug", "node-name": self.bad, "image": "f0", "inject-error": rules})
        self.qmp.do("blockdev-reopen", options=[{"driver": "raw", "node-name": "r0", "file": self.bad}])

    def forget(self):
        """Empties the cache between the disk and its export, which is written through."""
        drop_cache(self.export)

    def heal(self):
        for attempt in range(FLUSHES + 1):
            try:
                self.qmp.do("blockdev-reopen", options=[{"driver": "raw", "node-name": "r0", "file": "f0"}])
                break
            except RuntimeError:
                if attempt == FLUSHES:
                    raise
        self.qmp.do("blockdev-del", **{"node-name": self.bad})

    def close(self):
        self.undo.unwind()


def drop_cache(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


class Plain:
    """A block device that does not fail: a loop device."""

    def __init__(self, image, _folder):
        self.loop = cleanup.Loop(image)
        self.device = self.loop.device

    def forget(self):
        """A loop device's cache goes with the filesystem's unmount."""

    def close(self):
        self.loop.detach()


class Rig:
    """A volume, mounted. Used as a context manager; everything is taken away afterwards."""

    MKFS = [word.replace("size=16", "size=4") for word in recorder.MKFS["ext4"]]
    # Without `errors=continue` ext4 turns read-only at the first error that it finds in its own blocks.
    OPTIONS = "noatime,errors=continue"

    def __init__(self, binary, folder, size=96 << 20, mkfs=(), options="", disk=Disk, wrap=(), mount=()):
        self.folder, self.size, self.mkfs = folder, size, list(mkfs)
        self.options = self.OPTIONS + ("," + options if options else "")
        self.kind, self.wrap, self.mount_options = disk, list(wrap), list(mount)
        os.makedirs(folder)
        home = os.path.join(folder, "home")
        os.mkdir(home)
        self.target = targets.Hyokfs(binary, home)
        self.below, self.mnt = (os.path.join(folder, name) for name in ("below", "mnt"))
        os.mkdir(self.below)
        os.mkdir(self.mnt)
        self.store = os.path.join(self.below, "store")
        self.undo = cleanup.Stack()

    def __enter__(self):
        try:
            image = os.path.join(self.folder, "disk.img")
            with open(image, "wb") as out:
                out.truncate(self.size)
            targets.run([*self.MKFS, *self.mkfs, image])
            self.disk = self.kind(image, self.folder)
            self.undo.add("the disk", self.disk.close)
            self.undo.add("the filesystem", self.take_off)
            self.mount_below()
            os.mkdir(self.store)
            os.chmod(self.store, 0o755)
            self.target.prepare(self.store)
            self.mount()
        except BaseException:
            self.undo.unwind()
            raise
        return self

    def probe(self, reason):
        """Skips the test where the kernel does not mount such a filesystem."""
        image = os.path.join(self.folder, "probe.img")
        with open(image, "wb") as out:
            out.truncate(self.size)
        targets.run([*self.MKFS, *self.mkfs, image])
        done = subprocess.run(["mount", "-o", "loop," + self.options, image, self.below], capture_output=True)
        if done.returncode:
            shutil.rmtree(self.folder)
            raise Skip(reason)
        cleanup.umount(self.below)
        os.unlink(image)

    def __exit__(self, *_):
        self.undo.unwind()
        shutil.rmtree(self.folder, ignore_errors=True)

    def take_off(self):
        self.target.discard(self.mnt)
        cleanup.umount_lazily(self.below)

    def mount_below(self):
        targets.run(["mount", "-t", "ext4", "-o", self.options, self.disk.device, self.below])

    def mount(self):
        command = self.target.command(self.store, self.mnt)
        self.target.command = lambda *_: [*self.wrap, *command[:2], *self.mount_options, *command[2:]]
        try:
            self.target.mount(self.store, self.mnt)
        finally:
            del self.target.command

    def remount(self):
        """All anew, the filesystem below too, so that nothing comes out of a cache. Whatever the unmount says."""
        try:
            cleanup.umount(self.mnt)
            self.target.daemon.wait(cleanup.PATIENCE)
            self.target.daemon = None
        finally:
            self.target.discard(self.mnt)
        cleanup.umount(self.below)
        self.disk.forget()
        self.mount_below()
        self.mount()

    def verify(self):
        """Unmounts, and gives what `hyokfs verify` finds, after it has swept what interrupted operations left."""
        self.target.unmount(self.mnt)
        return self.target.verify(self.store)

    def at(self, *parts):
        return os.path.join(self.mnt, *parts)

    def ciphertext(self, path):
        """The file in the store that holds a file of the mount: their inode numbers are the same."""
        number = os.stat(path).st_ino
        for top, _, names in os.walk(self.store):
            for name in names:
                full = os.path.join(top, name)
                if os.lstat(full).st_ino == number:
                    return full
        raise targets.Failed(f"{path} has no ciphertext")

    def sector(self, path, page):
        """The disk's sector where sealed page `page` of a file of the mount lies."""
        said = targets.run(["filefrag", "-e", "-v", self.ciphertext(path)])
        for line in said.splitlines():
            found = re.match(r"\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.", line)
            if found and int(found[1]) <= page <= int(found[2]):
                return (int(found[3]) + page - int(found[1])) * (PAGE // 512)
        raise targets.Failed(f"page {page} of {path} has no place on the disk:\n{said}")
