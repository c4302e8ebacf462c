"""Which rows are labelled, unlabelled, for validation and for test. A pure function of the item list, LABELS and the seed.

    LABELS=all       every labelled training row            LABELS=4        4 a class
    LABELS=10%       that share of each class, at least 1   LABELS=my.txt   the keys in a file, one a line, or only their last parts

For one seed the choices are nested: the rows of LABELS=3 are among those of LABELS=4. A data set without a test (or validation)
split gives a fifth of its labelled rows to each, the same for every seed, chosen by their contents; rows that a file names are not given away. ImageNet's
published lists (1percent.txt and 10percent.txt of github.com/google-research/simclr, folder imagenet_subsets/) hold bare file names, which is enough.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base.errors import DataQualityError, UsageError, did_you_mean
from cache_specs.items import Items

CHOICE = 3 << 40  # second word of the keys of draws; train/algorithm/batches.py has 1 and 2 << 40
NUMBER = re.compile(r"all|\d+|[\d.]+%")


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers, ascending and disjoint. `unlabelled` are the training rows whose labels are hidden or unknown."""

    labelled: np.ndarray
    unlabelled: np.ndarray
    val: np.ndarray
    test: np.ndarray


def make_split(items: Items, ok: np.ndarray, labels: str, seed: int) -> Split:
    """The split of one experiment. ok: (N,) bool, the rows usable in every view. Raises UsageError or DataQualityError."""
    known = items.label >= 0
    named = (
        _from_file(items, Path(labels))
        if not NUMBER.fullmatch(labels) and Path(labels).is_file()
        else None
    )
    role = assign(items, named)
    val, test = (np.flatnonzero((role == name) & known & ok) for name in ("val", "test"))
    pool = np.flatnonzero((role == "train") & known)
    labelled = (
        _choose(items, pool, ok, labels, seed)
        if named is None
        else _usable(items, named, pool[ok[pool]], labels)
    )
    unlabelled = np.setdiff1d(
        np.flatnonzero(((role == "train") | (role == "unlabelled")) & ok), labelled
    )
    for name, rows in (("labelled training", labelled), ("validation", val), ("test", test)):
        if len(rows) == 0:
            raise DataQualityError(
                f"{items.name!r} has no usable {name} image: {int(known.sum())} of {len(items)} have a label, "
                f"{int(ok.sum())} are usable in every view. Put images into class folders, or give a table with the "
                "columns path,label,split"
            )
    return Split(labelled, unlabelled, val, test)


