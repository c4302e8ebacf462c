"""Label propagation on the graph of nearest neighbours of cached embeddings: a baseline, and the
fixed experts of `mct-graph` and `supervised-graph`.

    graph = Graph(emb_V, label, splits, classes, device)    once a run; on one view, or on several
                                                            side by side
    graph(rows_EB)                                          (E, B, C) log-probabilities, E
                                                            experiments with labels of their own

Label spreading (Zhou et al. 2004, Learning with local and global consistency): two rows are linked,
with weight 1, if either is among the other's k nearest; F = (1 - alpha) (I - alpha S)^-1 Y with
S = D^-1/2 W D^-1/2, every row divided by its sum. A row that no label reaches gets 1 / C. Labelled
rows keep no fixed label: the labels of others can outweigh a wrong one. Read `links_of` and
`solve`, then `Graph`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array  # pyrefly: ignore[untyped-import]  it has no stubs
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from train.algorithm.evaluate import share_right
from train.algorithm.propagation import LEAST, log_said, said
from train.data.reader import gather
from train.data.splits import Split, spaced

ACCURACY = 1e-12  # of a solved label distribution, in the unit of Y
# of a graph, besides the labelled rows; other rows take the mean of the nearest of them
NODES = 50_000
NEIGHBOURS, ALPHAS = (5, 7, 10, 20), (0.5, 0.8, 0.9, 0.99)  # chosen on validation
# nodes times classes above which USUAL is taken unseen: choosing would take hours
LARGE = 5_000_000
USUAL = (7, 0.9)
CHUNK = 4_096
ASKED = 65_536  # rows whose neighbours are looked for at a time
TINY = np.finfo(float).tiny


def unit(x_nD: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one."""
    length_n = np.linalg.norm(x_nD, axis=1, keepdims=True)
    return x_nD / np.where(length_n == 0, 1, length_n)


