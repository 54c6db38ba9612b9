"""A store without room, without permission to write, or no longer where it was: the application is told, nothing is
harmed, what frees room works, and everything goes on when the cause is gone."""

import contextlib
import errno
import os
import signal
import subprocess
import sys

import cleanup
import ledger
import rig
import targets
from check import Wrong, clean, demand, fails, put, read

MIB = 1 << 20
NO_ROOM = (errno.ENOSPC,)
USER = 1234


def fill(directory, codes=NO_ROOM, limit=4000, size=MIB):
    """Writes files until there is no room; gives how many are whole. At the last every size fails, down to a page."""
    whole = 0
    while size >= 4096:
        for _ in range(limit):
            path = os.path.join(directory, f"fill{whole:04d}")
            try:
                put(path, ledger.noise(whole, size))
            except OSError as error:
                demand(error.errno in codes, f"filling: {error}")
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
                break
            whole += 1
        size //= 2
    demand(whole > 3, f"only {whole} files fit")
    return whole


def attempt(codes, what, action):
    """Succeeds or gives one of these errors; gives whether it succeeded."""
    try:
        action()
        return True
    except OSError as error:
        demand(error.errno in codes, f"{what}: {error}")
        return False


def reserve(path, size):
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def small(binary, folder, size=24 * MIB, **more):
    return rig.Rig(binary, folder, size=size, disk=rig.Plain, mkfs=["-m", "0"], **more)


def a_full_filesystem(binary, folder):
    """No block is left: every operation that may need one is tried, and tried again when there is room."""
    with small(binary, folder) as r:
        kept, held = ledger.noise(1, 200_000), ledger.noise(2, 50_000)
        os.makedirs(r.at("d", "e"))
        put(r.at("d", "kept"), kept)
        put(r.at("d", "moves"), kept)
        put(r.at("held"), held)
        fill(r.mnt)
        with open(r.at("held"), "r+b", buffering=0) as file:

            def append():
                os.pwrite(file.fileno(), bytes(300_000), len(held))
                os.fsync(file.fileno())

            fails(NO_ROOM, "an append and its fsync", append)
            demand(os.pread(file.fileno(), len(held), 0) == held, "what stood before the append that failed")
            os.ftruncate(file.fileno(), len(held))
            os.pwrite(file.fileno(), b"in place", 1000)
            os.fsync(file.fileno())
        long = "n" * 250
        made = {}
        for name, action in {
            "create": lambda: put(r.at("create"), b"x" * 9000),
            "a long name": lambda: put(r.at(long), b"x" * 9000),
            "mkdir": lambda: os.mkdir(r.at("mkdir")),
            "symlink": lambda: os.symlink("t" * 2000, r.at("symlink")),
            "link": lambda: os.link(r.at("d", "kept"), r.at("d", "e", "link")),
            "setxattr": lambda: os.setxattr(r.at("d", "kept"), "user.big", b"v" * 3000),
            "rename": lambda: os.rename(r.at("d", "moves"), r.at("d", "moved")),
            "a move": lambda: os.rename(r.at("held"), r.at("d", "e", "held")),
            "a move to a long name": lambda: os.rename(r.at("d", "e"), r.at(long + "-d")),
            "allocation": lambda: reserve(r.at("d", "kept"), 2 * MIB),
        }.items():
            made[name] = attempt(NO_ROOM, name, action)
        demand(not made["create"] and not made["allocation"], f"there was room after all: {made}")
        for name in ("create", long):
            if not made["create" if name == "create" else "a long name"] and os.path.lexists(r.at(name)):
                os.unlink(r.at(name))
        demand(read(r.at("d", "kept"))[:200_000] == kept, "an old file, while there is no room")
        demand(read(r.at("d", "moved" if made["rename"] else "moves")) == kept, "a file that moves")
        os.unlink(r.at("fill0000"))
        os.truncate(r.at("fill0001"), 100)
        # ext4 counts freed blocks as free when its journal has been written.
        os.sync()
        put(r.at("again"), held)
        os.mkdir(r.at("dir-again"))
        os.setxattr(r.at("again"), "user.big", b"v" * 3000)
        os.rename(r.at("again"), r.at("dir-again", long))
        r.remount()
        demand(read(r.at("dir-again", long)) == held, "written when there was room again")
        demand(read(r.at("fill0001")) == ledger.noise(1, MIB)[:100], "a file that was cut while there was no room")
        demand(read(r.at("fill0002")) == ledger.noise(2, MIB), "a file that filled the store")
        demand(read(r.at("d", "kept"))[:200_000] == kept, "an old file, afterwards")
        clean(r.verify())


