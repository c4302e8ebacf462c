"""The index of nearest rows, against scikit-learn's comparison with all; what it says of itself;
and that nothing depends on the number of cores."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from train.algorithm import neighbours
from train.algorithm.neighbours import RECALL, Index, compare_all, cores


@pytest.fixture
def threads() -> Iterator[None]:
    """The test may change how many torch has."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def heaps(n: int = 3000, width: int = 80, seed: int = 0) -> Tensor:
    """(n, width) rows of length 1 around 40 centres, on a few dimensions, with a little noise."""
    chance = np.random.default_rng(seed)
    basis = np.random.default_rng(9).normal(size=(8, width))
    centre = np.random.default_rng(8).normal(size=(40, 8)) * 2
    inner = centre[chance.integers(40, size=n)] + 0.5 * chance.normal(size=(n, 8))
    x = inner @ basis + 0.05 * chance.normal(size=(n, width))
    return torch.nn.functional.normalize(torch.from_numpy(x).float(), dim=1)


def noise_rows() -> Tensor:
    """(3000, 60) rows of length 1 of no structure."""
    chance = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(3000, 60, generator=chance), dim=1)


def oracle(x: Tensor, query: Tensor | None, k: int) -> np.ndarray:
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x.numpy())
    return search.kneighbors(None if query is None else query.numpy(), return_distance=False)


def found_of(row: Tensor, truth: np.ndarray) -> float:
    same = [len(np.intersect1d(one, two)) for one, two in zip(row.numpy(), truth, strict=True)]
    return float(np.mean(same)) / truth.shape[1]


@pytest.mark.parametrize("own", [True, False])
def test_an_index_finds_the_rows_that_scikit_learn_finds(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    monkeypatch.setattr(neighbours, "ASKED", 700)
    x, query = heaps(), None if own else heaps(500, seed=1)
    index, done = Index(x, 10), []
    cosine, row = index(query, 10, done.append)
    assert 0 < index.probes < len(index.centre_LN) / 2 and index.recall >= RECALL
    assert found_of(row, oracle(x, query, 10)) >= 0.99
    asked = x if query is None else query
    torch.testing.assert_close(cosine, (asked[:, None] * x[row]).sum(-1), rtol=0, atol=1e-6)
    assert (cosine.diff(dim=1) <= 0).all() and sum(done) == len(asked)
    if own:
        assert (row != torch.arange(len(x))[:, None]).all()
    assert all(len(set(one)) == 10 for one in row.tolist())
    assert torch.equal(index(query, 4)[1], row[:, :4])


def test_the_recall_is_that_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is poor: as many lists as BUDGET affords."""
    monkeypatch.setattr(neighbours, "BUDGET", 4 * 128 * 3000 * 60)
    noise = noise_rows()
    index = Index(noise, 10)
    truth = oracle(noise, None, 10)
    found = found_of(index(None, 10)[1], truth)
    assert index.probes == 4 and 0.1 < found < 0.8 and abs(index.recall - found) < 0.05


def test_noise_is_compared_with_all_where_that_can_be_afforded() -> None:
    noise = noise_rows()
    index = Index(noise, 10)
    assert index.probes == 0 and index.recall == 1.0
    done: list[int] = []
    assert np.array_equal(index(None, 10, done.append)[1], oracle(noise, None, 10))
    assert sum(done) == 3000


def test_nothing_depends_on_the_number_of_cores(threads: None) -> None:
    x, query = heaps(), heaps(300, seed=1)
    told = []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        index = Index(x, 7)
        told.append([*index(None, 7), *index(query, 7), *compare_all(x, query, 7)])
        assert torch.get_num_threads() == number
    for one, *others in zip(*told, strict=True):
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize(("noise", "longest"), [(0.0, 1024), (1e-3, 20)])
def test_many_equal_rows_are_each_others_neighbours(
    monkeypatch: pytest.MonkeyPatch, noise: float, longest: int
) -> None:
    """Blank images, or nearly so: a list is never longer than LONGEST, so that a row's own may not
    be the first that it looks into, and no row is its own neighbour."""
    monkeypatch.setattr(neighbours, "LONGEST", longest)
    blank = torch.ones(2500, 80) + noise * torch.randn(2500, 80, generator=torch.manual_seed(0))
    x = torch.nn.functional.normalize(torch.cat([heaps(2000), blank]), dim=1)
    index = Index(x, 10)
    assert max(np.diff(index.bound)) <= longest and min(np.diff(index.bound)) > 0
    assert index.bound[-1] == len(x) and index.recall >= RECALL
    cosine, row = index(None, 10)
    assert (row[2000:] >= 2000).all() and (cosine[2000:] > 1 - 1e-5).all()
    assert (row != torch.arange(len(x))[:, None]).all()


def test_all_rows_by_products_are_those_of_scikit_learn() -> None:
    """What a GPU does, done on the CPU."""
    x, query = heaps(300), heaps(70, seed=1)
    for asked in (None, query):
        cosine, row = compare_all(x, asked, 5, chunk=64)
        assert np.array_equal(row, oracle(x, asked, 5))
        assert cosine.shape == row.shape
    assert [len(part) for part in compare_all(x, x[:0], 5)] == [0, 0]
    few = compare_all(x[:3], None, 5)
    assert few[1].shape == (3, 2)


def test_an_error_of_a_core_is_raised_and_the_threads_are_given_back(threads: None) -> None:
    torch.set_num_threads(2)

    def fails(part: int) -> None:
        assert part < 3, part

    with pytest.raises(AssertionError, match="3"), cores() as each:
        each(fails, range(5))
    assert torch.get_num_threads() == 2
