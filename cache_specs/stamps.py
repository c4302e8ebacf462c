"""Which contents are known without being read: those of a file that has the inode, size and times
that it had when it was hashed, under the same key.

    cache/<data set>-<fp8>/stamps.bin    32 bytes sha256 of what follows; 32 bytes fingerprint of
                                         the item list; (N, 5) little-endian int64: of row i the
                                         place in its file (0, but in tars, tables, HDF5), the
                                         file's inode, bytes, mtime and ctime (ns); zeros where it
                                         is not to be trusted

It belongs to this machine's disk and to nothing else: no fingerprint covers it. Without it, or
where it is damaged, everything is hashed again. A row says nothing of its contents but that they
are those of row i of the items.parquet beside it.
"""

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from base import durable
from base.errors import CoviewError, StorageError
from cache_specs.items import Items, read_items
from cache_specs.sources import read_source
from cache_specs.versions import dataset_folders, every_dataset, version_of

FILE = "stamps.bin"
# A file that was changed so shortly before it was read may be changed again under the same stamp:
# such a one is not remembered. FAT counts times in steps of two seconds.
RACY_NS = 3_000_000_000
Stamp = tuple[int, int, int, int]
NONE: Stamp = (0, 0, 0, 0)
Place = tuple[str, int]  # the path of a file, and where in it


def stamp_of(path: str) -> Stamp:
    """Inode, size, and the times (ns) at which contents and file were changed last, of what a path
    leads to; NONE where that is no regular file, or not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return NONE
    if not stat.S_ISREG(found.st_mode):
        return NONE
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Remembered:
    """The contents of one item list, by key and stamp."""

    def __init__(self, items: Items, stamps_N5: np.ndarray) -> None:
        self.items, self.stamps_N5 = items, stamps_N5
        self.row_of = {key: row for row, key in enumerate(items.keys)}

    def get(self, key: str, inside: int, stamp: Stamp) -> tuple[int, str] | None:
        """Number of bytes and sha256 of the image `key`, if it is still at this place inside a file
        of this stamp."""
        row = self.row_of.get(key)
        if row is None or stamp == NONE or self.stamps_N5[row].tolist() != [inside, *stamp]:
            return None
        return int(self.items.size[row]), self.items.sha256[row]


class Stamps:
    """The stamps of one run, taken before the files are read: what is written to one after that has
    another."""

    def __init__(self, before: Remembered | None = None) -> None:
        self.before, self.begun = before, time.time_ns()
        self.seen: dict[str, Stamp] = {}
        self.hashed: set[str] = set()

    def known(self, key: str, place: Place) -> tuple[int, str] | None:
        """Number of bytes and sha256 of the image `key`, which is in that place; None where it must
        be read."""
        path, inside = place
        if not path:
            return None
        if path not in self.seen:
            self.seen.setdefault(path, stamp_of(path))  # of several threads the first counts
        found = self.before.get(key, inside, self.seen[path]) if self.before else None
        if found is None:
            self.hashed.add(path)
        return found

    def keep(self, folder: Path, items: Items, places: Sequence[Place]) -> None:
        """Write what is known from now on beside the item list in `folder`, where it may be
        written. places: of each item."""
        for path in self.hashed:
            if max(self.seen[path][2:]) + RACY_NS > self.begun:
                self.seen[path] = NONE
        stamps_N5 = np.zeros((len(items), 5), "<i8")
        for row, (path, inside) in enumerate(places):
            stamp = self.seen.get(path, NONE)
            if stamp != NONE and items.sha256[row]:
                stamps_N5[row] = inside, *stamp
        data = bytes.fromhex(items.fingerprint) + stamps_N5.tobytes()
        data = hashlib.sha256(data).digest() + data
        if stamps_N5.any() and _bytes_of(folder) != data:
            with suppress(StorageError):  # in a read-only cache everything is hashed at every start
                durable.write(folder / FILE, data, "stamps")


def remembered(cache: Path, name: str, source: str) -> Remembered | None:
    """What is known of the newest version of the data set called `name`, or else made of `source`;
    None where nothing is."""
    folders = dataset_folders(cache, name)
    if not folders:
        folders = [folder for folder in every_dataset(cache) if read_source(folder) == source]
    folders = [folder for folder in folders if (folder / FILE).is_file()]
    return _read(max(folders, key=version_of)) if folders else None


def _read(folder: Path) -> Remembered | None:
    """What stands beside an item list; None where one of the two is damaged."""
    try:
        items = read_items(folder)
    except CoviewError:  # whoever needs it says so
        return None
    data = _bytes_of(folder)
    if len(data) != 64 + 40 * len(items) or hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    if data[32:64] != bytes.fromhex(items.fingerprint):
        return None
    return Remembered(items, np.frombuffer(data, "<i8", offset=64).reshape(-1, 5))


def _bytes_of(folder: Path) -> bytes:
    try:
        return (folder / FILE).read_bytes()
    except OSError:
        return b""
