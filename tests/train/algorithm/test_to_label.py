"""Rules that choose what to label, against scikit-activeml, scikit-learn and their formulas."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from conftest import pixels_and_edges
from scipy.spatial.distance import cdist, pdist
from skactiveml import pool
from skactiveml.base import SkactivemlClassifier
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise_distances_argmin

from train.algorithm import to_label
from train.algorithm.streams import Purpose, stream
from train.algorithm.to_label import (
    at_random,
    drop_query,
    joined,
    kmeans_centres,
    least_margin,
    margins,
    max_herding,
    smallest_distance,
    typical,
    u_herding,
)

NONE = np.empty((0, 72), np.float32)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """(400, D) two views of scanned digits, side by side."""
    views = pixels_and_edges(load_digits().images[:400].astype(np.float32))
    return joined([views["pixels"], views["edges"]])


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def none(x_nD: np.ndarray) -> np.ndarray:
    return np.empty((0, x_nD.shape[1]), np.float32)


def opinions(n: int, classes: int = 5) -> np.ndarray:
    return np.random.default_rng(3).dirichlet(np.full(classes, 0.3), n)


RULES: dict[str, Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]] = {
    "random": lambda x, known, count, seed: at_random(len(x), count, seed),
    "k-means": lambda x, known, count, seed: kmeans_centres(x, count, seed),
    "MaxHerding": max_herding,
    "UHerding": lambda x, known, count, seed: u_herding(x, known, opinions(len(x)), count, seed),
    "margin": lambda x, known, count, seed: least_margin(opinions(len(x)), count),
    "DropQuery": lambda x, known, count, seed: drop_query(
        x, lambda rows: rows[:, :9].argmax(1), count, seed
    ),
    "TypiClust": typical,
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@pytest.mark.parametrize(
    ("labelled", "h", "seed"),
    [(0, 1.0, 0), (1, 1.0, 1), (30, 0.4, 1), *((30, 1.0, seed) for seed in range(6))],
)
def test_max_herding_is_that_of_activeml(
    digits: np.ndarray, labelled: int, h: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which draws one of equally good rows; here it takes the first, as ours does."""

    def best(worth_n: np.ndarray, random_state: object) -> np.ndarray:
        return np.flatnonzero(worth_n >= np.nanmax(worth_n) - 1e-12)[:1]

    monkeypatch.setattr("skactiveml.pool._max_herding.rand_argmax", best)
    known = np.random.default_rng(seed).permutation(len(digits))[:labelled]
    free = np.setdiff1d(np.arange(len(digits)), known)
    chosen = free[max_herding(digits[free], digits[known], 40, h=h)]
    y = np.full(len(digits), np.nan)
    y[known] = 0
    oracle = pool.MaxHerding(normalize_samples=False, metric_dict={"gamma": h**-2}, random_state=0)
    assert chosen.tolist() == oracle.query(digits.astype(np.float64), y, batch_size=40).tolist()


@pytest.mark.parametrize("published", [True, False])
def test_u_herding_is_its_formula(digits: np.ndarray, published: bool) -> None:
    """Written down again, nothing of it kept from step to step."""
    x, known, p_nC = digits[30:].astype(np.float64), digits[:30].astype(np.float64), opinions(370)
    h = 1.0
    if published:
        h = pdist(known).min()
        assert abs(smallest_distance(digits[:30]) - h) < 1e-6
    second, first = np.sort(p_nC, 1)[:, -2:].T
    unsure = 1 - (first - second)
    like = np.exp(-cdist(x, np.concatenate([x, known]), "sqeuclidean") / h**2)
    chosen: list[int] = []
    for _ in range(25):
        covered = like[:, [*chosen, *range(370, 400)]].max(1)
        gain = (unsure[:, None] * np.maximum(like[:, :370] - covered[:, None], 0)).sum(0)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
    assert u_herding(digits[30:], digits[:30], p_nC, 25, h=h).tolist() == chosen
    assert {*chosen} != {*max_herding(digits[30:], digits[:30], 25, h=h).tolist()}
    # where a model knows nothing, it is MaxHerding
    herded = max_herding(digits[30:], digits[:30], 9, h=h)
    same = np.full((370, 4), 0.25)
    assert u_herding(digits[30:], digits[:30], same, 9, h=h).tolist() == herded.tolist()


