"""Embedding the pending shards of a view, in this process or in one for each device.

Shard i belongs to process i % devices, so no two ever write the same file. A `Job` is all that a
process is told; each loads its own model.
"""

import ctypes
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from base import locks, native
from base.children import safe_path
from base.commands import run_cli, takes, typed
from base.errors import CoviewError, RankDiedError
from base.interrupt import heeded
from base.limits import free_memory, within_memory
from base.progress import Progress
from cache_specs import store
from cache_specs.items import Items
from cache_specs.spec import ViewSpec
from cache_specs.view import computed_in
from extract import bad_images, canary
from extract.data.readers import Reader
from extract.embed import embed, embedded, shard_work
from extract.images import Batches, Profiles, why_not
from extract.models import backbones
from extract.reuse import Known
from extract.stream import arriving, load, workers_for
from extract.workers import begin_workers

PR_SET_PDEATHSIG = 1
OWN_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Job:
    """The pending shards of `view` are embedded: images by `read`, the rows that are `known`
    copied, one process for each of the devices."""

    view: store.View
    spec: ViewSpec
    files: dict[str, Path]
    read: Reader
    items: Items
    known: Known
    devices: list[str]
    workers: int
    max_bad: str


def embed_all(job: Job, backbone: backbones.Backbone | None) -> bool:
    """Embed all pending shards; after Ctrl-C those under way, and the others stay pending: then it
    returns True. backbone: for this process, if it is the only one; without rows to compute none is
    needed."""
    if not job.known.lacks(job.view, job.view.pending()):  # copying needs no devices
        job = replace(job, devices=job.devices[:1])
    alone = len(job.devices) == 1
    asked: Any = threading.Event()
    if not alone:
        asked = torch.multiprocessing.get_context("spawn").Event()
    under_way = "this shard is finished" if alone else "each process finishes its shard"
    kept = f"stopped at once; finished shards are kept in {job.view.folder}"
    with heeded(
        asked.set,
        f"stopping: {under_way} first (Ctrl-C again drops it)",
        f"{kept}\nTo go on, type: {typed()}",
    ):
        if alone:
            _embed_part(job, 0, asked.is_set, backbone)
        else:
            _embed_in_processes(job, asked)
    return asked.is_set()


def _embed_in_processes(job: Job, asked: Any) -> None:
    """Raises what the first process failed with, as an error that names it and its device."""
    spawn = torch.multiprocessing
    kept = "What is committed is kept; the same command goes on from there"
    try:
        # inherited: Ctrl-C in a terminal goes to all, and this process decides
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        given = (os.getpid(), job, asked)
        with safe_path():
            children: Any = spawn.spawn(_child, given, nprocs=len(job.devices), join=False)
        signal.signal(signal.SIGINT, handler)
        while not children.join():
            pass
    except spawn.ProcessExitedException as error:
        who = f"process {error.error_index} on {job.devices[error.error_index]}"
        if error.exit_code <= 1:
            raise RankDiedError(f"{who} died ({error}). {kept}") from error
        failed = CoviewError(f"{who} ended the extraction; its message stands above")
        failed.exit_code = error.exit_code
        raise failed from error
    except spawn.ProcessRaisedException as error:
        who = f"process {error.error_index} on {job.devices[error.error_index]}"
        raise RankDiedError(f"{who} failed. {kept}, once this is mended:\n{error}") from error


def _child(part: int, parent: int, job: Job, asked: Any) -> None:
    """_embed_part in a process of its own, with the exit codes of a command. It dies with its
    parent, which holds the view's lock."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
    with locks.shared_lock(job.view.folder, store.PARTS):
        code = run_cli(lambda: _embed_part(job, part, asked.is_set, None))
    if code:
        sys.exit(code)


def _embed_part(
    job: Job, part: int, stopping: Callable[[], bool], backbone: backbones.Backbone | None
) -> None:
    """Embed the shards that belong to process `part`, on its device, until `stopping()`."""
    view, batch = job.view, job.view.attributes["provenance"]["batch"]
    device, count = job.devices[part], len(job.devices)
    if device == "cpu":
        torch.set_num_threads(_threads(view, count))
    works, batches = [], []
    for shard in view.pending():
        if shard % count == part:
            works.append(shard_work(view, shard, job.known, batch))
            batches += works[-1].batches
    todo = sum(map(len, batches))
    why = functools.partial(why_not, job.read, job.spec.preprocess)
    images = Batches(job.read, job.items.sha256, job.spec.preprocess, batches, batch)
    with _enough(job, device):
        workers = workers_for(images, job.workers, device, count)
    if workers:
        begin_workers()  # while the model is loaded
    model = _loaded(job, device, backbone) if todo else None
    profiles = Profiles()
    with Progress(*_shown(job, part, todo), live=view.folder / f"progress-{part}.json") as progress:
        computed = iter(())
        if model is not None:
            arrived = profiles.watch(arriving(load(images, workers, device)), batches)
            computed = embedded(arrived, model, device, progress.clock)
        with _enough(job, device):
            embed(
                works,
                computed,
                progress,
                look=lambda: bad_images.enforce(view, job.items, job.max_bad, why),
                stopping=stopping,
            )
    profiles.say(view.name, job.items.keys, job.read)


def threads_now(processes: int = 1) -> int:
    """Threads of torch for each of so many processes on this CPU: all cores, unless the user sets
    OMP_NUM_THREADS."""
    threads = torch.get_num_threads()
    if OWN_THREADS not in os.environ:
        threads = min(threads, native.cores())
    return max(1, threads // processes)


def _threads(view: store.View, processes: int) -> int:
    """As many as the view was begun with: the rows of a convolutional net may depend on it."""
    begun = view.attributes["provenance"].get("threads")
    return threads_now(processes) if OWN_THREADS in os.environ else begun or threads_now(processes)


def _enough(job: Job, device: str) -> AbstractContextManager[None]:
    """Memory for its batches, or an error that says what to do."""
    batch = job.view.attributes["provenance"]["batch"]
    what = f"batches of {batch} of {job.spec.name} on {device}"
    return within_memory(what, *_less(job, device))


def _less(job: Job, device: str) -> tuple[str, dict[str, str | None]]:
    """What to do where the memory does not suffice, and what to type instead. A view that has
    shards keeps its batch, since rows depend on it."""
    batch = job.view.attributes["provenance"]["batch"]
    if batch > 1 and len(job.view.pending()) == job.view.shards and takes("--batch"):
        return "Take smaller batches", {"--batch": str(batch // 2)}
    return (
        f"{job.view.folder} was begun with this batch and keeps it. {free_memory(device)}; then "
        "type the same command"
    ), {}


def _loaded(job: Job, device: str, backbone: backbones.Backbone | None) -> backbones.Backbone:
    """The model, in the precision and compiled as the view was begun: one that goes on gets the
    same bytes."""
    if backbone is None:
        backbone = backbones.load_backbone(job.spec, job.files, device)
    backbone.precision = computed_in(job.view)
    made = job.view.attributes["provenance"]
    if made.get("compile"):
        canary.compile_model(backbone, made["batch"], job.spec, device)
    return backbone


def _shown(job: Job, part: int, todo: int) -> tuple[str, int, int]:
    """What the bar of a process begins with: its title, all its rows, those that are done."""
    count, total = len(job.devices), 0
    for shard in range(part, job.view.shards, count):
        first, last = job.view.bounds(shard)
        total += last - first
    title = job.spec.name
    if count > 1:
        title += f" on {job.devices[part]} ({part + 1} of {count})"
    return title, total, total - todo
