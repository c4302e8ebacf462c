"""The benchmark of real pools: what is drawn is what the page says, and what is counted."""

import bench_pools
import numpy as np
import pytest
from conftest import Made

from train.data.reader import Cache, open_cache


@pytest.fixture(scope="module")
def cache(made: Made) -> Cache:
    return open_cache(made.cache, "digits", ["pixels", "edges"])


@pytest.mark.parametrize("name", bench_pools.POOLS)
def test_what_is_drawn(cache: Cache, name: str) -> None:
    draw = bench_pools.POOLS[name](cache, np.random.default_rng(0))
    rows, typed = draw.given
    true = draw.label_N[rows]
    assert np.isin(rows, draw.pool).all() and not np.isin(draw.test, draw.pool).any()
    count = np.bincount(true, minlength=10)
    sizes = np.bincount(draw.label_N[draw.pool], minlength=10)
    if name == "usual":
        assert (count == 4).all() and (typed == true).all()
    if name in ("tail", "random"):
        assert sizes.max() > 40 * sizes.min() > 0 and (typed == true).all()
    if name == "tail":
        assert (count == np.minimum(4, sizes)).all()
    if name == "random":
        again = bench_pools.tail(cache, np.random.default_rng(0))
        assert len(rows) == len(again.given[0]) and count.max() > 4
    if name == "foreign":
        strange = np.unique(draw.label_N[draw.foreign_N])
        assert len(strange) == 2 and (count[strange] == 0).all() and count.sum() == 32
        assert draw.foreign_N[draw.pool].any() and draw.foreign_N[draw.test].any()
    if name == "wrong":
        assert (count == 10).all() and (typed != true).sum() == 20


def test_what_is_counted(cache: Cache) -> None:
    """The figures of one draw, in %, and their mean and spread over several."""
    draw = bench_pools.foreign(cache, np.random.default_rng(1))
    found = bench_pools.measured(cache, draw, 0)
    assert all(0 <= value <= 100 for value in found.values())
    assert found["foreign: AUROC of familiar"] > 80 and found["mct-graph: top-1"] > 60
    told = bench_pools.summed([found, {key: value + 1 for key, value in found.items()}])
    key = "mct-graph: top-1"
    assert told["draws"] == 2 and told[key] == [round(found[key] + 0.5, 1), 0.7]
    assert told["over logistic regression: top-1"][1] == 0


def test_suspected_labels_are_counted_by_the_true_ones() -> None:
    p_nC = np.full((40, 2), 0.1)
    true = np.arange(40) % 2
    p_nC[np.arange(40), true] = 0.9
    typed = true.copy()
    typed[:4] = 1 - typed[:4]
    found = bench_pools.suspects(p_nC, typed, true)
    assert found == {"suspects: precision": 1, "suspects: recall": 1}