def no_inode_is_left(binary, folder):
    """Blocks are there, but no inode: a file takes one, a directory two."""
    with rig.Rig(binary, folder, size=24 * MIB, disk=rig.Plain, mkfs=["-m", "0", "-N", "64"]) as r:
        put(r.at("kept"), b"kept")
        names = 0
        for names in range(200):
            if not attempt(NO_ROOM, "create", lambda: put(r.at(f"f{names}"), b"x")):
                break
        demand(10 < names < 199, f"{names} files fit")
        fails(NO_ROOM, "mkdir without an inode", lambda: os.mkdir(r.at("d")))
        os.unlink(r.at("f0"))
        os.sync()
        # One inode is there now, and a directory needs two.
        fails(NO_ROOM, "mkdir with one inode", lambda: os.mkdir(r.at("d")))
        demand(not os.path.lexists(r.at("d")), "half a directory")
        fails(NO_ROOM, "a long name with one inode", lambda: put(r.at("n" * 250), b"x"))
        put(r.at("f0"), b"x")
        for name in ("f0", "f1", "f2"):
            os.unlink(r.at(name))
        os.sync()
        os.mkdir(r.at("d"))
        put(r.at("d", "f"), b"works")
        r.remount()
        demand(read(r.at("kept")) == b"kept" and read(r.at("d", "f")) == b"works", "afterwards")
        clean(r.verify())