def assign(items: Items, named: np.ndarray | None = None) -> np.ndarray:
    """(N,) str: train, val, test or unlabelled for each row. What the data set says stands; what it leaves open is filled in, but not with the rows
    `named` as labelled: those are left out of the fifth, so that a test split of other labels has at most these rows more."""
    role = np.array(items.split, object)
    open_rows, labelled = role == "", items.label >= 0
    role[open_rows & ~labelled] = "unlabelled"
    role[open_rows & labelled] = "train"
    given = role.copy()
    for name, key in (("test", 1), ("val", 2)):
        if (given == name).any():
            continue
        source = "train" if (role == "train").any() else "test"
        for label in range(len(items.classes)):
            rows = _by_content(
                items, np.flatnonzero((role == source) & (items.label == label)), key
            )
            whole = int(((given == source) & (items.label == label)).sum())
            role[
                rows[: _whole_groups(items, rows, whole // 5 if whole >= 5 else int(len(rows) > 2))]
            ] = name
    if named is not None:
        kept = named[given[named] == "train"]
        role[kept] = "train"
    return role


def _by_content(items: Items, rows: np.ndarray, key: int) -> np.ndarray:
    """The rows in an order that chance, by their contents, gives them: when images are added or moved, hardly one of the others changes its side."""
    digests = [
        hashlib.sha256(f"{key} {items.sha256[row] or items.keys[row]}".encode()).digest()
        for row in rows
    ]
    return rows[sorted(range(len(rows)), key=digests.__getitem__)]


def _whole_groups(items: Items, rows: np.ndarray, count: int) -> int:
    """`count`, or, where it would cut through copies of one image, the number at which they end, or begin where they are the last; a class of one image's
    copies alone is cut all the same."""

    def copies(place: int) -> bool:
        return (
            0 < place < len(rows)
            and bool(items.sha256[rows[place]])
            and items.sha256[rows[place]] == items.sha256[rows[place - 1]]
        )

    end = next(place for place in range(count, len(rows) + 1) if not copies(place))
    return (
        end
        if end < len(rows)
        else next(place for place in range(count, -1, -1) if not copies(place)) or count
    )


def _choose(items: Items, known: np.ndarray, ok: np.ndarray, labels: str, seed: int) -> np.ndarray:
    """`known` are permuted before the unusable ones are dropped, so that a bad image of one view changes no other draw."""
    pool = known[ok[known]]
    if labels == "all":
        return pool
    try:
        percent = float(labels[:-1]) if labels.endswith("%") else None
        count = None if percent is not None else int(labels)
        if (percent is None and count < 1) or (percent is not None and not 0 < percent <= 100):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"LABELS={labels}: neither a number a class (LABELS=4), nor a share (LABELS=10%), nor 'all', nor a file that is there"
        ) from None
    chosen = []
    for label in np.unique(items.label[pool]):
        rows = np.random.Generator(np.random.Philox(key=[seed, CHOICE + int(label)])).permutation(
            known[items.label[known] == label]
        )
        rows = rows[ok[rows]]
        take = count if percent is None else max(1, round(len(rows) * percent / 100))
        if take > len(rows):
            counts = np.bincount(items.label[pool])
            counts[counts == 0] = len(pool) + 1
            raise UsageError(
                f"LABELS={labels}, but class {items.classes[counts.argmin()]!r} has only {counts.min()} labelled training images; "
                f"type at most LABELS={counts.min()}",
                instead={"LABELS": str(counts.min())},
            )
        chosen.append(rows[:take])
    return np.sort(np.concatenate(chosen)) if chosen else pool


def _from_file(items: Items, path: Path) -> np.ndarray:
    """The rows that a file names, in its order, by their keys or by the ends of keys. Raises UsageError where a line names none, or several."""
    lines = [(line, key) for line, key in enumerate(read_keys(path), 1) if key]
    index = {key: row for row, key in enumerate(items.keys)}
    ends: dict[str, list[int]] = {}
    if short := {key.rpartition("/")[2] for _, key in lines if key not in index}:
        for key, row in index.items():
            if (end := key.rpartition("/")[2]) in short:
                ends.setdefault(end, []).append(row)
    rows, unknown, unclear = [], [], []
    for line, key in lines:
        found = (
            [index[key]]
            if key in index
            else [
                row
                for row in ends.get(key.rpartition("/")[2], [])
                if items.keys[row].endswith(f"/{key}")
            ]
        )
        rows += found[:1]
        if len(found) != 1:
            (unclear if found else unknown).append((line, key, found))
    for wrong in (unknown, unclear):
        if wrong:
            line, key, found = wrong[0]
            several = (
                f" ({len(wrong):,} of {len(lines):,} lines are like that)" if len(wrong) > 1 else ""
            )
            raise UsageError(
                f"{path}, line {line}: "
                + (
                    f"{items.name!r} has {len(found)} images of the name {key!r}, such as {items.keys[found[0]]!r} and "
                    f"{items.keys[found[1]]!r}; write whole keys"
                    if found
                    else f"{items.name!r} has no image {key!r}{did_you_mean(key, items.keys[:10_000])}"
                )
                + several
            )
    if not rows:
        raise UsageError(
            f"LABELS={path}: the file names no image; write one key a line, such as {items.keys[0]!r}"
        )
    return np.array(rows, np.int64)


def _usable(items: Items, named: np.ndarray, pool: np.ndarray, labels: str) -> np.ndarray:
    if len(wrong := named[~np.isin(named, pool)]):
        raise UsageError(
            f"LABELS={labels}: {items.keys[wrong[0]]!r} is not a labelled training image that could be embedded"
            + (
                f", and so are {len(wrong) - 1:,} others of the {len(named):,} named"
                if len(wrong) > 1
                else ""
            )
            + "; leave it out of the file"
        )
    return np.unique(named)


def read_keys(path: Path) -> list[str]:
    """The lines of a file of keys. Raises UsageError when it is not text."""
    try:
        return [
            line.removesuffix("\r") for line in path.read_text(encoding="utf-8-sig").split("\n")
        ]
    except UnicodeDecodeError as error:
        raise UsageError(
            f"LABELS={path}: the file is not text in UTF-8 ({error}); write one key a line"
        ) from error
