"""The arrays in other people's files (.npz, .npy, .h5, folders of Zarr), read in order, block by block; nothing is unpickled.

READERS[suffix](path, stack) -> {name: Array}; open_zarr(folder) for Zarr. This module alone knows h5py.
"""

import contextlib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import CoviewError, DataQualityError, UsageError

BLOCK = 4096  # rows read at a time
ADVICE = (
    "A pickle can run code when it is read, so none is read here. In the program that made it, save plain arrays as .npz: "
    "np.savez('embeddings.npz', embeddings=…, keys=np.array(keys, dtype=str))"
)


@dataclass(frozen=True)
class Array:
    """One array of a source; `text` if it holds strings of any length. `read()` gives its rows in order, in blocks of its own choice."""

    name: str
    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Iterator[np.ndarray]]
    text: bool = False

    def blocks(self) -> Iterator[np.ndarray]:
        """(K, …) arrays, in order, N rows in all. Raises UsageError or DataQualityError."""
        if self.dtype.hasobject and not self.text:
            raise UsageError(
                f"{self.where} holds Python objects or lists, neither numbers nor strings. {ADVICE}"
            )
        count = 0
        with reading(self.where):
            for block in self.read():
                count += len(block)
                yield block
            if count != self.shape[0]:
                raise ValueError(f"it ends after {count} of {self.shape[0]} rows")


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """What a damaged file makes a library raise is up to the library: whatever it is becomes one message."""
    try:
        yield
    except CoviewError:
        raise
    except Exception as error:
        if "pickle" in str(error).lower():
            raise UsageError(f"{where} holds a pickle ({error}). {ADVICE}") from error
        raise DataQualityError(
            f"{where} cannot be read, it is damaged or not what its name says: {str(error) or type(error).__name__}. "
            "Write it anew, or get it again"
        ) from error


def open_h5(path: Path, mode: str) -> Any:
    import h5py

    return h5py.File(path, mode)


def _npz(path: Path, stack: contextlib.ExitStack) -> dict[str, Array]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    return {
        name.removesuffix(".npy"): _member(archive, name, path)
        for name in archive.namelist()
        if name.endswith(".npy")
    }


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> Array:
    """A member of a .npz is read as a stream: the archive is never unpacked, so its names are no paths."""
    with archive.open(name) as file:
        shape, fortran, dtype = _header(file)

    def read() -> Iterator[np.ndarray]:
        with archive.open(name) as file:
            if fortran:
                yield np.lib.format.read_array(file, allow_pickle=False)
            else:
                _header(file)
                row = dtype.itemsize * int(np.prod(shape[1:], dtype=object))
                for first in range(0, shape[0], BLOCK):
                    count = min(BLOCK, shape[0] - first)
                    yield np.frombuffer(file.read(count * row), dtype).reshape(count, *shape[1:])
            if file.read(1):  # at its end the archive's checksum is compared
                raise ValueError("it is longer than its header says")

    return Array(name.removesuffix(".npy"), f"{path}: {name}", shape, dtype, read)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    return (
        np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(file) == (1, 0)
        else np.lib.format.read_array_header_2_0
    )(file)


def _npy(path: Path, stack: contextlib.ExitStack) -> dict[str, Array]:
    with path.open("rb") as file:
        shape, _, dtype = _header(file)
    mapped = (
        None if dtype.hasobject or 0 in shape else np.load(path, mmap_mode="r", allow_pickle=False)
    )
    return {
        path.stem: Array(
            path.stem, str(path), shape, dtype, lambda: _slices(mapped, shape[0], BLOCK)
        )
    }


def _h5(path: Path, stack: contextlib.ExitStack) -> dict[str, Array]:
    import h5py

    found: dict[str, Any] = {}
    stack.enter_context(h5py.File(path, "r")).visititems(  # follows no link that leaves the file
        lambda name, node: (
            found.__setitem__(name, node)
            if isinstance(node, h5py.Dataset) and node.shape is not None
            else None
        )
    )
    outside = [name for name, node in found.items() if node.external or node.is_virtual]
    if outside:
        raise UsageError(
            f"{path}: the data of {outside[0]!r} lie in other files; copy them into one: h5repack, or f[name] = array"
        )
    text = {
        name: node.dtype.kind == "O" and h5py.check_string_dtype(node.dtype) is not None
        for name, node in found.items()
    }
    return {
        name: Array(
            name,
            f"{path}: {name}",
            node.shape,
            node.dtype,
            lambda node=node, text=text[name]: _slices(
                node.asstr() if text else node, node.shape[0], _step(node)
            ),
            text[name],
        )
        for name, node in found.items()
    }


def open_zarr(path: Path, fill_missing: bool) -> dict[str, Array]:
    import zarr

    with warnings.catch_warnings(
        action="ignore"
    ):  # of data types that another Zarr library may not know
        node = zarr.open(path, mode="r")
        nodes = (
            node.members(max_depth=None) if isinstance(node, zarr.Group) else [(path.name, node)]
        )
        arrays = {name: array for name, array in nodes if isinstance(array, zarr.Array)}
        pickled = [
            name
            for name, array in arrays.items()
            if "pickle" in str({**array.metadata.to_dict(), "attributes": None})
        ]
    if pickled:  # numcodecs has a codec that unpickles chunks
        raise ValueError(f"the array {pickled[0]!r} is stored as a pickle")
    return {
        name: Array(
            name,
            f"{path}: {name}",
            array.shape,
            np.dtype(array.dtype),
            lambda array=array: _chunks(array, fill_missing),
            array.dtype.kind == "T",
        )
        for name, array in arrays.items()
    }


def _chunks(array: Any, fill_missing: bool) -> Iterator[np.ndarray]:
    """Zarr gives the fill value for a chunk that is not there, whether its writer left it out or somebody lost it."""
    if array.nchunks_initialized < array.nchunks and not fill_missing:
        raise DataQualityError(
            f"{array.store_path}: {array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks are not there, and would be read as "
            f"{array.fill_value!r}. If they are lost, get them back. If whoever wrote the array leaves out chunks that hold nothing else, "
            "as Zarr does unless told otherwise, say so: ARGS='--fill-missing'"
        )
    yield from _slices(array, array.shape[0], _step(array))


def _step(array: Any) -> int:
    """Whole chunks, so that none is decompressed twice."""
    chunk = (getattr(array, "shards", None) or array.chunks or (1,))[0]
    return max(1, BLOCK // chunk) * chunk


def _slices(array: Any, n: int, step: int) -> Iterator[np.ndarray]:
    yield from (np.asarray(array[first : first + step]) for first in range(0, n, step))


READERS: dict[str, Callable[[Path, contextlib.ExitStack], dict[str, Array]]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".h5": _h5,
    ".hdf5": _h5,
}
