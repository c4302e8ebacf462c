"""A view's cache: a Zarr v3 group; each shard is one chunk, one plain file, one commit record.

    <view>-<key12>/zarr.json            group; attributes: format, n, rows, spec, fingerprints,
                                        provenance, sha256 of the document
    <view>-<key12>/*/zarr.json          the two arrays; they repeat the attributes, so that one lost
                                        document is rebuilt from another
    <view>-<key12>/embeddings/c/I/0     rows [I*R, (I+1)*R): R x D little-endian float16, then the
                                        4-byte crc32c of those bytes
    <view>-<key12>/status/c/I           R x uint8 (STATUS), then crc32c
    <view>-<key12>/commits/0000I.json   written last; the only proof that shard I exists
    <view>-<key12>/complete.json        all commit records and the root hash; the only proof that
                                        the view is finished

One writer writes one whole shard. Every file is written by `durable.write` (temp, fsync, rename,
fsync of the folder), every JSON file holds its own sha256. Any Zarr reader opens the group; ours
maps the files (train/data/reader.py), so view.py alone knows zarr (and exchange/arrays.py, which
reads other people's).
"""

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from base import durable, locks
from base.errors import UNKNOWN, IntegrityError, StaleError, UsageError, did_you_mean
from base.phrase import line_of
from cache_specs.sources import dataset_name, read_source, recorded_words
from cache_specs.spec import (
    PIXELS,
    changed_fields,
    differences,
    fingerprint,
    pixels_of,
    view_names,
)
from cache_specs.versions import IMPORTED
from cache_specs.view import (
    CRC_BYTES,
    DOCUMENTS,
    FORMAT,
    STATUS,
    View,
    check_documents,
    more_bad_rows,
    status_counts,
    view_name,
    write_documents,
)

__all__ = ["DOCUMENTS", "IMPORTED", "STATUS", "View"]  # for those who know the store alone
PARTS = ".lock-parts"  # held, shared, by the processes of one extraction
FOLDERS = ("embeddings", "status", "commits")
ARRIVING = ".pull"  # of a data set: the views that come from elsewhere and are not whole yet


def view_folder(dataset: Path, name: str, declared: dict[str, Any], weights_sha256: str) -> Path:
    return dataset / f"{name}-{fingerprint(declared, weights_sha256)[:12]}"


def create_view(
    dataset: Path,
    name: str,
    declared: dict[str, Any],
    weights_sha256: str,
    images: tuple[str, int],
    rows: int,
    provenance: dict[str, Any],
) -> View:
    """Create the view's folder below the dataset's, or open it when it is there already (then
    `rows` is what it was made with).

    images: the fingerprint of the item list, and how many these are.
    Raises StaleError when a view of that name exists with any other declared field or weights,
    naming field: old -> new, or was made of other images.
    """
    folder = view_folder(dataset, name, declared, weights_sha256)
    durable.make_folder(dataset)
    with locks.lock(dataset, wait=True):  # two starts at once must not mix their shard sizes
        there = is_created(folder)
        for other in named_folders(dataset):
            if other == folder or view_name(other) != name:
                continue
            if is_leftover(other):
                shutil.rmtree(other)  # a killed run began to make it, and no more
            elif is_created(other) and not there:
                refuse_changed(open_view(other), declared, weights_sha256)
        if not there:
            attributes = {
                "format": FORMAT,
                "view": name,
                "n": images[1],
                "rows": rows,
                "spec": declared,
                "weights_sha256": weights_sha256,
                "items_fingerprint": images[0],
                "provenance": provenance,
            }
            for sub in FOLDERS:
                durable.make_folder(folder / sub)
            write_documents(folder, attributes)
    view = open_view(folder)
    refuse_other_images(view, *images)
    return view


def open_view(folder: Path) -> View:
    """Read a view's description, finished or not. Raises StaleError (other format version) or
    IntegrityError (damaged)."""
    try:
        # first of all: a flipped version is damage, not another format
        group = durable.read_sealed(folder / "zarr.json")
        version = group["attributes"]["format"]
        if version == FORMAT:
            documents = {name: _document(folder, name) for name in DOCUMENTS[:2]}
            check_documents(folder, {**documents, "zarr.json": group})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"the description of the view in {folder} is damaged ({error}). Type: {command(folder)}"
        ) from error
    if version != FORMAT:
        raise StaleError(
            f"{folder} has format {version}, this version reads {FORMAT}: extract it again in "
            "another CACHE",
            instead={"CACHE": UNKNOWN},
        )
    attributes = dict(group["attributes"])
    identity = attributes.pop("sha256")
    n, width, rows = attributes["n"], attributes["spec"]["width"], attributes["rows"]
    return View(folder, n, width, rows, identity, attributes)


