"""make repair VIEW=clip [DATA=photos/]

Mends a damaged view: descriptions, commits and the seal are rebuilt from one another, damaged
shards (and those of `--shards 3,7`) are computed again from the images, as the extraction made
them, and nothing else. Where that does not give the bytes that were sealed, it is said. What was
finished is finished again afterwards; an unfinished view stays unfinished (also one that an earlier
repair, cut short, left so: `make extract` then computes the rest).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from base import locks
from base.errors import IntegrityError, UsageError
from cache_specs import integrity, mend, store
from cache_specs.items import read_items
from cache_specs.lookup import one_view
from cache_specs.view import View
from extract.config import ExtractConfig
from extract.originals import find_originals
from upkeep.config import RepairConfig

log = logging.getLogger(f"coview.{__name__}")


def command(config: RepairConfig, found: dict[str, Any]) -> None:
    """make repair."""
    mend_view(config)


def mend_view(config: RepairConfig) -> None:
    """Raises CoviewError; nothing is removed before all that is needed to compute it again has been
    found, loaded and compared."""
    if not config.view:
        raise UsageError(
            "VIEW is missing. Type: make repair VIEW=clip   (make verify says which views are "
            "damaged)"
        )
    cache = Path(config.cache)
    folder = one_view(cache, config.view, config.data, "repair")
    with locks.shared_lock(cache, locks.USERS), store.writer_lock(folder):
        _mend(folder, config)


def _mend(folder: Path, config: RepairConfig) -> None:
    lines = mend.mend_documents(folder)
    view = store.open_view(folder)
    named, was_complete = _named(config.shards, view.shards), view.is_complete
    todo = mend.plan(view, named)
    compute = _what_computes(view, todo.found, todo.lost, named, config)
    before = _digests(view, todo.lost, todo.sealed)
    view, found, lost = mend.mend(folder, named)
    for line in lines + found:
        log.info(f"{view.name}: {line}")
    if compute and was_complete:
        _make_again(view, compute, lost, before)
    if not was_complete:
        log.info(
            f"{view.name}: unfinished, by an extraction or a repair that was cut short; to go on: "
            f"{store.command(folder, 'extract')}"
        )
    nothing = not (lines or found or lost or compute)
    log.info(f"{view.name}: {'nothing is damaged' if nothing else 'mended'}")


def _what_computes(
    view: View,
    found: Sequence[integrity.Problem],
    lost: list[int],
    named: list[int],
    config: RepairConfig,
) -> Callable[[View], None] | None:
    """What makes the lost shards again, after all that could stop it has been tried; None where
    nothing must be computed."""
    if view.attributes["spec"]["backend"] == store.IMPORTED:
        _refuse_to_compute(view, lost)
        return None
    has_canary = all(problem.file.name != "canary.json" for problem in found)
    if _has_item_list(view.folder.parent) and has_canary and not lost:
        return None
    from upkeep.recompute import prepare_remaker  # noqa: PLC0415  torch: only where it is used

    originals = find_originals(view, config.view, config.weights, Path(config.root), True)
    settings = ExtractConfig(
        weights=config.weights,
        device=config.device,
        gpus=config.gpus,
        workers=config.workers,
        max_bad="100%",
    )
    return prepare_remaker(view, originals, lost, named, settings).make


def _make_again(
    view: View,
    compute: Callable[[View], None],
    lost: Sequence[int],
    before: Mapping[int, dict[str, str]],
) -> None:
    """Compute, seal, and say which shards are not what they were."""
    log.info(
        f"{view.name}: {len(lost)} of {view.shards} shards are to be computed again: "
        f"{', '.join(map(str, lost)) or 'none'}"
    )
    compute(view)
    if not view.is_complete:
        integrity.seal(view)
    integrity.check(view)
    records = integrity.read_seal(view)["shards"]
    other = [shard for shard in lost if _sha256_of(records[shard]) != before.get(shard)]
    if other:
        unsure = "" if before.keys() >= set(other) else ", or may be"
        log.info(
            f"{view.name}: the bytes of the shards {', '.join(map(str, other))} are others than "
            f"before{unsure}: they are what the model makes of the images here and now. Runs that "
            "were trained on this view are refused from now on: train again, under another RUN"
        )


def _named(shards: str, count: int) -> list[int]:
    """--shards."""
    try:
        named = sorted({int(shard) for shard in shards.split(",") if shard.strip()})
    except ValueError:
        named = [-1]
    if named and not 0 <= named[0] <= named[-1] < count:
        raise UsageError(
            f"--shards {shards}: name shards by their numbers, from 0 to {count - 1}, such as "
            f"--shards 0,{count - 1}"
        )
    return named


def _refuse_to_compute(view: View, lost: Sequence[int]) -> None:
    """An imported view: its file alone has what is lost."""
    if lost:
        raise IntegrityError(
            f"{view.folder}: the shards {', '.join(map(str, lost))} are damaged; it was imported, "
            "so they cannot be computed again. Nothing is removed. This writes just these anew: "
            f"{store.command(view.folder, 'extract')}"
        )
    read_items(view.folder.parent)  # its message says what writes a damaged item list again


def _has_item_list(dataset: Path) -> bool:
    try:
        read_items(dataset)
    except IntegrityError as error:
        log.info(f"{error}")
        return False
    return True


def _digests(
    view: View, lost: Sequence[int], sealed: Sequence[Mapping[str, Any]] | None
) -> dict[int, dict[str, str]]:
    """The sha256 of the two files of each lost shard, by name, as complete.json has it, or its
    commit; without those of which nothing says it."""
    found = {}
    for shard in lost:
        with suppress(IntegrityError):
            record = sealed[shard] if sealed else integrity.read_commit(view, shard)
            found[shard] = _sha256_of(record)
    return found


def _sha256_of(record: Mapping[str, Any]) -> dict[str, str]:
    return {name: file["sha256"] for name, file in record["files"].items()}
