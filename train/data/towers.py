"""What text towers say of cached rows, by numpy alone: zero-shot, and the constants of classes.

told(emb_V, towers_of(text_V), classes, rows)    (n, C) log-probabilities
balance(p_nC, share_C, start_C)                  (C,) factors; their logarithms are the constants
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from base.errors import DataQualityError
from cache_specs.text import ViewText
from train.data.reader import gather

LEAST = 1e-6  # the probability of a class that no name speaks for
ROUNDS, CLOSE = 200, 1e-4  # of the scaling: the most, and how near the shares have to be


class Tower(NamedTuple):
    """The text of a view, and which of the views that is."""

    view: int
    text: ViewText


def towers_of(text_V: Sequence[ViewText | None]) -> list[Tower]:
    """Of the views whose names were encoded."""
    return [Tower(view, text) for view, text in enumerate(text_V) if text is not None]


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
