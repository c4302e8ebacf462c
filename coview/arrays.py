"""A finished view as a read-only NumPy array, and what its rows are.

    emb_ND = open_view("cache/digits/tiny-clip")
        (N, D) float16, mapped from the cache's files: nothing is read before it is used
    items = open_items("cache/digits")
        .keys[i], .label[i] (-1: unknown), .classes[label], .split[i] of row i

Rows that could not be embedded are NaN: `ok_N = np.isfinite(emb_ND).all(1)`.
"""

import logging
import os
from pathlib import Path

import numpy as np

from base.console import counted
from base.errors import UsageError, nearest
from base.phrase import quoted
from cache_specs import integrity, store
from cache_specs.items import Items, read_items
from cache_specs.lookup import find_dataset
from cache_specs.sources import read_source
from cache_specs.spec import view_names
from cache_specs.tuned import FILE, seen_of
from train.data.reader import map_view

log = logging.getLogger(f"coview.{__name__}")


def open_view(path: str | os.PathLike) -> np.ndarray:
    """The embeddings of the view in the folder `path` (its data set's fingerprint and its own may
    be left out), (N, D) float16, read-only.

    Checked as `make train` checks it, every byte the first time: raises UsageError (no such view,
    or not finished), IntegrityError (damaged; naming file, rows and command), StaleError (another
    format, or of other images). Mapped until the process ends; never cut or rewrite a file below
    it.
    """
    folder = _folder(Path(path))
    view, items = store.open_view(folder), read_items(folder.parent)
    store.refuse_other_images(view, items.fingerprint, len(items))
    integrity.check(view)
    emb_ND = map_view(view).view()
    emb_ND.flags.writeable = False
    if seen := seen_of(view):
        log.warning(
            f"{folder}: this backbone was tuned on the labels of {counted(len(seen), 'image')} "
            f"(contents in {folder / FILE}): do not judge by them"
        )
    log.info(f"{folder}: {emb_ND.shape[0]:,} x {emb_ND.shape[1]} {emb_ND.dtype}, checked")
    return emb_ND


def open_items(path: str | os.PathLike) -> Items:
    """What the rows of the data set in the folder `path`, or of a view in it, are: keys, labels,
    class names, splits. Raises as `open_view` does."""
    path = Path(path)
    if any(path.parent.glob("*/dataset.json")):  # path is cache/DATA
        return read_items(find_dataset(path.parent, path.name))
    return read_items(_folder(path).parent)


def _folder(path: Path) -> Path:
    if store.is_created(path):
        return path.absolute()
    dataset, cache = path.parent, path.parent.parent
    if not dataset.name:
        raise UsageError(
            f"{path}: a view is named by cache/DATA/VIEW, such as "
            f"cache/digits/{path.name or 'tiny-clip'}; open that"
        )
    if not cache.is_dir():
        raise UsageError(
            f"there is no cache {cache}; a view is cache/DATA/VIEW, such as "
            f"{cache / 'digits' / 'tiny-clip'}. Make one: make extract VIEW={path.name} DATA=…"
        )
    found = dataset if (dataset / "dataset.json").is_file() else find_dataset(cache, dataset.name)
    name = nearest(path.name, view_names()) or path.name
    data = read_source(found) or dataset.name
    make = f"make extract VIEW={quoted(name)} DATA={quoted(data)}"
    return store.find_view(found, path.name, make).folder.absolute()
