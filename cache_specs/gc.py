"""make gc [CACHE=…] [ARGS=--yes]     (python -m cache_specs.gc)

Lists what no finished view needs: left-over temp files, stray shards, unfinished views, item lists without a view. Asks, and removes it on "yes".
A finished view is never removed, damaged or not, nor anything that a running process holds, nor a file that is not ours.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cache_specs.errors import CoviewError, StorageError, UsageError, run_cli


@dataclass(frozen=True)
class GcConfig:
    """Remove what no finished view needs, after asking."""

    cache: str = "cache"
    """where the embeddings are"""
    yes: bool = False
    """remove without asking"""


@dataclass(frozen=True)
class Waste:
    path: Path
    why: str
    size: int


def waste(cache: Path) -> Iterator[Waste]:
    """What could go, in order of removal. What a process holds is left out."""
    from cache_specs import durable, integrity, store

    if durable.lock_holder(cache):
        return
    yield from (_of(path, "a temp file") for path in cache.glob(".*.tmp"))
    for dataset in sorted(path for path in cache.iterdir() if path.is_dir() and not path.is_symlink()):
        folders = store.named_folders(dataset)
        kept = [folder for folder in folders if (folder / "complete.json").is_file() or durable.lock_holder(folder) or folder.is_symlink()]
        if durable.lock_holder(dataset) or not (folders or (dataset / "dataset.json").is_file()):
            continue
        yield from (_of(path, "a temp file") for path in dataset.glob(".*.tmp"))
        for folder in sorted(set(folders) - set(kept)):
            done = len(list((folder / "commits").glob("*.json")))
            yield _of(folder, f"an unfinished view ({done} shards are done; {store.command(folder, 'extract')} would go on)")
        for folder in kept:
            if durable.lock_holder(folder):
                continue
            yield from (_of(path, "a temp file") for path in sorted(folder.rglob(".*.tmp")))
            try:
                yield from (_of(stray.file, "a file that is no shard of its view") for stray in integrity.strays(store.open_view(folder)))
            except CoviewError:
                continue                                    # damaged: make repair comes first
        if not kept and _is_ours(dataset, folders):
            yield _of(dataset, "an item list without a finished view")


def _is_ours(dataset: Path, folders: list[Path]) -> bool:
    """Would removing the folder take nothing with it that is not ours?"""
    return {path.name for path in dataset.iterdir()} <= {"dataset.json", "items.parquet", ".lock", *(folder.name for folder in folders)}


def _of(path: Path, why: str) -> Waste:
    files = [path] if path.is_file() or path.is_symlink() else [inner for inner in path.rglob("*") if inner.is_file()]
    return Waste(path, why, sum(file.lstat().st_size for file in files))


def remove(one: Waste) -> None:
    """Remove one thing, holding the lock of the view or dataset that it is or lies in. Raises StorageError when somebody is at work there."""
    from cache_specs import durable, store

    if not one.path.exists() and not one.path.is_symlink():
        return
    try:
        if not one.path.is_dir():
            one.path.unlink()
            return
        with durable.lock(one.path):
            if (one.path / "complete.json").is_file() or store.named_folders(one.path):
                return                                      # finished, or begun, meanwhile
            for name in ("zarr.json", "dataset.json"):      # first what says that it is one
                (one.path / name).unlink(missing_ok=True)
            shutil.rmtree(one.path)
            durable.fsync_folder(one.path.parent)
    except OSError as error:
        raise StorageError(f"cannot remove {one.path}: {error.strerror}") from error


def collect(config: GcConfig) -> None:
    """List, ask, remove. Raises UsageError without a cache, or where nobody can be asked."""
    cache = Path(config.cache)
    if not cache.is_dir():
        raise UsageError(f"there is no cache {cache}; name it with CACHE=…")
    found = list(waste(cache))
    if not found:
        print(f"{cache}: nothing to remove; finished views are kept")
        return
    for one in found:
        print(f"  {one.size / 1e6:10,.1f} MB  {one.path}: {one.why}")
    if not config.yes:
        if not os.isatty(0):
            raise UsageError(f"nothing is removed: there is no terminal to ask. To remove these {len(found)}: make gc ARGS=--yes")
        if input(f"Remove these {len(found)}? Type yes: ").strip().lower() != "yes":
            print("nothing is removed")
            return
    for one in found:
        remove(one)
    print(f"{len(found)} removed")


def main() -> None:
    import tyro

    collect(tyro.cli(GcConfig, prog="python -m cache_specs.gc", description=GcConfig.__doc__))


if __name__ == "__main__":
    sys.exit(run_cli(main))
