"""Which row of a file of embeddings is whose, and the rows in the items' order (for exchange/importer.py).

match(...)        rows -> the items of a data set that is there, by their keys or in row order
own_items(...)    a data set made of the file's own keys, labels and splits
"""

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np

from base.errors import IntegrityError, StaleError, UsageError, did_you_mean
from base.phrase import quoted
from base.progress import Progress
from cache_specs import store
from cache_specs.items import IMPORTED, SPLITS, Items, class_index, read_items
from cache_specs.lookup import find_dataset
from cache_specs.sources import dataset_name, is_gone, read_source, source_path
from cache_specs.versions import dataset_folders
from cache_specs.view import STATUS
from exchange.source import KEYS, LABELS, Source, texts
from extract import bad_images
from extract.config import ExtractConfig
from extract.data.datasets import build_items, open_dataset
from extract.data.naming import split_of

EXAMPLE = "make import VIEW=… FROM=… DATA=…"
MISSING, NON_FINITE = STATUS.index("missing"), STATUS.index("non-finite")


def match(
    source: Source,
    n: int,
    cache: Path,
    data: str,
    root: Path,
    name: str | None,
    by_row_order: bool,
    partial: bool,
) -> tuple[Items, np.ndarray, Path | None]:
    """The items of DATA, (n,) int64: each row's item or -1, and the data set's folder if it is in the cache. Raises UsageError."""
    keys = None if by_row_order else _keys(source, n)
    items, folder = _items(cache, data, root, name)
    if source.arrays.keys() & {*LABELS, "split"}:
        print(f"labels and splits are those of {items.name!r}; the file's own are not used")
    if by_row_order:
        if n != len(items):
            raise UsageError(
                f"{source.path} has {n:,} rows, {items.name!r} has {len(items):,} items; in row order both must have as many. "
                f"Otherwise match by keys: {EXAMPLE}, with an array 'keys' in the file"
            )
        _refuse_other_order(source, items)
        _refuse_other_contents(source, items, np.arange(n))
        return items, np.arange(n), folder
    if keys is None:
        raise UsageError(
            f"{source.path} does not say which row is whose. Either put an array 'keys' into it (the items' keys, such as "
            f"{items.keys[0]!r}; all are in {items.folder_name}/items.parquet), or, if its rows are the items in exactly that order, "
            "say so: ARGS='--by-row-order'"
        )
    index = {key: row for row, key in enumerate(items.keys)}
    place = np.array([index.get(key, -1) for key in keys], np.int64)
    unknown, missing = np.flatnonzero(place < 0), np.setdiff1d(np.arange(len(items)), place)
    if len(unknown) == n:
        raise UsageError(
            f"not one key of {source.path} is in {items.name!r}: {keys[0]!r} in the file, {items.keys[0]!r} in the data set. "
            f"Write the keys of the data set into the file, or match by position: ARGS='--by-row-order'"
        )
    for rows, names, what in (
        (
            unknown,
            keys,
            f"{source.path} has {len(unknown):,} rows whose keys are not in {items.name!r}",
        ),
        (
            missing,
            items.keys,
            f"{source.path} has no row for {len(missing):,} of the {len(items):,} items of {items.name!r}",
        ),
    ):
        if len(rows) and not partial:
            raise UsageError(
                f"{what}; the first is {names[rows[0]]!r}. To import the others all the same: ARGS='--partial'"
            )
        if len(rows):
            print(f"{what}; the first is {names[rows[0]]!r}")
    _refuse_other_contents(source, items, place)
    return items, place, folder


def _refuse_other_order(source: Source, items: Items) -> None:
    """Labels that merely have other names (0 for 'cat') agree where each of them always meets the same label of the items."""
    labels = texts(source, LABELS, len(items))
    pairs = Counter(
        (theirs, int(ours))
        for theirs, ours in zip(labels or (), items.label, strict=False)
        if ours >= 0 and theirs not in ("", "-1")
    )
    most: Counter[str] = Counter()
    for (theirs, _), count in pairs.items():
        most[theirs] = max(most[theirs], count)
    if odd := pairs.total() - most.total():
        raise UsageError(
            f"{source.path}: in row order, the file's labels contradict those of {items.name!r} in at least {odd:,} of {pairs.total():,} rows, so "
            "its rows are probably in another order. Match them by keys (an array 'keys' in the file); or, if the order is right and only the "
            "labels differ, leave them out of the file"
        )