def _document(folder: Path, name: str) -> dict[str, Any]:
    try:
        return durable.read_sealed(folder / name)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def view_folders(dataset: Path, name: str = "") -> list[Path]:
    """The folders of the views called `name` (or of all), known by their own names: a damaged view
    is still a view."""
    created = filter(is_created, named_folders(dataset))
    return [folder for folder in created if name in ("", view_name(folder))]


def called(folders: Sequence[Path], name: str) -> list[Path]:
    """Those of the views called so, or else the one of which it is the folder's own name."""
    found = [folder for folder in folders if name in ("", view_name(folder))]
    return found or [folder for folder in folders if folder.name == name]


def named_folders(dataset: Path) -> list[Path]:
    """The folders that are named as views are; a killed run may have made one and no more."""
    named = re.compile(r".+-[0-9a-f]{12}")
    return sorted(p for p in dataset.glob("*") if named.fullmatch(p.name) and p.is_dir())


def is_created(folder: Path) -> bool:
    """Was the view's creation finished? What holds a commit or a seal was created, whatever has
    become of its zarr.json: open_view says."""
    return (
        (folder / "zarr.json").is_file()
        or (folder / "complete.json").is_file()
        or any((folder / "commits").glob("*.json"))
    )


def lost_folders(dataset: Path) -> list[Path]:
    """Folders that are named as views are and hold shards, but nothing that says what these are: of
    a copy that was cut short, say. No command touches them."""
    found = []
    for folder in named_folders(dataset):
        has_shards = any((folder / "embeddings").glob("c/*/0"))
        if has_shards and not folder.is_symlink() and not is_created(folder):
            found.append(folder)
    return found


def is_leftover(folder: Path) -> bool:
    """Does the folder hold nothing but what a killed creation leaves behind?"""
    if folder.is_symlink() or is_created(folder):
        return False
    for path in folder.rglob("*"):
        if path.is_dir():
            expected = str(path.relative_to(folder)) in FOLDERS
        else:
            expected = path.name in ("zarr.json", ".zarr.json.tmp", ".lock", PARTS)
        if not expected:
            return False
    return True


def find_view(dataset: Path, name: str, hint: str, among: Sequence[str] = ()) -> View:
    """The finished or unfinished view `name` of a dataset: a view's name, or its folder's own.
    among: what stands beside it in VIEWS.

    Raises UsageError with the command that makes it, and where several are called so, what tells
    them apart and how each is named.
    """
    found = called(view_folders(dataset), name)
    if not found:
        known = sorted({view_name(folder) for folder in view_folders(dataset)})
        other = did_you_mean(name, known)
        if name in view_names():
            other = f"; there is: {', '.join(known) or 'nothing yet'}"
        raise UsageError(f"no view {name!r} in {dataset}{other}. To extract it: {hint}")
    if len(found) > 1:
        raise several(found, name, among)
    return open_view(found[0])


def several(folders: Sequence[Path], name: str, among: Sequence[str] = ()) -> UsageError:
    """That several views of a data set have one name: the fields in which each differs from the
    first, and that a folder's own name is that of one."""
    first, lines = made_with(folders[0]), []
    for folder in folders:
        changed = differences(first, made_with(folder))
        lines += [f"  {folder.name}", *(f"    {line}" for line in changed)]
    listed = "\n".join(lines)
    own = folders[0].name
    beside = [own if one in (name, view_name(folders[0])) else one for one in among]
    return UsageError(
        f"{folders[0].parent} has {len(folders)} views called {name!r}, made with different specs "
        f"(below each: how it differs from the first):\n{listed}\nName one by its folder's name, "
        f"such as {folders[-1].name}",
        instead={"VIEW": own, "VIEWS": ",".join(beside) or own},
    )


