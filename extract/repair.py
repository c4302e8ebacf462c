"""make repair VIEW=clip [DATA=photos/]     (python -m extract.repair --view clip)

Mends a damaged view: descriptions, commits and the seal are rebuilt from one another, damaged shards (and those of `--shards 3,7`) are
computed again from the images, and nothing else. What was finished is finished again afterwards; an unfinished view stays unfinished.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from cache_specs.errors import IntegrityError, UsageError, run_cli


@dataclass(frozen=True)
class RepairConfig:
    """Mend a damaged view, computing again only what is damaged."""

    view: str = ""
    """name of a view"""
    data: str = ""
    """the data set, as it was given to extract; may be left out where only one has the view"""
    shards: str = ""
    """compute these again in any case, such as 3,7"""
    weights: str | None = None
    """local weights, as they were given to extract"""
    cache: str = "cache"
    """where the embeddings are"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    gpus: int = 1
    """this many processes share the shards"""
    workers: int = -1
    """decode processes for each GPU; -1 chooses"""
    root: str = "data"
    """where torchvision data sets lie"""


def mend_view(config: RepairConfig) -> None:
    """Raises CoviewError; nothing is removed before the spec, the weights and the images that are needed have been found."""
    from cache_specs import repair, store
    from cache_specs.items import read_source
    from cache_specs.lookup import find_view
    from extract.config import ExtractConfig
    from extract.run import run
    from extract.verify import images_of

    if not config.view:
        raise UsageError("VIEW is missing. Type: make repair VIEW=clip   (make verify says which views are damaged)")
    folder = find_view(Path(config.cache), config.view, config.data, "repair")
    with store.writer_lock(folder):
        lines = repair.mend_documents(folder)
        view = store.open_view(folder)
        chosen, was_complete, had_canary = _chosen(config.shards, view.shards), view.is_complete, (folder / "canary.json").exists()
        imported = view.attributes["spec"]["backend"] == store.IMPORTED
        if not imported and (chosen or any(problem.shard is not None for problem in repair.problems(view))):
            images_of(view, config.view, config.weights, config.root)
        view, found, lost = repair.mend(folder, chosen)
    for line in lines + found:
        print(f"{view.name}: {line}")
    if lost:
        print(f"{view.name}: {len(lost)} of {view.shards} shards are to be computed again: {', '.join(map(str, lost))}", flush=True)
    if imported and was_complete and not view.is_complete:
        raise IntegrityError(f"{folder} was imported, so its rows cannot be computed again. To fill in just these shards: {store.command(folder, 'extract')}")
    items_damaged = _items_damaged(folder.parent)
    if items_damaged or (was_complete and (not view.is_complete or had_canary > (folder / "canary.json").exists())):
        spec, _, dataset = images_of(view, config.view, config.weights, config.root)
        run(ExtractConfig(view=str(spec.source), data=read_source(folder.parent), weights=config.weights, cache=config.cache, device=config.device,
                          gpus=config.gpus, workers=config.workers, root=config.root, name=dataset.name, max_bad=str(view.n)))
    elif not was_complete:
        print(f"{view.name}: unfinished, as it was; to go on: {store.command(folder, 'extract')}")
    print(f"{view.name}: {'mended' if lines + found or lost or items_damaged else 'nothing is damaged'}")


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
        raise UsageError(f"--shards {shards}: numbers of shards from 0 to {count - 1}, such as --shards 0,{count - 1}")
    return chosen


def main() -> None:
    import tyro

    mend_view(tyro.cli(RepairConfig, prog="python -m extract.repair", description=RepairConfig.__doc__))


if __name__ == "__main__":
    sys.exit(run_cli(main))
