"""Finished views -> one (N, D) array each, mapped from the cache's files without copying anything.

All shards of a view are mapped end to end into one reserved range of addresses (mmap with
MAP_FIXED), so that a random batch is a plain gather. That needs shards of whole pages, which all
but tiny data sets have (4,096 rows of any width); those are read into memory.
"""

import ctypes
import logging
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import (
    UNKNOWN,
    DataQualityError,
    IntegrityError,
    StorageError,
    UsageError,
    nearest,
)
from base.phrase import quoted
from cache_specs import integrity, store
from cache_specs.items import Items, read_items
from cache_specs.lookup import find_dataset, named_view
from cache_specs.sources import is_gone, read_source
from cache_specs.spec import view_names
from cache_specs.text import ViewText
from cache_specs.tuned import seen_of
from cache_specs.versions import dataset_folders, is_older
from cache_specs.view import view_name
from train.data.splits import spaced

log = logging.getLogger(f"coview.{__name__}")
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
LOOKED_AT = 20_000  # files at most that are looked at before training
# Names of lines and files beside those of the views.
RESERVED = ("joint", "pool", "scores", "concat")


@dataclass(frozen=True, eq=False)
class Cache:
    """V views of one data set. emb[v]: (N, D_v) float16, read-only in effect (copy-on-write); ok:
    (N,) bool, usable in every view. older: the images of `source` have other names or company now,
    and the data set a newer version. texts: of the views whose classes' names were encoded, where
    they are asked for (train/data/texts.py); taken: so many images are labelled by these names, and
    no others but those of test. seen: of the views whose backbone has learnt from labels, the
    contents of these images; tuned: what is recorded of these views."""

    items: Items
    names: list[str]
    emb: list[np.ndarray]
    ok: np.ndarray
    fingerprints: dict[str, str]
    stamps: dict[Path, dict[str, list]]
    source: str
    older: bool = False
    texts: dict[str, ViewText] = field(default_factory=dict)
    taken: int = 0
    seen: dict[str, frozenset[str]] = field(default_factory=dict)
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def folders(self) -> list[Path]:
        """Of the views, in their order."""
        return list(self.stamps)

    def warn_of_drift(self) -> None:
        """Say that the folder no longer holds what was embedded, where a look at its files (at most
        20,000) shows it: training reads the cache alone."""
        items, folder = self.items, self.source
        if items.adapter != "folder" or self.older or not os.path.isdir(folder):
            return
        size = items.size.tolist()
        looked, changed = 0, []
        for row in spaced(np.arange(len(items)), LOOKED_AT).tolist():
            key = items.keys[row]
            if not items.sha256[row] or "\\" in key:
                continue
            looked += 1
            if _bytes_of(f"{folder}/{key}") != size[row]:
                changed.append(key)
        if changed:
            log.warning(
                f"of {looked:,} images looked at in {folder}, {len(changed):,} were moved, are "
                "gone or have changed since they were embedded, the first is "
                f"{changed[0]!r}. Images and labels are used as they were embedded. To use what "
                "is there now, type first (known images are not embedded again):\n  "
                f"{self._extract()}"
            )

    def _extract(self) -> str:
        commands = []
        for folder in self.stamps:
            command = store.command(folder, "extract")
            if command.startswith("make extract "):
                commands.append(command)
        return "\n  ".join(commands) or f"make extract VIEW=… DATA={quoted(self.source)}"

    def refuse_changed(self) -> None:
        """Raise IntegrityError when a file was written to since the cache was opened: then what was
        trained on is not what was checked."""
        for name, (folder, stamps) in zip(self.names, self.stamps.items(), strict=True):
            view = store.open_view(folder)
            seal = integrity.read_seal(view)
            if integrity.stamps(view, seal["shards"]) == stamps:
                continue
            integrity.check(view)  # touched, or more?
            if seal["root"] != self.fingerprints[name]:
                raise IntegrityError(
                    f"{folder} was written anew while it was read; train on it under another RUN=",
                    instead={"RUN": UNKNOWN},
                )


