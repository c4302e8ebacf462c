"""The baselines that scikit-learn has, on cached embeddings, for one experiment: logistic
regression, nearest neighbours, label propagation; and zero-shot.

They see what the probes see: the same rows, the same standardisation, and everything chosen on
validation accuracy (ties: validation loss, then the first of the grid). The labels of test rows and
the hidden labels of training rows are never read. Read `classify` first, then `_pick`; then the
methods, two of them an iterator over its grid; then train/data/graph.py.

One view of 6,000 x 768, 3,600 training rows, 10 classes, one core, after the imports: below two
seconds each with 3 labels a class; with all 3,600, logistic regression 50 s, the others two.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from base.errors import DataQualityError, UsageError, did_you_mean
from base.progress import Progress
from cache_specs.text import ViewText
from train.algorithm.evaluate import share_right
from train.data.folds import trainings
from train.data.graph import (
    Graph,
    groups_of,
    nearest_rows,
    shares_beside,
    standardise,
    statistics,
    unit,
)
from train.data.splits import Split
from train.data.towers import softmax

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# the least probability: a class that nobody voted for costs 27.6 nats, not infinitely many
FLOOR = 1e-12
INVERSE_PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# of L-BFGS: the most, and the largest derivative of the mean loss at which it may stop
ITERATIONS, GRADIENT = 5_000, 1e-6
SHARED = 1_000_000  # numbers of a matrix from which on several threads multiply it
VOTERS = (1, 3, 5, 10, 20, 50)
USUAL = ({"C": 1.0}, {"k": 1})  # where nobody judges

# hyper-parameters, and probabilities (n, C) for each block of queries
Candidate = tuple[dict[str, float], list[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Scores:
    """V + 1 entries each, the last is of the concatenated views. Natural log-probabilities, (n_val,
    C) and (n_test, C) float32; what was chosen."""

    val: list[np.ndarray] = field(default_factory=list)
    test: list[np.ndarray] = field(default_factory=list)
    chosen: list[dict[str, float]] = field(default_factory=list)


def classify(
    method: str,
    emb_V: Sequence[np.ndarray],
    label_N: np.ndarray,
    classes: int,
    split: Split,
    by: str = "top1",
) -> Scores:
    """Fit and choose `method`, one of CLASSIC or GRAPH, for each of V views and for their
    concatenation; with one view that is the view itself.

    emb_V: (N, D_v) float16 each. label_N: (N,) int, read at split.labelled and split.val alone. C =
    classes; one without a labelled row gets FLOOR. by: the validation score, one of MEASURES, by
    which is chosen. Raises UsageError for an unknown method,
    DataQualityError where an embedding is not finite or nothing converges.
    """
    if method == GRAPH:
        return _propagation(emb_V, label_N, classes, split, by)
    if method not in CLASSIC:
        known = [*CLASSIC, GRAPH]
        raise UsageError(f"no baseline is called {method!r}{did_you_mean(method, known)}")
    train_rows, labelled = np.union1d(split.labelled, split.unlabelled), split.labelled
    inputs = _inputs(method, emb_V, train_rows, (labelled, split.val, split.test))
    scores = Scores()
    for x_LD, *queries in inputs:
        fit = functools.partial(CLASSIC[method], classes=classes)
        if split.folds:
            chosen, (val, test) = _cross(fit, x_LD, queries[1], label_N, split, by)
        else:
            candidates = fit(x_LD, label_N[labelled], queries)
            chosen, (val, test) = _pick(candidates, label_N[split.val], by)
        _add(scores, val, test, chosen, 2 if len(emb_V) == 1 else 1)
    return scores


def _cross(
    fit: Callable[..., Iterator[Candidate]],
    x_LD: np.ndarray,
    x_tD: np.ndarray,
    label_N: np.ndarray,
    split: Split,
    by: str,
) -> Candidate:
    """The candidate whose out-of-fold opinions are best, fitted to all labelled rows."""
    y_L = label_N[split.labelled]
    said = out_of_fold(fit, x_LD, y_L, split)
    both = []
    for chosen, (p_tC,) in fit(x_LD, y_L, [x_tD]):
        told_nC = said.get(tuple(chosen.items()))
        if told_nC is not None and np.isfinite(told_nC).all():  # every fold could be fitted so
            both.append((chosen, [told_nC, p_tC]))
    return _pick(iter(both), label_N[split.val], by)


def out_of_fold(
    fit: Callable[..., Iterator[Candidate]], x_LD: np.ndarray, y_L: np.ndarray, split: Split
) -> dict[tuple, np.ndarray]:
    """By hyper-parameters, what candidates that were fitted without a fold's rows say of these:
    (n, C) probabilities of the rows of split.val; NaN where there is no such candidate."""
    said: dict[tuple, np.ndarray] = {}
    for fold in split.folds:
        own_L, out_L = (np.isin(split.labelled, rows) for rows in (fold.labelled, fold.val))
        for chosen, (p_nC,) in fit(x_LD[own_L], y_L[own_L], [x_LD[out_L]]):
            nothing = np.full((len(split.val), p_nC.shape[1]), np.nan)
            told_nC = said.setdefault(tuple(chosen.items()), nothing)
            told_nC[np.searchsorted(split.val, fold.val)] = p_nC
    return said


def _inputs(
    method: str, emb_V: Sequence[np.ndarray], train_rows: np.ndarray, blocks: Sequence[np.ndarray]
) -> list[list[np.ndarray]]:
    """Of each view, and of all side by side where there are several, what the method reads of the
    blocks of rows: (n, D) each."""
    directions = method != "logreg"  # alone: the others go by distance
    inputs = []
    for view, emb_ND in enumerate(emb_V):
        mean_D, std_D = statistics(emb_ND, train_rows)
        x_B = [standardise(emb_ND, rows, mean_D, std_D) for rows in blocks]
        if not all(np.isfinite(x_nD).all() for x_nD in x_B):
            raise _not_finite(view, len(emb_V), method)
        inputs.append([unit(x_nD) for x_nD in x_B] if directions else x_B)
    if len(inputs) > 1:
        scale = np.float32(len(inputs) ** -0.5 if directions else 1)
        of_blocks = zip(*inputs, strict=True)
        inputs.append([np.concatenate(x_V, 1) * scale for x_V in of_blocks])
    return inputs


def _not_finite(view: int, views: int, method: str) -> DataQualityError:
    return DataQualityError(
        f"view {view + 1} of {views} has embeddings that are not finite, in rows that {method} "
        "needs; embed it anew, or leave it out of VIEWS="
    )


def _pick(candidates: Iterator[Candidate], y_val: np.ndarray, by: str = "top1") -> Candidate:
    """The candidate of the best validation score, its probabilities as log-probabilities: a
    candidate is judged by the numbers handed out. Where nobody judges, a usual one."""
    best: Candidate | None = None
    most: tuple[float, float] = (0.0, 0.0)
    for chosen, p_Q in candidates:
        log_Q = [_log(p_nC) for p_nC in p_Q]
        if not len(y_val):
            if best is None or chosen in USUAL:
                best = chosen, log_Q
            continue
        right = share_right(log_Q[0].argmax(1), y_val, log_Q[0].shape[1], by)
        loss = -float(log_Q[0][np.arange(len(y_val)), y_val].mean(dtype=np.float64))
        if best is None or (right, -loss) > most:
            best, most = (chosen, log_Q), (right, -loss)
    if best is None:
        raise DataQualityError(
            f"logistic regression did not converge within {ITERATIONS} iterations for any of "
            f"C = {INVERSE_PENALTIES}: look at the embeddings for values far from all others, or "
            "leave 'logreg' out of the methods"
        )
    return best


def _log(p_nC: np.ndarray) -> np.ndarray:
    p_nC = np.maximum(p_nC, FLOOR)
    return np.log(p_nC / p_nC.sum(1, keepdims=True)).astype(np.float32)


def _logreg(
    x_LD: np.ndarray, y_L: np.ndarray, queries: list[np.ndarray], classes: int
) -> Iterator[Candidate]:
    """Multinomial logistic regression, L2 penalty ||W||^2 / 2C on the summed loss, by L-BFGS; each
    C starts at the solution of the one before.

    Fewer rows than dimensions are fitted in their span, where the solution lies whatever D is.
    A C that has not converged within ITERATIONS is no candidate, since its numbers would depend on
    where it stopped.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  a second, for one method
    from threadpoolctl import threadpool_limits  # noqa: PLC0415  as above

    present = np.unique(y_L)
    if len(present) == 1:  # scikit-learn refuses; the limit is certainty
        sure = np.eye(classes)[present]
        yield {"C": INVERSE_PENALTIES[0]}, [sure.repeat(len(x_nD), 0) for x_nD in queries]
        return
    # in float32 the line search ends in rounding errors
    x_LD, *queries = (x_nD.astype(np.float64) for x_nD in (x_LD, *queries))
    if len(x_LD) < x_LD.shape[1]:
        basis_DL = np.linalg.qr(x_LD.T)[0]
        x_LD, *queries = (x_nD @ basis_DL for x_nD in (x_LD, *queries))
    model = LogisticRegression(solver="lbfgs", tol=GRADIENT, max_iter=ITERATIONS, warm_start=True)
    # threads that share a small product only wait for one another
    limits = threadpool_limits(1 if x_LD.size < SHARED else None)
    title = f"logreg on {len(y_L):,} rows x {x_LD.shape[1]:,}"
    with limits, Progress(title, len(INVERSE_PENALTIES), unit="fits") as progress:
        for C in INVERSE_PENALTIES:
            if _fits(model.set_params(C=C), x_LD, y_L):
                yield {"C": C}, [_of_all(model, x_nD, present, classes) for x_nD in queries]
            progress.advance(1)


