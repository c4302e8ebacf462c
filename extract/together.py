"""Several views of one data set, embedded at once: each image is read, hashed and decoded once for
all of them.

The batches are those of each view by itself, so its bytes are, too. Batches of the same rows are a
unit (`extract/units.py`), which is decoded once; the views take turns at it, each on its own device
where there are several. Of views that stand alike (all begun now, or stopped together) every batch
is shared.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from base.progress import Progress
from extract.job import Job, Share, embed_all, enough, share_of, until_asked
from extract.models.backbones import Backbone
from extract.stream import arriving, load, workers_for
from extract.units import Unit, Units, scaled_by, split
from extract.workers import begin_workers


def embed_together(jobs: Sequence[Job], models: Sequence[Backbone | None]) -> None:
    """Embed all pending shards of these views of one data set: of several that have rows to compute
    in this process, view after view on the first, second, … of the devices. After Ctrl-C the shards
    under way are finished, and the others stay pending."""
    shares = [on_device(job, number) for number, job in enumerate(jobs)]
    if len(jobs) == 1 or sum(share.todo > 0 for share in shares) < 2:
        for job, model in zip(jobs, models, strict=True):
            if embed_all(job, model):
                return
        return
    with until_asked("each view finishes its shard", jobs[0].view.folder.parent) as stopping:
        _take_turns(shares, models, jobs[0].workers, stopping)


def on_device(job: Job, number: int) -> Share:
    """All that is pending of a view, on one device."""
    device = job.devices[number % len(job.devices)]
    return share_of(replace(job, devices=[device]))


def _take_turns(
    shares: Sequence[Share],
    models: Sequence[Backbone | None],
    workers: int,
    stopping: Callable[[], bool],
) -> None:
    job, device, units = shares[0].job, shares[0].device, units_of(shares)
    images = Units(job.read, job.items.sha256, units)
    with enough(shares[0]):
        workers = workers_for(images, workers, device)
    if workers:
        begin_workers()
    arrived = arriving(load(images, workers, device))
    title = ", ".join(share.job.spec.name for share in shares)
    todo = sum(share.todo for share in shares)
    with Progress(title, todo, unit="embeddings") as whole, contextlib.ExitStack() as shown:
        walks = []
        for share, batches, loaded in zip(
            shares, split(units, arrived, len(shares)), models, strict=True
        ):
            progress = shown.enter_context(share.progress(whole))
            walks.append(share.walk(batches, share.model(loaded), progress, stopping))
        in_turns(units, shares, walks)
        assert stopping() or next(arrived, None) is None  # and the workers end


def in_turns(
    units: Sequence[Unit], shares: Sequence[Share], walks: Sequence[Iterator[None]]
) -> None:
    """Each view does a step where a unit is its own; in the end what is only copied, and its last
    shard."""
    for unit in units:
        for view in unit.views:
            shares[view].take_threads()
            next(walks[view], None)
    for share, walk in zip(shares, walks, strict=True):
        share.take_threads()
        for _ in walk:
            pass


def units_of(shares: Sequence[Share]) -> list[Unit]:
    """All batches of all views; each view's are in its own order."""
    found: dict[tuple, Unit] = {}
    for view, share in enumerate(shares):
        prep = scaled_by(share.job.spec.preprocess)
        for rows in share.batches:
            unit = found.setdefault((*rows, share.batch), Unit(rows, share.batch, [], {}))
            if prep not in unit.preps:
                unit.preps.append(prep)
            unit.views[view] = unit.preps.index(prep)
    return sorted(found.values(), key=lambda unit: unit.rows[0])