def open_cache(
    cache: Path, data: str, views: list[str], remember: bool = True, labels: str = ""
) -> Cache:
    """Check and map the views; what was checked is noted in the cache if `remember`. labels: the
    fingerprint of those that are meant, if not the newest.

    Raises CoviewError when one is unfinished, damaged, stale or of other images than the item list.
    """
    folder = find_dataset(cache, data, views)
    items = read_items(folder, labels)
    names, emb, stamps, seen, tuned = [], [], {}, {}, {}
    ok = np.ones(len(items), bool)
    fingerprints = {"items": items.fingerprint, "labels": items.labels_fingerprint}
    for name in views:
        view = _named(cache, folder, name, views, data)
        # of two views of one name that which was asked for is called by its folder's own
        own = name if name == view.folder.name else view.name
        store.refuse_other_images(view, items.fingerprint, len(items))
        _refuse_name(own, view.folder, dict(zip(stamps, names, strict=True)), views)
        seal = integrity.read_seal(view)
        fingerprints[own] = seal["root"]
        stamps[view.folder] = integrity.stamps(view, seal["shards"])
        ok &= integrity.check(view, remember=remember) == 0
        names.append(own)
        emb.append(map_view(view))
        if contents := seen_of(view):
            seen[own], tuned[own] = contents, view.attributes
    if not ok.any():
        raise DataQualityError(
            f"no image of {items.name!r} could be embedded in all of the views "
            f"{', '.join(names)}; train on fewer VIEWS=, or mend the images and extract them again"
        )
    where = read_source(folder), is_older(folder)
    return Cache(items, names, emb, ok, fingerprints, stamps, *where, seen=seen, tuned=tuned)


def _named(cache: Path, dataset: Path, name: str, views: list[str], data: str) -> store.View:
    """The view that a name means. Raises as `open_cache` does."""
    there = store.called(store.view_folders(dataset), name)
    if there or name in view_names():
        return named_view(dataset, name, _hint(dataset, name, data), views)
    # a name of one's own, of a view that the data set lacks
    older = _older_with(dataset, name)
    if older and not name.endswith(".toml"):
        raise UsageError(
            f"no view {name!r} in {dataset}. To extract it: {_hint(dataset, name, data)}"
        )
    try:
        return named_view(dataset, name, _hint(dataset, name, data), views)
    except UsageError as error:
        if name.endswith(".toml"):
            raise
        raise _no_such_view(cache, dataset, name, views) from error


def _no_such_view(cache: Path, dataset: Path, name: str, views: list[str]) -> UsageError:
    """With the views of the data set alone: no others can be trained on."""
    near = nearest(name, {*map(view_name, store.view_folders(dataset))} - {*views})
    told = f"; did you mean {near!r}" if near else ""
    again = ",".join((near or UNKNOWN) if one == name else one for one in views)
    return UsageError(
        f"no view {name!r}{told}{_where_it_is(cache, dataset, name)}", {"VIEWS": again}
    )


def _refuse_name(name: str, folder: Path, taken: dict[Path, str], views: list[str]) -> None:
    """taken: the names of the views before it, by their folders."""
    asked = ",".join(views)
    if folder in taken:
        once = ",".join(views[: len(taken)] + views[len(taken) + 1 :])
        raise UsageError(
            f"VIEWS={asked}: {name!r} stands there twice; name each once", {"VIEWS": once}
        )
    if name in taken.values():
        told = ",".join(one.name for one in [*taken, folder])
        raise UsageError(
            f"VIEWS={asked}: two different views are called {name!r}; name them by their folders",
            {"VIEWS": ",".join([told, *views[len(taken) + 1 :]])},
        )
    if name in RESERVED:
        raise UsageError(
            f"VIEWS={asked}: {name!r} is a word of the report's own; import the view under another "
            "name"
        )


