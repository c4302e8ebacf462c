"""Dataset adapters: DATA=… -> keys, labels, splits and the bytes of each image.

    DATA=digits                  scikit-learn's 1,797 scanned digits (bundled, no download)
    DATA=photos/                 class/img.jpg, or train|val|test|unlabelled/class/img.jpg
                                 (ImageNet), or just images
    DATA=list.csv                a table (CSV or Parquet) with the columns path[, label][, split];
                                 paths are relative to the table, or absolute
    DATA=images.parquet          a table with the images themselves: image[, label][, split][, key]
    DATA='shards/train-{000..012}.tar'  webdataset tars, one tar, or a folder of them
    DATA=images.h5               HDF5: images[, labels][, splits][, keys]
    DATA=torchvision:Food101     a data set by torchvision's name of its class, below ROOT; @
                                 chooses a version: torchvision:INaturalist@2021_train
    DATA=hf:owner/name           a data set of the Hugging Face hub, or a folder that `datasets`
                                 saved; @ chooses a configuration
    DATA='photos/#top10'         of any of these, the ten classes with the most images in the
                                 training split, in every split

A new kind of data set is one more function in ADAPTERS. `read(i)` gives item i's encoded bytes or
raises OSError, `read.digest(i)` their number and sha256, `read.place(i)` where they are; it is
picklable.
"""

import difflib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import UsageError
from base.phrase import for_shell
from cache_specs.items import Items, class_index
from cache_specs.sources import BRACES, ENDINGS, dataset_name, is_gone, split_subset
from cache_specs.stamps import Stamps
from cache_specs.words import without_words
from extract.data import beside, hdf5, hub, sheets, tables, tars
from extract.data.formats import EXTENSIONS, UNREAD, remedy
from extract.data.layout import masks_among, of_folders, say_masks, warn_of_names
from extract.data.naming import (
    find_images,
    hide_unlabelled,
    passed_over,
    say_left_out,
    say_passed_over,
    text,
    whole_numbers,
)
from extract.data.overview import Overview, overview
from extract.data.readers import Listing, ReadArrays, Reader, ReadFiles, Reordered

log = logging.getLogger(f"coview.{__name__}")
UNPACK = {".zip": "unzip -d {}", ".7z": "7z x -o{}", ".rar": "unrar x -op{}"}  # into a folder


@dataclass(frozen=True)
class Dataset:
    """N images: keys (unique), label names ('' = unknown), splits ('' = not given), and `read(i) ->
    bytes`. hidden: labels that were taken for none, and how many images had them; as_class: words
    that were not."""

    name: str
    adapter: str
    keys: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    read: Reader
    hidden: Counter[str] = field(default_factory=Counter)
    as_class: Sequence[str] = ()

    def overview(self) -> Overview:
        return overview(self.name, self.labels, self.splits, self.hidden)


def open_dataset(
    data: str, root: Path, name: str | None = None, as_class: Sequence[str] = ()
) -> Dataset:
    """The data set that `DATA=data` names, in the order of its keys. as_class: words that are
    classes, though they usually mean that there is no label. Raises UsageError when there is none,
    or nothing in it."""
    source, top = split_subset(data)
    adapter = _adapter(source)
    keys, labels, splits, read = ADAPTERS[adapter](source, root)
    hidden = Counter[str]()
    if adapter not in OFFICIAL:
        labels, hidden = without_words(labels, as_class)
    if adapter not in (*OFFICIAL, "folder"):
        labels = whole_numbers(labels)
    splits = hide_unlabelled(data, labels, splits)
    order = sorted(range(len(keys)), key=lambda i: keys[i].encode("utf-8", "surrogateescape"))
    for a, b in itertools.pairwise(order):
        if keys[a] == keys[b]:
            raise UsageError(
                f"DATA={data}: the key {keys[a]!r} stands there twice, in the rows {a} and {b} "
                "(the first is 0); each image may be listed once"
            )
    if top:
        chosen = _most_common(data, labels, splits, top)
        order = [i for i in order if labels[i] in chosen]
    return Dataset(
        name or dataset_name(data),
        adapter,
        [keys[i] for i in order],
        [labels[i] for i in order],
        [splits[i] for i in order],
        Reordered(read, np.array(order)),
        hidden,
        as_class,
    )


