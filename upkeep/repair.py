"""make repair VIEW=clip [DATA=photos/]     (python -m upkeep.repair --view clip)

Mends a damaged view: descriptions, commits and the seal are rebuilt from one another, damaged shards (and those of `--shards 3,7`) are
computed again from the images, and nothing else. A damaged shard gets the bytes that were sealed where another finished view still has them, or the
model makes them again; else those that the model makes now, and that is said. What was finished is finished again afterwards; an unfinished view stays
unfinished (also one that an earlier repair, cut short, left so: `make extract` then computes the rest).
"""

import dataclasses
import functools
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.errors import IntegrityError, StaleError, UsageError
from upkeep.config import RepairConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from cache_specs.integrity import Problem
    from cache_specs.mend import Plan
    from cache_specs.view import View
    from extract.data.datasets import Dataset
    from extract.reuse import Known


def mend_view(config: RepairConfig) -> None:
    """Raises CoviewError; nothing is removed before all that is needed to compute it again has been found, loaded and compared."""
    from base import locks
    from cache_specs import mend, store
    from cache_specs.items import read_items
    from cache_specs.lookup import find_view
    from extract import reuse

    if not config.view:
        raise UsageError(
            "VIEW is missing. Type: make repair VIEW=clip   (make verify says which views are damaged)"
        )
    folder = find_view(Path(config.cache), config.view, config.data, "repair")
    with locks.shared_lock(Path(config.cache), locks.USERS), store.writer_lock(folder):
        lines = mend.mend_documents(folder)
        view = store.open_view(folder)
        chosen, was_complete = _chosen(config.shards, view.shards), view.is_complete
        todo, imported = (
            mend.plan(view, chosen),
            view.attributes["spec"]["backend"] == store.IMPORTED,
        )
        if imported and todo.lost:
            raise IntegrityError(
                f"{folder}: the shards {', '.join(map(str, todo.lost))} are damaged; it was imported, so they cannot be computed again. "
                f"Nothing is removed. This writes just these anew: {store.command(folder, 'extract')}"
            )
        if imported:
            read_items(folder.parent)  # its message says what writes a damaged item list again
        compute, copies, sealed = None, {}, _sealed(view, todo)
        if not imported and (
            todo.lost or _items_damaged(folder.parent) or _canary_damaged(todo.found)
        ):
            whole = not _items_damaged(folder.parent)
            if whole and was_complete:
                copies = reuse.copies(
                    view,
                    read_items(folder.parent),
                    {shard: files for shard, files in sealed.items() if shard not in chosen},
                )
            rest = [shard for shard in todo.lost if shard not in copies]
            if rest or not whole or _canary_damaged(todo.found):
                compute = _prepared(
                    config,
                    view,
                    todo.lost,
                    rest,
                    {shard: files for shard, files in sealed.items() if shard not in chosen},
                )
        view, found, lost = mend.mend(folder, chosen)
        for line in lines + found:
            print(f"{view.name}: {line}")
        if was_complete and not imported and (compute or copies):
            _mend_shards(view, lost, copies, sealed, compute)
    if not was_complete:
        print(
            f"{view.name}: unfinished, by an extraction or a repair that was cut short; to go on: {store.command(folder, 'extract')}"
        )
    print(f"{view.name}: {'mended' if lines + found or lost or compute else 'nothing is damaged'}")


def _sealed(view: "View", todo: "Plan") -> dict[int, dict[str, str]]:
    """The sha256 of the two files of each lost shard, by name, as complete.json has it, or its commit; without those of which nothing says it."""
    from cache_specs import integrity

    found = {}
    for shard in todo.lost:
        with suppress(IntegrityError):
            record = todo.sealed[shard] if todo.sealed else integrity.read_commit(view, shard)
            found[shard] = {name: file["sha256"] for name, file in record["files"].items()}
    return found


def _mend_shards(
    view: "View",
    lost: list[int],
    copies: "dict[int, Known]",
    sealed: dict[int, dict[str, str]],
    compute: "Callable[[View], None] | None",
) -> None:
    """Copy what is copied, compute the rest, seal, and say which shards are not what they were."""
    from cache_specs import integrity
    from extract import reuse

    rest = [shard for shard in lost if shard not in copies]
    if copies:
        names = sorted(
            {donor.folder.parent.name for known in copies.values() for donor in known.donors}
        )
        print(
            f"{view.name}: {'the shards ' + ', '.join(map(str, sorted(copies))) if rest else 'all rows to be mended'} are copied from the same images in "
            f"other finished views ({', '.join(names)}), with the bytes that were sealed",
            flush=True,
        )
    print(
        f"{view.name}: {len(rest)} of {view.shards} shards are to be computed again: {', '.join(map(str, rest)) or 'none'}",
        flush=True,
    )
    for shard in sorted(copies):
        reuse.write(view, copies[shard], shard)
    if compute:
        compute(view)
    if not view.is_complete:
        integrity.seal(view)
    integrity.check(view)
    records = integrity.read_seal(view)["shards"]
    other = [
        shard
        for shard in lost
        if {name: file["sha256"] for name, file in records[shard]["files"].items()}
        != sealed.get(shard)
    ]
    if other:
        print(
            f"{view.name}: the bytes of the shards {', '.join(map(str, other))} are others than before{'' if sealed.keys() >= set(other) else ', or may be'}"
            ": they are what the model makes of the images here and now. Runs that were trained on this view are refused from now on: train again, under "
            "another RUN",
            flush=True,
        )


