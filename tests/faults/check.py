"""What the tests demand."""

import errno
import os


class Wrong(Exception):
    """Not as it must be."""


class Skip(Exception):
    """What the test needs is not to be had here."""


def demand(good, what):
    if not good:
        raise Wrong(what)


def clean(findings):
    """`verify` finds nothing."""
    demand(not findings, "\n".join(findings))


def fails(code, what, action):
    """The action gives this error (one of these)."""
    codes = code if isinstance(code, tuple) else (code,)
    try:
        action()
    except OSError as error:
        demand(error.errno in codes, f"{what}: {error}, expected {' or '.join(errno.errorcode[c] for c in codes)}")
        return error.errno
    raise Wrong(f"{what}: succeeded, expected {' or '.join(errno.errorcode[c] for c in codes)}")


def put(path, data):
    """Writes a file, and has it on the disk."""
    with open(path, "wb", buffering=0) as file:
        done = 0
        while done < len(data):
            done += file.write(data[done:])
        os.fsync(file.fileno())


def read(path):
    with open(path, "rb") as file:
        return file.read()
