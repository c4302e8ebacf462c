"""Everything that is wrong with a view's folder, and the mending of what needs no images (make verify, make repair).

problems(view)    reads every byte and names each wrong file
mend(folder)      rebuilds descriptions, commits and the seal from one another; says which shards must be computed again
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
    damaged,
    embeddings_name,
    read_commit,
    read_seal,
    seal,
    status_name,
    strays,
    xxh3,
)
from cache_specs.view import STATUS, View


def problems(view: View) -> Iterator[Problem]:
    """Everything that is wrong with the files of an openable view, finished or not. Reads all of them; remembers nothing."""
    sealed: list[dict[str, Any]] | None = None
    if view.is_complete:
        try:
            sealed = read_seal(view)["shards"]
        except IntegrityError as error:
            yield Problem(view.folder / "complete.json", _why(error))
    canary = view.folder / "canary.json"
    try:
        if canary.exists() and durable.read_sealed(canary)["view"] != view.identity:
            yield Problem(canary, "is that of another view")
    except (OSError, ValueError, KeyError, TypeError) as error:
        durable.reraise_unless_gone(canary, error)
        yield Problem(canary, str(error))
    yield from strays(view)
    for shard in range(view.shards):
        if not view.is_complete and not view.commit_file(shard).exists():
            continue
        try:
            record = read_commit(view, shard)
            if sealed and record != sealed[shard]:
                raise damaged(
                    view,
                    shard,
                    f"commits/{shard:05d}.json is not the record that complete.json sealed",
                )
        except IntegrityError as error:
            yield Problem(
                view.commit_file(shard),
                _why(error) or "is not the record that complete.json sealed",
                shard,
            )
            if not sealed:
                continue
            record = sealed[shard]
        yield from shard_problems(view, shard, record)


def _why(error: IntegrityError) -> str:
    cause = error.__cause__
    return getattr(cause, "strerror", None) or str(cause or "")


def shard_problems(view: View, shard: int, record: dict[str, Any]) -> Iterator[Problem]:
    """Compare a shard's two files with a record: sizes, both digests, the counts, and that every row is what its status says."""
    data = {}
    for name, recorded in record["files"].items():
        path = view.folder / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a folder; or a FIFO, which would never end
                yield Problem(path, "is no regular file", shard)
                continue
            data[name] = path.read_bytes()
        except OSError as error:
            durable.reraise_unless_gone(path, error)
            yield Problem(path, error.strerror or str(error), shard)
            continue
        if len(data[name]) != recorded["bytes"]:
            yield Problem(path, f"has {len(data[name])} bytes, expected {recorded['bytes']}", shard)
        elif (
            hashlib.sha256(data[name]).hexdigest() != recorded["sha256"]
            or xxh3(path) != recorded["xxh3"]
        ):
            yield Problem(path, "has changed since it was written", shard)
        else:
            continue
        del data[name]
    if len(data) == 2:
        count = view.bounds(shard)[1] - view.bounds(shard)[0]
        emb_RD = np.frombuffer(data[embeddings_name(shard)], "<f2", view.rows * view.width).reshape(
            view.rows, view.width
        )
        status_R = np.frombuffer(data[status_name(shard)], np.uint8, view.rows)
        finite_R = np.isfinite(emb_RD).all(1)
        if record["status"] != status_counts(status_R[:count]):
            yield Problem(
                view.status_file(shard),
                f"has {status_counts(status_R[:count])}, its record {record['status']}",
                shard,
            )
        if (
            (finite_R[:count] != (status_R[:count] == 0)).any()
            or finite_R[count:].any()
            or status_R[count:].any()
        ):
            yield Problem(
                view.embeddings_file(shard), "has rows that are not what their status says", shard
            )


def status_counts(status: np.ndarray) -> dict[str, int]:
    return {
        STATUS[code]: int(number)
        for code, number in enumerate(np.bincount(status, minlength=len(STATUS)))
        if number
    }


@dataclass(frozen=True)
class Plan:
    """What is wrong with a view, and what follows: `lost` shards must be computed again, `commits` can be written from the seal."""

    found: list[Problem]
    sealed: list[dict[str, Any]] | None
    lost: list[int]
    commits: list[int]


