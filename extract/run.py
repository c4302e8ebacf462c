"""One extraction from its settings to sealed views: look, begin, confirm, embed, seal."""

import contextlib
import functools
import logging
import platform
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from base import durable, locks, native
from base.console import counted, rate_text
from base.devices import described
from base.errors import CoviewError, StoppedError
from base.limits import free_memory, within_memory
from cache_specs import integrity, store
from cache_specs.succession import folder_of, would_relabel, write_items
from cache_specs.tuned import keep_seen, own_list
from cache_specs.view import View, computed_in, status_counts, write_documents
from extract import agreed, ahead, bad_images, canary, reuse
from extract.class_names import encode
from extract.config import ExtractConfig
from extract.equal import Equal, blocks_of, equal_rows
from extract.models.weights import commit_of
from extract.prepare import Ready, prepare
from extract.reuse import Known
from extract.workers import begin_early, begin_workers, workers_of

if TYPE_CHECKING:
    from extract.job import Job
    from extract.models.backbones import Backbone

log = logging.getLogger(f"coview.{__name__}")


@dataclass(frozen=True)
class Extracted:
    """A finished view, its rows' status, how many were embedded now, and in how many seconds.
    compared: were equal embeddings looked for? Of what was in the cache already they are not."""

    view: View
    status_N: np.ndarray
    embedded: int
    seconds: float
    compared: bool = False
    equal: Equal | None = None

    def told(self) -> dict[str, Any]:
        """What --json says of it."""
        bad, equal = status_counts(self.status_N[self.status_N > 0]), None
        if self.compared:
            equal = self.equal.images if self.equal else 0
        return {
            "view": self.view.name,
            "folder": str(self.view.folder),
            "rows": self.view.n,
            "width": self.view.width,
            "embedded": self.embedded,
            "hits": self.view.n - self.embedded,
            "seconds": round(self.seconds, 3),
            "bad": bad,
            "equal_images": equal,
        }


class LazyModel:
    """The frozen model on the first device, loaded when it is first needed: what is in the cache
    already, or only copied, needs none."""

    def __init__(self, ready: Ready) -> None:
        self.ready, self.device = ready, ready.flags.devices[0]

    @functools.cached_property
    def backbone(self) -> "Backbone":
        # torch and what models are built of take seconds
        from extract.models import backbones  # noqa: PLC0415
        from extract.trial import refuse_unusable  # noqa: PLC0415

        spec = self.ready.spec
        with self.within_memory():
            loaded = backbones.load_backbone(spec, self.ready.files, self.device)
            refuse_unusable(spec, loaded, self.device)
        return loaded

    def make(self, rows: list[int]) -> canary.Canary:
        """These rows as they are computed now."""
        from extract.trial import take  # noqa: PLC0415  as above

        items, read = self.ready.items, self.ready.dataset.read
        prep = self.ready.spec.preprocess
        with self.within_memory():
            return take(items, read, prep, self.backbone, self.device, rows)

    def within_memory(self) -> AbstractContextManager[None]:
        """What no batch size changes."""
        what = f"the model of {self.ready.spec.name} on {self.device}"
        return within_memory(what, f"{free_memory(self.device)}; then type the same command")

    def agreed(self, known: Known) -> Known:
        """Only the donors whose rows may stand beside those of now. Without the model, where one
        has all and its canary is taken over."""
        n = len(self.ready.items)
        copied = len(known.donors) == 1 and not known.missing(0, n)
        if copied and canary.adoptable(n, known.donors[0], known.place(0)):
            return known
        _ = self.backbone  # weights that do not fit leave no empty view behind
        return reuse.agreeing(known, functools.partial(canary.differs, make=self.make))


def run(config: ExtractConfig, told: dict[str, Any] | None = None) -> View:
    """Extract one view or several; return it (the last), finished; what --json says of it is put
    into `told`. Raises CoviewError."""
    readies = prepare(config)
    with locks.shared_lock(durable.make_folder(readies[0].cache), locks.USERS):
        finished = extraction(readies)
        for ready, done in zip(readies, finished, strict=True):
            if ready.naming is not None:
                encode(ready.spec, done.view, ready.naming, ready.flags.devices[0])
    if told is not None:
        views = [done.told() for done in finished]
        told |= views[0] if len(views) == 1 else {"views": views}
        told |= {"data": readies[0].dataset.overview().record()}
    return finished[-1].view


