"""Classes that are short of labels: those of which no training image has one, which cannot be
learnt, and those that have fewer than LABELS asks for."""

from dataclasses import dataclass

import numpy as np

from cache_specs.items import Items
from train.data.splits import NUMBER, Split

SHOWN = 10  # classes, by name


@dataclass(frozen=True)
class Unlearnt:
    """The names of the classes of which no training image has a label; top1, balanced: the best
    scores on the `judges`, test or validation images, that are still possible, as shares."""

    classes: list[str]
    top1: float
    balanced: float
    judges: str = "test"

    def text(self, of: int) -> str:
        """For people; '' where there is no such class. of: how many classes there are."""
        if not self.classes:
            return ""
        them = "it" if len(self.classes) == 1 else "them"
        head = (
            f"of {_classes(of)} {len(self.classes):,} {have(len(self.classes))} no labelled "
            f"training image: {listed(self.classes)}"
        )
        if self.top1 == 1:
            return (
                f"{head}. No model can learn {them}; no {self.judges} image is of {them}, so no "
                "score shows it"
            )
        return (
            f"{head}. No model can learn {them}: on the {self.judges} images no top-1 above "
            f"{100 * self.top1:.1f} % and no balanced accuracy above {100 * self.balanced:.1f} % "
            "is possible"
        )


def unlearnt(items: Items, split: Split, judges: str = "test") -> Unlearnt:
    """judges: test or validation; validation where there is no test image."""
    judges = judges if len(split.test) else "validation"
    rows = split.test if judges == "test" else split.val
    classes, tested = np.arange(len(items.classes)), items.label[rows]
    learnt = np.unique(items.label[split.labelled])
    names = [items.classes[number] for number in np.setdiff1d(classes, learnt).tolist()]
    if not len(tested):
        return Unlearnt(names, 1.0, 1.0, judges)
    top1, balanced = np.isin(tested, learnt).mean(), np.isin(np.unique(tested), learnt).mean()
    return Unlearnt(names, float(top1), float(balanced), judges)


def rarer(labels: str, items: Items, split: Split) -> dict[str, int]:
    """How many labelled images there are of each class that has some, but fewer than LABELS, where
    that is a number; the rarest first."""
    if not labels.isdigit():
        return {}
    counts = np.bincount(items.label[split.labelled], minlength=len(items.classes))
    short = np.flatnonzero((counts > 0) & (counts < int(labels)))
    return {items.classes[number]: int(counts[number]) for number in short[counts[short].argsort()]}


def forced(labels: str, items: Items, split: Split) -> dict[str, int]:
    """How many training images there are with a label, seen or hidden, of each class of which
    LABELS, where it is a share, asks for less than half an image: one is labelled all the same. The
    rarest first."""
    if not (labels.endswith("%") and NUMBER.fullmatch(labels)):
        return {}
    rows = np.union1d(split.labelled, split.unlabelled)
    counts = np.bincount(items.label[rows][items.label[rows] >= 0], minlength=len(items.classes))
    whole = np.round(counts * float(labels[:-1]) / 100)
    short = np.flatnonzero((counts > 0) & (whole < 1))
    return {items.classes[number]: int(counts[number]) for number in short[counts[short].argsort()]}


def forced_text(labels: str, items: Items, split: Split) -> str:
    """The same for people, and what share is labelled in fact; '' where there is no such class."""
    few = forced(labels, items, split)
    if not few:
        return ""
    some = ", ".join(f"{name!r} (1 of {count:,})" for name, count in [*few.items()][:SHOWN])
    more = " …" if len(few) > SHOWN else ""
    return (
        f"LABELS={labels}: of {_classes(len(items.classes))} {len(few):,} {have(len(few))} so few "
        "training images that one of them is more than that share, and one is taken: "
        f"{some}{more}. In all, {share_text(items, split)} are labelled"
    )


def share_text(items: Items, split: Split) -> str:
    """What share of the training images that have a label the training is told of: 16.7 %."""
    known = len(split.labelled) + int((items.label[split.unlabelled] >= 0).sum())
    return f"{100 * len(split.labelled) / known:.3g} %"


def rarer_text(labels: str, items: Items, split: Split) -> str:
    """What LABELS asks for and some classes do not have, for people; '' where all have it."""
    fewer = rarer(labels, items, split)
    if not fewer:
        return forced_text(labels, items, split)
    some = ", ".join(f"{name!r} ({count:,})" for name, count in [*fewer.items()][:SHOWN])
    more = " …" if len(fewer) > SHOWN else ""
    return (
        f"LABELS={labels}: of {_classes(len(items.classes))} {len(fewer):,} {have(len(fewer))} "
        f"fewer labelled training images, of which all are taken: {some}{more}"
    )


def listed(names: list[str]) -> str:
    more = " …" if len(names) > SHOWN else ""
    return f"{', '.join(map(repr, names[:SHOWN]))}{more}"


def have(count: int) -> str:
    return "has" if count == 1 else "have"


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count:,} classes"
