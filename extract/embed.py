"""The embed loop: images of the pending shards -> decode workers -> frozen model -> one whole shard at a time, committed.

Batches never cross a shard's edge and the last one is padded, so a row's bytes depend on nothing but its shard. A killed run
loses at most the shard it was computing; the next run goes on with the first uncommitted one and ends with the same bytes.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from base.progress import Clock, Progress
from cache_specs import store
from cache_specs.spec import Preprocess
from extract.images import NON_FINITE, OK, Batches
from extract.models.backbones import Backbone
from extract.prepare import begin_workers
from extract.reuse import Known


def embed(
    view: store.View,
    backbone: Backbone | None,
    prep: Preprocess,
    read: Any,
    sha256: Sequence[str],
    shards: list[int],
    known: Known,
    batch: int,
    workers: int,
    device: str,
    progress: Progress,
    look: Callable[[], None],
    stopping: Callable[[], bool],
) -> None:
    """Embed `shards` of `view`, in order. `read(row) -> bytes` and `sha256[row]` describe the images; see extract/data/datasets.py.

    `known` rows are copied, and the others of a shard alone make up its batches. Without any of these no backbone is needed. A shard that does not come
    out as it must (`known.sealed`) is left pending.

    `look()` is called after each commit of a shard with bad rows; it may raise. After any, once `stopping()` is true, the others stay pending.
    """
    plan = []
    for rows in (known.missing(*view.bounds(shard)) for shard in shards):
        plan.append([rows[part.start : part.stop] for part in batch_rows(0, len(rows), batch)])
    todo = [rows for part in plan for rows in part]
    computed = (
        embedded(
            load(Batches(read, sha256, prep, todo, batch), workers, device),
            backbone,
            device,
            progress.clock,
        )
        if todo
        else iter(())
    )
    for shard, part in zip(shards, plan, strict=True):
        first, last = view.bounds(shard)
        emb_RD, status_R = (
            np.full((view.rows, view.width), np.nan, np.float16),
            np.zeros(view.rows, np.uint8),
        )
        with progress.clock("copy"):
            known.copy(first, last, emb_RD, status_R)
        for rows, (emb_BD, status_B) in zip(part, computed, strict=False):
            place = np.array(rows) - first
            emb_RD[place], status_R[place] = emb_BD[: len(rows)], status_B[: len(rows)]
            progress.advance(len(rows))
        with progress.clock("write"):
            if known.fits(view, shard, emb_RD, status_R):
                store.write_shard(view, shard, emb_RD, status_R)
        if status_R.any():
            look()
        if stopping():
            return
    assert next(computed, None) is None  # and the workers end


def _deaf(worker: int) -> None:
    """Ctrl-C in a terminal goes to all processes; this one's parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def load(batches: Batches, workers: int, device: str) -> DataLoader:
    """The batches, decoded ahead by `workers` processes (0: by this one)."""
    if workers:
        begin_workers()
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.startswith("cuda"),
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=_deaf,
    )


@torch.inference_mode()
def embedded(
    loader: DataLoader, backbone: Backbone, device: str, clock: Clock
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(B, D) float16 embeddings and (B,) uint8 status of each batch; the next batch is under way while one is handed out.

    The clock sees what this process waits for: on a GPU the copy and the model run behind its back, and count where they are waited for.
    """
    ahead: tuple | None = None
    batches = iter(loader)
    while True:
        with clock("decode"):
            batch = next(batches, None)
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
        if launched is None:
            return
        ahead = launched


def finish(
    backbone: Backbone, emb_BD: torch.Tensor, pixels_BCHW: torch.Tensor, status_B: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Guard the storage type: a row that is not finite as float16 is computed again in float32; if it still is not, it gets a status."""
    half, status = emb_BD.half().cpu().numpy(), status_B.numpy()
    lost = ~np.isfinite(half).all(1) & (status == OK)
    if lost.any():
        half = np.where(lost[:, None], backbone(pixels_BCHW, exact=True).half().cpu().numpy(), half)
        status = np.where(lost & ~np.isfinite(half).all(1), NON_FINITE, status).astype(np.uint8)
    return np.where((status == OK)[:, None], half, np.float16(np.nan)), status


def batch_rows(first: int, last: int, batch: int) -> list[range]:
    """The rows [first, last) cut into ranges of at most `batch`."""
    return [range(start, min(start + batch, last)) for start in range(first, last, batch)]
