"""What is labelled, and what the model says of it: the rows of a cache whose labels are not known.
New images: see new.py, which alone needs what decodes and embeds."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from base.console import counted
from base.errors import DataQualityError, UsageError
from base.phrase import quoted
from cache_specs import integrity, store
from extract import bad_images
from predict.from_run import learnt_from
from predict.model import Model, Opinions
from train.data.reader import Cache
from train.data.splits import Split
from train.methods import learns_unlabelled

log = logging.getLogger(f"coview.{__name__}")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Of n images; said: of those whose status is ok, in order, and how familiar they are, where
    the model can tell; truth_n: the labels, where they are known; sha256: of the files."""

    keys: list[str]
    status_n: np.ndarray
    said: Opinions
    familiar_n: np.ndarray | None
    truth_n: np.ndarray | None
    sha256: list[str]


def rows_of_cache(model: Model, cache: Cache, splits: Sequence[Split], run: str) -> Labelled:
    """The rows without a label, or those whose labels were hidden from every seed. run: its name,
    for messages."""
    items, truth_n = cache.items, None
    status_N = _status(cache)
    rows = np.flatnonzero(items.label < 0)
    if len(rows):
        log.info(f"{counted(len(rows), 'image')} of {items.name} without a label")
    else:
        rows = functools.reduce(np.intersect1d, [split.unlabelled for split in splits])
        truth_n = items.label[rows]
        if not len(rows):
            raise UsageError(
                f"every image of {items.name} has a label, and the run saw those of all training "
                "images: nothing is left to be labelled. Name new images: make predict "
                f"RUN={quoted(run)} IMAGES=…"
            )
        log.info(
            f"every image of {items.name} has a label: these are the {len(rows):,} training images "
            f"whose labels the run had hidden ({model.about['labels_text']}) from every seed"
        )
    status_n = status_N[rows]
    bad = int((status_n > 0).sum())
    if bad:
        shown = np.zeros_like(status_N)
        shown[rows] = status_n
        log.info(
            f"{bad} of them could not be embedded ({bad_images.counts(status_n)}); they get no "
            f"label:\n{bad_images.listed(shown, items)}"
        )
    good = rows[status_n == 0]
    if not len(good):
        raise DataQualityError(
            f"not one of the {len(rows):,} images without a label could be embedded; nothing is "
            "written"
        )
    keys, sha256 = [items.keys[row] for row in rows], [items.sha256[row] for row in rows]
    emb_V = [emb_ND[good] for emb_ND in cache.emb]
    return Labelled(keys, status_n, model(emb_V), model.familiar(emb_V), truth_n, sha256)


def _status(cache: Cache) -> np.ndarray:
    """(N,): what could not be embedded in a view has a status there; the first one counts."""
    status = np.zeros(len(cache.items), np.uint8)
    for folder in cache.folders:
        found = integrity.check(store.open_view(folder))
        status = np.where(status > 0, status, found)
    return status


def are_new(
    model: Model, sha256: Sequence[str], cache: Cache, splits: Sequence[Split], told: bool
) -> bool:
    """Whether the training has learnt from less than half of these images; if it is to be `told`,
    says how many of them it had."""
    labelled, seen = learnt_from(cache, splits)
    named = len([one for one in sha256 if one in labelled])
    known = len([one for one in sha256 if one in seen])
    if known and told:
        were = "were" if known > 1 else "was"
        log.info(
            f"{known:,} of {counted(len(sha256), 'image')} {were} part of the training, {named:,} "
            "of them with a label"
        )
    return not learns_unlabelled(model.method) or 2 * known < len(sha256)
