"""One extraction from its settings to a sealed view: hash the images, embed what the cache lacks, say what could not be read."""

import contextlib
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_specs.errors import CoviewError, DataQualityError, RankDiedError, UsageError, run_cli
from extract.config import ExtractConfig

if TYPE_CHECKING:
    import numpy as np

    from cache_specs.items import Items
    from cache_specs.spec import ViewSpec
    from cache_specs.store import View
    from extract.backbones import Backbone
    from extract.datasets import Dataset


def run(config: ExtractConfig) -> "View":
    """Extract one view; return it, finished. Raises CoviewError."""
    from cache_specs import integrity, store
    from cache_specs.items import source_path, write_items
    from cache_specs.spec import load_spec, view_names
    from extract.datasets import build_items, open_dataset
    from extract.progress import Progress
    from extract.weights import find_weights

    if not config.view or not config.data:
        what = "VIEW" if not config.view else "DATA"
        raise UsageError(f"{what} is missing. Type: make extract VIEW={config.view or 'clip'} DATA={shlex.quote(config.data or 'photos/')}   "
                         f"(views: {', '.join(view_names())})")
    if config.batch < 1 or config.gpus < 1 or config.shard_rows < 0:
        raise UsageError(f"--batch and --gpus must be at least 1 and --shard-rows at least 0, found {config.batch}, {config.gpus}, {config.shard_rows}")
    spec = load_spec(config.view)
    files, weights_sha256 = find_weights(spec, config.weights)
    dataset = open_dataset(os.path.expanduser(config.data), Path(config.root), config.name)
    with Progress(f"hashing {dataset.name}", len(dataset.keys)) as progress:
        items = build_items(dataset, progress.advance)
    folder = write_items(Path(config.cache), items, source_path(config.data))
    finished = any(store.open_view(path).is_complete for path in store.view_folders(folder, spec.name))
    backbone = None if finished or config.gpus > 1 else load_on(config, spec, files)      # weights that do not fit leave no empty view behind
    rows = config.shard_rows or store.default_rows(len(items))
    view = store.create_view(folder, spec.name, spec.declared(), weights_sha256, items.fingerprint, len(items), rows, _provenance(config, finished))
    if view.is_complete:
        status = integrity.check(view)
        print(f"{spec.name}: already in the cache, nothing to do: {view.n:,} rows x {view.width} in {view.folder}")
        return _report(items, view, status)
    print(f"{spec.name}: {view.n:,} images -> {view.n} x {view.width} {spec.storage_dtype}, {view.n * view.width * 2 / 1e6:,.1f} MB in "
          f"{view.shards} shards ({view.shards - len(view.pending())} done) in {view.folder}", flush=True)
    begun, todo = time.monotonic(), sum(last - first for first, last in map(view.bounds, view.pending()))
    with store.writer_lock(view.folder):
        _embed_all(config, spec, files, dataset, items, view, backbone)
        integrity.seal(view)
    status = integrity.check(view)
    seconds = time.monotonic() - begun
    print(f"{spec.name}: finished, {todo:,} images in {seconds:.1f} s ({todo / seconds:,.0f} images/s), sealed in {view.folder}")
    return _report(items, view, status)


def _embed_all(config: ExtractConfig, spec: "ViewSpec", files: dict[str, Path], dataset: "Dataset", items: "Items", view: "View",
               backbone: "Backbone | None") -> None:
    import torch

    devices = _devices(config)
    if len(devices) == 1:
        return embed_part(0, devices, config, spec, files, dataset, items, view, backbone)
    spawn = torch.multiprocessing
    try:        # one process a device; shard i belongs to process i % gpus, so no two ever write the same file
        spawn.spawn(_child, (devices, config, spec, files, dataset, items, view), nprocs=len(devices))
    except spawn.ProcessExitedException as error:
        if error.exit_code > 1:
            failed = CoviewError(f"process {error.error_index} on {devices[error.error_index]} ended the extraction; its message stands above")
            failed.exit_code = error.exit_code
            raise failed from error
        raise RankDiedError(f"process {error.error_index} on {devices[error.error_index]} died ({error}). What is committed is kept; the same "
                            "command goes on from there") from error
    except spawn.ProcessRaisedException as error:
        raise RankDiedError(f"process {error.error_index} on {devices[error.error_index]} failed. What is committed is kept:\n{error}") from error