@dataclass(frozen=True)
class Opened:
    """A view of this run: finished before, or to be gone on with. known: see `look`."""

    ready: Ready
    model: LazyModel
    view: View
    known: Known | None


@dataclass(frozen=True)
class Begun:
    """A view that is under way; todo: rows that are embedded now; since: by the clock that only
    goes on."""

    ready: Ready
    model: LazyModel
    view: View
    known: Known
    todo: int
    copied: int
    since: float


def extraction(readies: Sequence[Ready]) -> list[Extracted]:
    """Of views of one data set: look at each, begin each, embed all at once, seal each."""
    views, under_way = opened(readies), []
    with contextlib.ExitStack() as held:
        for one in views:
            if not one.view.is_complete:
                held.enter_context(store.writer_lock(one.view.folder))
                under_way.append(go_on(one))
        embed_all(under_way)
        seal_all(under_way)
    finished = {one.view.folder: finish(one) for one in under_way}
    return [finished.get(one.view.folder) or hit(one) for one in views]


def embed_all(under_way: Sequence[Begun]) -> None:
    if not under_way:
        return
    from extract.together import embed_together  # noqa: PLC0415  torch, which a hit does without

    models = [one.model.backbone if one.todo else None for one in under_way]
    embed_together([job_of(one) for one in under_way], models)


def opened(readies: Sequence[Ready]) -> list[Opened]:
    """All views are looked at before the first is begun."""
    for ready in readies:
        refuse_without_list(ready)
    models = [LazyModel(ready) for ready in readies]
    looked = [look(model) for model in models]
    found = []
    for model, (folder, known) in zip(models, looked, strict=True):
        view = begin(model.ready, folder, known)
        keep_seen(view, model.ready.spec)
        found.append(Opened(model.ready, model, view, known))
    return found


def refuse_without_list(ready: Ready) -> None:
    """Raise IntegrityError where a new view of a tuned backbone lacks the list of whom it has
    seen."""
    spec = ready.spec
    if spec.tuned is None:
        return
    folder = folder_of(ready.cache, ready.items, ready.source, ready.changed)
    place = store.view_folder(folder, spec.name, spec.declared(), ready.weights_sha256)
    if not store.is_created(place):
        own_list(spec)


def go_on(one: Opened) -> Begun:
    """Confirm that what is computed now belongs into the view. The caller holds its lock."""
    integrity.check_commits(one.view)
    view, since = rebatched(one.ready, one.view), time.monotonic()
    view, known = copied_into(one.ready, view, one.known, one.model)
    todo, copied = reckon(view, known)
    confirm(one.ready, view, known, one.model, todo)
    return Begun(one.ready, one.model, view, known, todo, copied, since)


def seal_all(under_way: Sequence[Begun]) -> None:
    """Each that can be; what was wrong with others is raised then."""
    wrong: list[CoviewError] = []
    for one in under_way:
        try:
            seal(one)
        except CoviewError as error:
            wrong.append(error)
    if len(wrong) > 1:
        raise type(wrong[0])("\n".join(map(str, wrong)), wrong[0].instead)
    if wrong:
        raise wrong[0]


def seal(one: Begun) -> None:
    """Raises where shards are left, or too many images are unreadable."""
    bad_images.enforce(one.view, one.ready.items, one.ready.flags.max_bad, one.ready.why)
    refuse_pending(one.view)
    integrity.seal(one.view)


def finish(one: Begun) -> Extracted:
    """Check what was written, and say how it went."""
    ready, view, status = one.ready, one.view, integrity.check(one.view)
    equal = equal_rows(blocks_of(view), status == 0, ready.items.sha256)
    done = Extracted(view, status, one.todo, time.monotonic() - one.since, True, equal)
    say_finished(done, one.copied)
    bad_images.report(status, ready.items, view, ready.why)
    if equal:
        warn_of_equal(ready, equal)
    return done


