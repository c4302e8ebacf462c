"""What in a data set would make a score too good, or a class two: the same image twice, names of
classes that are nearly the same."""

import logging
import unicodedata
from collections import defaultdict

from cache_specs.items import Items
from cache_specs.words import means_no_label, split_named

log = logging.getLogger(f"coview.{__name__}")


def warn_of_classes(items: Items) -> None:
    """Say which classes are called nearly the same: Circle and circle are two."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in items.classes:
        plain = "".join(unicodedata.normalize("NFKC", name).split()).casefold()
        alike[plain].append(name)
    for names in alike.values():
        if len(names) == 1:
            continue
        told = []
        for name in names:
            count = int((items.label == items.classes.index(name)).sum())
            told.append(f"{name!r} ({count:,} images)")
        log.warning(
            f"{' and '.join(told)} are classes of their own, though their names differ in case, "
            "blanks or the coding of letters alone; if they are one, mend the labels and type the "
            "same command again"
        )


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
    first: dict[str, int] = {}
    splits, classes = [], []
    for row, sha in enumerate(items.sha256):
        one = first.setdefault(sha, row)
        if not sha or one == row:
            continue
        if "" not in (items.split[row], items.split[one]) and items.split[row] != items.split[one]:
            splits.append((one, row))
        if min(items.label[row], items.label[one]) >= 0 and items.label[row] != items.label[one]:
            classes.append((one, row))
    then = "scores of the one are too good, being trained on the other; keep one of them"
    _say_copies(items, splits, "split", then)
    _say_copies(items, classes, "class", "at least one label is wrong; keep one of them")


def _say_copies(items: Items, pairs: list[tuple[int, int]], what: str, then: str) -> None:
    if not pairs:
        return
    one, other = (items.keys[row] for row in pairs[0])
    log.warning(
        f"{len(pairs):,} of {len(items):,} images of {items.name!r} are byte for byte an image of "
        f"another {what} (first: {one!r} and {other!r}): {then}"
    )