def _child(part: int, *arguments: Any) -> None:
    """embed_part in a process of its own, with the exit codes of a command."""
    with contextlib.suppress(KeyboardInterrupt):            # the parent says it
        if code := run_cli(lambda: embed_part(part, *arguments)):
            sys.exit(code)


def embed_part(part: int, devices: list[str], config: ExtractConfig, spec: "ViewSpec", files: dict[str, Path], dataset: "Dataset",
               items: "Items", view: "View", backbone: "Backbone | None" = None) -> None:
    """Embed the pending shards that belong to process `part`, on its device."""
    import torch

    from extract.backbones import load_backbone
    from extract.embed import embed
    from extract.progress import Progress

    if len(devices) > 1 and devices[part] == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(devices)))
    mine = [shard for shard in view.pending() if shard % len(devices) == part]
    total = sum(last - first for first, last in map(view.bounds, range(part, view.shards, len(devices))))
    todo = sum(last - first for first, last in map(view.bounds, mine))
    workers = config.workers if config.workers >= 0 else min(8, os.cpu_count() or 1) if todo > 20_000 or devices[part] != "cpu" else 0
    backbone = backbone or load_backbone(spec, files, devices[part])
    title = spec.name if len(devices) == 1 else f"{spec.name} on {devices[part]} ({part + 1} of {len(devices)})"
    with Progress(title, total, total - todo) as progress:
        embed(view, backbone, spec.preprocess, dataset.read, items.sha256, mine, view.attributes["provenance"]["batch"], workers,
              devices[part], progress)


def load_on(config: ExtractConfig, spec: "ViewSpec", files: dict[str, Path]) -> "Backbone":
    from extract.backbones import load_backbone

    return load_backbone(spec, files, _devices(config)[0])


def _devices(config: ExtractConfig) -> list[str]:
    import torch

    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"DEVICE={config.device}, but torch sees no CUDA GPU here; use DEVICE=cpu or leave it out")
    count = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
    if config.gpus > 1 and config.device in ("auto", "cuda") and count:
        if config.gpus > count:
            raise UsageError(f"GPUS={config.gpus}, but this machine has {count}; use GPUS={count}")
        return [f"cuda:{i}" for i in range(config.gpus)]
    device = ("cuda:0" if count else "cpu") if config.device in ("auto", "cuda") else config.device
    return [device] * config.gpus


def _provenance(config: ExtractConfig, finished: bool) -> dict[str, object]:
    """Recorded, not hashed: what made the numbers, in case they must be made again."""
    import platform
    from importlib.metadata import version

    packages = ("torch", "torchvision", "open_clip_torch", "transformers", "pillow", "numpy", "zarr")
    device = "" if finished else _devices(config)[0]       # of a finished view the provenance stands in its zarr.json already
    if device.startswith("cuda"):
        import torch

        device = torch.cuda.get_device_name(device)
    return {"batch": config.batch, "device": device, "python": platform.python_version(),
            "versions": {name: version(name) for name in packages}}


def _report(items: "Items", view: "View", status: "np.ndarray") -> "View":
    from cache_specs.store import STATUS

    bad = status.nonzero()[0]
    if len(bad):
        counts = ", ".join(f"{int((status == code).sum())} {STATUS[code]}" for code in sorted(set(status[bad].tolist())))
        print(f"{view.name}: {len(bad)} of {view.n:,} images could not be embedded ({counts}); they are left out of training:")
        for row in bad[:20]:
            print(f"  row {row}: {items.keys[row]}: {STATUS[status[row]]}")
        if len(bad) > 20:
            print(f"  … and {len(bad) - 20:,} more: the array `status` of {view.folder}")
    if len(bad) == view.n:
        raise DataQualityError(f"not one of the {view.n:,} images could be embedded; are they images? Mend them, delete {view.folder} and try again")
    return view
