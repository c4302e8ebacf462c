"""What in a data set would make a score too good, or a class two: the same image twice, names of
classes that are nearly the same."""

import itertools
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from base.console import counted
from cache_specs.items import Items
from cache_specs.words import means_no_label, split_named

log = logging.getLogger(f"coview.{__name__}")
LEADING = re.compile(r"(?<![\d.,])0+(?=\d)")  # zeros, and none of 0.05 and 1.05
SHOWN = 5  # names
SHORTEST = 4  # letters of a name that may be a slip of another
RARE = 5  # times as many images has the class that a rare one is a slip of


def warn_of_classes(items: Items) -> None:
    """Say which classes are called nearly the same: Circle and circle, 1 and 01 are two."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in items.classes:
        alike[_plain(name)].append(name)
    several = [names for names in alike.values() if len(names) > 1]
    for names in several[:SHOWN]:
        told = []
        for name in names:
            count = int((items.label == items.classes.index(name)).sum())
            told.append(f"{name!r} ({counted(count, 'image')})")
        log.warning(
            f"{' and '.join(told)} are classes of their own, though their names differ in case, "
            "blanks, leading zeros or the coding of letters alone; if they are one, mend the "
            "labels and type the same command again"
        )
    if len(several) > SHOWN:
        log.warning(f"… and so are the classes of {len(several) - SHOWN:,} more such names")
    _warn_of_slips(items)


def _plain(name: str) -> str:
    """Without case, blanks, leading zeros and the coding of letters."""
    return LEADING.sub("", "".join(unicodedata.normalize("NFKC", name).split()).casefold())


def _warn_of_slips(items: Items) -> None:
    """Say which rare classes are one letter away from one that is much more common: thre, three."""
    counts = np.bincount(items.label[items.label >= 0], minlength=len(items.classes)).tolist()
    slips = []
    for one, other in _one_letter_apart(items.classes):
        rare, common = sorted((one, other), key=counts.__getitem__)
        if 0 < counts[rare] * RARE <= counts[common]:
            slips.append((rare, common))
    for rare, common in slips[:SHOWN]:
        log.warning(
            f"{items.classes[rare]!r} ({counted(counts[rare], 'image')}) is one letter away from "
            f"{items.classes[common]!r} ({counted(counts[common], 'image')}); if it is a slip, "
            "mend the labels and type the same command again"
        )
    if len(slips) > SHOWN:
        log.warning(f"… and so are {len(slips) - SHOWN:,} more such pairs")


def _one_letter_apart(names: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of places of names of which a letter is missing, added, another or at another place:
    those that are the same once a letter is taken out of one or both. Numbers are not slips, nor
    are names of three letters."""
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        plain = _plain(name)
        if len(plain) < SHORTEST:
            continue
        digits = "".join(filter(str.isdigit, plain))
        for rest in {plain, *(plain[:at] + plain[at + 1 :] for at in range(len(plain)))}:
            places[digits, rest].append(place)
    found = set()
    for alike in places.values():
        found.update(itertools.combinations(alike, 2))
    return sorted(pair for pair in found if _plain(names[pair[0]]) != _plain(names[pair[1]]))


def warn_of_words(items: Items) -> None:
    """Say which words of --as-class no image has as its label, and why not those of a split."""
    for word in items.as_class:
        if any(means_no_label(name) and not means_no_label(name, [word]) for name in items.classes):
            continue
        why = "no image has this label"
        if split_named(word) == "unlabelled" and "unlabelled" in items.split:
            why = (
                "the folder of that name is a split, whose images have no label, and no class. To "
                "make it one, give the folder another name, such as unknown"
            )
        log.warning(f"{items.name!r}: --as-class {word} does nothing: {why}")


def warn_of_copies(items: Items) -> None:
    """Say how many images are byte for byte in two splits, or in two classes."""
    alike: dict[str, list[int]] = defaultdict(list)
    for row, sha in enumerate(items.sha256):
        if sha:
            alike[sha].append(row)
    splits, classes = [], []
    for rows in alike.values():
        if len(rows) > 1:
            splits.append(_apart({row: items.split[row] for row in rows if items.split[row]}))
            labels = {row: int(items.label[row]) for row in rows if items.label[row] >= 0}
            classes.append(_apart(labels))
    then = "scores of the one are too good, being trained on the other; keep one of them"
    _say_copies(items, splits, "split", then)
    _say_copies(items, classes, "class", "at least one label is wrong; keep one of them")


def _apart(place_of: Mapping[int, str | int]) -> list[int]:
    """Rows with copies elsewhere, two of different places first; none where all have one place."""
    rows = list(place_of)
    others = [row for row in rows if place_of[row] != place_of[rows[0]]]
    if not others:
        return []
    return [rows[0], others[0], *[row for row in rows[1:] if row != others[0]]]


def _say_copies(items: Items, groups: list[list[int]], what: str, then: str) -> None:
    groups = [group for group in groups if group]
    if not groups:
        return
    one, other = (items.keys[row] for row in groups[0][:2])
    log.warning(
        f"{sum(map(len, groups)):,} of {len(items):,} images of {items.name!r} are byte for byte "
        f"an image of another {what} (first: {one!r} and {other!r}): {then}"
    )
