"""Several views of one data set, embedded at once: each image is read, hashed and decoded once for
all of them, and scaled once for those that want the same pixels.

The batches are those of each view by itself, so its bytes are, too. Batches of the same rows are a
`Unit`, which is decoded once; the views take turns at it, each on its own device where there are
several. Of views that stand alike (all begun now, or stopped together) every batch is shared.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import Dataset

from base.progress import Progress
from cache_specs.spec import Preprocess
from extract.images import OK, contents, empty, pictures_of, put
from extract.job import Job, Share, embed_all, share_of, until_asked
from extract.models.backbones import Backbone
from extract.stream import Batch, arriving, load
from extract.workers import begin_workers, workers_of


@dataclass(frozen=True)
class Unit:
    """Rows that make up a batch of size `batch` of some views; preps: the pixels that these want,
    each once; views: which of them, {view: place in preps}."""

    rows: Sequence[int]
    batch: int
    preps: list[Preprocess]
    views: dict[int, int]


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


def scaled_by(prep: Preprocess) -> Preprocess:
    """What the pixels depend on: all but mean and deviation, which come after them."""
    return replace(prep, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Units(Dataset):
    """Element i is a list: the batch of unit i (see `extract.images.Batches`) for each of its
    preps."""

    read: Callable[[int], bytes]
    sha256: Sequence[str]
    units: Sequence[Unit]

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> list[Batch]:
        unit = self.units[index]
        found = [empty(unit.batch, prep) for prep in unit.preps]
        for place, row in enumerate(unit.rows):
            data, status = contents(self.read, row, self.sha256[row])
            pictures = [(None, status)] * len(found)
            if status == OK:
                pictures = pictures_of(data, unit.preps)
            for batch, prep, one in zip(found, unit.preps, pictures, strict=True):
                put(batch, place, prep, *one)
        return found


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
    job, units = shares[0].job, units_of(shares)
    device = shares[0].device
    workers = workers_of(workers, sum(len(unit.rows) for unit in units), device)
    if workers:
        begin_workers()
    images = Units(job.read, job.items.sha256, units)
    arrived = arriving(load(images, workers, device))
    images_of = split(units, arrived, len(shares))
    title, todo = ", ".join(share.job.spec.name for share in shares), 0
    for share in shares:
        todo += share.todo
    with Progress(title, todo, unit="embeddings") as whole, contextlib.ExitStack() as shown:
        walks = []
        for share, batches, loaded in zip(shares, images_of, models, strict=True):
            progress = shown.enter_context(share.progress(whole))
            walks.append(share.walk(batches, share.model(loaded), progress, stopping))
        for unit in units:
            for view in unit.views:
                next(walks[view], None)
        for walk in walks:  # what is only copied, and the last shard
            for _ in walk:
                pass
        assert stopping() or next(arrived, None) is None  # and the workers end


def split(
    units: Sequence[Unit], arrived: Iterable[list[Batch]], views: int
) -> list[Iterator[Batch | None]]:
    """The batches of each view, of units that arrive in order; None where the next unit is not
    this view's, so that no view looks further ahead than the others are."""
    coming = zip(units, arrived, strict=True)
    waiting: list[deque[Batch]] = [deque() for _ in range(views)]

    def batches(view: int) -> Iterator[Batch | None]:
        mine = [number for number, unit in enumerate(units) if view in unit.views]
        for number, after in zip(mine, [*mine[1:], -1], strict=True):
            while not waiting[view]:
                unit, found = next(coming)
                for other, place in unit.views.items():
                    waiting[other].append(found[place])
            yield waiting[view].popleft()
            if after != number + 1:
                yield None

    return [batches(view) for view in range(views)]
