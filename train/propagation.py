"""Label propagation on the graph of nearest neighbours of cached embeddings: a baseline, and the fixed experts of `mct-graph`.

    graph = Graph(emb_V, label, splits, classes, device)    once a run; on one view, or on several side by side
    graph(rows_EB)                                          (E, B, C) log-probabilities, E experiments with labels of their own

Read `spread` for the method, then `Graph`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.reader import gather
from train.splits import Split

ACCURACY = 1e-12                                            # of a solved label distribution, in the unit of Y
NODES = 50_000                                              # of a graph; other rows take the mean of the nearest of them
NEIGHBOURS, ALPHAS = (5, 7, 10, 20), (0.5, 0.8, 0.9, 0.99)  # chosen on validation
LARGE, USUAL = 5_000_000, (7, 0.9)                          # nodes times classes above which these are taken unseen: choosing would take hours
CHUNK = 4_096
LEAST = 1e-6                                                # the probability of a class that no neighbour knows


def spread(features_nD: np.ndarray, y_n: np.ndarray, classes: int, neighbours: int, alphas: Sequence[float]) -> dict[float, np.ndarray]:
    """Label spreading (Zhou et al. 2004, Learning with local and global consistency) on the graph of nearest neighbours, found once.

    features_nD: (n, D) float32 or float64, compared by Euclidean distance. y_n: (n,) int, -1 where unknown. neighbours: links a row makes, at most n - 1 of
    them; two rows are linked, with weight 1, if either makes a link. alphas: in (0, 1), the share that comes from the neighbours.
    Returns alpha -> (n, C) float32, F = (1 - alpha) (I - alpha S)^-1 Y with S = D^-1/2 W D^-1/2, every row divided by its sum. A row that no
    label reaches gets 1 / C. Labelled rows keep no fixed label: the labels of others can outweigh a wrong one. Memory grows with n, time with n^2.
    """
    links = links_of(nearest(features_nD, None, neighbours)[1])
    return {alpha: solve(links, y_n, classes, alpha) for alpha in alphas}


def unit(x_nD: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one."""
    length_n = np.linalg.norm(x_nD, axis=1, keepdims=True)
    return x_nD / np.where(length_n == 0, 1, length_n)


def statistics(emb_ND: np.ndarray, train_rows: np.ndarray, most: int = 65_536) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (D,) float64 over at most `most` evenly spaced training rows. A dimension that hardly varies is not blown up."""
    sample = gather(emb_ND, train_rows[:: -(-len(train_rows) // most)]).astype(np.float64)
    std_D = sample.std(0)
    return sample.mean(0), np.maximum(std_D, 1e-3 * std_D.max(initial=0) + 1e-12)


def standardise(emb_ND: np.ndarray, rows: np.ndarray, mean_D: np.ndarray, std_D: np.ndarray) -> np.ndarray:
    """The given rows as (n, D) float32 of mean 0 and deviation 1 in each dimension, as far as the statistics are theirs."""
    return (gather(emb_ND, rows).astype(np.float32) - mean_D.astype(np.float32)) / std_D.astype(np.float32)


def nearest(x_nD: np.ndarray, query_mD: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and row numbers, (m, at most k) each, nearest first; without a query each row's own neighbours, itself left out."""
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(x_nD) - (query_mD is None))
    if k == 0:
        return np.empty((len(x_nD), 0)), np.empty((len(x_nD), 0), np.int64)
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x_nD).kneighbors(query_mD)        # trees lose above some 15 dimensions


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
        solution, direction, size = np.zeros_like(residual), residual.copy(), (residual ** 2).sum(0)
        for _ in range(10_000):
            if size.max() <= ((1 - alpha) * ACCURACY) ** 2:
                break
            image = direction - alpha * (links @ direction)
            step = size / np.maximum((direction * image).sum(0), np.finfo(float).tiny)         # a solved class has size 0 and stays
            solution += step * direction
            residual -= step * image
            last, size = size, (residual ** 2).sum(0)
            direction = residual + size / np.maximum(last, np.finfo(float).tiny) * direction
        else:
            raise AssertionError((alpha, size))
        F_nC[:, columns] = np.where(solution < 100 * ACCURACY, 0, solution)
    total_n1 = F_nC.sum(1, keepdims=True)
    return np.where(total_n1 > 0, F_nC / np.where(total_n1 > 0, total_n1, 1), np.float32(1 / classes))


