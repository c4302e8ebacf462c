"""Embeddings that were computed elsewhere: the arrays of a .npz, .npy or .h5 file, or of a folder of Zarr, read in order, block by block.

    with open_source(Path("clip.npz")) as source:
        array = choose(source)              the (N, D) embeddings, or an error that lists what is there
        for block_KD in array.blocks(): …   never the whole of it in memory (but for a .npz in Fortran order)
        keys = texts(source, KEYS)          which row is whose

Nothing is unpickled and nothing outside the file is read. What is wrong with a file raises UsageError (not what is wanted) or
DataQualityError (damaged).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base.errors import DataQualityError, UsageError, did_you_mean
from cache_specs import integrity, store
from cache_specs.items import read_items
from cache_specs.view import STATUS
from exchange.arrays import ADVICE, READERS, Array, open_zarr, reading

EMBEDDINGS, KEYS, LABELS = (
    ("embeddings", "X", "features", "emb"),
    ("keys", "paths", "ids"),
    ("y", "labels"),
)
FORMATS = ".npz, .npy, .h5 (or .hdf5), or a folder of Zarr"
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".ckpt")


@dataclass(frozen=True)
class Source:
    """An open file or folder. `keys`, `sha256` of the images and `status` (N,) uint8 only where it is a view of a cache, which has them elsewhere."""

    path: Path
    arrays: dict[str, Array]
    keys: list[str] | None = None
    status: np.ndarray | None = None
    sha256: list[str] | None = None


@contextlib.contextmanager
def open_source(path: Path, fill_missing: bool = False) -> Iterator[Source]:
    """Open FROM=path. fill_missing: chunks of a Zarr array that are not there hold its fill value, and are not an error.

    Raises UsageError (no such file, unknown format, a pickle) or DataQualityError (damaged).
    """
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise UsageError(f"{path} is a pickle, or may hold one. {ADVICE}")
    if not path.exists():
        raise UsageError(
            f"FROM={path}: there is no such file or folder; give one that is {FORMATS}"
        )
    if not path.is_dir() and suffix not in READERS:
        raise UsageError(f"FROM={path}: unknown format {suffix!r}; FROM may be {FORMATS}")
    if path.is_dir() and not any(
        (path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")
    ):
        raise UsageError(
            f"FROM={path} is a folder without a zarr.json, .zgroup or .zarray; FROM may be {FORMATS}"
        )
    with contextlib.ExitStack() as stack:
        with reading(str(path)):
            arrays = (
                open_zarr(path, fill_missing) if path.is_dir() else READERS[suffix](path, stack)
            )
        yield Source(path, arrays, *_of_view(path))


def choose(source: Source, name: str | None = None) -> Array:
    """The embeddings: the array called `name`, or by one of the usual names, or the only 2-D float array. Raises UsageError."""
    arrays = source.arrays
    listing = (
        "".join(
            f"\n  {key}  {array.shape} {'str' if array.text else array.dtype}"
            for key, array in arrays.items()
        )
        or "\n  nothing"
    )
    flat = [
        key for key, array in arrays.items() if len(array.shape) == 2 and array.dtype.kind == "f"
    ]
    if name is not None and name not in arrays:
        raise UsageError(f"{source.path} has no array {name!r}{did_you_mean(name, arrays)}")
    only = flat if len(flat) == 1 else list(arrays) if len(arrays) == 1 else [None]
    name = name or next((known for known in EMBEDDINGS if known in arrays), only[0])
    if name is None:
        raise UsageError(
            f"{source.path} has {len(flat)} two-dimensional float arrays, none called {', '.join(EMBEDDINGS)}. "
            f"Name the embeddings: ARGS='--array …'. It holds:{listing}"
        )
    array = arrays[name]
    problem = (
        "holds Python objects or lists, neither numbers nor strings. " + ADVICE
        if array.dtype.hasobject and not array.text
        else f"has the shape {array.shape}, expected (N, D), one row an image"
        if len(array.shape) != 2
        else f"is empty, with the shape {array.shape}"
        if 0 in array.shape
        else f"holds integers ({array.dtype}): codes, or pixels? If they are embeddings, save them .astype('float32')"
        if array.dtype.kind in "iu"
        else f"has the dtype {array.dtype}, expected float16, float32 or float64"
        if array.dtype.kind != "f"
        else ""
    )
    if problem:
        raise UsageError(
            f"{source.path}: the array {name!r} {problem}"
            + (f". Another one: ARGS='--array …'. It holds:{listing}" if len(arrays) > 1 else "")
        )
    return array


def texts(source: Source, names: tuple[str, ...], n: int) -> list[str] | None:
    """The first of the arrays `names` that is there as N strings (integers are written out), or None."""
    name = next((name for name in names if name in source.arrays), None)
    if name is None:
        return None
    array, where = source.arrays[name], f"{source.path}: the array {name!r}"
    if array.shape != (n,):
        raise UsageError(
            f"{where} has the shape {array.shape}, expected ({n},), one for each row of the embeddings"
        )
    if not array.text and not array.dtype.hasobject and array.dtype.kind not in "USiu":
        raise UsageError(f"{where} has the dtype {array.dtype}, expected strings or integers")
    found = []
    for block in array.blocks():
        try:
            found += [
                value.decode() if isinstance(value, bytes) else str(value)
                for value in block.tolist()
            ]
            "".join(found[-len(block) :]).encode()
        except UnicodeError as error:
            raise DataQualityError(
                f"{where} is not UTF-8: {error}; write the strings anew"
            ) from error
    return found


def statuses(source: Source, n: int) -> np.ndarray:
    """(N,) uint8: the status that an export of ours gives each row, 0 where the source says nothing."""
    if source.status is not None and len(source.status) == n:
        return source.status
    if not {"status", "status_names"} <= source.arrays.keys():
        return np.zeros(n, np.uint8)
    names, codes = (
        texts(source, (name,), source.arrays[name].shape[0] if source.arrays[name].shape else n)
        for name in ("status_names", "status")
    )
    meaning = {str(code): STATUS.index(name) for code, name in enumerate(names) if name in STATUS}
    if len(codes) != n or not set(codes) <= meaning.keys():
        raise DataQualityError(
            f"{source.path}: the array 'status' has the values {sorted(set(codes))} for {n} rows, its names are {names}; "
            "write one number for each row, or leave the array out"
        )
    return np.array([meaning[code] for code in codes], np.uint8)


def _of_view(path: Path) -> tuple[list[str] | None, np.ndarray | None, list[str] | None]:
    """A view of a cache is checked like any other use of it: a missing shard would read as NaN. Its keys lie in the item list above it."""
    if not (path / "commits").is_dir():
        return None, None, None
    view, above = store.open_view(path), path.resolve().parent
    status, items = (
        integrity.check(view),
        read_items(above) if (above / "dataset.json").is_file() else None,
    )
    if items is not None:
        store.refuse_other_images(view, items.fingerprint, len(items))
    return (None, status, None) if items is None else (items.keys, status, items.sha256)
