"""Images in a column of Parquet or Arrow files: bytes, or the {bytes, path} of Hugging Face's `datasets`. Read lazily, one row group at a time.

Besides `image` (or the only column of images): `label` (class names from the metadata that `datasets` writes), `split`, and `key` or `id`.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from base.errors import UsageError, did_you_mean
from cache_specs.items import SPLITS
from extract.data.naming import label_of, split_of
from extract.data.readers import MAX_BYTES, FileTooLargeError, Reader

IMAGES, LABELS, KEYS = (
    ("image", "img", "images", "jpg", "png"),
    ("label", "labels", "fine_label", "class", "cls"),
    ("key", "id"),
)
LARGEST_GROUP, KEPT = 2**30, 2
_LOCK, _GROUPS = threading.Lock(), OrderedDict[tuple, Any]()  # the row groups read last


@dataclass(frozen=True)
class ReadColumn(Reader):
    """where: (N, 3) int64: number of the file, row group (0 of an Arrow file), row in it."""

    paths: list[str]
    column: str
    where: np.ndarray

    def __call__(self, i: int) -> bytes:
        import pyarrow as pa

        part, group, row = self.where[i].tolist()
        try:
            value = _group(self.paths[part], group, self.column)[row]
            data = (value["bytes"] if pa.types.is_struct(value.type) else value).as_buffer()
        except (pa.ArrowException, KeyError, IndexError, ValueError) as error:
            raise OSError(f"{self.paths[part]}, row group {group}, row {row}: {error}") from error
        if data is None:
            raise OSError(f"{self.paths[part]}, row group {group}, row {row}: no image")
        if data.size > MAX_BYTES:
            raise FileTooLargeError(
                f"{self.paths[part]}, row group {group}, row {row} has {data.size} bytes"
            )
        return data.to_pybytes()


def _group(path: str, group: int, column: str) -> Any:
    """The pyarrow.ChunkedArray of a row group's images. One thread reads at a time: others want the same group."""
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    if _is_arrow(path):
        with pa.memory_map(path) as file:
            return pa.ipc.open_stream(file).schema
    return pq.ParquetFile(path, pre_buffer=False).schema_arrow


def _read(path: str, columns: list[str], group: int | None = None) -> Any:
    """A pyarrow.Table of some columns, of one row group or of the whole file. Of an Arrow file nothing is copied into memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not _is_arrow(path):
        file = pq.ParquetFile(path, pre_buffer=False)
        return (
            file.read(columns=columns, use_threads=False)
            if group is None
            else file.read_row_group(group, columns=columns, use_threads=False)
        )
    table = (
        pa.ipc.open_stream(pa.memory_map(path))
        .read_all()
        .select([column.split(".")[0] for column in columns])
    )
    table.validate(full=True)  # offsets that leave the file would end the process
    return table


def image_column(schema: Any) -> str | None:
    """`image`, or the only column of binary or struct<bytes, …>; None where there is none."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(
                kind.field(i).name == "bytes" and holds_bytes(kind.field(i).type)
                for i in range(kind.num_fields)
            )
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [field.name for field in schema if holds_bytes(field.type)]
    return next((name for name in IMAGES if name in found), found[0] if len(found) == 1 else None)


def has_images(path: str) -> bool:
    schema = _schema(path)
    return "path" not in schema.names and image_column(schema) is not None


