"""Everything that is wrong with a view's folder, and the mending of what needs no images
(make verify, make repair).

problems(view)    reads every byte and names each wrong file
mend(folder)      rebuilds descriptions, commits and the seal from one another; says which shards
                  must be computed again
"""

import hashlib
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from base import durable
from base.errors import IntegrityError
from cache_specs import store
from cache_specs.integrity import (
    Problem,
    embeddings_name,
    read_commit,
    read_seal,
    seal,
    status_name,
    strays,
)
from cache_specs.view import View, described, status_counts

NOT_SEALED = "is not the record that complete.json sealed"


def problems(view: View) -> Iterator[Problem]:
    """Everything that is wrong with the files of an openable view, finished or not. Reads all of
    them; remembers nothing."""
    sealed: list[dict[str, Any]] | None = None
    if view.is_complete:
        try:
            sealed = read_seal(view)["shards"]
        except IntegrityError as error:
            yield Problem(view.folder / "complete.json", _why(error))
    yield from _canary_problems(view)
    yield from strays(view)
    for shard in range(view.shards):
        if not view.is_complete and not view.commit_file(shard).exists():
            continue
        record, wrong = _record(view, shard, sealed[shard] if sealed else None)
        if wrong:
            yield Problem(view.commit_file(shard), wrong, shard)
        if record:
            yield from shard_problems(view, shard, record)


def _canary_problems(view: View) -> Iterator[Problem]:
    canary = view.folder / "canary.json"
    try:
        if canary.exists() and durable.read_sealed(canary)["view"] != view.identity:
            yield Problem(canary, "is that of another view")
    except (OSError, ValueError, KeyError, TypeError) as error:
        durable.reraise_unless_gone(canary, error)
        yield Problem(canary, str(error))


def _record(
    view: View, shard: int, sealed: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, str]:
    """What a shard's files are compared with, which is its commit or, where that is wrong, the
    sealed record; and what is wrong with the commit."""
    try:
        record = read_commit(view, shard)
    except IntegrityError as error:
        return sealed, _why(error) or NOT_SEALED
    if sealed and record != sealed:
        return sealed, NOT_SEALED
    return record, ""


def _why(error: IntegrityError) -> str:
    cause = error.__cause__
    return getattr(cause, "strerror", None) or str(cause or "")


def shard_problems(view: View, shard: int, record: dict[str, Any]) -> Iterator[Problem]:
    """Compare a shard's two files with a record: sizes, digests, the counts, and that every row is
    what its status says."""
    data = {}
    for name, recorded in record["files"].items():
        found, wrong = _read_as(view.folder / name, recorded)
        if wrong:
            yield Problem(view.folder / name, wrong, shard)
        else:
            data[name] = found
    if len(data) < 2:
        return
    first, last = view.bounds(shard)
    size, count = view.rows * view.width, last - first
    emb_RD = np.frombuffer(data[embeddings_name(shard)], "<f2", size).reshape(view.rows, view.width)
    status_R = np.frombuffer(data[status_name(shard)], np.uint8, view.rows)
    counts = status_counts(status_R[:count])
    if record["status"] != counts:
        what = f"has {counts}, its record {record['status']}"
        yield Problem(view.status_file(shard), what, shard)
    finite_R = np.all(np.isfinite(emb_RD), axis=1)
    unlike = finite_R[:count] != (status_R[:count] == 0)
    if unlike.any() or finite_R[count:].any() or status_R[count:].any():
        what = "has rows that are not what their status says"
        yield Problem(view.embeddings_file(shard), what, shard)


