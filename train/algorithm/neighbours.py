"""The nearest of many rows, by an index that knows what it misses; torch and arithmetic.

    index = Index(x_MD, k)                      of rows of length 1; k: the most that is asked for
    likeness_nk, row_nk = index(query_nD, k)    cosines and row numbers, the nearest first
    likeness_Mk, row_Mk = index(None, k)        of each row, itself left out

An inverted file (Sivic & Zisserman 2003, Video Google; Jegou et al. 2011): the rows lie in lists
around the centres of a k-means, and looked into are the lists whose centres are nearest to what is
asked. How many is no setting: of a sample of rows the true neighbours are found by comparing them
with all. A neighbour is found just if its list is looked into, so that the least number of lists
with a recall of RECALL is known before anything is searched. Where that would be most of them, as
for noise, all rows are compared; where that would take more than BUDGET, `recall` says what is
found.

Each product is computed by one thread, several at a time: nothing depends on the number of cores.
The rows that share a list are compared with it in one product, which is why this is faster than
libraries that answer one question after another (docs/training.md). Read `Index.__init__`, then
`Index._compare`.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

RECALL = 0.995  # that is aimed at, on SAMPLE rows
SAMPLE = 1_000
BUDGET = 1e13  # products of two numbers; some minutes
LIST, LONGEST = 128, 1_024  # rows of a list, on average and at most
NARROW = 64  # dimensions, of the largest variance, in which lists are made
LEARN, ROUNDS = 32, 6  # rows a list from which the centres are learnt, and how often
BLOCK = 4_096
TOGETHER = 64  # blocks between two signs of life
CPU = torch.device("cpu")
ASKED = 16_384  # rows that look into the lists at a time
EQUAL = 1e-6  # of cosines in float32

Each = Callable[[Callable[..., Any], Iterable[Any]], list[Any]]
Tell = Callable[[int], None]  # called with the number of rows that are done


def silent(rows: int) -> None:
    """Tell nobody."""


@contextlib.contextmanager
def cores(device: torch.device = CPU) -> Generator[Each]:
    """`with cores() as each: each(function, parts)` calls the function for each part, as many at a
    time as torch has threads, each of which computes alone; one at a time on a GPU."""
    before = torch.get_num_threads()
    threads = before if device.type == "cpu" else 1
    if threads == 1:
        yield lambda function, parts: list(map(function, parts))
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda function, parts: list(pool.map(function, parts))
    finally:
        torch.set_num_threads(before)


def compare_all(
    x_MD: Tensor, query_nD: Tensor | None, k: int, tell: Tell = silent, chunk: int = 512
) -> tuple[Tensor, Tensor]:
    """What an Index gives, of all rows, on the device of x_MD: (n, at most k) each."""
    asked_nD = x_MD if query_nD is None else query_nD
    k = min(k, len(x_MD) - (query_nD is None))

    def part(first: int) -> tuple[Tensor, Tensor]:
        likeness_BM = asked_nD[first : first + chunk] @ x_MD.T
        if query_nD is None:
            own = torch.arange(len(likeness_BM), device=x_MD.device)
            likeness_BM[own, own + first] = -torch.inf
        found = likeness_BM.topk(k)
        return found.values, found.indices

    found = []
    with cores(x_MD.device) as each:
        for first in range(0, max(len(asked_nD), 1), chunk * TOGETHER):
            ends = min(first + chunk * TOGETHER, max(len(asked_nD), 1))
            found += each(part, range(first, ends, chunk))
            tell(min(ends, len(asked_nD)) - first)
    return torch.cat([one[0] for one in found]), torch.cat([one[1] for one in found])


class Index:
    """Of x_MD, (M, D) float32 rows of length 1 on the CPU, of which there are more than k.

    recall: the share of the k nearest that it finds, on a sample; 1.0 where it compares all.
    probes: how many lists are looked into, 0 where all rows are compared.
    """

    def __init__(self, x_MD: Tensor, k: int) -> None:
        assert len(x_MD) > k, (len(x_MD), k)
        self.x_MD = x_MD
        with cores() as each:
            self.mean_D, self.basis_DN = _directions(x_MD[_spaced(len(x_MD), BLOCK * 4)])
            narrow_MN = torch.cat(each(self._narrow, x_MD.split(BLOCK)))
            centre_LN = _centres(narrow_MN, max(1, len(x_MD) // LIST), each)
            own_M = torch.cat(
                each(lambda x_BN: _closest(x_BN, centre_LN, 1), narrow_MN.split(BLOCK))
            )
            self.order_M = own_M[:, 0].argsort(stable=True)
            self.bound, self.centre_LN = _lists(
                own_M[:, 0].bincount(minlength=len(centre_LN)), centre_LN
            )
            rank_Sk = self._needed(narrow_MN, k, each)
        self.probes = self._enough(rank_Sk, k)
        self.recall = float((rank_Sk < self.probes).double().mean()) if self.probes else 1.0

    def __call__(
        self, query_nD: Tensor | None, k: int, tell: Tell = silent
    ) -> tuple[Tensor, Tensor]:
        """Cosines and row numbers, (n, k) each."""
        if not self.probes:
            return compare_all(self.x_MD, query_nD, k, tell)
        asked_nD = self.x_MD if query_nD is None else query_nD
        value_nk = torch.empty(len(asked_nD), k)
        row_nk = torch.empty(len(asked_nD), k, dtype=torch.int64)
        if not len(asked_nD):
            return value_nk, row_nk
        with cores() as each:
            visit_nP = torch.cat(each(self._visit, asked_nD.split(BLOCK)))
            turn_n = visit_nP[:, 0].argsort(stable=True)  # those of a list together
            for rows_B in turn_n.split(ASKED):
                visit_BP, own = visit_nP[rows_B], query_nD is None
                found = self._compare(asked_nD, rows_B, own, visit_BP, k, each)
                value_nk[rows_B], row_nk[rows_B] = found
                tell(len(rows_B))
        return value_nk, row_nk

    def _compare(
        self, asked_nD: Tensor, rows_B: Tensor, own: bool, visit_BP: Tensor, k: int, each: Each
    ) -> tuple[Tensor, Tensor]:
        """Each list with the rows that look into it: what is nearer than the k nearest of a row's
        first list is kept, and of that the k nearest."""
        own_B = rows_B if own else torch.full_like(rows_B, -1)
        value_Bk = torch.full((len(rows_B), k), -torch.inf)
        row_Bk = torch.zeros(len(rows_B), k, dtype=torch.int64)

        def begin(at_q: Tensor, members_m: Tensor, likeness_qm: Tensor) -> None:
            likeness_qm[own_B[at_q, None] == members_m] = -torch.inf
            found = likeness_qm.topk(min(k, len(members_m)))
            kept = found.indices.shape[1]
            value_Bk[at_q, :kept], row_Bk[at_q, :kept] = found.values, members_m[found.indices]

        def go_on(at_q: Tensor, members_m: Tensor, likeness_qm: Tensor) -> list[Tensor]:
            q, m = torch.nonzero(likeness_qm > value_Bk[at_q, -1:], as_tuple=True)
            other = own_B[at_q[q]] != members_m[m]
            q, m = q[other], m[other]
            return [at_q[q], likeness_qm[q, m], members_m[m]]

        def look(function: Callable, visit_Bp: Tensor) -> list[Any]:
            by_list = visit_Bp.flatten().argsort(stable=True)
            lists = torch.arange(len(self.centre_LN) + 1)
            bound = torch.searchsorted(visit_Bp.flatten()[by_list], lists).tolist()

            def one(number: int) -> Any:
                at_q = by_list[bound[number] : bound[number + 1]] // visit_Bp.shape[1]
                members_m = self.order_M[self.bound[number] : self.bound[number + 1]]
                return function(at_q, members_m, asked_nD[rows_B[at_q]] @ self.x_MD[members_m].T)

            return each(one, [one for one in lists[:-1].tolist() if bound[one] < bound[one + 1]])

        look(begin, visit_BP[:, :1])
        parts = look(go_on, visit_BP[:, 1:])
        line_k = torch.arange(len(rows_B)).repeat_interleave(k)
        first = [line_k, value_Bk.flatten(), row_Bk.flatten()]
        line, value, row = (torch.cat(many) for many in zip(first, *parts, strict=True))
        order = value.argsort(descending=True, stable=True)
        order = order[line[order].argsort(stable=True)]
        count_B = line.bincount(minlength=len(rows_B))
        begins_B1 = (count_B.cumsum(0) - count_B)[:, None]
        best_Bk = order[begins_B1 + torch.arange(k)]
        return value[best_Bk], row[best_Bk]

    def _narrow(self, x_BD: Tensor) -> Tensor:
        return (x_BD - self.mean_D) @ self.basis_DN

    def _visit(self, x_BD: Tensor) -> Tensor:
        """(B, P): the lists to look into, the nearest first."""
        return _closest(self._narrow(x_BD), self.centre_LN, self.probes)

    def _needed(self, narrow_MN: Tensor, k: int, each: Each) -> Tensor:
        """(S, k): how many nearer lists there are than that of each of the k nearest rows of a
        sample. Of rows that are equally near those in the nearest lists count."""
        sample = _spaced(len(self.x_MD), SAMPLE)
        sizes = torch.tensor(self.bound).diff()
        of_row_M = torch.empty_like(self.order_M)
        of_row_M[self.order_M] = torch.arange(len(sizes)).repeat_interleave(sizes)

        def ranks(rows_B: Tensor) -> Tensor:
            likeness_BM = self.x_MD[rows_B] @ self.x_MD.T
            likeness_BM[torch.arange(len(rows_B)), rows_B] = -torch.inf
            least_B = likeness_BM.topk(k).values[:, -1] - EQUAL
            visit_BL = _closest(narrow_MN[rows_B], self.centre_LN, len(self.centre_LN))
            rank_BL = visit_BL.argsort(1)
            found = []
            for likeness_M, least, rank_L in zip(likeness_BM, least_B, rank_BL, strict=True):
                near = torch.nonzero(likeness_M >= least).flatten()
                found.append(rank_L[of_row_M[near]].sort().values[:k])
            return torch.stack(found)

        return torch.cat(each(ranks, sample.split(32)))

    def _enough(self, rank_Sk: Tensor, k: int) -> int:
        """The least number of lists that gives RECALL and, whatever they are, more than k rows; 0
        where all rows had better be compared."""
        rows, width = self.x_MD.shape
        sizes = torch.tensor(self.bound).diff()
        least = int((sizes.sort().values.cumsum(0) <= k).sum()) + 1
        wanted = int(rank_Sk.flatten().double().quantile(RECALL, interpolation="higher")) + 1
        affordable = int(BUDGET / (rows * width * LIST))
        if wanted * LIST > rows / 2 and rows * rows * width <= BUDGET:
            return 0
        return min(max(least, min(wanted, affordable)), len(sizes))


def _spaced(rows: int, most: int) -> Tensor:
    """At most so many row numbers, evenly spaced."""
    return torch.linspace(0, rows - 1, min(rows, most), dtype=torch.float64).long()


def _directions(sample_SD: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and an orthonormal basis (D, N) of the directions of the largest variance."""
    mean_D = sample_SD.mean(0)
    centred_SD = (sample_SD - mean_D).double()
    values = torch.linalg.eigh(centred_SD.T @ centred_SD)
    return mean_D, values.eigenvectors[:, -NARROW:].float()