def written_through_the_cache(binary, folder):
    """Without fsync the kernel takes what there is no room for. Who syncs later is told, and so is who maps the file."""
    with small(binary, folder) as r:
        put(r.at("kept"), ledger.noise(1, 100_000))
        fill(r.mnt)
        with open(r.at("kept"), "r+b", buffering=0) as file:
            written = attempt(NO_ROOM, "write", lambda: os.pwrite(file.fileno(), ledger.noise(9, MIB), 100_000))
            if written:
                fails(NO_ROOM, "fsync", lambda: os.fsync(file.fileno()))
        os.truncate(r.at("kept"), 100_000)
        os.unlink(r.at("fill0000"))
        os.unlink(r.at("fill0001"))
        os.sync()
        with open(r.at("kept"), "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), ledger.noise(9, MIB), 100_000)
            os.fsync(file.fileno())
        r.remount()
        demand(read(r.at("kept")) == ledger.noise(1, 100_000) + ledger.noise(9, MIB), "the same again, with room")
        clean(r.verify())


def a_quota(binary, folder):
    """A user's quota on the store's filesystem: EDQUOT for that user, nothing for the others. The daemon must not be above
    quotas (CAP_SYS_RESOURCE)."""
    quota = rig.Rig(binary, folder, size=48 * MIB, disk=rig.Plain, mkfs=["-m", "0", "-O", "quota"], options="usrquota",
                    wrap=["setpriv", "--bounding-set=-sys_resource"], mount=["-o", "allow_other"])  # fmt: skip
    quota.probe("this kernel has no quotas on ext4 (CONFIG_QFMT_V2)")
    with quota as r:
        targets.run(["setquota", "-u", str(USER), "0", "6144", "0", "40", r.below])
        home = r.at("home")
        os.mkdir(home)
        os.chown(home, USER, USER)
        script = os.path.join(r.folder, "user.py")
        with open(script, "w", encoding="utf-8") as out:
            out.write(AS_USER.format(here=[os.path.dirname(os.path.abspath(__file__)), *sys.path[:2]], home=home))

        def as_user(part):
            done = subprocess.run(["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", sys.executable, "-B",
                                   script, part], capture_output=True, text=True, timeout=cleanup.PATIENCE)  # fmt: skip
            if done.returncode:
                raise Wrong(f"{part}: {done.stderr.strip()}")

        os.chmod(r.folder, 0o755)
        as_user("fill")
        put(r.at("root"), ledger.noise(5, 2 * MIB))
        as_user("free")
        r.remount()
        demand(read(r.at("root")) == ledger.noise(5, 2 * MIB), "another user's file")
        as_user("check")
        clean(r.verify())


AS_USER = """
import os, sys
sys.path[:0] = {here}
import errno, full, ledger
from check import demand, fails, put, read
HOME = {home!r}
at = lambda *parts: os.path.join(HOME, *parts)
OVER = (errno.EDQUOT,)
part = sys.argv[1]
if part == "fill":
    put(at("kept"), ledger.noise(1, 100_000))
    full.fill(HOME, OVER)
    fails(OVER, "create", lambda: put(at("create"), b"x" * 9000))
    if os.path.lexists(at("create")):
        os.unlink(at("create"))
    demand(read(at("kept")) == ledger.noise(1, 100_000), "an old file over quota")
elif part == "free":
    os.unlink(at("fill0000"))
    put(at("again"), ledger.noise(3, 500_000))
else:
    demand(read(at("kept")) == ledger.noise(1, 100_000), "kept")
    demand(read(at("again")) == ledger.noise(3, 500_000), "again")
"""


def an_error_of_each_call(binary, folder):
    """Each call that the daemon makes in the store gives EDQUOT in turn (strace puts it in): the program gets that error,
    and nothing is harmed."""
    with small(binary, folder) as r:
        kept = ledger.noise(1, 100_000)
        put(r.at("kept"), kept)
        put(r.at("moves"), kept)
        os.mkdir(r.at("d"))
        seen = 0
        for number, (call, action) in enumerate([
            ("pwrite64", lambda: put(r.at("kept"), kept[:5000])),
            ("pwrite64", lambda: put(r.at("new"), b"x" * 9000)),
            ("fsync,fdatasync", lambda: put(r.at("new"), b"x" * 9000)),
            ("ftruncate", lambda: put(r.at("new"), b"x" * 9000)),
            ("linkat,renameat,renameat2", lambda: put(r.at("newer"), b"x")),
            ("mkdirat", lambda: os.mkdir(r.at("e"))),
            ("symlinkat", lambda: os.mkdir(r.at("e"))),
            ("symlinkat", lambda: os.symlink("target", r.at("symlink"))),
            ("symlinkat", lambda: put(r.at("n" * 250), b"x")),
            ("renameat,renameat2", lambda: os.rename(r.at("moves"), r.at("moved"))),
            ("renameat,renameat2", lambda: os.rename(r.at("moves"), r.at("d", "moved"))),
            ("linkat", lambda: os.link(r.at("moves"), r.at("d", "link"))),
            ("fallocate", lambda: reserve(r.at("moves"), 300_000)),
            ("setxattr,lsetxattr,fsetxattr", lambda: os.setxattr(r.at("moves"), "user.x", b"v")),
        ]):  # fmt: skip
            with injected(r, call):
                fails(errno.EDQUOT, f"step {number}, {call}", action)
            demand(read(r.at("moves")) == kept, f"step {number}, {call}: another file")
            put(r.at("kept"), kept)
            seen += 1
        demand(seen == 14, "all calls")
        r.remount()
        demand(read(r.at("kept")) == kept and read(r.at("moves")) == kept, "afterwards")
        demand(not os.path.lexists(r.at("e")), "a directory that could not be made")
        clean(r.verify())


@contextlib.contextmanager
def injected(r, call):
    """While this lasts, these calls of the daemon give EDQUOT."""
    said = os.path.join(r.folder, "strace.log")
    with open(said, "wb") as log:
        tracer = subprocess.Popen(["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error=EDQUOT",
                                   "-p", str(r.target.daemon.pid)], stdin=subprocess.DEVNULL, stderr=log)  # fmt: skip
    try:

        def attached():
            if tracer.poll() is not None:
                with open(said, encoding="utf-8") as log:
                    raise targets.Failed(f"strace: {log.read().strip()}")
            threads = os.listdir(f"/proc/{r.target.daemon.pid}/task")
            return all(traced(r.target.daemon.pid, thread) for thread in threads)

        cleanup.wait_for("strace", attached)
        yield
    finally:
        # SIGINT lets strace go of the daemon first.
        tracer.send_signal(signal.SIGINT)
        tracer.wait(cleanup.PATIENCE)


def traced(pid, thread):
    try:
        with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8") as status:
            return "TracerPid:\t0\n" not in status.read()
    except FileNotFoundError:
        return True


def a_store_that_turns_read_only(binary, folder):
    """The store's filesystem stops taking writes (as after an error of its own): reads go on, writes and syncs are refused,
    and after a repair everything acknowledged is there."""
    with small(binary, folder) as r:
        data = ledger.noise(1, 300_000)
        put(r.at("kept"), data)
        with open(r.at("kept"), "r+b", buffering=0) as file:
            targets.run(["mount", "-o", "remount,abort", r.below])

            def change():
                os.pwrite(file.fileno(), b"late" * 1000, 10_000)
                os.fsync(file.fileno())

            refused = (errno.EROFS, errno.EIO)
            fails(refused, "a write and its fsync", change)
            for name, action in {
                "create": lambda: put(r.at("new"), b"x"),
                "mkdir": lambda: os.mkdir(r.at("d")),
                "rename": lambda: os.rename(r.at("kept"), r.at("other")),
                "unlink": lambda: os.unlink(r.at("kept")),
                "setxattr": lambda: os.setxattr(r.at("kept"), "user.x", b"v"),
                "chmod": lambda: os.chmod(r.at("kept"), 0o600),
            }.items():
                fails(refused, name, action)
        demand(os.listdir(r.mnt) == ["kept"], "the names")
        rest = read(r.at("kept"))
        demand(rest[:10_000] == data[:10_000] and rest[14_000:] == data[14_000:], "reads go on")
        r.remount()
        demand(read(r.at("kept")) == data, "after the repair")
        put(r.at("new"), b"works")
        clean(r.verify())


def a_read_only_store_from_the_start(binary, folder):
    """`mount -o ro` below, while the volume is mounted and idle, and back: no write is lost or half done."""
    with small(binary, folder) as r:
        data = ledger.noise(1, 100_000)
        put(r.at("kept"), data)
        done = subprocess.run(["mount", "-o", "remount,ro", r.below], capture_output=True, text=True)
        if done.returncode:
            # The daemon holds its lock file open for writing, so the kernel refuses as it does for any open file.
            demand("busy" in done.stderr, f"remount,ro: {done.stderr}")
            put(r.at("goes on"), b"x")
        else:
            demand(read(r.at("kept")) == data, "reads")
            fails(errno.EROFS, "create", lambda: put(r.at("new"), b"x"))
            fails(errno.EROFS, "unlink", lambda: os.unlink(r.at("kept")))
            fails((errno.EROFS, errno.EBADF), "write", lambda: put(r.at("kept"), b"x"))
            targets.run(["mount", "-o", "remount,rw", r.below])
        demand(read(r.at("kept")) == data, "reads, writable again")
        put(r.at("new"), b"works")
        r.remount()
        demand(read(r.at("kept")) == data and read(r.at("new")) == b"works", "afterwards")
        clean(r.verify())


def a_store_that_is_moved_away(binary, folder):
    """The store's directory is renamed and another put in its place: the mount goes on in the one it was made of."""
    with small(binary, folder) as r:
        data = ledger.noise(1, 100_000)
        put(r.at("before"), data)
        moved = r.store + "-moved"
        os.rename(r.store, moved)
        os.mkdir(r.store)
        put(r.at("after"), data)
        os.mkdir(r.at("d"))
        os.rename(r.at("before"), r.at("d", "before"))
        demand(read(r.at("after")) == data, "written after the move")
        demand(os.listdir(r.store) == [], "the directory in its place is not touched")
        r.target.unmount(r.mnt)
        os.rmdir(r.store)
        os.rename(moved, r.store)
        r.mount()
        demand(read(r.at("d", "before")) == data and read(r.at("after")) == data, "afterwards")
        clean(r.verify())


def a_store_that_is_removed(binary, folder):
    """`rm -r` of the store below: errors, no hang, no crash, and the unmount works."""
    with small(binary, folder) as r:
        put(r.at("f"), b"x" * 50_000)
        with open(r.at("f"), "r+b", buffering=0) as file:
            targets.run(["rm", "-r", r.store])
            attempt((errno.EIO, errno.ENOENT, errno.ESTALE), "a write", lambda: os.pwrite(file.fileno(), b"y", 0))
            attempt((errno.EIO, errno.ENOENT, errno.ESTALE), "fsync", lambda: os.fsync(file.fileno()))
        fails((errno.EIO, errno.ENOENT, errno.ESTALE), "create", lambda: put(r.at("new"), b"x"))
        attempt((errno.EIO, errno.ENOENT, errno.ESTALE), "list", lambda: os.listdir(r.mnt))
        cleanup.umount(r.mnt)
        r.target.daemon.wait(cleanup.PATIENCE)


TESTS = [
    a_full_filesystem, no_inode_is_left, written_through_the_cache, a_quota, an_error_of_each_call, a_store_that_turns_read_only,
    a_read_only_store_from_the_start, a_store_that_is_moved_away, a_store_that_is_removed,
]  # fmt: skip
