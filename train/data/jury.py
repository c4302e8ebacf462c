"""Who judges what has to be chosen in a training, and which trainings follow: validation rows, or,
where a split has folds (train/data/folds.py), labelled ones.

    jury = jury_of(splits, label, device)
    jury.opinions(said)      of what all trainings say, what counts
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.data.splits import Split


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
