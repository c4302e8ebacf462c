"""Images in a column of Parquet or Arrow files: bytes, or the {bytes, path} of Hugging Face's
`datasets`. Read lazily, one row group at a time.

Besides `image` (or the only column of images): `label` (class names from the metadata that
`datasets` writes), `split`, and `key` or `id`.
"""

import json
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from base.errors import UsageError, did_you_mean
from cache_specs.items import SPLITS
from extract.data.naming import label_of, split_of, without_unlabelled
from extract.data.readers import MAX_BYTES, FileTooLargeError, Listing, Reader

IMAGES = ("image", "img", "images", "jpg", "png")
LABELS = ("label", "labels", "fine_label", "class", "cls")
KEYS = ("key", "id")
LARGEST_GROUP = 2**30  # bytes
KEPT = 2  # row groups in memory
_LOCK, _GROUPS = threading.Lock(), OrderedDict[tuple, Any]()  # the row groups read last


@dataclass(frozen=True)
class ReadColumn(Reader):
    """where: (N, 3) int64: number of the file, row group (0 of an Arrow file), row in it."""

    paths: list[str]
    column: str
    where: np.ndarray

    def place(self, i: int) -> tuple[str, int]:
        part, group, row = self.where[i].tolist()
        return self.paths[part], (group << 32) + row

    def __call__(self, i: int) -> bytes:
        part, group, row = self.where[i].tolist()
        place = f"{self.paths[part]}, row group {group}, row {row}"
        try:
            value = _group(self.paths[part], group, self.column)[row]
            data = (value["bytes"] if pa.types.is_struct(value.type) else value).as_buffer()
        except (pa.ArrowException, KeyError, IndexError, ValueError) as error:
            raise OSError(f"{place}: {error}") from error
        if data is None:
            raise OSError(f"{place}: no image")
        if data.size > MAX_BYTES:
            raise FileTooLargeError(f"{place} has {data.size} bytes")
        return data.to_pybytes()


def _group(path: str, group: int, column: str) -> Any:
    """The pyarrow.ChunkedArray of a row group's images. One thread reads at a time: others want the
    same group."""
    key = path, group, column, os.stat(path).st_mtime_ns
    with _LOCK:
        if key not in _GROUPS:
            while len(_GROUPS) >= KEPT:
                _GROUPS.popitem(last=False)
            _GROUPS[key] = _read(path, [column], group)[column]
        _GROUPS.move_to_end(key)
        return _GROUPS[key]


def _is_arrow(path: str) -> bool:
    return path.endswith(".arrow")


def _schema(path: str) -> Any:
    if _is_arrow(path):
        with pa.memory_map(path) as file:
            return pa.ipc.open_stream(file).schema
    return pq.ParquetFile(path, pre_buffer=False).schema_arrow


def _read(path: str, columns: list[str], group: int | None = None) -> Any:
    """A pyarrow.Table of some columns, of one row group or of the whole file. Of an Arrow file
    nothing is copied into memory."""
    if not _is_arrow(path):
        file = pq.ParquetFile(path, pre_buffer=False)
        if group is None:
            return file.read(columns=columns, use_threads=False)
        return file.read_row_group(group, columns=columns, use_threads=False)
    whole = pa.ipc.open_stream(pa.memory_map(path)).read_all()
    table = whole.select([column.split(".")[0] for column in columns])
    table.validate(full=True)  # offsets that leave the file would end the process
    return table


def image_column(schema: Any) -> str | None:
    """`image`, or the only column of binary or struct<bytes, …>; None where there is none."""
    found = [field.name for field in schema if _holds_bytes(field.type)]
    for name in IMAGES:
        if name in found:
            return name
    return found[0] if len(found) == 1 else None


def _holds_bytes(kind: Any) -> bool:
    if not pa.types.is_struct(kind):
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return any(field.name == "bytes" and _holds_bytes(field.type) for field in fields)


def has_images(path: str) -> bool:
    schema = _schema(path)
    return "path" not in schema.names and image_column(schema) is not None


@dataclass(frozen=True)
class Columns:
    """What the columns of a file are: images, labels with the names of their classes, keys."""

    image: str
    label: str | None
    classes: list[Any] | None
    key: str | None


@dataclass(frozen=True)
class Part:
    """What one of the files holds, row by row. names: the keys, or else the names of the images'
    files; None where there is none."""

    names: list[Any]
    labels: list[str]
    splits: list[str]
    where: np.ndarray


def images_of(data: str, files: Sequence[tuple[str, str]]) -> Listing:
    """The images in `files`, (path, split or '') each. Raises UsageError."""
    columns, parts = None, list[Part]()
    for number, (path, split) in enumerate(files):
        try:
            schema = _schema(path)
            columns = _columns_of(path, schema, columns, files[0][0])
            parts.append(_part(path, schema, _places(path, number), split, columns))
        except (OSError, ValueError, KeyError) as error:  # Arrow raises each of them
            raise UsageError(f"{path} cannot be read: {error}; write or fetch it again") from error
    if columns is None or not any(part.names for part in parts):
        raise UsageError(f"DATA={data}: no image in it; name another file, or fill this one")
    whole = _joined(parts)
    folders = [""] * len(whole.names)
    if any(split for _, split in files):
        folders = [f"{split}/" for split in whole.splits]
    return Listing(
        _keys(folders, whole.names, columns.key is not None),
        without_unlabelled(whole.labels, whole.splits),
        whole.splits,
        ReadColumn([path for path, _ in files], columns.image, whole.where),
    )


def _joined(parts: Sequence[Part]) -> Part:
    names, labels, splits = [], [], []
    for part in parts:
        names += part.names
        labels += part.labels
        splits += part.splits
    return Part(names, labels, splits, np.concatenate([part.where for part in parts]))


