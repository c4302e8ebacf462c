"""The rows of a file of embeddings in the items' order, as the cache will hold them (for exchange/importer.py)."""

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from base import durable
from base.errors import DataQualityError
from base.progress import Progress
from cache_specs.items import Items
from cache_specs.view import STATUS
from exchange.arrays import Array
from exchange.source import Source, statuses

MISSING, NON_FINITE = STATUS.index("missing"), STATUS.index("non-finite")


@contextlib.contextmanager
def staged(
    cache: Path, source: Source, array: Array, place: np.ndarray, items: Items
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(N, D) float16 in the items' order, NaN where a row has no embedding, and (N,) uint8 status. Says what was rounded and what looks wrong.

    The file is read once, front to back: in the items' order its compressed chunks would be opened again and again. The rows lie in a
    nameless temp file, gone whatever ends the process; its space is claimed first, so that a full disk is an error and not a SIGBUS.
    """
    n, width = len(items), array.shape[1]
    status_N, given, row = np.full(n, MISSING, np.uint8), statuses(source, array.shape[0]), 0
    worst, overflow, zero, first_zero, lost, first_lost = 0.0, 0, 0, "", 0, ""
    durable.make_folder(cache)
    with tempfile.TemporaryFile(dir=cache) as file:
        try:
            durable.fault("staging.allocate")
            os.posix_fallocate(file.fileno(), 0, n * width * 2)
        except OSError as error:
            raise durable.cannot_write(cache, error) from error
        emb_ND = np.frombuffer(mmap.mmap(file.fileno(), n * width * 2), "<f2").reshape(n, width)
        with (
            Progress(f"reading {source.path.name}", array.shape[0], unit="rows") as progress,
            np.errstate(all="ignore"),
        ):
            for block in array.blocks():
                item, told = place[row : row + len(block)], given[row : row + len(block)]
                row += len(block)
                block_KD, item, told = block[item >= 0], item[item >= 0], told[item >= 0]
                half_KD = block_KD.astype("<f2")
                fine, peak = np.isfinite(half_KD).all(1), np.abs(block_KD).max(1)
                error = np.abs(half_KD.astype(block_KD.dtype) - block_KD).max(1) / peak
                worst = max(worst, float(np.max(error, where=fine & (peak > 0), initial=0)))
                overflow += int((np.isfinite(block_KD).all(1) & ~fine).sum())
                zero += int((peak == 0).sum())
                first_zero = first_zero or next((items.keys[i] for i in item[peak == 0]), "")
                under = (peak > 0) & ~half_KD.any(1) & (told == 0)
                lost += int(under.sum())
                first_lost = first_lost or next((items.keys[i] for i in item[under]), "")
                state = np.where(told > 0, told, np.where(fine, 0, NON_FINITE)).astype(np.uint8)
                half_KD[state > 0] = np.nan
                emb_ND[item], status_N[item] = half_KD, state
                progress.advance(len(block))
        if lost:
            raise DataQualityError(
                f"{lost:,} rows of {array.where} are not zero in the file but all zeros in float16, whose smallest value is 6e-8; "
                f"the first is {first_lost!r}: multiply the embeddings by a constant"
            )
        emb_ND[status_N == MISSING] = np.nan
        if overflow:
            print(
                f"{overflow:,} rows are finite in the file but overflow float16, whose largest value is 65,504: divide the embeddings by a constant"
            )
        if worst:
            print(
                f"rounded to float16: by at most {worst:.1e} of a row's largest value"
                + (", which is much: multiply the embeddings by a constant" if worst > 1e-3 else "")
            )
        if zero:
            print(
                f"{zero:,} rows are all zeros, the first is {first_zero!r}: were they ever written?"
            )
        if status_N.all():
            raise DataQualityError(
                f"not one row of {array.where} is finite in float16 (its largest value is 65,504); divide the embeddings "
                "by a constant, or look at what wrote them"
            )
        yield emb_ND, status_N
