"""make extract … ARGS=--dry-run: how many rows the cache has already, what would be written, and
about how long it would take. Writes nothing.

Images are hashed as in the run itself: that alone says which rows are in the cache. The rate is
that of a few batches, decoded and embedded now on this machine; where the weights are not here, at
best that of this machine's matrix products. Nothing is fetched.
"""

import logging
import math
from typing import Any

from base.commands import typed
from base.console import about_text, clock_text, counted
from cache_specs import store
from cache_specs.spec import ViewSpec
from cache_specs.succession import next_version
from extract import ahead, reuse
from extract.class_names import Naming
from extract.config import ExtractConfig
from extract.models.weights import called
from extract.prepare import Ready, prepare

log = logging.getLogger(f"coview.{__name__}")


def plan(config: ExtractConfig, told: dict[str, Any]) -> None:
    """Print the plan of an extraction, of each view, and put it into `told` for --json. Raises
    CoviewError where the run itself would refuse to begin."""
    readies = prepare(config, fetch=False)
    plans = [_plan(ready) for ready in readies]
    for ready in readies:
        if ready.naming is not None:
            log.info(_of_names(ready.spec, ready.naming))
    told |= plans[0] if len(plans) == 1 else {"dry_run": True, "views": plans}
    log.info(f"Nothing is written. To begin, type: {typed(without='--dry-run')}")


def _of_names(spec: ViewSpec, naming: Naming) -> str:
    """What CLASSES asks of a view with a text tower."""
    assert spec.text is not None, f"{spec.source} has no text tower"
    prompts = naming.names.prompts(spec.text.templates)
    number = counted(sum(map(len, prompts.values())), "prompt")
    told = f"{spec.name}: then the names of {len(prompts):,} classes ({number})"
    if not naming.files:
        told += f"; its text tower is not here, and fetched from {spec.both_towers.weights.hub}"
    return told


def _plan(ready: Ready) -> dict[str, Any]:
    """What is ahead of a view."""
    spec, items, here = ready.spec, ready.items, bool(ready.files)
    dataset = ready.cache / items.folder_name
    for line in next_version(ready.cache, items, ready.source, ready.changed)[2]:
        log.info(line)
    view = ahead.begun(dataset, ready)
    write = ahead.look_ahead(dataset, ready, view)
    place, shown = dataset / f"{spec.name}-{'[0-9a-f]' * 12}", dataset / f"{spec.name}-…"
    if here:
        place = store.view_folder(dataset, spec.name, spec.declared(), ready.weights_sha256)
        shown = place
    if view:
        known = reuse.recorded(view, items, remember=False)
    else:
        known = reuse.find(place, spec.declared(), items, remember=False)
    todo, copied = _missing(known, write, len(items)), ""
    if known.donors and write.pending:
        copied = f" (the same images in other data sets: {known})"
    rate, seconds, how = _rate(ready, todo)
    told = {
        "dry_run": True,
        "view": spec.name,
        "dataset": items.name,
        "rows": len(items),
        "hits": len(items) - todo,
        "to_embed": todo,
        "bytes": write.bytes,
        "bytes_free": write.free,
        "weights_here": here,
        "images_per_second": rate,
        "seconds": seconds,
        "rate_from": how,
        "data": ready.dataset.overview().record(),
    }
    log.info(
        f"{spec.name}: {len(items):,} images of {items.name!r}, {len(items) - todo:,} of them in "
        f"the cache already{copied}, {todo:,} to embed -> {shown}\n"
        f"to write: {write.bytes / 1e6:,.1f} MB in {counted(len(write.pending), 'shard')} of "
        f"{write.rows:,} rows x {spec.width} {spec.storage_dtype}; "
        f"{write.free / 1e6:,.0f} MB are free"
    )
    if not here:
        log.info(f"weights: not on this machine; {_fetched(spec)}")
    about = "unknown"
    if seconds is not None:
        about = about_text(seconds) if here else f"at least {clock_text(math.ceil(seconds))}"
    if not todo:
        about = "none"
    log.info(f"time: {about} on {', '.join(ready.flags.devices)}, {how}")
    ahead.refuse_small_disk(write, shown, ready.cache)
    return told


def _missing(known: reuse.Known, write: ahead.Ahead, n: int) -> int:
    """How many of the rows that are to be written must be computed."""
    count = 0
    for shard in write.pending:
        first = shard * write.rows
        count += len(known.missing(first, min(first + write.rows, n)))
    return count


def _rate(ready: Ready, todo: int) -> tuple[float | None, float | None, str]:
    """Images/s, seconds for `todo` images, and how that is known; None where it is not."""
    if not todo:
        return None, 0.0, "there is nothing to embed"
    from extract.rate import at_best, measured  # noqa: PLC0415  torch takes seconds

    rate, how = measured(ready, todo) if ready.files else at_best(ready.spec)
    return rate, todo / rate if rate else None, how


def _fetched(spec: ViewSpec) -> str:
    if not spec.weights.hub:
        return f"first type: make weights VIEW={called(spec)}"
    size = ""
    if spec.about:
        size = f", some {4e-6 * spec.about.parameters:,.0f} MB in float32"
    return f"the run fetches them from {spec.weights.hub}{size}"
