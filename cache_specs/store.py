"""A view's cache: a Zarr v3 group whose every shard is one chunk, one plain file, one commit record.

    <view>-<key12>/zarr.json            group; attributes: format, n, rows, spec, fingerprints, provenance, sha256 of the document
    <view>-<key12>/*/zarr.json          the two arrays; they repeat the attributes, so that one lost document is rebuilt from another
    <view>-<key12>/embeddings/c/I/0     rows [I*R, (I+1)*R): R x D little-endian float16, then the 4-byte crc32c of those bytes
    <view>-<key12>/status/c/I           R x uint8 (STATUS), then crc32c
    <view>-<key12>/commits/0000I.json   written last; the only proof that shard I exists
    <view>-<key12>/complete.json        all commit records and the root hash; the only proof that the view is finished

One writer writes one whole shard. Every file is written by `durable.write` (temp, fsync, rename, fsync of the folder), every JSON file
holds its own sha256. Any Zarr reader opens the group; ours maps the files (train/reader.py), so this module alone knows zarr.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cache_specs import durable
from cache_specs.errors import IntegrityError, StaleError, UsageError
from cache_specs.spec import differences, fingerprint
from cache_specs.view import CRC_BYTES, STATUS, View, view_name

FORMAT = 1
DOCUMENTS = ("embeddings/zarr.json", "status/zarr.json", "zarr.json")               # the group's own last: it says "created"
PARTS = ".lock-parts"                                                               # held, shared, by the processes of one extraction
IMPORTED = "imported"                                                               # spec.backend of embeddings that were computed elsewhere


def view_folder(dataset: Path, name: str, declared: dict[str, Any], weights_sha256: str) -> Path:
    return dataset / f"{name}-{fingerprint(declared, weights_sha256)[:12]}"


def create_view(dataset: Path, name: str, declared: dict[str, Any], weights_sha256: str, items_fingerprint: str, n: int, rows: int,
                provenance: dict[str, Any]) -> View:
    """Create the view's folder below the dataset's, or open it when it is there already (then `rows` is what it was made with).

    Raises StaleError when a view of that name exists with any other declared field or weights, naming field: old -> new, or was made
    of other images.
    """
    folder = view_folder(dataset, name, declared, weights_sha256)
    durable.make_folder(dataset)
    with durable.lock(dataset, wait=True):                  # two starts at once must not mix their shard sizes
        for other in view_folders(dataset, name):
            if other != folder:
                refuse_changed(open_view(other), declared, weights_sha256)
        if not _is_created(folder):
            attributes = {"format": FORMAT, "view": name, "n": n, "rows": rows, "spec": declared, "weights_sha256": weights_sha256,
                          "items_fingerprint": items_fingerprint, "provenance": provenance}
            for sub in ("embeddings", "status", "commits"):
                durable.make_folder(folder / sub)
            write_documents(folder, attributes)
    view = open_view(folder)
    refuse_other_images(view, items_fingerprint, n)
    return view


def _is_created(folder: Path) -> bool:
    """A folder that holds commits was created, whatever has become of its zarr.json: open_view then says what is wrong."""
    return (folder / "zarr.json").is_file() or any((folder / "commits").glob("*.json"))


def write_documents(folder: Path, attributes: dict[str, Any]) -> None:
    """The three zarr.json files of a view."""
    documents = _zarr_documents(attributes)
    for name in DOCUMENTS:
        durable.write(folder / name, durable.sealed(documents[name]), "metadata")


def open_view(folder: Path) -> View:
    """Read a view's description, finished or not. Raises StaleError (other format version) or IntegrityError (damaged)."""
    try:
        group = json.loads((folder / "zarr.json").read_bytes())
        version = group["attributes"]["format"]
        if version == FORMAT:
            embeddings, status, group = (durable.read_sealed(folder / name) for name in DOCUMENTS)
            check_documents(folder, embeddings, status, group)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"the description of the view in {folder} is damaged ({error}). Type: {command(folder)}") from error
    if version != FORMAT:
        raise StaleError(f"{folder} has format {version}, this version reads {FORMAT}: extract it again in another CACHE")
    attributes = dict(group["attributes"])
    return View(folder, attributes["n"], attributes["spec"]["width"], attributes["rows"], attributes.pop("sha256"), attributes)


def check_documents(folder: Path, embeddings: dict[str, Any], status: dict[str, Any], group: dict[str, Any]) -> None:
    """Raise ValueError or KeyError unless the three documents, each intact, belong together and to the folder."""
    own = [{key: value for key, value in document["attributes"].items() if key != "sha256"} for document in (embeddings, status, group)]
    n, rows, width = own[2]["n"], own[2]["rows"], own[2]["spec"]["width"]
    grid = [document["chunk_grid"]["configuration"]["chunk_shape"] for document in (embeddings, status)]
    if not own[0] == own[1] == own[2] or [embeddings["shape"], status["shape"], *grid] != [[n, width], [n], [rows, width], [rows]]:
        raise ValueError("embeddings/zarr.json or status/zarr.json is that of another view")
    if fingerprint(own[2]["spec"], own[2]["weights_sha256"])[:12] != folder.name.rpartition("-")[2]:
        raise ValueError("zarr.json does not belong to this folder")


