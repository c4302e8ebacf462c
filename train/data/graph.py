"""Label propagation on the graph of nearest neighbours of cached embeddings: a baseline, and the fixed experts of `mct-graph` and `supervised-graph`.

    graph = Graph(emb_V, label, splits, classes, device)    once a run; on one view, or on several side by side
    graph(rows_EB)                                          (E, B, C) log-probabilities, E experiments with labels of their own

Label spreading (Zhou et al. 2004, Learning with local and global consistency): two rows are linked, with weight 1, if either is among the other's k
nearest; F = (1 - alpha) (I - alpha S)^-1 Y with S = D^-1/2 W D^-1/2, every row divided by its sum. A row that no label reaches gets 1 / C. Labelled rows keep
no fixed label: the labels of others can outweigh a wrong one. Read `links_of` and `solve`, then `Graph`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.data.reader import gather
from train.data.splits import Split

ACCURACY = 1e-12  # of a solved label distribution, in the unit of Y
NODES = (
    50_000  # of a graph, besides the labelled rows; other rows take the mean of the nearest of them
)
NEIGHBOURS, ALPHAS = (5, 7, 10, 20), (0.5, 0.8, 0.9, 0.99)  # chosen on validation
LARGE, USUAL = (
    5_000_000,
    (7, 0.9),
)  # nodes times classes above which these are taken unseen: choosing would take hours
CHUNK = 4_096
LEAST = 1e-6  # the probability of a class that no neighbour knows


def unit(x_nD: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one."""
    length_n = np.linalg.norm(x_nD, axis=1, keepdims=True)
    return x_nD / np.where(length_n == 0, 1, length_n)


def statistics(
    emb_ND: np.ndarray, train_rows: np.ndarray, most: int = 65_536
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (D,) float64 over at most `most` evenly spaced training rows. A dimension that hardly varies is not blown up."""
    sample = gather(emb_ND, train_rows[:: -(-len(train_rows) // most)]).astype(np.float64)
    std_D = sample.std(0)
    return sample.mean(0), np.maximum(std_D, 1e-3 * std_D.max(initial=0) + 1e-12)


def standardise(
    emb_ND: np.ndarray, rows: np.ndarray, mean_D: np.ndarray, std_D: np.ndarray
) -> np.ndarray:
    """The given rows as (n, D) float32 of mean 0 and deviation 1 in each dimension, as far as the statistics are theirs."""
    return (gather(emb_ND, rows).astype(np.float32) - mean_D.astype(np.float32)) / std_D.astype(
        np.float32
    )


def nearest(x_nD: np.ndarray, query_mD: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and row numbers, (m, at most k) each, nearest first; without a query each row's own neighbours, itself left out."""
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(x_nD) - (query_mD is None))
    if k == 0:
        return np.empty((len(x_nD), 0)), np.empty((len(x_nD), 0), np.int64)
    return (
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x_nD).kneighbors(query_mD)
    )  # trees lose above some 15 dimensions


def links_of(row_nk: np.ndarray) -> Any:
    """S = D^-1/2 W D^-1/2 of the symmetric graph W, (n, n) sparse. The eigenvalues lie in [-1, 1]."""
    from scipy.sparse import csr_array, diags_array

    n, k = row_nk.shape
    one_way = csr_array((np.ones(n * k), row_nk.ravel(), np.arange(n + 1) * k), shape=(n, n))
    both = one_way.maximum(one_way.T)
    scale = diags_array(np.maximum(both.sum(0), 1) ** -0.5)
    return (scale @ both @ scale).tocsr()


