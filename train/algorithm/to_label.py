"""Which images to label: rules that choose rows by their embeddings, and by what a model says of
them. None is told a label.

    x_nD = joined([clip_nD, dinov2_nD])         the images to choose from
    known_LD = joined([clip_LD, dinov2_LD])     those that have a label, maybe none
    max_herding(x_nD, known_LD, 50)             the first ones, and more where nothing was trained
    u_herding(x_nD, known_LD, p_nC, 50)         the next ones, with a model's probabilities

n images, L labelled ones, D width of all views together, C classes. Each rule returns at most
`count` different row numbers into the n, best first: all n where there are no more. Of equally good
rows the first is taken. `seed` is of what is drawn; the same seed gives the same rows, on any
number of cores.

Of more than MOST rows a random MOST (or four an image that is asked for, if that is more) stand for
all: herding chooses among these, and k-means learns its centres from them. Herding keeps the kernel
of them with a random CELLS // n of them (at least LEAST, and four an image that is asked for): 256
MiB up to 32,768 rows, 512 MiB from 65,536 on, 8 bytes x 65,536 x 4 an image from 256 images on.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from train.algorithm.neighbours import BLOCK, cores
from train.algorithm.streams import Purpose, stream

MOST = 65_536  # rows that are looked at
CELLS, LEAST = 2**25, 1_024  # of the kernel, and of the rows that its mean is taken over
TOGETHER = 64  # rows of the kernel in one product
SAME = 1e-2  # the distance within which two labelled rows are copies: the noise of float16 is less
ROUNDS = 50  # of k-means, at most
PASSES, DROPPED = 3, 0.75  # of DropQuery: how often, and which share of the features
FEW = 25  # DropQuery's candidates an image that is asked for, at least
NEAR, CLUSTERS = 20, 500  # of TypiClust: neighbours, and the most clusters
TIE = 1e-9  # two rows that are like one another alone cover as much, but for rounding
EQUAL = 1e-6  # squared distance of copies, in float32


def joined(emb_V: Sequence[np.ndarray]) -> np.ndarray:
    """(n, D_v) of each view -> (n, D) float32 rows of length 1, in which each view has the same
    share. A row of zeros in a view stays one."""
    parts = []
    for emb_nD in emb_V:
        x_nD = np.asarray(emb_nD, np.float32)
        length_n1 = np.linalg.norm(x_nD, axis=1, keepdims=True)
        parts.append(x_nD / np.where(length_n1 == 0, 1, length_n1))
    return np.concatenate(parts, 1) * np.float32(len(parts) ** -0.5)


def at_random(n: int, count: int, seed: int = 0) -> np.ndarray:
    """What the others are compared with."""
    return _chance(seed).permutation(n)[:count]


def kmeans_centres(x_nD: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """The row nearest to each of `count` centres of k-means, that of the largest cluster first."""
    if count >= len(x_nD):
        return np.arange(len(x_nD))
    x = torch.from_numpy(x_nD)
    centre_KD, own_n = _kmeans(x[_drawn(len(x), max(MOST, 4 * count), seed)], count, seed)
    size_K = own_n.bincount(minlength=count)
    free_n, chosen = np.ones(len(x_nD), bool), []
    for number in size_K.argsort(descending=True, stable=True).tolist():
        centre_D = centre_KD[number]
        far_n = (centre_D.square().sum() - 2 * (x @ centre_D) + x.square().sum(1)).numpy()
        chosen.append(int(np.where(free_n, far_n, np.inf).argmin()))
        free_n[chosen[-1]] = False
    return np.array(chosen)


def max_herding(
    x_nD: np.ndarray,
    known_LD: np.ndarray,
    count: int,
    seed: int = 0,
    h: float = 1.0,
    weight_n: np.ndarray | None = None,
) -> np.ndarray:
    """MaxHerding (Bae et al. 2024, arXiv 2407.12212): each next row is the one that adds most to
    mean_j w_j max_i k(x_i, x_j) over the labelled and chosen i, k = exp(-|x_i - x_j|^2 / h^2). It
    lies where many images are that none of the others is like. weight_n: of each image, 1 where
    None."""
    few = _drawn(len(x_nD), max(MOST, 4 * count), seed)
    x_nD, weight_n = x_nD[few], None if weight_n is None else weight_n[few]
    least = max(CELLS // max(len(few), 1), LEAST, 4 * count)
    rows = _drawn(len(few), least, seed)
    like_Sn = _kernel(x_nD[rows], x_nD, h)
    best_S = np.zeros(len(rows))
    for first in range(0, len(known_LD), BLOCK):
        near_Sb = _kernel(x_nD[rows], known_LD[first : first + BLOCK], h)
        best_S = np.maximum(best_S, near_Sb.max(1))
    weight_S = np.ones(len(rows)) if weight_n is None else weight_n[rows].astype(np.float64)
    return few[_greedy(like_Sn, weight_S, best_S, count)]


def _greedy(
    like_Sn: np.ndarray, weight_S: np.ndarray, best_S: np.ndarray, count: int
) -> np.ndarray:
    """The rows of the n that make the S rows most like one of them, one after another. best_S: how
    like one they are already."""
    gain_n = _gain(like_Sn, weight_S, best_S, np.ones(len(best_S)))
    chosen: list[int] = []
    while len(chosen) < min(count, len(gain_n)):
        chosen.append(int((gain_n >= gain_n.max() - TIE).argmax()))
        then_S = np.maximum(best_S, like_Sn[:, chosen[-1]])
        gain_n -= _gain(like_Sn, weight_S, best_S, then_S)
        gain_n[chosen] = -np.inf
        best_S = then_S
    return np.array(chosen, np.int64)


def u_herding(
    x_nD: np.ndarray,
    known_LD: np.ndarray,
    p_nC: np.ndarray,
    count: int,
    seed: int = 0,
    h: float = 1.0,
) -> np.ndarray:
    """UHerding (Bae et al. 2025, arXiv 2412.20644): MaxHerding in which an image counts by how
    unsure a model is of it, 1 - (first - second probability). p_nC: (n, C), calibrated. The paper
    takes h = smallest_distance(known_LD); 1 is as good here on ten classes and better on sixty
    (docs/labelling.md)."""
    return max_herding(x_nD, known_LD, count, seed, h, 1 - margins(p_nC))


def smallest_distance(known_LD: np.ndarray) -> float:
    """Of two rows that are no copies; at most 1, and 1 where there are not two."""
    x, least = torch.from_numpy(known_LD).double(), 1.0
    for first in range(0, len(x), LEAST):
        far_bL = torch.cdist(x[first : first + LEAST], x)
        least = min(least, float(torch.where(far_bL > SAME, far_bL, 1.0).min()))
    return least


def least_margin(p_nC: np.ndarray, count: int) -> np.ndarray:
    """Margin sampling (Scheffer et al. 2001): the smallest difference of the first and the second
    probability."""
    return margins(p_nC).argsort(kind="stable")[:count]


def margins(p_nC: np.ndarray) -> np.ndarray:
    """(n,) first minus second probability; 1 where there is one class."""
    if p_nC.shape[1] < 2:
        return np.ones(len(p_nC))
    top_n2 = np.partition(p_nC, -2, 1)[:, -2:]
    return top_n2[:, 1] - top_n2[:, 0]


def drop_query(
    x_nD: np.ndarray, choice: Callable[[np.ndarray], np.ndarray], count: int, seed: int = 0
) -> np.ndarray:
    """DropQuery (Gupte et al. 2024, arXiv 2401.14555): of the images whose first choice changes in
    at least two of three looks without three quarters of the features (in one, where those are
    fewer than 25 an image that is asked for), the nearest to the centres of k-means. choice: (m, D)
    rows -> (m,) a model's first choices. Where even these are too few, all others follow behind."""
    chance, clean_n = _chance(seed), choice(x_nD)
    other_n = np.zeros(len(x_nD), np.int64)
    for _ in range(PASSES):
        kept_nD = chance.random(x_nD.shape, np.float32) >= DROPPED
        other_n += choice(x_nD * kept_nD) != clean_n
    least = 2 if (other_n >= 2).sum() >= FEW * count else 1
    rows = np.flatnonzero(other_n >= least)
    chosen = rows[kmeans_centres(x_nD[rows], count, seed)]
    others = np.setdiff1d(np.arange(len(x_nD)), chosen)
    return np.concatenate([chosen, others[np.argsort(-other_n[others], kind="stable")]])[:count]


