"""The encoded bytes of image i of a data set, from files, pieces of files, arrays or torchvision.

Readers are plain dataclasses: they are pickled on their way to the decode workers.
"""

import hashlib
import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, ClassVar, NamedTuple

import numpy as np

MAX_BYTES = 2**29  # of an encoded image: 134 megapixels uncompressed


class Reader(ABC):
    """`read(i)`: the bytes of image i; `read.digest(i)`: their number and their sha256. Both raise
    OSError when it cannot be read.

    `read.place(i)`: the file that they are in, and where in it, which together decide what they
    are; '' where they are in none. BLOCK: images that one thread hashes one after the other."""

    BLOCK: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, i: int) -> bytes: ...

    def digest(self, i: int) -> tuple[int, str]:
        data = self(i)
        return len(data), hashlib.sha256(data).hexdigest()

    def digests(self, rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Of each of these: as `digest`, but (0, '') for one that cannot be read."""
        for row in rows:
            try:
                yield self.digest(row)
            except OSError:
                yield 0, ""

    def place(self, i: int) -> tuple[str, int]:
        return "", 0

    def blocks(self, n: int, size: int) -> list[list[int]]:
        """The first n images in blocks of at most `size` and BLOCK, in the order in which they are
        stored."""
        return _cut(range(n), min(size, self.BLOCK))


def _cut(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[first : first + size]) for first in range(0, len(rows), size)]


class FileTooLargeError(OSError):
    """An encoded image of more than MAX_BYTES, which is never read into memory."""


class Listing(NamedTuple):
    """What an adapter finds, of each image: key, label name ('' = unknown), split ('' = not given)
    and its bytes."""

    keys: list[str]
    labels: list[str]
    splits: list[str]
    read: Reader


@dataclass(frozen=True)
class Reordered(Reader):
    read: Reader
    order: np.ndarray

    def __call__(self, i: int) -> bytes:
        return self.read(int(self.order[i]))

    def digest(self, i: int) -> tuple[int, str]:
        return self.read.digest(int(self.order[i]))

    def digests(self, rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        return self.read.digests(self.order[list(rows)].tolist())

    def place(self, i: int) -> tuple[str, int]:
        return self.read.place(int(self.order[i]))

    def blocks(self, n: int, size: int) -> list[list[int]]:
        return _cut(np.argsort(self.order[:n]).tolist(), min(size, self.read.BLOCK))


@dataclass(frozen=True)
class ReadFiles(Reader):
    paths: list[str]
    BLOCK: ClassVar[int] = 64

    def place(self, i: int) -> tuple[str, int]:
        return self.paths[i], 0

    def __call__(self, i: int) -> bytes:
        with open_regular(self.paths[i]) as file:
            return file.read()

    def digest(self, i: int) -> tuple[int, str]:
        with open_regular(self.paths[i]) as file:  # in pieces: many large files are hashed at once
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), digest


@dataclass(frozen=True)
class ReadPieces(Reader):
    """Image i is `size[i]` bytes at `offset[i]` of the file `paths[file[i]]`: a member of a tar."""

    paths: list[str]
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    BLOCK: ClassVar[int] = 64

    def place(self, i: int) -> tuple[str, int]:
        return self.paths[self.file[i]], int(self.offset[i])

    def __call__(self, i: int) -> bytes:
        path, size = self.paths[self.file[i]], int(self.size[i])
        if size > MAX_BYTES:
            raise FileTooLargeError(f"an image in {path} has {size} bytes")
        with open_regular(path, None) as file:
            file.seek(int(self.offset[i]))
            data = file.read(size)
        if len(data) != size:
            raise OSError(f"{path} ends before the {size} bytes at {self.offset[i]}")
        return data


def open_regular(path: str, most: int | None = MAX_BYTES) -> BufferedReader:
    """Open for reading what is a regular file, of at most so many bytes. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # never hang on a FIFO
    file, status = os.fdopen(handle, "rb"), os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise OSError(f"{path} is not a regular file")
    if most is not None and status.st_size > most:
        file.close()
        raise FileTooLargeError(f"{path} has {status.st_size} bytes")
    return file


@dataclass(frozen=True)
class ReadArrays(Reader):
    """Grey images (N, H, W) uint8 as binary PGM: a lossless file whose bytes depend on the pixels
    alone."""

    images: np.ndarray

    def __call__(self, i: int) -> bytes:
        return pnm(self.images[i])


def pnm(pixels: np.ndarray) -> bytes:
    """(H, W), (H, W, 1) or (H, W, 3) uint8 as binary PGM or PPM."""
    height, width, *channels = pixels.shape
    kind = 6 if channels == [3] else 5
    return b"P%d\n%d %d\n255\n" % (kind, width, height) + pixels.tobytes()


@dataclass(frozen=True)
class ReadTorchvision(Reader):
    """Images of torchvision data sets as binary PPM/PGM, whatever they are stored as."""

    parts: list[Any]
    where: list[tuple[int, int]]

    def __call__(self, i: int) -> bytes:
        part, index = self.where[i]
        image = self.parts[part][index][0]
        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        sink = io.BytesIO()
        image.save(sink, "PPM")
        return sink.getvalue()
