"""A dataset's item list: which images, in which order, with which labels. Written once per dataset as Parquet.

    cache/<dataset>-<fp8>/items.parquet     row, key, label, label_name, split, bytes, sha256      rows in byte order of the key
    cache/<dataset>-<fp8>/dataset.json      name, adapter, classes, rows, fingerprint

The fingerprint covers the ordered keys and the content hashes, and is stamped into every view. Labels live here only:
they may change (label -1 is "unknown") without making any embedding stale.
"""

import dataclasses
import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from base import durable, locks
from base.commands import quoted
from base.errors import IntegrityError, StaleError
from cache_specs.sources import dataset_name, is_gone, read_source, where
from cache_specs.versions import IMPORTED, dataset_folders, follow, is_older, killed_relabelling, latest, refuse_overtaken, said, succession, version_of

MISSING = {"n/a", "na", "nan", "none", "null", "unknown", "?"}         # what other programs write where there is no label
SPLITS = ("", "train", "val", "test", "unlabelled")
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Items:
    """N items. keys: N str, byte order; label: (N,) int32, -1 unknown; split: N of SPLITS; size: (N,) int64 bytes, 0 if unreadable;
    sha256: N hex strings, empty if unreadable; classes: C label names, class c = classes[c]."""

    name: str
    adapter: str
    keys: list[str]
    label: np.ndarray
    split: list[str]
    size: np.ndarray
    sha256: list[str]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def fingerprint(self) -> str:
        """sha256 over `key NUL content-hash newline` in row order."""
        digest = hashlib.sha256()
        for key, sha in zip(self.keys, self.sha256, strict=True):
            digest.update(f"{key}\0{sha}\n".encode())
        return digest.hexdigest()

    @property
    def labels_fingerprint(self) -> str:
        """sha256 over what `fingerprint` leaves out: classes, labels and splits. A run that is resumed must find them unchanged."""
        return hashlib.sha256(durable.canonical_json([self.classes, self.label.tolist(), self.split])).hexdigest()

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{self.fingerprint[:8]}"


