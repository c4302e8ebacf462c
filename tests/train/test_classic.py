"""The baselines against oracles: scikit-learn's own classes, sums written out, and the closed form;
and what must play no part in them."""

import warnings

import numpy as np
import pytest
from conftest import Made
from threadpoolctl import threadpool_info, threadpool_limits
from training import spread

from base import progress
from base.errors import DataQualityError, UsageError
from train import classic
from train.classic import CLASSIC, FLOOR, GRAPH, INVERSE_PENALTIES, VOTERS, Scores, classify
from train.data import graph as propagation
from train.data.graph import ALPHAS, NEIGHBOURS, standardise, statistics, unit
from train.data.splits import Split, make_split

METHODS = sorted([*CLASSIC, GRAPH])


@pytest.fixture(scope="module")
def digits(made: Made) -> tuple[list[np.ndarray], np.ndarray, Split]:
    """Two views, the labels, and a split with 3 labelled rows a class."""
    split = make_split(made.items, np.ones(len(made.items), bool), "3", 0)
    return (
        [made.emb[name].astype(np.float16) for name in ("pixels", "edges")],
        made.items.label,
        split,
    )


def small(
    classes: int = 3, widths: tuple[int, ...] = (5, 4), n: int = 60, noise: float = 1
) -> tuple[list[np.ndarray], np.ndarray, Split]:
    """Rows in overlapping heaps: 4 labelled a class, then unlabelled, 15 for
    validation and 15 for test."""
    chance = np.random.default_rng(0)
    label = np.arange(n) % classes
    emb = [
        (
            chance.normal(size=(classes, width))[label] + noise * chance.normal(size=(n, width))
        ).astype(np.float16)
        for width in widths
    ]
    return (
        emb,
        label,
        Split(
            np.arange(4 * classes),
            np.arange(4 * classes, n - 30),
            np.arange(n - 30, n - 15),
            np.arange(n - 15, n),
        ),
    )


def same(one: Scores, other: Scores, *, val: bool = True, test: bool = True) -> bool:
    pairs = [
        *(zip(one.val, other.val, strict=True) if val else ()),
        *(zip(one.test, other.test, strict=True) if test else ()),
    ]
    return one.chosen == other.chosen and all(np.array_equal(a, b) for a, b in pairs)


def inputs(emb: list[np.ndarray], split: Split, unit: bool) -> np.ndarray:
    """(N, D) float64: the joint features, written out."""
    train = np.concatenate([split.labelled, split.unlabelled])
    made = []
    for x in emb:
        x = (x.astype(np.float64) - x[train].astype(np.float64).mean(0)) / x[train].astype(
            np.float64
        ).std(0)
        made.append(x / np.sqrt((x**2).sum(1, keepdims=True)) / np.sqrt(len(emb)) if unit else x)
    return np.concatenate(made, 1)


def best_of(val_log: list[np.ndarray], y_val: np.ndarray) -> int:
    scores = [
        ((log.argmax(1) == y_val).mean(), log[np.arange(len(y_val)), y_val].mean())
        for log in val_log
    ]
    return scores.index(max(scores))


# ---------------------------------------------------------------- against oracles


def test_logistic_regression_is_scikit_learns_in_the_whole_space() -> None:
    """Fitted from scratch for every C, on all dimensions, to a gradient
    a thousand times smaller."""
    from sklearn.linear_model import LogisticRegression

    emb, label, split = small(widths=(40, 30), noise=2.5)  # wider than the 12 labelled rows
    x, scores = inputs(emb, split, unit=False), classify("logreg", emb, label, 3, split)
    models = [
        LogisticRegression(C=C, tol=1e-9, max_iter=10_000).fit(
            x[split.labelled], label[split.labelled]
        )
        for C in INVERSE_PENALTIES
    ]
    best = best_of([model.predict_log_proba(x[split.val]) for model in models], label[split.val])
    assert scores.chosen[-1] == {"C": INVERSE_PENALTIES[best]}
    assert 0 < best < len(models) - 1  # neither end of the grid: it was chosen
    for rows, log in ((split.val, scores.val[-1]), (split.test, scores.test[-1])):
        assert np.allclose(np.exp(log), models[best].predict_proba(x[rows]), atol=1e-4)


