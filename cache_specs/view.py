"""What a view's folder looks like: N rows of width D in shards of R rows, where each shard's files
lie, and the three zarr.json files that make the folder a Zarr v3 group. Each of these repeats the
view's attributes and holds its own sha256."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from base import durable
from cache_specs.spec import fingerprint

CRC_BYTES = 4
FORMAT = 1
# the group's own last: it says "created"
DOCUMENTS = ("embeddings/zarr.json", "status/zarr.json", "zarr.json")
KINDS = (("array", "float16"), ("array", "uint8"), ("group", None))  # node and data type of each
# status/ holds the index
STATUS = ("ok", "undecodable", "truncated", "missing", "non-finite", "too large")


@dataclass(frozen=True)
class View:
    """A view's folder as its zarr.json describes it: N rows of width D in shards of R rows.
    `identity` is the sha256 of zarr.json."""

    folder: Path
    n: int
    width: int
    rows: int
    identity: str
    attributes: dict[str, Any]

    @property
    def name(self) -> str:
        return view_name(self.folder)

    @property
    def shards(self) -> int:
        return math.ceil(self.n / self.rows)

    def bounds(self, shard: int) -> tuple[int, int]:
        """The rows [first, last) of a shard; the file is padded to R rows with NaN."""
        return shard * self.rows, min((shard + 1) * self.rows, self.n)

    def embeddings_file(self, shard: int) -> Path:
        return self.folder / "embeddings" / "c" / str(shard) / "0"

    def status_file(self, shard: int) -> Path:
        return self.folder / "status" / "c" / str(shard)

    def commit_file(self, shard: int) -> Path:
        return self.folder / "commits" / f"{shard:05d}.json"

    @property
    def embeddings_bytes(self) -> int:
        return shard_bytes(self.rows, self.width) - self.status_bytes

    @property
    def status_bytes(self) -> int:
        return self.rows + CRC_BYTES

    @property
    def is_complete(self) -> bool:
        return (self.folder / "complete.json").is_file()

    def pending(self) -> list[int]:
        """The shards without a commit record, in order."""
        return [shard for shard in range(self.shards) if not self.commit_file(shard).is_file()]


def computed_in(view: View) -> str:
    """'float32' or 'bfloat16': the precision that the view was begun in, which is its spec's unless
    it says otherwise; '' of an imported one."""
    said = view.attributes["spec"].get("compute_dtype", "")
    return view.attributes["provenance"].get("precision", said)


def default_rows(n: int) -> int:
    """Rows a shard: 4,096, so that every shard is a whole number of pages and a loss costs little;
    fewer only for tiny sets, more where thousands of shards would have to be mapped (Linux allows
    a process 65,530 maps)."""
    if n <= 8192:
        return 512
    return 4096 if n <= 4096 * 1024 else 32768


def shard_bytes(rows: int, width: int) -> int:
    """The bytes of a shard's two files."""
    return rows * width * 2 + CRC_BYTES + rows + CRC_BYTES


def view_name(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def status_counts(status_N: np.ndarray) -> dict[str, int]:
    """How many rows have each status, by its name; those that occur, in the order of STATUS."""
    counts = {}
    for code, number in enumerate(np.bincount(status_N).tolist()):
        if number:
            counts[STATUS[code]] = number
    return counts


def more_bad_rows(folder: Path) -> int:
    """The bad rows of a finished view, where they are more than extract allows by itself; or 0."""
    bad = rows = 0
    try:
        for shard in json.loads((folder / "complete.json").read_bytes())["shards"]:
            for name, number in shard["status"].items():
                rows += number
                if name != STATUS[0]:
                    bad += number
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return bad if bad > max(1, rows // 1000) else 0


def write_documents(folder: Path, attributes: dict[str, Any]) -> None:
    """The three zarr.json files of a view."""
    documents = _zarr_documents(attributes)
    for name in DOCUMENTS:
        durable.write(folder / name, durable.sealed(documents[name]), "metadata")


def check_documents(folder: Path, documents: Mapping[str, dict[str, Any]]) -> None:
    """Raise ValueError or KeyError unless the three documents, each intact, belong together and to
    the folder."""
    for name, kind in zip(DOCUMENTS, KINDS, strict=True):
        if (documents[name]["node_type"], documents[name].get("data_type")) != kind:
            raise ValueError(f"{name} describes another thing")
    own = [described(documents[name]) for name in DOCUMENTS]
    n, rows, width = own[2]["n"], own[2]["rows"], own[2]["spec"]["width"]
    expected = [([n, width], [rows, width]), ([n], [rows])]
    grids = [_grid(documents[name]) for name in DOCUMENTS[:2]]
    if own.count(own[2]) < 3 or grids != expected:
        odd = "one"
        for name, attributes in zip(DOCUMENTS, own, strict=True):
            if own.count(attributes) == 1:
                odd = name
                break
        raise ValueError(f"of {', '.join(DOCUMENTS)} {odd} is that of another view")
    if fingerprint(own[2]["spec"], own[2]["weights_sha256"])[:12] != folder.name.rpartition("-")[2]:
        raise ValueError("zarr.json does not belong to this folder")


def described(document: dict[str, Any]) -> dict[str, Any]:
    """The view's attributes, as one of its documents repeats them."""
    return {key: value for key, value in document["attributes"].items() if key != "sha256"}


def _grid(array: dict[str, Any]) -> tuple[list[int], list[int]]:
    return array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"]


def _zarr_documents(attributes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The three zarr.json documents, made by zarr itself in memory, so that we can seal and write
    them durably."""
    import zarr  # noqa: PLC0415  half a second, and only a new view needs it
    from zarr.codecs import BytesCodec, Crc32cCodec  # noqa: PLC0415  likewise
    from zarr.storage import MemoryStore  # noqa: PLC0415  likewise

    n, rows, width = attributes["n"], attributes["rows"], attributes["spec"]["width"]
    memory: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(memory), zarr_format=3, attributes=attributes)
    group.create_array(
        "embeddings",
        shape=(n, width),
        chunks=(rows, width),
        dtype="float16",
        fill_value=float("nan"),
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        filters=None,
        attributes=attributes,
    )
    group.create_array(
        "status",
        shape=(n,),
        chunks=(rows,),
        dtype="uint8",
        fill_value=255,
        serializer=BytesCodec(endian=None),
        compressors=[Crc32cCodec()],
        filters=None,
        attributes=attributes,
    )
    return {name: json.loads(memory[name].to_bytes()) for name in DOCUMENTS}