def class_index(names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Label names (empty: unknown) -> ((N,) int32 labels, sorted class names). Names that are all integers sort as numbers."""
    distinct = {name for name in names if name}
    numeric = all(name.isascii() and name.isdigit() for name in distinct)
    classes = sorted(distinct, key=(lambda name: (int(name), name)) if numeric else str.encode)
    index = {name: number for number, name in enumerate(classes)} | {"": -1}
    return np.array([index[name] for name in names], np.int32), classes


def write_items(cache: Path, items: Items, source: str = "", changed: bool = False, seen: dict[str, int] | None = None) -> Path:
    """Write the item list under `cache` and return the dataset's folder. Byte-identical input gives byte-identical files.

    Other images under the same name become the current version, in a folder of its own, if all that was embedded is still there or they were
    `changed` on purpose; otherwise they are refused (StaleError): see versions.py. New labels or splits for the same images replace the old ones.
    `source` is what DATA named (see `source_path`): recorded, no part of the fingerprint.
    Where the same images are known from a folder that is gone, that folder was renamed: its embeddings are kept, under their old name.
    """
    durable.make_folder(cache)
    table = _parquet(items)                              # beforehand: others wait for the lock
    with locks.lock(cache, wait=True):                   # two extractions of one new data set, or of two states of one, may be started at once
        items = _moved(cache, items, source)
        folder = cache / items.folder_name
        if seen is not None:                             # before the images were read
            refuse_overtaken(cache, items, seen)
        number, before, lines = next_version(cache, items, source, changed)
        was, source = read_source(before), _first_source(folder, items) or source
        durable.make_folder(folder)
        if not _is_file(folder / "items.parquet", table):
            _relabel(folder, items, source)                 # a run that was trained on the old labels stays usable
        record = _record(items, source, number, table)
        if not (_is_file(folder / "dataset.json", record) and _is_file(folder / "items.parquet", table)):
            durable.write(folder / "items.parquet", table, "items")
            durable.write(folder / "dataset.json", record, "dataset")
        follow(cache, folder, items, was, source)
    for line in lines:
        print(f"{line}. {folder.name} is the current version now, {before.name} stays for what was trained on it", flush=True)
    return folder


def next_version(cache: Path, items: Items, source: str, changed: bool = False) -> tuple[int, Path, list[str]]:
    """The version number that `items` get, the folder of the version before (or their own), and what changes. Raises StaleError where they are refused."""
    folder = cache / items.folder_name
    number, (top, others) = version_of(folder), latest(cache, items.name, but=folder)
    if not others or number > top:
        return max(number, 0), folder, []
    return top + 1, others[-1], [_succession(other, items, source, changed) for other in others]


def _record(items: Items, source: str, version: int, table: bytes) -> bytes:
    return durable.sealed({"format": FORMAT, "name": items.name, "adapter": items.adapter, "rows": len(items), "classes": items.classes,
                           "fingerprint": items.fingerprint, "items_sha256": hashlib.sha256(table).hexdigest(), "source": source,
                           **({"version": version} if version else {})})


def _succession(other: Path, items: Items, source: str, changed: bool) -> str:
    try:
        return succession(read_items(other), items, other, source, changed)
    except IntegrityError:
        if old := killed_relabelling(other):
            return succession(old, items, other, source, changed)
        if changed:
            return f"{items.name}: the images have changed; the item list in {other} is damaged, so nothing says how"
        raise


def _first_source(folder: Path, items: Items) -> str:
    """The file that made an imported data set stays its source when another file with the same rows and labels adds a view; otherwise ''."""
    if items.adapter != IMPORTED:
        return ""
    try:
        old = read_items(folder)
    except IntegrityError:
        return ""
    same = old.adapter == items.adapter == IMPORTED and (old.fingerprint, old.labels_fingerprint) == (items.fingerprint, items.labels_fingerprint)
    return read_source(folder) if same else ""


def _moved(cache: Path, items: Items, source: str) -> Items:
    """The items under the name that their embeddings have: that of a folder that is gone, or under which this very folder was taken over."""
    if dataset_folders(cache, items.name):
        return items
    taken_over = set()
    for folder in sorted(path.parent for path in cache.glob("*/dataset.json")):
        try:
            record = durable.read_sealed(folder / "dataset.json")
            known, same = where(record["source"]), record["fingerprint"] == items.fingerprint
            if known is None or not known.is_absolute() or record["adapter"] == IMPORTED != items.adapter:
                continue
            if record["source"] == source and items.name == dataset_name(source) and (same or items.adapter != IMPORTED):
                taken_over.add(record["name"])
            if same and (record["name"] in taken_over or (is_gone(record["source"]) and
                                                          read_items(folder).labels_fingerprint == items.labels_fingerprint)):
                return dataclasses.replace(items, name=record["name"])
        except (OSError, ValueError, KeyError, TypeError, IntegrityError):
            continue
    return dataclasses.replace(items, name=taken_over.pop()) if len(taken_over) == 1 else items


def _relabel(folder: Path, items: Items, source: str) -> None:
    """Say that labels change. Raises StaleError where they are another file's or folder's, and would replace those of the first."""
    try:
        old, known = read_items(folder), read_source(folder)
    except IntegrityError:
        return                                              # lost or not there yet
    if changed := sum(a != b for a, b in zip(said(old), said(items), strict=True)):
        if known != source:
            raise StaleError(f"{folder} has these very images with the labels of {known}; {changed} of {len(items)} labels or splits of {source} are "
                             f"others. To keep both, give this one a name: ARGS='--name {items.name}-2'. To replace them, first delete "
                             f"{folder / 'dataset.json'}")
        kept = durable.make_folder(folder / "labels" / old.labels_fingerprint[:12])
        for name in ("items.parquet", "dataset.json"):
            durable.write(kept / name, (folder / name).read_bytes(), "labels")
        print(f"{items.name}: labels or splits of {changed} of {len(items)} images have changed, and replace the old ones, which are kept in {kept}")


def read_items(folder: Path, labels: str = "") -> Items:
    """Read and check an item list: its fingerprint must be the one recorded beside it. Raises IntegrityError.

    labels: the fingerprint of the labels that are meant; where they were replaced since, those that were kept."""
    import pyarrow as pa

    kept = folder / "labels" / labels[:12]
    place = kept if labels and (kept / "dataset.json").is_file() else folder
    try:
        record = durable.read_sealed(place / "dataset.json")
        version = record["format"]
        if version != FORMAT:
            raise StaleError(f"{folder} has format {version}, this version reads {FORMAT}; run `make extract` into another CACHE")
        expected, fingerprint, rows = record["items_sha256"], record["fingerprint"], record["rows"]
        data = (place / "items.parquet").read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise ValueError(f"items.parquet is damaged: sha256 {found[:12]}, expected {expected[:12]}")
        table = read_parquet(data)
        items = Items(record["name"], record["adapter"], table["key"].to_pylist(), table["label"].to_numpy(), table["split"].to_pylist(),
                      table["bytes"].to_numpy(), table["sha256"].to_pylist(), record["classes"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise IntegrityError(f"the item list in {folder} cannot be read ({error}). {_again(folder)}") from error
    if items.fingerprint != fingerprint or folder.name != items.folder_name or len(items) != rows:
        raise IntegrityError(f"{folder / 'items.parquet'} does not belong to its folder. {_again(folder)}")
    return items


def read_parquet(data: bytes) -> Any:
    """The pyarrow.Table of a Parquet file's bytes. `pq.read_table` goes through Arrow's data sets, whose threads, still alive when Python ends
    early, abort the process; this reader starts none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)


def _again(folder: Path) -> str:
    source, imported = read_source(folder), False
    with suppress(OSError, ValueError, KeyError, TypeError):
        imported = durable.read_sealed(folder / "dataset.json")["adapter"] == IMPORTED
    if is_older(folder):
        return (f"It is an older version of its data set, which is not written again from the images as they are now, and not needed for the current one: put "
                f"{folder} back from a copy, or delete it if nothing that was trained on it is used any more")
    how = ("import VIEW=… FROM=" if imported else "extract VIEW=… DATA=") + (quoted(source) if source else "…")
    return f"Type: make {how}   with what {folder.name} was made of: it is written again, and no embedding is made again"


def _is_file(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def _parquet(items: Items) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [items.classes[label] if label >= 0 else "" for label in items.label]
    table = pa.table({
        "row": pa.array(np.arange(len(items)), pa.int64()), "key": pa.array(items.keys, pa.string()),
        "label": pa.array(items.label, pa.int32()), "label_name": pa.array(names, pa.string()),
        "split": pa.array(items.split, pa.string()), "bytes": pa.array(items.size, pa.int64()),
        "sha256": pa.array(items.sha256, pa.string()),
    })
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