def _refuse_other_contents(source: Source, items: Items, place: np.ndarray) -> None:
    """A view of a cache, and a file that `make export` wrote, say which images their rows were made of. Raises StaleError when those have changed."""
    theirs = source.sha256 or texts(source, ("sha256",), len(place))
    if theirs is None or items.adapter == IMPORTED:
        return
    changed = [
        int(item)
        for item, sha256 in zip(place, theirs, strict=True)
        if item >= 0 and sha256 and items.sha256[item] and sha256 != items.sha256[item]
    ]
    if changed:
        raise StaleError(
            f"{source.path} was made of other images: {len(changed):,} of {len(place):,} have another content in {items.name!r}, first "
            f"content of {items.keys[changed[0]]}. Embed the images that are there now: make extract VIEW=… DATA=…"
        )


def _keys(source: Source, n: int) -> list[str] | None:
    keys = source.keys if source.keys is not None else texts(source, KEYS, n)
    if keys is not None and len(keys) != n:
        raise UsageError(
            f"{source.path} has {len(keys):,} keys for {n:,} rows of embeddings, expected one for each row"
        )
    first: dict[str, int] = {}
    for row, key in enumerate(keys or ()):
        if not key:
            raise UsageError(f"{source.path}: the key of row {row} is empty; fill it in")
        if first.setdefault(key, row) != row:
            raise UsageError(
                f"{source.path}: the key {key!r} stands in the rows {first[key]} and {row}; leave one row for each item"
            )
    return keys


def _items(cache: Path, data: str, root: Path, name: str | None) -> tuple[Items, Path | None]:
    """The item list that the cache has, or else one made of DATA as `extract` makes it, to be written later."""
    try:
        folder = find_dataset(cache, name or data)
        if name and read_source(folder) not in ("", source_path(data)):
            raise StaleError(
                f"the data set {name!r} in {folder} was made of {read_source(folder)}, not of {data}. To import for it: DATA={quoted(name)} "
                "without --name. For another data set take another name"
            )
        return read_items(folder), folder
    except UsageError:
        if is_gone(data):
            raise
    dataset = open_dataset(os.path.expanduser(data), root, name)
    with Progress(f"hashing {dataset.name}", len(dataset.keys)) as progress:
        items = build_items(dataset, progress.advance)
    bad_images.refuse_unreadable(items, dataset.read, ExtractConfig.max_bad)
    return items, None


def own_items(source: Source, n: int, name: str | None) -> tuple[Items, np.ndarray]:
    """A data set of the file's own keys (or row numbers), labels and splits, and (n,) int64: each row's item. Raises UsageError.

    There are no images whose bytes could be hashed. An item's hash is that of the data set's name and its key, so that a second view of the
    same rows meets the same item list, and two files that both merely number their rows are not taken for one data set.
    """
    labels = _labels(source, n)
    splits = [split_of(split) for split in texts(source, ("split",), n) or [""] * n]
    for row, split in enumerate(splits):
        if split not in SPLITS:
            raise UsageError(
                f"{source.path}: row {row} has the split {split!r}{did_you_mean(split, SPLITS[1:])}"
            )
        labels[row] = "" if split == "unlabelled" else labels[row]
    keys = _keys(source, n) or [f"{row:0{len(str(n - 1))}d}" for row in range(n)]
    order = sorted(range(n), key=lambda row: keys[row].encode())
    place, called = np.empty(n, np.int64), name or dataset_name(source.path.resolve().stem)
    place[order] = np.arange(n)
    label, classes = class_index([labels[row] for row in order])
    ordered = [keys[row] for row in order]
    print(
        f"data set {called!r}: {n:,} items, {len(classes)} classes, {int((label >= 0).sum()):,} labelled. Further views of the same rows, and training: "
        f"DATA={quoted(called)}"
    )
    return Items(
        called,
        IMPORTED,
        ordered,
        label,
        [splits[row] for row in order],
        np.array([len(key.encode()) for key in ordered], np.int64),
        [hashlib.sha256(f"{called}\0{key}".encode()).hexdigest() for key in ordered],
        classes,
    ), place


