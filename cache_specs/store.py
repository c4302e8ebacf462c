"""A view's cache: a Zarr v3 group whose every shard is one chunk, one plain file, one commit record.

    <view>-<key12>/zarr.json            group; attributes: format, n, rows, spec, fingerprints, provenance, sha256 of the document
    <view>-<key12>/*/zarr.json          the two arrays; they repeat the attributes, so that one lost document is rebuilt from another
    <view>-<key12>/embeddings/c/I/0     rows [I*R, (I+1)*R): R x D little-endian float16, then the 4-byte crc32c of those bytes
    <view>-<key12>/status/c/I           R x uint8 (STATUS), then crc32c
    <view>-<key12>/commits/0000I.json   written last; the only proof that shard I exists
    <view>-<key12>/complete.json        all commit records and the root hash; the only proof that the view is finished

One writer writes one whole shard. Every file is written by `durable.write` (temp, fsync, rename, fsync of the folder), every JSON file
holds its own sha256. Any Zarr reader opens the group; ours maps the files (train/data/reader.py), so this module alone knows zarr
(and arrays.py, which reads other people's).
"""

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from base import durable, locks
from base.errors import IntegrityError, StaleError, UsageError, did_you_mean
from base.phrase import line_of
from cache_specs.items import IMPORTED
from cache_specs.sources import dataset_name, read_source
from cache_specs.spec import SPECS, differences, fingerprint, view_names
from cache_specs.view import (
    CRC_BYTES,
    DOCUMENTS,
    FORMAT,
    STATUS,
    View,
    check_documents,
    more_bad_rows,
    view_name,
    write_documents,
)

PARTS = ".lock-parts"  # held, shared, by the processes of one extraction


def view_folder(dataset: Path, name: str, declared: dict[str, Any], weights_sha256: str) -> Path:
    return dataset / f"{name}-{fingerprint(declared, weights_sha256)[:12]}"


def create_view(
    dataset: Path,
    name: str,
    declared: dict[str, Any],
    weights_sha256: str,
    items_fingerprint: str,
    n: int,
    rows: int,
    provenance: dict[str, Any],
) -> View:
    """Create the view's folder below the dataset's, or open it when it is there already (then `rows` is what it was made with).

    Raises StaleError when a view of that name exists with any other declared field or weights, naming field: old -> new, or was made
    of other images.
    """
    folder = view_folder(dataset, name, declared, weights_sha256)
    durable.make_folder(dataset)
    with locks.lock(dataset, wait=True):  # two starts at once must not mix their shard sizes
        for other in named_folders(dataset):
            if other != folder and view_name(other) == name:
                if is_created(other):
                    refuse_changed(open_view(other), declared, weights_sha256)
                elif is_leftover(other):
                    shutil.rmtree(other)  # a killed run began to make it, and no more
        if not is_created(folder):
            attributes = {
                "format": FORMAT,
                "view": name,
                "n": n,
                "rows": rows,
                "spec": declared,
                "weights_sha256": weights_sha256,
                "items_fingerprint": items_fingerprint,
                "provenance": provenance,
            }
            for sub in ("embeddings", "status", "commits"):
                durable.make_folder(folder / sub)
            write_documents(folder, attributes)
    view = open_view(folder)
    refuse_other_images(view, items_fingerprint, n)
    return view


def open_view(folder: Path) -> View:
    """Read a view's description, finished or not. Raises StaleError (other format version) or IntegrityError (damaged)."""
    try:
        group = durable.read_sealed(
            folder / "zarr.json"
        )  # first of all: a flipped version is damage, not another format
        version = group["attributes"]["format"]
        if version == FORMAT:
            embeddings, status = (_document(folder, name) for name in DOCUMENTS[:2])
            check_documents(folder, embeddings, status, group)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"the description of the view in {folder} is damaged ({error}). Type: {command(folder)}"
        ) from error
    if version != FORMAT:
        raise StaleError(
            f"{folder} has format {version}, this version reads {FORMAT}: extract it again in another CACHE"
        )
    attributes = dict(group["attributes"])
    return View(
        folder,
        attributes["n"],
        attributes["spec"]["width"],
        attributes["rows"],
        attributes.pop("sha256"),
        attributes,
    )


def _document(folder: Path, name: str) -> dict[str, Any]:
    try:
        return durable.read_sealed(folder / name)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def view_folders(dataset: Path, name: str = "") -> list[Path]:
    """The folders of the views called `name` (or of all), known by their own names: a damaged view is still a view."""
    return [
        folder
        for folder in named_folders(dataset)
        if is_created(folder) and name in ("", view_name(folder))
    ]