def command(folder: Path, target: str = "repair", flags: Sequence[str] = ()) -> str:
    """The command `make target` for the view in `folder`, to be copied out of a message. `extract`
    becomes `import` for an imported view. flags: of extract, besides."""
    dataset, cache = folder.parent, folder.parent.parent
    # of two versions of one view only the folder's own name tells which
    twin = len(view_folders(dataset, view_name(folder))) > 1
    words = {"VIEW": folder.name if twin else view_name(folder), "DATA": dataset.name}
    if target == "extract":
        made = provenance(folder)
        if "imported" in made:
            target, words = "import", {**words, **_import_words(made)}
        else:
            words = _extract_words(folder, words["VIEW"], made, flags)
    if str(cache) != "cache":
        words["CACHE"] = str(cache)
    return line_of(target, words)


def provenance(folder: Path) -> dict[str, Any]:
    """How the view came to be, as far as a damaged zarr.json still says it."""
    return _attributes(folder).get("provenance", {})


def made_with(folder: Path) -> dict[str, Any]:
    """The spec of a view and the sha256 of its weights, likewise."""
    told = _attributes(folder)
    return {**told.get("spec", {}), "weights.sha256": told.get("weights_sha256")}


def of_spec(folders: Sequence[Path], declared: dict[str, Any]) -> list[Path]:
    """Those of the views that were made with this spec, with whatever weights."""
    return [one for one in folders if not differences(_attributes(one).get("spec", {}), declared)]


def _attributes(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "zarr.json").read_bytes())["attributes"]
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _import_words(made: dict[str, Any]) -> dict[str, str]:
    """What `make import` was given besides VIEW and DATA."""
    flags = []
    if made.get("by_row_order"):
        flags.append("--by-row-order")
    if made.get("partial"):
        flags.append("--partial")
    if made.get("array"):
        flags += ["--array", str(made["array"])]
    return {"FROM": made.get("source", "…"), **_args(flags)}


def _extract_words(
    folder: Path, view: str, made: dict[str, Any], more: Sequence[str] = ()
) -> dict[str, str]:
    """What `make extract` was given, and `more` flags."""
    toml = Path(made.get("spec_file", ""))
    own = view_name(folder)
    # where the file is gone, or is that of another one, the cache knows the view and its spec
    named = view != own or is_of_project(made, own) or not toml.is_file()
    name, data = view_name(folder.parent), read_source(folder.parent)
    flags = []
    if data and dataset_name(data) != name:
        flags += ["--name", name]
    if words := recorded_words(folder.parent):
        flags += ["--as-class", ",".join(words)]
    if bad := more_bad_rows(folder):
        flags += ["--max-bad", str(bad)]
    return {"VIEW": view if named else str(toml), "DATA": data or UNKNOWN, **_args([*flags, *more])}


def is_of_project(made: Mapping[str, Any], name: str) -> bool:
    """Whether a view of this provenance was made with a spec that comes with the project, and not
    with somebody's own of the same name. A checkout may have been elsewhere, and its specs."""
    if name not in view_names():
        return False
    return "spec_file" not in made or "cache_specs" in Path(made["spec_file"]).parts[-3:-1]


def _args(flags: Sequence[str]) -> dict[str, str]:
    return {"ARGS": shlex.join(flags)} if flags else {}


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
    """Raise StaleError when the view was made from another spec (or other weights, where they are
    given), or of other imported rows."""
    spec = view.attributes["spec"]
    old, new = spec.get("backend"), declared.get("backend")
    if (old == IMPORTED) != (new == IMPORTED):  # every field differs: the first says it all
        changed = [f"backend: {old} -> {new}"]
    else:
        changed = changed_fields(spec, declared)
        if weights_sha256 is not None:
            key = "embeddings.sha256" if new == IMPORTED else "weights.sha256"
            weights = ({key: view.attributes["weights_sha256"]}, {key: weights_sha256})
            changed += differences(*weights)
    if not changed:
        return
    if [line.partition(":")[0] for line in changed] == ["preprocess.pixels"]:
        raise _other_pixels(view, changed[0])
    other = f"{view.name}-2"
    if new == IMPORTED:
        keep, instead = f"import these under another name: VIEW={other}", {"VIEW": other}
    else:
        keep = f"copy the spec to another name and extract that: VIEW=path/to/{other}.toml"
        instead = None
    how = "of other embeddings" if old == new == IMPORTED else "with another spec"
    lines = "\n  ".join(changed)
    raise StaleError(
        f"the view {view.name!r} in {view.folder} was made {how}:\n  {lines}\n"
        f"To keep both, {keep}. To make it anew, delete {view.folder}",
        instead=instead,
    )


