"""A view's cache: a Zarr v3 group whose every shard is one chunk, one plain file, one commit record.

    <view>-<key12>/zarr.json            group; attributes: format, spec, fingerprints, provenance
    <view>-<key12>/embeddings/c/I/0     rows [I*R, (I+1)*R): R x D little-endian float16, then the 4-byte crc32c of those bytes
    <view>-<key12>/status/c/I           R x uint8 (STATUS), then crc32c
    <view>-<key12>/commits/0000I.json   written last; the only proof that shard I exists
    <view>-<key12>/complete.json        written when all are committed; the only proof that the view is finished

One writer writes one whole shard. Every file is written by `durable.write` (temp, fsync, rename, fsync of the folder).
Any Zarr reader opens the group; ours maps the files (train/reader.py), so this module alone knows zarr.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_specs import durable
from cache_specs.errors import IntegrityError, StaleError, UsageError
from cache_specs.spec import differences, fingerprint

FORMAT = 1
CRC_BYTES = 4
STATUS = ("ok", "undecodable", "truncated", "missing", "non-finite", "too large")   # status/ holds the index


@dataclass(frozen=True)
class View:
    """A view's folder as its zarr.json describes it: N rows of width D in shards of R rows."""

    folder: Path
    n: int
    width: int
    rows: int
    attributes: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name.rpartition("-")[0]

    @property
    def shards(self) -> int:
        return math.ceil(self.n / self.rows)

    def bounds(self, shard: int) -> tuple[int, int]:
        """The rows [first, last) of a shard; the file is padded to R rows with NaN."""
        return shard * self.rows, min((shard + 1) * self.rows, self.n)

    def embeddings_file(self, shard: int) -> Path:
        return self.folder / "embeddings" / "c" / str(shard) / "0"

    def status_file(self, shard: int) -> Path:
        return self.folder / "status" / "c" / str(shard)

    def commit_file(self, shard: int) -> Path:
        return self.folder / "commits" / f"{shard:05d}.json"

    @property
    def embeddings_bytes(self) -> int:
        return self.rows * self.width * 2 + CRC_BYTES

    @property
    def is_complete(self) -> bool:
        return (self.folder / "complete.json").is_file()

    def pending(self) -> list[int]:
        """The shards without a commit record, in order."""
        return [shard for shard in range(self.shards) if not self.commit_file(shard).is_file()]


def default_rows(n: int) -> int:
    """Rows a shard: 4,096, so that every shard is a whole number of pages and a loss costs little; fewer only for tiny sets."""
    return 4096 if n > 8192 else 512


def create_view(dataset: Path, name: str, declared: dict[str, Any], weights_sha256: str, items_fingerprint: str, n: int, rows: int,
                provenance: dict[str, Any]) -> View:
    """Create the view's folder below the dataset's, or open it when it is there already (then `rows` is what it was made with).

    Raises StaleError when a view of that name exists with any other declared field or weights, naming field: old -> new.
    """
    attributes = {"format": FORMAT, "view": name, "spec": declared, "weights_sha256": weights_sha256,
                  "items_fingerprint": items_fingerprint, "provenance": provenance}
    folder = dataset / f"{name}-{fingerprint(declared, weights_sha256)[:12]}"
    for other in view_folders(dataset, name):
        if other != folder:
            refuse_changed(open_view(other), declared, weights_sha256)
    if not (folder / "zarr.json").is_file():
        for sub in ("embeddings", "status", "commits"):
            durable.make_folder(folder / sub)
        metadata = _zarr_metadata(n, declared["width"], rows, attributes)
        for relative in ("embeddings/zarr.json", "status/zarr.json", "zarr.json"):      # the group's own last: it says "created"
            durable.write(folder / relative, metadata[relative], "metadata")
    return open_view(folder)


def open_view(folder: Path) -> View:
    """Read a view's description, finished or not. Raises StaleError (other format version) or IntegrityError (damaged)."""
    try:
        attributes = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        array = json.loads((folder / "embeddings" / "zarr.json").read_text(encoding="utf-8"))
        (n, width), (rows, columns) = array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"]
        view = View(folder, n, width, rows, attributes)
        if attributes["format"] != FORMAT:
            raise StaleError(f"{folder} has format {attributes['format']}, this version reads {FORMAT}: extract it again in another CACHE")
        key = fingerprint(attributes["spec"], attributes["weights_sha256"])
        intact = columns == width == attributes["spec"]["width"] and key[:12] == folder.name.rpartition("-")[2]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{folder / 'zarr.json'} cannot be read ({error}); delete the folder and extract the view again") from error
    if not intact:
        raise IntegrityError(f"{folder / 'zarr.json'} does not belong to its folder; delete the folder and extract the view again")
    return view


