"""Label propagation on the graph of nearest neighbours of cached embeddings: a baseline, and the
fixed experts of `mct-graph` and `supervised-graph`.

    graph = Graph(emb_V, label, splits, classes, device)    once a run; on one view, or on several
                                                            side by side
    graph(rows_EB)                                          (E, B, C) log-probabilities, E
                                                            experiments with labels of their own

Label spreading (Zhou et al. 2004, Learning with local and global consistency) on the graph of Iscen
et al. (2019, Label propagation for deep semi-supervised learning): A links each row with its k
nearest, by the third power of their cosine, and W = A + A'; F = (1 - alpha) (I - alpha S)^-1 Y with
S = D^-1/2 W D^-1/2, every row divided by its sum. A row that no label reaches gets 1 / C. Labelled
rows keep no fixed label: the labels of others can outweigh a wrong one. All training rows are
nodes. Side by side a view has the larger a share in the cosine the surer its own graph is
(`shares_beside`). Read `links_of` and `solve`, then `Graph`.
"""

import contextlib
import functools
import itertools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array  # pyrefly: ignore[untyped-import]  it has no stubs
from torch import Tensor

from base.errors import DataQualityError
from base.progress import Progress
from train.algorithm.evaluate import certainty, share_right, shares_of
from train.algorithm.neighbours import Each, Index, Tell, compare_all, cores, silent
from train.algorithm.propagation import LEAST, log_said, said
from train.data.reader import gather
from train.data.splits import Split

EXACT = 10_000  # nodes up to which each is compared with all
# of links: the power of a cosine, and the least cosine, so that nobody is without a link
POWER, LEAST_LIKE = 3, 0.01
# of the series of `solve`: the most terms, and the share of the first one below which one is left
# out. At alpha 0.99 what is left out is 1e-6 of a distribution
TERMS, LEFT_OUT = 128, 1e-12
NEIGHBOURS, ALPHAS = (5, 7, 10, 20), (0.5, 0.8, 0.9, 0.95, 0.99)  # chosen on validation
# nodes times classes above which USUAL neighbours are taken unseen, and alpha alone is chosen
LARGE = 5_000_000
USUAL = 7
USUALLY = (USUAL, 0.95)  # neighbours and alpha where nobody judges
STEPS = 5  # of a view's share side by side, for each view: finer ones would be one more search each
CHUNK = 4_096
ASKED = 65_536  # rows whose neighbours are looked for at a time
COLUMNS = 64  # classes solved at a time
PARTS, PART = 64, 1_024  # of the nodes, that the cores share: how many, and the least rows of one


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
    asked = len(x_nD) if query_mD is None else len(query_mD)
    if k == 0 or asked == 0:
        return np.empty((asked, k)), np.empty((asked, k), np.int64)
    # a second, which predicting from the cache does without
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415

    # trees lose above some 15 dimensions
    search: Any = NearestNeighbors(n_neighbors=k, algorithm="brute")
    far_mk, row_mk = search.fit(x_nD).kneighbors(query_mD)
    return far_mk, row_mk


class Near(NamedTuple):
    """(n, K) each, the nearest first: the cosines, and which."""

    likeness: np.ndarray
    row: np.ndarray


def nearest_on(device: torch.device, x_nD: np.ndarray, query_mD: np.ndarray | None, k: int) -> Near:
    """`nearest_rows` of rows of length 1; on a GPU by products: a large set has some 1e14."""
    if device.type == "cpu":
        row_mk = nearest_rows(x_nD, query_mD, k)[1]
        return Near(_cosines(x_nD, x_nD if query_mD is None else query_mD, row_mk), row_mk)
    query = None if query_mD is None else torch.from_numpy(query_mD).to(device)
    likeness, row = compare_all(torch.from_numpy(x_nD).to(device), query, k, chunk=4096)
    return Near(likeness.cpu().numpy(), row.cpu().numpy())


def _cosines(x_nD: np.ndarray, query_mD: np.ndarray, row_mk: np.ndarray) -> np.ndarray:
    """(m, k) float32."""
    found_mk = np.empty(row_mk.shape, np.float32)
    for first in range(0, len(row_mk), PART):
        here = slice(first, first + PART)
        found_mk[here] = np.einsum("md,mkd->mk", query_mD[here], x_nD[row_mk[here]])
    return found_mk


