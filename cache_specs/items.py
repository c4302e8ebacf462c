"""A dataset's item list: which images, in which order, with which labels. Written once per dataset
as Parquet.

    cache/<dataset>-<fp8>/items.parquet   row, key, label, label_name, split, bytes, sha256; the
                                          rows in byte order of the key
    cache/<dataset>-<fp8>/dataset.json    name, adapter, classes, rows, fingerprint

The fingerprint covers the ordered keys and the content hashes, and is stamped into every view.
Labels live here only: they may change (label -1 is "unknown") without making any embedding stale.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from base import durable
from base.errors import IntegrityError, StaleError
from base.phrase import quoted
from cache_specs.sources import read_source
from cache_specs.versions import IMPORTED, is_older

SPLITS = ("", "train", "val", "test", "unlabelled")
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Items:
    """N items. keys: N str, byte order; label: (N,) int32, -1 unknown; split: N of SPLITS; size:
    (N,) int64 bytes, 0 if unreadable; sha256: N hex strings, empty if unreadable; classes: C label
    names, class c = classes[c]; as_class: words that are classes all the same (see words.py)."""

    name: str
    adapter: str
    keys: list[str]
    label: np.ndarray
    split: list[str]
    size: np.ndarray
    sha256: list[str]
    classes: list[str]
    as_class: Sequence[str] = ()

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
        """sha256 over what `fingerprint` leaves out: classes, labels and splits. A run that is
        resumed must find them unchanged."""
        told = durable.canonical_json([self.classes, self.label.tolist(), self.split])
        return hashlib.sha256(told).hexdigest()

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{self.fingerprint[:8]}"


def class_index(names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Label names (empty: unknown) -> ((N,) int32 labels, sorted class names). Names that are all
    integers sort as numbers."""
    distinct = {name for name in names if name}
    if all(name.isascii() and name.isdigit() for name in distinct):
        classes = sorted(distinct, key=lambda name: (int(name), name))
    else:
        classes = sorted(distinct, key=str.encode)
    index = {name: number for number, name in enumerate(classes)} | {"": -1}
    return np.array([index[name] for name in names], np.int32), classes