def solve(links: Any, y_n: np.ndarray, classes: int, alpha: float) -> np.ndarray:
    """(n, C) float32 rows of sum 1: (I - alpha S) F = (1 - alpha) Y by conjugate gradients (Iscen et al. 2019), 64 classes at a time.

    At alpha 0.99 that takes some 70 products with S, the iteration F <- alpha S F + (1 - alpha) Y 2,700. The eigenvalues are at least 1 - alpha, so
    that a residual of (1 - alpha) ACCURACY means an error of ACCURACY; what is below 100 times that is noise, and counts as not reached.
    """
    assert 0 < alpha < 1, alpha
    F_nC = np.empty((len(y_n), classes), np.float32)
    for first in range(0, classes, 64):
        columns = np.arange(first, min(first + 64, classes))
        residual = (1 - alpha) * (y_n[:, None] == columns)
        solution, direction, size = np.zeros_like(residual), residual.copy(), (residual**2).sum(0)
        for _ in range(10_000):
            if size.max() <= ((1 - alpha) * ACCURACY) ** 2:
                break
            image = direction - alpha * (links @ direction)
            step = size / np.maximum(
                (direction * image).sum(0), np.finfo(float).tiny
            )  # a solved class has size 0 and stays
            solution += step * direction
            residual -= step * image
            last, size = size, (residual**2).sum(0)
            direction = residual + size / np.maximum(last, np.finfo(float).tiny) * direction
        else:
            raise AssertionError((alpha, size))
        F_nC[:, columns] = np.where(solution < 100 * ACCURACY, 0, solution)
    total_n1 = F_nC.sum(1, keepdims=True)
    return np.where(
        total_n1 > 0, F_nC / np.where(total_n1 > 0, total_n1, 1), np.float32(1 / classes)
    )


def grid_of(nodes: int, classes: int) -> list[tuple[int, float]]:
    """(neighbours, alpha) to choose from."""
    return (
        [(k, alpha) for k in NEIGHBOURS for alpha in ALPHAS]
        if nodes * classes <= LARGE
        else [USUAL]
    )