def _columns_of(path: str, schema: Any, others: Columns | None, first: str) -> Columns:
    """The columns of a file. Raises UsageError where they differ from the `others`, of the `first`
    file."""
    image = image_column(schema)
    if image is None or (others is not None and image != others.image):
        named = f" called {others.image!r}" if others else ""
        near = did_you_mean("image", schema.names)
        raise UsageError(f"{path}: no column of image bytes{named}{near}")
    _refuse_large_groups(path)
    label, classes = _label_column(path, schema)
    key = next((name for name in KEYS if name in schema.names), None)
    found = Columns(image, label, classes, key)
    if others not in (None, found):
        raise UsageError(
            f"{path} has other columns of labels or keys, or other names of classes, than {first}; "
            "make them alike"
        )
    return found


def _part(path: str, schema: Any, where: np.ndarray, split: str, columns: Columns) -> Part:
    """The rows of a file. split: of all of them; '': as its column says."""
    inner = "split" if "split" in schema.names and not split else None
    named = _name_column(schema, columns)
    table = _read(path, [name for name in (columns.label, named, inner) if name])
    labels, splits = [""] * len(where), [split] * len(where)
    if columns.label:
        labels = _label_names(path, table[columns.label].to_pylist(), columns.classes)
    if inner:
        splits = _splits(path, table[inner].to_pylist())
    names = _names(path, table, columns) if named else [None] * len(where)
    return Part(names, labels, splits, where)


def _names(path: str, table: Any, columns: Columns) -> list[Any]:
    """What stands in the column of keys, or else inside the column of images."""
    if columns.key is None:
        return [(row or {}).get("path") for row in table[columns.image].to_pylist()]
    keys = table[columns.key].to_pylist()
    if None in keys:
        row = keys.index(None)
        raise UsageError(f"{path}: the {columns.key} of row {row} is empty; fill it in")
    return keys


def _splits(path: str, values: list[Any]) -> list[str]:
    splits = [split_of(value) for value in values]
    for split in splits:
        if split not in SPLITS:
            raise UsageError(f"{path}: split {split!r}{did_you_mean(split, SPLITS[1:])}")
    return splits


def _name_column(schema: Any, columns: Columns) -> str | None:
    """The column of keys, or else the names of the images' files inside the column of images."""
    kind = schema.field(columns.image).type
    if columns.key is None and pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        return f"{columns.image}.path"
    return columns.key


def _keys(folders: Sequence[str], names: Sequence[Any], given: bool) -> list[str]:
    """A key for each image: below the folder of its split its name, or its number there, where the
    names are not `given` as keys and tell nothing apart."""
    named = []
    for folder, name in zip(folders, names, strict=True):
        named.append(folder + (_plain(str(name)) if name else ""))
    if given or (None not in names and len(set(named)) == len(named)):
        return named
    numbered, count = [], Counter[str]()
    for folder in folders:
        numbered.append(f"{folder}{count[folder]:08d}")
        count[folder] += 1
    return numbered


def _plain(name: str) -> str:
    path = PurePosixPath(name)  # a name, never opened
    return path.name if path.is_absolute() or ".." in path.parts else str(path)


def _places(path: str, part: int) -> np.ndarray:
    """(N, 3): for each row the file's number, its row group and its row in there."""
    if _is_arrow(path):
        counts = [_read(path, []).num_rows]
    else:
        metadata = pq.ParquetFile(path, pre_buffer=False).metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    group = np.repeat(np.arange(len(counts)), counts)
    row = np.concatenate([np.zeros(0, np.int64), *map(np.arange, counts)])
    return np.stack([np.full(len(row), part), group, row], 1).astype(np.int64)


def _refuse_large_groups(path: str) -> None:
    if _is_arrow(path):
        return
    metadata = pq.ParquetFile(path, pre_buffer=False).metadata
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).total_byte_size
        if size > LARGEST_GROUP and metadata.row_group(group).num_rows > 1:
            raise UsageError(
                f"{path}: row group {group} has {size / 1e9:.1f} GB, which would be held in memory "
                "as a whole; write the table anew in smaller ones: "
                "pyarrow.parquet.write_table(table, path, row_group_size=500)"
            )


def _label_column(path: str, schema: Any) -> tuple[str | None, list[Any] | None]:
    """The column of labels, and the names of its classes where the metadata of `datasets` tells
    them."""
    classes = _class_names(schema)
    for name in LABELS:
        if name in schema.names:
            return name, classes.get(name)
    if len(classes) > 1:
        raise UsageError(
            f"{path}: several columns are labels: {', '.join(classes)}. Rename the one that is "
            "meant to 'label'"
        )
    return next(iter(classes.items()), (None, None))


def _class_names(schema: Any) -> dict[str, list[Any]]:
    """{column of labels: names of its classes}, as the metadata of `datasets` tells them."""
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = metadata["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    found = {}
    for name, feature in features.items():
        names = feature.get("names") if isinstance(feature, dict) else None
        if name in schema.names and isinstance(names, list):
            found[name] = names
    return found


def _label_names(path: str, values: list[Any], classes: list[Any] | None) -> list[str]:
    found = []
    for row, value in enumerate(values):
        try:
            label = label_of(value)
            if classes and label and not isinstance(value, str):
                label = str(classes[int(label)])
        except ValueError as error:
            raise UsageError(f"{path}, row {row}: {error}; mend the table") from error
        except IndexError as error:
            expected = f"expected 0 to {len(classes or ()) - 1}"
            raise UsageError(
                f"{path}, row {row}: the label {value!r:.80}, {expected}; mend the table"
            ) from error
        found.append(label)
    return found
