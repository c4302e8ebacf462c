"""HDF5: DATA=images.h5, a file with the arrays

    images                  (N, H, W) or (N, H, W, 3) uint8 pixels,
                            or (N,) encoded images (variable-length uint8)
    labels, splits, keys    (N,) each, all optional: numbers or text

Arrays whose data lie in other files (external, virtual) and links to other files are refused.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from base.errors import UsageError, did_you_mean
from cache_specs.items import SPLITS
from extract.data.naming import label_of, split_of, without_unlabelled
from extract.data.readers import MAX_BYTES, FileTooLargeError, Listing, Reader, pnm

NAMES = {
    "images": ("images", "image"),
    "labels": ("labels", "label"),
    "splits": ("splits", "split"),
    "keys": ("keys", "key", "paths"),
}
GAIN = 1100  # pixels are never compressed to less than so small a part
SLAB = 2**25  # bytes of pixels that are read at once to be hashed
_LOCK = threading.Lock()
# By path, array and process: a file that is open in a parent process is opened anew in its child.
_OPEN = dict[tuple[str, str, int], Any]()


@dataclass(frozen=True)
class ReadHdf5(Reader):
    """where: (N, 2) int64: number of the file, row of its array. Pixels become binary PPM or
    PGM."""

    paths: list[str]
    array: str
    where: np.ndarray
    BLOCK: ClassVar[int] = 1024

    def place(self, i: int) -> tuple[str, int]:
        part, row = self.where[i].tolist()
        return self.paths[part], row

    def __call__(self, i: int) -> bytes:
        part, row = self.where[i].tolist()
        path = self.paths[part]
        try:
            with _LOCK:
                value = _opened(path, self.array)[row]
        # h5py raises OSError, KeyError, RuntimeError … on a damaged file
        except Exception as error:
            raise OSError(f"{path}, row {row}: {error}") from error
        if value.ndim != 1:
            return pnm(value)
        if value.nbytes > MAX_BYTES:
            raise FileTooLargeError(f"{path}, row {row} has {value.nbytes} bytes")
        return value.tobytes()

    def digests(self, rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Pixels that lie one after the other are read at once: a read costs more than a small
        picture."""
        at = 0
        while at < len(rows):
            pixels = self._slab(rows[at:])
            for one in pixels:
                data = pnm(one)
                yield len(data), hashlib.sha256(data).hexdigest()
            if not len(pixels):  # encoded, or damaged: one by one
                yield from super().digests(rows[at : at + 1])
            at += max(1, len(pixels))

    def _slab(self, rows: Sequence[int]) -> np.ndarray:
        """(K, H, W[, 3]) of the first K of these rows; none where they are not pixels, or one of
        them cannot be read."""
        part, first = self.where[rows[0]].tolist()
        path, none = self.paths[part], np.empty(0, np.uint8)
        try:
            with _LOCK:
                array = _opened(path, self.array)
                if array.ndim < 3:
                    return none
                most = max(1, SLAB // _product(array.shape[1:]))
                count = self._together(rows[:most])
                return array[first : first + count]
        except Exception:  # of which row, and why, the reader of single ones says
            return none

    def _together(self, rows: Sequence[int]) -> int:
        """How many of these, from the first, lie one after the other in one file."""
        part_K, row_K = self.where[rows].T
        expected_K = row_K[0] + np.arange(len(rows))
        apart = np.flatnonzero((row_K != expected_K) | (part_K != part_K[0]))
        return int(apart[0]) if len(apart) else len(rows)


def _opened(path: str, array: str) -> Any:
    """The array of a file, which stays open. The caller holds the lock."""
    key = path, array, os.getpid()
    if key not in _OPEN:
        file = h5py.File(path, "r")
        _OPEN[key] = file, file[array]
    return _OPEN[key][1]


def read_arrays(path: str, name: str = "") -> tuple[str, int, dict[str, list[Any]]]:
    """The name of the images' array (`name`, if given), how many there are, and the other arrays.
    Raises UsageError."""
    try:
        with h5py.File(path, "r") as file:
            names = _names_in(file)
            if name:
                names["images"] = name
            if "images" not in names:
                raise UsageError(f"{path}: no array 'images'{did_you_mean('images', file)}")
            for word in names.values():
                _refuse_other_files(path, file, word)
            images = file[names["images"]]
            _refuse_other_pixels(path, names["images"], images)
            others = {}
            for key, word in names.items():
                if key != "images":
                    others[key] = _column(path, file[word], word, len(images))
            return names["images"], len(images), others
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{path} cannot be read as HDF5 ({type(error).__name__}: {error}); write or fetch it "
            "again"
        ) from error