def look(model: LazyModel) -> tuple[Path, Known | None]:
    """The data set's folder, with its item list, and what other views hold of a new one; None for
    one that was begun. All that may be refused is refused before anything is written: labels that
    have changed, too."""
    ready = model.ready
    items, spec = ready.items, ready.spec
    folder = folder_of(ready.cache, items, ready.source, ready.changed)
    view, known = ahead.begun(folder, ready), None
    if view is None or not view.is_complete:
        begin_early(ready.flags.workers, model.device)  # it imports torch while this process does
    place = store.view_folder(folder, spec.name, spec.declared(), ready.weights_sha256)
    todo = ahead.look_ahead(folder, ready, view)
    if todo.pending:
        log.info(
            f"{spec.name}: {counted(len(items), 'image')} -> {len(items):,} x {spec.width} "
            f"{spec.storage_dtype} in {counted(todo.shards, 'shard')} "
            f"({todo.shards - len(todo.pending):,} done), {todo.bytes / 1e6:,.1f} MB to write of "
            f"{todo.free / 1e6:,.1f} MB free, in {place}"
        )
    ahead.refuse_small_disk(todo, place, ready.cache)
    if view is None:
        reuse.say_not_copied(place, spec)
        known = model.agreed(reuse.find(place, spec.declared(), items))
    elif would_relabel(folder, items) and len(todo.pending) < todo.shards:
        canary.keep_or_compare(view, model.make, items, write=False)
    folder = write_items(ready.cache, items, ready.source, ready.changed, ready.seen)
    ready.stamps.keep(folder, items, [*map(ready.dataset.read.place, range(len(items)))])
    if folder.name != items.folder_name:
        log.info(
            f"{items.name}: these are the images of {folder.name}, whose name they keep in the "
            "cache"
        )
    return folder, known


def begin(ready: Ready, folder: Path, known: Known | None) -> View:
    """The view: begun now, or found."""
    spec, made = ready.spec, {}
    given = (folder, spec.name, spec.declared(), ready.weights_sha256)
    if not store.is_created(store.view_folder(*given)):
        made = made_now(ready, known)
    images = (ready.items.fingerprint, len(ready.items))
    return store.create_view(*given, images, ready.flags.shard_rows, made)


def made_now(ready: Ready, known: Known | None) -> dict[str, Any]:
    """What makes the numbers of a view that is begun now: recorded, not hashed, in case they must
    be made again."""
    provenance: dict[str, Any] = {
        **how(ready),
        "device": described(ready.flags.devices[0]),
        "python": platform.python_version(),
        "spec_file": str(ready.spec.source),
        "versions": canary.versions_now(),
    }
    if commit := commit_of(ready.files):
        provenance["weights_commit"] = commit
    if known and known.donors:
        provenance["reused"] = known.record()
        if not known.missing(0, len(ready.items)):
            provenance["precision"] = computed_in(known.donors[0])
    return provenance


def how(ready: Ready) -> dict[str, Any]:
    """What changes the last digits of a row, or may: kept where the view goes on."""
    from extract.job import threads_now  # noqa: PLC0415  as above
    from extract.models import backbones  # noqa: PLC0415

    flags = ready.flags
    found: dict[str, Any] = {"batch": flags.batch, "compile": flags.compile}
    found["precision"] = backbones.precision_of(ready.spec, flags.devices[0])
    if flags.devices[0] == "cpu":
        found["threads"] = threads_now(len(flags.devices))
    return found


def rebatched(ready: Ready, view: View) -> View:
    """One of which no shard is done is begun as it would be now: the batch of then may have been
    too large, the machine another. What is copied into it is not changed by that. The caller holds
    the writer's lock."""
    made = view.attributes["provenance"]
    now = how(ready)
    if "reused" in made:
        now["precision"] = computed_in(view)
    if len(view.pending()) < view.shards or now == {name: made.get(name) for name in now}:
        return view
    durable.remove(view.folder / "canary.json", "canary")  # it knows the view by its description
    write_documents(view.folder, {**view.attributes, "provenance": {**made, **now}})
    return store.open_view(view.folder)


def hit(one: Opened) -> Extracted:
    """A view that is finished: undamaged, and what is computed now."""
    ready, view, model = one.ready, one.view, one.model
    status = integrity.check(view)
    if not agreed.has_agreed(view, model.device):
        has_canary = (view.folder / "canary.json").exists()
        with nullcontext() if has_canary else store.writer_lock(view.folder):
            canary.keep_or_compare(view, model.make, ready.items)
        agreed.remember(view, model.device)
    log.info(
        f"{view.name}: already in the cache, nothing to do: {view.n:,} rows x {view.width} in "
        f"{view.folder}"
    )
    bad_images.report(status, ready.items, view, ready.why)
    return Extracted(view, status, 0, 0.0)