def plan(view: View, condemned: Sequence[int] = ()) -> Plan:
    """Search the view; changes nothing. `condemned` shards count as damaged."""
    found = list(problems(view))
    try:
        sealed = read_seal(view)["shards"] if view.is_complete else None
    except IntegrityError:
        sealed = None
    bad_files = {
        problem.shard
        for problem in found
        if problem.shard is not None and problem.file != view.commit_file(problem.shard)
    }
    bad_commits = {problem.shard for problem in found if problem.shard is not None} - bad_files
    lost = {*condemned, *bad_files} if sealed else {*condemned, *bad_files, *bad_commits}
    return Plan(found, sealed, sorted(lost), sorted(bad_commits - lost) if sealed else [])


def mend(folder: Path, condemned: Sequence[int] = ()) -> tuple[View, list[str], list[int]]:
    """Mend what can be mended without the images. The caller holds the writer's lock and knows that what is lost can be computed again.

    Returns the view, a line for everything done, and the lost shards: their commits are removed. Order matters: what only the seal still
    knows is written from it, then it goes before any commit, so that nobody trusts the view meanwhile.
    Raises IntegrityError when no zarr.json is left to go by.
    """
    lines = mend_documents(folder)
    view = store.open_view(folder)
    was_complete, todo = view.is_complete, plan(view, condemned)
    lines += [f"{problem.file.relative_to(folder)}: {problem.what}" for problem in todo.found]
    odd = {problem.file for problem in strays(view)}
    for path in sorted({problem.file for problem in todo.found}):
        if path in odd or (path.exists() and not path.is_file()):
            _put_aside(folder, path)
    if any(problem.file == folder / "canary.json" for problem in todo.found):
        durable.remove(folder / "canary.json", "canary")  # it is written again after a comparison
    if lines or condemned:
        durable.remove(folder / "verified.json", "verified")
    for shard in todo.commits:
        durable.write(
            view.commit_file(shard), durable.sealed(todo.sealed[shard]), "commit"
        )  # its files are those that were sealed
    if todo.lost or (was_complete and not todo.sealed):
        durable.remove(folder / "complete.json", "complete")
    for shard in todo.lost:
        durable.remove(view.commit_file(shard), "commit")
    if was_complete and not todo.lost and not todo.sealed:
        seal(view)
    return view, lines, todo.lost


def mend_documents(folder: Path) -> list[str]:
    """Rebuild the three zarr.json from any that is intact and belongs to the folder; where such differ, from those that agree."""
    for sub in ("embeddings", "status", "commits"):
        durable.make_folder(folder / sub)
    with suppress(IntegrityError):
        store.open_view(folder)
        return []
    intact: dict[str, dict[str, Any]] = {}
    for name in reversed(store.DOCUMENTS):
        try:
            attributes = {
                key: value
                for key, value in durable.read_sealed(folder / name)["attributes"].items()
                if key != "sha256"
            }
            if (
                store.view_folder(
                    folder.parent,
                    attributes["view"],
                    attributes["spec"],
                    attributes["weights_sha256"],
                )
                != folder
            ):
                continue
        except (OSError, ValueError, KeyError, TypeError):
            continue
        intact[name] = attributes
    if intact:
        name = max(intact, key=lambda name: list(intact.values()).count(intact[name]))
        for path in (folder / document for document in store.DOCUMENTS):
            if path.exists() and not path.is_file():
                _put_aside(folder, path)
        store.write_documents(folder, intact[name])
        return [f"zarr.json: written again, from {name}"]
    raise IntegrityError(
        f"{folder}: all three zarr.json are damaged, so nothing says what the rows are. Delete {folder} and type: "
        f"{store.command(folder, 'extract')}"
    )


def _put_aside(folder: Path, path: Path) -> None:
    """Move what is no file of the view out of the way, into `strays/`: it may be somebody's copy. `make gc` offers to remove it."""
    aside = durable.make_folder(folder / "strays")
    name, number = str(path.relative_to(folder)).replace("/", "-"), 0
    while (target := aside / f"{name}.{number}").exists():
        number += 1
    try:
        durable.fault("stray.rename")
        path.rename(target)
        durable.fsync_folder(path.parent)
        durable.fsync_folder(aside)
    except OSError as error:
        raise durable.cannot_write(target, error) from error
