"""Embeddings that were computed elsewhere: the arrays of a .npz, .npy or .h5 file, or of a folder
of Zarr, read in order, block by block.

    with open_source(Path("clip.npz")) as source:
        array = choose_embeddings(source)   the (N, D) embeddings, or an error that lists what is
                                            there
        for block_KD in array.blocks(): …   never the whole of it in memory (but for a .npz in
                                            Fortran order)
        keys = texts(source, NAMES_OF_KEYS, n)    which row is whose

Nothing is unpickled and nothing outside the file is read. What is wrong with a file raises
UsageError (not what is wanted) or DataQualityError (damaged).
"""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base.console import counted
from base.errors import UNKNOWN, DataQualityError, UsageError, did_you_mean, nearest
from cache_specs import integrity, store
from cache_specs.items import read_items
from cache_specs.view import STATUS
from exchange.arrays import NO_PICKLES, READERS, Array, open_zarr, reading

NAMES_OF_EMBEDDINGS = ("embeddings", "X", "features", "emb")
NAMES_OF_KEYS = ("keys", "paths", "ids")
NAMES_OF_LABELS = ("y", "labels")
READABLE = ".npz, .npy, .h5 (or .hdf5), or a folder of Zarr"
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".ckpt")
OF_ZARR = ("zarr.json", ".zgroup", ".zarray")  # one of which every folder of Zarr has


@dataclass(frozen=True)
class Source:
    """An open file or folder. `keys`, `sha256` of the images and `status` (N,) uint8 only where it
    is a view of a cache, which has them elsewhere."""

    path: Path
    arrays: dict[str, Array]
    keys: list[str] | None = None
    status: np.ndarray | None = None
    sha256: list[str] | None = None


@contextlib.contextmanager
def open_source(path: Path, fill_missing: bool = False) -> Generator[Source]:
    """Open FROM=path. fill_missing: chunks of a Zarr array that are not there hold its fill value,
    and are not an error.

    Raises UsageError (no such file, unknown format, a pickle) or DataQualityError (damaged).
    """
    _refuse_unreadable(path)
    with contextlib.ExitStack() as stack:
        with reading(str(path)):
            if path.is_dir():
                arrays = open_zarr(path, fill_missing)
            else:
                arrays = READERS[path.suffix.lower()](path, stack)
        if (path / "commits").is_dir():
            yield _source_of_view(path, arrays)
        else:
            yield Source(path, arrays)


