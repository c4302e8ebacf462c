"""make export VIEW=clip DATA=photos/ TO=clip.h5

Writes one finished, checked view with its items to one file that other programs read: .npz, .h5 or
.parquet. `make import` reads the first two again, to the same embeddings, byte for byte.

    .npz, .h5    embeddings (N, D) float16, keys, y (-1 unknown), classes, split, status (0 ok),
                 status_names, attributes (JSON)
    .parquet     row, key, label, label_name, split, status, embedding (list of D float16); the
                 attributes are the schema's metadata
"""

import contextlib
import errno
import logging
import os
import zipfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from base import durable
from base.console import counted
from base.errors import StorageError, UsageError
from base.phrase import quoted
from cache_specs import integrity, store
from cache_specs.items import Items, read_items
from cache_specs.lookup import one_view
from cache_specs.tuned import FILE, seen_of
from cache_specs.view import STATUS, View
from exchange.arrays import open_h5
from exchange.config import ExportConfig

log = logging.getLogger(f"coview.{__name__}")
PIECE = 4096  # values of a column of .npz that are packed at a time


@dataclass(frozen=True)
class Exported:
    """What is exported: N rows with their items, and where they came from."""

    view: View
    items: Items
    status: np.ndarray
    attributes: str

    def shards(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """first, last and the (last - first, D) embeddings of each shard, whose digests have been
        checked."""
        width = self.view.width
        for shard in range(self.view.shards):
            first, last = self.view.bounds(shard)
            path = self.view.embeddings_file(shard)
            emb = np.fromfile(path, "<f2", (last - first) * width).reshape(last - first, width)
            yield first, last, emb

    def columns(self) -> dict[str, Any]:
        """All but the embeddings, as .npz and .h5 have them."""
        return {
            "keys": self.items.keys,
            "y": self.items.label,
            "classes": self.items.classes,
            "split": self.items.split,
            "sha256": self.items.sha256,
            "status": self.status,
            "status_names": list(STATUS),
        }


def command(config: ExportConfig, found: dict[str, Any]) -> None:
    """make export."""
    export_view(config)


def export_view(config: ExportConfig) -> Path:
    """Write the file whole or not at all; return its path. Raises CoviewError."""
    to = _target(config)
    rest = f" TO={quoted(config.to)}"
    folder = one_view(Path(config.cache), config.view, config.data, "export", rest)
    exported = _checked(folder)
    _write_whole(exported, to)
    view, bad = exported.view, int((exported.status > 0).sum())
    if seen := seen_of(view):
        log.warning(
            f"{view.name}: its backbone was tuned on the labels of {counted(len(seen), 'image')} "
            f"(contents in {folder / FILE}), which {to.name} does not say: who imports it must "
            "judge by none of them"
        )
    lacking = f"; {counted(bad, 'row')} without an embedding (NaN, see status)" if bad else ""
    log.info(
        f"{view.name}: {view.n:,} rows x {view.width} float16 of {exported.items.name} in {to}, "
        f"{to.stat().st_size / 1e6:,.1f} MB{lacking}"
    )
    return to


def _target(config: ExportConfig) -> Path:
    """The path that is written to. Raises UsageError."""
    if not config.view or not config.to:
        raise UsageError(
            f"{'TO' if config.view else 'VIEW'} is missing. Type: make export "
            f"VIEW={quoted(config.view or 'clip')} DATA=… TO=embeddings.h5"
        )
    to = Path(config.to).expanduser()
    if to.suffix.lower() not in WRITERS:
        raise UsageError(
            f"TO={config.to}: unknown format {to.suffix!r}; TO may end in .npz, .h5 (or .hdf5), or "
            ".parquet",
            instead={"TO": str(to.with_suffix(".h5"))},
        )
    name_one = "folder; name a file in one that is there"
    if to.is_dir():
        raise UsageError(f"TO={config.to}: {to} is a {name_one}")
    if not to.parent.is_dir():
        raise UsageError(f"TO={config.to}: {to.parent} is no {name_one}")
    if to.exists() and not config.force:
        raise UsageError(
            f"{to} is there already; to replace it: ARGS='--force'", instead={"--force": ""}
        )
    return to


def _checked(folder: Path) -> Exported:
    view, items = store.open_view(folder), read_items(folder.parent)
    store.refuse_other_images(view, items.fingerprint, len(items))
    status = integrity.check(view)
    attributes = {
        **view.attributes,
        "dataset": items.name,
        "labels_fingerprint": items.labels_fingerprint,
        "root": integrity.root(view),
    }
    return Exported(view, items, status, durable.canonical_json(attributes).decode())


def _write_whole(exported: Exported, to: Path) -> None:
    """By a temp file beside it. Raises StorageError."""
    temp = to.with_name(f".{to.name}.tmp")
    try:
        durable.fault("export.open")
        WRITERS[to.suffix.lower()](temp, exported)
        durable.fault("export.fsync")
        with temp.open("rb+") as file:
            os.fsync(file.fileno())
        durable.fault("export.rename")
        os.rename(temp, to)
        durable.fsync_folder(to.parent)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise
        raise StorageError(
            f"cannot write {to}: {error.strerror or error}. Make room, or name another place: TO=…"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


def _write_npz(path: Path, exported: Exported) -> None:
    """A zip of .npy files: the embeddings as they are, in pieces of a shard; the strings, mostly
    padding, compressed."""
    view = exported.view
    with zipfile.ZipFile(path, "w") as archive:
        with _appending(archive, "embeddings", (view.n, view.width), np.dtype("<f2")) as write:
            for _, _, emb in exported.shards():
                write(emb)
        for name, column in exported.columns().items():
            dtype = _text_type(column) if isinstance(column, list) else column.dtype
            with _appending(archive, name, (len(column),), dtype, packed=True) as write:
                for first in range(0, len(column), PIECE):
                    write(np.array(column[first : first + PIECE], dtype))
        attributes = np.array(exported.attributes)
        with _appending(archive, "attributes", (), attributes.dtype, packed=True) as write:
            write(attributes)


@contextlib.contextmanager
def _appending(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    packed: bool = False,
) -> Generator[Callable[[np.ndarray], int]]:
    """What appends rows to a new member of the archive."""
    info = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed: the same view gives the same bytes
    info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda rows: file.write(np.ascontiguousarray(rows, dtype).tobytes())


def _text_type(column: list[str]) -> np.dtype:
    longest = max(map(len, column), default=1)
    return np.dtype(f"<U{longest or 1}")


def _write_h5(path: Path, exported: Exported) -> None:
    view = exported.view
    with open_h5(path, "w") as file:
        embeddings = file.create_dataset("embeddings", (view.n, view.width), "<f2")
        for first, last, emb in exported.shards():
            embeddings[first:last] = emb
        for name, column in exported.columns().items():
            file[name] = column
        file["attributes"] = exported.attributes


def _write_parquet(path: Path, exported: Exported) -> None:
    """One row group a shard."""
    items, width = exported.items, exported.view.width
    fields = [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("label", pa.int32()),
        ("label_name", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.string()),
        ("status", pa.string()),
        ("embedding", pa.list_(pa.float16(), width)),
    ]
    schema = pa.schema(fields, metadata={"coview": exported.attributes})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first, last, emb in exported.shards():
            label = items.label[first:last]
            columns = [
                np.arange(first, last),
                items.keys[first:last],
                label,
                [items.classes[i] if i >= 0 else "" for i in label],
                items.split[first:last],
                items.sha256[first:last],
                [STATUS[code] for code in exported.status[first:last]],
                pa.FixedSizeListArray.from_arrays(pa.array(emb.reshape(-1)), width),
            ]
            writer.write_table(pa.table(columns, schema=schema))


WRITERS: dict[str, Callable[[Path, Exported], None]] = {
    ".npz": _write_npz,
    ".h5": _write_h5,
    ".hdf5": _write_h5,
    ".parquet": _write_parquet,
}
