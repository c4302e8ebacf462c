"""Embedding the pending shards of a view, in this process or in one for each device.

Shard i belongs to process i % devices, so no two ever write the same file. A `Job` is all that a
process is told; each loads its own model.
"""

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
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
from extract import bad_images, trial
from extract.data.readers import Reader
from extract.embed import ShardWork, embed, embedded, shard_work
from extract.images import Batches, Remarks, why_not
from extract.models import backbones
from extract.reuse import Known
from extract.stream import Batch, arriving, load, workers_for
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
    if len(job.devices) == 1:
        with until_asked("this shard is finished", job.view.folder) as stopping:
            _embed_part(job, 0, stopping, backbone)
            return stopping()
    asked = torch.multiprocessing.get_context("spawn").Event()
    with until_asked("each process finishes its shard", job.view.folder, asked) as stopping:
        _embed_in_processes(job, asked)
        return stopping()


@contextlib.contextmanager
def until_asked(under_way: str, kept: Path, asked: Any = None) -> Generator[Callable[[], bool]]:
    """Yields stopping(): has Ctrl-C been pressed? Again, it stops at once. kept: where the finished
    shards are."""
    asked = asked or threading.Event()
    with heeded(
        asked.set,
        f"stopping: {under_way} first (Ctrl-C again drops it)",
        f"stopped at once; finished shards are kept in {kept}\nTo go on, type: {typed()}",
    ):
        yield asked.is_set


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
    device, count = job.devices[part], len(job.devices)
    share = share_of(job, part)
    share.take_threads()
    images = Batches(job.read, job.items.sha256, job.spec.preprocess, share.batches, share.batch)
    with enough(share):
        workers = workers_for(images, job.workers, device, count)
    if workers:
        begin_workers()  # while the model is loaded
    model = share.model(backbone)
    with share.progress() as progress:
        arrived = arriving(load(images, workers, device)) if share.todo else iter(())
        for _ in share.walk(arrived, model, progress, stopping):
            pass


@dataclass(frozen=True)
class Share:
    """What one process embeds of a view, on its device: the shards of `works`, whose `batches` are
    computed."""

    job: Job
    part: int
    works: list[ShardWork]

    @property
    def device(self) -> str:
        return self.job.devices[self.part]

    @property
    def batch(self) -> int:
        return self.job.view.attributes["provenance"]["batch"]

    @functools.cached_property
    def batches(self) -> list[list[int]]:
        found = []
        for work in self.works:
            found += work.batches
        return found

    @property
    def todo(self) -> int:
        """Rows."""
        return sum(map(len, self.batches))

    def model(self, loaded: backbones.Backbone | None) -> backbones.Backbone | None:
        """The model, in the precision and compiled as the view was begun: one that goes on gets the
        same bytes."""
        if not self.todo:
            return None
        if loaded is None:
            loaded = backbones.load_backbone(self.job.spec, self.job.files, self.device)
        loaded.precision = computed_in(self.job.view)
        made = self.job.view.attributes["provenance"]
        if made.get("compile"):
            trial.compile_model(loaded, made["batch"], self.job.spec, self.device)
        return loaded

    def take_threads(self) -> None:
        """As many as the view was begun with: the rows of a convolutional net may depend on it."""
        if self.device == "cpu":
            torch.set_num_threads(_threads(self.job.view, len(self.job.devices)))

    def progress(self, whole: Progress | None = None) -> Progress:
        live = self.job.view.folder / f"progress-{self.part}.json"
        return Progress(*_shown(self.job, self.part, self.todo), live=live, whole=whole)

    def walk(
        self,
        arrived: Iterable[Batch | None],
        model: backbones.Backbone | None,
        progress: Progress,
        stopping: Callable[[], bool],
    ) -> Iterator[None]:
        """Write the shards, a step a batch. arrived: the decoded batches. After any shard, once
        `stopping()` is true, the others stay pending."""
        job, remarks, computed = self.job, Remarks(), iter(())
        why = functools.partial(why_not, job.read, job.spec.preprocess)
        if model is not None:
            images = remarks.watch(arrived, self.batches)
            computed = embedded(images, model, self.device, progress.clock)
        with enough(self):
            yield from embed(
                self.works,
                computed,
                progress,
                look=lambda: bad_images.enforce(job.view, job.items, job.max_bad, why),
                stopping=stopping,
            )
        remarks.say(job.view.name, job.items.keys, job.read)


def share_of(job: Job, part: int = 0) -> Share:
    """What belongs to process `part`."""
    works = []
    for shard in job.view.pending():
        if shard % len(job.devices) == part:
            batch = job.view.attributes["provenance"]["batch"]
            works.append(shard_work(job.view, shard, job.known, batch))
    return Share(job, part, works)


def threads_now(processes: int = 1) -> int:
    """Threads of torch for each of so many processes on this CPU: all cores, unless the user sets
    OMP_NUM_THREADS."""
    threads = torch.get_num_threads()
    if OWN_THREADS not in os.environ:
        threads = min(threads, native.cores())
    return max(1, threads // processes)


def _threads(view: store.View, processes: int) -> int:
    begun = view.attributes["provenance"].get("threads")
    return threads_now(processes) if OWN_THREADS in os.environ else begun or threads_now(processes)


def enough(share: Share) -> AbstractContextManager[None]:
    """Memory for its batches, or an error that says what to do."""
    what = f"batches of {share.batch} of {share.job.spec.name} on {share.device}"
    return within_memory(what, *_less(share.job, share.device))


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