def typical(x_nD: np.ndarray, known_LD: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """TypiClust (Hacohen et al. 2022, arXiv 2202.02794): of each of L + count clusters (at most
    500) without a label, the largest first, the row with the smallest mean distance to its 20
    nearest in the cluster. Where there are fewer such clusters, again of each cluster the next."""
    both = torch.from_numpy(np.concatenate([x_nD, known_LD]).astype(np.float32))
    n, clusters = len(x_nD), min(len(known_LD) + count, CLUSTERS, len(both))
    _, own = _kmeans(both, clusters, seed)
    known_K = own[n:].bincount(minlength=clusters)
    size_K = own.bincount(minlength=clusters)
    turn_K = np.lexsort((-size_K.numpy(), known_K.numpy()))
    queues = []
    for number in turn_K.tolist():
        members = torch.nonzero(own == number).flatten()
        order = members[_atypical(both[members]).argsort(stable=True)].numpy()
        queues.append(order[order < n].tolist())
    deepest = max(map(len, queues), default=0)
    found = [queue[place] for place in range(deepest) for queue in queues if place < len(queue)]
    return np.array(found[:count], np.int64)


def _chance(seed: int) -> np.random.Generator:
    return stream(seed, Purpose.TO_LABEL)


def _drawn(n: int, most: int, seed: int) -> np.ndarray:
    """All row numbers, or so many of them, in order."""
    return np.arange(n) if n <= most else np.sort(_chance(seed).permutation(n)[:most])


def _kernel(x_SD: np.ndarray, y_nD: np.ndarray, h: float) -> np.ndarray:
    """(S, n) float64 exp(-distance^2 / h^2)."""
    x_SD64 = torch.from_numpy(x_SD).double()
    square_S1 = x_SD64.square().sum(1, keepdim=True)
    like_Sn = np.empty((len(x_SD), len(y_nD)))

    def fill(first: int) -> None:
        y_bD = torch.from_numpy(y_nD[first : first + BLOCK]).double()
        far_Sb = square_S1 + y_bD.square().sum(1) - 2 * (x_SD64 @ y_bD.T)
        like_Sn[:, first : first + BLOCK] = (far_Sb.clamp_min(0) / -(h**2)).exp().numpy()

    with cores() as each:
        each(fill, range(0, len(y_nD), BLOCK))
    return like_Sn


def _gain(
    like_Sn: np.ndarray, weight_S: np.ndarray, before_S: np.ndarray, after_S: np.ndarray
) -> np.ndarray:
    """(n,) the part of what each row could add to the likeness of the rows that lies between two
    states of it."""
    gain_n, changed = np.zeros(like_Sn.shape[1]), np.flatnonzero(after_S > before_S)
    for first in range(0, len(changed), TOGETHER):
        at = changed[first : first + TOGETHER]
        step_B1 = (after_S - before_S)[at, None]
        gain_n += weight_S[at] @ np.clip(like_Sn[at] - before_S[at, None], 0, step_B1)
    return gain_n


def _kmeans(x_nD: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """k-means (Lloyd 1982) from the seeds of k-means++ (Arthur & Vassilvitskii 2007): (K, D)
    centres, and (n,) the number of each row's own. A centre that nobody is close to stays."""
    centre_KD = x_nD[_far_apart(x_nD, count, seed)]
    own_n = torch.full((len(x_nD),), -1)
    with cores() as each:
        for _ in range(ROUNDS):
            closest = functools.partial(_closest, centre_KD)
            before_n, own_n = own_n, torch.cat(each(closest, x_nD.split(BLOCK)))
            if torch.equal(before_n, own_n):
                break
            size_K1 = own_n.bincount(minlength=count)[:, None]
            total_KD = torch.zeros_like(centre_KD).index_add_(0, own_n, x_nD)
            centre_KD = torch.where(size_K1 > 0, total_KD / size_K1.clamp_min(1), centre_KD)
    return centre_KD, own_n


def _closest(centre_KD: Tensor, x_bD: Tensor) -> Tensor:
    """(b,) the number of each row's closest centre."""
    return (x_bD @ centre_KD.T - centre_KD.square().sum(1) / 2).argmax(1)


def _far_apart(x_nD: Tensor, count: int, seed: int) -> Tensor:
    """Rows drawn one after another, each in proportion to its squared distance from the nearest
    that was drawn; where all that is left are copies of these, any."""
    chance = _chance(seed)
    rows, square_n = [int(chance.integers(len(x_nD)))], x_nD.square().sum(1)
    far_n = torch.full((len(x_nD),), torch.inf, dtype=torch.float64)
    while len(rows) < count:
        new_n = square_n + square_n[rows[-1]] - 2 * (x_nD @ x_nD[rows[-1]])
        far_n = torch.minimum(far_n, new_n.clamp_min(0).double())
        far_n[rows] = 0
        sum_n = far_n.cumsum(0)
        if sum_n[-1] <= EQUAL * len(x_nD):
            left = np.setdiff1d(np.arange(len(x_nD)), rows)
            return torch.tensor([*rows, *chance.permutation(left)[: count - len(rows)].tolist()])
        drawn = chance.random() * float(sum_n[-1])
        rows.append(min(int(torch.searchsorted(sum_n, drawn, right=True)), len(x_nD) - 1))
    return torch.tensor(rows)


def _atypical(x_mD: Tensor) -> Tensor:
    """(m,) mean distance to the NEAR nearest others."""
    near = min(NEAR, len(x_mD) - 1)
    if not near:
        return torch.zeros(len(x_mD))
    parts = []
    for x_bD in x_mD.split(LEAST):
        parts.append(torch.cdist(x_bD, x_mD).topk(near + 1, largest=False).values.sum(1) / near)
    return torch.cat(parts)
