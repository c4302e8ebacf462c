"""Embeddings that were computed elsewhere: the arrays of a .npz, .npy or .h5 file, or of a folder of Zarr, read in order, block by block.

    with open_source(Path("clip.npz")) as source:
        array = choose(source)              the (N, D) embeddings, or an error that lists what is there
        for block_KD in array.blocks(): …   never the whole of it in memory (but for a .npz in Fortran order)
        keys = texts(source, KEYS)          which row is whose

Nothing is unpickled and nothing outside the file is read. What is wrong with a file raises UsageError (not what is wanted) or
DataQualityError (damaged). This module alone knows h5py.
"""

import contextlib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_specs import integrity, store
from cache_specs.errors import CoviewError, DataQualityError, UsageError, did_you_mean
from cache_specs.items import read_items
from cache_specs.view import STATUS

EMBEDDINGS, KEYS, LABELS = ("embeddings", "X", "features", "emb"), ("keys", "paths", "ids"), ("y", "labels")
BLOCK = 4096                # rows read at a time
FORMATS = ".npz, .npy, .h5 (or .hdf5), or a folder of Zarr"
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".ckpt")
ADVICE = ("A pickle can run code when it is read, so none is read here. In the program that made it, save plain arrays as .npz: "
          "np.savez('embeddings.npz', embeddings=…, keys=np.array(keys, dtype=str))")


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
            raise UsageError(f"{self.where} holds Python objects or lists, neither numbers nor strings. {ADVICE}")
        count = 0
        with reading(self.where):
            for block in self.read():
                count += len(block)
                yield block
            if count != self.shape[0]:
                raise ValueError(f"it ends after {count} of {self.shape[0]} rows")


@dataclass(frozen=True)
class Source:
    """An open file or folder. `keys` and `status` (N,) uint8 only where it is a view of a cache, which has them elsewhere."""

    path: Path
    arrays: dict[str, Array]
    keys: list[str] | None = None
    status: np.ndarray | None = None


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
        raise DataQualityError(f"{where} cannot be read, it is damaged or not what its name says: {str(error) or type(error).__name__}") from error


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open FROM=path. Raises UsageError (no such file, unknown format, a pickle) or DataQualityError (damaged)."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise UsageError(f"{path} is a pickle, or may hold one. {ADVICE}")
    if not path.exists():
        raise UsageError(f"FROM={path}: there is no such file or folder")
    if not path.is_dir() and suffix not in READERS:
        raise UsageError(f"FROM={path}: unknown format {suffix!r}; FROM may be {FORMATS}")
    if path.is_dir() and not any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")):
        raise UsageError(f"FROM={path} is a folder without a zarr.json, .zgroup or .zarray; FROM may be {FORMATS}")
    with contextlib.ExitStack() as stack:
        with reading(str(path)):
            arrays = (_zarr if path.is_dir() else READERS[suffix])(path, stack)
        keys, status = _of_view(path, arrays)
        yield Source(path, arrays, keys, status)


def choose(source: Source, name: str | None = None) -> Array:
    """The embeddings: the array called `name`, or by one of the usual names, or the only 2-D float array. Raises UsageError."""
    arrays = source.arrays
    listing = "".join(f"\n  {key}  {array.shape} {'str' if array.text else array.dtype}" for key, array in arrays.items()) or "\n  nothing"
    flat = [key for key, array in arrays.items() if len(array.shape) == 2 and array.dtype.kind == "f"]
    if name is not None and name not in arrays:
        raise UsageError(f"{source.path} has no array {name!r}{did_you_mean(name, arrays)}")
    only = flat if len(flat) == 1 else list(arrays) if len(arrays) == 1 else [None]
    name = name or next((known for known in EMBEDDINGS if known in arrays), only[0])
    if name is None:
        raise UsageError(f"{source.path} has {len(flat)} two-dimensional float arrays, none called {', '.join(EMBEDDINGS)}. "
                         f"Name the embeddings: ARGS='--array …'. It holds:{listing}")
    array = arrays[name]
    problem = "holds Python objects or lists, neither numbers nor strings. " + ADVICE if array.dtype.hasobject and not array.text else \
        f"has the shape {array.shape}, expected (N, D), one row an image" if len(array.shape) != 2 else \
        f"is empty, with the shape {array.shape}" if 0 in array.shape else \
        f"holds integers ({array.dtype}): codes, or pixels? If they are embeddings, save them .astype('float32')" if array.dtype.kind in "iu" else \
        f"has the dtype {array.dtype}, expected float16, float32 or float64" if array.dtype.kind != "f" else ""
    if problem:
        raise UsageError(f"{source.path}: the array {name!r} {problem}" + (f". Another one: ARGS='--array …'. It holds:{listing}" if len(arrays) > 1 else ""))
    return array


def texts(source: Source, names: tuple[str, ...], n: int) -> list[str] | None:
    """The first of the arrays `names` that is there as N strings (integers are written out), or None."""
    name = next((name for name in names if name in source.arrays), None)
    if name is None:
        return None
    array, where = source.arrays[name], f"{source.path}: the array {name!r}"
    if array.shape != (n,):
        raise UsageError(f"{where} has the shape {array.shape}, expected ({n},), one for each row of the embeddings")
    if not array.text and not array.dtype.hasobject and array.dtype.kind not in "USiu":
        raise UsageError(f"{where} has the dtype {array.dtype}, expected strings or integers")
    found = []
    for block in array.blocks():
        try:
            found += [value.decode() if isinstance(value, bytes) else str(value) for value in block.tolist()]
            "".join(found[-len(block):]).encode()
        except UnicodeError as error:
            raise DataQualityError(f"{where} is not UTF-8: {error}") from error
    return found


