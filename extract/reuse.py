"""Rows of a new view that a finished one holds already: of the same image (sha256), by the same view and weights. They are copied, not computed.

    find(folder, …)             when a view is begun: the finished views of that folder name, in any data set of the cache, whose rows it can have
    recorded(view, items)       when it goes on: those that its provenance names, if they are what they were
    known.missing(first, last)  the rows that must be computed
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_specs import integrity, store
from cache_specs.errors import CoviewError, StorageError
from cache_specs.items import Items, read_items
from cache_specs.view import STATUS, View

OK = STATUS.index("ok")


@dataclass(frozen=True, eq=False)
class Known:
    """Of N rows: which_N, the number of the donor that holds a row, -1 if none does; row_N, its row there."""

    donors: list[View]
    which_N: np.ndarray
    row_N: np.ndarray

    def missing(self, first: int, last: int) -> list[int]:
        """Those of the rows [first, last) that no donor holds."""
        return (first + np.flatnonzero(self.which_N[first:last] < 0)).tolist()

    def lacks(self, view: View, shards: list[int]) -> int:
        """How many rows of these shards must be computed."""
        return sum(len(self.missing(*view.bounds(shard))) for shard in shards)

    def place(self, number: int) -> dict[int, int]:
        """Row of the donor -> row of the same image here."""
        rows = np.flatnonzero(self.which_N == number)[::-1]
        return dict(zip(self.row_N[rows].tolist(), rows.tolist(), strict=True))

    def copy(self, first: int, last: int, emb_RD: np.ndarray, status_R: np.ndarray) -> None:
        """Put the bytes of the known rows among [first, last) in their places. Raises StorageError where a donor cannot be read."""
        for number, donor in enumerate(self.donors):
            here = np.flatnonzero(self.which_N[first:last] == number)
            shard, offset = np.divmod(self.row_N[first + here], donor.rows)
            for part in np.unique(shard).tolist():
                chosen = shard == part
                emb_RD[here[chosen]] = _read(donor, part, offset[chosen].tolist())
                status_R[here[chosen]] = OK

    def record(self) -> list[dict[str, Any]]:
        """For the provenance: whose rows, and how many."""
        return [{"dataset": donor.folder.parent.name, "items": donor.attributes["items_fingerprint"], "root": integrity.root(donor),
                 "rows": int((self.which_N == number).sum())} for number, donor in enumerate(self.donors)]

    def without(self, numbers: set[int]) -> "Known":
        """Only what the other donors hold."""
        kept = [number for number in range(len(self.donors)) if number not in numbers]
        new = np.array([*(kept.index(number) if number in kept else -1 for number in range(len(self.donors))), -1])      # [-1]: of none
        return Known([self.donors[number] for number in kept], new[self.which_N], self.row_N)

    def __str__(self) -> str:
        return " and ".join(f"{int((self.which_N == number).sum()):,} of {donor.folder.parent.name}" for number, donor in enumerate(self.donors))


def find(folder: Path, declared: dict[str, Any], items: Items, remember: bool = True) -> Known:
    """What other data sets of the cache hold for the view that `folder` will be: first the one that holds most. What is damaged is said, and not used.
    Where the weights are not known the name of `folder` is a pattern."""
    found = []
    for path in _elsewhere(folder):
        try:
            donor = store.open_view(path)
            if donor.attributes["spec"] == declared:
                found.append((donor, rows_in(donor, items, remember)))
        except CoviewError as error:
            print(f"nothing is copied from {path}: {error}", flush=True)
    return _join(sorted(found, key=lambda one: -int((one[1] >= 0).sum())), len(items))


def recorded(view: View, items: Items, remember: bool = True) -> Known:
    """What the donors hold that the view was begun with. One that is gone, damaged or made anew holds nothing: its rows are computed."""
    return _join(_donors(view, items, remember), len(items))


def for_repair(view: View, items: Items, lost: list[int]) -> Known:
    """`recorded`, and for those of the lost shards that can be had whole also what was copied from this view to others."""
    donors, heirs = _donors(view, items), []
    for path in _elsewhere(view.folder):
        with suppress(CoviewError):
            heir = store.open_view(path)
            if any((one["dataset"], one["items"]) == (view.folder.parent.name, view.attributes["items_fingerprint"])
                   for one in heir.attributes["provenance"].get("reused", [])):
                heirs.append((heir, rows_in(heir, items)))
    known, both = _join(donors, len(items)), _join(donors + heirs, len(items))
    for first, last in map(view.bounds, lost):
        if not both.missing(first, last):
            known.which_N[first:last] = both.which_N[first:last]
    return Known(both.donors, known.which_N, both.row_N)


def write(view: View, known: Known, shards: list[int]) -> None:
    """Write shards of which every row is known."""
    for shard in shards:
        emb_RD, status_R = np.full((view.rows, view.width), np.nan, np.float16), np.zeros(view.rows, np.uint8)
        known.copy(*view.bounds(shard), emb_RD, status_R)
        store.write_shard(view, shard, emb_RD, status_R)


def _elsewhere(folder: Path) -> list[Path]:
    """The finished views of this folder name in other data sets of the cache."""
    return [path for path in sorted(folder.parent.parent.glob(f"*/{folder.name}")) if path.parent != folder.parent and (path / "complete.json").is_file()]


def _donors(view: View, items: Items, remember: bool = True) -> list[tuple[View, np.ndarray]]:
    found = []
    for record in view.attributes["provenance"].get("reused", []):
        path = view.folder.parent.parent / record["dataset"] / view.folder.name
        try:
            donor = store.open_view(path)
            if integrity.root(donor) == record["root"]:
                found.append((donor, rows_in(donor, items, remember)))
        except CoviewError as error:
            print(f"{view.name}: {path} cannot be copied from any more, so its rows are embedded: {error}", flush=True)
    return found


def rows_in(donor: View, items: Items, remember: bool = True) -> np.ndarray:
    """(N,) int64: the donor's row of each item's content, -1 where it has none that is ok. Raises CoviewError unless it is finished and undamaged."""
    listed = read_items(donor.folder.parent)
    store.refuse_other_images(donor, listed.fingerprint, len(listed))
    ok = (integrity.check(donor, remember=remember) == OK).tolist()
    row_of: dict[str, int] = {}
    for row, sha in enumerate(listed.sha256):
        if sha and ok[row]:
            row_of.setdefault(sha, row)
    return np.array([row_of.get(sha, -1) for sha in items.sha256], np.int64)


def agreeing(known: Known, differs: Callable[[View, dict[int, int]], str]) -> Known:
    """Without the donors whose rows are not what is computed now: `differs(donor, place)` says why, or ''. Says so."""
    wrong = {number: why for number, donor in enumerate(known.donors) if (why := differs(donor, known.place(number)))}
    for number, why in wrong.items():
        print(f"nothing is copied from {known.donors[number].folder}: {why}", flush=True)
    return known.without(set(wrong))


def _join(found: list[tuple[View, np.ndarray]], n: int) -> Known:
    donors, which_N, row_N = [], np.full(n, -1, np.int32), np.full(n, -1, np.int64)
    for donor, rows in found:
        new = (rows >= 0) & (which_N < 0)
        if new.any():
            which_N[new], row_N[new] = len(donors), rows[new]
            donors.append(donor)
    return Known(donors, which_N, row_N)


def _read(donor: View, shard: int, offsets: list[int]) -> np.ndarray:
    """(K, D) float16: these rows of a shard. Not mapped: a file that is cut short meanwhile would end the process."""
    size = donor.width * 2
    with open(donor.embeddings_file(shard), "rb", buffering=0) as file:
        rows = [os.pread(file.fileno(), size, offset * size) for offset in offsets]
    data = np.frombuffer(b"".join(rows), "<f2")
    if data.size != len(offsets) * donor.width or not np.isfinite(data).all():
        raise StorageError(f"{donor.embeddings_file(shard)} changed while it was copied from; type the same command again")
    return data.reshape(-1, donor.width)
