"""Is a view whole and unharmed? The seal over all commits, and the check that every reader makes
before it trusts a row.

seal(view)    after the last shard: complete.json, all commit records and the root hash over them
check(view)   before any use: raises IntegrityError naming file, rows and command, or returns the
              status of every row

A file of a shard is proved by the sha256 in its record, a commit by what complete.json sealed.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from base import durable
from base.errors import IntegrityError, StorageError, UsageError
from cache_specs import store
from cache_specs.view import STATUS, View

# A file written within this time of its check may be written again under the same stamp: such a
# one is not remembered.
RACY_NS = 100_000_000
THREADS = 8  # that hash; each reads a file of its own


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: in which file, and in which shard where it is a shard's."""

    file: Path
    what: str
    shard: int | None = None


def seal(view: View) -> None:
    """Declare the view finished. Raises IntegrityError if a shard is missing or has not the
    committed size."""
    records = []
    for shard in range(view.shards):
        records.append(read_commit(view, shard))
        _check_sizes(view, shard, records[-1])
    document = {
        "view": view.identity,
        "n": view.n,
        "shards": records,
        "root": root_hash(view, records),
    }
    durable.write(view.folder / "complete.json", durable.sealed(document), "complete")


def check_commits(view: View) -> None:
    """Before an unfinished view goes on: every commit is intact and its files have their sizes.
    Raises IntegrityError."""
    for shard in range(view.shards):
        if view.commit_file(shard).exists():
            _check_sizes(view, shard, read_commit(view, shard))


def _check_sizes(view: View, shard: int, record: dict[str, Any]) -> None:
    for name, recorded in record["files"].items():
        _stat(view, shard, name, recorded["bytes"])


def root_hash(view: View, records: list[dict[str, Any]]) -> str:
    """sha256 over what the view is (not how it came to be) and every shard's digests: the same
    embeddings have the same root."""
    attributes = {**view.attributes}
    attributes.pop("provenance", None)
    digest = hashlib.sha256(durable.canonical_json(attributes))
    for record in records:
        for name, file in sorted(record["files"].items()):
            digest.update(f"{name}\0{file['sha256']}\n".encode())
    return digest.hexdigest()