def images_of(data: str, files: Sequence[tuple[str, str]]) -> tuple:
    """Keys, labels, splits and reader of the images in `files`, (path, split or '') each. Raises UsageError."""
    import pyarrow as pa

    column, keys, labels, splits, where, alike = "", [], [], [], [], None
    for part, (path, split) in enumerate(files):
        try:
            schema, place = _schema(path), _places(path, part)
            found = image_column(schema)
            if found is None or (column and found != column):
                raise UsageError(
                    f"{path}: no column of image bytes{f' called {column!r}' if column else ''}{did_you_mean('image', schema.names)}"
                )
            column = found
            _refuse_large_groups(path, column)
            label, classes = _label_column(path, schema)
            key = next((name for name in KEYS if name in schema.names), None)
            if alike not in (None, (label, classes, key)):
                raise UsageError(
                    f"{path} has other columns of labels or keys, or other names of classes, than {files[0][0]}; make them alike"
                )
            alike = label, classes, key
            inner = (
                f"{column}.path"
                if key is None
                and pa.types.is_struct(schema.field(column).type)
                and schema.field(column).type.get_field_index("path") >= 0
                else None
            )
            own = "split" if "split" in schema.names and not split else None
            table = _read(path, [name for name in (label, key, inner, own) if name])
            mine = _names(path, table[label].to_pylist(), classes) if label else [""] * len(place)
            given = (
                [split_of(name) for name in table[own].to_pylist()] if own else [split] * len(place)
            )
            names = (
                table[key].to_pylist()
                if key
                else [(row or {}).get("path") for row in table[column].to_pylist()]
                if inner
                else []
            )
        except (
            OSError,
            ValueError,
            KeyError,
        ) as error:  # Arrow's errors are OSError, ValueError or KeyError
            raise UsageError(f"{path} cannot be read: {error}; write or fetch it again") from error
        if wrong := [name for name in given if name not in SPLITS]:
            raise UsageError(f"{path}: split {wrong[0]!r}{did_you_mean(wrong[0], SPLITS[1:])}")
        if key and None in names:
            raise UsageError(f"{path}: the {key} of row {names.index(None)} is empty; fill it in")
        labels += [
            "" if split == "unlabelled" else label for label, split in zip(mine, given, strict=True)
        ]
        splits += given
        keys += names or [None] * len(place)
        where.append(place)
    if not keys:
        raise UsageError(f"DATA={data}: no image in it; name another file, or fill this one")
    top = [f"{split}/" if any(split for _, split in files) else "" for split in splits]
    named = [
        folder + (_plain(str(name)) if name else "") for folder, name in zip(top, keys, strict=True)
    ]
    if None in keys or (
        len(set(named)) < len(named) and key is None
    ):  # names that tell nothing apart
        named, count = [], dict[str, int]()
        for folder in top:
            named.append(f"{folder}{count.get(folder, 0):08d}")
            count[folder] = count.get(folder, 0) + 1
    return (
        named,
        labels,
        splits,
        ReadColumn([path for path, _ in files], column, np.concatenate(where)),
    )


def _plain(name: str) -> str:
    path = PurePosixPath(name)  # a name, never opened
    return path.name if path.is_absolute() or ".." in path.parts else str(path)


def _places(path: str, part: int) -> np.ndarray:
    """(N, 3): for each row the file's number, its row group and its row in there."""
    import pyarrow.parquet as pq

    if _is_arrow(path):
        counts = [_read(path, []).num_rows]
    else:
        metadata = pq.ParquetFile(path, pre_buffer=False).metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    group = np.repeat(np.arange(len(counts)), counts)
    row = np.concatenate([np.zeros(0, np.int64), *(np.arange(count) for count in counts)])
    return np.stack([np.full(len(row), part), group, row], 1).astype(np.int64)


def _refuse_large_groups(path: str, column: str) -> None:
    import pyarrow.parquet as pq

    if _is_arrow(path):
        return
    metadata = pq.ParquetFile(path, pre_buffer=False).metadata
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).total_byte_size
        if size > LARGEST_GROUP and metadata.row_group(group).num_rows > 1:
            raise UsageError(
                f"{path}: row group {group} has {size / 1e9:.1f} GB, which would be held in memory as a whole; write the table anew in smaller "
                "ones: pyarrow.parquet.write_table(table, path, row_group_size=500)"
            )


def _label_column(path: str, schema: Any) -> tuple[str | None, list[str] | None]:
    """The column of labels, and the names of its classes where the metadata of `datasets` tells them."""
    features: Any = {}
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"][
            "features"
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    classes = (
        {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
        if isinstance(features, dict)
        else {}
    )
    classes = {name: names for name, names in classes.items() if name in schema.names}
    label = next(
        (name for name in LABELS if name in schema.names),
        next(iter(classes)) if len(classes) == 1 else None,
    )
    if label is None and classes:
        raise UsageError(
            f"{path}: several columns are labels: {', '.join(classes)}. Rename the one that is meant to 'label'"
        )
    return label, classes.get(label or "")


def _names(path: str, values: list[Any], classes: list[str] | None) -> list[str]:
    found = []
    for row, value in enumerate(values):
        try:
            label = label_of(value)
            found.append(
                str(classes[int(label)])
                if classes and label and not isinstance(value, str)
                else label
            )
        except (ValueError, IndexError) as error:
            expected = (
                f"the label {value!r:.80}, expected 0 to {len(classes) - 1}"
                if isinstance(error, IndexError) and classes
                else str(error)
            )
            raise UsageError(f"{path}, row {row}: {expected}; mend the table") from error
    return found