def statistics(
    emb_ND: np.ndarray, train_rows: np.ndarray, most: int = 65_536
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (D,) float64 over at most `most` evenly spaced training rows. A dimension
    that hardly varies is not blown up."""
    sample = gather(emb_ND, train_rows[:: -(-len(train_rows) // most)]).astype(np.float64)
    std_D = sample.std(0)
    return sample.mean(0), np.maximum(std_D, 1e-3 * std_D.max(initial=0) + 1e-12)


def standardise(
    emb_ND: np.ndarray, rows: np.ndarray, mean_D: np.ndarray, std_D: np.ndarray
) -> np.ndarray:
    """The given rows as (n, D) float32 of mean 0 and deviation 1 in each dimension, as far as the
    statistics are theirs."""
    x_nD = gather(emb_ND, rows).astype(np.float32)
    return (x_nD - mean_D.astype(np.float32)) / std_D.astype(np.float32)


def nearest_rows(
    x_nD: np.ndarray, query_mD: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distances and row numbers, (m, at most k) each, nearest first; without a query each row's own
    neighbours, itself left out."""
    k = min(k, len(x_nD) - (query_mD is None))
    if k == 0:
        return np.empty((len(x_nD), 0)), np.empty((len(x_nD), 0), np.int64)
    # trees lose above some 15 dimensions
    search: Any = NearestNeighbors(n_neighbors=k, algorithm="brute")
    far_mk, row_mk = search.fit(x_nD).kneighbors(query_mD)
    return far_mk, row_mk


def links_of(row_nk: np.ndarray) -> Any:
    """S = D^-1/2 W D^-1/2 of the symmetric graph W, (n, n) sparse. The eigenvalues lie in [-1,
    1]."""
    n, k = row_nk.shape
    one_way = csr_array((np.ones(n * k), row_nk.ravel(), np.arange(n + 1) * k), shape=(n, n))
    both = one_way.maximum(one_way.T)
    scale = diags_array(np.maximum(both.sum(0), 1) ** -0.5)
    return (scale @ both @ scale).tocsr()


def solve(links: Any, y_n: np.ndarray, classes: int, alpha: float) -> np.ndarray:
    """(n, C) float32 rows of sum 1: (I - alpha S) F = (1 - alpha) Y by conjugate gradients (Iscen
    et al. 2019), 64 classes at a time.

    At alpha 0.99 that takes some 70 products with S, the iteration F <- alpha S F + (1 - alpha) Y
    2,700. What is below 100 times ACCURACY is noise, and counts as not reached.
    """
    assert 0 < alpha < 1, alpha
    F_nC = np.empty((len(y_n), classes), np.float32)
    for first in range(0, classes, 64):
        columns = np.arange(first, min(first + 64, classes))
        solution = _conjugate(links, (1 - alpha) * (y_n[:, None] == columns), alpha)
        F_nC[:, columns] = np.where(solution < 100 * ACCURACY, 0, solution)
    total_n1 = F_nC.sum(1, keepdims=True)
    reached_n1 = total_n1 > 0
    share_nC = F_nC / np.where(reached_n1, total_n1, 1)
    return np.where(reached_n1, share_nC, np.float32(1 / classes))


def _conjugate(links: Any, residual: np.ndarray, alpha: float) -> np.ndarray:
    """F of (I - alpha S) F = residual. The eigenvalues are at least 1 - alpha, so that a residual
    of (1 - alpha) ACCURACY means an error of ACCURACY."""
    solution, direction = np.zeros_like(residual), residual.copy()
    size = (residual**2).sum(0)
    for _ in range(10_000):
        if size.max() <= ((1 - alpha) * ACCURACY) ** 2:
            return solution
        image = direction - alpha * (links @ direction)
        # a solved class has size 0 and stays
        step = size / np.maximum((direction * image).sum(0), TINY)
        solution += step * direction
        residual -= step * image
        last, size = size, (residual**2).sum(0)
        direction = residual + size / np.maximum(last, TINY) * direction
    raise AssertionError((alpha, size))


def grid_of(nodes: int, classes: int) -> list[tuple[int, float]]:
    """(neighbours, alpha) to choose from."""
    if nodes * classes > LARGE:
        return [USUAL]
    return [(k, alpha) for k in NEIGHBOURS for alpha in ALPHAS]


def nearest_on(
    device: torch.device, x_nD: np.ndarray, query_mD: np.ndarray | None, k: int, chunk: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """What is the smaller the nearer, and the row numbers of `nearest_rows` for rows of length 1;
    on a GPU by products: a large set has some 1e14 of them."""
    if device.type == "cpu":
        return nearest_rows(x_nD, query_mD, k)
    return _by_products(device, x_nD, query_mD, k, chunk)


def _by_products(
    device: torch.device, x_nD: np.ndarray, query_mD: np.ndarray | None, k: int, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    x = torch.from_numpy(x_nD).to(device)
    queries = x_nD if query_mD is None else query_mD
    k = min(k, len(x_nD) - (query_mD is None))
    far, rows = [np.empty((0, k), np.float32)], [np.empty((0, k), np.int64)]
    for first in range(0, len(queries), chunk):
        likeness = torch.from_numpy(queries[first : first + chunk]).to(device) @ x.T
        if query_mD is None:
            own = torch.arange(len(likeness))
            likeness[own, own + first] = -torch.inf
        values, places = likeness.topk(k)
        far.append(-values.cpu().numpy())
        rows.append(places.cpu().numpy())
    return np.concatenate(far), np.concatenate(rows)


Near = tuple[np.ndarray, np.ndarray]  # how far, and which: (n, K) each, the nearest first


def merge(one: Near, other: Near, most: int) -> Near:
    """The nearest of two lists."""
    far = np.concatenate([one[0], other[0]], 1)
    row = np.concatenate([one[1], other[1]], 1)
    order = far.argsort(1, kind="stable")[:, :most]
    return np.take_along_axis(far, order, 1), np.take_along_axis(row, order, 1)


def base_of(train: np.ndarray) -> np.ndarray:
    """The nodes that every experiment's graph has: all training rows, or NODES of them, evenly
    spaced."""
    return spaced(train, NODES)


def nodes_of(split: Split) -> np.ndarray:
    """The rows that are an experiment's nodes, in order: the base's, and its own labelled ones
    besides."""
    base = base_of(np.union1d(split.labelled, split.unlabelled))
    return np.concatenate([base, np.setdiff1d(split.labelled, base)])


@dataclass(frozen=True)
class Place:
    """Where every row stands among the nodes of a graph. near_NK: the nearest nodes of each row,
    its own alone for a node; node_N: which rows are nodes."""

    nodes: np.ndarray
    near_NK: np.ndarray
    node_N: np.ndarray


class Solved(NamedTuple):
    """An experiment's graph: the place of the rows, (n, C) distributions of the nodes, and the
    neighbours and alpha that did best on validation."""

    place: Place
    told_nC: Tensor
    neighbours: int
    alpha: float


class Graph:
    """What the neighbours say: the labels of each experiment, spread over the graph of one view, or
    of several side by side.

    emb_V: (N, D_v) each; splits: of the E experiments, whose training rows together are the same;
    val and test rows may be asked for too. The number of neighbours and the share that comes from
    them are those of the best score on each experiment's validation rows: `chosen`, `by` one of
    MEASURES. All experiments have the base's nodes, and each its own labelled rows besides.
    settled: neighbours and alpha of each experiment, where they were chosen before; then none is
    chosen, and nodes alone may be asked for.
    """

    def __init__(
        self,
        emb_V: Sequence[np.ndarray],
        label_N: np.ndarray,
        splits: Sequence[Split],
        classes: int,
        device: torch.device,
        settled: Sequence[tuple[int, float]] = (),
        by: str = "top1",
    ) -> None:
        train = np.union1d(splits[0].labelled, splits[0].unlabelled)
        base = base_of(train)
        self.emb_V, self.label_N = emb_V, label_N
        self.classes, self.device, self.by = classes, device, by
        self.scale_V = [statistics(emb_ND, train) for emb_ND in emb_V]
        self.grid = grid_of(len(base), classes)
        self.most = min(max(k for k, _ in self.grid), len(base))
        self.asked = np.concatenate([np.setdiff1d(train, base), splits[0].val, splits[0].test])
        if settled:
            self.grid, self.asked = [*settled], base[:0]
        x_nD = self._features(base)
        linked, near = nearest_on(device, x_nD, None, self.most), self._nearest(x_nD)
        shared = self._place(base, near), self._links(linked)
        solved: dict[int, Solved] = {}  # experiments of a sweep share their seed's split
        for e, split in enumerate(splits):
            if id(split) in solved:
                continue
            more = np.setdiff1d(split.labelled, base)
            place, links = self._with(more, base, x_nD, linked, near) if len(more) else shared
            grid = [settled[e]] if settled else self.grid
            solved[id(split)] = self._choose(split, place, links, grid)
        self.solved_E = [solved[id(split)] for split in splits]
        del self.emb_V

    def _features(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) float32 rows of length 1."""
        x_V = []
        for emb_ND, scale in zip(self.emb_V, self.scale_V, strict=True):
            x_V.append(unit(standardise(emb_ND, rows, *scale)))
        return np.concatenate(x_V, 1) * np.float32(len(x_V) ** -0.5)

    def _nearest(self, x_nD: np.ndarray) -> Near:
        """Of all rows that may be asked for."""
        if not len(self.asked):
            return np.empty((0, self.most), np.float32), np.empty((0, self.most), np.int32)
        far, row = [], []
        for first in range(0, len(self.asked), ASKED):
            query_mD = self._features(self.asked[first : first + ASKED])
            far_mK, row_mK = nearest_on(self.device, x_nD, query_mD, self.most)
            far.append(far_mK.astype(np.float32))
            row.append(row_mK.astype(np.int32))
        return np.concatenate(far), np.concatenate(row)

    def _with(
        self, more: np.ndarray, base: np.ndarray, x_nD: np.ndarray, linked: Near, near: Near
    ) -> tuple[Place, dict[int, Any]]:
        """The graph with more nodes, of whose neighbours alone need be found."""

        def after(found: Near) -> Near:
            return found[0], found[1] + len(base)

        x_mD, device, most = self._features(more), self.device, self.most
        old = merge(linked, after(nearest_on(device, x_mD, x_nD, most)), most)
        own = after(nearest_on(device, x_mD, None, most))
        new = merge(nearest_on(device, x_nD, x_mD, most), own, most)
        whole = np.concatenate([old[0], new[0]]), np.concatenate([old[1], new[1]])
        everybody = merge(near, after(self._nearest(x_mD)), most)
        return self._place(np.concatenate([base, more]), everybody), self._links(whole)

    def _place(self, nodes: np.ndarray, near: Near) -> Place:
        near_NK = np.zeros((len(self.label_N), self.most), np.int32)
        near_NK[self.asked] = near[1]
        near_NK[nodes] = np.arange(len(nodes))[:, None]
        node_N = np.zeros(len(self.label_N), bool)
        node_N[nodes] = True
        return Place(nodes, near_NK, node_N)

    def _links(self, linked: Near) -> dict[int, Any]:
        """Of each number of neighbours."""
        return {k: links_of(linked[1][:, :k]) for k in {k for k, _ in self.grid}}

    def _choose(
        self,
        split: Split,
        place: Place,
        links: dict[int, Any],
        grid: Sequence[tuple[int, float]],
    ) -> Solved:
        """The best of the grid on validation: by its score, then by likelihood, then the first."""
        known_n = np.isin(place.nodes, split.labelled)
        y_n = np.where(known_n, self.label_N[place.nodes], -1)
        best, score = None, (-1.0, 0.0)
        for k, alpha in grid:
            p_nC, kept = solve(links[k], y_n, self.classes, alpha), min(k, self.most)
            told_mC = _told(p_nC, place.near_NK[split.val, :k], kept)
            found = _worth(told_mC, self.label_N[split.val], self.by)
            if best is None or found > score:
                told_nC = torch.from_numpy(p_nC).to(self.device)
                best, score = Solved(place, told_nC, kept, alpha), found
        assert best is not None, grid
        return best

    @property
    def chosen(self) -> dict[str, Tensor]:
        """neighbours and alpha of each experiment, (E,) each."""
        alphas = [one.alpha for one in self.solved_E]
        return {
            "neighbours": torch.tensor([one.neighbours for one in self.solved_E]),
            "alpha": torch.tensor(alphas, dtype=torch.float64),
        }

    def __call__(self, rows_EB: np.ndarray) -> Tensor:
        """(E, B) row numbers, or (B,) for all experiments -> (E, B, C) float32
        log-probabilities."""
        if rows_EB.shape[-1] > CHUNK:  # of all neighbours' distributions in memory at a time
            parts = []
            for first in range(0, rows_EB.shape[-1], CHUNK):
                parts.append(self(rows_EB[..., first : first + CHUNK]))
            return torch.cat(parts, 1)
        rows_EB = np.broadcast_to(rows_EB, (len(self.solved_E), rows_EB.shape[-1]))
        found = []
        for one, rows_B in zip(self.solved_E, rows_EB, strict=True):
            near_Bk = self._at(one.place.near_NK[rows_B, : one.neighbours])
            others_R = self._at(np.flatnonzero(~one.place.node_N[rows_B]))
            found.append(said(one.told_nC, near_Bk, others_R))
        return log_said(found)

    def _at(self, places: np.ndarray) -> Tensor:
        return torch.from_numpy(places.astype(np.int64)).to(self.device, non_blocking=True)


def _told(p_nC: np.ndarray, near_mk: np.ndarray, k: int) -> np.ndarray:
    """(m, C): the mean of what the k nearest nodes know."""
    told_mC = np.zeros((len(near_mk), p_nC.shape[1]), np.float32)
    for at_m in near_mk.T:
        told_mC += p_nC[at_m]
    return np.maximum(told_mC / k, LEAST)


def _worth(p_mC: np.ndarray, y_m: np.ndarray, by: str) -> tuple[float, float]:
    """The score `by`, and the mean log-likelihood."""
    right = share_right(p_mC.argmax(1), y_m, p_mC.shape[1], by)
    return right, float(np.log(p_mC[np.arange(len(y_m)), y_m]).mean())