def test_the_smallest_distance_is_not_that_of_copies(digits: np.ndarray) -> None:
    twice = np.concatenate([digits[:30], digits[:30] + np.float32(1e-5)])
    assert abs(smallest_distance(twice) - smallest_distance(digits[:30])) < 1e-4
    assert smallest_distance(digits[:1]) == smallest_distance(digits[:0]) == 1
    assert smallest_distance(np.repeat(digits[:1], 3, 0)) == 1


def test_margin_is_that_of_activeml() -> None:
    p_nC = opinions(300)
    score = pool.uncertainty_scores(p_nC, method="margin_sampling")
    np.testing.assert_allclose(1 - margins(p_nC), score, atol=1e-12)
    assert least_margin(p_nC, 20).tolist() == np.argsort(-score)[:20].tolist()
    assert least_margin(np.ones((5, 1)), 3).tolist() == [0, 1, 2]  # one class: nobody is unsure


def test_k_means_is_that_of_sklearn(digits: np.ndarray) -> None:
    """From the same first centres; and the seeds of k-means++ are as good as sklearn's."""
    x = torch.from_numpy(digits)
    begin = digits[to_label._far_apart(x, 12, 0).numpy()]
    oracle = KMeans(12, init=begin, n_init=1, tol=0, max_iter=50).fit(digits)
    centre_KD, own_n = to_label._kmeans(x, 12, 0)
    assert own_n.tolist() == oracle.labels_.tolist()
    np.testing.assert_allclose(centre_KD, oracle.cluster_centers_, atol=1e-5)
    chosen = kmeans_centres(digits, 12, 0)
    nearest = pairwise_distances_argmin(oracle.cluster_centers_, digits)
    assert {*chosen.tolist()} == {*nearest.tolist()} and len({*chosen.tolist()}) == 12
    sizes = np.bincount(own_n)[own_n[chosen]]
    assert (np.diff(sizes) <= 0).all(), "of the largest cluster first"
    found = [float(pick(digits, seed)) for pick in (spread_ours, spread_sklearn) for seed in (1, 2)]
    assert min(found[:2]) <= 1.1 * min(found[2:])


def spread_ours(x_nD: np.ndarray, seed: int) -> float:
    centre_KD, own_n = to_label._kmeans(torch.from_numpy(x_nD), 12, seed)
    return float((torch.from_numpy(x_nD) - centre_KD[own_n]).square().sum())


def spread_sklearn(x_nD: np.ndarray, seed: int) -> float:
    return KMeans(12, n_init=1, random_state=seed).fit(x_nD).inertia_


class Ours:
    """Our clusters for scikit-activeml, whose own are drawn otherwise."""

    def __init__(self, n_clusters: int) -> None:
        self.n_clusters = n_clusters

    def fit_predict(self, x_nD: np.ndarray) -> np.ndarray:
        # with the order of rows that ours has: those to choose from first
        return to_label._kmeans(torch.from_numpy(x_nD.astype(np.float32)), self.n_clusters, 0)[
            1
        ].numpy()

    def fit_transform(self, x_nD: np.ndarray, y: None = None) -> np.ndarray:
        x = torch.from_numpy(x_nD.astype(np.float32))
        return torch.cdist(x, to_label._kmeans(x, self.n_clusters, 0)[0]).numpy()


@pytest.mark.parametrize("labelled", [0, 20])
def test_typi_clust_is_that_of_activeml(digits: np.ndarray, labelled: int) -> None:
    y = np.full(len(digits), np.nan)
    y[len(digits) - labelled :] = 0
    oracle = pool.TypiClust(cluster_algo=Ours, k=20, random_state=0)
    theirs = oracle.query(digits, y, batch_size=9)
    end = len(digits) - labelled
    ours = typical(digits[:end], digits[end:], 9)
    own = Ours(9 + labelled).fit_predict(digits)
    size = np.bincount(own)
    # they draw among clusters of one size, of which ours is the first
    assert size[own[ours]].tolist() == size[own[theirs]].tolist()
    larger = size[own[ours]] > size[own[ours]].min()
    assert {*ours[larger].tolist()} == {*theirs[larger].tolist()}
    assert not {*own[end:].tolist()} & {*own[ours].tolist()}, "a cluster with a label is known"


