"""A finished view's rows, read ahead by threads into a few buffers that are used again: the memory
stays flat whatever the size of the cache.

    for rows_B, emb_BD in stream(view, 1024, draw=Draw(seed=0, epoch=0)): …

For caches that do not fit in RAM. What is read through a memory map counts as memory of the
process, and each random row of a cold one costs an access to the disk. So blocks of neighbouring
rows are read; several, in permuted order, make a window, and the rows of a window are shuffled.
Neighbours in the item list are often of one class: a batch sees `window` neighbourhoods of the
whole set.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from base.errors import StorageError
from cache_specs import integrity, store
from train.algorithm.streams import Purpose
from train.algorithm.streams import stream as random_stream

Order = Literal["sequential", "shuffled"]


@dataclass(frozen=True)
class Draw:
    """Which rows an epoch has, and which order of them.

    rows: the row numbers to draw (default: all, also those whose status is not ok). Meant for most
    of a view: blocks are read whole. first_batch: windows that end before it are not read.
    """

    seed: int = 0
    epoch: int = 0
    first_batch: int = 0
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class Reading:
    """How the files are read: rows of a block, blocks of a window, windows read ahead, threads."""

    block: int = 256
    window: int = 128
    ahead: int = 1
    threads: int = 4


def stream(
    view: store.View,
    batch: int,
    order: Order = "shuffled",
    draw: Draw = Draw(),
    reading: Reading = Reading(),
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch of (row numbers (B,) int64, embeddings (B, D) float16), each row once; the last
    batch may be shorter. The arrays are new: keep them.

    The order follows from (seed, epoch, N, rows, block, window) alone, so views of any width and
    shard size, ranks, threads and restarts draw the same rows. Memory: (ahead + 1) * window * block
    * D * 2 bytes, 101 MB at D = 768. Check the view first (integrity.check): digests are not looked
    at here. Raises IntegrityError (a file is short or gone) or StorageError (it cannot be read)
    from the iterator. The threads end with it: at its end, on an error, when it is closed or
    forgotten.
    """
    block, threads, rows = reading.block, reading.threads, draw.rows
    assert order in ("sequential", "shuffled"), order
    assert min(batch, block, reading.window, reading.ahead, threads) > 0, (batch, reading)
    assert draw.first_batch >= 0, draw.first_batch
    assert rows is None or not len(rows) or 0 <= rows.min() <= rows.max() < view.n, (rows, view.n)
    shuffled = order == "shuffled"
    use_N = np.ones(view.n, bool)
    if rows is not None:
        use_N[:] = False
        use_N[rows] = True
    windows, ends = _windows(use_N, shuffled, draw, reading)
    size = min(reading.window * block, view.n)
    buffers = [np.empty((size, view.width), np.float16) for _ in windows[: reading.ahead + 1]]
    position = draw.first_batch * batch
    first = submitted = int(np.searchsorted(ends, position, side="right"))
    jobs: deque[list[Future[None]]] = deque()
    rows_B, emb_BD, filled = np.empty(batch, np.int64), np.empty((batch, view.width), np.float16), 0
    pool = ThreadPoolExecutor(threads, "stream")
    try:
        for index in range(first, len(windows)):
            # all but this window's buffer are free to be read into
            while submitted < min(index + len(buffers), len(windows)):
                blocks, buffer_RD = windows[submitted], buffers[submitted % len(buffers)]
                jobs.append([])
                for part in np.array_split(np.arange(len(blocks)), threads):
                    if len(part):
                        out_RD = buffer_RD[part[0] * block :]
                        job = pool.submit(_read_blocks, view, blocks[part], block, out_RD, shuffled)
                        jobs[-1].append(job)
                submitted += 1
            for job in jobs.popleft():
                job.result()
            # the row at each place of the buffer; the short block is the last of its window
            grid = (windows[index][:, None] * block + np.arange(block)).ravel()
            grid = grid[grid < view.n]
            places = np.flatnonzero(use_N[grid])
            if shuffled:
                draws = _draws(draw.seed, draw.epoch, index + 1)
                places = places[draws.permutation(len(places))]
            places = places[max(position - (ends[index] - len(places)), 0) :]
            buffer_RD = buffers[index % len(buffers)]
            while len(places):
                now, places = np.split(places, [batch - filled])
                end = filled + len(now)
                rows_B[filled:end] = grid[now]
                np.take(buffer_RD, now, axis=0, out=emb_BD[filled:end], mode="clip")
                filled = end
                if filled == batch or (index == len(windows) - 1 and not len(places)):
                    yield rows_B[:filled], emb_BD[:filled]
                    rows_B = np.empty(batch, np.int64)
                    emb_BD = np.empty((batch, view.width), np.float16)
                    filled = 0
    finally:
        pool.shutdown(cancel_futures=True)


def _windows(
    use_N: np.ndarray, shuffled: bool, draw: Draw, reading: Reading
) -> tuple[list[np.ndarray], np.ndarray]:
    """The blocks of each window, in the order of the files, and how many rows end with it."""
    starts = np.arange(0, len(use_N), reading.block)
    sizes = np.add.reduceat(use_N, starts, dtype=np.int64)  # rows of each block
    blocks = np.arange(len(sizes))
    if shuffled:
        blocks = _draws(draw.seed, draw.epoch, 0).permutation(len(sizes))
    blocks = blocks[sizes[blocks] > 0]
    windows = []
    for at in range(0, len(blocks), reading.window):
        windows.append(np.sort(blocks[at : at + reading.window]))
    return windows, np.cumsum([sizes[blocks].sum() for blocks in windows])


def _draws(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    """purpose: 0 for the order of the blocks, 1 + window for the rows within it."""
    return random_stream(seed, Purpose.BLOCKS, epoch, (0, 0, purpose))


def _read_blocks(
    view: store.View, blocks: np.ndarray, block: int, out_RD: np.ndarray, shuffled: bool
) -> None:
    """Read blocks in ascending order, one after the other, into `out_RD`; neighbours in one go."""
    at = 0
    for run in np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1):
        row, end = int(run[0]) * block, min((int(run[-1]) + 1) * block, view.n)
        while row < end:  # a block may straddle the edge of a shard
            shard, offset = divmod(row, view.rows)
            count = min(end - row, view.rows - offset)
            _read_rows(view, shard, offset, out_RD[at : at + count], shuffled)
            row, at = row + count, at + count


def _read_rows(
    view: store.View, shard: int, offset: int, out_RD: np.ndarray, shuffled: bool
) -> None:
    path, row_bytes = view.embeddings_file(shard), view.width * 2
    left, position = memoryview(out_RD).cast("B"), offset * row_bytes
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(
                handle, 0, 0, os.POSIX_FADV_RANDOM if shuffled else os.POSIX_FADV_SEQUENTIAL
            )  # no read-ahead past a block that stands alone
            while left:
                done = os.preadv(handle, [left], position)
                if not done:
                    raise integrity.damaged(
                        view, shard, f"{path.relative_to(view.folder)} ends at byte {position}"
                    )
                left, position = left[done:], position + done
        finally:
            os.close(handle)
    except FileNotFoundError as error:
        raise integrity.damaged(view, shard, f"{path.relative_to(view.folder)} is gone") from error
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror or error}. Mend the disk, then run the same "
            "command again"
        ) from error
