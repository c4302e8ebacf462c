"""HDF5: DATA=images.h5, a file with the arrays

    images                  (N, H, W) or (N, H, W, 3) uint8 pixels,
                            or (N,) encoded images (variable-length uint8)
    labels, splits, keys    (N,) each, all optional: numbers or text

Arrays whose data lie in other files (external, virtual) and links to other files are refused.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
_LOCK = threading.Lock()
# By path and process: a file that is open in a parent process is opened anew in its child.
_OPEN = dict[tuple[str, int], Any]()


@dataclass(frozen=True)
class ReadHdf5(Reader):
    """where: (N, 2) int64: number of the file, row of its array. Pixels become binary PPM or
    PGM."""

    paths: list[str]
    array: str
    where: np.ndarray

    def __call__(self, i: int) -> bytes:
        part, row = self.where[i].tolist()
        path = self.paths[part]
        key = path, os.getpid()
        try:
            with _LOCK:
                if key not in _OPEN:
                    _OPEN[key] = h5py.File(path, "r")
                value = _OPEN[key][self.array][row]
        # h5py raises OSError, KeyError, RuntimeError … on a damaged file
        except Exception as error:
            raise OSError(f"{path}, row {row}: {error}") from error
        if value.ndim != 1:
            return pnm(value)
        if value.nbytes > MAX_BYTES:
            raise FileTooLargeError(f"{path}, row {row} has {value.nbytes} bytes")
        return value.tobytes()


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