def named_folders(dataset: Path) -> list[Path]:
    """The folders that are named as views are; a killed run may have made one and no more."""
    return sorted(
        path
        for path in dataset.glob("*")
        if re.fullmatch(r".+-[0-9a-f]{12}", path.name) and path.is_dir()
    )


def is_created(folder: Path) -> bool:
    """Was the view's creation finished? What holds a commit or a seal was created, whatever has become of its zarr.json: open_view says."""
    return (
        (folder / "zarr.json").is_file()
        or (folder / "complete.json").is_file()
        or any((folder / "commits").glob("*.json"))
    )


def lost_folders(dataset: Path) -> list[Path]:
    """Folders that are named as views are and hold shards, but nothing that says what these are: of a copy that was cut short, say. No command touches them."""
    return [
        folder
        for folder in named_folders(dataset)
        if not folder.is_symlink()
        and not is_created(folder)
        and any((folder / "embeddings").glob("c/*/0"))
    ]


def is_leftover(folder: Path) -> bool:
    """Does the folder hold nothing but what a killed creation leaves behind?"""
    inside = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return (
        not folder.is_symlink()
        and not is_created(folder)
        and all(
            name in ("embeddings", "status", "commits")
            if path.is_dir()
            else path.name in ("zarr.json", ".zarr.json.tmp", ".lock", PARTS)
            for name, path in inside.items()
        )
    )


def find_view(dataset: Path, name: str, hint: str) -> View:
    """The finished or unfinished view `name` of a dataset. Raises UsageError with the command that makes it."""
    found = view_folders(dataset, name)
    if not found:
        known = sorted({view_name(folder) for folder in view_folders(dataset)})
        other = (
            f"; there is: {', '.join(known) or 'nothing yet'}"
            if name in view_names()
            else did_you_mean(name, known)
        )
        raise UsageError(f"no view {name!r} in {dataset}{other}. To extract it: {hint}")
    if len(found) > 1:
        raise StaleError(
            f"{dataset} holds {len(found)} versions of {name!r}: {', '.join(path.name for path in found)}; delete all but one"
        )
    return open_view(found[0])


def is_imported(dataset: Path, name: str) -> bool:
    """Is `name` a view whose embeddings were computed elsewhere? Then there is no spec that it could have drifted from."""
    folders = view_folders(dataset, name)
    return bool(folders) and open_view(folders[0]).attributes["spec"].get("backend") == IMPORTED


def command(folder: Path, target: str = "repair") -> str:
    """The command `make target` for the view in `folder`, to be copied out of a message. `extract` becomes `import` for an imported view."""
    dataset, cache = folder.parent, folder.parent.parent
    twin = (
        len(view_folders(dataset, view_name(folder))) > 1
    )  # two versions of one view: only the folder's own name tells them apart
    words, data = (
        {"VIEW": folder.name if twin else view_name(folder), "DATA": dataset.name},
        read_source(dataset),
    )
    if target == "extract":
        made: dict[str, Any] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            made = json.loads((folder / "zarr.json").read_bytes())["attributes"]["provenance"]
        if "imported" in made:
            flags = [
                flag
                for name, flag in (("by_row_order", "--by-row-order"), ("partial", "--partial"))
                if made.get(name)
            ]
            flags += ["--array", str(made["array"])] if made.get("array") else []
            target, words = (
                "import",
                {
                    **words,
                    "FROM": made.get("source", "…"),
                    **({"ARGS": shlex.join(flags)} if flags else {}),
                },
            )
        else:
            toml = Path(made.get("spec_file", SPECS / "x.toml"))
            bundled = toml.parent == SPECS or (
                toml.stem in view_names() and not toml.is_file()
            )  # also where it lay in an older version
            words = {"VIEW": words["VIEW"] if bundled else str(toml), "DATA": data or "…"}
            flags = (
                ["--name", view_name(dataset)]
                if data and dataset_name(data) != view_name(dataset)
                else []
            )
            flags += ["--max-bad", str(bad)] if (bad := more_bad_rows(folder)) else []
            words |= {"ARGS": shlex.join(flags)} if flags else {}
    if str(cache) != "cache":
        words["CACHE"] = str(cache)
    return line_of(target, words)


def refuse_other_images(view: View, items_fingerprint: str, n: int) -> None:
    """Raise StaleError unless the view was made of these images."""
    made_of = view.attributes["items_fingerprint"]
    if (made_of, view.n) != (items_fingerprint, n):
        raise StaleError(
            f"{view.folder} was made of other images than {view.folder.parent / 'items.parquet'}:\n"
            f"  items: {made_of[:12]} ({view.n} rows) -> {items_fingerprint[:12]} ({n} rows)\n"
            f"Delete {view.folder} and extract {view.name!r} again"
        )


