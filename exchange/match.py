"""Which row of a file of embeddings is whose (for exchange/importer.py).

match(...)        rows -> the items of a data set that is there, by their keys or in row order
own_items(...)    a data set made of the file's own keys, labels and splits
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base.console import counted
from base.errors import IntegrityError, StaleError, UsageError, did_you_mean
from base.phrase import quoted
from base.progress import Progress
from cache_specs import store
from cache_specs.items import IMPORTED, SPLITS, Items, class_index, read_items
from cache_specs.lookup import find_dataset
from cache_specs.sources import dataset_name, is_gone, read_source, source_path
from cache_specs.versions import dataset_folders
from cache_specs.words import means_no_label, without_words
from exchange.source import NAMES_OF_KEYS, NAMES_OF_LABELS, Source, name_of, texts
from extract import bad_images
from extract.config import ExtractConfig
from extract.data import overview
from extract.data.datasets import build_items, open_dataset
from extract.data.naming import split_of, whole_numbers

log = logging.getLogger(f"coview.{__name__}")
TO_ONE_THAT_IS_HERE = "make import VIEW=… FROM=… DATA="  # of a data set


@dataclass(frozen=True)
class Target:
    """The data set whose items the rows shall be, as it was asked for."""

    cache: Path
    data: str
    root: Path
    name: str | None
    by_row_order: bool
    partial: bool
    as_class: Sequence[str] = ()


def match(source: Source, n: int, target: Target) -> tuple[Items, np.ndarray, Path | None]:
    """The items of DATA, (n,) int64: each row's item or -1, and the data set's folder if it is in
    the cache. Raises UsageError."""
    keys = None if target.by_row_order else _keys(source, n)
    items, folder = _items_of(target)
    if source.arrays.keys() & {*NAMES_OF_LABELS, "split"}:
        log.info(f"labels and splits are those of {items.name!r}; the file's own are not used")
    if target.by_row_order:
        _refuse_other_order(source, items, n)
        place = np.arange(n)
    elif keys is None:
        raise UsageError(
            f"{source.path} does not say which row is whose. Either put an array 'keys' into it "
            f"(the items' keys, such as {items.keys[0]!r}; all are in "
            f"{items.folder_name}/items.parquet), or, if its rows are the items in exactly that "
            "order, say so: ARGS='--by-row-order'"
        )
    else:
        place = _place_by_keys(source, keys, items, target.partial)
    _refuse_other_contents(source, items, place)
    return items, place, folder


def _items_of(target: Target) -> tuple[Items, Path | None]:
    """The item list that the cache has, or else one made of DATA as `extract` makes it, to be
    written later."""
    data, name = target.data, target.name
    try:
        folder = find_dataset(target.cache, name or data)
        if name and read_source(folder) not in ("", source_path(data)):
            raise StaleError(
                f"the data set {name!r} in {folder} was made of {read_source(folder)}, not of "
                f"{data}. To import for it: DATA={quoted(name)} without --name. For another data "
                "set take another name"
            )
        return read_items(folder), folder
    except UsageError:
        if is_gone(data):
            raise
    dataset = open_dataset(os.path.expanduser(data), target.root, name, target.as_class)
    overview.say(dataset.overview())
    with Progress(f"hashing {dataset.name}", len(dataset.keys)) as progress:
        items = build_items(dataset, progress.advance)
    bad_images.refuse_unreadable(items, dataset.read, ExtractConfig.max_bad)
    return items, None


def _keys(source: Source, n: int) -> list[str] | None:
    keys = source.keys if source.keys is not None else texts(source, NAMES_OF_KEYS, n)
    if keys is not None and len(keys) != n:
        raise UsageError(
            f"{source.path} has {counted(len(keys), 'key')} for {counted(n, 'row')} of embeddings, "
            "expected one for "
            "each row"
        )
    first: dict[str, int] = {}
    for row, key in enumerate(keys or ()):
        if not key:
            raise UsageError(f"{source.path}: the key of row {row} is empty; fill it in")
        if first.setdefault(key, row) != row:
            raise UsageError(
                f"{source.path}: the key {key!r} stands in the rows {first[key]} and {row}; leave "
                "one row for each item"
            )
    return keys


def _place_by_keys(source: Source, keys: list[str], items: Items, partial: bool) -> np.ndarray:
    """Each row's item, or -1. Raises UsageError for rows and items that find none, unless
    `partial`."""
    index = {key: row for row, key in enumerate(items.keys)}
    place = np.array([index.get(key, -1) for key in keys], np.int64)
    unknown, missing = np.flatnonzero(place < 0), np.setdiff1d(np.arange(len(items)), place)
    if len(unknown) == len(keys):
        raise UsageError(
            f"not one key of {source.path} is in {items.name!r}: {keys[0]!r} in the file, "
            f"{items.keys[0]!r} in the data set. Write the keys of the data set into the file, or "
            "match by position: ARGS='--by-row-order'"
        )
    if len(unknown):
        what = f"{counted(len(unknown), 'row')} with keys that are not in {items.name!r}"
        _say_left_out(f"{source.path} has {what}; the first is {keys[unknown[0]]!r}", partial)
    if len(missing):
        what = f"no row for {len(missing):,} of the {len(items):,} items of {items.name!r}"
        _say_left_out(f"{source.path} has {what}; the first is {items.keys[missing[0]]!r}", partial)
    return place


def _say_left_out(what: str, allowed: bool) -> None:
    if not allowed:
        raise UsageError(
            f"{what}. To import the others all the same: ARGS='--partial'",
            instead={"--partial": ""},
        )
    log.info(what)


def _refuse_other_order(source: Source, items: Items, n: int) -> None:
    """In row order: as many rows as items, and labels that agree. Labels that merely have other
    names (0 for 'cat') do so where each of them always meets the same label of the items."""
    if n != len(items):
        raise UsageError(
            f"{source.path} has {counted(n, 'row')}, {items.name!r} has "
            f"{counted(len(items), 'item')}; in row order "
            f"both must have as many. Otherwise match by keys: {TO_ONE_THAT_IS_HERE}…, with an "
            "array 'keys' in the file"
        )
    pairs: Counter[tuple[str, int]] = Counter()
    labels = texts(source, NAMES_OF_LABELS, n) or []
    for theirs, ours in zip(labels, items.label.tolist(), strict=False):
        if ours >= 0 and theirs != "-1" and not means_no_label(theirs):
            pairs[theirs, ours] += 1
    most: Counter[str] = Counter()
    for (theirs, _), count in pairs.items():
        most[theirs] = max(most[theirs], count)
    odd = pairs.total() - most.total()
    if odd:
        raise UsageError(
            f"{source.path}: in row order, the file's labels contradict those of {items.name!r} in "
            f"at least {odd:,} of {pairs.total():,} rows, so its rows are probably in another "
            "order. Match them by keys (an array 'keys' in the file); or, if the order is right "
            "and only the labels differ, leave them out of the file"
        )


def _refuse_other_contents(source: Source, items: Items, place: np.ndarray) -> None:
    """A view of a cache, and a file that `make export` wrote, say which images their rows were made
    of. Raises StaleError when those have changed."""
    theirs = source.sha256 or texts(source, ("sha256",), len(place))
    if theirs is None or items.adapter == IMPORTED:
        return
    changed = []
    for item, sha256 in zip(place.tolist(), theirs, strict=True):
        both_known = item >= 0 and sha256 and items.sha256[item]
        if both_known and sha256 != items.sha256[item]:
            changed.append(item)
    if changed:
        raise StaleError(
            f"{source.path} was made of other images: {len(changed):,} of {len(place):,} have "
            f"another content in {items.name!r}, first content of {items.keys[changed[0]]}. Embed "
            "the images that are there now: make extract VIEW=… DATA=…"
        )


def own_items(
    source: Source, n: int, name: str | None, as_class: Sequence[str] = ()
) -> tuple[Items, np.ndarray]:
    """A data set of the file's own keys (or row numbers), labels and splits, and (n,) int64: each
    row's item. Raises UsageError.

    There are no images whose bytes could be hashed. An item's hash is that of the data set's name
    and its key, so that a second view of the same rows meets the same item list, and two files that
    both merely number their rows are not taken for one data set.
    """
    labels, hidden = without_words(_label_names(source, n), as_class)
    labels = whole_numbers(labels)
    splits = _splits(source, n)
    for row, split in enumerate(splits):
        if split == "unlabelled":
            labels[row] = ""
    keys = _keys(source, n) or _row_numbers(n)
    order = sorted(range(n), key=lambda row: keys[row].encode())
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    called = name or dataset_name(source.path.resolve().stem)
    ordered = [keys[row] for row in order]
    label, classes = class_index([labels[row] for row in order])
    overview.say(overview.overview(called, labels, splits, hidden))
    log.info(
        f"data set {called!r}: {n:,} items, {len(classes)} classes, "
        f"{int((label >= 0).sum()):,} labelled. Further views of the same rows, and training: "
        f"DATA={quoted(called)}"
    )
    items = Items(
        called,
        IMPORTED,
        ordered,
        label,
        [splits[row] for row in order],
        np.array([len(key.encode()) for key in ordered], np.int64),
        [hashlib.sha256(f"{called}\0{key}".encode()).hexdigest() for key in ordered],
        classes,
        as_class,
    )
    return items, place


def _row_numbers(n: int) -> list[str]:
    """As wide as the last one, so that their order is that of the rows."""
    return [f"{row:0{len(str(n - 1))}d}" for row in range(n)]


def _splits(source: Source, n: int) -> list[str]:
    found = []
    for row, said in enumerate(texts(source, ("split",), n) or [""] * n):
        split = split_of(said)
        if split not in SPLITS:
            raise UsageError(
                f"{source.path}: row {row} has the split {split!r}{did_you_mean(split, SPLITS[1:])}"
            )
        found.append(split)
    return found


def _label_names(source: Source, n: int) -> list[str]:
    """'' for unknown: strings as they are; integers as written, or as `classes` of the file names
    them."""
    name = name_of(source, NAMES_OF_LABELS)
    if name is None:
        raise UsageError(
            f"{source.path} has no labels (an array 'y' or 'labels' of integers, -1 for unknown, "
            "or strings), so there is nothing to train on. Either add them, or name the data set "
            f"whose items the rows are: {TO_ONE_THAT_IS_HERE}…"
        )
    labels = texts(source, (name,), n) or []
    classes = []
    if source.arrays[name].dtype.kind in "iu":
        classes = _class_names(source)
        _refuse_numbers(source, labels, len(classes) or None)
        _refuse_alike(source, classes)
    return [_label_name(label, classes) for label in labels]


def _label_name(label: str, classes: Sequence[str]) -> str:
    if label == "-1":
        return ""
    return classes[int(label)] if classes else label


def _class_names(source: Source) -> list[str]:
    shape = source.arrays["classes"].shape if "classes" in source.arrays else ()
    return texts(source, ("classes",), shape[0]) or [] if len(shape) == 1 else []


def _refuse_numbers(source: Source, labels: Sequence[str], count: int | None) -> None:
    """Raise UsageError for a number that is none of so many classes'."""
    for row, label in enumerate(labels):
        if int(label) < -1 or (count is not None and int(label) >= count):
            top = "C - 1" if count is None else count - 1
            raise UsageError(
                f"{source.path}: row {row} has the label {label}; labels are 0 to {top}, or -1 for "
                "unknown; mend the file"
            )