@pytest.mark.usefixtures("rendered")
def test_logistic_regression_says_how_far_it_is_where_it_takes_long(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    emb, label, split = small()
    classify("logreg", emb, label, 3, split)
    assert capsys.readouterr().err == ""  # far below ten seconds
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    classify("logreg", emb, label, 3, split)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 * len(INVERSE_PENALTIES)
    assert lines[0].startswith("logreg on 12 rows x 5: 1/13 fits, ")
    assert lines[-1].startswith("logreg on 12 rows x 9: 13/13 fits, ")


def test_every_penalty_is_solved_whatever_the_path(digits: tuple) -> None:
    from sklearn.linear_model import LogisticRegression

    emb, label, split = digits
    x = inputs(
        [
            emb[1]
            + np.float16(0.01)
            * np.random.default_rng(0).normal(size=emb[1].shape).astype(np.float16)
        ],
        split,
        unit=False,
    )
    parts = [x[rows].astype(np.float32) for rows in (split.labelled, split.val)]
    found = list(classic._logreg(parts[0], label[split.labelled], parts[1:], 10))
    assert [chosen["C"] for chosen, _ in found] == list(INVERSE_PENALTIES)
    for chosen, (p_val,) in found[::4]:
        oracle = LogisticRegression(C=chosen["C"], tol=1e-9, max_iter=10_000).fit(
            x[split.labelled], label[split.labelled]
        )
        assert (
            np.abs(p_val - oracle.predict_proba(x[split.val])).max() < 3e-2
        )  # 0.2 with scikit-learn's own tolerance


def test_neighbours_vote_as_in_the_sums_and_in_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    emb, label, split = small()
    x, scores = inputs(emb, split, unit=True), classify("knn", emb, label, 3, split)
    labelled = x[split.labelled]
    ks = [k for k in VOTERS if k <= len(labelled)] + [len(labelled)]  # 50 voters of 12 rows are 12

    def vote(rows: np.ndarray, k: int) -> np.ndarray:
        p = np.zeros((len(rows), 3))
        for i, row in enumerate(rows):
            distance = np.sqrt(((x[row] - labelled) ** 2).sum(1))
            for j in np.argsort(distance)[:k]:
                p[i, label[split.labelled[j]]] += 1 / distance[j]
        p = np.maximum(p / p.sum(1, keepdims=True), FLOOR)
        return np.log(p / p.sum(1, keepdims=True))

    best = best_of([vote(split.val, k) for k in ks], label[split.val])
    assert scores.chosen[-1] == {"k": ks[best]}
    assert np.allclose(scores.val[-1], vote(split.val, ks[best]), atol=1e-4)
    assert np.allclose(scores.test[-1], vote(split.test, ks[best]), atol=1e-4)
    oracle = KNeighborsClassifier(ks[best], weights="distance", algorithm="brute").fit(
        labelled, label[split.labelled]
    )
    assert np.allclose(np.exp(scores.test[-1]), oracle.predict_proba(x[split.test]), atol=1e-4)
    for k, (chosen, (p_all,)) in zip(
        ks, classic._knn(labelled, label[split.labelled], [x], 3), strict=True
    ):
        oracle = KNeighborsClassifier(k, weights="distance", algorithm="brute").fit(
            labelled, label[split.labelled]
        )
        assert chosen == {"k": k} and np.allclose(
            p_all, oracle.predict_proba(x), atol=1e-6
        )  # with rows at distance 0: the labelled ones


@pytest.mark.parametrize(("shared", "limited"), [(10**9, True), (1, False)])
def test_small_products_are_not_shared_among_threads(
    monkeypatch: pytest.MonkeyPatch, shared: int, limited: bool
) -> None:
    """They wait for one another: 19 s instead of 0.6 for 120 rows of 60 classes on two busy cores.
    Afterwards all is as before."""

    def most() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    monkeypatch.setattr(classic, "SHARED", shared)
    emb, label, split = small()
    x = emb[0][split.labelled].astype(np.float32)
    next(classic._logreg(x, label[split.labelled], [x], 3))  # all libraries are there
    with threadpool_limits(2, "blas"):
        before = most()
        assert 2 in before
        for _ in classic._logreg(x, label[split.labelled], [x], 3):
            assert most() == ([1] * len(before) if limited else before)
        assert most() == before


def graph(x: np.ndarray, k: int) -> np.ndarray:
    """(n, n), of rows of length 1: each with its k nearest by the cube of the cosine, both ways."""
    distance = ((x[:, None] - x) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    A = np.zeros((len(x), len(x)))
    for i, near in enumerate(np.argsort(distance, 1)[:, :k]):
        A[i, near] = np.maximum((x[near] * x[i]).sum(1), 0.01) ** 3
    return A + A.T


def closed_form(x: np.ndarray, y: np.ndarray, classes: int, k: int, alpha: float) -> np.ndarray:
    W = graph(x, k)
    S = W / np.sqrt(np.outer(W.sum(0), W.sum(0)))
    F = (1 - alpha) * np.linalg.inv(np.eye(len(x)) - alpha * S) @ (y[:, None] == np.arange(classes))
    return F / F.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [3, 70])
def test_spreading_is_the_closed_form_and_scikit_learns(classes: int) -> None:
    from sklearn.semi_supervised import LabelSpreading

    x = unit(np.random.default_rng(1).normal(size=(300, 4)))
    y = np.full(300, -1)
    y[: 2 * classes] = np.arange(2 * classes) % classes
    found = spread(x, y, classes, 7, ALPHAS)
    assert list(found) == list(ALPHAS)
    for alpha, p in found.items():
        assert p.dtype == np.float32 and np.allclose(
            p, closed_form(x, y, classes, 7, alpha), atol=1e-5
        )
        oracle = LabelSpreading(
            kernel=lambda a, _: graph(a, 7), alpha=alpha, max_iter=10_000, tol=1e-9
        ).fit(x, y)
        assert np.allclose(p, oracle.label_distributions_, atol=1e-5)
    assert np.abs(found[0.5] - found[0.99]).max() > 0.1  # or alpha would play no part


def test_propagation_takes_the_mean_of_the_nearest_nodes() -> None:
    """In the graph of both views each has its share."""
    emb, label, split = small()
    scores = classify("label-propagation", emb, label, 3, split)
    nodes = np.concatenate([split.labelled, split.unlabelled])
    y = np.where(np.isin(nodes, split.labelled), label[nodes], -1)
    x_V = [inputs([one], split, unit=True) for one in emb]
    certain_V = []
    for x in x_V:
        F = closed_form(x[nodes], y, 3, 7, 0.95)
        certain_V.append((1 + (F * np.log(F)).sum(1).mean() / np.log(3)) ** 2)
    first = round(10 * certain_V[0] / sum(certain_V)) / 10
    assert first not in (0, 0.5, 1)
    x = np.concatenate([x_V[0] * first**0.5, x_V[1] * (1 - first) ** 0.5], 1)

    def inductive(rows: np.ndarray, k: int, alpha: float) -> np.ndarray:
        F = closed_form(x[nodes], y, 3, k, alpha)
        return np.log(
            np.array([F[np.argsort(((x[row] - x[nodes]) ** 2).sum(1))[:k]].mean(0) for row in rows])
        )

    grid = [(k, alpha) for k in NEIGHBOURS for alpha in ALPHAS]
    best = best_of([inductive(split.val, *point) for point in grid], label[split.val])
    assert scores.chosen[-1] == dict(zip(("neighbours", "alpha"), grid[best], strict=True))
    assert np.allclose(scores.val[-1], inductive(split.val, *grid[best]), atol=1e-3)
    assert np.allclose(scores.test[-1], inductive(split.test, *grid[best]), atol=1e-3)


def test_what_no_label_reaches_is_unknown() -> None:
    x = np.concatenate(
        [
            np.random.default_rng(0).normal(size=(20, 3)),
            100 + np.random.default_rng(1).normal(size=(20, 3)),
        ]
    )
    y = np.full(40, -1)
    y[:2] = 0, 1
    p = spread(x, y, 4, 5, [0.9])[0.9]
    assert (
        np.allclose(p.sum(1), 1)
        and (p[20:] == 0.25).all()
        and (p[:20, 2:] == 0).all()
        and (p[:20].max(1) > 0.25).all()
    )


def test_the_statistics_are_those_of_the_probes(made: Made) -> None:
    import torch

    from train.data.feed import make_input

    emb, train = made.emb["pixels"].astype(np.float16), np.arange(0, 1000, 3)
    mean_D, std_D = statistics(emb, train)
    assert np.allclose(
        standardise(emb, train, mean_D, std_D),
        make_input([emb], train, torch.device("cpu"), torch.float32)(train).numpy(),
        atol=1e-6,
    )


# ---------------------------------------------------------------- what plays no part


@pytest.mark.parametrize("method", METHODS)
def test_test_rows_and_hidden_labels_play_no_part(method: str) -> None:
    emb, label, split = small()
    scores = classify(method, emb, label, 3, split)
    unseen = label.copy()
    unseen[split.test], unseen[split.unlabelled] = (
        -1,
        np.random.default_rng(0).permutation(label[split.unlabelled]),
    )
    assert same(scores, classify(method, emb, unseen, 3, split))

    moved = [x.copy() for x in emb]
    for x in moved:
        x[split.test] = x[split.test][::-1] * np.float16(1.5)
    after = classify(method, moved, label, 3, split)
    assert same(scores, after, test=False) and not same(scores, after, val=False)

    moved = [x.copy() for x in emb]
    for x in moved:
        x[split.labelled] = x[split.labelled][::-1]  # and training rows do play one
    assert not same(scores, classify(method, moved, label, 3, split), test=False)


@pytest.mark.parametrize("method", METHODS)
def test_validation_rows_are_no_training_rows(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one candidate there is nothing to choose, and validation rows
    then change no test score."""
    for module, name, value in (
        (classic, "INVERSE_PENALTIES", (0.1,)),
        (classic, "VOTERS", (5,)),
        (propagation, "NEIGHBOURS", (7,)),
        (propagation, "ALPHAS", (0.9,)),
    ):
        monkeypatch.setattr(module, name, value)
    emb, label, split = small()
    scores, other, moved = (
        classify(method, emb, label, 3, split),
        label.copy(),
        [x.copy() for x in emb],
    )
    other[split.val] = (label[split.val] + 1) % 3
    for x in moved:
        x[split.val] = -x[split.val]
    after = classify(method, moved, other, 3, split)
    assert same(scores, after, val=False) and not same(scores, after, test=False)


def test_the_choice_is_by_accuracy_then_loss_then_order() -> None:
    y = np.array([0, 1])
    sure, unsure, wrong = (
        np.array([[p, 1 - p], [1 - q, q]]) for p, q in ((0.9, 0.9), (0.6, 0.6), (0.999, 0.499))
    )
    tried = {"wrong": wrong, "unsure": unsure, "sure": sure, "again": sure}
    for order in (["wrong", "unsure", "sure", "again"], ["sure", "again", "wrong", "unsure"]):
        chosen, (val, test) = classic._pick(
            iter([({"is": name}, [tried[name], 1 - tried[name]]) for name in order]), y
        )
        assert (
            chosen == {"is": "sure"}
            and np.allclose(np.exp(val), sure)
            and np.allclose(np.exp(test), 1 - sure)
        )


# ---------------------------------------------------------------- shapes and hard cases


@pytest.mark.parametrize("method", METHODS)
def test_the_digits_are_read(method: str, digits: tuple) -> None:
    """Measured: logreg 0.75, knn 0.73 to 0.76, label propagation 0.92; chance is 0.1.
    Log-probabilities sum to one, and twice is the same."""
    emb, label, split = digits
    scores = classify(method, emb, label, 10, split)
    bound = 0.86 if method == "label-propagation" else 0.67
    for val, test, chosen in zip(scores.val, scores.test, scores.chosen, strict=True):
        assert (
            val.shape == (len(split.val), 10)
            and test.shape == (len(split.test), 10)
            and val.dtype == test.dtype == np.float32
        )
        assert (
            np.allclose(np.exp(test.astype(np.float64)).sum(1), 1, atol=1e-5)
            and (test.argmax(1) == label[split.test]).mean() > bound
        )
        assert (
            set(chosen)
            == {"logreg": {"C"}, "knn": {"k"}, "label-propagation": {"neighbours", "alpha"}}[method]
        )
    assert len(scores.val) == 3
    assert same(scores, classify(method, emb, label, 10, split))
    alone = classify(method, emb[1:], label, 10, split)
    assert len(alone.val) == len(alone.test) == len(alone.chosen) == 2
    assert (
        alone.test[0] is alone.test[1]
        and np.array_equal(alone.test[0], scores.test[1])
        and alone.chosen == [scores.chosen[1]] * 2
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("left", [(0, 2), (2,)])
def test_a_class_without_a_labelled_row(method: str, left: tuple[int, ...]) -> None:
    """It is given next to nothing; with one class left, everything is that class."""
    emb, label, split = small()
    rows = split.labelled[np.isin(label[split.labelled], left)]
    scores = classify(method, emb, label, 3, Split(rows, split.unlabelled, split.val, split.test))
    absent = [c for c in range(3) if c not in left]
    for log in [*scores.val, *scores.test]:
        assert (
            np.isfinite(log).all()
            and (log[:, absent] < -27).all()
            and (log[:, left].max(1) > -0.7).all()
        )
        assert len(left) == 1 or len(np.unique(log.argmax(1))) == 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("elsewhere", [0.1, -65_504])
def test_a_constant_view_says_nothing_and_does_no_harm(method: str, elsewhere: float) -> None:
    """Also where it is another constant outside the training rows, which then are all
    equally far in that view."""
    emb, label, split = small()
    constant = np.full_like(emb[1], 0.1)
    constant[split.val[0] :] = elsewhere
    scores = classify(method, [emb[0], constant], label, 3, split)
    assert all(np.isfinite(log).all() for log in [*scores.val, *scores.test])
    if elsewhere == 0.1 or method == "logreg":
        assert (
            np.abs(scores.test[0] - scores.test[2]).max() < 1e-3
            and scores.chosen[0] == scores.chosen[2]
        )
    if method == "logreg":
        assert np.ptp(scores.test[1], 0).max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_extremes_of_float16(method: str) -> None:
    """Powers of two move nothing; neither does a dimension that is always at the largest number."""
    emb, label, split = small()
    x = np.clip(emb[0], -3.998, 3.998)
    scores = classify(method, [x], label, 3, split)
    large = x * np.float16(2**14)  # up to 65,504
    assert np.abs(large).max() > 32_000
    after = classify(
        method,
        [np.concatenate([large, np.full((len(x), 1), -65_504, np.float16)], 1)],
        label,
        3,
        split,
    )
    assert after.chosen == scores.chosen and np.allclose(after.test[0], scores.test[0], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_two_classes_and_few_rows(method: str) -> None:
    """One labelled row a class and no other: fewer rows than neighbours in any grid."""
    emb, label, _ = small(classes=2)
    split = Split(np.arange(2), np.arange(0), np.arange(2, 30), np.arange(30, 60))
    scores = classify(method, emb, label, 2, split)
    assert np.isfinite(scores.test[-1]).all() and scores.test[-1].shape == (30, 2)
    one = Split(np.arange(1), np.arange(0), split.val, split.test)
    assert (classify(method, emb, label, 2, one).test[-1].argmax(1) == label[0]).all()


# ---------------------------------------------------------------- errors


def test_errors_say_what_to_do() -> None:
    emb, label, split = small()
    with pytest.raises(UsageError, match="did you mean 'logreg'"):
        classify("logregg", emb, label, 3, split)
    emb[1][split.val[0], 0] = np.nan
    with pytest.raises(DataQualityError, match=r"view 2 of 2.*leave it out of VIEWS="):
        classify("knn", emb, label, 3, split)


def test_an_unfinished_fit_is_no_candidate(monkeypatch: pytest.MonkeyPatch, digits: tuple) -> None:
    """40 iterations are enough for strong penalties only; 1 for none. No warning of the solver
    escapes, and no filter stays behind."""
    emb, label, split = digits
    parts = [
        standardise(emb[0], rows, *statistics(emb[0], split.unlabelled))
        for rows in (split.labelled, split.val)
    ]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")  # as a user's process has it: a warning is no error there
        before = list(warnings.filters)
        monkeypatch.setattr(classic, "ITERATIONS", 40)
        finished = [
            chosen["C"]
            for chosen, _ in classic._logreg(parts[0], label[split.labelled], parts[1:], 10)
        ]
        monkeypatch.setattr(classic, "ITERATIONS", 1)
        with pytest.raises(DataQualityError, match="did not converge within 1 iterations"):
            classify("logreg", emb, label, 10, split)
        assert warnings.filters == before and not heard
    assert (
        finished
        and finished == list(INVERSE_PENALTIES[: len(finished)])
        and len(finished) < len(INVERSE_PENALTIES)
    )
