"""make export VIEW=clip DATA=photos/ TO=clip.h5     (python -m exchange.export --view clip --data photos/ --to clip.h5)

Writes one finished, checked view with its items to one file that other programs read: .npz, .h5 or .parquet. `make import` reads the first
two again, to the same embeddings, byte for byte.

    .npz, .h5    embeddings (N, D) float16, keys, y (-1 unknown), classes, split, status (0 ok), status_names, attributes (JSON)
    .parquet     row, key, label, label_name, split, status, embedding (list of D float16); the attributes are the schema's metadata
"""

import contextlib
import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.errors import StorageError, UsageError
from base.phrase import quoted
from exchange.config import ExportConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from cache_specs.items import Items
    from cache_specs.view import View


@dataclass(frozen=True)
class Table:
    """What is exported: N rows with their items, and where they came from."""

    view: "View"
    items: "Items"
    status: "np.ndarray"
    attributes: str

    def shards(self) -> "Iterator[tuple[int, int, np.ndarray]]":
        """first, last and the (last - first, D) embeddings of each shard, whose digests have been checked."""
        import numpy as np

        for shard in range(self.view.shards):
            first, last = self.view.bounds(shard)
            yield (
                first,
                last,
                np.fromfile(
                    self.view.embeddings_file(shard), "<f2", (last - first) * self.view.width
                ).reshape(last - first, self.view.width),
            )

    def columns(self) -> dict[str, Any]:
        """All but the embeddings, as .npz and .h5 have them."""
        from cache_specs.view import STATUS

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
    export(config)


def export(config: ExportConfig) -> Path:
    """Write the file whole or not at all; return its path. Raises CoviewError."""
    import os

    from base import durable
    from cache_specs import integrity, store
    from cache_specs.items import read_items
    from cache_specs.lookup import find_view

    if not config.view or not config.to:
        raise UsageError(
            f"{'VIEW' if not config.view else 'TO'} is missing. Type: make export VIEW={quoted(config.view or 'clip')} DATA=… TO=embeddings.h5"
        )
    to = Path(config.to).expanduser()
    if to.suffix.lower() not in WRITERS:
        raise UsageError(
            f"TO={config.to}: unknown format {to.suffix!r}; TO may end in .npz, .h5 (or .hdf5), or .parquet"
        )
    if not to.parent.is_dir() or to.is_dir():
        raise UsageError(
            f"TO={config.to}: {to if to.is_dir() else to.parent} is {'a' if to.is_dir() else 'no'} folder; name a file in one that is there"
        )
    if to.exists() and not config.force:
        raise UsageError(f"{to} is there already; to replace it: ARGS='--force'")
    folder = find_view(
        Path(config.cache), config.view, config.data, "export", f" TO={quoted(config.to)}"
    )
    view, items = store.open_view(folder), read_items(folder.parent)
    store.refuse_other_images(view, items.fingerprint, len(items))
    status = integrity.check(view)
    attributes = {
        **view.attributes,
        "dataset": items.name,
        "labels_fingerprint": items.labels_fingerprint,
        "root": integrity.root(view),
    }
    temp = to.with_name(f".{to.name}.tmp")
    try:
        durable.fault("export.open")
        WRITERS[to.suffix.lower()](
            temp, Table(view, items, status, durable.canonical_json(attributes).decode())
        )
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
    print(
        f"{view.name}: {view.n:,} rows x {view.width} float16 of {items.name} in {to}, {to.stat().st_size / 1e6:,.1f} MB"
        + (
            f"; {int((status > 0).sum()):,} rows have no embedding (NaN, see status)"
            if status.any()
            else ""
        )
    )
    return to


def _npz(path: Path, table: Table) -> None:
    """A zip of .npy files: the embeddings as they are, in pieces of a shard; the strings, mostly padding, compressed."""
    import zipfile

    import numpy as np

    def member(
        archive: zipfile.ZipFile,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        blocks: "Iterator[np.ndarray]",
        packed: bool,
    ) -> None:
        info = zipfile.ZipInfo(
            f"{name}.npy"
        )  # its date is fixed: the same view gives the same bytes
        info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        with archive.open(info, "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            )
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype).tobytes())

    with zipfile.ZipFile(path, "w") as archive:
        member(
            archive,
            "embeddings",
            (table.view.n, table.view.width),
            "<f2",
            (emb for _, _, emb in table.shards()),
            False,
        )
        for name, column in table.columns().items():
            longest = max(map(len, column), default=1) if isinstance(column, list) else 0
            dtype = f"<U{longest or 1}" if isinstance(column, list) else column.dtype
            member(
                archive,
                name,
                (len(column),),
                dtype,
                (np.array(column[i : i + 4096], dtype) for i in range(0, len(column), 4096)),
                True,
            )
        member(
            archive,
            "attributes",
            (),
            f"<U{len(table.attributes)}",
            iter([np.array(table.attributes)]),
            True,
        )


def _h5(path: Path, table: Table) -> None:
    from exchange.arrays import open_h5

    with open_h5(path, "w") as file:
        embeddings = file.create_dataset("embeddings", (table.view.n, table.view.width), "<f2")
        for first, last, emb in table.shards():
            embeddings[first:last] = emb
        for name, column in table.columns().items():
            file[name] = column
        file["attributes"] = table.attributes


def _parquet(path: Path, table: Table) -> None:
    """One row group a shard."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cache_specs.view import STATUS

    items, width = table.items, table.view.width
    schema = pa.schema(
        [
            ("row", pa.int64()),
            ("key", pa.string()),
            ("label", pa.int32()),
            ("label_name", pa.string()),
            ("split", pa.string()),
            ("sha256", pa.string()),
            ("status", pa.string()),
            ("embedding", pa.list_(pa.float16(), width)),
        ],
        metadata={"coview": table.attributes},
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first, last, emb in table.shards():
            label = items.label[first:last]
            writer.write_table(
                pa.table(
                    [
                        np.arange(first, last),
                        items.keys[first:last],
                        label,
                        [items.classes[i] if i >= 0 else "" for i in label],
                        items.split[first:last],
                        items.sha256[first:last],
                        [STATUS[code] for code in table.status[first:last]],
                        pa.FixedSizeListArray.from_arrays(pa.array(emb.reshape(-1)), width),
                    ],
                    schema=schema,
                )
            )


WRITERS: "dict[str, Callable[[Path, Table], None]]" = {
    ".npz": _npz,
    ".h5": _h5,
    ".hdf5": _h5,
    ".parquet": _parquet,
}
