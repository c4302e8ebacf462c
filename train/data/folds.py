"""Every labelled row trains, and nearly every one judges: cross-fitting (Chernozhukov et al. 2018).

    splits = splits_of(items, ok, "4", [0, 1], apart)    split.folds: the same without some labels
    jury = jury_of(splits, label)                        who is asked about which rows

The labelled rows are dealt out to FOLDS folds. For each there is one more training, which knows
the labels of all rows but the fold's, and takes these for unlabelled; what it says of them is their
out-of-fold opinion. All that has to be chosen is chosen by the opinions of a seed, for all of its
trainings alike; the one that knows all labels is the one that is kept. Of more than MANY rows
one fold is left out, of at most ENOUGH: that is enough to choose by.

The only row of a class is never left out, and copies of one image are in one fold. Where the data
set has validation rows, they judge, and there are no folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache_specs.items import Items
from train.algorithm.streams import Purpose, place_of, stream
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
            split = with_folds(split, items.label, items.classes, items.sha256, seed)
        found.append(split)
    return _level(found)


def _level(splits: list[Split]) -> list[Split]:
    """Where copies of images make that more rows of one seed judge than of another, the last of
    these are not asked."""
    least = min(len(split.val) for split in splits)
    found = []
    for split in splits:
        val = split.val[:least]
        folds = [_without(split, np.intersect1d(fold.val, val)) for fold in split.folds]
        found.append(replace(split, val=val, folds=tuple(folds)))
    return found


def with_folds(
    split: Split,
    label_N: np.ndarray,
    classes: Sequence[str],
    contents: Sequence[str],
    seed: int,
    folds: int = FOLDS,
) -> Split:
    """The split with val, the rows that are left out once, and folds. contents: (N,), equal for
    copies of one image, '' where unknown. Of classes whose rows are one image's there is none."""
    assert not len(split.val), "who has validation rows needs no folds"
    many = len(split.labelled) > MANY
    folds = max(folds, -(-len(split.labelled) // ENOUGH))
    fold_L = np.full(len(split.labelled), -1)
    y_L, dealt = label_N[split.labelled], 0
    for label in np.unique(y_L):
        own = np.flatnonzero(y_L == label)
        chance = stream(seed, Purpose.FOLDS, place=place_of(classes[label]))
        groups = _groups([contents[row] for row in split.labelled[own]])
        if groups.max() == 0:
            continue
        turn = chance.permutation(groups.max() + 1)
        fold_L[own] = (dealt + turn[groups]) % folds
        dealt += len(turn)
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


@dataclass(frozen=True, eq=False)
class Jury:
    """Who judges: S seeds choose by n opinions each, of E trainings.

    rows: (n,), the same for all, or (E, n), asked of each training. judge_Sn: the training whose
    opinion of a row counts; None: each judges for itself, S = E. y_Sn: the true classes. own_S: the
    training that is kept of each seed. seed_E: whose choices a training follows.
    """

    rows: np.ndarray
    judge_Sn: Tensor | None
    y_Sn: Tensor
    own_S: np.ndarray
    seed_E: Tensor

    def opinions(self, said_EnC: Tensor) -> Tensor:
        """(S, n, C): those that count."""
        if self.judge_Sn is None:
            return said_EnC
        place_n = torch.arange(said_EnC.shape[1], device=said_EnC.device)
        return said_EnC[self.judge_Sn, place_n]

    def of_each(self, chosen: Tensor) -> Tensor:
        """What the seeds have chosen, (…, S), of each training: (…, E)."""
        return chosen if self.judge_Sn is None else chosen[..., self.seed_E]

    @property
    def silent(self) -> bool:
        """Is there no opinion to choose by?"""
        return self.y_Sn.shape[1] == 0


def trainings(splits: Sequence[Split]) -> list[Split]:
    """The splits of all trainings: of each seed its own, and then those of its folds."""
    found = []
    for split in splits:
        found += [split, *split.folds]
    return found


def jury_of(splits: Sequence[Split], label_N: np.ndarray, device: torch.device) -> Jury:
    """splits: of the seeds, all with the same validation rows, or all with folds."""
    val_Sn = np.stack([split.val for split in splits])
    y_Sn = torch.from_numpy(label_N[val_Sn]).long().to(device)
    if not any(split.folds for split in splits):
        every = torch.arange(len(splits), device=device)
        assert (val_Sn == val_Sn[0]).all()
        return Jury(val_Sn[0], None, y_Sn, np.arange(len(splits)), every)
    own_S, seed_E, judge_Sn, rows_En = [], [], [], []
    for seed, split in enumerate(splits):
        own_S.append(len(seed_E))
        judge_n = np.empty(len(split.val), np.int64)
        for number, fold in enumerate(split.folds, len(seed_E) + 1):
            judge_n[np.searchsorted(split.val, fold.val)] = number
        judge_Sn.append(judge_n)
        for _ in range(1 + len(split.folds)):
            seed_E.append(seed)
            rows_En.append(split.val)
    judges = torch.from_numpy(np.stack(judge_Sn)).to(device)
    seeds = torch.tensor(seed_E, device=device)
    return Jury(np.stack(rows_En), judges, y_Sn, np.array(own_S), seeds)
