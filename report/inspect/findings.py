"""What is found out about views before training on them, as plain values: numbers that `measures`
computes, and a verdict on each pair of views in words.

The labels of the test images are not looked at. What takes long on large sets is done on evenly
spaced rows, and each number says of how many.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from base.console import NOTE, counted
from cache_specs.items import Items
from extract.equal import equal_rows
from report.inspect import measures
from report.inspect.measures import Dimensions, Near, Overlap
from train.data.reader import Cache
from train.data.scarce import unlearnt
from train.data.seen import told_of_tuned, tuned_of
from train.data.splits import Split, spaced

log = logging.getLogger(f"coview.{__name__}")
ROLES = ("labelled", "unlabelled", "val", "test")
BORDERS = (  # a held-out role, and one on the other side
    ("test", "labelled"),
    ("test", "unlabelled"),
    ("test", "val"),
    ("val", "labelled"),
    ("val", "unlabelled"),
)
KNOWN = ("labelled", "val")  # roles whose labels may be looked at
ASKED, BANK = 10_000, 65_536  # rows of the nearest-neighbour vote at most
SHOWN = 12  # groups of images on the page
LEARNT = "what is asked of the labels of these images, it knows already: its kNN is too good"
# Rules of thumb: CKA and kappa of views too alike; share of images from which little is to be
# learnt; labelled images for a verdict.
ALIKE, SAME_ERRORS, LITTLE, ENOUGH = 0.95, 0.8, 0.02, 30


@dataclass(frozen=True, eq=False)
class Voters:
    """The k nearest of the labelled rows `bank` say the class of a row. asked: those of the bank
    that they are asked about, each by the others; chance: the share of these that is of the
    commonest class."""

    label: np.ndarray
    classes: int
    bank: np.ndarray
    asked: np.ndarray
    k: int
    chance: float

    def right(self, emb_ND: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
        """(n,) bool: is what they say of each row that is asked about its label?"""
        _, row = measures.neighbours(emb_ND, mean_D, self.bank, self.asked, self.k)
        return measures.vote(self.label, row, self.classes) == self.label[self.asked]


def voters_of(items: Items, split: Split) -> Voters:
    label, classes = items.label, len(items.classes)
    bank = spaced(np.union1d(split.labelled, split.val), BANK)
    asked = spaced(bank, ASKED)
    count = np.bincount(label[bank], minlength=classes)
    k = int(np.clip(np.median(count), 1, 5))
    chance = float((label[asked] == count.argmax()).mean())
    return Voters(label, classes, bank, asked, k, chance)


def look(cache: Cache, split: Split) -> dict[str, Any]:
    """All findings."""
    items = cache.items
    role = np.full(len(items), "", object)
    for name in ROLES:
        role[getattr(split, name)] = name
    used = np.flatnonzero(role != "")
    voters = voters_of(items, split)
    views, means, right = [], [], []
    for name, emb_ND in zip(cache.names, cache.emb, strict=True):
        log.log(NOTE, f"{name}: one pass over {len(used):,} rows")
        seen = measures.dimensions(emb_ND, used)
        means.append(seen.mean_D)
        right.append(voters.right(emb_ND, seen.mean_D))
        view = {"view": name, "width": emb_ND.shape[1], **_numbers(seen, items.keys, used)}
        views.append({**view, "knn": float(right[-1].mean())})
        equal = equal_rows(_blocks(emb_ND), cache.ok, items.sha256)
        views[-1]["equal"] = equal.told(items.keys) if equal else ""
    copies = _copies(items, used, role)
    held = np.union1d(split.val, split.test)
    log.log(NOTE, f"near-duplicates of {len(held):,} held-out rows")
    near = measures.near_duplicates(cache.emb, means, held, used, role)
    sample = spaced(used, measures.SAMPLE)
    small = [np.take(emb_ND, sample, axis=0).astype(np.float32) for emb_ND in cache.emb]
    pairs = []
    for a, b in itertools.combinations(range(len(small)), 2):
        alike = measures.cka(small[a], small[b])
        seen = measures.overlap(right[a], right[b])
        worth, words = verdict(views[a], views[b], alike, seen, voters.chance)
        pair = {"views": [views[a]["view"], views[b]["view"]], "cka": alike, "sample": len(sample)}
        pairs.append({**pair, **_counts(seen), "worth": worth, "verdict": words})
    return {
        "dataset": items.name,
        "rows": {name: len(getattr(split, name)) for name in ROLES},
        "unusable": int((~cache.ok).sum()),
        "classes": voters.classes,
        "tuned": tuned_of(cache),
        "unlearnt": asdict(unlearnt(items, split, "validation")),
        "views": views,
        "k": voters.k,
        "asked": len(voters.asked),
        "bank": len(voters.bank),
        "chance": voters.chance,
        "copies": copies,
        "near": _near(near, items, role, len(held)),
        "pairs": pairs,
    }


def told_tuned(found: dict[str, Any]) -> list[str]:
    """What is to be said of views whose backbones have learnt from labels."""
    return [f"{text}; {LEARNT}" for text in told_of_tuned(found["tuned"])]


def _blocks(emb_ND: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(emb_ND), measures.CHUNK):
        yield emb_ND[first : first + measures.CHUNK]


def _numbers(seen: Dimensions, keys: Sequence[str], used: np.ndarray) -> dict[str, Any]:
    """A view's dimensions, and its lengths; odd ones lie far from the median one."""
    norm_n = seen.norm_n
    middle = np.median(norm_n)
    usual = np.median(np.abs(norm_n - middle))
    odd = np.flatnonzero(np.abs(norm_n - middle) > 10 * max(1.4826 * usual, 1e-6 * middle))
    counts, edges = np.histogram(norm_n, 30)
    return {
        "constant": seen.constant.tolist(),
        "weak": seen.weak.tolist(),
        "effective": seen.effective,
        "norm": {
            "median": float(middle),
            "least": float(norm_n.min()),
            "most": float(norm_n.max()),
            "zero": int((norm_n == 0).sum()),
            "odd": [keys[row] for row in used[odd[:SHOWN]]],
            "odd_count": len(odd),
            "counts": counts.tolist(),
            "edges": edges.tolist(),
        },
    }


