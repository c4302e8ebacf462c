"""Rows of a new view that a finished one (a donor) holds already: of the same image (sha256), by
the same view and weights. They are copied, not computed.

find(folder, …)           when a view is begun: the finished views of that folder name, in any data
                          set of the cache, whose rows it can have
recorded(view, items)     when it goes on: those that its provenance names, if they are what they
                          were
begin_again(view, …)      when it goes on without a canary: without those that do not agree with
                          what is computed now
known.missing(…)          the rows that must be computed
known.block(view, shard)  the others, copied

Between the first look at a donor and the copy hours may pass. So a donor's file is read whole, and
held against the digest that was sealed, when the first row of it is copied, and again whenever its
stamp has changed. What stands in a committed shard was undamaged when it was copied.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import CoviewError, IntegrityError, StaleError, StorageError
from cache_specs import integrity, store
from cache_specs.items import Items, read_items
from cache_specs.spec import PIXELS, ViewSpec, pixels_of, with_pixels_of
from cache_specs.versions import dataset_folders, name_of
from cache_specs.view import STATUS, View, write_documents

log = logging.getLogger(f"coview.{__name__}")
OK = STATUS.index("ok")
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Known:
    """Of N rows: which_N, the number of the donor that holds a row, -1 if none does; row_N, its row
    there. sure: the stamps that the donors' files had when they were found undamaged."""

    donors: list[View]
    which_N: np.ndarray
    row_N: np.ndarray
    sure: dict[Path, Stamp] = field(default_factory=dict)

    def missing(self, first: int, last: int) -> list[int]:
        """Those of the rows [first, last) that no donor holds."""
        return (first + np.flatnonzero(self.which_N[first:last] < 0)).tolist()

    def lacks(self, view: View, shards: list[int]) -> int:
        """How many rows of these shards must be computed."""
        return sum(len(self.missing(*view.bounds(shard))) for shard in shards)

    def place(self, number: int) -> dict[int, int]:
        """Row of the donor -> row of the same image here; the first, where it is here twice."""
        rows = np.flatnonzero(self.which_N == number)[::-1]
        return dict(zip(self.row_N[rows].tolist(), rows.tolist(), strict=True))

    def block(self, view: View, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """A shard's (R, D) float16 and (R,) uint8 with the known rows in their places, and NaN and
        0 elsewhere. Raises StorageError or IntegrityError where a donor cannot be copied from."""
        first, last = view.bounds(shard)
        emb_RD = np.full((view.rows, view.width), np.nan, np.float16)
        for number, donor in enumerate(self.donors):
            here = np.flatnonzero(self.which_N[first:last] == number)
            part, offset = np.divmod(self.row_N[first + here], donor.rows)
            for theirs in np.unique(part).tolist():
                chosen = part == theirs
                emb_RD[here[chosen]] = _copied(donor, theirs, offset[chosen].tolist(), self.sure)
        return emb_RD, np.full(view.rows, OK, np.uint8)

    def counts(self) -> list[int]:
        """How many rows each donor gives."""
        return [int((self.which_N == number).sum()) for number in range(len(self.donors))]

    def record(self) -> list[dict[str, Any]]:
        """For the provenance: whose rows, and how many."""
        found = []
        for donor, count in zip(self.donors, self.counts(), strict=True):
            found.append(
                {
                    "dataset": donor.folder.parent.name,
                    "items": donor.attributes["items_fingerprint"],
                    "root": integrity.root(donor),
                    "rows": count,
                }
            )
        return found

    def without(self, numbers: set[int]) -> "Known":
        """Only what the other donors hold."""
        kept = [number for number in range(len(self.donors)) if number not in numbers]
        new = np.full(len(self.donors) + 1, -1, np.int32)  # [-1]: of none
        new[kept] = np.arange(len(kept))
        return Known([self.donors[number] for number in kept], new[self.which_N], self.row_N)

    def __str__(self) -> str:
        told = []
        for donor, count in zip(self.donors, self.counts(), strict=True):
            told.append(f"{count:,} of {donor.folder.parent.name}")
        return " and ".join(told)


def find(folder: Path, declared: dict[str, Any], items: Items, remember: bool = True) -> Known:
    """What other data sets of the cache hold for the view that `folder` will be: first the one that
    holds most. What is damaged is said, and not used. Where the weights are not known the name of
    `folder` is a pattern."""
    found = []
    for path in _elsewhere(folder):
        try:
            donor = store.open_view(path)
            if donor.attributes["spec"] == declared:
                found.append((donor, rows_in(donor, items, remember)))
        except CoviewError as error:
            log.info(f"nothing is copied from {path}: {error}")
    return _join(sorted(found, key=lambda one: -int((one[1] >= 0).sum())), len(items))


def say_not_copied(folder: Path, spec: ViewSpec) -> None:
    """Say which finished views of the same data set have nothing to give to the one that `folder`
    will be, because they were made with an earlier version of the pixels."""
    dataset, finished = folder.parent, []
    for other in dataset_folders(dataset.parent, name_of(dataset)):
        if other != dataset:
            finished += store.view_folders(other, spec.name)
    for path in finished:
        with suppress(CoviewError):
            made = store.open_view(path).attributes["spec"]
            if with_pixels_of(spec, made) is not spec:
                log.warning(
                    f"nothing is copied from {path}: it was made with an earlier version of the "
                    f"pixels (preprocess.pixels: {pixels_of(made)} -> {PIXELS})"
                )


def recorded(view: View, items: Items, remember: bool = True) -> Known:
    """What the donors hold that the view was begun with. One that is gone, damaged or made anew
    holds nothing: its rows are computed."""
    found = []
    for record in view.attributes["provenance"].get("reused", []):
        path = view.folder.parent.parent / record["dataset"] / view.folder.name
        try:
            donor = store.open_view(path)
            if integrity.root(donor) == record["root"]:
                found.append((donor, rows_in(donor, items, remember)))
        except CoviewError as error:
            log.info(
                f"{view.name}: {path} cannot be copied from any more, so its rows are embedded: "
                f"{error}"
            )
    return _join(found, len(items))


def begin_again(view: View, known: Known, agreed: Known) -> tuple[View, Known]:
    """A view that has no canary yet, without the donors that it was begun with and that do not
    agree: its description then names the others alone. The caller holds the writer's lock. Raises
    StaleError where it has shards already, which may hold their rows."""
    if len(agreed.donors) == len(known.donors):
        return view, agreed
    if len(view.pending()) < view.shards:
        raise StaleError(
            f"{view.folder} has no canary.json, and its finished shards may hold rows that are not "
            f"what is computed now. Delete {view.folder}, then type the same command again"
        )
    provenance = {**view.attributes["provenance"]}
    del provenance["reused"]
    if agreed.donors:
        provenance["reused"] = agreed.record()
    write_documents(view.folder, {**view.attributes, "provenance": provenance})
    return store.open_view(view.folder), agreed


def agreeing(known: Known, differs: Callable[[View, dict[int, int]], str]) -> Known:
    """Without the donors whose rows are not what is computed now: `differs(donor, place)` says why,
    or ''. Says so."""
    wrong = set()
    for number, donor in enumerate(known.donors):
        try:
            why = differs(donor, known.place(number))
        except (OSError, ValueError) as error:  # gone, or cut short, meanwhile
            why = f"it cannot be read now ({error})"
        if why:
            log.info(f"nothing is copied from {donor.folder}: {why}")
            wrong.add(number)
    return known.without(wrong)


def rows_in(donor: View, items: Items, remember: bool = True) -> np.ndarray:
    """(N,) int64: the donor's row of each item's content, -1 where it has none that is ok. Raises
    CoviewError unless it is finished and undamaged."""
    listed = read_items(donor.folder.parent)
    store.refuse_other_images(donor, listed.fingerprint, len(listed))
    ok = (integrity.check(donor, remember=remember) == OK).tolist()
    row_of: dict[str, int] = {}
    for row, sha in enumerate(listed.sha256):
        if sha and ok[row]:
            row_of.setdefault(sha, row)
    return np.array([row_of.get(sha, -1) for sha in items.sha256], np.int64)


def _elsewhere(folder: Path) -> list[Path]:
    """The finished views of this folder name in other data sets of the cache."""
    found = []
    for path in sorted(folder.parent.parent.glob(f"*/{folder.name}")):
        if path.parent != folder.parent and (path / "complete.json").is_file():
            found.append(path)
    return found


def _join(found: list[tuple[View, np.ndarray]], n: int) -> Known:
    """Each row of the first donor that holds it."""
    donors, which_N, row_N = [], np.full(n, -1, np.int32), np.full(n, -1, np.int64)
    for donor, rows in found:
        new = (rows >= 0) & (which_N < 0)
        if new.any():
            which_N[new] = len(donors)
            row_N[new] = rows[new]
            donors.append(donor)
    return Known(donors, which_N, row_N)


def _copied(donor: View, shard: int, offsets: list[int], sure: dict[Path, Stamp]) -> np.ndarray:
    """(K, D) float16: these rows of a shard whose file is what was sealed. Not mapped: a file that
    is cut short meanwhile would end the process."""
    file, size = donor.embeddings_file(shard), donor.width * 2
    try:
        stamp = _stamp(file)
        same = sure.get(file) == stamp or _is_sealed(donor, shard)
        with open(file, "rb", buffering=0) as source:
            data = b"".join(os.pread(source.fileno(), size, offset * size) for offset in offsets)
        same = same and _stamp(file) == stamp
    except OSError as error:
        raise StorageError(
            f"cannot read {file} while it is copied from ({error.strerror or error}); type the "
            "same command again: what cannot be copied is embedded"
        ) from error
    if not same:
        with suppress(OSError):
            (donor.folder / "verified.json").unlink()  # whoever opens it next reads it all
        raise IntegrityError(
            f"{donor.folder} changed while it was copied from: {file.relative_to(donor.folder)} is "
            f"not what was sealed.\nType: {store.command(donor.folder)}\n"
            "Then type the same command again: finished shards are kept"
        )
    sure[file] = stamp
    return np.frombuffer(data, "<f2").reshape(-1, donor.width)


def _stamp(file: Path) -> Stamp:
    stat = os.stat(file)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _is_sealed(donor: View, shard: int) -> bool:
    name = integrity.embeddings_name(shard)
    recorded = integrity.read_seal(donor)["shards"][shard]["files"][name]
    return integrity.sha256_of(donor.folder / name) == recorded["sha256"]
