"""What the names of the classes say of an image: the expert of `mct-graph` and `supervised-graph`
that knows no label.

    names = Names(emb_V, text_V, classes, label, splits, device)    once a run
    names(rows_EB)                                                  (E, B, C) log-probabilities
    names.usual(experiment)                                         its weight where nobody judges

Zero-shot prefers some classes to others, far beyond what there is of them. So each class has a
constant that is added to its logits, with which the training images have, on average, the shares of
classes that the labels have: a scaling of Sinkhorn (1967), here of columns alone. A new image needs
nothing but these constants.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from base.errors import DataQualityError
from cache_specs.text import ViewText
from train.algorithm.evaluate import fit_pool
from train.algorithm.propagation import LEAST
from train.data.reader import gather
from train.data.splits import Split, spaced

NAMES = "names."  # begins the names of its tensors
ROWS = 8_192  # training images, evenly spaced, that decide the constants
ROUNDS, CLOSE = 200, 1e-4  # of the scaling: the most, and how near the shares have to be
CHUNK = 4_096


class Tower(NamedTuple):
    """The text of a view, and which of the views that is."""

    view: int
    text: ViewText


def towers_of(text_V: Sequence[ViewText | None]) -> list[Tower]:
    """Of the views whose names were encoded."""
    return [Tower(view, text) for view, text in enumerate(text_V) if text is not None]


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
        for first in range(0, len(asked), CHUNK):
            here = asked[first : first + CHUNK]
            self.log_p_NC[here] = torch.from_numpy(told(emb_V, towers, classes, here))
        sample = spaced(rows, ROWS)
        p_nC = self.log_p_NC[sample].double().exp().numpy()
        bias_E, scale_C = [], np.ones(len(classes))
        for split in splits:
            scale_C = balance(p_nC, shares(label_N[split.labelled], len(classes)), scale_C)
            bias_E.append(np.log(scale_C))
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


def told(
    emb_V: Sequence[np.ndarray], towers: Sequence[Tower], classes: Sequence[str], rows: np.ndarray
) -> np.ndarray:
    """(n, C) float32 log-probabilities of rows: of the mean of the towers' probabilities, each as
    its authors compute it."""
    p_nC = np.zeros((len(rows), len(classes)))
    for view, text in towers:
        emb_nD = gather(emb_V[view], rows)
        if not np.isfinite(emb_nD).all():
            raise DataQualityError(
                f"view {view + 1} of {len(emb_V)} has embeddings that are not finite, in rows that "
                "the class names are compared with; embed it anew, or leave it out of VIEWS="
            )
        p_nC += softmax(text.logits(emb_nD, classes)) / len(towers)
    return np.log(np.maximum(p_nC, LEAST)).astype(np.float32)


def softmax(logits_nC: np.ndarray) -> np.ndarray:
    """float64."""
    logits_nC = logits_nC.astype(np.float64)
    p_nC = np.exp(logits_nC - logits_nC.max(1, keepdims=True))
    return p_nC / p_nC.sum(1, keepdims=True)


def shares(y_L: np.ndarray, classes: int) -> np.ndarray:
    """(C,) of sum 1: what the labels say of how many images each class has, one more of each."""
    count_C = np.bincount(y_L, minlength=classes) + 1.0
    return count_C / count_C.sum()


def balance(p_nC: np.ndarray, share_C: np.ndarray, start_C: np.ndarray) -> np.ndarray:
    """(C,) factors u, of mean logarithm 0, so that the mean over the rows of u p / sum(u p) is
    share_C."""
    scale_C = start_C
    for _ in range(ROUNDS):
        mean_C = scale_C * (p_nC.T @ (1 / (p_nC @ scale_C))) / len(p_nC)
        if (np.abs(mean_C - share_C) <= CLOSE * share_C).all():
            break
        scale_C = scale_C * share_C / mean_C
    return scale_C / np.exp(np.log(scale_C).mean())


def balanced(log_p_EnC: Tensor, bias_EC: Tensor) -> Tensor:
    """(E, n, C) log-probabilities with each experiment's constants."""
    return log_softmax(log_p_EnC + bias_EC.to(log_p_EnC)[:, None], -1)