def _counts(seen: Overlap) -> dict[str, Any]:
    return {
        "both_right": seen.both,
        "only_first": seen.first,
        "only_second": seen.second,
        "both_wrong": seen.none,
        "expected_both_wrong": seen.expected,
        "n": seen.n,
        "kappa": seen.kappa,
        "kappa_error": seen.error,
        "q": seen.q,
    }


def _copies(items: Items, used: np.ndarray, role: np.ndarray) -> dict[str, Any]:
    """Images byte for byte alike: how many held-out ones are also elsewhere, and groups of them
    whose labels differ. A group may differ by a label that is not looked at: it is not counted, and
    where no group that is counted differs, `labels_differ` is None."""
    groups = measures.copies(items.sha256, used)
    crossing: Counter[str] = Counter()
    leaks, torn, unseen = [], [], 0
    for group in groups:
        crossed = _crossed(role[group].tolist())
        crossing.update(crossed)
        if crossed:
            leaks.append(group)
        known = np.isin(role[group].astype(str), KNOWN)
        if len(np.unique(items.label[group][known])) > 1:
            torn.append(group)
        elif (items.label[group][~known] >= 0).any():
            unseen += 1
    return {
        "groups": len(groups),
        "images": sum(map(len, groups)),
        "crossing": dict(crossing),
        "labels_differ": None if unseen and not torn else len(torn),
        "labels_not_counted": unseen,
        "shown": [_named(group[:4], items, role) for group in (leaks + torn)[:SHOWN]],
    }


def _crossed(roles: Sequence[str]) -> dict[str, int]:
    """Of the roles of copies: how many held-out ones there are across each border."""
    found = {}
    for one, other in BORDERS:
        if one in roles and other in roles:
            found[f"{one} in {other}"] = roles.count(one)
    return found