def _names_in(file: Any) -> dict[str, str]:
    """{what an array is: its name in the file}, of those that are there."""
    found = {}
    for key, words in NAMES.items():
        for word in words:
            if word in file:
                found[key] = word
                break
    return found


def _refuse_other_files(path: str, file: Any, name: str) -> None:
    node, link = file[name], file.get(name, getlink=True)
    own = hasattr(node, "shape") and not hasattr(link, "filename")
    if not own or node.external or node.is_virtual:
        raise UsageError(
            f"{path}: {name!r} is no array of this file, or its data lie in another; copy them "
            "into it"
        )


def _column(path: str, node: Any, name: str, n: int) -> list[Any]:
    """Numbers or text, one for each image."""
    if node.shape != (n,):
        raise UsageError(
            f"{path}: {name!r} has the shape {node.shape}, expected ({n},), one for each image"
        )
    text = node.dtype.kind in "OS"
    return (node.asstr() if text else node)[:].tolist()


def _refuse_other_pixels(path: str, name: str, node: Any) -> None:
    pixels = _are_pixels(node)
    if not (pixels or _are_encoded(node)) or not len(node):
        raise UsageError(
            f"{path}: {name!r} has the shape {node.shape} and the type {node.dtype}, expected "
            "(N, H, W) or (N, H, W, 3) uint8, or (N,) encoded images as variable-length uint8"
        )
    size, written = _product(node.shape) * node.dtype.itemsize, node.id.get_storage_size()
    if size > GAIN * written:
        raise UsageError(
            f"{path}: {name!r} has the shape {node.shape}, but only {written:,} bytes of it were "
            "ever written; write it anew"
        )
    if pixels and _product(node.shape[1:]) > MAX_BYTES:
        raise UsageError(
            f"{path}: images of {node.shape[1:]} are larger than {MAX_BYTES:,} bytes each; make "
            "them smaller"
        )


def _product(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=object))  # of any size: what a file claims is not to overflow


def _are_pixels(node: Any) -> bool:
    channels = node.shape[3:] if node.ndim == 4 else (1,)
    return node.dtype == np.uint8 and node.ndim in (3, 4) and channels in ((1,), (3,))


def _are_encoded(node: Any) -> bool:
    inner = (node.dtype.metadata or {}).get("vlen")
    return node.ndim == 1 and node.dtype.kind == "O" and inner in (np.dtype("uint8"), np.uint8)


def of_hdf5(data: str, root: Path) -> Listing:
    if not Path(data).is_file():
        raise UsageError(f"DATA={data}: there is no such file; name one that is there")
    name, n, others = read_arrays(data)
    try:
        labels = [label_of(label) for label in others.get("labels", [""] * n)]
    except ValueError as error:
        raise UsageError(f"{data}: {error}; mend the file") from error
    splits = [split_of(split) for split in others.get("splits", [""] * n)]
    wrong = [split for split in splits if split not in SPLITS]
    if wrong:
        raise UsageError(f"{data}: split {wrong[0]!r}{did_you_mean(wrong[0], SPLITS[1:])}")
    keys = others.get("keys", [f"{row:08d}" for row in range(n)])
    return Listing(
        [str(key) for key in keys],
        without_unlabelled(labels, splits),
        splits,
        ReadHdf5([data], name, np.stack([np.zeros(n, np.int64), np.arange(n)], 1)),
    )
