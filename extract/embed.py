"""The embed loop: images of the pending shards -> decode workers -> frozen model -> one whole shard
at a time, committed.

Batches never cross a shard's edge and the last one is padded, so a row's bytes depend on nothing
but its shard. A killed run loses at most the shard it was computing; the next run goes on with the
first uncommitted one and ends with the same bytes.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from base.progress import Clock, Progress
from cache_specs import store
from extract.images import NON_FINITE, OK
from extract.models.backbones import Backbone
from extract.reuse import Known
from extract.stream import Batch

END: Any = object()
Embedded = tuple[np.ndarray, np.ndarray]  # of a batch: (B, D) float16, and (B,) uint8 status


@dataclass(frozen=True)
class ShardWork:
    """One shard of a view: the batches of its rows that are computed; the others are copied."""

    view: store.View
    shard: int
    known: Known
    batches: list[list[int]]

    def block(self) -> tuple[np.ndarray, np.ndarray]:
        """(R, D) float16 and (R,) uint8 status, with what is copied."""
        return self.known.block(self.view, self.shard)

    def write(self, emb_RD: np.ndarray, status_R: np.ndarray) -> None:
        store.write_shard(self.view, self.shard, emb_RD, status_R)


def shard_work(view: store.View, shard: int, known: Known, batch: int) -> ShardWork:
    """The rows of a shard that are not known, and they alone, make up its batches."""
    rows = known.missing(*view.bounds(shard))
    batches = [rows[part.start : part.stop] for part in batch_rows(0, len(rows), batch)]
    return ShardWork(view, shard, known, batches)


def embed(
    works: list[ShardWork],
    computed: Iterator[Embedded],
    progress: Progress,
    look: Callable[[], None],
    stopping: Callable[[], bool],
) -> Iterator[None]:
    """Write these shards, in order; yields after each batch, so that several views can take turns.
    `computed`: all their batches, one after the other.

    `look()` is called after each commit of a shard with bad rows; it may raise. After any, once
    `stopping()` is true, the others stay pending.
    """
    for work in works:
        with progress.clock("copy"):
            emb_RD, status_R = work.block()
        for rows in work.batches:
            emb_BD, status_B = next(computed)
            place = np.array(rows) % work.view.rows
            emb_RD[place] = emb_BD[: len(rows)]
            status_R[place] = status_B[: len(rows)]
            progress.advance(len(rows))
            yield
        with progress.clock("write"):
            work.write(emb_RD, status_R)
        if status_R.any():
            look()
        if stopping():
            return
    assert next(computed, None) is None  # and the workers end


@torch.inference_mode()
def embedded(
    arrived: Iterable[Batch | None], backbone: Backbone, device: str, clock: Clock
) -> Iterator[Embedded]:
    """The embeddings and the status of each batch; the next batch is under way while one is handed
    out. None among those that arrive: the next one comes later, do not wait for it.

    The clock sees what this process waits for: on a GPU the copy and the model run behind its back,
    and count where they are waited for.
    """
    ahead: tuple | None = None
    for batch in _timed(itertools.chain(arrived, [None]), clock):
        launched = None
        if batch is not None:
            with clock("host to device"):
                pixels = batch[0].to(device, non_blocking=True)
            with clock("model"):
                launched = (backbone(pixels), pixels, batch[1])
        if ahead is not None:
            with clock("model"):
                finished = finish(backbone, *ahead)
            yield finished
        ahead = launched


def _timed(arrived: Iterable[Batch | None], clock: Clock) -> Iterator[Batch | None]:
    batches = iter(arrived)
    while True:
        with clock("decode"):
            found = next(batches, END)
        if found is END:
            return
        yield found


def finish(
    backbone: Backbone, emb_BD: torch.Tensor, pixels_BCHW: torch.Tensor, status_B: torch.Tensor
) -> Embedded:
    """Guard the storage type: a row that is not finite as float16 is computed again in float32; if
    it still is not, it gets a status."""
    half, status = emb_BD.half().cpu().numpy(), status_B.numpy()
    lost = ~np.isfinite(half).all(1) & (status == OK)
    if lost.any():
        again = backbone(pixels_BCHW, exact=True).half().cpu().numpy()
        half = np.where(lost[:, None], again, half)
        status = np.where(lost & ~np.isfinite(half).all(1), NON_FINITE, status).astype(np.uint8)
    return np.where((status == OK)[:, None], half, np.float16(np.nan)), status


def batch_rows(first: int, last: int, batch: int) -> list[range]:
    """The rows [first, last) cut into ranges of at most `batch`."""
    return [range(start, min(start + batch, last)) for start in range(first, last, batch)]