def _refuse_alike(source: Source, classes: Sequence[str]) -> None:
    for name, count in Counter(classes).items():
        if count > 1 or not name:
            has = f"the name {name!r} more than once" if name else "an empty name"
            raise UsageError(
                f"{source.path}: the array 'classes' has {has}; give each class a name of its own; "
                "unknown is the label -1"
            )


def refuse_other_file(cache: Path, items: Items, source: Source) -> None:
    """Two files of one name are not one data set because both number their rows. Raises StaleError,
    or IntegrityError for a damaged item list: but not where it is the very one that this file made,
    since `write_items` writes that again."""
    here = source_path(str(source.path))
    keyed = source.keys is not None or name_of(source, NAMES_OF_KEYS) is not None
    for folder in sorted({*dataset_folders(cache, items.name), *cache.glob(items.folder_name)}):
        made_of = _made_of(folder)
        other = _what_is_other(folder, items, keyed, made_of)
        if other and here not in made_of:
            flags = "" if keyed else " ARGS='--by-row-order'"
            raise StaleError(
                f"the data set {items.name!r} in {folder} was made of "
                f"{' or '.join(sorted(made_of)) or 'another file'}, not of {here}{other}. For one "
                f"more view of the same rows: {TO_ONE_THAT_IS_HERE}{quoted(items.name)}{flags}. "
                "For another data set: ARGS='--name …'"
            )


def _what_is_other(folder: Path, items: Items, keyed: bool, made_of: set[str]) -> str:
    """Why the data set in `folder` would not be that of the items; '' where nothing says so."""
    try:
        old = read_items(folder)
    except IntegrityError:
        if folder.name != items.folder_name:
            raise
        if not made_of:
            return ""
        return (
            ". Its item list is damaged, and the import of the very file that it was made of "
            "writes it again"
        )
    if not keyed:
        return "; without an array of keys nothing says that their rows are the same"
    same_items = old.fingerprint == items.fingerprint
    if same_items and old.labels_fingerprint != items.labels_fingerprint:
        return ", with other labels"
    return ""


def _made_of(folder: Path) -> set[str]:
    """What the data set was made of: as recorded or, where that is damaged, by its views, all but
    those that took its order; nothing if it has none."""
    recorded = read_source(folder)
    if recorded:
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
