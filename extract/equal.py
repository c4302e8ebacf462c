"""Different images with equal embeddings: to the model they are one, whatever the reason."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cache_specs.view import View


class Equal(NamedTuple):
    """So many different images (by their contents) share so many embeddings; one, other: the rows
    of the first two."""

    images: int
    embeddings: int
    one: int
    other: int

    def told(self, keys: Sequence[str]) -> str:
        return (
            f"{self.images:,} images are different files, but have only "
            f"{self.embeddings:,} different embedding{'s' * (self.embeddings > 1)}, first "
            f"{keys[self.one]!r} and {keys[self.other]!r}"
        )


def blocks_of(view: View) -> Iterator[np.ndarray]:
    """(K, D) float16: the rows of a finished view, a shard at a time."""
    for shard in range(view.shards):
        first, last = view.bounds(shard)
        flat = np.fromfile(view.embeddings_file(shard), "<f2", (last - first) * view.width)
        yield flat.reshape(-1, view.width)


def equal_rows(
    blocks: Iterable[np.ndarray], ok_N: np.ndarray, sha256: Sequence[str]
) -> Equal | None:
    """None where every image has an embedding of its own. blocks: all N rows, in order; sha256: of
    the images' contents. Rows are told apart by 8 bytes of their digest: 2 seconds a million."""
    rows = np.flatnonzero(ok_N)
    digest_n = np.fromiter(_digests(blocks), np.uint64, len(ok_N))[rows]
    _, group_n, count_g = np.unique(digest_n, return_inverse=True, return_counts=True)
    contents: dict[int, dict[str, int]] = defaultdict(dict)  # of a group: sha256 -> first row
    for place in np.flatnonzero(count_g[group_n] > 1).tolist():
        row = int(rows[place])
        contents[int(group_n[place])].setdefault(sha256[row], row)
    shared = [list(firsts.values()) for firsts in contents.values() if len(firsts) > 1]
    if not shared:
        return None
    one, other, *_ = min(shared)
    return Equal(sum(map(len, shared)), len(shared), one, other)


def _digests(blocks: Iterable[np.ndarray]) -> Iterator[int]:
    for block in blocks:
        for row in np.ascontiguousarray(block):
            yield int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little")
