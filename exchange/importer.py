"""make import VIEW=mine FROM=embeddings.npz DATA=photos/     (python -m exchange.importer --view mine --source embeddings.npz --data photos/)

Turns embeddings that were computed elsewhere into a finished view. With DATA the rows are matched to the data set's items by the keys in
the file; without it the file itself makes a data set, by its keys and labels. Ends with what was rounded, left out or not finite.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.errors import UsageError
from exchange.config import ImportConfig

if TYPE_CHECKING:
    import numpy as np

    from cache_specs.items import Items
    from cache_specs.store import View
    from exchange.arrays import Array

EXAMPLE = "make import VIEW=mine FROM=embeddings.npz DATA=photos/"


def command(config: ImportConfig, found: dict[str, Any]) -> None:
    """make import."""
    run(config)


def run(config: ImportConfig) -> "View":
    """Import one view; return it, finished. Raises CoviewError. Nothing is written before the whole file has been read once."""
    from cache_specs.sources import source_path
    from cache_specs.succession import write_items
    from exchange.match import match, own_items, refuse_other_file
    from exchange.source import choose, open_source
    from exchange.staging import staged

    _check(config)
    cache, path, folder = Path(config.cache), Path(config.source).expanduser(), None
    with open_source(path, config.fill_missing) as source:
        array = choose(source, config.array)
        if config.data:
            items, place, folder = match(
                source,
                array.shape[0],
                cache,
                config.data,
                Path(config.root),
                config.name,
                config.by_row_order,
                config.partial,
            )
        else:
            items, place = own_items(source, array.shape[0], config.name)
            refuse_other_file(cache, items, source)
        with staged(cache, source, array, place, items) as (emb_ND, status_N):
            folder = folder or write_items(cache, items, source_path(config.data or str(path)))
            return _write(config, folder, items, emb_ND, status_N, array)


def _check(config: ImportConfig) -> None:
    if not config.view or not config.source:
        raise UsageError(f"{'VIEW' if not config.view else 'FROM'} is missing. Type: {EXAMPLE}")
    for what, name in (("VIEW", config.view), ("--name", config.name or "data")):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.endswith(".toml"):
            raise UsageError(
                f"{what}={name!r}: a name is made of letters, digits, '-', '_' and '.', and begins with a letter or digit. Type: {EXAMPLE}"
            )
    if config.by_row_order and not config.data:
        raise UsageError(
            f"--by-row-order needs the data set in whose order the rows are. Type: {EXAMPLE} ARGS='--by-row-order'"
        )
    if config.shard_rows < 0:
        raise UsageError(f"--shard-rows must be at least 0, found {config.shard_rows}")


def _write(
    config: ImportConfig,
    folder: Path,
    items: "Items",
    emb_ND: "np.ndarray",
    status_N: "np.ndarray",
    array: "Array",
) -> "View":
    """Write what the cache lacks of the view, seal it and say what is in it. The rows' own digest stands where an extracted view has its weights'.

    A shard that is damaged is lacking too: these rows are those that it held. A seal stays meanwhile, and nobody trusts shards that differ from it.
    """
    import contextlib
    import hashlib

    import numpy as np

    from base.errors import IntegrityError
    from cache_specs import integrity, mend, store
    from cache_specs.view import STATUS, default_rows

    n, width = emb_ND.shape
    digest = hashlib.sha256(emb_ND.data)
    digest.update(status_N.data)
    declared = {"backend": store.IMPORTED, "width": width, "storage_dtype": "float16"}
    view = store.create_view(
        folder,
        config.view,
        declared,
        digest.hexdigest(),
        (items.fingerprint, n),
        config.shard_rows or default_rows(n),
        _provenance(config, array),
    )
    status = None
    if view.is_complete:
        with contextlib.suppress(IntegrityError):
            status = integrity.check(view)
    done = status is not None
    if not done:
        with store.writer_lock(view.folder):
            lost = sorted(
                {problem.shard for problem in mend.problems(view) if problem.shard is not None}
            )
            if lost:
                print(
                    f"{view.name}: damaged, so written again: {len(lost)} of {view.shards} shards: {', '.join(map(str, lost))}"
                )
            for shard in sorted({*view.pending(), *lost}):
                first, last = view.bounds(shard)
                emb_RD, status_R = (
                    np.full((view.rows, width), np.nan, np.float16),
                    np.zeros(view.rows, np.uint8),
                )
                emb_RD[: last - first], status_R[: last - first] = (
                    emb_ND[first:last],
                    status_N[first:last],
                )
                store.write_shard(view, shard, emb_RD, status_R)
            integrity.seal(view)
        status = integrity.check(view)
    print(
        f"{view.name}: {'already in the cache, nothing to do' if done else 'finished'}: {n:,} rows x {width} in {view.folder}"
    )
    bad = status.nonzero()[0]
    if len(bad):
        counts = ", ".join(
            f"{int((status == code).sum()):,} {STATUS[code]}"
            for code in sorted(set(status[bad].tolist()))
        )
        print(
            f"{view.name}: {len(bad):,} of {n:,} rows have no embedding ({counts}) and are left out of training, the first is {items.keys[bad[0]]!r}: "
            f"the array `status` of {view.folder}"
        )
    return view


def _provenance(config: ImportConfig, array: "Array") -> dict[str, object]:
    """Recorded, not hashed: where the numbers came from. The source's digest is that of its rows, in weights_sha256."""
    import platform
    from importlib.metadata import version

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
