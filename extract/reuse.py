"""Rows of a new view that a finished one holds already: of the same image (sha256), by the same view and weights. They are copied, not computed.

find(folder, …)             when a view is begun: the finished views of that folder name, in any data set of the cache, whose rows it can have
recorded(view, items)       when it goes on: those that its provenance names, if they are what they were
known.missing(first, last)  the rows that must be computed
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from base import durable
from base.errors import CoviewError, IntegrityError, StorageError
from cache_specs import integrity, store
from cache_specs.items import Items, read_items
from cache_specs.view import STATUS, View

OK = STATUS.index("ok")


@dataclass(frozen=True, eq=False)
class Known:
    """Of N rows: which_N, the number of the donor that holds a row, -1 if none does; row_N, its row there.
    sealed, of shards that are mended: the sha256 of both files, by name, as they were. One that comes out otherwise is not written."""

    donors: list[View]
    which_N: np.ndarray
    row_N: np.ndarray
    sealed: Mapping[int, dict[str, str]] = field(default_factory=dict)

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

    def fits(self, view: View, shard: int, emb_RD: np.ndarray, status_R: np.ndarray) -> bool:
        """Are these the bytes that were sealed, where any are asked for?"""
        return shard not in self.sealed or self.sealed[shard] == {
            str(path.relative_to(view.folder)): hashlib.sha256(data).hexdigest()
            for path, data in store.shard_files(view, shard, emb_RD, status_R).items()
        }

    def record(self) -> list[dict[str, Any]]:
        """For the provenance: whose rows, and how many."""
        return [
            {
                "dataset": donor.folder.parent.name,
                "items": donor.attributes["items_fingerprint"],
                "root": integrity.root(donor),
                "rows": int((self.which_N == number).sum()),
            }
            for number, donor in enumerate(self.donors)
        ]

    def without(self, numbers: set[int]) -> "Known":
        """Only what the other donors hold."""
        kept = [number for number in range(len(self.donors)) if number not in numbers]
        new = np.array(
            [
                *(
                    kept.index(number) if number in kept else -1
                    for number in range(len(self.donors))
                ),
                -1,
            ]
        )  # [-1]: of none
        return Known([self.donors[number] for number in kept], new[self.which_N], self.row_N)

    def __str__(self) -> str:
        return " and ".join(
            f"{int((self.which_N == number).sum()):,} of {donor.folder.parent.name}"
            for number, donor in enumerate(self.donors)
        )


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


def recorded(view: View, items: Items, remember: bool = True, doubt: bool = False) -> Known:
    """What the donors hold that the view was begun with. One that is gone, damaged or made anew holds nothing: its rows are computed.
    `doubt` (the caller holds the writer's lock): what was copied from one that is damaged now was never checked again, so those shards are not kept."""
    return _join(_donors(view, items, remember, doubt), len(items))


def nothing(n: int) -> Known:
    """Of n rows no one is known."""
    return _join([], n)


def copies(view: View, items: Items, sealed: Mapping[int, dict[str, str]]) -> dict[int, Known]:
    """The shards whose sealed bytes other finished views still have, and where: of the same images, but only the sha256 says that it is the same copy."""
    sources, found = [], {}
    for path in _elsewhere(view.folder) if sealed else []:
        with suppress(CoviewError):
            donor = store.open_view(path)
            sources.append((donor, rows_in(donor, items)))
    for turn in range(len(sources)):  # each first in its turn
        known = replace(_join(sources[turn:] + sources[:turn], len(items)), sealed=sealed)
        for shard in sealed.keys() - found.keys():
            with suppress(StorageError):
                if not known.missing(*view.bounds(shard)) and known.fits(
                    view, shard, *_filled(view, known, shard)
                ):
                    found[shard] = known
    return found


def write(view: View, known: Known, shard: int) -> None:
    """Write a shard of which every row is known. Raises StorageError where it is not any more what was sealed."""
    emb_RD, status_R = _filled(view, known, shard)
    if not known.fits(view, shard, emb_RD, status_R):
        raise StorageError(
            f"what shard {shard} of {view.folder} is copied from has changed meanwhile; type the same command again"
        )
    store.write_shard(view, shard, emb_RD, status_R)


def _filled(view: View, known: Known, shard: int) -> tuple[np.ndarray, np.ndarray]:
    emb_RD, status_R = (
        np.full((view.rows, view.width), np.nan, np.float16),
        np.zeros(view.rows, np.uint8),
    )
    known.copy(*view.bounds(shard), emb_RD, status_R)
    return emb_RD, status_R


def _elsewhere(folder: Path) -> list[Path]:
    """The finished views of this folder name in other data sets of the cache."""
    return [
        path
        for path in sorted(folder.parent.parent.glob(f"*/{folder.name}"))
        if path.parent != folder.parent and (path / "complete.json").is_file()
    ]


def _donors(
    view: View, items: Items, remember: bool = True, doubt: bool = False
) -> list[tuple[View, np.ndarray]]:
    found = []
    for record in view.attributes["provenance"].get("reused", []):
        path = view.folder.parent.parent / record["dataset"] / view.folder.name
        try:
            donor = store.open_view(path)
            if integrity.root(donor) == record["root"]:
                found.append((donor, rows_in(donor, items, remember)))
        except CoviewError as error:
            print(
                f"{view.name}: {path} cannot be copied from any more, so its rows are embedded: {error}",
                flush=True,
            )
            if doubt and path.is_dir():
                forget(view, _holding(view, items, path.parent))
    return found


def _holding(view: View, items: Items, dataset: Path) -> list[int]:
    """The shards of `view` that have an image of another data set; all, where its item list is damaged."""
    with suppress(IntegrityError):
        there = set(read_items(dataset).sha256)
        return sorted({row // view.rows for row, sha in enumerate(items.sha256) if sha in there})
    return list(range(view.shards))


def forget(view: View, shards: Iterable[int]) -> None:
    """Take the commits of these shards back: they are made again."""
    for shard in sorted(shards):
        durable.remove(view.commit_file(shard), "commit")


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
    wrong = {
        number: why
        for number, donor in enumerate(known.donors)
        if (why := _why_not(donor, known.place(number), differs))
    }
    for number, why in wrong.items():
        print(f"nothing is copied from {known.donors[number].folder}: {why}", flush=True)
    return known.without(set(wrong))


def _why_not(
    donor: View, place: dict[int, int], differs: Callable[[View, dict[int, int]], str]
) -> str:
    try:
        return differs(donor, place)
    except (OSError, ValueError) as error:  # gone, or cut short, meanwhile
        return f"it cannot be read now ({error})"


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
    data = np.frombuffer(stored(donor, shard, offsets), np.uint8)
    if data.size != len(offsets) * donor.width * 2 or not np.isfinite(data.view("<f2")).all():
        raise StorageError(
            f"{donor.embeddings_file(shard)} changed while it was copied from; type the same command again"
        )
    return data.view("<f2").reshape(-1, donor.width)


def stored(view: View, shard: int, offsets: list[int]) -> bytes:
    size = view.width * 2
    try:
        with open(view.embeddings_file(shard), "rb", buffering=0) as file:
            return b"".join(os.pread(file.fileno(), size, offset * size) for offset in offsets)
    except OSError as error:
        raise unreadable(view, shard, error) from error


def unreadable(view: View, shard: int, error: OSError) -> StorageError:
    return StorageError(
        f"cannot read {view.embeddings_file(shard)} while it is copied from ({error.strerror or error}); type the same command again: "
        "what cannot be copied is embedded"
    )
