"""What a view's folder looks like: N rows of width D in shards of R rows, and where each shard's files lie."""

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CRC_BYTES = 4
STATUS = ("ok", "undecodable", "truncated", "missing", "non-finite", "too large")   # status/ holds the index


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
        counts = [shard["status"] for shard in json.loads((folder / "complete.json").read_bytes())["shards"]]
        bad, rows = (sum(number for count in counts for name, number in count.items() if of(name)) for of in (STATUS[0].__ne__, bool))
        return bad if bad > max(1, rows // 1000) else 0
    return 0