def grid_of(nodes: int, classes: int) -> list[tuple[int, float]]:
    """(neighbours, alpha) to choose from."""
    return [(k, alpha) for k in NEIGHBOURS for alpha in ALPHAS] if nodes * classes <= LARGE else [USUAL]


def nearest_on(device: torch.device, x_nD: np.ndarray, query_mD: np.ndarray | None, k: int, chunk: int = 4096) -> np.ndarray:
    """The row numbers of `nearest` for rows of length 1, found on a GPU by products: a large set has some 1e14 of them."""
    if device.type == "cpu":
        return nearest(x_nD, query_mD, k)[1]
    return _by_products(device, x_nD, query_mD, k, chunk)


def _by_products(device: torch.device, x_nD: np.ndarray, query_mD: np.ndarray | None, k: int, chunk: int) -> np.ndarray:
    x, found = torch.from_numpy(x_nD).to(device), []
    queries = x_nD if query_mD is None else query_mD
    for first in range(0, len(queries), chunk):
        likeness = torch.from_numpy(queries[first:first + chunk]).to(device) @ x.T
        if query_mD is None:
            likeness[torch.arange(len(likeness)), torch.arange(first, first + len(likeness))] = -torch.inf
        found.append(likeness.topk(min(k, len(x) - (query_mD is None))).indices.cpu().numpy())
    return np.concatenate(found) if found else np.empty((0, k), np.int64)