def refuse_changed(view: View, declared: dict[str, Any], weights_sha256: str | None) -> None:
    """Raise StaleError when the view was made from another spec (or other weights, where they are given), or of other imported rows."""
    old, new = view.attributes["spec"].get("backend"), declared.get("backend")
    same = (old == IMPORTED) == (new == IMPORTED)  # else every field differs: the first says it all
    changed = (
        differences(view.attributes["spec"], declared) if same else [f"backend: {old} -> {new}"]
    )
    if weights_sha256 is not None and same:
        key = "embeddings.sha256" if new == IMPORTED else "weights.sha256"
        changed += differences({key: view.attributes["weights_sha256"]}, {key: weights_sha256})
    if changed:
        keep = (
            f"import these under another name: VIEW={view.name}-2"
            if new == IMPORTED
            else f"copy the spec to another name and extract that: VIEW=path/to/{view.name}-2.toml"
        )
        raise StaleError(
            f"the view {view.name!r} in {view.folder} was made {'of other embeddings' if old == new == IMPORTED else 'with another spec'}:\n  "
            + "\n  ".join(changed)
            + f"\nTo keep both, {keep}. To make it anew, delete {view.folder}",
            instead={"VIEW": f"{view.name}-2"} if new == IMPORTED else None,
        )


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Be a view's only writer; what a killed one left is swept or made durable. Raises StorageError naming the process that holds the lock."""
    with locks.lock(folder):
        with locks.lock(
            folder, wait=True, name=PARTS
        ):  # children of a killed writer die with it; wait until they have
            durable.sweep(folder)
            durable.sweep(folder, "progress-*.json")
        durable.settle(
            (
                *folder.parents[:3],
                folder,
                *(
                    folder / name
                    for name in ("embeddings", "embeddings/c", "status", "status/c", "commits")
                ),
            )
        )
        try:
            yield
        finally:
            durable.sweep(folder, "progress-*.json")


def write_shard(view: View, shard: int, emb_RD: np.ndarray, status_R: np.ndarray) -> None:
    """Write one whole shard and its commit. emb_RD: (R, D) float16, status_R: (R,) uint8; rows past N must be NaN and 0.

    Raises StorageError (disk full, read-only, failing); then the shard is simply not committed.
    """
    assert emb_RD.shape == (view.rows, view.width) and emb_RD.dtype == np.float16, (
        emb_RD.shape,
        emb_RD.dtype,
    )
    assert status_R.shape == (view.rows,) and status_R.dtype == np.uint8, (
        status_R.shape,
        status_R.dtype,
    )
    first, last = view.bounds(shard)
    count = last - first
    finite_R = np.isfinite(emb_RD).all(1)
    assert (
        (finite_R[:count] == (status_R[:count] == 0)).all()
        and np.isnan(emb_RD[count:]).all()
        and not status_R[count:].any()
    ), shard
    files = {}
    for (path, data), point in zip(
        shard_files(view, shard, emb_RD, status_R).items(), ("embeddings", "status"), strict=True
    ):
        durable.make_folder(path.parent)
        durable.write(path, data, point)
        files[str(path.relative_to(view.folder))] = {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "xxh3": xxh3(data),
        }
    counts = {
        STATUS[code]: int(number)
        for code, number in enumerate(np.bincount(status_R[:count]))
        if number
    }
    record = {
        "view": view.identity,
        "shard": shard,
        "rows": [first, last],
        "files": files,
        "status": counts,
    }
    durable.write(view.commit_file(shard), durable.sealed(record), "commit")


def shard_files(
    view: View, shard: int, emb_RD: np.ndarray, status_R: np.ndarray
) -> dict[Path, bytes]:
    """What the two files of a shard hold."""
    return {view.embeddings_file(shard): _chunk(emb_RD), view.status_file(shard): _chunk(status_R)}


def read_rows(view: View, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(K, D) float16 and (K,) uint8 of single committed rows. Their digests are not checked here."""
    emb_KD, status_K = np.empty((len(rows), view.width), np.float16), np.empty(len(rows), np.uint8)
    for place, row in enumerate(rows):
        shard, offset = divmod(row, view.rows)
        emb_KD[place] = np.fromfile(
            view.embeddings_file(shard), "<f2", view.width, offset=offset * view.width * 2
        )
        status_K[place] = np.fromfile(view.status_file(shard), np.uint8, 1, offset=offset)[0]
    return emb_KD, status_K


def _chunk(array: np.ndarray) -> bytes:
    """One Zarr chunk, codecs bytes + crc32c: C order, little-endian, then the checksum, little-endian."""
    import google_crc32c

    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return data + google_crc32c.value(data).to_bytes(CRC_BYTES, "little")


def xxh3(data: bytes) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)