class Says(SkactivemlClassifier):
    """First choices that stand in a list, one for each time that it is asked."""

    def __init__(
        self, told: list | None = None, classes: list | None = None, missing_label: float = np.nan
    ) -> None:
        super().__init__(classes=classes, missing_label=missing_label, cost_matrix=None)
        self.told = told

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Says":
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.told.pop(0)

    def predict_proba(self, X: np.ndarray) -> None:
        raise AssertionError


def test_drop_query_is_that_of_activeml(digits: np.ndarray) -> None:
    chance = np.random.default_rng(0)
    told = [chance.integers(0, 3, len(digits)) for _ in range(4)]
    y = np.full(len(digits), np.nan)
    oracle = pool.DropQuery(n_dropout_samples=3, cluster_algo=Ours, random_state=0)
    theirs = oracle.query(digits, y, Says([*told]), fit_clf=False, batch_size=5)
    left = [*told]
    ours = drop_query(digits, lambda x: left.pop(0), 5)
    changed = sum(other != told[0] for other in told[1:])
    assert (changed >= 2).sum() >= 25 * 5
    # the rows stand in another order before k-means there, so that its first centres are others
    assert (changed[ours] >= 2).all() and (changed[theirs] >= 2).all()
    rows = np.flatnonzero(changed >= 2)
    assert ours.tolist() == rows[kmeans_centres(digits[rows], 5)].tolist()


def test_drop_query_takes_what_changes_once_where_few_change_twice(digits: np.ndarray) -> None:
    changes = np.zeros((3, len(digits)), int)
    changes[:, :30], changes[0, 30:80] = 1, 1
    left = [np.zeros(len(digits), int), *changes]
    assert {*drop_query(digits, lambda x: left.pop(0), 60).tolist()} <= {*range(80)}
    left = [np.zeros(len(digits), int), *changes]
    chosen = drop_query(digits, lambda x: left.pop(0), 100).tolist()
    assert {*chosen[:80]} == {*range(80)} and len({*chosen}) == 100


def test_drop_query_leaves_a_quarter_of_the_features_as_they_are(digits: np.ndarray) -> None:
    seen: list[np.ndarray] = []

    def choice(x_nD: np.ndarray) -> np.ndarray:
        seen.append(x_nD)
        return np.zeros(len(x_nD), int)

    drop_query(digits, choice, 3)
    assert len(seen) == 4 and seen[0] is digits
    for dropped in seen[1:]:
        kept = dropped != 0
        assert (dropped[kept] == digits[kept]).all()
        assert abs(kept.sum() / (digits != 0).sum() - 0.25) < 0.01
    assert not np.array_equal(seen[1], seen[2])


@every_rule
def test_edges(rule: Callable, digits: np.ndarray) -> None:
    """More than there are, one, none to choose from; the same seed; rows that are all one."""
    x, known = digits[:60], digits[60:70]
    assert sorted(rule(x, known, 100, 0).tolist()) == [*range(60)]
    assert len(rule(x, known, 1, 0)) == 1 and len(rule(x[:1], known, 5, 0)) == 1
    assert len(rule(x[:0], known, 5, 0)) == 0
    chosen = rule(x, known, 20, 7)
    assert chosen.tolist() == rule(x, known, 20, 7).tolist() and len({*chosen.tolist()}) == 20
    same = np.repeat(digits[:1], 30, 0)
    for labelled in (none(digits), same[:1]):
        assert len({*rule(same, labelled, 12, 0).tolist()}) == 12


@every_rule
def test_nothing_depends_on_the_number_of_cores(
    rule: Callable, digits: np.ndarray, threads: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_label, "BLOCK", 64)
    found = []
    for number in (1, 2, 3):
        threads(number)
        found.append(rule(digits[:300], digits[300:], 30, 0).tolist())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("rule", [max_herding, RULES["k-means"], RULES["UHerding"], typical])
def test_a_copy_of_what_was_chosen_waits(rule: Callable, digits: np.ndarray) -> None:
    """Each image stands there three times: of 20 that are chosen no two are the same."""
    x = np.concatenate([digits[:40]] * 3)
    chosen = rule(x, none(digits), 20, 0) % 40
    assert len({*chosen.tolist()}) == 20