def _prepared(
    config: RepairConfig,
    view: "View",
    lost: list[int],
    rest: list[int],
    sealed: dict[int, dict[str, str]],
) -> "Callable[[View], None]":
    """What computes the `rest` of the lost shards, with the `sealed` bytes if it can, after everything that could stop it has been tried.
    Raises CoviewError."""
    from cache_specs import store
    from cache_specs.items import read_items
    from cache_specs.sources import read_source
    from cache_specs.succession import write_items
    from extract import canary, reuse
    from extract.data.datasets import build_items
    from extract.job import Job, embed_all
    from extract.models.backbones import load_backbone
    from extract.prepare import devices
    from extract.run import refuse_pending
    from upkeep.verify import images_of

    spec, files, dataset = images_of(view, config.view, config.weights, config.root)
    dataset_folder = view.folder.parent
    if _items_damaged(dataset_folder):
        items = build_items(dataset)
        if items.folder_name != dataset_folder.name:
            raise StaleError(
                f"the item list in {dataset_folder} is damaged, and the images in {read_source(dataset_folder)} are not those that it was made of "
                f"({items.folder_name}): put them back, then type the same command"
            )
        write_items(
            Path(config.cache), items, read_source(dataset_folder), changed=True
        )  # that it was embedded, it was
    items = read_items(dataset_folder)
    if dataset.keys != items.keys:
        raise StaleError(
            f"the images in {read_source(dataset_folder)} are not those of the item list ({len(dataset.keys)} instead of {len(items)}, or other "
            "names): put them back, then type the same command. Nothing is changed"
        )
    for row in (row for shard in rest for row in range(*view.bounds(shard))):
        if items.sha256[row] and _digest(dataset, row) != items.sha256[row]:
            raise StaleError(
                f"the image {items.keys[row]!r} is gone or has changed, and its shard must be computed again: put it back, then type the "
                "same command. Nothing is changed"
            )
    donors, nothing, where = (
        reuse.recorded(view, items),
        reuse.nothing(len(items)),
        devices(config.device, config.gpus),
    )
    copied = {
        shard: sealed.get(shard, {})
        for shard in rest
        if donors.lacks(view, [shard]) < len(range(*view.bounds(shard)))
    }
    backbone = load_backbone(spec, files, where[0])
    make = functools.partial(canary.take, items, dataset.read, spec.preprocess, backbone, where[0])
    trusted = [
        shard
        for shard in range(view.shards)
        if shard not in lost and view.commit_file(shard).is_file()
    ]
    try:
        canary.keep_or_compare(view, make, items, trusted, write=False)
    except IntegrityError:  # damaged: mend removes it
        canary.compare_stored(view, make, trusted)

    def compute(view: "View") -> None:
        canary.keep_or_compare(view, make, items, trusted)
        go_on = f"\nTo go on, type: {store.command(view.folder, 'extract')}"
        # first as the extraction did, with rows of the donors; a shard that does not come out as it was so is made by the model alone
        tries = [dataclasses.replace(donors, sealed=copied)] if any(copied.values()) else []
        for known in [*tries, nothing] if not view.is_complete else []:
            job = Job(view, spec, files, dataset.read, items, known, where, config.workers, "100%")
            if view.pending() and embed_all(job, backbone):
                refuse_pending(view, go_on)
        if not view.is_complete:
            refuse_pending(view, go_on)

    return compute


def _digest(dataset: "Dataset", row: int) -> str:
    try:
        return dataset.read.digest(row)[1]
    except OSError:
        return ""


def _canary_damaged(found: "list[Problem]") -> bool:
    return any(problem.file.name == "canary.json" for problem in found)


def _items_damaged(dataset: Path) -> bool:
    from cache_specs.items import read_items

    try:
        read_items(dataset)
    except IntegrityError as error:
        print(error)
        return True
    return False


def _chosen(shards: str, count: int) -> list[int]:
    try:
        chosen = sorted({int(shard) for shard in shards.split(",") if shard.strip()})
    except ValueError:
        chosen = [-1]
    if chosen and not 0 <= chosen[0] <= chosen[-1] < count:
        raise UsageError(
            f"--shards {shards}: name shards by their numbers, from 0 to {count - 1}, such as --shards 0,{count - 1}"
        )
    return chosen


def command(config: RepairConfig, found: dict[str, Any]) -> None:
    """make repair."""
    mend_view(config)