def read_commit(view: View, shard: int) -> dict[str, Any]:
    """The commit record of a shard. Raises IntegrityError naming file, rows and command."""
    try:
        record = durable.read_sealed(view.commit_file(shard))
        _check_record(view, shard, record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        durable.reraise_unless_gone(view.commit_file(shard), error)
        why = getattr(error, "strerror", None) or error
        raise damaged(view, shard, f"{commit_name(shard)}: {why}") from error
    return record


def _check_record(view: View, shard: int, record: dict[str, Any]) -> None:
    of = (record["view"], record["shard"], record["rows"])
    if of != (view.identity, shard, list(view.bounds(shard))):
        whose = "" if record["view"] == view.identity else " of another view"
        raise ValueError(f"it is the record of shard {record['shard']}{whose}")
    sizes = {name: file["bytes"] for name, file in record["files"].items()}
    names = (embeddings_name(shard), status_name(shard))
    if sizes != dict(zip(names, (view.embeddings_bytes, view.status_bytes), strict=True)):
        raise ValueError("it does not list the shard's two files with their sizes")


def read_seal(view: View) -> dict[str, Any]:
    """complete.json, its records checked. Raises UsageError (not finished) or IntegrityError
    (damaged, or not this view's)."""
    if not view.is_complete:
        done = view.shards - len(view.pending())
        raise UsageError(
            f"the view {view.name!r} is not finished ({done} of {view.shards} shards in "
            f"{view.folder}); finish it: {store.command(view.folder, 'extract')}"
        )
    path = view.folder / "complete.json"
    try:
        document = durable.read_sealed(path)
        _check_seal(view, document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        durable.reraise_unless_gone(path, error)
        raise IntegrityError(
            f"{path} is damaged ({error}). Type: {store.command(view.folder)}"
        ) from error
    return document


def seal_of(view: View, data: bytes) -> list[dict[str, Any]]:
    """The records of the shards of a view that is not here yet, by the bytes of its complete.json.
    Raises IntegrityError where they are damaged, or another view's."""
    try:
        document = durable.unsealed(data, "complete.json")
        _check_seal(view, document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"the seal of {view.name!r} is damaged ({error}). Push the view again from where it is "
            "whole"
        ) from error
    return document["shards"]


def _check_seal(view: View, document: dict[str, Any]) -> None:
    of = (document["view"], document["n"], len(document["shards"]))
    if of != (view.identity, view.n, view.shards):
        raise ValueError("it is the seal of another view")
    for shard, record in enumerate(document["shards"]):
        _check_record(view, shard, record)
    if root_hash(view, document["shards"]) != document["root"]:
        raise ValueError("the root hash is another one")


def root(view: View) -> str:
    """The root hash of a finished view, as complete.json has it."""
    return read_seal(view)["root"]


def check(view: View, verified: str | None = None, remember: bool = True) -> np.ndarray:
    """Check that a view is finished and undamaged; return its status column, (N,) uint8.

    verified: when every byte was read, to be noted.

    Every file's stamp (inode, size, times of change) is compared at every call, its digest once
    per stamp: `verified.json` remembers (if it may). The kernel sets the time of change (ctime) of
    a file at every write, and at the first store into a clean mapped page.
    Raises UsageError (not finished) or IntegrityError (file, rows and command named).
    """
    records = read_seal(view)["shards"]
    known, when = _remembered(view)
    begun = time.time_ns()
    now = stamps(view, records)
    due = {name for name, stamp in now.items() if known.get(name) != stamp}
    _compare(view, records, due)
    for problem in strays(view):
        raise IntegrityError(f"{problem.file} {problem.what}. Type: {store.command(view.folder)}")
    sure = {name: stamp for name, stamp in now.items() if begun - stamp[3] > RACY_NS}
    if remember and (sure != known or verified):
        note = durable.sealed({"files": sure, "verified": verified or when})
        with suppress(StorageError):  # a read-only cache is checked anew at every start
            durable.write(view.folder / "verified.json", note, "verified")
    return _status(view, records)


def _compare(view: View, records: list[dict[str, Any]], due: set[str]) -> None:
    """Raise IntegrityError for the first of the files that are due that is not as recorded."""
    jobs = []
    for shard, record in enumerate(records):
        for name, recorded in _files(shard, record):
            if name in due:
                jobs.append((shard, name, recorded))
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        wrong = pool.map(lambda job: _wrong(view, records, *job), jobs)
        for (shard, _, _), what in zip(jobs, wrong, strict=True):
            if what:
                raise damaged(view, shard, what)


def _wrong(
    view: View,
    records: list[dict[str, Any]],
    shard: int,
    name: str,
    recorded: dict[str, Any] | None,
) -> str:
    """Compare one file with its record, a shard's by its digest, a commit by its contents; what is
    wrong with it, or ''."""
    path = view.folder / name
    try:
        if recorded:
            same = sha256_of(path) == recorded["sha256"]
            return "" if same else f"{name} has changed since it was written"
        same = durable.read_sealed(path) == records[shard]
        return "" if same else f"{name} is not the record that complete.json sealed"
    except (OSError, ValueError) as error:
        durable.reraise_unless_gone(path, error)
        return f"{name}: {error}"


def _status(view: View, records: list[dict[str, Any]]) -> np.ndarray:
    """The status column, of which only the shards that hold a bad row are read."""
    status_N = np.zeros(view.n, np.uint8)
    for shard, record in enumerate(records):
        if set(record["status"]) != {STATUS[0]}:
            first, last = view.bounds(shard)
            status_N[first:last] = np.fromfile(view.status_file(shard), np.uint8, last - first)
    return status_N


def stamps(view: View, records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """name: [inode, size, mtime, ctime, digest as committed] of every file of the shards. Raises
    IntegrityError for a missing or short one."""
    found = {}
    base = str(view.folder)  # joined as text: a Path for each of thousands of files is slow
    for shard, record in enumerate(records):
        for name, recorded in _files(shard, record):
            size, digest = (recorded["bytes"], recorded["sha256"]) if recorded else (None, "")
            stat = _stat(view, shard, name, size, base)
            times = (stat.st_mtime_ns, stat.st_ctime_ns)
            found[name] = [stat.st_ino, stat.st_size, *times, digest]
    return found


def _files(shard: int, record: dict[str, Any]) -> tuple[tuple[str, dict[str, Any] | None], ...]:
    return (*record["files"].items(), (commit_name(shard), None))


def verified_when(view: View) -> str | None:
    """When `make verify` last read every byte of a finished view, if no file has changed since."""
    known, when = _remembered(view)
    return when if known == stamps(view, read_seal(view)["shards"]) else None


def _remembered(view: View) -> tuple[dict[str, Any], str | None]:
    try:
        document = durable.read_sealed(view.folder / "verified.json")
        return document["files"], document["verified"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}, None


def _stat(
    view: View, shard: int, name: str, expected: int | None, base: str = ""
) -> os.stat_result:
    try:
        stat = os.stat(f"{base or view.folder}/{name}")
    except OSError as error:
        durable.reraise_unless_gone(view.folder / name, error)
        raise damaged(view, shard, f"{name}: {error.strerror}") from error
    if expected not in (None, stat.st_size):
        raise damaged(view, shard, f"{name} has {stat.st_size} bytes, expected {expected}")
    return stat


def sha256_of(path: Path) -> str:
    """The sha256 of a file, by a buffer that stays in the processor's cache."""
    with path.open("rb", buffering=0) as file:
        # Pages that a writable map holds dirty are cleaned, so that its next store changes the
        # ctime again.
        with suppress(OSError):
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def strays(view: View) -> Iterator[Problem]:
    """Files where shards and commits stand that are none: a foreign or left-over shard."""
    shards = {str(shard) for shard in range(view.shards)}
    commits = {f"{shard:05d}.json" for shard in range(view.shards)}
    for folder, names in (("embeddings/c", shards), ("status/c", shards), ("commits", commits)):
        try:
            found = os.listdir(view.folder / folder)
        except OSError as error:
            durable.reraise_unless_gone(view.folder / folder, error)
            continue  # its files are missed by name
        for name in sorted(set(found) - names):
            if not name.startswith("."):
                yield Problem(view.folder / folder / name, "does not belong to this view")


def embeddings_name(shard: int) -> str:
    return f"embeddings/c/{shard}/0"


def status_name(shard: int) -> str:
    return f"status/c/{shard}"


def commit_name(shard: int) -> str:
    return f"commits/{shard:05d}.json"


def damaged(view: View, shard: int, what: str) -> IntegrityError:
    first, last = view.bounds(shard)
    return IntegrityError(
        f"{view.folder}: shard {shard} (rows {first} to {last - 1}) is damaged: {what}. "
        f"Only that is computed again. Type: {store.command(view.folder)}"
    )