def _adapter(data: str) -> str:
    """The kind of data set that DATA names, a word of ADAPTERS. Raises UsageError."""
    near = _near(data) if is_gone(data) else ""
    instead = {"DATA": near} if near else None
    if near and data.lower().endswith(ENDINGS):
        raise UsageError(
            f"DATA={data}: there is no such file; did you mean {near!r}", instead=instead
        )
    kind = _kind(data)
    if kind:
        return kind
    meant = f"; did you mean {near!r}" if near else ""
    what = f"there is no such folder{meant}"
    if Path(data).is_file():
        what = "is a file of none of these kinds"
        if data.lower().endswith((".xls", ".xlsx", ".ods")):
            what = "is a spreadsheet; save its sheet as CSV"
        if archive := _unpacking(data):
            what, instead = archive
    raise UsageError(
        f"DATA={data}: {what}. DATA may be a folder of images or of .tar shards, a .csv, "
        ".parquet, .h5 or .tar file, torchvision:NAME, hf:OWNER/NAME, or digits",
        instead=instead,
    )


def _unpacking(data: str) -> tuple[str, dict[str, str]] | None:
    """What is said of an archive, and DATA once it is unpacked; None for any other file."""
    folder, ending = os.path.splitext(data)
    if ending.lower() not in UNPACK:
        return None
    command = f"{UNPACK[ending.lower()].format(for_shell(folder))} {for_shell(data)}"
    return f"is an archive; unpack it first: {command}", {"DATA": f"{folder}/"}


def _kind(data: str) -> str:
    """A word of ADAPTERS; '' where DATA is nothing of the kind."""
    if data.startswith(("torchvision:", "hf:")):
        return data.split(":")[0]
    if data == "digits":
        return "digits"
    if Path(data).is_dir():
        return "tars" if tars.only_tars(Path(data)) else "folder"
    if sheets.is_table(data):
        return "table"
    if data.lower().endswith((".h5", ".hdf5")):
        return "hdf5"
    if data.lower().endswith(tars.ENDINGS) or BRACES.search(data):
        return "tars"
    return ""


def _near(data: str) -> str:
    """A folder or file beside it, or a word, that is nearly called so; '' if there is none."""
    path, here = Path(data), {"digits": "digits"}
    try:
        beside = [inner for inner in path.expanduser().parent.iterdir() if inner.name[0] != "."]
        for inner in beside:
            slash = "/" if inner.is_dir() else ""
            here[inner.name] = f"{path.parent / inner.name}{slash}"
    except OSError:
        pass
    found = difflib.get_close_matches(path.name, here, n=1, cutoff=0.7)
    return here[found[0]] if found else ""


def _most_common(data: str, labels: Sequence[str], splits: Sequence[str], top: int) -> set[str]:
    """The `top` classes with the most images in the training split, equal ones in order of their
    names; and '', since images without a label stay.

    Where no split is given one is drawn later, a fifth of each class for validation and test: then
    all images count."""
    counts, every = Counter[str](), Counter(labels)
    for label, split in zip(labels, splits, strict=True):
        if label and split in ("", "train"):
            counts[label] += 1
    if top > len(counts):
        raise UsageError(
            f"DATA={data}: there are {len(counts):,} classes with training images; type at most "
            f"#top{len(counts)}"
        )
    chosen = sorted(counts, key=lambda label: (-counts[label], label.encode()))[:top]
    first, last = chosen[0], chosen[-1]
    kept = sum(every[label] for label in ("", *chosen))
    log.info(
        f"{data}: {kept:,} of {len(labels):,} images, of the {top:,} of {len(counts):,} classes "
        f"with the most training images: {counts[first]:,} ({first}) down to {counts[last]:,} "
        f"({last})"
    )
    return {"", *chosen}