def view_folders(dataset: Path, name: str = "") -> list[Path]:
    """The folders of the views called `name` (or of all), known by their own names: a damaged view is still a view."""
    return sorted(path for path in dataset.glob("*") if re.fullmatch(r".+-[0-9a-f]{12}", path.name) and path.is_dir()
                  and name in ("", view_name(path)))


def find_view(dataset: Path, name: str, hint: str) -> View:
    """The finished or unfinished view `name` of a dataset. Raises UsageError with the command that makes it."""
    found = view_folders(dataset, name)
    if not found:
        known = sorted({view_name(folder) for folder in view_folders(dataset)})
        raise UsageError(f"no view {name!r} in {dataset} (there is: {', '.join(known) or 'nothing yet'}). Extract it first: {hint}")
    if len(found) > 1:
        raise StaleError(f"{dataset} holds {len(found)} versions of {name!r}: {', '.join(path.name for path in found)}; delete all but one")
    return open_view(found[0])


def is_imported(dataset: Path, name: str) -> bool:
    """Is `name` a view whose embeddings were computed elsewhere? Then there is no spec that it could have drifted from."""
    folders = view_folders(dataset, name)
    return bool(folders) and open_view(folders[0]).attributes["spec"].get("backend") == IMPORTED


def command(folder: Path, target: str = "repair") -> str:
    """The command that mends the view in `folder`, to be copied out of a message."""
    dataset, cache = folder.parent, folder.parent.parent
    where = "" if str(cache) == "cache" else f" CACHE={shlex.quote(str(cache))}"
    return f"make {target} VIEW={shlex.quote(view_name(folder))} DATA={shlex.quote(dataset.name)}{where}"


def refuse_other_images(view: View, items_fingerprint: str, n: int) -> None:
    """Raise StaleError unless the view was made of these images."""
    made_of = view.attributes["items_fingerprint"]
    if (made_of, view.n) != (items_fingerprint, n):
        raise StaleError(f"{view.folder} was made of other images than {view.folder.parent / 'items.parquet'}:\n"
                         f"  items: {made_of[:12]} ({view.n} rows) -> {items_fingerprint[:12]} ({n} rows)\n"
                         f"Delete {view.folder} and extract {view.name!r} again")


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
def writer_lock(folder: Path) -> Iterator[None]:
    """Be a view's only writer; what a killed one left is swept. Raises StorageError naming the process that holds the lock."""
    with durable.lock(folder):
        with durable.lock(folder, wait=True, name=PARTS):   # children of a killed writer die with it; wait until they have
            durable.sweep(folder)
        try:
            yield
        finally:
            durable.sweep(folder, "progress-*.json")


def write_shard(view: View, shard: int, emb_RD: np.ndarray, status_R: np.ndarray, seconds: float) -> None:
    """Write one whole shard and its commit. emb_RD: (R, D) float16, status_R: (R,) uint8; rows past N must be NaN and 0.

    Raises StorageError (disk full, read-only, failing); then the shard is simply not committed.
    """
    assert emb_RD.shape == (view.rows, view.width) and emb_RD.dtype == np.float16, (emb_RD.shape, emb_RD.dtype)
    assert status_R.shape == (view.rows,) and status_R.dtype == np.uint8, (status_R.shape, status_R.dtype)
    first, last = view.bounds(shard)
    count = last - first
    finite_R = np.isfinite(emb_RD).all(1)
    assert (finite_R[:count] == (status_R[:count] == 0)).all() and np.isnan(emb_RD[count:]).all() and not status_R[count:].any(), shard
    files = {}
    for path, array, point in ((view.embeddings_file(shard), emb_RD, "embeddings"), (view.status_file(shard), status_R, "status")):
        data = _chunk(array)
        durable.make_folder(path.parent)
        durable.write(path, data, point)
        files[str(path.relative_to(view.folder))] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "xxh3": xxh3(data)}
    counts = {STATUS[code]: int(number) for code, number in enumerate(np.bincount(status_R[:count])) if number}
    record = {"view": view.identity, "shard": shard, "rows": [first, last], "files": files, "status": counts, "seconds": round(seconds, 3)}
    durable.write(view.commit_file(shard), durable.sealed(record), "commit")


def _chunk(array: np.ndarray) -> bytes:
    """One Zarr chunk, codecs bytes + crc32c: C order, little-endian, then the checksum, little-endian."""
    import google_crc32c

    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return data + google_crc32c.value(data).to_bytes(CRC_BYTES, "little")


def xxh3(data: bytes) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def _zarr_documents(attributes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The three zarr.json documents, made by zarr itself in memory, so that we can seal and write them durably."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    n, rows, width = attributes["n"], attributes["rows"], attributes["spec"]["width"]
    memory: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(memory), zarr_format=3, attributes=attributes)
    common: dict[str, Any] = {"serializer": BytesCodec(endian="little"), "compressors": [Crc32cCodec()], "filters": None, "attributes": attributes}
    group.create_array("embeddings", shape=(n, width), chunks=(rows, width), dtype="float16", fill_value=float("nan"), **common)
    group.create_array("status", shape=(n,), chunks=(rows,), dtype="uint8", fill_value=255,
                       **{**common, "serializer": BytesCodec(endian=None)})
    return {name: json.loads(memory[name].to_bytes()) for name in DOCUMENTS}
