"""make import VIEW=mine FROM=embeddings.npz DATA=photos/

Turns embeddings that were computed elsewhere into a finished view. With DATA the rows are matched
to the data set's items by the keys in the file; without it the file itself makes a data set, by its
keys and labels. Ends with what was rounded, left out or not finite.
"""

import contextlib
import hashlib
import logging
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from base import durable, locks
from base.errors import IntegrityError, UsageError
from cache_specs import integrity, mend, store
from cache_specs.items import Items
from cache_specs.lookup import words_for
from cache_specs.sources import dataset_name, source_path
from cache_specs.succession import write_items
from cache_specs.view import View, default_rows
from exchange.arrays import Array
from exchange.config import ImportConfig
from exchange.match import Target, match, own_items, refuse_other_file
from exchange.source import choose_embeddings, open_source
from exchange.staging import staged
from extract.bad_images import counts

log = logging.getLogger(f"coview.{__name__}")
EXAMPLE = "make import VIEW=mine FROM=embeddings.npz DATA=photos/"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def command(config: ImportConfig, found: dict[str, Any]) -> None:
    """make import."""
    import_view(config)


def import_view(config: ImportConfig) -> View:
    """Import one view; return it, finished. Raises CoviewError. Nothing is written before the whole
    file has been read once."""
    _refuse_unusable(config)
    cache, path, folder = Path(config.cache), Path(config.source).expanduser(), None
    as_class = _words(config, cache, path)
    with open_source(path, config.fill_missing) as source:
        array = choose_embeddings(source, config.array)
        n = array.shape[0]
        if config.data:
            target = Target(
                cache,
                config.data,
                Path(config.root),
                config.name,
                config.by_row_order,
                config.partial,
                as_class,
            )
            items, place, folder = match(source, n, target)
        else:
            items, place = own_items(source, n, config.name, as_class)
            refuse_other_file(cache, items, source)
        with (
            locks.shared_lock(durable.make_folder(cache), locks.USERS),
            staged(cache, source, array, place, items) as (emb_ND, status_N),
        ):
            if folder is None:
                folder = write_items(cache, items, source_path(config.data or str(path)))
            view = _create(config, folder, items, emb_ND, status_N, array)
            status = _status_if_whole(view)
            how = "finished" if status is None else "already in the cache, nothing to do"
            if status is None:
                _write_lacking(view, emb_ND, status_N)
                status = integrity.check(view)
    log.info(f"{view.name}: {how}: {view.n:,} rows x {view.width} in {view.folder}")
    _say_bad_rows(view, items, status)
    return view


def _words(config: ImportConfig, cache: Path, path: Path) -> list[str]:
    """The words that are classes of the data set that is made, if one is."""
    name = config.name or dataset_name(config.data or path.resolve().stem)
    return words_for(cache, name, source_path(config.data or str(path)), config.as_class)


def _refuse_unusable(config: ImportConfig) -> None:
    if not config.view or not config.source:
        raise UsageError(f"{'FROM' if config.view else 'VIEW'} is missing. Type: {EXAMPLE}")
    _refuse_name("VIEW", config.view)
    if config.name:
        _refuse_name("--name", config.name)
    if config.by_row_order and not config.data:
        raise UsageError(
            "--by-row-order needs the data set in whose order the rows are. Type: "
            f"{EXAMPLE} ARGS='--by-row-order'"
        )
    if config.shard_rows < 0:
        raise UsageError(f"--shard-rows must be at least 0, found {config.shard_rows}")


def _refuse_name(what: str, name: str) -> None:
    if not NAME.fullmatch(name) or name.endswith(".toml"):
        raise UsageError(
            f"{what}={name!r}: a name is made of letters, digits, '-', '_' and '.', and begins "
            f"with a letter or digit. Type: {EXAMPLE}"
        )


def _create(
    config: ImportConfig,
    folder: Path,
    items: Items,
    emb_ND: np.ndarray,
    status_N: np.ndarray,
    array: Array,
) -> View:
    """The view's description, unless it is there. The rows' own digest stands where an extracted
    view has its weights'."""
    n, width = emb_ND.shape
    digest = hashlib.sha256(emb_ND.data)
    digest.update(status_N.data)
    return store.create_view(
        folder,
        config.view,
        {"backend": store.IMPORTED, "width": width, "storage_dtype": "float16"},
        digest.hexdigest(),
        (items.fingerprint, n),
        config.shard_rows or default_rows(n),
        _provenance(config, array),
    )


def _provenance(config: ImportConfig, array: Array) -> dict[str, object]:
    """Recorded, not hashed: where the numbers came from. The source's digest is that of its rows,
    in weights_sha256."""
    path = Path(config.source).expanduser().resolve()
    return {
        "imported": path.name,
        "source": str(path),
        "array": array.name,
        "dtype": str(array.dtype),
        "by_row_order": config.by_row_order,
        "partial": config.partial,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "h5py", "zarr")},
    }


def _status_if_whole(view: View) -> np.ndarray | None:
    """(N,) uint8, where the view is finished and undamaged."""
    if view.is_complete:
        with contextlib.suppress(IntegrityError):
            return integrity.check(view)
    return None


def _write_lacking(view: View, emb_ND: np.ndarray, status_N: np.ndarray) -> None:
    """Write what the cache lacks of the view, and seal it. A shard that is damaged is lacking too:
    these rows are those that it held. A seal stays meanwhile, and nobody trusts shards that differ
    from it."""
    with store.writer_lock(view.folder):
        shards = [problem.shard for problem in mend.problems(view)]
        damaged = sorted({shard for shard in shards if shard is not None})
        if damaged:
            log.info(
                f"{view.name}: damaged, so written again: {len(damaged)} of {view.shards} shards: "
                f"{', '.join(map(str, damaged))}"
            )
        for shard in sorted({*view.pending(), *damaged}):
            first, last = view.bounds(shard)
            emb_RD = np.full((view.rows, view.width), np.nan, np.float16)
            emb_RD[: last - first] = emb_ND[first:last]
            status_R = np.zeros(view.rows, np.uint8)
            status_R[: last - first] = status_N[first:last]
            store.write_shard(view, shard, emb_RD, status_R)
        integrity.seal(view)


def _say_bad_rows(view: View, items: Items, status: np.ndarray) -> None:
    bad = status.nonzero()[0]
    if not len(bad):
        return
    log.info(
        f"{view.name}: {len(bad):,} of {view.n:,} rows have no embedding ({counts(status)}) and "
        f"are left out of training, the first is {items.keys[bad[0]]!r}: the array `status` of "
        f"{view.folder}"
    )