def _of_all(
    model: "LogisticRegression", x_nD: np.ndarray, present: np.ndarray, classes: int
) -> np.ndarray:
    """(n, C) probabilities, 0 of classes that are not `present`."""
    p_nC = np.zeros((len(x_nD), classes))
    if len(x_nD):  # scikit-learn refuses none
        p_nC[:, present] = model.predict_proba(x_nD)
    return p_nC


def _fits(model: "LogisticRegression", x_LD: np.ndarray, y_L: np.ndarray) -> bool:
    """Fit it; does it converge?"""
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415  as above

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            model.fit(x_LD, y_L)
    except ConvergenceWarning:
        return False
    return True


def _knn(
    x_LD: np.ndarray, y_L: np.ndarray, queries: list[np.ndarray], classes: int
) -> Iterator[Candidate]:
    """The k nearest labelled rows vote with weight 1 / distance (Dudani 1976); where some are at
    distance 0, they alone vote."""
    found_Q = [nearest_rows(x_LD, x_nD, max(VOTERS)) for x_nD in queries]
    onehot_LC = np.eye(classes)[y_L]
    for k in sorted({min(k, len(x_LD)) for k in VOTERS}):
        p_Q = []
        for distance_nK, row_nK in found_Q:
            distance_nk = distance_nK[:, :k]
            same_n1 = (distance_nk == 0).any(1, keepdims=True)
            weight_nk = np.where(same_n1, distance_nk == 0, 1 / np.where(same_n1, 1, distance_nk))
            votes_nC = np.einsum("nk,nkc->nc", weight_nk, onehot_LC[row_nK[:, :k]])
            p_Q.append(votes_nC / weight_nk.sum(1, keepdims=True))
        yield {"k": k}, p_Q


