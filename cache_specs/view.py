"""What a view's folder looks like: N rows of width D in shards of R rows, where each shard's files lie, and the three zarr.json files that make the
folder a Zarr v3 group. Each of these repeats the view's attributes and holds its own sha256."""

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base import durable
from cache_specs.spec import fingerprint

CRC_BYTES = 4
FORMAT = 1
DOCUMENTS = (
    "embeddings/zarr.json",
    "status/zarr.json",
    "zarr.json",
)  # the group's own last: it says "created"
STATUS = (
    "ok",
    "undecodable",
    "truncated",
    "missing",
    "non-finite",
    "too large",
)  # status/ holds the index


@dataclass(frozen=True)
class View:
    """A view's folder as its zarr.json describes it: N rows of width D in shards of R rows. `identity` is the sha256 of zarr.json."""

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


def default_rows(n: int) -> int:
    """Rows a shard: 4,096, so that every shard is a whole number of pages and a loss costs little; fewer only for tiny sets,
    more where thousands of shards would have to be mapped (Linux allows a process 65,530 maps)."""
    return 512 if n <= 8192 else 4096 if n <= 4096 * 1024 else 32768


def shard_bytes(rows: int, width: int) -> int:
    """The bytes of a shard's two files."""
    return rows * width * 2 + CRC_BYTES + rows + CRC_BYTES


def view_name(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def more_bad_rows(folder: Path) -> int:
    """The bad rows of a finished view, where they are more than extract allows by itself; otherwise 0."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        counts = [
            shard["status"]
            for shard in json.loads((folder / "complete.json").read_bytes())["shards"]
        ]
        bad, rows = (
            sum(number for count in counts for name, number in count.items() if of(name))
            for of in (STATUS[0].__ne__, bool)
        )
        return bad if bad > max(1, rows // 1000) else 0
    return 0


def write_documents(folder: Path, attributes: dict[str, Any]) -> None:
    """The three zarr.json files of a view."""
    documents = _zarr_documents(attributes)
    for name in DOCUMENTS:
        durable.write(folder / name, durable.sealed(documents[name]), "metadata")


def check_documents(
    folder: Path, embeddings: dict[str, Any], status: dict[str, Any], group: dict[str, Any]
) -> None:
    """Raise ValueError or KeyError unless the three documents, each intact, belong together and to the folder."""
    for name, document, kind in zip(
        DOCUMENTS,
        (embeddings, status, group),
        (("array", "float16"), ("array", "uint8"), ("group", None)),
        strict=True,
    ):
        if (document["node_type"], document.get("data_type")) != kind:
            raise ValueError(f"{name} describes another thing")
    own = [
        {key: value for key, value in document["attributes"].items() if key != "sha256"}
        for document in (embeddings, status, group)
    ]
    n, rows, width = own[2]["n"], own[2]["rows"], own[2]["spec"]["width"]
    grid = [
        document["chunk_grid"]["configuration"]["chunk_shape"] for document in (embeddings, status)
    ]
    if not own[0] == own[1] == own[2] or [embeddings["shape"], status["shape"], *grid] != [
        [n, width],
        [n],
        [rows, width],
        [rows],
    ]:
        odd = next(
            (name for name, mine in zip(DOCUMENTS, own, strict=True) if own.count(mine) == 1), "one"
        )
        raise ValueError(f"of {', '.join(DOCUMENTS)} {odd} is that of another view")
    if fingerprint(own[2]["spec"], own[2]["weights_sha256"])[:12] != folder.name.rpartition("-")[2]:
        raise ValueError("zarr.json does not belong to this folder")


def _zarr_documents(attributes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The three zarr.json documents, made by zarr itself in memory, so that we can seal and write them durably."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    n, rows, width = attributes["n"], attributes["rows"], attributes["spec"]["width"]
    memory: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(memory), zarr_format=3, attributes=attributes)
    common: dict[str, Any] = {
        "serializer": BytesCodec(endian="little"),
        "compressors": [Crc32cCodec()],
        "filters": None,
        "attributes": attributes,
    }
    group.create_array(
        "embeddings",
        shape=(n, width),
        chunks=(rows, width),
        dtype="float16",
        fill_value=float("nan"),
        **common,
    )
    group.create_array(
        "status",
        shape=(n,),
        chunks=(rows,),
        dtype="uint8",
        fill_value=255,
        **{**common, "serializer": BytesCodec(endian=None)},
    )
    return {name: json.loads(memory[name].to_bytes()) for name in DOCUMENTS}