def read_items(folder: Path, labels: str = "") -> Items:
    """Read and check an item list: its fingerprint must be the one recorded beside it. Raises
    IntegrityError.

    labels: the fingerprint of the labels that are meant; where they were replaced since, those that
    were kept."""
    kept = folder / "labels" / labels[:12]
    place = kept if labels and (kept / "dataset.json").is_file() else folder
    try:
        record = durable.read_sealed(place / "dataset.json")
        version = record["format"]
        if version != FORMAT:
            raise StaleError(
                f"{folder} has format {version}, this version reads {FORMAT}; run `make extract` "
                "into another CACHE"
            )
        items = _listed(record, _table_of_record(place, record["items_sha256"]))
        recorded = (record["fingerprint"], record["rows"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise IntegrityError(
            f"the item list in {folder} cannot be read ({error}). {_write_again(folder)}"
        ) from error
    if (items.fingerprint, len(items)) != recorded or folder.name != items.folder_name:
        raise IntegrityError(
            f"{folder / 'items.parquet'} does not belong to its folder. {_write_again(folder)}"
        )
    return items


def _table_of_record(place: Path, sha256: str) -> bytes:
    """The item table that dataset.json names. An extraction that was killed between the two files
    of new labels has put another in its place; that of before is kept in labels/."""
    table = (place / "items.parquet").read_bytes()
    if hashlib.sha256(table).hexdigest() != sha256:
        for kept in sorted(place.glob("labels/*/items.parquet")):
            before = kept.read_bytes()
            if hashlib.sha256(before).hexdigest() == sha256:
                return before
    return table


def items_of(record: bytes, table: bytes) -> Items:
    """The list whose two files hold this, wherever they come from. Raises ValueError where they are
    no list, or damaged."""
    told = durable.unsealed(record, "dataset.json")
    try:
        if told["format"] != FORMAT:
            raise ValueError(f"it has format {told['format']}, this version reads {FORMAT}")
        items = _listed(told, table)
        if (items.fingerprint, len(items)) != (told["fingerprint"], told["rows"]):
            raise ValueError("items.parquet is of other images")
        if not _is_sound(items):
            raise ValueError("it says what no list says")
        parquet(items)  # raises where a column is of another kind
    except (pa.ArrowException, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"it is none ({type(error).__name__}: {error})") from error
    return items


def _is_sound(items: Items) -> bool:
    """Whether labels, splits and words are such."""
    words = [items.name, items.adapter, *items.classes, *items.as_class]
    return (
        isinstance(items.classes, list)
        and all(isinstance(word, str) for word in words)
        and set(items.split) <= set(SPLITS)
        and items.label.dtype == np.int32
        and bool(((items.label >= -1) & (items.label < len(items.classes))).all())
    )


def _listed(record: dict[str, Any], data: bytes) -> Items:
    found, expected = hashlib.sha256(data).hexdigest(), record["items_sha256"]
    if found != expected:
        raise ValueError(f"items.parquet is damaged: sha256 {found[:12]}, expected {expected[:12]}")
    table = read_parquet(data)
    return Items(
        name=record["name"],
        adapter=record["adapter"],
        keys=table["key"].to_pylist(),
        label=table["label"].to_numpy(),
        split=table["split"].to_pylist(),
        size=table["bytes"].to_numpy(),
        sha256=table["sha256"].to_pylist(),
        classes=record["classes"],
        as_class=record.get("as_class", []),
    )


def read_parquet(data: bytes) -> Any:
    """The pyarrow.Table of a Parquet file's bytes. `pq.read_table` goes through Arrow's data sets,
    whose threads, still alive when Python ends early, abort the process; this reader starts
    none."""
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)


def _write_again(folder: Path) -> str:
    """What to do about a list that is damaged."""
    if is_older(folder):
        return (
            "It is an older version of its data set, which is not written again from the images as "
            f"they are now, and not needed for the current one: put {folder} back from a copy, or "
            "delete it if nothing that was trained on it is used any more"
        )
    try:
        imported = durable.read_sealed(folder / "dataset.json")["adapter"] == IMPORTED
    except (OSError, ValueError, KeyError, TypeError):
        imported = False
    how = "import VIEW=… FROM=" if imported else "extract VIEW=… DATA="
    source = read_source(folder)
    return (
        f"Type: make {how}{quoted(source) if source else '…'}   with what {folder.name} was made "
        "of: it is written again, and no embedding is made again"
    )


def parquet(items: Items) -> bytes:
    """The bytes of items.parquet."""
    names = [items.classes[label] if label >= 0 else "" for label in items.label]
    table = pa.table(
        {
            "row": pa.array(np.arange(len(items)), pa.int64()),
            "key": pa.array(items.keys, pa.string()),
            "label": pa.array(items.label, pa.int32()),
            "label_name": pa.array(names, pa.string()),
            "split": pa.array(items.split, pa.string()),
            "bytes": pa.array(items.size, pa.int64()),
            "sha256": pa.array(items.sha256, pa.string()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def record_of(items: Items, source: str, version: int, table: bytes) -> bytes:
    """The bytes of dataset.json."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "name": items.name,
        "adapter": items.adapter,
        "rows": len(items),
        "classes": items.classes,
        "fingerprint": items.fingerprint,
        "items_sha256": hashlib.sha256(table).hexdigest(),
        "source": source,
    }
    if items.as_class:
        record["as_class"] = list(items.as_class)
    if version:
        record["version"] = version
    return durable.sealed(record)


def said(items: Items) -> list[tuple[str, str]]:
    """Each image's label and split."""
    return [
        (items.classes[label] if label >= 0 else "", split)
        for label, split in zip(items.label.tolist(), items.split, strict=True)
    ]
