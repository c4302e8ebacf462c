"""What the names of the classes say of an image: the expert of `mct-graph` and `supervised-graph`
that knows no label.

    names = Names(emb_V, towers, classes, label, splits, device)    once a run
    names(rows_EB)                                                  (E, B, C) log-probabilities
    names.usual(experiment)                                         its weight where nobody judges

Zero-shot prefers some classes to others, far beyond what there is of them. So each class has a
constant that is added to its logits, with which the training images have, on average, the shares of
classes that the labels have: a scaling of Sinkhorn (1967), here of columns alone. A new image needs
nothing but these constants.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from train.algorithm.evaluate import fit_pool
from train.data.splits import Split, spaced
from train.data.towers import ROWS, Tower, constants, shares, told

NAMES = "names."  # begins the names of its tensors


class Names:
    """What the names say of every row.

    emb_V: (N, D_v) each, of all views; towers: of one or more; classes: their names; splits: of the
    E experiments, whose training rows together are the same. Raises DataQualityError where an
    embedding is not finite.
    """

    def __init__(
        self,
        emb_V: Sequence[np.ndarray],
        towers: Sequence[Tower],
        classes: Sequence[str],
        label_N: np.ndarray,
        splits: Sequence[Split],
        device: torch.device,
    ) -> None:
        self.splits, self.label_N, self.device = splits, label_N, device
        self.towers, self.classes = towers, classes
        rows = np.union1d(splits[0].labelled, splits[0].unlabelled)
        asked = np.unique(np.concatenate([rows, splits[0].val, splits[0].test]))
        self.log_p_NC = torch.zeros(len(label_N), len(classes))
        self.log_p_NC[asked] = torch.from_numpy(told(emb_V, towers, classes, asked))
        own_nC, bias_E = self.log_p_NC[spaced(rows, ROWS)].numpy(), []
        for split in splits:
            share_C = shares(label_N[split.labelled], len(classes))
            bias_E.append(constants(own_nC, share_C))
        self.bias_EC = torch.from_numpy(np.stack(bias_E)).float()

    def __call__(self, rows_EB: np.ndarray) -> Tensor:
        """(E, B) row numbers, or (B,) for all experiments -> (E, B, C) float32."""
        rows_EB = np.broadcast_to(rows_EB, (len(self.splits), rows_EB.shape[-1]))
        log_p_EBC = self.log_p_NC[torch.from_numpy(rows_EB.copy())]
        return balanced(log_p_EBC, self.bias_EC).to(self.device)

    def tensors(self, experiments: Sequence[int]) -> dict[str, Tensor]:
        """All that says it of other rows, as a run keeps it: names.bias (E, C), of these
        experiments, and names.VIEW.KEY of each tower, whose classes are in the run's order."""
        found = {NAMES + "bias": self.bias_EC[list(experiments)]}
        for view, text in self.towers:
            for key, value in text.ordered(self.classes).items():
                found[f"{NAMES}{view}.{key}"] = torch.from_numpy(value)
        return found

    def usual(self, experiment: int) -> float:
        """The weight at which they are likeliest of this experiment's labels by themselves, divided
        by one more than there are labels of a class: as if they were one more label of each."""
        rows = self.splits[experiment].labelled
        y_1n = torch.from_numpy(self.label_N[rows]).long()[None]
        one_11 = torch.ones(1, 1, dtype=torch.float64)
        said_1nC = self(rows)[experiment : experiment + 1].cpu()
        own_11 = fit_pool(said_1nC[None], y_1n, one_11, 0 * one_11)
        return float(own_11) / (1 + len(rows) / said_1nC.shape[-1])


def balanced(log_p_EnC: Tensor, bias_EC: Tensor) -> Tensor:
    """(E, n, C) log-probabilities with each experiment's constants."""
    return log_softmax(log_p_EnC + bias_EC.to(log_p_EnC)[:, None], -1)