def _near(near: Near, items: Items, role: np.ndarray, held: int) -> dict[str, Any]:
    """The near-duplicates that are no exact copies."""
    shown, pairs = [], 0
    crossing: dict[str, set[int]] = {}
    for one, other, cosines in near.pairs:
        if items.sha256[one] and items.sha256[one] == items.sha256[other]:
            continue
        pairs += 1
        crossing.setdefault(f"{role[one]} in {role[other]}", set()).add(one)
        if len(shown) < SHOWN:
            shown.append([*_named([one, other], items, role), cosines])
    return {
        "asked": near.asked,
        "held_out": held,
        "least": near.least_V,
        "pairs": pairs,
        "crossing": {name: len(rows) for name, rows in crossing.items()},
        "shown": shown,
    }


def _named(rows: Sequence[int], items: Items, role: np.ndarray) -> list[dict[str, Any]]:
    return [{"row": row, "key": items.keys[row], "role": role[row]} for row in rows]


def differ_text(copies: dict[str, Any]) -> str:
    """How many groups of copies have different labels, in words."""
    differ, unseen = copies["labels_differ"], copies["labels_not_counted"]
    if not unseen:
        return f"{differ:,}"
    why = "the labels of test and unlabelled images are not looked at"
    if differ is None:
        return f"not counted ({why})"
    return f"{differ:,}; {counted(unseen, 'more group')} not counted ({why})"


def crossing_text(crossing: dict[str, int]) -> str:
    """What crosses the border between training, validation and test, in words."""
    return ", ".join(f"{count:,} {name}" for name, count in crossing.items()) or "none"


def verdict(
    one: dict[str, Any], two: dict[str, Any], alike: float, seen: Overlap, chance: float
) -> tuple[str, str]:
    """`no`, `doubtful` or `worth trying`, and why, in words. Rules of thumb: only a run says
    whether co-training helps."""
    a, b, n = one["view"], two["view"], seen.n
    if n < ENOUGH:
        return "doubtful", (
            f"{n:,} labelled images are too few to say: one of them is {100 / n:.0f} points. {a} "
            f"is right on {one['knn']:.1%} and {b} on {two['knn']:.1%}."
        )
    spread = 2 * (max(chance * (1 - chance), 0.01) / n) ** 0.5
    poor = [view for view in (one, two) if view["knn"] <= chance + spread]
    if poor:
        return "no", _know_nothing(poor, n, chance)
    if alike > ALIKE or seen.kappa > SAME_ERRORS:
        return "no", (
            f"{a} and {b} are too alike: CKA {alike:.2f}, kappa of their errors {seen.kappa:.2f} "
            "(1 would be the very same errors). They have little to tell each other; late fusion "
            "would gain little too."
        )
    if min(seen.first, seen.second) < max(LITTLE * n, 5):
        weak, strong, few = (a, b, seen.first) if seen.first < seen.second else (b, a, seen.second)
        return "doubtful", (
            f"{weak} is right where {strong} is wrong on {few:,} of {n:,} labelled images only, "
            f"so there is little that it can teach {strong}; the other way there is more to learn."
        )
    return "worth trying", _complement(a, b, alike, seen)


def _know_nothing(poor: Sequence[dict[str, Any]], n: int, chance: float) -> str:
    names = " and ".join(view["view"] for view in poor)
    shares = " and ".join(format(view["knn"], ".1%") for view in poor)
    know, they = ("know", "they") if len(poor) > 1 else ("knows", "it")
    return (
        f"{names} {know} next to nothing of these classes: the neighbours are right on {shares} of "
        f"{n:,} labelled images, the commonest class alone would be on {chance:.1%}. What {they} "
        "would teach is noise."
    )


def _complement(a: str, b: str, alike: float, seen: Overlap) -> str:
    by_b = seen.second / max(seen.second + seen.none, 1)
    by_a = seen.first / max(seen.first + seen.none, 1)
    more = seen.none > seen.expected + 2 * seen.expected**0.5
    often = "more often than" if more else "about as often as"
    return (
        f"of 100 images that {a} gets wrong {b} gets {100 * by_b:.0f} right, and of 100 that {b} "
        f"gets wrong {a} gets {100 * by_a:.0f}; both are wrong {often} independent errors would "
        f"({seen.none:,} times, {seen.expected:.0f} expected). Kappa of the errors "
        f"{seen.kappa:.2f} ± {seen.error:.2f}, CKA {alike:.2f}."
    )