def test_what_is_labelled_already_is_not_asked_again(digits: np.ndarray) -> None:
    """Of two heaps one has a label: the other is asked about first."""
    chance = np.random.default_rng(0)
    centre = np.eye(8, dtype=np.float32)[[0, 1]]
    x = joined([np.repeat(centre, 50, 0) + 0.01 * chance.normal(size=(100, 8))])
    for rule in (max_herding, typical):
        assert rule(x, x[:3], 1, 0)[0] >= 50
        assert {*(rule(x, none(x), 2, 0) // 50).tolist()} == {0, 1}


def test_of_equal_rows_the_first_is_taken() -> None:
    x = np.eye(6, dtype=np.float32)  # each as far from all others
    assert max_herding(x, none(x), 4).tolist() == [0, 1, 2, 3]
    assert max_herding(x, x[[0, 2]], 2).tolist() == [1, 3]
    for seed in range(10):  # a heap, and the same elsewhere, whose sums are rounded otherwise
        heap = np.random.default_rng(seed).normal(size=(30, 4))
        nothing = np.zeros_like(heap)
        x = np.concatenate([np.hstack([heap, nothing]), np.hstack([nothing, heap[::-1]])])
        assert max_herding(joined([x]), none(x), 1)[0] < 30


def test_large_sets_are_herded_over_a_sample(
    digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of stated size, drawn by the seed, and nearly as good."""
    whole = max_herding(digits, none(digits), 10)
    monkeypatch.setattr(to_label, "CELLS", 400 * 100)
    monkeypatch.setattr(to_label, "LEAST", 100)
    kept: list[tuple[int, ...]] = []
    kernel = to_label._kernel
    monkeypatch.setattr(
        to_label, "_kernel", lambda x, y, h: kept.append((len(x), len(y))) or kernel(x, y, h)
    )
    some = max_herding(digits, none(digits), 10, seed=1)
    assert kept == [(100, 400)] and len({*some.tolist()}) == 10
    assert some.tolist() == max_herding(digits, none(digits), 10, seed=1).tolist()
    assert some.tolist() != max_herding(digits, none(digits), 10, seed=2).tolist()
    assert covered(digits, some) > 0.97 * covered(digits, whole)
    assert max_herding(digits, none(digits), 60).size == 60 and kept[-1] == (240, 400)


def test_of_very_many_rows_a_random_part_is_looked_at(
    digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_label, "MOST", 100)
    for rule in (max_herding, RULES["k-means"]):
        some = rule(digits, none(digits), 10, 1)
        assert len({*some.tolist()}) == 10 and some.max() > 150
        assert some.tolist() == rule(digits, none(digits), 10, 1).tolist()
        assert covered(digits, some) > 0.95 * covered(digits, max_herding(digits, digits[:0], 10))
        assert len({*rule(digits, none(digits), 390, 1).tolist()}) == 390
    # who weighs nothing is not chosen, wherever the part lies
    weight_n = (np.arange(400) >= 300).astype(float)
    chosen = max_herding(digits, none(digits), 5, 1, 0.1, weight_n)
    assert (chosen >= 300).all()


def covered(x_nD: np.ndarray, chosen: np.ndarray) -> float:
    far = np.linalg.norm(x_nD[:, None] - x_nD[chosen], axis=-1)
    return float(np.exp(-(far**2)).max(1).mean())


def test_each_view_has_the_same_share() -> None:
    chance = np.random.default_rng(0)
    one, other = chance.normal(size=(5, 3)), 1000 * chance.normal(size=(5, 7))
    other[2] = 0
    x = joined([one.astype(np.float16), other.astype(np.float32)])
    assert x.dtype == np.float32 and x.shape == (5, 10)
    np.testing.assert_allclose(np.linalg.norm(x[:, :3], axis=1), 0.5**0.5, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(x[[0, 1, 3, 4]], axis=1), 1, rtol=1e-5)
    assert (x[2, 3:] == 0).all()
    alone = joined([one])
    np.testing.assert_allclose(alone, one / np.linalg.norm(one, axis=1, keepdims=True), rtol=1e-5)


def test_random_is_a_stream_of_its_own() -> None:
    expected = stream(5, Purpose.TO_LABEL).permutation(50)[:7]
    assert at_random(50, 7, 5).tolist() == expected.tolist()