def _refuse_unreadable(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise UsageError(f"{path} is a pickle, or may hold one. {NO_PICKLES}")
    if not path.exists():
        raise UsageError(
            f"FROM={path}: there is no such file or folder; give one that is {READABLE}"
        )
    if path.is_dir():
        if not any((path / name).is_file() for name in OF_ZARR):
            raise UsageError(
                f"FROM={path} is a folder without a zarr.json, .zgroup or .zarray; FROM may be "
                f"{READABLE}"
            )
    elif suffix not in READERS:
        raise UsageError(f"FROM={path}: unknown format {suffix!r}; FROM may be {READABLE}")


def _source_of_view(path: Path, arrays: dict[str, Array]) -> Source:
    """A view of a cache is checked like any other use of it: a missing shard would read as NaN. Its
    keys lie in the item list above it."""
    view, above = store.open_view(path), path.resolve().parent
    status = integrity.check(view)
    if not (above / "dataset.json").is_file():
        return Source(path, arrays, status=status)
    items = read_items(above)
    store.refuse_other_images(view, items.fingerprint, len(items))
    return Source(path, arrays, items.keys, status, items.sha256)


def choose_embeddings(source: Source, name: str | None = None) -> Array:
    """The embeddings: the array called `name`, or by one of the usual names, or the only 2-D float
    array. Raises UsageError."""
    arrays = source.arrays
    if name is not None and name not in arrays:
        raise UsageError(
            f"{source.path} has no array {name!r}{did_you_mean(name, arrays)}",
            instead={"--array": nearest(name, arrays) or None},
        )
    array = arrays[name or _usual_name(source)]
    problem = _why_no_embeddings(array)
    if problem:
        other = f". Another one: ARGS='--array …'. It holds:{_listing(arrays)}"
        raise UsageError(
            f"{source.path}: the array {array.name!r} {problem}{other if len(arrays) > 1 else ''}"
        )
    return array


def _usual_name(source: Source) -> str:
    arrays = source.arrays
    known = name_of(source, NAMES_OF_EMBEDDINGS)
    if known is not None:
        return known
    flat = []
    for name, array in arrays.items():
        if len(array.shape) == 2 and array.dtype.kind == "f":
            flat.append(name)
    if len(flat) == 1:
        return flat[0]
    if len(arrays) == 1:
        return next(iter(arrays))
    raise UsageError(
        f"{source.path} has {len(flat)} two-dimensional float arrays, none called "
        f"{', '.join(NAMES_OF_EMBEDDINGS)}. Name the embeddings: ARGS='--array …'. "
        f"It holds:{_listing(arrays)}",
        instead={"--array": flat[0] if flat else UNKNOWN},
    )


def _listing(arrays: dict[str, Array]) -> str:
    lines = []
    for name, array in arrays.items():
        lines.append(f"\n  {name}  {array.shape} {'str' if array.text else array.dtype}")
    return "".join(lines) or "\n  nothing"


def _why_no_embeddings(array: Array) -> str:
    """'' where it may be (N, D) embeddings."""
    if array.holds_objects:
        return f"holds Python objects or lists, neither numbers nor strings. {NO_PICKLES}"
    if len(array.shape) != 2:
        return f"has the shape {array.shape}, expected (N, D), one row an image"
    if 0 in array.shape:
        return f"is empty, with the shape {array.shape}"
    if array.dtype.kind in "iu":
        return (
            f"holds integers ({array.dtype}): codes, or pixels? If they are embeddings, save them "
            ".astype('float32')"
        )
    if array.dtype.kind != "f":
        return f"has the dtype {array.dtype}, expected float16, float32 or float64"
    return ""


def name_of(source: Source, names: tuple[str, ...]) -> str | None:
    """The first of these arrays that is there."""
    return next((name for name in names if name in source.arrays), None)


def texts(source: Source, names: tuple[str, ...], n: int) -> list[str] | None:
    """The first of the arrays `names` that is there as N strings (integers are written out), or
    None."""
    name = name_of(source, names)
    return None if name is None else _texts(source, name, n)


def _texts(source: Source, name: str, n: int) -> list[str]:
    array, where = source.arrays[name], f"{source.path}: the array {name!r}"
    if array.shape != (n,):
        raise UsageError(
            f"{where} has the shape {array.shape}, expected ({n},), one for each row of the "
            "embeddings"
        )
    if not array.text and not array.dtype.hasobject and array.dtype.kind not in "USiu":
        raise UsageError(f"{where} has the dtype {array.dtype}, expected strings or integers")
    found = []
    for block in array.blocks():
        try:
            for value in block.tolist():
                text = value.decode() if isinstance(value, bytes) else str(value)
                text.encode()  # half a surrogate pair is none
                found.append(text)
        except UnicodeError as error:
            raise DataQualityError(
                f"{where} is not UTF-8: {error}; write the strings anew"
            ) from error
    return found


def statuses(source: Source, n: int) -> np.ndarray:
    """(N,) uint8: the status that an export of ours gives each row, 0 where the source says
    nothing."""
    if source.status is not None and len(source.status) == n:
        return source.status
    if not {"status", "status_names"} <= source.arrays.keys():
        return np.zeros(n, np.uint8)
    names, codes = _whole_column(source, "status_names", n), _whole_column(source, "status", n)
    meaning = {}
    for code, name in enumerate(names):
        if name in STATUS:
            meaning[str(code)] = STATUS.index(name)
    if len(codes) != n or not meaning.keys() >= set(codes):
        raise DataQualityError(
            f"{source.path}: the array 'status' has the values {sorted(set(codes))} for "
            f"{counted(n, 'row')}, its names are {names}; write one number for each row, "
            "or leave the array out"
        )
    return np.array([meaning[code] for code in codes], np.uint8)


def _whole_column(source: Source, name: str, n: int) -> list[str]:
    """All of an array's strings, however many; a single value is refused as not being N."""
    shape = source.arrays[name].shape
    return _texts(source, name, shape[0] if shape else n)