def _hint(dataset: Path, name: str, data: str) -> str:
    """The command that makes a view which a data set lacks, and that it is cheap where an older
    version has it."""
    source = read_source(dataset)
    wanted = source if source and is_gone(data) else data
    command = f"make extract VIEW={quoted(name)} DATA={quoted(wanted)}"
    if is_older(dataset):
        return (
            f"{command}, which makes it for the current version, not for {dataset.name}; train on "
            f"that: DATA={quoted(source)}"
        )
    older = _older_with(dataset, Path(name).stem if name.endswith(".toml") else name)
    if not older:
        return command
    return (
        f"{command}   (its embeddings of the images that {older[-1]} has are copied; only new "
        "images are embedded)"
    )


def _older_with(dataset: Path, name: str) -> list[str]:
    """The other versions of the data set that have a view of this name."""
    found = []
    for folder in dataset_folders(dataset.parent, dataset.name.rpartition("-")[0]):
        if folder != dataset and store.view_folders(folder, name):
            found.append(folder.name)
    return found


def _where_it_is(cache: Path, dataset: Path, name: str) -> str:
    here = sorted({view_name(folder) for folder in store.view_folders(dataset)})
    others = set()
    for path in cache.glob("*/*"):
        if path.parent != dataset and view_name(path) == name:
            others.add(path.parent.name)
    told = f"\n{dataset.name} has the views: {', '.join(here) or 'none yet'}"
    if others:
        told += f"; {name!r} is a view of another data set: DATA={min(others)}"
    return told


def _bytes_of(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def map_view(view: store.View) -> np.ndarray:
    """(N, D) float16 over all shards of a checked view. Sizes must have been checked: a mapped file
    must not be short."""
    shard_bytes = view.rows * view.width * 2
    if shard_bytes % mmap.PAGESIZE or view.shards == 1:
        if view.shards == 1:
            shape = (view.rows, view.width)
            return np.memmap(view.embeddings_file(0), np.float16, "c", shape=shape)[: view.n]
        return _read(view)
    return _mapped(view, shard_bytes)


def _read(view: store.View) -> np.ndarray:
    """One file after the other: a map of each would keep all of them open."""
    emb_ND = np.empty((view.shards * view.rows, view.width), np.float16)
    for shard in range(view.shards):
        rows = np.fromfile(view.embeddings_file(shard), "<f2", view.rows * view.width)
        emb_ND[shard * view.rows :][: view.rows] = rows.reshape(-1, view.width)
    return emb_ND[: view.n]


def _mapped(view: store.View, shard_bytes: int) -> np.ndarray:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size_t, number = ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = [ctypes.c_void_p, size_t, number, number, number, ctypes.c_long]
    total = shard_bytes * view.shards
    reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    base = _checked(libc.mmap(None, total, 0, reserve, -1, 0))
    access, how = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED
    # For 1,000 shards 9 ms, of which the maps themselves are 5; with a Path and a file object for
    # each it is 19. And no madvise: the kernel's read-ahead brings a cold cache into RAM within the
    # first batches, reading it once; with MADV_RANDOM the first epoch takes 7 times as long.
    folder = str(view.embeddings_file(0).parents[1])
    for shard in range(view.shards):
        handle = os.open(f"{folder}/{shard}/0", os.O_RDONLY)
        try:
            _checked(libc.mmap(base + shard * shard_bytes, shard_bytes, access, how, handle, 0))
        finally:
            os.close(handle)
    flat = np.frombuffer(memoryview((ctypes.c_char * total).from_address(base)), np.float16)
    return flat.reshape(-1, view.width)[: view.n]  # mapped until the process ends


def _checked(address: int | None) -> int:
    if address is None or address == ctypes.c_void_p(-1).value:
        raise StorageError(
            f"mapping the cache failed: {os.strerror(ctypes.get_errno())}. If it has tens of "
            "thousands of shards, allow more maps: sudo sysctl vm.max_map_count=1000000, or "
            "extract with a larger --shard-rows"
        )
    return address


def gather(emb_ND: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The given rows, (..., ) int -> (..., D) float16, as a new array."""
    return np.take(emb_ND, rows, axis=0, mode="clip")
