"""How many images a second this machine would embed: by a few batches, or, without the weights, by
its matrix products."""

import time

import torch

from base import native
from cache_specs.spec import ViewSpec
from extract.images import Batches
from extract.models import backbones
from extract.prepare import Ready
from extract.workers import workers_of

SECONDS = 5.0  # for which batches are timed


def measured(ready: Ready, todo: int) -> tuple[float, str]:
    """Images/s, and how that is known. Workers decode while the model computes; processes on one
    CPU share it."""
    devices, workers = ready.flags.devices, ready.flags.workers
    decode, model, done = _timed(ready)
    workers = workers_of(workers, todo, devices[0], len(devices), decode / done)
    cores, split = native.cores(), len(devices)
    if devices[0] == "cpu":
        cores, split = max(1, cores // len(devices)), 1
    one = max(decode / min(workers, cores), model) if workers else decode + model
    rate = split * done / one
    return rate, (
        f"{rate:,.1f} images/s by {done:,} images timed now ({1e3 * decode / done:.1f} ms to "
        f"decode one, {1e3 * model / done:.1f} ms to embed it)"
    )


@torch.inference_mode()
def _timed(ready: Ready) -> tuple[float, float, int]:
    """Seconds of decoding and of the model, for so many images: one batch that does not count,
    unless it is all there is, then batches for some seconds, the first ones small, for slow models.
    """
    items, device, n = ready.items, ready.flags.devices[0], len(ready.items)
    backbone = backbones.load_backbone(ready.spec, ready.files, device)
    decode, model, done = 0.0, 0.0, 0
    size, first, begun = min(ready.flags.batch, 4), 0, time.monotonic()
    while first < n and (done == 0 or time.monotonic() - begun < SECONDS):
        rows = list(range(first, min(first + size, n)))
        prep, read = ready.spec.preprocess, ready.dataset.read
        start = time.monotonic()
        pixels, *_ = Batches(read, items.sha256, prep, [rows], len(rows))[0]
        between = time.monotonic()
        backbone(pixels.to(device)).half().cpu()
        end = time.monotonic()
        if first or len(rows) == n:
            decode += between - start
            model += end - between
            done += len(rows)
        first += size
        larger = int(size * 1.5 / max(end - start, 1e-3))
        size = min(ready.flags.batch, max(size, larger))
    return decode, model, done


def at_best(spec: ViewSpec) -> tuple[float | None, str]:
    """Images/s of this machine's matrix products in float32, which no model exceeds on the CPU;
    unknown on a GPU, or without [about]."""
    if spec.about is None or torch.cuda.is_available():
        return None, "the weights are not here to be timed"
    a = torch.ones(1024, 1024)
    (a @ a).sum()
    times = []
    for _ in range(5):
        begun = time.monotonic()
        (a @ a).sum()
        times.append(time.monotonic() - begun)
    speed = 1024**3 / min(times) / 1e9
    rate = speed / spec.about.gmacs
    return rate, (
        f"at most {rate:,.2f} images/s: {spec.about.gmacs:g} GMACs an image, at the {speed:,.0f} "
        "GMAC/s of this CPU's matrix products"
    )
