"""The arrays in other people's files (.npz, .npy, .h5, folders of Zarr), read in order, block by
block; nothing is unpickled.

READERS[suffix](path, stack) -> {name: Array}; open_zarr(folder) for Zarr. In this room it alone
knows h5py.
"""

import contextlib
import warnings
import zipfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from base.errors import CoviewError, DataQualityError, UsageError

BLOCK = 4096  # rows read at a time
NO_PICKLES = (
    "A pickle can run code when it is read, so none is read here. In the program that made it, "
    "save plain arrays as .npz: "
    "np.savez('embeddings.npz', embeddings=…, keys=np.array(keys, dtype=str))"
)


@dataclass(frozen=True)
class Array:
    """One array of a source; `text` if it holds strings of any length. `read()` gives its rows in
    order, in blocks of its own choice."""

    name: str
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Iterator[np.ndarray]]
    text: bool = False

    @property
    def holds_objects(self) -> bool:
        """Neither numbers nor strings."""
        return self.dtype.hasobject and not self.text

    def blocks(self) -> Iterator[np.ndarray]:
        """(K, …) arrays, in order, N rows in all. Raises UsageError or DataQualityError."""
        if self.holds_objects:
            raise UsageError(
                f"{self.where} holds Python objects or lists, neither numbers nor strings. "
                f"{NO_PICKLES}"
            )
        count = 0
        with reading(self.where):
            for block in self.read():
                count += len(block)
                yield block
            if count != self.shape[0]:
                raise ValueError(f"it ends after {count} of {self.shape[0]} rows")


@contextlib.contextmanager
def reading(where: str) -> Generator[None]:
    """What a damaged file makes a library raise is up to the library: whatever it is becomes one
    message."""
    try:
        yield
    except CoviewError:
        raise
    except Exception as error:
        if "pickle" in str(error).lower():
            raise UsageError(f"{where} holds a pickle ({error}). {NO_PICKLES}") from error
        raise DataQualityError(
            f"{where} cannot be read, it is damaged or not what its name says: "
            f"{str(error) or type(error).__name__}. Write it anew, or get it again"
        ) from error


def open_h5(path: Path, mode: str) -> h5py.File:
    return h5py.File(path, mode)


def _open_npz(path: Path, stack: contextlib.ExitStack) -> dict[str, Array]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    found = {}
    for name in archive.namelist():
        if name.endswith(".npy"):
            found[name.removesuffix(".npy")] = _npz_member(archive, name, path)
    return found


def _npz_member(archive: zipfile.ZipFile, name: str, path: Path) -> Array:
    """A member of a .npz is read as a stream: the archive is never unpacked, so its names are no
    paths."""
    with archive.open(name) as file:
        shape, fortran, dtype = _npy_header(file)

    def read() -> Iterator[np.ndarray]:
        with archive.open(name) as file:
            if fortran:
                yield np.lib.format.read_array(file, allow_pickle=False)
            else:
                _npy_header(file)
                row = dtype.itemsize * int(np.prod(shape[1:], dtype=object))
                for first in range(0, shape[0], BLOCK):
                    count = min(BLOCK, shape[0] - first)
                    yield np.frombuffer(file.read(count * row), dtype).reshape(count, *shape[1:])
            if file.read(1):  # at its end the archive's checksum is compared
                raise ValueError("it is longer than its header says")

    return Array(name.removesuffix(".npy"), f"{path}: {name}", shape, dtype, read)


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _open_npy(path: Path, stack: contextlib.ExitStack) -> dict[str, Array]:
    with path.open("rb") as file:
        shape, _, dtype = _npy_header(file)
    if dtype.hasobject or 0 in shape:
        mapped = None  # refused before it is read
    else:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)

    def read() -> Iterator[np.ndarray]:
        return _slices(mapped, shape[0], BLOCK)

    return {path.stem: Array(path.stem, str(path), shape, dtype, read)}


def _open_h5(path: Path, stack: contextlib.ExitStack) -> dict[str, Array]:
    nodes: dict[str, h5py.Dataset] = {}

    def keep(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.shape is not None:
            nodes[name] = node

    file = stack.enter_context(open_h5(path, "r"))
    file.visititems(keep)  # follows no link that leaves the file
    for name, node in nodes.items():
        if node.external or node.is_virtual:
            raise UsageError(
                f"{path}: the data of {name!r} lie in other files; copy them into one: h5repack, "
                "or f[name] = array"
            )
    return {name: _h5_array(path, name, node) for name, node in nodes.items()}


def _h5_array(path: Path, name: str, node: h5py.Dataset) -> Array:
    text = node.dtype.kind == "O" and h5py.check_string_dtype(node.dtype) is not None

    def read() -> Iterator[np.ndarray]:
        rows = node.asstr() if text else node
        return _slices(rows, node.shape[0], _whole_chunks(node))

    return Array(name, f"{path}: {name}", node.shape, node.dtype, read, text)


def open_zarr(path: Path, fill_missing: bool) -> dict[str, Array]:
    found = {}
    # the warnings: of data types that another Zarr library may not know
    with warnings.catch_warnings(action="ignore"):
        node = zarr.open(path, mode="r")
        is_group = isinstance(node, zarr.Group)
        for name, array in node.members(max_depth=None) if is_group else [(path.name, node)]:
            if isinstance(array, zarr.Array):
                _refuse_pickled(name, array)
                found[name] = _zarr_array(path, name, array, fill_missing)
    return found


def _refuse_pickled(name: str, array: zarr.Array) -> None:
    """numcodecs has a codec that unpickles chunks."""
    if "pickle" in str({**array.metadata.to_dict(), "attributes": None}):
        raise ValueError(f"the array {name!r} is stored as a pickle")


def _zarr_array(path: Path, name: str, array: zarr.Array, fill_missing: bool) -> Array:
    def read() -> Iterator[np.ndarray]:
        if not fill_missing:
            _refuse_missing_chunks(array)
        return _slices(array, array.shape[0], _whole_chunks(array))

    text = array.dtype.kind == "T"
    return Array(name, f"{path}: {name}", array.shape, np.dtype(array.dtype), read, text)


def _refuse_missing_chunks(array: zarr.Array) -> None:
    """Zarr gives the fill value for a chunk that is not there, whether its writer left it out or
    somebody lost it."""
    missing = array.nchunks - array.nchunks_initialized
    if missing > 0:
        raise DataQualityError(
            f"{array.store_path}: {missing} of {array.nchunks} chunks are not there, and would be "
            f"read as {array.fill_value!r}. If they are lost, get them back. If whoever wrote the "
            "array leaves out chunks that hold nothing else, as Zarr does unless told otherwise, "
            "say so: ARGS='--fill-missing'"
        )


def _whole_chunks(array: Any) -> int:
    """About BLOCK rows: whole chunks, so that none is decompressed twice."""
    chunk = (getattr(array, "shards", None) or array.chunks or (1,))[0]
    return max(1, BLOCK // chunk) * chunk


def _slices(array: Any, n: int, step: int) -> Iterator[np.ndarray]:
    for first in range(0, n, step):
        yield np.asarray(array[first : first + step])


READERS: dict[str, Callable[[Path, contextlib.ExitStack], dict[str, Array]]] = {
    ".npz": _open_npz,
    ".npy": _open_npy,
    ".h5": _open_h5,
    ".hdf5": _open_h5,
}