def _other_pixels(view: View, changed: str) -> StaleError:
    spec = Path(view.attributes["provenance"].get("spec_file", f"{view.name}.toml"))
    return StaleError(
        f"the view {view.name!r} in {view.folder} was made with another version of the pixels:\n"
        f"  {changed}\n"
        "What is finished stays good for training and prediction. To embed all images anew, beside "
        f"it, type:\n  {anew(view.folder)}\n"
        f"To go on with the pixels of then, name a copy of {spec.name}, called so too, that has "
        f"pixels = {pixels_of(view.attributes['spec'])} in its [preprocess]"
    )


def anew(folder: Path) -> str:
    """The command that embeds the images of a view anew, into a cache beside its own, with the
    pixels as they are made now."""
    words = _extract_words(folder, view_name(folder), provenance(folder))
    words["CACHE"] = f"{folder.parent.parent}-pixels-{PIXELS}"
    return line_of("extract", words)


@contextmanager
def writer_lock(folder: Path) -> Generator[None]:
    """Be a view's only writer; what a killed one left is swept or made durable. Raises StorageError
    naming the process that holds the lock."""
    with locks.lock(folder):
        # children of a killed writer die with it; wait until they have
        with locks.lock(folder, wait=True, name=PARTS):
            durable.sweep(folder)
            durable.sweep(folder, "progress-*.json")
        inner = ("embeddings", "embeddings/c", "status", "status/c", "commits")
        durable.settle((*folder.parents[:3], folder, *(folder / name for name in inner)))
        try:
            yield
        finally:
            durable.sweep(folder, "progress-*.json")


def write_shard(view: View, shard: int, emb_RD: np.ndarray, status_R: np.ndarray) -> None:
    """Write one whole shard and its commit. emb_RD: (R, D) float16, status_R: (R,) uint8; rows past
    N must be NaN and 0.

    Raises StorageError (disk full, read-only, failing); then the shard is simply not committed.
    """
    _assert_whole(view, shard, emb_RD, status_R)
    first, last = view.bounds(shard)
    contents = shard_files(view, shard, emb_RD, status_R)
    files = {}
    for (path, data), point in zip(contents.items(), ("embeddings", "status"), strict=True):
        durable.make_folder(path.parent)
        durable.write(path, data, point)
        name, digest = str(path.relative_to(view.folder)), hashlib.sha256(data).hexdigest()
        files[name] = {"bytes": len(data), "sha256": digest}
    record = {
        "view": view.identity,
        "shard": shard,
        "rows": [first, last],
        "files": files,
        "status": status_counts(status_R[: last - first]),
    }
    durable.write(view.commit_file(shard), durable.sealed(record), "commit")


def _assert_whole(view: View, shard: int, emb_RD: np.ndarray, status_R: np.ndarray) -> None:
    """A row is finite where its status is 0, and NaN and 0 past N."""
    embeddings, status = (emb_RD.shape, emb_RD.dtype), (status_R.shape, status_R.dtype)
    assert embeddings == ((view.rows, view.width), np.float16), embeddings
    assert status == ((view.rows,), np.uint8), status
    first, last = view.bounds(shard)
    count = last - first
    finite_R = np.all(np.isfinite(emb_RD), axis=1)
    assert (finite_R[:count] == (status_R[:count] == 0)).all(), shard
    assert np.isnan(emb_RD[count:]).all() and not status_R[count:].any(), shard


def shard_files(
    view: View, shard: int, emb_RD: np.ndarray, status_R: np.ndarray
) -> dict[Path, bytes]:
    """What the two files of a shard hold."""
    return {view.embeddings_file(shard): _chunk(emb_RD), view.status_file(shard): _chunk(status_R)}


def read_rows(view: View, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(K, D) float16 and (K,) uint8 of single committed rows. Their digests are not checked."""
    emb_KD = np.empty((len(rows), view.width), np.float16)
    status_K = np.empty(len(rows), np.uint8)
    for place, row in enumerate(rows):
        shard, offset = divmod(row, view.rows)
        embeddings, at = view.embeddings_file(shard), offset * view.width * 2
        emb_KD[place] = np.fromfile(embeddings, "<f2", view.width, offset=at)
        status_K[place] = np.fromfile(view.status_file(shard), np.uint8, 1, offset=offset)[0]
    return emb_KD, status_K


def _chunk(array: np.ndarray) -> bytes:
    """One Zarr chunk, codecs bytes + crc32c: C order, little-endian, then the checksum, too."""
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return data + google_crc32c.value(data).to_bytes(CRC_BYTES, "little")
