"""make gc [CACHE=…] [ARGS=--yes]

Lists what no finished view needs: left-over temp files, stray shards, views hardly begun (with
--unfinished also those with finished shards), item lists without a view. Asks, and removes it on
"yes". A finished view is never removed, damaged or not, nor anything that a process holds, nor what
is not ours.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base import durable, locks
from base.console import counted
from base.errors import UNKNOWN, CoviewError, StorageError, UsageError
from cache_specs import integrity, stamps, store
from cache_specs.versions import current, dataset_folders, is_older
from upkeep.config import GcConfig

log = logging.getLogger(f"coview.{__name__}")


@dataclass(frozen=True)
class Waste:
    path: Path
    why: str
    size: int


def command(config: GcConfig, found: dict[str, Any]) -> None:
    """make gc."""
    collect(config)


def collect(config: GcConfig) -> None:
    """List, ask, remove. Raises UsageError without a cache, or where nobody can be asked;
    StorageError while anybody writes to the cache."""
    cache = Path(config.cache)
    if not cache.is_dir():
        raise UsageError(f"there is no cache {cache}; name it", instead={"CACHE": UNKNOWN})
    with _alone(cache):
        found = list(waste(cache, config.unfinished))
    for one in found:
        log.info(f"  {one.size / 1e6:10,.1f} MB  {one.path}: {one.why}")
    if not found:
        others = "" if config.unfinished else ", and those with finished shards (see --unfinished)"
        log.info(f"{cache}: nothing to remove; finished views are kept{others}")
    elif config.yes or _confirmed(len(found)):
        _remove(cache, found, config.unfinished)
    else:
        log.info("nothing is removed")


def _confirmed(count: int) -> bool:
    if not os.isatty(0):
        raise UsageError(
            "nothing is removed: there is no terminal to ask. To remove these "
            f"{count}, say so: --yes",
            instead={"--yes": ""},
        )
    return input(f"Remove these {count}? Type yes: ").strip().lower() == "yes"


def _remove(cache: Path, found: Sequence[Waste], unfinished: bool) -> None:
    """What is still waste, after the answer that nobody was kept waiting for."""
    going = 0
    with _alone(cache):
        still = {one.path for one in waste(cache, unfinished)}
        for one in found:
            if one.path in still:
                remove_waste(one)
                going += 1
    left = f", {len(found) - going} left: they have changed meanwhile"
    log.info(f"{going} removed{left if going < len(found) else ''}")


@contextlib.contextmanager
def _alone(cache: Path) -> Generator[None]:
    """While no extraction, import or repair runs: between its item list and its first shard it
    holds nothing else."""
    try:
        with locks.lock(cache, name=locks.USERS):
            yield
    except StorageError as error:
        why = str(error)
        if "is being written" in why:
            why = f"an extraction, import or repair is at work in {cache} ({error})"
        raise StorageError(f"nothing is removed: {why}. Mend that first") from error


def waste(cache: Path, unfinished: bool = False) -> Iterator[Waste]:
    """What could go, in order of removal; views with finished shards only if `unfinished`. What a
    process holds is left out."""
    for dataset in sorted(cache.iterdir()):
        if (dataset / "dataset.json").is_file() and not dataset.is_symlink():
            yield from _waste_of(dataset, unfinished)


def _waste_of(dataset: Path, unfinished: bool) -> Iterator[Waste]:
    for name in (".items.parquet.tmp", ".dataset.json.tmp", f".{stamps.FILE}.tmp"):
        if (dataset / name).exists():
            yield _measured(dataset / name, "a temp file")
    folders, going = store.named_folders(dataset), []
    for folder in folders:
        if locks.lock_holder(folder) or folder.is_symlink():
            continue
        why = _why_it_goes(folder, unfinished)
        if why:
            going.append(_measured(folder, why))
        else:
            yield from _waste_in(folder)
    yield from going
    yield from _arriving(dataset, unfinished)
    free = len(going) == len(folders) and not locks.lock_holder(dataset)
    if free and _is_ours(dataset, folders):
        yield _measured(dataset, f"an item list without a view{_before(dataset)}")


def _arriving(dataset: Path, unfinished: bool) -> Iterator[Waste]:
    for folder in store.named_folders(dataset / store.ARRIVING) if unfinished else ():
        if not locks.lock_holder(folder) and not folder.is_symlink():
            yield _measured(folder, "a view that make pull has not brought whole")


def _why_it_goes(folder: Path, unfinished: bool) -> str:
    """Why a view's folder goes as a whole; '' where it stays."""
    if store.is_leftover(folder):
        return "a view that was hardly begun"
    if not store.is_created(folder) or (folder / "complete.json").is_file():
        return ""
    done = len(list((folder / "commits").glob("*.json")))
    if not unfinished and (done or _has_shards(folder)):
        return ""
    then = f"{store.command(folder, 'extract')} would go on"
    if is_older(folder.parent):
        then = "of an older version of its data set"
    return f"an unfinished view (done: {counted(done, 'shard')}; {then})"


