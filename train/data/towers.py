"""What text towers say of cached rows, by numpy alone: zero-shot, and the constants of classes.

told(emb_V, towers_of(text_V), classes, rows)    (n, C) log-probabilities
constants(log_p_nC, share_C)                     (C,) what is added to them
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from base.errors import DataQualityError
from cache_specs.text import ViewText
from train.data.reader import gather

LEAST = 1e-6  # the probability of a class that no name speaks for
ROUNDS, CLOSE = 200, 1e-4  # of the scaling: the most, and how near the shares have to be
ROWS, CHUNK = 8_192, 4_096  # that decide the constants, evenly spaced; that are computed at a time


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
    found_nC = np.empty((len(rows), len(classes)), np.float32)
    for first in range(0, len(rows), CHUNK):
        here = slice(first, first + CHUNK)
        found_nC[here] = _told(emb_V, towers, classes, rows[here])
    return found_nC


def _told(
    emb_V: Sequence[np.ndarray], towers: Sequence[Tower], classes: Sequence[str], rows: np.ndarray
) -> np.ndarray:
    p_nC = np.zeros((len(rows), len(classes)))
    for view, text in towers:
        emb_nD = gather(emb_V[view], rows)
        if not np.isfinite(emb_nD).all():
            raise DataQualityError(
                f"view {view + 1} of {len(emb_V)} has embeddings that are not finite, in rows that "
                "the class names are compared with; embed it anew, or leave it out of VIEWS="
            )
        p_nC += softmax(text.logits(emb_nD, classes)) / len(towers)
    return np.log(np.maximum(p_nC, LEAST))


def constants(log_p_nC: np.ndarray, share_C: np.ndarray) -> np.ndarray:
    """(C,) float64 that give rows, of which at most ROWS are looked at, the shares of classes."""
    every = slice(None, None, -(-len(log_p_nC) // ROWS))
    return np.log(balance(np.exp(log_p_nC[every].astype(np.float64)), share_C))


def surest(log_p_nC: np.ndarray, bias_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the first choice with the constants, (n,) int64, and its probability."""
    first_n = np.empty(len(log_p_nC), np.int64)
    sure_n = np.empty(len(log_p_nC))
    for first in range(0, len(log_p_nC), CHUNK):
        here = slice(first, first + CHUNK)
        p_nC = softmax(log_p_nC[here] + bias_C)
        first_n[here], sure_n[here] = p_nC.argmax(1), p_nC.max(1)
    return first_n, sure_n


def softmax(logits_nC: np.ndarray) -> np.ndarray:
    """float64."""
    logits_nC = logits_nC.astype(np.float64)
    p_nC = np.exp(logits_nC - logits_nC.max(1, keepdims=True))
    return p_nC / p_nC.sum(1, keepdims=True)


def shares(y_L: np.ndarray, classes: int) -> np.ndarray:
    """(C,) of sum 1: what the labels say of how many images each class has, one more of each."""
    count_C = np.bincount(y_L, minlength=classes) + 1.0
    return count_C / count_C.sum()


def balance(p_nC: np.ndarray, share_C: np.ndarray) -> np.ndarray:
    """(C,) factors u, of mean logarithm 0, so that the mean over the rows of u p / sum(u p) is
    share_C."""
    scale_C = np.ones(len(share_C))
    for _ in range(ROUNDS):
        mean_C = scale_C * (p_nC.T @ (1 / (p_nC @ scale_C))) / len(p_nC)
        if (np.abs(mean_C - share_C) <= CLOSE * share_C).all():
            break
        scale_C = scale_C * share_C / mean_C
    return scale_C / np.exp(np.log(scale_C).mean())