def propagate(graphs: Sequence[Graph], split: Split) -> Scores:
    """What the graphs of the views, and the one of all side by side, say of one experiment's rows:
    one that is no node gets the mean distribution of its nearest nodes.

    That is what LabelSpreading.predict_proba does with its knn kernel. Its graph is not used: it
    links each row to itself and k - 1 others, one way only, where the paper asks for a symmetric
    one; it finds the neighbours anew for every alpha, and its fixed-point iteration at alpha 0.99
    ends with a warning after the default 30 of the 2,700 rounds that it would take. See
    train/data/graph.py.
    """
    scores = Scores()
    for graph in graphs:
        own = graph.splits.index(split)
        one = graph.solve(own)
        chosen = {"neighbours": one.neighbours, "alpha": one.alpha}
        val = graph.told(own, split.val)
        for fold in split.folds:
            val[np.searchsorted(split.val, fold.val)] = graph.told(
                graph.splits.index(fold), fold.val
            )
        val, test = _log(val), _log(graph.told(own, split.test))
        _add(scores, val, test, chosen, 2 if len(graphs) == 1 else 1)
    return scores


def _add(
    scores: Scores, val: np.ndarray, test: np.ndarray, chosen: dict[str, float], times: int
) -> None:
    """Of one view; a single one is the concatenation of all, too."""
    for _ in range(times):
        scores.val.append(val)
        scores.test.append(test)
        scores.chosen.append(chosen)


def zero_shot(
    emb_V: Sequence[np.ndarray],
    text_V: Sequence[ViewText | None],
    classes: Sequence[str],
    split: Split,
) -> Scores:
    """What the names of the classes say of one experiment's rows: of each view that has them, and
    then the mean of these views' probabilities. No label is read, and nothing is chosen."""
    scores = Scores()
    for part, rows in (("val", split.val), ("test", split.test)):
        p_W = []
        for view, (emb_ND, text) in enumerate(zip(emb_V, text_V, strict=True)):
            if text is not None:
                if not np.isfinite(emb_ND[rows]).all():
                    raise _not_finite(view, len(emb_V), "zero-shot")
                p_W.append(softmax(text.logits(emb_ND[rows], classes)))
        said = getattr(scores, part)
        said += [_log(p_nC) for p_nC in [*p_W, np.mean(p_W, 0)]]
    scores.chosen.extend({} for _ in scores.val)
    return scores


def _propagation(
    emb_V: Sequence[np.ndarray], label_N: np.ndarray, classes: int, split: Split, by: str
) -> Scores:
    graphs: list[Graph] = []
    each, cpu = trainings([split]), torch.device("cpu")
    for group in groups_of(len(emb_V)):
        shares = shares_beside(graphs) if len(group) > 1 else ()
        views = [emb_V[view] for view in group]
        graphs.append(Graph(views, label_N, each, classes, cpu, by, shares))
    return propagate(graphs, split)


CLASSIC = {"logreg": _logreg, "knn": _knn}
GRAPH = "label-propagation"
