"""HDF5: DATA=images.h5, a file with the arrays

    images                  (N, H, W) or (N, H, W, 3) uint8 pixels, or (N,) encoded images (variable-length uint8)
    labels, splits, keys    (N,) each, all optional: numbers or text

Arrays whose data lie in other files (external, virtual) and links to other files are refused.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import UsageError, did_you_mean
from cache_specs.items import SPLITS
from extract.data.naming import label_of, split_of
from extract.data.readers import MAX_BYTES, FileTooLargeError, Reader, pnm

NAMES = {
    "images": ("images", "image"),
    "labels": ("labels", "label"),
    "splits": ("splits", "split"),
    "keys": ("keys", "key", "paths"),
}
_LOCK, _OPEN = (
    threading.Lock(),
    dict[tuple[str, int], Any](),
)  # a file that is open in a parent process is opened anew in its child


@dataclass(frozen=True)
class ReadHdf5(Reader):
    """where: (N, 2) int64: number of the file, row of its array. Pixels become binary PPM or PGM."""

    paths: list[str]
    array: str
    where: np.ndarray

    def __call__(self, i: int) -> bytes:
        part, row = self.where[i].tolist()
        path = self.paths[part]
        try:
            with _LOCK:
                if (path, os.getpid()) not in _OPEN:
                    _OPEN[path, os.getpid()] = _open(path)
                value = _OPEN[path, os.getpid()][self.array][row]
        except (
            Exception
        ) as error:  # h5py raises OSError, KeyError, RuntimeError … on a damaged file
            raise OSError(f"{path}, row {row}: {error}") from error
        if value.ndim != 1:
            return pnm(value)
        if value.nbytes > MAX_BYTES:
            raise FileTooLargeError(f"{path}, row {row} has {value.nbytes} bytes")
        return value.tobytes()


def _open(path: str) -> Any:
    import h5py

    return h5py.File(path, "r")


def open_images(path: str, name: str = "") -> tuple[str, int, dict[str, list[Any]]]:
    """The images' array, how many there are, and the other arrays. Raises UsageError."""
    try:
        with _open(path) as file:
            names = {
                key: next((word for word in words if word in file), "")
                for key, words in NAMES.items()
            }
            names["images"] = name or names["images"]
            if not names["images"]:
                raise UsageError(f"{path}: no array 'images'{did_you_mean('images', file)}")
            nodes = {key: file[word] for key, word in names.items() if word}
            for key, node in nodes.items():
                link = file.get(names[key], getlink=True)
                if (
                    hasattr(link, "filename")
                    or not hasattr(node, "shape")
                    or node.external
                    or node.is_virtual
                ):
                    raise UsageError(
                        f"{path}: {names[key]!r} is no array of this file, or its data lie in another; copy them into it"
                    )
            images = nodes.pop("images")
            _refuse_other_pixels(path, names["images"], images)
            if wrong := [
                names[key] for key, node in nodes.items() if node.shape != images.shape[:1]
            ]:
                raise UsageError(
                    f"{path}: {wrong[0]!r} has the shape {file[wrong[0]].shape}, expected ({len(images)},), one for each image"
                )
            others = {
                key: (node.asstr() if node.dtype.kind in "OS" else node)[:].tolist()
                for key, node in nodes.items()
            }
            return names["images"], len(images), others
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{path} cannot be read as HDF5 ({type(error).__name__}: {error}); write or fetch it again"
        ) from error


def _refuse_other_pixels(path: str, name: str, node: Any) -> None:
    encoded = (
        node.ndim == 1
        and node.dtype.kind == "O"
        and (node.dtype.metadata or {}).get("vlen") in (np.dtype("uint8"), np.uint8)
    )
    pixels = node.dtype == np.uint8 and (
        node.ndim == 3 or (node.ndim == 4 and node.shape[3] in (1, 3))
    )
    if (not encoded and not pixels) or not len(node):
        raise UsageError(
            f"{path}: {name!r} has the shape {node.shape} and the type {node.dtype}, expected (N, H, W) or (N, H, W, 3) uint8, "
            "or (N,) encoded images as variable-length uint8"
        )
    if (
        int(np.prod(node.shape, dtype=object)) * node.dtype.itemsize
        > 1100 * node.id.get_storage_size()
    ):  # no compression gains more
        raise UsageError(
            f"{path}: {name!r} has the shape {node.shape}, but only {node.id.get_storage_size():,} bytes of it were ever written; write it anew"
        )
    if pixels and np.prod(node.shape[1:], dtype=object) > MAX_BYTES:
        raise UsageError(
            f"{path}: images of {node.shape[1:]} are larger than {MAX_BYTES:,} bytes each; make them smaller"
        )


def images(data: str, root: Path) -> tuple:
    if not Path(data).is_file():
        raise UsageError(f"DATA={data}: there is no such file; name one that is there")
    name, n, others = open_images(data)
    try:
        labels = [label_of(label) for label in others.get("labels", [""] * n)]
    except ValueError as error:
        raise UsageError(f"{data}: {error}; mend the file") from error
    splits = [split_of(split) for split in others.get("splits", [""] * n)]
    if wrong := [split for split in splits if split not in SPLITS]:
        raise UsageError(f"{data}: split {wrong[0]!r}{did_you_mean(wrong[0], SPLITS[1:])}")
    labels = [
        "" if split == "unlabelled" else label for label, split in zip(labels, splits, strict=True)
    ]
    keys = [str(key) for key in others.get("keys", [f"{row:08d}" for row in range(n)])]
    return (
        keys,
        labels,
        splits,
        ReadHdf5([data], name, np.stack([np.zeros(n, np.int64), np.arange(n)], 1)),
    )