def _read_as(path: Path, recorded: dict[str, Any]) -> tuple[bytes, str]:
    """A shard's file, and what is wrong with it, or ''."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a folder; or a FIFO, which would never end
            return b"", "is no regular file"
        data = path.read_bytes()
    except OSError as error:
        durable.reraise_unless_gone(path, error)
        return b"", error.strerror or str(error)
    if len(data) != recorded["bytes"]:
        return data, f"has {len(data)} bytes, expected {recorded['bytes']}"
    if hashlib.sha256(data).hexdigest() != recorded["sha256"]:
        return data, "has changed since it was written"
    return data, ""


@dataclass(frozen=True)
class Plan:
    """What is wrong with a view, and what follows: `lost` shards must be computed again, `commits`
    can be written from the seal."""

    found: list[Problem]
    sealed: list[dict[str, Any]] | None
    lost: list[int]
    commits: list[int]


def plan(view: View, condemned: Sequence[int] = ()) -> Plan:
    """Search the view; changes nothing. `condemned` shards count as damaged."""
    found = list(problems(view))
    sealed = None
    if view.is_complete:
        with suppress(IntegrityError):
            sealed = read_seal(view)["shards"]
    bad_files: set[int] = set()
    bad_commits: set[int] = set()
    for problem in found:
        if problem.shard is None:
            continue
        is_commit = problem.file == view.commit_file(problem.shard)
        (bad_commits if is_commit else bad_files).add(problem.shard)
    lost = {*condemned, *bad_files}
    if sealed is None:
        return Plan(found, None, sorted(lost | bad_commits), [])
    return Plan(found, sealed, sorted(lost), sorted(bad_commits - lost))


def mend(folder: Path, condemned: Sequence[int] = ()) -> tuple[View, list[str], list[int]]:
    """Mend what can be mended without the images. The caller holds the writer's lock and knows that
    what is lost can be computed again.

    Returns the view, a line for everything done, and the lost shards: their commits are removed.
    Order matters: what only the seal still knows is written from it, then it goes before any
    commit, so that nobody trusts the view meanwhile.
    Raises IntegrityError when no zarr.json is left to go by.
    """
    lines = mend_documents(folder)
    view = store.open_view(folder)
    was_complete = view.is_complete
    todo = plan(view, condemned)
    for problem in todo.found:
        lines.append(f"{problem.file.relative_to(folder)}: {problem.what}")
    _clear(view, todo.found)
    if lines or condemned:
        durable.remove(folder / "verified.json", "verified")
    _write_commits(view, todo)
    seal_again = was_complete and not todo.sealed
    if todo.lost or seal_again:
        durable.remove(folder / "complete.json", "complete")
    for shard in todo.lost:
        durable.remove(view.commit_file(shard), "commit")
    if seal_again and not todo.lost:
        seal(view)
    return view, lines, todo.lost


def _write_commits(view: View, todo: Plan) -> None:
    """From the seal, where a shard's files are those that were sealed."""
    sealed = todo.sealed or []
    for shard in todo.commits:
        durable.write(view.commit_file(shard), durable.sealed(sealed[shard]), "commit")


def _clear(view: View, found: Sequence[Problem]) -> None:
    """Put aside what stands where it should not, and remove a damaged canary, which is written
    again after a comparison."""
    odd = {problem.file for problem in strays(view)}
    for path in sorted({problem.file for problem in found}):
        if path in odd or (path.exists() and not path.is_file()):
            _put_aside(view.folder, path)
        if path == view.folder / "canary.json":
            durable.remove(path, "canary")


def mend_documents(folder: Path) -> list[str]:
    """Rebuild the three zarr.json from any that is intact and belongs to the folder; where such
    differ, from those that agree."""
    for sub in ("embeddings", "status", "commits"):
        durable.make_folder(folder / sub)
    with suppress(IntegrityError):
        store.open_view(folder)
        return []
    intact = _intact_documents(folder)
    if not intact:
        raise IntegrityError(
            f"{folder}: all three zarr.json are damaged, so nothing says what the rows are. Delete "
            f"{folder} and type: {store.command(folder, 'extract')}"
        )
    every = list(intact.values())
    name = max(intact, key=lambda name: every.count(intact[name]))
    for document in store.DOCUMENTS:
        path = folder / document
        if path.exists() and not path.is_file():
            _put_aside(folder, path)
    store.write_documents(folder, intact[name])
    return [f"zarr.json: written again, from {name}"]


def _intact_documents(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each zarr.json that is intact and this folder's, the view's attributes."""
    intact = {}
    for name in reversed(store.DOCUMENTS):
        try:
            found = described(durable.read_sealed(folder / name))
            made_of = (found["view"], found["spec"], found["weights_sha256"])
            if store.view_folder(folder.parent, *made_of) == folder:
                intact[name] = found
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return intact


def _put_aside(folder: Path, path: Path) -> None:
    """Move what is no file of the view out of the way, into `strays/`: it may be somebody's copy.
    `make gc` offers to remove it."""
    aside = durable.make_folder(folder / "strays")
    name = str(path.relative_to(folder)).replace("/", "-")
    number = 0
    while (target := aside / f"{name}.{number}").exists():
        number += 1
    try:
        durable.fault("stray.rename")
        path.rename(target)
        durable.fsync_folder(path.parent)
        durable.fsync_folder(aside)
    except OSError as error:
        raise durable.cannot_write(target, error) from error
