"""Rows and shards of a view computed again from its images (make verify --recompute, make repair).
This module takes torch with it: it is imported once something is computed."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from base.console import counted
from base.devices import devices
from base.errors import IntegrityError, StaleError
from cache_specs import store
from cache_specs.items import Items, read_items
from cache_specs.sources import read_source
from cache_specs.succession import write_items
from cache_specs.view import STATUS, View, computed_in
from extract import canary, reuse, trial
from extract.config import ExtractConfig
from extract.data.datasets import Dataset, build_items
from extract.embed import finish
from extract.images import MISSING, OK, Batches
from extract.job import Job, embed_all
from extract.models import backbones
from extract.originals import Originals
from extract.run import refuse_pending

log = logging.getLogger(f"coview.{__name__}")
MOST_LINES = 20  # of rows that differ


@dataclass
class Compared:
    """Of the rows looked at so far. changed: keys of images that are others now; wrong: a line a
    row that is not what is computed, and its shard."""

    farthest: float = 0.0
    changed: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    shards: set[int] = dataclasses.field(default_factory=set)


def compare_rows(view: View, originals: Originals, count: int, seed: int, device: str) -> str:
    """Compare `count` random rows of each shard with what is computed now; say how far they are
    apart. Raises IntegrityError, or StaleError where the images are others now."""
    spec, dataset = originals.spec, originals.dataset
    items, device = read_items(view.folder.parent), devices(device, 1)[0]
    if dataset.keys != items.keys:
        raise StaleError(
            f"the images of {dataset.name} are not those of the item list any more. Put them back; "
            f"or this makes a version of what they are now: {store.command(view.folder, 'extract')}"
        )
    backbone = backbones.load_backbone(spec, originals.files, device)
    backbone.precision = computed_in(view)
    tolerance, found = canary.STORED[spec.compute_dtype], Compared()
    rows, batch = _some_rows(view, count, seed), view.attributes["provenance"]["batch"]
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        images = Batches(dataset.read, items.sha256, spec.preprocess, [part], batch)
        pixels, status, _ = images[0]
        with torch.inference_mode():
            pixels = pixels.to(device)
            emb, status = finish(backbone, backbone(pixels), pixels, status)
        _compare(view, items, part, emb[: len(part)], status[: len(part)], tolerance, found)
    if found.wrong:
        shown = "\n".join(found.wrong[:MOST_LINES])
        shards = ",".join(map(str, sorted(found.shards)))
        raise IntegrityError(
            f"{view.folder}: {len(found.wrong)} of {len(rows)} rows are not what is computed from "
            f"the images now (allowed distance {tolerance}):\n{shown}\nTo compute their shards "
            f"again: {store.command(view.folder)} ARGS='--shards {shards}'"
        )
    if found.changed:
        raise StaleError(
            f"{view.folder}: {len(found.changed)} of {len(rows)} images are gone or have changed "
            f"since they were embedded, first {found.changed[0]!r}; the stored rows are undamaged. "
            "Put the images back; or this makes a version of what they are now, in which only they "
            f"are embedded: {store.command(view.folder, 'extract', ['--changed'])}"
        )
    return (
        f"{counted(len(rows), 'row')} computed again: largest relative distance "
        f"{found.farthest:.2g}, allowed {tolerance}"
    )


def _some_rows(view: View, count: int, seed: int) -> list[int]:
    """`count` of each finished shard, in order."""
    chance, rows = np.random.default_rng(seed), []
    for shard in range(view.shards):
        if view.commit_file(shard).is_file():
            whole = np.arange(*view.bounds(shard))
            chosen = chance.choice(whole, min(count, len(whole)), replace=False)
            rows += np.sort(chosen).tolist()
    return rows


def _compare(
    view: View,
    items: Items,
    rows: list[int],
    emb_KD: np.ndarray,
    status_K: np.ndarray,
    tolerance: float,
    found: Compared,
) -> None:
    """What is stored of these rows with what is computed now."""
    stored_KD, stored_K = store.read_rows(view, rows)
    apart_K = canary.distance(stored_KD.astype(np.float32), emb_KD.astype(np.float32))
    for row, apart, was, now in zip(
        rows, apart_K.tolist(), stored_K.tolist(), status_K.tolist(), strict=True
    ):
        far = apart if was == OK else 0.0
        if now == MISSING and was == OK:  # its bytes are not those of the item list
            found.changed.append(items.keys[row])
            continue
        found.farthest = max(found.farthest, far)
        if far > tolerance or was != now:
            found.shards.add(row // view.rows)
            found.wrong.append(
                f"  row {row} ({items.keys[row]}): status {STATUS[was]} -> {STATUS[now]}, relative "
                f"distance {far:.2g}"
            )


@dataclass(frozen=True)
class Remaker:
    """Makes the shards of a view that are not there, as the extraction did, after all that could
    stop it has been tried. known: rows that are copied again from where the extraction had them;
    trusted: the shards that what the model makes is held against."""

    originals: Originals
    items: Items
    devices: list[str]
    backbone: backbones.Backbone
    known: reuse.Known
    trusted: list[int]
    settings: ExtractConfig

    @property
    def canary_now(self) -> Callable[[list[int]], canary.Canary]:
        read, prep = self.originals.dataset.read, self.originals.spec.preprocess
        device = self.devices[0]
        return functools.partial(trial.take, self.items, read, prep, self.backbone, device)

    def refuse_another_model(self, view: View) -> None:
        """Raise StaleError where what is computed now does not fit what is stored."""
        make, trusted = self.canary_now, self.trusted
        try:
            canary.keep_or_compare(view, make, self.items, trusted, write=False)
        except IntegrityError:  # it is damaged: mend removes it
            canary.compare_stored(view, make, trusted)

    def make(self, view: View) -> None:
        """Raises StoppedError after Ctrl-C."""
        canary.keep_or_compare(view, self.canary_now, self.items, self.trusted)
        if view.is_complete:
            return
        copied = int((self.known.which_N >= 0).sum())
        if copied:
            log.info(f"{view.name}: {copied:,} of their rows are copied, from the views of then")
        spec, files, dataset = self.originals.spec, self.originals.files, self.originals.dataset
        job = Job(
            view,
            spec,
            files,
            dataset.read,
            self.items,
            self.known,
            self.devices,
            self.settings.workers,
            self.settings.max_bad,
        )
        embed_all(job, self.backbone)
        refuse_pending(view, f"\nTo go on, type: {store.command(view.folder, 'extract')}")


def prepare_remaker(
    view: View,
    originals: Originals,
    lost: list[int],
    named: list[int],
    settings: ExtractConfig,
) -> Remaker:
    """What makes the `lost` shards again, and the item list, where it is damaged, at once. Those
    that were `named` are computed, whole. Raises CoviewError."""
    dataset, folder = originals.dataset, view.folder.parent
    items = _item_list(dataset, folder)
    if dataset.keys != items.keys:
        raise StaleError(
            f"the images in {read_source(folder)} are not those of the item list "
            f"({len(dataset.keys)} instead of {len(items)}, or other names): put them back, then "
            "type the same command. Nothing is changed"
        )
    for shard in lost:
        _refuse_changed(dataset, items, range(*view.bounds(shard)))
    copied = [shard for shard in lost if shard not in named]
    known = _only(reuse.recorded(view, items), view, copied)
    where = devices(settings.device, settings.gpus)
    backbone = backbones.load_backbone(originals.spec, originals.files, where[0])
    trusted = []
    for shard in range(view.shards):
        if shard not in lost and view.commit_file(shard).is_file():
            trusted.append(shard)
    remaker = Remaker(originals, items, where, backbone, known, trusted, settings)
    remaker.refuse_another_model(view)
    return remaker


def _item_list(dataset: Dataset, folder: Path) -> Items:
    try:
        return read_items(folder)
    except IntegrityError:
        items = build_items(dataset)
    if items.folder_name != folder.name:
        raise StaleError(
            f"the item list in {folder} is damaged, and the images in {read_source(folder)} are "
            f"not those that it was made of ({items.folder_name}): put them back, then type the "
            "same command"
        )
    write_items(folder.parent, items, read_source(folder), changed=True)  # as it was embedded
    return read_items(folder)


def _refuse_changed(dataset: Dataset, items: Items, rows: Iterable[int]) -> None:
    for row in rows:
        if items.sha256[row] and _sha256_now(dataset, row) != items.sha256[row]:
            raise StaleError(
                f"the image {items.keys[row]!r} is gone or has changed, and its shard must be "
                "computed again: put it back, then type the same command. Nothing is changed"
            )


def _sha256_now(dataset: Dataset, row: int) -> str:
    try:
        return dataset.read.digest(row)[1]
    except OSError:
        return ""


def _only(known: reuse.Known, view: View, shards: list[int]) -> reuse.Known:
    """What is known of the rows of these shards alone."""
    which_N = np.full_like(known.which_N, -1)
    for shard in shards:
        rows = slice(*view.bounds(shard))
        which_N[rows] = known.which_N[rows]
    return dataclasses.replace(known, which_N=which_N)
