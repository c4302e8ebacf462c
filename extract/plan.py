"""make extract … ARGS=--dry-run: how many rows the cache has already, what would be written, and about how long it would take. Writes nothing.

Images are hashed as in the run itself: that alone says which rows are in the cache. The rate is that of a few batches, decoded and embedded now on
this machine; where the weights are not here, at best that of this machine's matrix products. Nothing is fetched.
"""

import math
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.commands import typed
from base.console import clock_text
from base.errors import StorageError
from extract.config import ExtractConfig

if TYPE_CHECKING:
    from cache_specs.spec import ViewSpec
    from cache_specs.view import View
    from extract.prepare import Ready

SECONDS = 5.0  # for which batches are timed


def plan(config: ExtractConfig, told: dict[str, Any]) -> None:
    """Print the plan of an extraction, and put it into `told` for --json. Raises CoviewError where the run itself would refuse to begin."""
    from cache_specs import store
    from cache_specs.sources import source_path
    from cache_specs.succession import next_version
    from cache_specs.view import default_rows, shard_bytes
    from extract import reuse
    from extract.prepare import prepare

    ready = prepare(config, fetch=False)
    spec, items, here, dataset = (
        ready.spec,
        ready.items,
        bool(ready.files),
        Path(config.cache) / ready.items.folder_name,
    )
    for line in next_version(dataset.parent, items, source_path(config.data), config.changed)[2]:
        print(line)
    view = _existing(dataset, ready)
    rows = view.rows if view else min(config.shard_rows, len(items)) or default_rows(len(items))
    pending = view.pending() if view else list(range(-(-len(items) // rows)))
    place = (
        store.view_folder(dataset, spec.name, spec.declared(), ready.weights_sha256)
        if here
        else dataset / f"{spec.name}-{'[0-9a-f]' * 12}"
    )
    known = (
        reuse.recorded(view, items, remember=False)
        if view
        else reuse.find(place, spec.declared(), items, remember=False)
    )
    todo = sum(
        len(known.missing(shard * rows, min((shard + 1) * rows, len(items)))) for shard in pending
    )
    write, free = (
        len(pending) * (shard_bytes(rows, spec.width) + 2048),
        shutil.disk_usage(_parent(dataset)).free,
    )
    if not todo:
        rate, how = None, "there is nothing to embed"
    elif here:
        rate, how = _measured(config, ready, todo)
    else:
        rate, how = _at_best(spec)
    seconds = todo / rate if rate else None if todo else 0.0
    name, copied = (
        place.name if here else f"{spec.name}-…",
        f" (the same images in other data sets: {known})" if known.donors and pending else "",
    )
    told |= {
        "dry_run": True,
        "view": spec.name,
        "dataset": items.name,
        "rows": len(items),
        "hits": len(items) - todo,
        "to_embed": todo,
        "bytes": write,
        "bytes_free": free,
        "weights_here": here,
        "images_per_second": rate,
        "seconds": seconds,
        "rate_from": how,
    }
    print(
        f"{spec.name}: {len(items):,} images of {items.name!r}, {len(items) - todo:,} of them in the cache already{copied}, {todo:,} to embed "
        f"-> {dataset / name}\n"
        f"to write: {write / 1e6:,.1f} MB in {len(pending)} shards of {rows:,} rows x {spec.width} {spec.storage_dtype}; {free / 1e6:,.0f} MB are free"
    )
    if not here:
        print(f"weights: not on this machine; {_fetched(spec)}")
    about = (
        "unknown"
        if seconds is None
        else f"{'about' if here else 'at least'} {clock_text(math.ceil(seconds))}"
    )
    print(f"time: {about} on {', '.join(ready.devices)}, {how}")
    if write > free:
        raise StorageError(
            f"{config.cache} has {free / 1e6:,.1f} MB free, and {write / 1e6:,.1f} MB are to be written. Make room, or name a larger disk "
            "with CACHE=…"
        )
    print(f"Nothing is written. To begin, type: {typed(without='--dry-run')}", flush=True)


def _existing(dataset: Path, ready: "Ready") -> "View | None":
    """The view that the run would go on with. Raises StaleError as the run would."""
    from cache_specs import store

    for folder in store.view_folders(dataset, ready.spec.name):
        view = store.open_view(folder)
        store.refuse_changed(view, ready.spec.declared(), ready.weights_sha256 or None)
        store.refuse_other_images(view, ready.items.fingerprint, len(ready.items))
        return view
    return None


def _measured(config: ExtractConfig, ready: "Ready", todo: int) -> tuple[float, str]:
    """Images/s, and how that is known: one batch that does not count, then batches for some seconds. Workers decode while the model computes."""
    import torch

    from extract.images import Batches
    from extract.models.backbones import load_backbone
    from extract.prepare import workers_of

    spec, files, _, devices, dataset, items, _ = ready
    backbone, device, decode, model, done = (
        load_backbone(spec, files, devices[0]),
        devices[0],
        0.0,
        0.0,
        0,
    )
    size, first, begun = min(config.batch, 4), 0, time.monotonic()
    with torch.inference_mode():
        while first < len(items) and (done == 0 or time.monotonic() - begun < SECONDS):
            chosen = list(range(first, min(first + size, len(items))))
            start = time.monotonic()
            pixels = Batches(dataset.read, items.sha256, spec.preprocess, [chosen], len(chosen))[0][
                0
            ]
            between = time.monotonic()
            backbone(pixels.to(device)).half().cpu()
            end = time.monotonic()
            if first or len(chosen) == len(
                items
            ):  # the first batch warms up, unless it is all there is
                decode, model, done = (
                    decode + between - start,
                    model + end - between,
                    done + len(chosen),
                )
            first += size
            size = min(
                config.batch, max(size, int(size * 1.5 / max(end - start, 1e-3)))
            )  # small steps towards the batch, for slow models
    workers = workers_of(config.workers, todo, device, config.gpus)
    cores = max(1, (os.cpu_count() or 1) // (len(devices) if device == "cpu" else 1))
    one = max(decode / min(workers, cores), model) if workers else decode + model
    split = len(devices) if device != "cpu" else 1  # processes on one CPU share it
    return (
        split * done / one,
        f"{split * done / one:,.1f} images/s by {done:,} images timed now ({1e3 * decode / done:.1f} ms to decode one, "
        f"{1e3 * model / done:.1f} ms to embed it)",
    )


def _at_best(spec: "ViewSpec") -> tuple[float | None, str]:
    """Images/s of this machine's matrix products in float32, which no model exceeds on the CPU; unknown on a GPU, or without [about]."""
    import torch

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
    return (
        rate,
        f"at most {rate:,.2f} images/s: {spec.about.gmacs:g} GMACs an image, at the {speed:,.0f} GMAC/s of this CPU's matrix products",
    )


def _fetched(spec: "ViewSpec") -> str:
    from extract.models.weights import called

    size = f", some {4e-6 * spec.about.parameters:,.0f} MB in float32" if spec.about else ""
    return (
        f"the run fetches them from {spec.weights.hub}{size}"
        if spec.weights.hub
        else f"first type: make weights VIEW={called(spec)}"
    )


def _parent(folder: Path) -> Path:
    """The nearest folder that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
