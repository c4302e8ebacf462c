"""Which images are worth a look: pure functions of probabilities. None of them but `wrong_labels`
and `errors` is told any label.

Shapes: n images, V views, C classes. Each returns row numbers into the n, best first.
"""

import importlib.util
import warnings
from collections.abc import Sequence

import numpy as np


def disagreeing(views_VnC: np.ndarray, most: int, per_pair: int = 4) -> np.ndarray:
    """Images of which two views are sure of different classes, by how sure the less sure of the two
    is; at most per_pair of each pair of classes."""
    if len(views_VnC) < 2:
        return np.empty(0, np.int64)
    pick_Vn, sure_Vn = views_VnC.argmax(-1), views_VnC.max(-1)
    best = sure_Vn.argmax(0)
    first = np.take_along_axis(pick_Vn, best[None], 0)[0]
    against_Vn = np.where(pick_Vn != first, sure_Vn, 0)
    second = np.take_along_axis(pick_Vn, against_Vn.argmax(0)[None], 0)[0]
    pairs = _pairs(np.minimum(first, second), np.maximum(first, second))
    return _spread_out(against_Vn.max(0), pairs, most, per_pair)


def errors(joint_nC: np.ndarray, label_n: np.ndarray, most: int, per_pair: int = 6) -> np.ndarray:
    """Images that are classified wrongly, the most confident first; at most per_pair of each pair
    (label, prediction)."""
    pred_n = joint_nC.argmax(-1)
    score = np.where(pred_n != label_n, joint_nC.max(-1), 0)
    return _spread_out(score, _pairs(label_n, pred_n), most, per_pair)


def _pairs(one_n: np.ndarray, other_n: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(one_n.tolist(), other_n.tolist(), strict=True))


def _spread_out(
    score_n: np.ndarray, kinds: Sequence[tuple[int, int]], most: int, per_kind: int
) -> np.ndarray:
    """The rows of the highest positive scores, at most per_kind of each kind."""
    taken: dict[tuple[int, int], int] = {}
    chosen = []
    for row in np.argsort(-score_n, kind="stable"):
        if score_n[row] <= 0 or len(chosen) == most:
            break
        if taken.get(kinds[row], 0) < per_kind:
            taken[kinds[row]] = taken.get(kinds[row], 0) + 1
            chosen.append(row)
    return np.array(chosen, np.int64)


def wrong_labels(joint_nC: np.ndarray, label_n: np.ndarray, most: int) -> tuple[np.ndarray, str]:
    """Images whose given label is probably wrong, by probabilities of models that did not learn it;
    and by which rule. With cleanlab installed, by its rule."""
    if not len(label_n):
        return np.empty(0, np.int64), ""
    if importlib.util.find_spec("cleanlab"):
        return _cleanlab(joint_nC, label_n)[:most], "cleanlab"
    return _confident_learning(joint_nC, label_n)[:most], "confident learning"


def _cleanlab(joint_nC: np.ndarray, label_n: np.ndarray) -> np.ndarray:
    # pyrefly: ignore[missing-import]  it need not be installed
    from cleanlab.filter import find_label_issues  # noqa: PLC0415  an extra

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = find_label_issues(
            label_n, joint_nC, return_indices_ranked_by="normalized_margin", n_jobs=1
        )
    return np.asarray(found, np.int64)


def _confident_learning(joint_nC: np.ndarray, label_n: np.ndarray) -> np.ndarray:
    """Northcutt et al. 2021: an image counts as one of class c if p_c is at least the mean p_c of
    the images labelled c; it is suspected if the most probable class that it counts as is not its
    label. The lowest p_label - max p_other first."""
    every, classes = np.arange(len(label_n)), joint_nC.shape[1]
    own_n = joint_nC[every, label_n]
    count_C = np.bincount(label_n, minlength=classes)
    mean_C = np.bincount(label_n, own_n, classes) / np.maximum(count_C, 1)
    threshold_C = np.where(count_C, mean_C, np.inf)
    counts_nC = np.where(joint_nC >= threshold_C, joint_nC, -1)
    suspected_n = (counts_nC.max(1) >= 0) & (counts_nC.argmax(1) != label_n)
    others_nC = joint_nC.copy()
    others_nC[every, label_n] = -1
    order = np.argsort(own_n - others_nC.max(1), kind="stable")
    return order[suspected_n[order]]
