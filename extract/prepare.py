"""What an extraction looks at before it writes anything: its settings, the spec, the weights, the devices, and the images with their hashes."""

import multiprocessing
import os
import re
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from base.errors import UsageError
from base.phrase import quoted
from extract.config import ExtractConfig

MOST_WORKERS = 32  # of one device, where no number is asked for

if TYPE_CHECKING:
    from cache_specs.items import Items
    from cache_specs.spec import ViewSpec
    from extract.data.datasets import Dataset


class Ready(NamedTuple):
    """weights_sha256 is empty, and there are no files, where the weights are not here and were not fetched. seen: the data sets' versions before hashing."""

    spec: "ViewSpec"
    files: dict[str, Path]
    weights_sha256: str
    devices: list[str]
    dataset: "Dataset"
    items: "Items"
    seen: dict[str, int]


def prepare(config: ExtractConfig, fetch: bool = True) -> Ready:
    """Check the settings, find (or `fetch`) the weights, hash the images. Raises CoviewError."""
    from base.progress import Progress
    from cache_specs.spec import load_spec, view_names
    from cache_specs.versions import tops
    from extract import bad_images
    from extract.data.datasets import build_items, open_dataset
    from extract.data.suspects import warn_of_classes, warn_of_copies
    from extract.models.leaks import refuse_labels
    from extract.models.weights import find_weights

    if not config.view or not config.data:
        what = "VIEW" if not config.view else "DATA"
        raise UsageError(
            f"{what} is missing. Type: make extract VIEW={config.view or 'clip'} DATA={quoted(config.data or 'photos/')}   "
            f"(views: {', '.join(view_names())})"
        )
    if "," in config.view:
        lines = [
            f"make extract VIEW={quoted(view.strip())} DATA={quoted(config.data)}"
            for view in config.view.split(",")
            if view.strip()
        ]
        raise UsageError(
            f"VIEW={config.view}: make extract takes one view at a time. Type one after the other:\n  "
            + "\n  ".join(lines)
        )
    if config.batch < 1 or config.gpus < 1 or config.shard_rows < 0:
        raise UsageError(
            f"--batch and --gpus must be at least 1 and --shard-rows at least 0, found {config.batch}, {config.gpus}, {config.shard_rows}"
        )
    bad_images.allowed(config.max_bad, sys.maxsize)
    spec = load_spec(config.view)
    if config.workers > 0 or (
        config.workers < 0 and config.device != "cpu" and Path("/dev/nvidia0").exists()
    ):
        begin_workers()  # while torch is imported here too
    where = devices(config.device, config.gpus)
    if not config.allow_leak:
        refuse_labels(spec, config.weights)
    if config.name is not None and not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", config.name
    ):
        raise UsageError(
            f"--name {config.name!r}: a data set's name is made of letters, digits, '-', '_' and '.', and begins with a letter or digit"
        )
    if config.name is not None and re.search(r"-[0-9a-f]{8}$", config.name):
        raise UsageError(
            f"--name {config.name!r} looks like the folder of a version of {config.name[:-9]!r} (eight hexadecimal digits at the end): choose "
            "another name"
        )
    files, weights_sha256 = find_weights(spec, config.weights, fetch)
    if not config.allow_leak:
        refuse_labels(spec, config.weights, files)
    _refuse_cached_name(config)
    dataset = open_dataset(os.path.expanduser(config.data), Path(config.root), config.name)
    seen = tops(Path(config.cache))
    with Progress(f"hashing {dataset.name}", len(dataset.keys)) as progress:
        items = build_items(dataset, progress.advance)
    bad_images.refuse_unreadable(items, dataset.read, config.max_bad)
    warn_of_copies(items)
    warn_of_classes(items)
    return Ready(spec, files, weights_sha256, where, dataset, items, seen)


def _refuse_cached_name(config: ExtractConfig) -> None:
    """Raise UsageError where DATA is what the cache calls a data set, and its images lie elsewhere."""
    from cache_specs.sources import is_gone, read_source
    from cache_specs.versions import dataset_folders

    for folder in dataset_folders(Path(config.cache), config.data) if is_gone(config.data) else ():
        if (source := read_source(folder)) and source != config.data and not is_gone(source):
            raise UsageError(
                f"DATA={config.data}: there is no such folder here. The cache calls the images in {source} so: name that",
                instead={"DATA": source},
            )


def begin_workers() -> None:
    """Begin the process that decode workers are forked from, which imports what they need, once. It takes seconds, so call it early; again, it does nothing."""
    multiprocessing.set_forkserver_preload(["extract.images"])
    forkserver.ensure_running()


def workers_of(workers: int, todo: int, device: str, devices: int = 1) -> int:
    """Decode processes for `todo` images on one of so many devices; as many as asked for, where that is not -1."""
    if not todo:
        return 0
    share = max(1, len(os.sched_getaffinity(0)) // devices)
    return (
        workers
        if workers >= 0
        else min(MOST_WORKERS, share)
        if todo > 20_000 or device != "cpu"
        else 0
    )


def devices(device: str, gpus: int) -> list[str]:
    """The torch device of each of `gpus` processes. Raises UsageError when there are not so many."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            f"DEVICE={device}, but torch sees no CUDA GPU here; use DEVICE=cpu or leave it out"
        )
    count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if gpus > 1 and device in ("auto", "cuda") and count:
        if gpus > count:
            raise UsageError(f"GPUS={gpus}, but this machine has {count}; use GPUS={count}")
        return [f"cuda:{i}" for i in range(gpus)]
    return [("cuda:0" if count else "cpu") if device in ("auto", "cuda") else device] * gpus
