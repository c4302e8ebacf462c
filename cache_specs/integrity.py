"""Is a view whole and unharmed? The seal over all commits, and the check that every reader makes before it trusts a row.

    seal(view)      after the last shard: complete.json with the root hash of everything
    check(view)     before any use: raises IntegrityError naming file, rows and command, or returns the status of every row
"""

import hashlib
import json
from typing import Any

import numpy as np

from cache_specs import durable
from cache_specs.errors import IntegrityError, StorageError, UsageError
from cache_specs.store import CRC_BYTES, View, xxh3


def seal(view: View) -> None:
    """Declare the view finished. Raises IntegrityError if a shard is missing or has not the committed size."""
    root = root_hash(view)
    durable.write_json(view.folder / "complete.json", {"n": view.n, "shards": view.shards, "root": root}, "complete")


def root_hash(view: View) -> str:
    """sha256 over the identity of the view and every shard's digests; sizes on disk are compared on the way."""
    digest = hashlib.sha256(durable.canonical_json({key: value for key, value in view.attributes.items() if key != "provenance"}))
    for shard in range(view.shards):
        for name, record in sorted(read_commit(view, shard)["files"].items()):
            digest.update(f"{name}\0{record['sha256']}\n".encode())
    return digest.hexdigest()


def read_commit(view: View, shard: int) -> dict[str, Any]:
    """The commit record of a shard whose files have the committed sizes. Raises IntegrityError naming file, rows and command."""
    first, last = view.bounds(shard)
    try:
        record = json.loads(view.commit_file(shard).read_text(encoding="utf-8"))
        if record["shard"] != shard or record["rows"] != [first, last] or len(record["files"]) != 2:
            raise ValueError(f"it is the record of shard {record['shard']}")
        sizes = {name: (view.folder / name).stat().st_size for name in record["files"]}
        for path, expected in ((view.embeddings_file(shard), view.embeddings_bytes), (view.status_file(shard), view.rows + CRC_BYTES)):
            name = str(path.relative_to(view.folder))
            digests = record["files"][name]
            if not isinstance(digests["sha256"], str) or not isinstance(digests["xxh3"], str):
                raise ValueError(f"the digests of {name} are not text")
            if not sizes[name] == expected == digests["bytes"]:
                raise ValueError(f"{name} has {sizes[name]} bytes, expected {expected}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(view, shard, str(error)) from error
    return record


def check(view: View) -> np.ndarray:
    """Check that a view is finished and undamaged; return its status column, (N,) uint8.

    Sizes and the root hash are checked at every call; the digests of the shards once per (inode, size, mtime) of each file,
    remembered in `verified.json`. Raises UsageError (not finished) or IntegrityError (file, rows and command named).
    """
    if not view.is_complete:
        done = view.shards - len(view.pending())
        raise UsageError(f"the view {view.name!r} is not finished ({done} of {view.shards} shards in {view.folder}); "
                         f"finish it with make extract VIEW={view.name} DATA=…")
    try:
        complete = json.loads((view.folder / "complete.json").read_text(encoding="utf-8"))
        expected, count = complete["root"], (complete["n"], complete["shards"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{view.folder / 'complete.json'} cannot be read ({error}); delete it and extract the view again: "
                             "finished shards are kept") from error
    if root_hash(view) != expected or count != (view.n, view.shards):
        raise IntegrityError(f"{view.folder}: the commit records are not those that complete.json sealed; delete the folder and extract again")
    memory = view.folder / "verified.json"
    try:
        known = dict(json.loads(memory.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    stamps, status = {}, np.empty(view.n, np.uint8)
    for shard in range(view.shards):
        first, last = view.bounds(shard)
        for name, record in read_commit(view, shard)["files"].items():
            path = view.folder / name
            stat = path.stat()
            stamps[name] = [stat.st_ino, stat.st_size, stat.st_mtime_ns, record["xxh3"]]
            if known.get(name) != stamps[name] and xxh3(path.read_bytes()) != record["xxh3"]:
                raise damaged(view, shard, f"{name} has changed since it was written")
        status[first:last] = np.fromfile(view.status_file(shard), np.uint8, last - first)
    if stamps != known:
        try:
            durable.write_json(memory, stamps, "verified")
        except StorageError:
            pass                                                    # a read-only cache is checked anew at every start
    return status


def damaged(view: View, shard: int, what: str) -> IntegrityError:
    first, last = view.bounds(shard)
    return IntegrityError(f"{view.folder}: shard {shard} (rows {first} to {last - 1}) is damaged: {what}. Delete {view.commit_file(shard)} "
                          f"and {view.folder / 'complete.json'}, then make extract VIEW={view.name} DATA=… computes just this shard again")