def copied_into(
    ready: Ready, view: View, known: Known | None, model: LazyModel
) -> tuple[View, Known]:
    """The view and what is copied into it. Where it goes on, or another run began it, that is what
    it was begun with."""
    reused = view.attributes["provenance"].get("reused", [])
    if known is not None and reused == known.record():
        return view, known
    known = reuse.recorded(view, ready.items)
    if known.donors and not (view.folder / "canary.json").exists():
        return reuse.begin_again(view, known, model.agreed(known))
    return view, known


def reckon(view: View, known: Known) -> tuple[int, int]:
    """How many rows are to be embedded, and how many copied."""
    pending = view.pending()
    todo, rows = known.lacks(view, pending), 0
    for shard in pending:
        first, last = view.bounds(shard)
        rows += last - first
    if known.donors and rows:
        log.info(
            f"{view.name}: {rows - todo:,} rows are copied, of the same images in finished views "
            f"({known}); {todo:,} to embed"
        )
    return todo, rows - todo


def confirm(ready: Ready, view: View, known: Known, model: LazyModel, todo: int) -> None:
    """The canary is compared, or kept. Where all is copied that of the donor is, without a model,
    if it can be."""
    flags = ready.flags
    if len(flags.devices) == 1 and workers_of(flags.workers, todo, flags.devices[0]):
        begin_workers()  # while the model is loaded
    if not todo and known.donors:
        if (view.folder / "canary.json").exists():
            return
        if canary.adopt(view, known.donors[0], known.place(0)):
            return
    canary.keep_or_compare(view, model.make, ready.items)
    agreed.remember(view, model.device)
    if todo:
        say_precision(view, flags.devices[0])


def say_precision(view: View, device: str) -> None:
    """Say where it is not the spec's, or not what this processor is fast in."""
    asked, used = view.attributes["spec"]["compute_dtype"], computed_in(view)
    if used != asked:
        why = "as it was begun"
        if device == "cpu" and not native.has_bfloat16():
            why = f"since this CPU has no instructions for {asked}: faster here, and more exact"
        log.info(f"{view.name}: computed in {used}, {why}")
    elif used == "bfloat16" and device == "cpu" and not native.has_bfloat16():
        log.warning(
            f"{view.name}: it was begun in bfloat16, on another machine, and goes on so. This CPU "
            "has no instructions for it and is several times slower than in float32"
        )


def job_of(one: Begun) -> "Job":
    """What the processes that embed are told."""
    from extract.job import Job  # noqa: PLC0415  as above

    ready, flags = one.ready, one.ready.flags
    return Job(
        one.view,
        ready.spec,
        ready.files,
        ready.dataset.read,
        ready.items,
        one.known,
        flags.devices,
        flags.workers,
        flags.max_bad,
    )


def refuse_pending(view: View, then: str = "") -> None:
    """Raise StoppedError when shards are left: Ctrl-C was pressed."""
    left = len(view.pending())
    if left:
        raise StoppedError(
            f"{view.name}: stopped; {view.shards - left} of {view.shards} shards are finished and "
            f"kept in {view.folder}{then}"
        )


def warn_of_equal(ready: Ready, equal: Equal) -> None:
    """Say that different images have equal embeddings, and how far they are alike."""
    from extract.images import how_alike  # noqa: PLC0415  as above

    prep, read, keys = ready.spec.preprocess, ready.dataset.read, ready.items.keys
    try:
        alike = how_alike(read(equal.one), read(equal.other), prep)
    except OSError:  # gone meanwhile
        alike = "They could not be read again"
    log.warning(
        f"{ready.spec.name}: {equal.told(keys)}. {alike}. Nothing that is trained on these "
        "embeddings can tell them apart"
    )


def say_finished(done: Extracted, copied: int) -> None:
    told = f"{counted(done.embedded, 'image')} in {done.seconds:.1f} s"
    if done.embedded:
        told += f" ({rate_text(done.embedded / done.seconds)} images/s)"
    if copied:
        told += f", {copied:,} copied"
    log.info(f"{done.view.name}: finished, {told}, sealed in {done.view.folder}")
