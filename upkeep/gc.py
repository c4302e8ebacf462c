"""make gc [CACHE=…] [ARGS=--yes]     (python -m upkeep.gc)

Lists what no finished view needs: left-over temp files, stray shards, views hardly begun (with --unfinished also those with finished shards),
item lists without a view. Asks, and removes it on "yes". A finished view is never removed, damaged or not, nor anything that a process holds,
nor what is not ours.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.errors import CoviewError, StorageError, UsageError
from upkeep.config import GcConfig


@dataclass(frozen=True)
class Waste:
    path: Path
    why: str
    size: int


def waste(cache: Path, unfinished: bool = False) -> Iterator[Waste]:
    """What could go, in order of removal; views with finished shards only if `unfinished`. What a process holds is left out."""
    from base import locks
    from cache_specs import integrity, store
    from cache_specs.versions import is_older

    for dataset in sorted(
        path
        for path in cache.iterdir()
        if (path / "dataset.json").is_file() and not path.is_symlink()
    ):
        yield from (
            _of(path, "a temp file")
            for path in (dataset / ".items.parquet.tmp", dataset / ".dataset.json.tmp")
            if path.exists()
        )
        folders, going = store.named_folders(dataset), []
        for folder in folders:
            done, held = (
                len(list((folder / "commits").glob("*.json"))),
                locks.lock_holder(folder) or folder.is_symlink(),
            )
            if not held and store.is_leftover(folder):
                going.append(_of(folder, "a view that was hardly begun"))
            elif (
                not held
                and store.is_created(folder)
                and not (folder / "complete.json").is_file()
                and (unfinished or not (done or _has_shards(folder)))
            ):
                going.append(
                    _of(
                        folder,
                        f"an unfinished view ({done} shards are done; "
                        + (
                            "of an older version of its data set"
                            if is_older(dataset)
                            else f"{store.command(folder, 'extract')} would go on"
                        )
                        + ")",
                    )
                )
            elif not held:
                yield from (_of(path, "a temp file") for path in sorted(folder.rglob(".*.tmp")))
                yield from (
                    _of(path, "put aside by make repair, no shard of its view")
                    for path in sorted(folder.glob("strays/*"))
                )
                with contextlib.suppress(CoviewError):  # damaged: make repair comes first
                    yield from (
                        _of(stray.file, "a file that is no shard of its view")
                        for stray in integrity.strays(store.open_view(folder))
                    )
        yield from going
        if (
            len(going) == len(folders)
            and not locks.lock_holder(dataset)
            and _is_ours(dataset, folders)
        ):
            yield _of(dataset, "an item list without a view" + _before(dataset))


def _before(dataset: Path) -> str:
    """Said of an item list that is the current version of its data set."""
    from cache_specs.versions import current, dataset_folders

    folders = dataset_folders(dataset.parent, dataset.name.rpartition("-")[0])
    before = (
        current([folder for folder in folders if folder != dataset])
        if len(folders) > 1 and current(folders) == dataset
        else None
    )
    return f" (without it {before.name} is the current version again)" if before else ""


def _has_shards(folder: Path) -> bool:
    """More shards than those that a killed writer had not committed yet: their records were lost, in a copy that was cut short, say."""
    return (
        len(list((folder / "embeddings").glob("c/*/0"))) > len(list(folder.glob("progress-*"))) + 1
    )


def _is_ours(dataset: Path, folders: list[Path]) -> bool:
    """Would removing the folder take nothing with it that is not ours?"""
    return {path.name for path in dataset.iterdir()} <= {
        "dataset.json",
        "items.parquet",
        ".lock",
        *(folder.name for folder in folders),
    }


def _of(path: Path, why: str) -> Waste:
    files = (
        [path]
        if path.is_file() or path.is_symlink()
        else [inner for inner in path.rglob("*") if inner.is_file()]
    )
    return Waste(path, why, sum(file.lstat().st_size for file in files))


def remove(one: Waste) -> None:
    """Remove one thing, holding the lock of the view or data set that it is or lies in. Raises StorageError when somebody is at work there."""
    from base import durable, locks
    from cache_specs import store

    if not one.path.exists() and not one.path.is_symlink():
        return
    inside = next(
        (
            parent
            for parent in (one.path, *one.path.parents)
            if (parent / "zarr.json").is_file() and (parent / "commits").is_dir()
        ),
        one.path if one.path.is_dir() else one.path.parent,
    )
    try:
        with locks.lock(inside):
            if inside != one.path:
                shutil.rmtree(one.path) if one.path.is_dir() else one.path.unlink()
                return
            if (one.path / "complete.json").is_file() or store.named_folders(one.path):
                return  # finished, or begun, meanwhile
            for name in ("zarr.json", "dataset.json"):  # first what says that it is one
                (one.path / name).unlink(missing_ok=True)
            shutil.rmtree(one.path)
            durable.fsync_folder(one.path.parent)
    except OSError as error:
        raise StorageError(
            f"cannot remove {one.path}: {error.strerror}. Mend that, or remove it by hand"
        ) from error


def collect(config: GcConfig) -> None:
    """List, ask, remove. Raises UsageError without a cache, or where nobody can be asked; StorageError while anybody writes to the cache."""
    cache = Path(config.cache)
    if not cache.is_dir():
        raise UsageError(f"there is no cache {cache}; name it with CACHE=…")
    with _alone(cache):
        found = list(waste(cache, config.unfinished))
    if not found:
        print(
            f"{cache}: nothing to remove; finished views are kept"
            + ("" if config.unfinished else ", and those with finished shards (see --unfinished)")
        )
        return
    for one in found:
        print(f"  {one.size / 1e6:10,.1f} MB  {one.path}: {one.why}")
    if not config.yes:
        if not os.isatty(0):
            raise UsageError(
                f"nothing is removed: there is no terminal to ask. To remove these {len(found)}: make gc ARGS=--yes"
            )
        if input(f"Remove these {len(found)}? Type yes: ").strip().lower() != "yes":
            print("nothing is removed")
            return
    with _alone(cache):
        still = {
            one.path for one in waste(cache, config.unfinished)
        }  # nobody was kept waiting for the answer
        going = [one for one in found if one.path in still]
        for one in going:
            remove(one)
    print(
        f"{len(going)} removed"
        + (
            f", {len(found) - len(going)} left: they have changed meanwhile"
            if len(going) < len(found)
            else ""
        )
    )


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """While no extraction, import or repair runs: between its item list and its first shard it holds nothing else."""
    from base import locks

    try:
        with locks.lock(cache, name=locks.USERS):
            yield
    except StorageError as error:
        busy = "is being written" in str(error)
        why = (
            f"an extraction, import or repair is at work in {cache} ({error})"
            if busy
            else str(error)
        )
        raise StorageError(f"nothing is removed: {why}. Mend that first") from error


def command(config: GcConfig, found: dict[str, Any]) -> None:
    """make gc."""
    collect(config)
