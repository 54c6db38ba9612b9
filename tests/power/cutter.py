"""Disk images as a power cut leaves them.

A cut stands after an entry of the log. What was logged before the last flush up to there is on the disk. Of what was
logged since, a cut keeps a prefix, or any subset of its blocks: a disk with a volatile cache writes in any order, but
(unless `torn`) a block of 4 KiB whole.
"""

import os
import random
import shutil
import subprocess

import blklog

BLOCK, SECTOR = 4096, 512


class Cut:
    """Which image: after `index` entries, with the blocks that `seed` picks; `mode` is prefix, subset or lying."""

    def __init__(self, index, position, mode, seed, torn):
        self.index, self.position, self.mode, self.seed, self.torn = index, position, mode, seed, torn

    def __str__(self):
        return f"cut {self.index} {self.mode} seed {self.seed}{' torn' if self.torn else ''}"


class Cutter:
    """Makes images from a base image and a log; keeps a rolling image of what is surely on the disk."""

    def __init__(self, base, log, folder, lying=0):
        self.log = open(log, "rb")
        self.entries = blklog.entries(log)
        self.folder = folder
        # A lying disk says "flushed" and keeps the newest `lying` entries in its cache all the same.
        self.lying = lying
        self.rolling = os.path.join(folder, "rolling.img")
        copy_sparse(base, self.rolling)
        self.applied = 0

    def close(self):
        self.log.close()

    def plan(self, count, seed, torn, first=0):
        """`count` cuts, in order: most of them between a flush and the next, where something can be lost."""
        dice = random.Random(seed)
        last = len(self.entries)
        if last <= first:
            return []
        busy = [i for i in range(first, last) if not self.entries[i].flush]
        picks = []
        for number in range(count):
            # Spread over the whole run, then anywhere in the stretch: a run has quiet and busy parts.
            low = first + (last - first) * number // count
            high = max(low + 1, first + (last - first) * (number + 1) // count)
            index = dice.randrange(low, high) + 1
            if busy and dice.random() < 0.8:
                near = [i for i in (index + d for d in range(0, 24)) if i <= last and not self.entries[i - 1].flush]
                index = near[0] if near else index
            mode = "lying" if self.lying else dice.choice(["prefix", "subset", "subset", "subset"])
            picks.append((index, mode))
        picks.sort()
        return [
            Cut(index, self.entries[index - 1].end, mode, seed * 1000 + number, torn)
            for number, (index, mode) in enumerate(picks)
        ]

    def image(self, cut):
        """Makes the image of a cut; cuts must come in order. The caller removes it."""
        surely = self._surely(cut.index)
        if surely < self.applied:
            raise ValueError("cuts must be made in order")
        with open(self.rolling, "r+b") as image:
            for entry in self.entries[self.applied : surely]:
                self._apply(image, entry)
        self.applied = surely
        path = os.path.join(self.folder, f"cut-{cut.index}-{cut.seed}.img")
        copy_sparse(self.rolling, path)
        dice = random.Random(cut.seed)
        share = dice.choice([0.2, 0.5, 0.8])
        with open(path, "r+b") as image:
            for entry in self.entries[surely : cut.index]:
                if cut.mode == "prefix" or entry.fua:
                    self._apply(image, entry)
                elif not entry.flush:
                    self._apply_some(image, entry, dice, share, SECTOR if cut.torn else BLOCK)
        return path

    def _surely(self, index):
        if self.lying:
            return max(0, index - self.lying)
        for number in range(index, 0, -1):
            if self.entries[number - 1].flush:
                return number
        return 0

    def _data(self, entry):
        if entry.discard:
            return bytes(entry.length)
        self.log.seek(entry.at)
        return self.log.read(entry.length)

    def _apply(self, image, entry):
        if entry.length:
            image.seek(entry.offset)
            image.write(self._data(entry))

    def _apply_some(self, image, entry, dice, share, unit):
        data = self._data(entry)
        start = entry.offset
        while start < entry.offset + entry.length:
            # Blocks as the disk has them: aligned to the device, not to the write.
            end = min((start // unit + 1) * unit, entry.offset + entry.length)
            if dice.random() < share:
                image.seek(start)
                image.write(data[start - entry.offset : end - entry.offset])
            start = end


def copy_sparse(source, target):
    """A copy that keeps holes."""
    if os.path.exists(target):
        os.unlink(target)
    if shutil.which("cp"):
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)
    else:
        shutil.copyfile(source, target)
