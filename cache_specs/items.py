"""A dataset's item list: which images, in which order, with which labels. Written once per dataset as Parquet.

    cache/<dataset>-<fp8>/items.parquet     row, key, label, label_name, split, bytes, sha256      rows in byte order of the key
    cache/<dataset>-<fp8>/dataset.json      name, adapter, classes, rows, fingerprint

The fingerprint covers the ordered keys and the content hashes, and is stamped into every view. Labels live here only:
they may change (label -1 is "unknown") without making any embedding stale.
"""

import dataclasses
import hashlib
import io
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache_specs import durable, locks
from cache_specs.errors import IntegrityError, StaleError
from cache_specs.sources import dataset_name, is_gone, read_source, where

SPLITS = ("", "train", "val", "test", "unlabelled")
FORMAT = 1
IMPORTED = "imported"       # the adapter of a data set, and the backend of a view, that a file of embeddings made


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


def write_items(cache: Path, items: Items, source: str = "") -> Path:
    """Write the item list under `cache` and return the dataset's folder. Byte-identical input gives byte-identical files.

    A folder of the same name with other images is refused (StaleError), naming the first differing row. New labels or splits
    for the same images replace the old ones. `source` is what DATA named (see `source_path`): recorded, no part of the fingerprint.
    Where the same images are known from a folder that is gone, that folder was renamed: its embeddings are kept, under their old name.
    """
    items = _moved(cache, items, source)
    folder = cache / items.folder_name
    for other in dataset_folders(cache, items.name):
        if other != folder:
            _refuse_changed(read_items(other), items, other)
    source = _first_source(cache / items.folder_name, items) or source
    table = _parquet(items)
    record = durable.sealed({"format": FORMAT, "name": items.name, "adapter": items.adapter, "rows": len(items), "classes": items.classes,
                             "fingerprint": items.fingerprint, "items_sha256": hashlib.sha256(table).hexdigest(), "source": source})
    durable.make_folder(folder)
    _relabel(folder, items, source)
    with locks.lock(cache, wait=True):                   # two views of one new data set may be started at once
        if not _is_written(folder, record, table):
            durable.write(folder / "items.parquet", table, "items")
            durable.write(folder / "dataset.json", record, "dataset")
    return folder


def _first_source(folder: Path, items: Items) -> str:
    """The file that made an imported data set stays its source when another file with the same rows and labels adds a view; otherwise ''."""
    try:
        old = read_items(folder)
    except IntegrityError:
        return ""
    same = old.adapter == items.adapter == IMPORTED and (old.fingerprint, old.labels_fingerprint) == (items.fingerprint, items.labels_fingerprint)
    return read_source(folder) if same else ""


def _moved(cache: Path, items: Items, source: str) -> Items:
    """The items under the name that their embeddings have: that of a folder that is gone, or under which this very folder was taken over."""
    for folder in sorted(cache.glob(f"*-{items.fingerprint[:8]}")):
        try:
            record = durable.read_sealed(folder / "dataset.json")
            known = where(record["source"])
            taken_over = record["source"] == source and items.name == dataset_name(source)
            if record["fingerprint"] != items.fingerprint or known is None or not known.is_absolute() or dataset_folders(cache, items.name):
                continue
            if taken_over or (is_gone(record["source"]) and read_items(folder).labels_fingerprint == items.labels_fingerprint):
                return dataclasses.replace(items, name=record["name"])
        except (OSError, ValueError, KeyError, TypeError, IntegrityError):
            continue
    return items


def _relabel(folder: Path, items: Items, source: str) -> None:
    """Say that labels change. Raises StaleError where they are another file's or folder's, and would replace those of the first."""
    try:
        old, known = read_items(folder), read_source(folder)
    except IntegrityError:
        return                                              # lost or not there yet
    was = [(old.classes[label] if label >= 0 else "", split) for label, split in zip(old.label, old.split, strict=True)]
    now = [(items.classes[label] if label >= 0 else "", split) for label, split in zip(items.label, items.split, strict=True)]
    if changed := sum(a != b for a, b in zip(was, now, strict=True)):
        if known != source:
            raise StaleError(f"{folder} has these very images with the labels of {known}; {changed} of {len(items)} labels or splits of {source} are "
                             f"others. To keep both, give this one a name: ARGS='--name {items.name}-2'. To replace them, first delete "
                             f"{folder / 'dataset.json'}")
        print(f"{items.name}: labels or splits of {changed} of {len(items)} images have changed, and replace the old ones")


def read_items(folder: Path) -> Items:
    """Read and check an item list: its fingerprint must be the one recorded beside it. Raises IntegrityError."""
    import pyarrow as pa

    try:
        record = durable.read_sealed(folder / "dataset.json")
        version = record["format"]
        if version != FORMAT:
            raise StaleError(f"{folder} has format {version}, this version reads {FORMAT}; run `make extract` into another CACHE")
        expected, fingerprint, rows = record["items_sha256"], record["fingerprint"], record["rows"]
        data = (folder / "items.parquet").read_bytes()
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
    how = ("import VIEW=… FROM=" if imported else "extract VIEW=… DATA=") + (shlex.quote(source) if source else "…")
    return f"Type: make {how}   with what {folder.name} was made of: it is written again, and no embedding is made again"


def dataset_folders(cache: Path, name: str) -> list[Path]:
    """The item lists of the dataset called `name` (one, unless somebody copied folders about)."""
    return sorted(path.parent for path in cache.glob("*/dataset.json") if path.parent.name.rpartition("-")[0] == name)


def _is_written(folder: Path, record: bytes, table: bytes) -> bool:
    try:
        return (folder / "dataset.json").read_bytes() == record and (folder / "items.parquet").read_bytes() == table
    except OSError:
        return False


def _refuse_changed(old: Items, new: Items, folder: Path) -> None:
    pairs = enumerate(zip(zip(old.keys, old.sha256, strict=True), zip(new.keys, new.sha256, strict=True), strict=False))
    row = next((row for row, (a, b) in pairs if a != b), min(len(old), len(new)))
    was = old.keys[row] if row < len(old) else "(nothing)"
    now = new.keys[row] if row < len(new) else "(nothing)"
    change = f"content of {was}" if was == now else f"{was} -> {now}"
    if was == now and not new.sha256[row]:
        raise StaleError(f"the image {was} of {new.name!r} (row {row}) was embedded, but cannot be read now. Make it readable, then type the same command")
    renamed = "" if sorted(old.sha256) != sorted(new.sha256) else " All contents are the same: only names or folders were changed."
    raise StaleError(f"the images of {new.name!r} are not those that were embedded under this name ({len(old)} -> {len(new)} items): first difference "
                     f"in row {row}: {change}.{renamed} To keep both, embed the new ones under another name, ARGS='--name {new.name}-2', "
                     f"and train on DATA={new.name}-2. "
                     f"To forget the old ones, delete {folder}")


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
