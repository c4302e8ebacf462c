"""Every labelled row trains, and nearly every one judges: cross-fitting (Chernozhukov et al. 2018).

    splits = splits_of(items, ok, "4", [0, 1], apart)    split.folds: the same without some labels

The labelled rows are dealt out to FOLDS folds. For each there is one more training, which knows
the labels of all rows but the fold's, and takes these for unlabelled; what it says of them is their
out-of-fold opinion. All that has to be chosen is chosen by the opinions of a seed, for all of its
trainings alike; the one that knows all labels is the one that is kept. Of more than MANY rows
one fold is left out, of at most ENOUGH: that is enough to choose by.

The only row of a class is never left out, and copies of one image in a class are in one fold. Where
the data set has validation rows, they judge, and there are no folds.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cache_specs.items import Items
from train.algorithm.streams import Purpose, stream
from train.data.apart import Apart
from train.data.splits import Split, make_split

FOLDS = 5
MANY, ENOUGH = 1_000, 5_000  # labelled rows above which there is one fold; the most in it


def splits_of(
    items: Items, ok: np.ndarray, labels: str | Sequence[str], seeds: Sequence[int], apart: Apart
) -> list[Split]:
    """A split for each seed, by whose rows all that is to be chosen can be chosen. labels: LABELS,
    for all or of each seed. Raises UsageError or DataQualityError."""
    of_each = [labels] * len(seeds) if isinstance(labels, str) else labels
    found = []
    for seed, asked in zip(seeds, of_each, strict=True):
        split = make_split(items, ok, asked, seed, apart)
        if not len(split.val) and apart.choice != "none":
            split = with_folds(split, items.label, items.sha256, seed)
        found.append(split)
    return _level(found, items.label)


def _level(splits: list[Split], label_N: np.ndarray) -> list[Split]:
    """Where copies of images make that more rows of one seed judge than of another, some of the
    largest classes are not asked."""
    least = min(len(split.val) for split in splits)
    found = []
    for split in splits:
        val = split.val
        while len(val) > least:
            largest = np.bincount(label_N[val]).argmax()
            val = np.delete(val, np.flatnonzero(label_N[val] == largest)[-1])
        folds = [_without(split, np.intersect1d(fold.val, val)) for fold in split.folds]
        found.append(replace(split, val=val, folds=tuple(folds) if least else ()))
    return found


def with_folds(
    split: Split, label_N: np.ndarray, contents: Sequence[str], seed: int, folds: int = FOLDS
) -> Split:
    """The split with val, the rows that are left out once, and folds. contents: (N,), equal for
    copies of one image, '' where unknown. Of classes whose rows are one image's there is none."""
    assert not len(split.val), "who has validation rows needs no folds"
    many = len(split.labelled) > MANY
    folds = max(folds, -(-len(split.labelled) // ENOUGH))
    fold_L = np.full(len(split.labelled), -1)
    y_L, dealt = label_N[split.labelled], 0
    chance_L = stream(seed, Purpose.FOLDS).random(len(label_N))[split.labelled]
    # whatever the classes are called, and however numbered
    _, first_C = np.unique(y_L[np.argsort(chance_L)], return_index=True)
    for label in np.unique(y_L)[np.argsort(first_C)]:
        own = np.flatnonzero(y_L == label)
        own = own[np.argsort(chance_L[own])]
        groups = _groups([contents[row] for row in split.labelled[own]])
        if groups.max() == 0:
            continue
        fold_L[own] = (dealt + groups) % folds
        dealt += groups.max() + 1
    if many:
        fold_L[fold_L > 0] = -1
    made = []
    for fold in np.unique(fold_L[fold_L >= 0]):
        made.append(_without(split, split.labelled[fold_L == fold]))
    return replace(split, val=split.labelled[fold_L >= 0], folds=tuple(made))


def _without(split: Split, out: np.ndarray) -> Split:
    """The same, with these rows taken for unlabelled, which judge."""
    known = np.setdiff1d(split.labelled, out)
    return Split(known, np.union1d(split.unlabelled, out), out, split.test)


def _groups(contents: Sequence[str]) -> np.ndarray:
    """(n,) numbers from 0, the same for the same content; '' is like no other."""
    known: dict[str, int] = {}
    found = []
    for place, content in enumerate(contents):
        found.append(known.setdefault(content or f"#{place}", len(known)))
    return np.array(found)


def seeds_of(every: Sequence[Split]) -> list[Split]:
    """`trainings`, back: the splits of the seeds alone."""
    found, place = [], 0
    while place < len(every):
        found.append(every[place])
        place += 1 + len(every[place].folds)
    return found


def trainings(splits: Sequence[Split]) -> list[Split]:
    """The splits of all trainings: of each seed its own, and then those of its folds."""
    found = []
    for split in splits:
        found += [split, *split.folds]
    return found