def view_folders(dataset: Path, name: str) -> list[Path]:
    return sorted(path.parent for path in dataset.glob("*/zarr.json") if path.parent.name.rpartition("-")[0] == name)


def find_view(dataset: Path, name: str, hint: str) -> View:
    """The finished or unfinished view `name` of a dataset. Raises UsageError with the command that makes it."""
    found = view_folders(dataset, name)
    if not found:
        known = sorted({path.parent.name.rpartition("-")[0] for path in dataset.glob("*/zarr.json")})
        raise UsageError(f"no view {name!r} in {dataset} (there is: {', '.join(known) or 'nothing yet'}). Extract it first: {hint}")
    if len(found) > 1:
        raise StaleError(f"{dataset} holds {len(found)} versions of {name!r}: {', '.join(path.name for path in found)}; delete all but one")
    return open_view(found[0])


def refuse_changed(view: View, declared: dict[str, Any], weights_sha256: str | None) -> None:
    """Raise StaleError when the view was made from another spec (or other weights, where they are given)."""
    changed = differences(view.attributes["spec"], declared)
    if weights_sha256 is not None:
        changed += differences({"weights.sha256": view.attributes["weights_sha256"]}, {"weights.sha256": weights_sha256})
    if changed:
        raise StaleError(f"the view {view.name!r} in {view.folder} was made with another spec:\n  " + "\n  ".join(changed) +
                         f"\nTo keep both, copy the spec to another name and extract that: VIEW=path/to/{view.name}-2.toml. "
                         f"To make it anew, delete {view.folder}")


@contextmanager
def writer_lock(view: View) -> Iterator[None]:
    """Be the view's only writer; what a killed one left is swept. Raises StorageError naming the process that holds the lock."""
    with durable.lock(view.folder):
        durable.sweep(view.folder)
        yield


def write_shard(view: View, shard: int, emb_RD: np.ndarray, status_R: np.ndarray, seconds: float) -> None:
    """Write one whole shard and its commit. emb_RD: (R, D) float16, status_R: (R,) uint8; rows past N must be NaN and 0.

    Raises StorageError (disk full, read-only, failing); then the shard is simply not committed.
    """
    assert emb_RD.shape == (view.rows, view.width) and emb_RD.dtype == np.float16, (emb_RD.shape, emb_RD.dtype)
    assert status_R.shape == (view.rows,) and status_R.dtype == np.uint8, (status_R.shape, status_R.dtype)
    first, last = view.bounds(shard)
    count = last - first
    assert np.isfinite(emb_RD[:count][status_R[:count] == 0]).all() and np.isnan(emb_RD[count:]).all(), shard
    files = {}
    for path, array, point in ((view.embeddings_file(shard), emb_RD, "embeddings"), (view.status_file(shard), status_R, "status")):
        data = _chunk(array)
        durable.make_folder(path.parent)
        durable.write(path, data, point)
        files[str(path.relative_to(view.folder))] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "xxh3": xxh3(data)}
    counts = {STATUS[code]: int(number) for code, number in enumerate(np.bincount(status_R[:count])) if number}
    record = {"shard": shard, "rows": [first, last], "files": files, "status": counts, "seconds": round(seconds, 3)}
    durable.write_json(view.commit_file(shard), record, "commit")


def _chunk(array: np.ndarray) -> bytes:
    """One Zarr chunk, codecs bytes + crc32c: C order, little-endian, then the checksum, little-endian."""
    import google_crc32c

    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return data + google_crc32c.value(data).to_bytes(CRC_BYTES, "little")


def xxh3(data: bytes) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def _zarr_metadata(n: int, width: int, rows: int, attributes: dict[str, Any]) -> dict[str, bytes]:
    """The three zarr.json files, made by zarr itself in memory, so that we can write them durably."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    memory: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(memory), zarr_format=3, attributes=attributes)
    common: dict[str, Any] = {"serializer": BytesCodec(endian="little"), "compressors": [Crc32cCodec()], "filters": None}
    group.create_array("embeddings", shape=(n, width), chunks=(rows, width), dtype="float16", fill_value=float("nan"), **common)
    group.create_array("status", shape=(n,), chunks=(rows,), dtype="uint8", fill_value=255,
                       **{**common, "serializer": BytesCodec(endian=None)})
    return {name: buffer.to_bytes() for name, buffer in memory.items()}