def nearest_on(
    device: torch.device, x_nD: np.ndarray, query_mD: np.ndarray | None, k: int, chunk: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """The row numbers of `nearest` for rows of length 1, and what is the smaller the nearer; on a GPU by products: a large set has some 1e14 of them."""
    if device.type == "cpu":
        return nearest(x_nD, query_mD, k)
    return _by_products(device, x_nD, query_mD, k, chunk)


def _by_products(
    device: torch.device, x_nD: np.ndarray, query_mD: np.ndarray | None, k: int, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    x, found = torch.from_numpy(x_nD).to(device), []
    queries, k = x_nD if query_mD is None else query_mD, min(k, len(x_nD) - (query_mD is None))
    for first in range(0, len(queries), chunk):
        likeness = torch.from_numpy(queries[first : first + chunk]).to(device) @ x.T
        if query_mD is None:
            likeness[
                torch.arange(len(likeness)), torch.arange(first, first + len(likeness))
            ] = -torch.inf
        found.append([part.cpu().numpy() for part in likeness.topk(k)])
    likeness_nK, row_nK = (
        (np.concatenate(parts) for parts in zip(*found, strict=True))
        if found
        else np.empty((2, 0, k))
    )
    return -likeness_nK, row_nK.astype(np.int64)


Near = tuple[np.ndarray, np.ndarray]  # how far, and which: (n, K) each, the nearest first


def merge(one: Near, other: Near, most: int) -> Near:
    """The nearest of two lists."""
    far, row = (np.concatenate(parts, 1) for parts in zip(one, other, strict=True))
    order = far.argsort(1, kind="stable")[:, :most]
    return np.take_along_axis(far, order, 1), np.take_along_axis(row, order, 1)


def base_of(train: np.ndarray) -> np.ndarray:
    """The nodes that every experiment's graph has: all training rows, or NODES of them, evenly spaced."""
    return (
        train
        if len(train) <= NODES
        else train[np.linspace(0, len(train) - 1, NODES).astype(np.int64)]
    )


def nodes_of(split: Split) -> np.ndarray:
    """The rows that are an experiment's nodes, in order: the base's, and its own labelled ones besides."""
    base = base_of(np.union1d(split.labelled, split.unlabelled))
    return np.concatenate([base, np.setdiff1d(split.labelled, base)])


@dataclass(frozen=True)
class Place:
    """Where every row stands among the nodes of a graph. near_NK: the nearest nodes of each row, its own alone for a node; node_N: which rows are nodes."""

    nodes: np.ndarray
    near_NK: np.ndarray
    node_N: np.ndarray


class Graph:
    """What the neighbours say: the labels of each experiment, spread over the graph of one view, or of several side by side.

    emb_V: (N, D_v) each; splits: of the E experiments, whose training rows together are the same; val and test rows may be asked for too.
    The number of neighbours and the share that comes from them are those of the best accuracy on each experiment's validation rows: `chosen`.
    All experiments have the base's nodes, and each its own labelled rows besides.
    settled: neighbours and alpha of each experiment, where they were chosen before; then none is chosen, and nodes alone may be asked for.
    """

    def __init__(
        self,
        emb_V: Sequence[np.ndarray],
        label_N: np.ndarray,
        splits: Sequence[Split],
        classes: int,
        device: torch.device,
        settled: Sequence[tuple[int, float]] = (),
    ) -> None:
        train = np.union1d(splits[0].labelled, splits[0].unlabelled)
        scale_V = [statistics(emb_ND, train) for emb_ND in emb_V]
        self.emb_V, self.scale_V, self.label_N, self.classes, self.device = (
            emb_V,
            scale_V,
            label_N,
            classes,
            device,
        )
        base = base_of(train)
        self.grid = grid_of(len(base), classes)
        self.most = min(max(k for k, _ in self.grid), len(base))
        self.grid = [*settled] or self.grid
        self.asked = (
            base[:0]
            if settled
            else np.concatenate([np.setdiff1d(train, base), splits[0].val, splits[0].test])
        )
        x_nD = self._features(base)
        linked, near = nearest_on(device, x_nD, None, self.most), self._nearest(x_nD)
        shared = self._place(base, near), self._links(linked)
        solved: dict[
            int, tuple[Place, Tensor, int, float]
        ] = {}  # experiments of a sweep share their seed's split
        for e, split in enumerate(splits):
            if id(split) not in solved:
                more = np.setdiff1d(split.labelled, base)
                of, links = self._with(more, base, x_nD, linked, near) if len(more) else shared
                solved[id(split)] = self._choose(
                    split, of, links, [settled[e]] if settled else self.grid
                )
        self.solved_E = [solved[id(split)] for split in splits]
        del self.emb_V

    def _features(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) float32 rows of length 1."""
        x_V = [
            unit(standardise(emb_ND, rows, *scale))
            for emb_ND, scale in zip(self.emb_V, self.scale_V, strict=True)
        ]
        return np.concatenate(x_V, 1) * np.float32(len(x_V) ** -0.5)

    def _nearest(self, x_nD: np.ndarray) -> Near:
        """Of all rows that may be asked for."""
        if not len(self.asked):
            return np.empty((0, self.most), np.float32), np.empty((0, self.most), np.int32)
        parts = [
            nearest_on(
                self.device, x_nD, self._features(self.asked[first : first + 65_536]), self.most
            )
            for first in range(0, len(self.asked), 65_536)
        ]
        far, row = (np.concatenate(parts) for parts in zip(*parts, strict=True))
        return far.astype(np.float32), row.astype(np.int32)

    def _with(
        self, more: np.ndarray, base: np.ndarray, x_nD: np.ndarray, linked: Near, near: Near
    ) -> tuple[Place, dict[int, Any]]:
        """The graph with more nodes, of whose neighbours alone need be found."""

        def after(found: Near) -> Near:
            return found[0], found[1] + len(base)

        x_mD = self._features(more)
        old = merge(linked, after(nearest_on(self.device, x_mD, x_nD, self.most)), self.most)
        new = merge(
            nearest_on(self.device, x_nD, x_mD, self.most),
            after(nearest_on(self.device, x_mD, None, self.most)),
            self.most,
        )
        whole = np.concatenate([old[0], new[0]]), np.concatenate([old[1], new[1]])
        return self._place(
            np.concatenate([base, more]), merge(near, after(self._nearest(x_mD)), self.most)
        ), self._links(whole)

    def _place(self, nodes: np.ndarray, near: Near) -> Place:
        near_NK, node_N = (
            np.zeros((len(self.label_N), self.most), np.int32),
            np.zeros(len(self.label_N), bool),
        )
        near_NK[self.asked], near_NK[nodes], node_N[nodes] = (
            near[1],
            np.arange(len(nodes))[:, None],
            True,
        )
        return Place(nodes, near_NK, node_N)

    def _links(self, linked: Near) -> dict[int, Any]:
        return {k: links_of(linked[1][:, :k]) for k in {k for k, _ in self.grid}}

    def _choose(
        self, split: Split, of: Place, links: dict[int, Any], grid: Sequence[tuple[int, float]]
    ) -> tuple[Place, Tensor, int, float]:
        """The place of the rows, (n, C) distributions of the nodes, and the neighbours and alpha of the grid that did best on validation."""
        y_n, y_m = (
            np.where(np.isin(of.nodes, split.labelled), self.label_N[of.nodes], -1),
            self.label_N[split.val],
        )
        best, score = None, ()
        for k, alpha in grid:
            p_nC, kept = solve(links[k], y_n, self.classes, alpha), min(k, self.most)
            p_mC = np.maximum(sum(p_nC[at_m] for at_m in of.near_NK[split.val, :k].T) / kept, LEAST)
            told = (
                float((p_mC.argmax(1) == y_m).mean()),
                float(np.log(p_mC[np.arange(len(y_m)), y_m]).mean()),
            )
            if best is None or told > score:
                best, score = (of, torch.from_numpy(p_nC).to(self.device), kept, alpha), told
        return best

    @property
    def chosen(self) -> dict[str, Tensor]:
        """neighbours and alpha of each experiment, (E,) each."""
        return {
            "neighbours": torch.tensor([k for _, _, k, _ in self.solved_E]),
            "alpha": torch.tensor([alpha for _, _, _, alpha in self.solved_E], dtype=torch.float64),
        }

    def __call__(self, rows_EB: np.ndarray) -> Tensor:
        """(E, B) row numbers, or (B,) for all experiments -> (E, B, C) float32 log-probabilities."""
        if rows_EB.shape[-1] > CHUNK:  # of all neighbours' distributions in memory at a time
            return torch.cat(
                [
                    self(rows_EB[..., first : first + CHUNK])
                    for first in range(0, rows_EB.shape[-1], CHUNK)
                ],
                1,
            )
        rows_EB = np.broadcast_to(rows_EB, (len(self.solved_E), rows_EB.shape[-1]))
        return (
            torch.stack(
                [self._of(*one, rows_B) for one, rows_B in zip(self.solved_E, rows_EB, strict=True)]
            )
            .clamp_min(LEAST)
            .log()
        )

    def _of(self, of: Place, p_nC: Tensor, k: int, alpha: float, rows_B: np.ndarray) -> Tensor:
        """(B, C): a node's own distribution; another row's is the mean of its k nearest nodes'."""

        def at(places: np.ndarray) -> Tensor:
            return torch.from_numpy(places.astype(np.int64)).to(self.device, non_blocking=True)

        p_BC, rest = (
            p_nC.index_select(0, at(of.near_NK[rows_B, 0])),
            np.flatnonzero(~of.node_N[rows_B]),
        )
        if len(rest):
            near_Rk = of.near_NK[rows_B[rest], :k]
            p_BC[at(rest)] = (
                p_nC.index_select(0, at(near_Rk.ravel())).view(*near_Rk.shape, -1).mean(1)
            )
        return p_BC