def links_of(near_nk: Near) -> Any:
    """S = D^-1/2 W D^-1/2 of the symmetric graph W, (n, n) sparse float32. The eigenvalues lie in
    [-1, 1]."""
    n, k = near_nk.row.shape
    weight_nk = np.maximum(near_nk.likeness, LEAST_LIKE).astype(np.float32) ** POWER
    one_way = csr_array(
        (weight_nk.ravel(), near_nk.row.ravel(), np.arange(n + 1) * k), shape=(n, n)
    )
    both = one_way + one_way.T
    degree_n = both.sum(0, dtype=np.float64)
    scale = diags_array((np.where(degree_n, degree_n, 1) ** -0.5).astype(np.float32))
    return (scale @ both @ scale).tocsr()


class Spread(NamedTuple):
    """What the nodes know: (n, C) float32 rows of sum 1; and how much of the labels has reached
    them, (n,): the sums before they were divided."""

    told_nC: np.ndarray
    reach_n: np.ndarray


def solve(
    links: Any, y_n: np.ndarray, classes: int, alphas: Sequence[float], tell: Tell = silent
) -> list[Spread]:
    """For each alpha: (I - alpha S) F = (1 - alpha) Y.

    F is a Chebyshev series in S, whose coefficients are known: with r = (1 - sqrt(1 - alpha^2)) /
    alpha, 1 / (1 - alpha x) = (1 + sum 2 r^t T_t(x)) / sqrt(1 - alpha^2) on [-1, 1]. So all alphas
    share the products with S, one a term, and nothing is divided by what may be small: a row far
    from all labels is as exact, for its size, as others. tell: a term of COLUMNS classes is done.
    """
    assert all(0 < alpha < 1 for alpha in alphas), alphas
    n = len(y_n)
    spread_A = []
    for _ in alphas:
        spread_A.append(Spread(np.empty((n, classes), np.float32), np.empty(n, np.float32)))
    cuts = np.linspace(0, n, min(-(-n // PART), PARTS) + 1).astype(np.int64).tolist()
    parts = []
    for first, end in itertools.pairwise(cuts):
        parts.append((slice(first, end), links[first:end]))
    with cores() as each:
        for first in range(0, classes, COLUMNS):
            columns = np.arange(first, min(first + COLUMNS, classes))
            Y_nC = (y_n[:, None] == columns).astype(np.float32)
            found = _series(parts, Y_nC, alphas, each, tell)
            for (told_nC, _), F_nC in zip(spread_A, found, strict=True):
                told_nC[:, columns] = F_nC
        rows = []
        for told_nC, reach_n in spread_A:
            rows += [Spread(told_nC[part], reach_n[part]) for part, _ in parts]
        each(_divide, rows)
    return spread_A


def _series(
    parts: Sequence[tuple[slice, Any]],
    Y_nC: np.ndarray,
    alphas: Sequence[float],
    each: Each,
    tell: Tell,
) -> list[np.ndarray]:
    """F for each alpha. parts: rows of S, which the cores share."""
    weight_AT = _weights(alphas)
    F_A = [weight * Y_nC for weight in weight_AT[:, 0]]
    last, now = np.zeros_like(Y_nC), Y_nC
    for term in range(1, TERMS + 1):
        weight_A = weight_AT[:, term]
        if not weight_A.any():
            break
        sums, times = list(zip(F_A, weight_A, strict=True)), 1 if term == 1 else 2
        each(functools.partial(_advance, now, last, times, sums), parts)
        last, now = now, last
        tell(1)
    return F_A


def _weights(alphas: Sequence[float]) -> np.ndarray:
    """(A, TERMS + 1) float32: of each term of the series, 0 where it is left out."""
    alpha_A1, term_T = np.array(alphas)[:, None], np.arange(TERMS + 1)
    root_A1 = (1 - alpha_A1**2) ** 0.5
    share_AT = ((1 - root_A1) / alpha_A1) ** term_T
    weight_AT = (1 - alpha_A1) / root_A1 * share_AT * np.where(term_T == 0, 1, 2)
    return np.where(share_AT >= LEFT_OUT, weight_AT, 0).astype(np.float32)


def _advance(
    now: np.ndarray,
    last: np.ndarray,
    times: int,
    sums: Sequence[tuple[np.ndarray, np.float32]],
    part: tuple[slice, Any],
) -> None:
    """T_t+1 = 2 S T_t - T_t-1, of which the first is S T_0, in place of T_t-1; added to the sums
    with its weight in each."""
    rows, links = part
    new = links @ now
    new *= np.float32(times)
    new -= last[rows]
    last[rows] = new
    for F_nC, weight in sums:
        if weight:
            F_nC[rows] += weight * new


def _divide(part: Spread) -> None:
    """Rows of sum 1, in place; without a share of anything, 1 / C."""
    F_nC, reach_n = part
    np.maximum(F_nC, 0, out=F_nC)
    total_n1 = F_nC.sum(1, keepdims=True)
    F_nC /= np.where(total_n1 > 0, total_n1, 1)
    F_nC[total_n1[:, 0] <= 0] = 1 / F_nC.shape[1]
    reach_n[:] = total_n1[:, 0]


def grid_of(nodes: int, classes: int) -> list[tuple[int, float]]:
    """(neighbours, alpha) to choose from."""
    neighbours = (USUAL,) if nodes * classes > LARGE else NEIGHBOURS
    return [(k, alpha) for k in neighbours for alpha in ALPHAS]


def groups_of(views: int) -> list[list[int]]:
    """The views that each graph is made of."""
    groups = [[view] for view in range(views)]
    return [*groups, list(range(views))] if views > 1 else groups


def nodes_of(split: Split) -> np.ndarray:
    """The rows that are an experiment's nodes, in order: all training rows, the same for all
    experiments of a run."""
    return np.union1d(split.labelled, split.unlabelled)


class Solved(NamedTuple):
    """An experiment's graph: (n, C) distributions of the nodes, and the neighbours and alpha that
    did best on validation; how sure the nodes are with USUAL neighbours and alpha, so that graphs
    can be compared; (n,) how much of each label has reached them, on average."""

    told_nC: Tensor
    neighbours: int
    alpha: float
    sure: float
    reach_n: np.ndarray


Share = tuple[float, ...]  # of sum 1: of each view in the cosine of rows that are side by side


@dataclass(frozen=True, eq=False)
class Nearest:
    """own_nK: the nearest other nodes of each node. near_NK: those of each row that may be asked
    for, of a node itself. recall: which share of them was found."""

    own_nK: Near
    near_NK: np.ndarray
    recall: float


class Graph:
    """What the neighbours say: the labels of each experiment, spread over the graph of one view, or
    of several side by side.

    emb_V: (N, D_v) each; splits: of the E experiments, whose training rows together are the same;
    val and test rows may be asked for too. The number of neighbours and the share that comes from
    them are those of the best score on each experiment's validation rows: `chosen`, `by` one of
    MEASURES; or `by` are those of each experiment, chosen before: then none is chosen, and nodes
    alone may be asked for. shares: of each experiment, of the views; by itself all alike.

    The neighbours are found at once, each experiment is solved when it is first asked for. Raises
    DataQualityError where an embedding is not finite.
    """

    def __init__(
        self,
        emb_V: Sequence[np.ndarray],
        label_N: np.ndarray,
        splits: Sequence[Split],
        classes: int,
        device: torch.device,
        by: str | Sequence[tuple[int, float]] = "top1",
        shares: Sequence[Share] = (),
    ) -> None:
        self.nodes, self.splits = nodes_of(splits[0]), splits
        self.share_E = list(shares) or [equal_shares(len(emb_V))] * len(splits)
        self.share_of = {id(one): share for one, share in zip(splits, self.share_E, strict=True)}
        self.label_N, self.classes, self.device, self.by = label_N, classes, device, by
        self.whole = {id(fold): split for split in splits for fold in split.folds}
        self.agreed: dict[int, tuple[int, float]] = {}  # of a split and its folds
        if isinstance(by, str):
            grid = grid_of(len(self.nodes), classes) if len(splits[0].val) else [USUALLY]
            self.grid_E = [grid] * len(splits)
            self.compared = [USUALLY]  # with other graphs
            asked = np.setdiff1d(np.concatenate([splits[0].val, splits[0].test]), self.nodes)
        else:
            self.grid_E, self.compared, asked = [[one] for one in by], [], self.nodes[:0]
        most = max(max(grid)[0] for grid in self.grid_E)
        self.most = min(most, len(self.nodes))  # neighbours that speak for a row
        self.nearest = {
            share: self._nearest(emb_V, share, asked) for share in dict.fromkeys(self.share_E)
        }
        self.node_N = np.zeros(len(label_N), bool)
        self.node_N[self.nodes] = True
        self.links: dict[tuple[Share, int], Any] = {}
        self.solved: dict[int, Solved] = {}  # experiments of a sweep share their seed's split

    def _nearest(self, emb_V: Sequence[np.ndarray], share: Share, asked: np.ndarray) -> Nearest:
        features = Features(emb_V, self.nodes, share)
        own_nK, near_mK, recall = _neighbours(features, asked, self.most, self.device)
        near_NK = np.zeros((len(self.label_N), self.most), np.int32)
        near_NK[asked] = near_mK
        near_NK[self.nodes] = np.arange(len(self.nodes))[:, None]
        return Nearest(own_nK, near_NK, recall)

    @property
    def recall(self) -> float:
        """The share of the nearest neighbours that were found, 1.0 where all rows were compared."""
        return min(one.recall for one in self.nearest.values())

    def solve(self, experiment: int) -> Solved:
        """The best of the grid on validation: by its score, then by likelihood, then the first."""
        split = self.splits[experiment]
        if id(split) in self.solved:
            return self.solved[id(split)]
        grid = self._grid(split, self.grid_E[experiment])
        asked = list(dict.fromkeys([*grid, *self.compared]))
        best, score, sure = None, (-1.0, 0.0), 0.0
        for spread, k, alpha in self._candidates(split, asked):
            if (k, alpha) == USUALLY:
                sure = certainty(spread.told_nC)
            if (k, alpha) not in grid:
                continue
            found = self._judged(split, spread.told_nC, k) if len(grid) > 1 else score
            if best is None or found > score:
                best, score = (spread, k, alpha), found
        assert best is not None, grid
        spread, k, alpha = best
        told = torch.from_numpy(spread.told_nC).to(self.device)
        reach_n = spread.reach_n / np.float32(max(1, len(split.labelled)))
        solved = Solved(told, min(k, self.most), alpha, sure, reach_n)
        self._keep(split, solved)
        return solved

    def _keep(self, split: Split, solved: Solved) -> None:
        """After the last one nobody needs the links."""
        self.solved[id(split)] = solved
        if len(self.solved) == len({id(split) for split in self.splits}):
            self.links = {}

    def _judged(self, split: Split, told_nC: np.ndarray, k: int) -> tuple[float, float]:
        """The score and the likelihood on validation."""
        return self._worth(self._of(split, told_nC, split.val, k), self.label_N[split.val])

    def _worth(self, p_mC: np.ndarray, y_m: np.ndarray) -> tuple[float, float]:
        """The score `by`, and the mean log-likelihood."""
        assert isinstance(self.by, str), "what is settled is not chosen"
        right = share_right(p_mC.argmax(1), y_m, p_mC.shape[1], self.by)
        likely_m = np.maximum(p_mC[np.arange(len(y_m)), y_m], LEAST)
        return right, float(np.log(likely_m).mean())

    def _of(self, split: Split, told_nC: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
        """(m, C): what nodes that know this say of rows."""
        return _mean_of(told_nC, self.nearest[self.share_of[id(split)]].near_NK[rows], k)

    def _grid(self, split: Split, grid: list[tuple[int, float]]) -> list[tuple[int, float]]:
        """What is tried; with folds, what they have agreed on."""
        whole = self.whole.get(id(split), split)
        if whole.folds and len(grid) > 1:
            return [self._agreed(whole, grid)]
        return grid

    def _agreed(self, whole: Split, grid: Sequence[tuple[int, float]]) -> tuple[int, float]:
        """The best of the grid by the opinions of the split's folds."""
        if id(whole) not in self.agreed:
            told_G: list[list[np.ndarray]] = [[] for _ in grid]
            for fold in whole.folds:
                for told, (spread, k, _) in zip(told_G, self._candidates(fold, grid), strict=True):
                    told.append(self._of(fold, spread.told_nC, fold.val, k))
            y_n = self.label_N[np.concatenate([fold.val for fold in whole.folds])]
            worth_G = [self._worth(np.concatenate(told), y_n) for told in told_G]
            self.agreed[id(whole)] = grid[worth_G.index(max(worth_G))]
        return self.agreed[id(whole)]

    def _candidates(
        self, split: Split, grid: Sequence[tuple[int, float]]
    ) -> Iterator[tuple[Spread, int, float]]:
        """What the nodes know for each of the grid, in its order."""
        share = self.share_of[id(split)]
        own_nK = self.nearest[share].own_nK
        y_n = np.where(np.isin(self.nodes, split.labelled), self.label_N[self.nodes], -1)
        by_k: dict[int, list[float]] = {}
        for k, alpha in grid:
            by_k.setdefault(k, []).append(alpha)
        terms = len(by_k) * TERMS * -(-self.classes // COLUMNS)
        with _progress("spreading labels", len(self.nodes), terms, "terms") as tell:
            for k, alphas in by_k.items():
                if (share, k) not in self.links:
                    near_nk = Near(own_nK.likeness[:, :k], own_nK.row[:, :k])
                    self.links[share, k] = links_of(near_nk)
                spread_A = solve(self.links[share, k], y_n, self.classes, alphas, tell)
                for spread, alpha in zip(spread_A, alphas, strict=True):
                    yield spread, k, alpha

    @property
    def solved_E(self) -> list[Solved]:
        """Of all experiments."""
        return [self.solve(experiment) for experiment in range(len(self.splits))]

    @property
    def chosen(self) -> dict[str, Tensor]:
        """neighbours and alpha of each experiment, (E,) each."""
        alphas = [one.alpha for one in self.solved_E]
        return {
            "neighbours": torch.tensor([one.neighbours for one in self.solved_E]),
            "alpha": torch.tensor(alphas, dtype=torch.float64),
        }

    def told(self, experiment: int, rows: np.ndarray) -> np.ndarray:
        """(m, C) distributions of rows that are no nodes, as they are: 0 where nobody knows of a
        class."""
        one = self.solve(experiment)
        told_nC = one.told_nC.cpu().numpy()
        return self._of(self.splits[experiment], told_nC, rows, one.neighbours)

    def reach(self, rows_EB: np.ndarray) -> np.ndarray:
        """(E, B) row numbers, or (B,) for all experiments -> (E, B) float32: how much of each
        label, on average, reaches these rows: the mean over their nearest nodes."""
        rows_EB = np.broadcast_to(rows_EB, (len(self.splits), rows_EB.shape[-1]))
        found = []
        for one, split, rows_B in zip(self.solved_E, self.splits, rows_EB, strict=True):
            found.append(self._of(split, one.reach_n[:, None], rows_B, one.neighbours)[:, 0])
        return np.stack(found)

    def apart(self, experiment: int) -> np.ndarray:
        """(n,) float32, ascending: the cosine of each node with the nearest other one."""
        likeness_nK = self.nearest[self.share_E[experiment]].own_nK.likeness
        return np.sort(likeness_nK[:, :1].ravel())

    def __call__(self, rows_EB: np.ndarray) -> Tensor:
        """(E, B) row numbers, or (B,) for all experiments -> (E, B, C) float32
        log-probabilities."""
        if rows_EB.shape[-1] > CHUNK:  # of all neighbours' distributions in memory at a time
            parts = []
            for first in range(0, rows_EB.shape[-1], CHUNK):
                parts.append(self(rows_EB[..., first : first + CHUNK]))
            return torch.cat(parts, 1)
        rows_EB = np.broadcast_to(rows_EB, (len(self.splits), rows_EB.shape[-1]))
        found = []
        for one, share, rows_B in zip(self.solved_E, self.share_E, rows_EB, strict=True):
            near_Bk = self._at(self.nearest[share].near_NK[rows_B, : one.neighbours])
            others_R = self._at(np.flatnonzero(~self.node_N[rows_B]))
            found.append(said(one.told_nC, near_Bk, others_R))
        return log_said(found)

    def _at(self, places: np.ndarray) -> Tensor:
        return torch.from_numpy(places.astype(np.int64)).to(self.device, non_blocking=True)


def equal_shares(views: int) -> Share:
    """The same of each."""
    return (1 / views,) * views


def shares_beside(alone: Sequence[Graph]) -> list[Share]:
    """Of each experiment the views' shares side by side: by the square of how sure their own graphs
    are, in steps. Those of folds are their seed's."""
    splits, found = alone[0].splits, {}
    for experiment, split in enumerate(splits):
        if id(split) not in alone[0].whole:
            sure_V = [graph.solve(experiment).sure for graph in alone]
            found[id(split)] = in_steps(shares_of(sure_V).tolist(), STEPS * len(alone))
    return [found[id(alone[0].whole.get(id(split), split))] for split in splits]


def in_steps(share_V: Sequence[float], steps: int) -> Share:
    """The shares as multiples of 1 / steps, of sum 1: what is left by rounding down goes to those
    that lost most."""
    whole_V = np.floor(np.array(share_V) * steps + 1e-9)
    lost_V = np.array(share_V) * steps - whole_V
    left = round(steps - whole_V.sum())
    whole_V[np.argsort(-lost_V, kind="stable")[:left]] += 1
    return tuple((whole_V / steps).tolist())


class Features:
    """Rows of length 1 of one view, or of several side by side, standardised by the nodes. share:
    of the views in their cosine; by itself all alike."""

    def __init__(self, emb_V: Sequence[np.ndarray], nodes: np.ndarray, share: Share = ()) -> None:
        self.emb_V, self.nodes = emb_V, nodes
        self.share = share or equal_shares(len(emb_V))
        self.scale_V = [statistics(emb_ND, nodes) for emb_ND in emb_V]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) float32. Raises DataQualityError where one is not finite."""
        x_nD = np.empty((len(rows), sum(emb_ND.shape[1] for emb_ND in self.emb_V)), np.float32)
        for first in range(0, len(rows), ASKED):
            here, at = slice(first, first + ASKED), 0
            for emb_ND, scale, share in zip(self.emb_V, self.scale_V, self.share, strict=True):
                end, part_bD = at + emb_ND.shape[1], standardise(emb_ND, rows[here], *scale)
                if not np.isfinite(part_bD).all():
                    raise self._not_finite(emb_ND)
                x_nD[here, at:end] = unit(part_bD) * np.float32(share**0.5)
                at = end
        return x_nD

    def _not_finite(self, emb_ND: np.ndarray) -> DataQualityError:
        view = [one is emb_ND for one in self.emb_V].index(True) + 1
        return DataQualityError(
            f"view {view} of {len(self.emb_V)} has embeddings that are not finite, in rows that a "
            "graph needs; embed it anew, or leave it out of VIEWS="
        )


def _neighbours(
    features: Features, asked: np.ndarray, k: int, device: torch.device
) -> tuple[Near, np.ndarray, float]:
    """(n, at most k) nearest other nodes of each node, (m, k) nearest nodes of each row that is
    asked, and which share of them was found."""
    x_nD = features(features.nodes)
    search, recall = functools.partial(nearest_on, device, x_nD), 1.0
    title = "neighbours"
    with _progress(title, len(x_nD), len(x_nD) + len(asked), "images") as tell:
        if device.type == "cpu" and len(x_nD) > max(EXACT, k):
            index = Index(torch.from_numpy(x_nD), k)
            recall = index.recall
            search = functools.partial(_by_index, index, tell)
        found = search(None, k)
        own_nK = Near(found.likeness.astype(np.float32), found.row.astype(np.int32))
        near = [np.empty((0, k), np.int32)]
        for first in range(0, len(asked), ASKED):
            query_mD = features(asked[first : first + ASKED])
            near.append(search(query_mD, k).row.astype(np.int32))
    return own_nK, np.concatenate(near), recall


def _by_index(index: Index, tell: Tell, query_mD: np.ndarray | None, k: int) -> Near:
    query = None if query_mD is None else torch.from_numpy(query_mD)
    likeness, row = index(query, k, tell)
    return Near(likeness.numpy(), row.numpy())


@contextlib.contextmanager
def _progress(title: str, nodes: int, total: int, unit: str) -> Generator[Tell]:
    """Of what takes longer than a few seconds."""
    if nodes <= EXACT:
        yield silent
        return
    with Progress(title, total, unit=unit) as progress:
        yield progress.advance


def _mean_of(told_nC: np.ndarray, near_mK: np.ndarray, k: int) -> np.ndarray:
    """(m, C): the mean of what the k nearest nodes know."""
    near_mk = near_mK[:, :k]
    told_mC = np.zeros((len(near_mk), told_nC.shape[1]), np.float32)
    for at_m in near_mk.T:
        told_mC += told_nC[at_m]
    return told_mC / near_mk.shape[1]