def nodes_of(labelled: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The rows of a graph, ascending: all labelled ones, and as many others, evenly spaced, as NODES allows."""
    rest = np.setdiff1d(others, labelled)
    room = max(NODES - len(labelled), 0)
    if len(rest) > room:
        rest = rest[np.linspace(0, len(rest) - 1, room).astype(np.int64)] if room else rest[:0]
    return np.union1d(labelled, rest)


@dataclass(frozen=True)
class Neighbours:
    """The graph of some rows, and where every row stands in it.

    links: S for each number of neighbours; near_NK: (N, K) the nearest nodes of each row, as places among the nodes, its own alone for a node;
    node_N: which rows are nodes; val_mK: the nearest nodes of the validation rows.
    """

    nodes: np.ndarray
    links: dict[int, Any]
    near_NK: Tensor
    node_N: np.ndarray
    val_mK: np.ndarray


class Graph:
    """What the neighbours say: the labels of each experiment, spread over the graph of one view, or of several side by side.

    emb_V: (N, D_v) each; splits: of the E experiments, whose training rows together are the same; val and test rows may be asked for too.
    The number of neighbours and the share that comes from them are those of the best accuracy on each experiment's validation rows: `chosen`.
    All experiments share one graph unless there are more than NODES training rows: then each has one with its own labelled rows among the nodes.
    """

    def __init__(self, emb_V: Sequence[np.ndarray], label_N: np.ndarray, splits: Sequence[Split], classes: int, device: torch.device) -> None:
        train = np.union1d(splits[0].labelled, splits[0].unlabelled)
        scale_V, self.device, self.classes = [statistics(emb_ND, train) for emb_ND in emb_V], device, classes

        def side_by_side(rows: np.ndarray) -> np.ndarray:
            x_V = [unit(standardise(emb_ND, rows, *scale)) for emb_ND, scale in zip(emb_V, scale_V, strict=True)]
            return np.concatenate(x_V, 1) * np.float32(len(x_V) ** -0.5)

        found: dict[bytes, Neighbours] = {}
        solved: dict[int, tuple[Neighbours, Tensor, int, float]] = {}       # experiments of a sweep share their seed's split
        for split in splits:
            if id(split) not in solved:
                nodes = nodes_of(split.labelled, train)
                if nodes.tobytes() not in found:
                    found[nodes.tobytes()] = _neighbours(nodes, train, splits[0], side_by_side, classes, len(label_N), device)
                solved[id(split)] = self._choose(found[nodes.tobytes()], split, label_N)
        self.solved_E = [solved[id(split)] for split in splits]

    def _choose(self, of: Neighbours, split: Split, label_N: np.ndarray) -> tuple[Neighbours, Tensor, int, float]:
        """The graph, (n, C) distributions of its nodes, and the neighbours and alpha that did best on validation."""
        y_n, y_m = np.where(np.isin(of.nodes, split.labelled), label_N[of.nodes], -1), label_N[split.val]
        best, score = None, ()
        for k, alpha in grid_of(len(of.nodes), self.classes):
            p_nC = solve(of.links[k], y_n, self.classes, alpha)
            p_mC = np.maximum(sum(p_nC[at_m] for at_m in of.val_mK[:, :k].T) / min(k, of.val_mK.shape[1]), LEAST)
            told = float((p_mC.argmax(1) == y_m).mean()), float(np.log(p_mC[np.arange(len(y_m)), y_m]).mean())
            if best is None or told > score:
                best, score = (of, torch.from_numpy(p_nC).to(self.device), min(k, of.val_mK.shape[1]), alpha), told
        return best

    @property
    def chosen(self) -> dict[str, Tensor]:
        """neighbours and alpha of each experiment, (E,) each."""
        return {"neighbours": torch.tensor([k for _, _, k, _ in self.solved_E]),
                "alpha": torch.tensor([alpha for _, _, _, alpha in self.solved_E], dtype=torch.float64)}

    def __call__(self, rows_EB: np.ndarray) -> Tensor:
        """(E, B) row numbers, or (B,) for all experiments -> (E, B, C) float32 log-probabilities."""
        if rows_EB.shape[-1] > CHUNK:                       # of all neighbours' distributions in memory at a time
            return torch.cat([self(rows_EB[..., first:first + CHUNK]) for first in range(0, rows_EB.shape[-1], CHUNK)], 1)
        rows_EB = np.broadcast_to(rows_EB, (len(self.solved_E), rows_EB.shape[-1]))
        rows = torch.from_numpy(np.array(rows_EB)).to(self.device, non_blocking=True)
        p_E = []
        for (of, p_nC, k, _), rows_B, on_device_B in zip(self.solved_E, rows_EB, rows, strict=True):
            near_Bk = of.near_NK.index_select(0, on_device_B)[:, :1 if of.node_N[rows_B].all() else k]
            p_E.append(p_nC.index_select(0, near_Bk.flatten()).view(*near_Bk.shape, -1).mean(1))
        return torch.stack(p_E).clamp_min(LEAST).log()


def _neighbours(nodes: np.ndarray, train: np.ndarray, split: Split, features: Callable[[np.ndarray], np.ndarray], classes: int, rows: int,
                device: torch.device) -> Neighbours:
    """features(row numbers) -> (n, D) float32 rows of length 1."""
    x_nD, sizes = features(nodes), {k for k, _ in grid_of(len(nodes), classes)}
    most = min(max(sizes), len(nodes))
    graph_nK = nearest_on(device, x_nD, None, most)
    near_NK, asked = np.zeros((rows, most), np.int32), np.concatenate([np.setdiff1d(train, nodes), split.val, split.test])
    near_NK[nodes] = np.arange(len(nodes))[:, None]
    for first in range(0, len(asked), 65_536):
        part = asked[first:first + 65_536]
        near_NK[part] = nearest_on(device, x_nD, features(part), most)
    node_N = np.zeros(rows, bool)
    node_N[nodes] = True
    return Neighbours(nodes, {k: links_of(graph_nK[:, :k]) for k in sizes}, torch.from_numpy(near_NK).to(device), node_N, near_NK[split.val])