def build_items(
    dataset: Dataset, tick: Callable[[int], None] = lambda n: None, stamps: Stamps | None = None
) -> Items:
    """Read every image once and hash it, but for those whose contents the `stamps` know. An
    unreadable one gets size 0 and an empty hash. `tick(1)` is called per image."""
    n, threads = len(dataset.keys), min(16, 4 * (os.cpu_count() or 1))
    found: list[tuple[int, str]] = [(0, "")] * n

    def digest(block: list[int]) -> None:
        unknown = []
        for i in block:
            known = stamps.known(dataset.keys[i], dataset.read.place(i)) if stamps else None
            if known is None:
                unknown.append(i)
            else:
                found[i] = known
                tick(1)
        for i, one in zip(unknown, dataset.read.digests(unknown), strict=True):
            found[i] = one
            tick(1)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(digest, dataset.read.blocks(n, max(1, n // (4 * threads)))))
    label, classes = class_index(list(dataset.labels))
    return Items(
        dataset.name,
        dataset.adapter,
        list(dataset.keys),
        label,
        list(dataset.splits),
        np.array([size for size, _ in found], np.int64),
        [sha for _, sha in found],
        classes,
        dataset.as_class,
    )


def relabelled(items: Items, dataset: Dataset) -> Items:
    """Items of the same images with the labels and splits of `dataset`."""
    label, classes = class_index(list(dataset.labels))
    splits, words = list(dataset.splits), dataset.as_class
    return replace(items, label=label, classes=classes, split=splits, as_class=words)


def _digits(data: str, root: Path) -> Listing:
    """Fixed splits: of each class 20 % test, 20 % val, the rest train, by a permutation with
    seed 0."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  takes seconds, no other set needs it

    bunch: Any = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # published as 0..16
    split = np.full(len(images), "train", object)
    for digit in range(10):
        rows = np.flatnonzero(bunch.target == digit)
        rows = np.random.Generator(np.random.Philox(key=digit)).permutation(rows)
        fifth = len(rows) // 5
        split[rows[:fifth]] = "test"
        split[rows[fifth : 2 * fifth]] = "val"
    return Listing(
        [f"{i:04d}" for i in range(len(images))],
        [str(digit) for digit in bunch.target],
        split.tolist(),
        ReadArrays(images),
    )


def _folder(data: str, root: Path) -> Listing:
    base = Path(data)
    found, others, passed = find_images(base)
    say_passed_over(data, passed)
    left_out = Counter({f"with {ending}": count for ending, count in others.items()})
    why = f"their endings are not those of images ({', '.join(EXTENSIONS)})"
    say_left_out(data, left_out, why)
    masks = masks_among(found)
    if masks:
        masks -= beside.labelled(base, found)
    say_masks(data, found, masks)
    found = [path for place, path in enumerate(found) if place not in masks]
    if not found:
        unread = [ending for ending in UNREAD if others[ending]]
        then = "name the folder that holds them"
        if unread:
            then = remedy(unread)
        raise UsageError(
            f"DATA={data}: no image in this folder (looked for {', '.join(EXTENSIONS)}, at any "
            f"depth); {then}"
        )
    _warn_of_empty(data, {path.parts[0] for path in found})
    labels, splits = of_folders(data, found)
    if not any(labels):
        labels, splits = beside.tables_beside(base, found, splits)
    warn_of_names(data, found, labels)
    return Listing(
        [text(path.as_posix()) for path in found],
        [text(label) for label in labels],
        splits,
        ReadFiles([str(base / path) for path in found]),
    )


def _warn_of_empty(data: str, tops: set[str]) -> None:
    """Of folders in which no image was found; `tops` are the others."""
    empty = []
    for inner in Path(data).iterdir():
        if inner.is_dir() and not passed_over(inner.name) and inner.name not in tops:
            empty.append(inner.name)
    if empty:
        more = " …" if len(empty) > 10 else ""
        listed = ", ".join(map(text, sorted(empty)[:10]))
        log.warning(f"{data}: there is no image in {listed}{more}")


def _torchvision(data: str, root: Path) -> Listing:
    from extract.data.torchvision_sets import of_torchvision  # noqa: PLC0415  torch takes seconds

    return of_torchvision(data, root)


OFFICIAL = ("digits", "torchvision")  # whose classes are known: Country211 has NA, Namibia
ADAPTERS: dict[str, Callable[[str, Path], Listing]] = {
    "digits": _digits,
    "folder": _folder,
    "table": tables.of_table,
    "tars": tars.of_tars,
    "hdf5": hdf5.of_hdf5,
    "torchvision": _torchvision,
    "hf": hub.of_hub,
}