def _labels(source: Source, n: int) -> list[str]:
    """Label names, '' for unknown: strings as they are; integers as written, or as `classes` of the file names them."""
    labels = texts(source, LABELS, n)
    if labels is None:
        raise UsageError(
            f"{source.path} has no labels (an array 'y' or 'labels' of integers, -1 for unknown, or strings), so there is nothing to train "
            f"on. Either add them, or name the data set whose items the rows are: {EXAMPLE}"
        )
    kind = next(source.arrays[name].dtype.kind for name in LABELS if name in source.arrays)
    shape = source.arrays["classes"].shape if "classes" in source.arrays else ()
    classes = texts(source, ("classes",), shape[0]) if len(shape) == 1 else None
    if kind not in "iu":
        return ["" if label == "-1" else label for label in labels]
    top = len(classes) - 1 if classes else float("inf")
    wrong = next((row for row, label in enumerate(labels) if not -1 <= int(label) <= top), None)
    if wrong is not None:
        raise UsageError(
            f"{source.path}: row {wrong} has the label {labels[wrong]}; labels are 0 to {top if classes else 'C - 1'}, or -1 for unknown; "
            "mend the file"
        )
    twice = next(
        (name for name, count in Counter(classes or ()).items() if count > 1 or not name), None
    )
    if twice is not None:
        raise UsageError(
            f"{source.path}: the array 'classes' has {f'the name {twice!r} more than once' if twice else 'an empty name'}; "
            "give each class a name of its own; unknown is the label -1"
        )
    return ["" if label == "-1" else classes[int(label)] if classes else label for label in labels]


def refuse_other_file(cache: Path, items: Items, source: Source) -> None:
    """Two files of one name are not one data set because both number their rows. Raises StaleError, or IntegrityError for a damaged item list:
    but not where it is the very one that this file made, since `write_items` writes that again."""
    here, keyed = (
        source_path(str(source.path)),
        source.keys is not None or any(name in source.arrays for name in KEYS),
    )
    for folder in sorted({*dataset_folders(cache, items.name), *cache.glob(items.folder_name)}):
        made_of, other = _made_of(folder), ""
        try:
            old = read_items(folder)
            if not keyed:
                other = "; without an array of keys nothing says that their rows are the same"
            elif (
                old.fingerprint == items.fingerprint
                and old.labels_fingerprint != items.labels_fingerprint
            ):
                other = ", with other labels"
        except IntegrityError:
            if folder.name != items.folder_name:
                raise
            other = (
                ". Its item list is damaged, and the import of the very file that it was made of writes it again"
                if made_of
                else ""
            )
        if other and here not in made_of:
            raise StaleError(
                f"the data set {items.name!r} in {folder} was made of {' or '.join(sorted(made_of)) or 'another file'}, not of {here}{other}. "
                f"For one more view of the same rows: make import VIEW=… FROM=… DATA={quoted(items.name)}"
                + ("" if keyed else " ARGS='--by-row-order'")
                + ". For another data set: ARGS='--name …'"
            )


def _made_of(folder: Path) -> set[str]:
    """What the data set was made of: as recorded or, where that is damaged, by its views, all but those that took its order; nothing if it has none."""
    if recorded := read_source(folder):
        return {recorded}
    found = set()
    for view in store.view_folders(folder):
        try:
            made = store.open_view(view).attributes["provenance"]
        except (IntegrityError, StaleError):
            made = {}
        if not made.get("by_row_order"):
            found.add(made.get("source", "a file that nothing names any more"))
    return found