def _closest(x_BN: Tensor, centre_LN: Tensor, count: int) -> Tensor:
    """(B, count): the numbers of the closest centres."""
    return (x_BN @ centre_LN.T - centre_LN.square().sum(1) / 2).topk(count).indices


def _own(x_MN: Tensor, centre_LN: Tensor, each: Each) -> Tensor:
    """(M,): the number of each row's closest centre."""
    return torch.cat(each(lambda x_BN: _closest(x_BN, centre_LN, 1)[:, 0], x_MN.split(BLOCK)))


def _centres(x_MN: Tensor, lists: int, each: Each) -> Tensor:
    """(L, N) by k-means (Lloyd 1982) of a sample. A centre that nobody is close to stays."""
    x_SN = x_MN[_spaced(len(x_MN), lists * LEARN)]
    centre_LN = x_SN[_spaced(len(x_SN), lists)]
    for _ in range(ROUNDS):
        own_S = _own(x_SN, centre_LN, each)
        count_L1 = own_S.bincount(minlength=lists)[:, None]
        total_LN = torch.zeros_like(centre_LN).index_add_(0, own_S, x_SN)
        centre_LN = torch.where(count_L1 > 0, total_LN / count_L1.clamp_min(1), centre_LN)
    return centre_LN


def _lists(size_L: Tensor, centre_LN: Tensor) -> tuple[list[int], Tensor]:
    """Where the lists begin and end among the ordered rows, and their centres: none is empty, and
    one that is too long is several."""
    bound, keep = [0], []
    for number, size in enumerate(size_L.tolist()):
        end = bound[-1] + size
        while bound[-1] < end:
            bound.append(min(bound[-1] + LONGEST, end))
            keep.append(number)
    return bound, centre_LN[keep]