def statuses(source: Source, n: int) -> np.ndarray:
    """(N,) uint8: the status that an export of ours gives each row, 0 where the source says nothing."""
    if source.status is not None and len(source.status) == n:
        return source.status
    if not {"status", "status_names"} <= source.arrays.keys():
        return np.zeros(n, np.uint8)
    names, codes = (texts(source, (name,), source.arrays[name].shape[0] if source.arrays[name].shape else n) for name in ("status_names", "status"))
    meaning = {str(code): STATUS.index(name) for code, name in enumerate(names) if name in STATUS}
    if len(codes) != n or not set(codes) <= meaning.keys():
        raise DataQualityError(f"{source.path}: the array 'status' has the values {sorted(set(codes))} for {n} rows, its names are {names}")
    return np.array([meaning[code] for code in codes], np.uint8)


def open_h5(path: Path, mode: str) -> Any:
    import h5py

    return h5py.File(path, mode)


def _npz(path: Path, stack: contextlib.ExitStack) -> dict[str, Array]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    return {name.removesuffix(".npy"): _member(archive, name, path) for name in archive.namelist() if name.endswith(".npy")}


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
            if file.read(1):                                # at its end the archive's checksum is compared
                raise ValueError("it is longer than its header says")

    return Array(name.removesuffix(".npy"), f"{path}: {name}", shape, dtype, read)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    return (np.lib.format.read_array_header_1_0 if np.lib.format.read_magic(file) == (1, 0) else np.lib.format.read_array_header_2_0)(file)


def _npy(path: Path, stack: contextlib.ExitStack) -> dict[str, Array]:
    with path.open("rb") as file:
        shape, _, dtype = _header(file)
    mapped = None if dtype.hasobject or 0 in shape else np.load(path, mmap_mode="r", allow_pickle=False)
    return {path.stem: Array(path.stem, str(path), shape, dtype, lambda: _slices(mapped, shape[0], BLOCK))}


def _h5(path: Path, stack: contextlib.ExitStack) -> dict[str, Array]:
    import h5py

    found: dict[str, Any] = {}
    stack.enter_context(h5py.File(path, "r")).visititems(           # follows no link that leaves the file
        lambda name, node: found.__setitem__(name, node) if isinstance(node, h5py.Dataset) and node.shape is not None else None)
    outside = [name for name, node in found.items() if node.external or node.is_virtual]
    if outside:
        raise UsageError(f"{path}: the data of {outside[0]!r} lie in other files; copy them into one: h5repack, or f[name] = array")
    text = {name: node.dtype.kind == "O" and h5py.check_string_dtype(node.dtype) is not None for name, node in found.items()}
    return {name: Array(name, f"{path}: {name}", node.shape, node.dtype, lambda node=node, text=text[name]:
                        _slices(node.asstr() if text else node, node.shape[0], _step(node)), text[name]) for name, node in found.items()}


def _zarr(path: Path, stack: contextlib.ExitStack) -> dict[str, Array]:
    import zarr

    with warnings.catch_warnings(action="ignore"):          # of data types that another Zarr library may not know
        node = zarr.open(path, mode="r")
        nodes = node.members(max_depth=None) if isinstance(node, zarr.Group) else [(path.name, node)]
        arrays = {name: array for name, array in nodes if isinstance(array, zarr.Array)}
        pickled = [name for name, array in arrays.items() if "pickle" in str({**array.metadata.to_dict(), "attributes": None})]
    if pickled:                                             # numcodecs has a codec that unpickles chunks
        raise ValueError(f"the array {pickled[0]!r} is stored as a pickle")
    return {name: Array(name, f"{path}: {name}", array.shape, np.dtype(array.dtype), lambda array=array: _slices(array, array.shape[0], _step(array)),
                        array.dtype.kind == "T") for name, array in arrays.items()}


def _step(array: Any) -> int:
    """Whole chunks, so that none is decompressed twice."""
    chunk = (getattr(array, "shards", None) or array.chunks or (1,))[0]
    return max(1, BLOCK // chunk) * chunk


def _slices(array: Any, n: int, step: int) -> Iterator[np.ndarray]:
    yield from (np.asarray(array[first:first + step]) for first in range(0, n, step))


def _of_view(path: Path, arrays: dict[str, Array]) -> tuple[list[str] | None, np.ndarray | None]:
    """A view of a cache is checked like any other use of it: a missing shard would read as NaN. Its keys lie in the item list above it."""
    if not (path / "commits").is_dir():
        return None, None
    view, above = store.open_view(path), path.resolve().parent
    status, items = integrity.check(view), read_items(above) if (above / "dataset.json").is_file() else None
    if items is not None:
        store.refuse_other_images(view, items.fingerprint, len(items))
    return None if items is None else items.keys, status


READERS: dict[str, Callable[[Path, contextlib.ExitStack], dict[str, Array]]] = {".npz": _npz, ".npy": _npy, ".h5": _h5, ".hdf5": _h5}
