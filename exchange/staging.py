"""The rows of a file of embeddings in the items' order, as the cache will hold them (for
exchange/importer.py)."""

import contextlib
import logging
import mmap
import os
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from base import durable
from base.errors import DataQualityError
from base.progress import Progress
from cache_specs.items import Items
from cache_specs.view import STATUS
from exchange.arrays import Array
from exchange.source import Source, statuses

log = logging.getLogger(f"coview.{__name__}")
HAS_NO_ROW, NOT_FINITE = STATUS.index("missing"), STATUS.index("non-finite")


@dataclass
class InFloat16:
    """What became of the rows so far. worst: the largest rounding, relative to a row's largest
    value; overflow, zero, lost: how many rows that were finite are not, that are all zeros, and
    that have become so."""

    worst: float = 0.0
    overflow: int = 0
    zero: int = 0
    first_zero: str = ""
    lost: int = 0
    first_lost: str = ""

    def add(
        self, block_KD: np.ndarray, half_KD: np.ndarray, told_K: np.ndarray, keys: Sequence[str]
    ) -> None:
        """Some rows, the same in float16, the status that their file gives them, their keys."""
        finite_K, fine_K = np.isfinite(block_KD).all(1), np.isfinite(half_KD).all(1)
        peak_K = np.abs(block_KD).max(1)
        error_K = np.abs(half_KD.astype(block_KD.dtype) - block_KD).max(1) / peak_K
        worst = np.max(error_K, where=fine_K & (peak_K > 0), initial=0)
        self.worst = max(self.worst, float(worst))
        self.overflow += int((finite_K & ~fine_K).sum())
        zero = np.flatnonzero(peak_K == 0)
        lost = np.flatnonzero((peak_K > 0) & ~half_KD.any(1) & (told_K == 0))
        self.zero += len(zero)
        self.lost += len(lost)
        if len(zero) and not self.first_zero:
            self.first_zero = keys[zero[0]]
        if len(lost) and not self.first_lost:
            self.first_lost = keys[lost[0]]

    def say(self, where: str) -> None:
        """Raises DataQualityError for rows that have become zeros."""
        if self.lost:
            raise DataQualityError(
                f"{self.lost:,} rows of {where} are not zero in the file but all zeros in float16, "
                f"whose smallest value is 6e-8; the first is {self.first_lost!r}: multiply the "
                "embeddings by a constant"
            )
        if self.overflow:
            log.info(
                f"{self.overflow:,} rows are finite in the file but overflow float16, whose "
                "largest value is 65,504: divide the embeddings by a constant"
            )
        if self.worst:
            much = ", which is much: multiply the embeddings by a constant"
            log.info(
                f"rounded to float16: by at most {self.worst:.1e} of a row's largest value"
                f"{much if self.worst > 1e-3 else ''}"
            )
        if self.zero:
            log.info(
                f"{self.zero:,} rows are all zeros, the first is {self.first_zero!r}: were they "
                "ever written?"
            )


@contextlib.contextmanager
def staged(
    cache: Path, source: Source, array: Array, place: np.ndarray, items: Items
) -> Generator[tuple[np.ndarray, np.ndarray]]:
    """(N, D) float16 in the items' order, NaN where a row has no embedding, and (N,) uint8 status.
    Says what was rounded and what looks wrong.

    The file is read once, front to back: in the items' order its compressed chunks would be opened
    again and again. The rows lie in a nameless temp file, gone whatever ends the process; its space
    is claimed first, so that a full disk is an error and not a SIGBUS.
    """
    durable.make_folder(cache)
    with tempfile.TemporaryFile(dir=cache) as file:
        emb_ND = _space(file, cache, len(items), array.shape[1])
        status_N = np.full(len(items), HAS_NO_ROW, np.uint8)
        with np.errstate(all="ignore"):
            _fill(emb_ND, status_N, source, array, place, items.keys).say(array.where)
        emb_ND[status_N == HAS_NO_ROW] = np.nan
        if status_N.all():
            raise DataQualityError(
                f"not one row of {array.where} is finite in float16 (its largest value is "
                "65,504); divide the embeddings by a constant, or look at what wrote them"
            )
        yield emb_ND, status_N


def _space(file: BinaryIO, cache: Path, n: int, width: int) -> np.ndarray:
    """(N, D) float16 that lie in the file. Raises StorageError."""
    try:
        durable.fault("staging.allocate")
        os.posix_fallocate(file.fileno(), 0, n * width * 2)
    except OSError as error:
        raise durable.cannot_write(cache, error) from error
    return np.frombuffer(mmap.mmap(file.fileno(), n * width * 2), "<f2").reshape(n, width)


def _fill(
    emb_ND: np.ndarray,
    status_N: np.ndarray,
    source: Source,
    array: Array,
    place: np.ndarray,
    keys: Sequence[str],
) -> InFloat16:
    """Put the rows of the array and their statuses into their places."""
    seen, row, given = InFloat16(), 0, statuses(source, array.shape[0])
    with Progress(f"reading {source.path.name}", array.shape[0], unit="rows") as progress:
        for block in array.blocks():
            item, told = place[row : row + len(block)], given[row : row + len(block)]
            row += len(block)
            wanted = item >= 0
            block_KD, item, told = block[wanted], item[wanted], told[wanted]
            half_KD = block_KD.astype("<f2")
            seen.add(block_KD, half_KD, told, [keys[i] for i in item.tolist()])
            fine = np.isfinite(half_KD).all(1)
            state = np.where(told > 0, told, np.where(fine, 0, NOT_FINITE)).astype(np.uint8)
            half_KD[state > 0] = np.nan
            emb_ND[item], status_N[item] = half_KD, state
            progress.advance(len(block))
    return seen