def _has_shards(folder: Path) -> bool:
    """More shards than those that a killed writer had not committed yet: their records were lost,
    in a copy that was cut short, say."""
    shards = len(list((folder / "embeddings").glob("c/*/0")))
    return shards > len(list(folder.glob("progress-*"))) + 1


def _waste_in(folder: Path) -> Iterator[Waste]:
    """What goes of a view that stays."""
    for path in sorted(folder.rglob(".*.tmp")):
        yield _measured(path, "a temp file")
    for path in sorted(folder.glob("strays/*")):
        yield _measured(path, "put aside by make repair, no shard of its view")
    with contextlib.suppress(CoviewError):  # damaged: make repair comes first
        for stray in integrity.strays(store.open_view(folder)):
            yield _measured(stray.file, "a file that is no shard of its view")


def _is_ours(dataset: Path, folders: Sequence[Path]) -> bool:
    """Would removing the folder take nothing with it that is not ours?"""
    ours = {"dataset.json", "items.parquet", stamps.FILE, ".lock"}
    ours |= {folder.name for folder in folders}
    if not any((dataset / store.ARRIVING).glob("*")):
        ours.add(store.ARRIVING)
    return {path.name for path in dataset.iterdir()} <= ours


def _before(dataset: Path) -> str:
    """Said of an item list that is the current version of its data set."""
    folders = dataset_folders(dataset.parent, dataset.name.rpartition("-")[0])
    if len(folders) < 2 or current(folders) != dataset:
        return ""
    before = current([folder for folder in folders if folder != dataset])
    return f" (without it {before.name} is the current version again)" if before else ""


def _measured(path: Path, why: str) -> Waste:
    if path.is_file() or path.is_symlink():
        files = [path]
    else:
        files = [inner for inner in path.rglob("*") if inner.is_file()]
    return Waste(path, why, sum(file.lstat().st_size for file in files))


def remove_waste(one: Waste) -> None:
    """Remove one thing, holding the lock of the view or data set that it is or lies in. Raises
    StorageError when somebody is at work there."""
    if not one.path.exists() and not one.path.is_symlink():
        return
    inside = _locked_by(one.path)
    try:
        with locks.lock(inside):
            if inside == one.path:
                _remove_folder(one.path)
            elif one.path.is_dir():
                shutil.rmtree(one.path)
            else:
                one.path.unlink()
    except OSError as error:
        raise StorageError(
            f"cannot remove {one.path}: {error.strerror}. Mend that, or remove it by hand"
        ) from error


def _locked_by(path: Path) -> Path:
    """The folder whose lock guards what lies there: a view's, else a data set's."""
    for folder in (path, *path.parents):
        if (folder / "zarr.json").is_file() and (folder / "commits").is_dir():
            return folder
    return path if path.is_dir() else path.parent


def _remove_folder(folder: Path) -> None:
    """A view's or a data set's, unless it was finished, or begun, meanwhile."""
    arriving = folder.parent.name == store.ARRIVING
    if store.named_folders(folder) or ((folder / "complete.json").is_file() and not arriving):
        return
    for name in ("zarr.json", "dataset.json"):  # first what says that it is one
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder)
    durable.fsync_folder(folder.parent)
    if arriving:
        with contextlib.suppress(OSError):  # others are there
            folder.parent.rmdir()
