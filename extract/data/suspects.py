"""What in a data set would make a score too good, or a class two: the same image twice, names of classes that are nearly the same."""

import unicodedata

from cache_specs.items import Items


def warn_of_classes(items: Items) -> None:
    """Print which classes are called nearly the same: Circle and circle are two."""
    alike: dict[str, list[str]] = {}
    for name in items.classes:
        alike.setdefault(
            "".join(unicodedata.normalize("NFKC", name).split()).casefold(), []
        ).append(name)
    for names in alike.values():
        if len(names) > 1:
            counts = [int((items.label == items.classes.index(name)).sum()) for name in names]
            told = " and ".join(
                f"{name!r} ({count:,} images)" for name, count in zip(names, counts, strict=True)
            )
            print(
                f"warning: {told} are classes of their own, though their names differ in case, blanks or the coding of letters alone; if they are one, "
                "mend the labels and type the same command again",
                flush=True,
            )


def warn_of_copies(items: Items) -> None:
    """Print how many images are byte for byte in two splits, or in two classes."""
    first: dict[str, int] = {}
    splits, classes = [], []
    for row, sha in enumerate(items.sha256):
        if not sha or (one := first.setdefault(sha, row)) == row:
            continue
        if "" not in (items.split[row], items.split[one]) and items.split[row] != items.split[one]:
            splits.append((one, row))
        if min(items.label[row], items.label[one]) >= 0 and items.label[row] != items.label[one]:
            classes.append((one, row))
    for pairs, what, then in (
        (
            splits,
            "split",
            "scores of the one are too good, being trained on the other; keep one of them",
        ),
        (classes, "class", "at least one label is wrong; keep one of them"),
    ):
        if pairs:
            one, other = (items.keys[row] for row in pairs[0])
            print(
                f"warning: {len(pairs):,} of {len(items):,} images of {items.name!r} are byte for byte an image of another {what} "
                f"(first: {one!r} and {other!r}): {then}",
                flush=True,
            )
