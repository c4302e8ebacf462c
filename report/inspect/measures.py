"""What can be known of views before training: numbers alone, in chunks and on stated samples, so
that 1.3 million rows are no trouble.

Embeddings are (N, D) float16 maps of a view's cache; rows are row numbers, ascending. Similarities
are cosines of centred embeddings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from train.data.splits import spaced

CHUNK, QUERIES = 16_384, 1_024  # rows of a bank and of a question at a time: 64 MB of similarities
BUDGET = 1e12  # products of a search; beyond it fewer rows are asked
SAMPLE = 2_048  # rows for CKA and the spectrum
NEIGHBOURS = 3  # of each row, looked at for near-duplicates
DEVIATIONS = 4.0  # how much closer than usual a near-duplicate is
FEW = 100  # distances that say what is usual
SAME = 3e-3  # the distance of unit vectors below which float16 and float32 tell no difference


def chunks(
    emb_ND: np.ndarray, rows: np.ndarray, size: int = CHUNK
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row numbers, their embeddings as float32)."""
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        yield part, np.take(emb_ND, part, axis=0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Dimensions:
    """Of one view: mean_D, std_D (float64); constant: dimensions of one single value; weak: those
    that vary a thousand times less than the median one; norm_n: the rows' lengths; effective: (sum
    of the covariance's eigenvalues)^2 / sum of their squares, on a sample."""

    mean_D: np.ndarray
    std_D: np.ndarray
    constant: np.ndarray
    weak: np.ndarray
    norm_n: np.ndarray
    effective: float


def dimensions(emb_ND: np.ndarray, rows: np.ndarray) -> Dimensions:
    """One pass over all rows."""
    count, norms = 0, []
    low = high = mean = spread = np.zeros(emb_ND.shape[1])
    for _, x in chunks(emb_ND, rows):
        wide = x.astype(np.float64)
        if not count:
            low, high, mean = x.min(0), x.max(0), wide.mean(0)
        low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
        far = wide.mean(0) - mean  # Chan, Golub & LeVeque 1979: no difference of large sums
        spread = (
            spread
            + ((wide - wide.mean(0)) ** 2).sum(0)
            + far**2 * count * len(x) / (count + len(x))
        )
        mean = mean + far * len(x) / (count + len(x))
        count += len(x)
        norms.append(np.sqrt((wide**2).sum(1)))
    std = np.sqrt(spread / count)
    constant = np.flatnonzero(low == high)
    weak = np.setdiff1d(np.flatnonzero(std < 1e-3 * np.median(std)), constant)
    x = next(chunks(emb_ND, spaced(rows, SAMPLE), SAMPLE))[1].astype(np.float64)
    x -= x.mean(0)
    gram = x @ x.T
    effective = float(np.trace(gram) ** 2 / max((gram**2).sum(), 1e-300))
    return Dimensions(mean, std, constant, weak, np.concatenate(norms), effective)


def units(x_nD: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    """Centred rows of length 1; a row that is the mean stays zero."""
    x = x_nD - mean_D.astype(np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length == 0, 1, length)


def neighbours(
    emb_ND: np.ndarray, mean_D: np.ndarray, bank: np.ndarray, asked: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar rows of `bank` to each row that is `asked`, itself left out: cosines and
    row numbers, (Q, at most k), most similar first, of equal ones the first row."""
    k = min(k, len(bank) - 1 if len(np.intersect1d(bank, asked)) else len(bank))
    cosine = np.full((len(asked), k), -np.inf, np.float32)
    row = np.zeros((len(asked), k), np.int64)
    questions = [units(x, mean_D) for _, x in chunks(emb_ND, asked, QUERIES)]
    for part, x in chunks(emb_ND, bank):
        there = units(x, mean_D).T
        for number, question in enumerate(questions):
            at = slice(number * QUERIES, number * QUERIES + len(question))
            found = question @ there
            place = np.clip(np.searchsorted(part, asked[at]), 0, len(part) - 1)
            own = part[place] == asked[at]
            found[np.flatnonzero(own), place[own]] = -np.inf
            best, told = _highest(found, k)
            both = np.concatenate([cosine[at], told], 1)
            rows = np.concatenate([row[at], part[best]], 1)
            order = np.lexsort((rows, -both))[:, :k]
            cosine[at] = np.take_along_axis(both, order, 1)
            row[at] = np.take_along_axis(rows, order, 1)
    return cosine, row


def _highest(found_QB: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the at most k highest of each row stand, and these, which are struck out. For few
    neighbours several times faster than a partition."""
    line = np.arange(len(found_QB))
    place = np.empty((len(found_QB), min(k, found_QB.shape[1])), np.int64)
    value = np.empty(place.shape, np.float32)
    for rank in range(place.shape[1]):
        place[:, rank] = found_QB.argmax(1)
        value[:, rank] = found_QB[line, place[:, rank]]
        found_QB[line, place[:, rank]] = -np.inf
    return place, value


def vote(label_N: np.ndarray, row_Qk: np.ndarray, classes: int) -> np.ndarray:
    """(Q,) the class of most neighbours, the lowest of equal ones."""
    votes = np.zeros((len(row_Qk), classes), np.int64)
    np.add.at(votes, (np.arange(len(row_Qk))[:, None], label_N[row_Qk]), 1)
    return votes.argmax(1)


def cka(x_nD: np.ndarray, y_nD: np.ndarray) -> float:
    """Linear centred kernel alignment with the unbiased HSIC (Song et al. 2012; Kornblith et al.
    2019): 1 for the same up to rotation and scale, about 0, on either side, for independent ones,
    however wide they are."""
    return _hsic(x_nD, y_nD) / float(np.sqrt(max(_hsic(x_nD, x_nD) * _hsic(y_nD, y_nD), 1e-300)))


def _hsic(x_nD: np.ndarray, y_nD: np.ndarray) -> float:
    n, k, m = len(x_nD), _gram(x_nD), _gram(y_nD)
    apart = k.sum() * m.sum() / (n - 1) / (n - 2)
    across = 2 * k.sum(0) @ m.sum(0) / (n - 2)
    return float(((k * m).sum() + apart - across) / n / (n - 3))


def _gram(x_nD: np.ndarray) -> np.ndarray:
    """Products of the centred rows with one another, none with itself."""
    x = x_nD.astype(np.float64)
    x -= x.mean(0)
    products = x @ x.T
    np.fill_diagonal(products, 0)
    return products


@dataclass(frozen=True)
class Overlap:
    """Errors of two views on the same n rows: how many both have right, only the first, only the
    second, none."""

    both: int
    first: int
    second: int
    none: int

    @property
    def n(self) -> int:
        return self.both + self.first + self.second + self.none

    @property
    def agree(self) -> float:
        """The share of the rows that both have right or both wrong."""
        return (self.both + self.none) / self.n

    @property
    def by_chance(self) -> float:
        """The same if their errors knew nothing of each other."""
        right = (self.both + self.first) * (self.both + self.second)
        wrong = (self.second + self.none) * (self.first + self.none)
        return (right + wrong) / self.n**2

    @property
    def kappa(self) -> float:
        """Cohen's kappa of the two error columns: 1 the same errors, 0 as if they knew nothing of
        each other, below 0 they avoid each other's."""
        if self.by_chance >= 1:
            return float("nan")
        return (self.agree - self.by_chance) / (1 - self.by_chance)

    @property
    def error(self) -> float:
        """The large-sample standard error of kappa (Cohen 1960)."""
        if self.by_chance >= 1:
            return float("nan")
        return float(np.sqrt(self.agree * (1 - self.agree) / self.n) / (1 - self.by_chance))

    @property
    def q(self) -> float:
        """Yule's Q (Kuncheva & Whitaker 2003): 0 for independent errors, 1 where one's errors are
        all among the other's."""
        one, two = self.both * self.none, self.first * self.second
        return (one - two) / (one + two) if one + two else float("nan")

    @property
    def expected(self) -> float:
        """How many none would have right if the errors were independent."""
        return (self.second + self.none) * (self.first + self.none) / self.n


def overlap(right_one: np.ndarray, right_two: np.ndarray) -> Overlap:
    return Overlap(
        int((right_one & right_two).sum()),
        int((right_one & ~right_two).sum()),
        int((~right_one & right_two).sum()),
        int((~right_one & ~right_two).sum()),
    )


def copies(sha256: Sequence[str], rows: np.ndarray) -> list[list[int]]:
    """Groups of rows that are byte for byte the same image, where there are several."""
    groups: dict[str, list[int]] = {}
    for row in rows.tolist():
        if sha256[row]:
            groups.setdefault(sha256[row], []).append(row)
    return [group for group in groups.values() if len(group) > 1]


@dataclass(frozen=True, eq=False)
class Near:
    """Near-duplicates. asked: how many held-out rows were looked at; least_V: each view's least
    cosine; pairs: (held-out row, other row, V cosines), the most similar first."""

    asked: int
    least_V: list[float]
    pairs: list[tuple[int, int, list[float]]]


def near_duplicates(
    emb_V: Sequence[np.ndarray],
    mean_V: Sequence[np.ndarray],
    held: np.ndarray,
    all_rows: np.ndarray,
    role_N: np.ndarray,
    budget: float = BUDGET,
) -> Near:
    """Pairs of a held-out row and one of another role that are far more similar than a row and its
    nearest neighbour usually are, in every view."""
    width = max(emb_ND.shape[1] for emb_ND in emb_V)
    asked = spaced(held, max(256, int(budget / max(1, len(all_rows) * width))))
    candidates: set[tuple[int, int]] = set()
    least_V = []
    for emb_ND, mean_D in zip(emb_V, mean_V, strict=True):
        cosine, row = neighbours(emb_ND, mean_D, all_rows, asked, NEIGHBOURS)
        least_V.append(_least(cosine[:, 0]))
        where = (cosine >= least_V[-1]) & (role_N[row] != role_N[asked][:, None])
        for q, k in np.argwhere(where):
            candidates.add(_test_first(int(asked[q]), int(row[q, k]), role_N))
    pairs = []
    for one, other in candidates:
        cosine_V = []
        for emb_ND, mean_D in zip(emb_V, mean_V, strict=True):
            both = np.take(emb_ND, np.array([one, other]), axis=0).astype(np.float32)
            x = units(both, mean_D)
            cosine_V.append(float(x[0] @ x[1]))
        if np.greater_equal(cosine_V, least_V).all():
            pairs.append((one, other, cosine_V))
    return Near(len(asked), least_V, sorted(pairs, key=lambda pair: (-min(pair[2]), pair[:2])))


def _least(cosine_n: np.ndarray) -> float:
    """The least cosine of a near-duplicate, by those of rows and their nearest neighbours.

    Usual is measured on these very rows: the logarithm of the distance to the nearest neighbour,
    its median, and 1.4826 times the median deviation from it. What lies DEVIATIONS such deviations
    below the median is a near-duplicate: 3 rows of 100,000 if the logarithms were normal, in one
    view.
    """
    distance = np.sqrt(np.maximum(2 - 2 * cosine_n.astype(np.float64), 0))
    known = np.log(distance[distance > SAME])
    if len(known) < FEW:  # too few to say what is usual
        known = np.full(1, np.log(SAME))
    middle = np.median(known)
    least = np.exp(middle - DEVIATIONS * 1.4826 * np.median(np.abs(known - middle)))
    return float(1 - max(least, SAME) ** 2 / 2)


def _test_first(one: int, other: int, role_N: np.ndarray) -> tuple[int, int]:
    return (other, one) if role_N[other] == "test" else (one, other)
