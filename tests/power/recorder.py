"""A disk whose every write and flush is logged: qemu-storage-daemon exports it, a loop device makes it a disk."""

import os
import subprocess

import cleanup

# mkfs.xfs takes no less than 300 MiB; ext4 is content with less, but one size keeps the lanes alike.
SIZE = 320 << 20

MKFS = {
    # Blocks of 4 KiB: mke2fs makes them 1 KiB on small disks, and then no page of 4 KiB is one write.
    # Every inode and journal block is written now, so that nothing in the background mixes into the log.
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", "-J", "size=16"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
}
OPTIONS = {"ext4": "noatime,commit=1,nodiscard", "xfs": "noatime,nouuid"}


def make_image(path, fs):
    """An empty filesystem in a sparse file."""
    with open(path, "wb") as image:
        image.truncate(SIZE)
    done = subprocess.run([*MKFS[fs], path], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{MKFS[fs][0]}: {done.stderr.strip()}")


class Recorder:
    """Exports `image`, logs to `log`, mounts the filesystem at `mountpoint`."""

    def __init__(self, image, log, folder, fs, mountpoint):
        self.log = log
        self.mountpoint = mountpoint
        self.undo = cleanup.Stack()
        try:
            export = os.path.join(folder, "export.img")
            for path in (log, export):
                with open(path, "wb"):
                    pass
            output = open(os.path.join(folder, "qemu.log"), "wb")
            process = subprocess.Popen(
                [
                    "qemu-storage-daemon",
                    "--blockdev", f"driver=file,node-name=f0,filename={image}",
                    "--blockdev", f"driver=file,node-name=lg,filename={log}",
                    "--blockdev", "driver=blklogwrites,node-name=lw,file=f0,log=lg,log-sector-size=512,"
                    "log-super-update-interval=1",
                    "--export", f"type=fuse,id=e0,node-name=lw,mountpoint={export},writable=on,allow-other=on",
                ],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
            output.close()
            self.undo.add("qemu-storage-daemon", cleanup.end_process, process)
            self.undo.add("the export", cleanup.umount_lazily, export)

            def exported():
                if process.poll() is not None:
                    with open(os.path.join(folder, "qemu.log"), encoding="utf-8") as said:
                        raise RuntimeError(f"qemu-storage-daemon ended: {said.read().strip()}")
                return cleanup.mounted(export)

            cleanup.wait_for("qemu-storage-daemon's export", exported)
            loop = cleanup.Loop(export)
            self.undo.add("the loop device", loop.detach)
            subprocess.run(["mount", "-t", fs, "-o", OPTIONS[fs], loop.device, mountpoint], check=True)
            self.undo.add("the recorded filesystem", cleanup.umount, mountpoint)
        except BaseException:
            self.undo.unwind()
            raise

    def position(self):
        """How long the log is now."""
        return os.stat(self.log).st_size

    def close(self):
        self.undo.unwind()
