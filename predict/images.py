"""New images -> the embeddings that a model reads, by the very backbones that it was trained on.

    emb_V, status_n = embed_images(views, found, dataset, …)    views one after the other, so that
                                                                one backbone is in memory at a time

A view's spec is the recorded one, whatever its TOML file says by now; weights with another hash are
refused by name.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from base.errors import UNKNOWN, StaleError, UsageError
from base.progress import Progress
from cache_specs import store
from cache_specs.items import Items
from cache_specs.spec import PIXELS, SPECS, ViewSpec, recorded_spec
from extract.data.datasets import Dataset
from extract.embed import batch_rows, embedded
from extract.images import Batches, Remarks
from extract.models.backbones import load_backbone
from extract.models.weights import find_weights, none_below, of_several, weights_below
from extract.stream import arriving, load, workers_for
from predict.model import ViewRecord

log = logging.getLogger(f"coview.{__name__}")
Backbone = tuple[ViewSpec, dict[str, Path]]  # the spec, and the weight files


def backbones(views: list[ViewRecord], weights: str | None) -> list[Backbone]:
    """Of each view, looked for before anything is decoded. Raises UsageError (imported, weights not
    found) or StaleError (other weights)."""
    found = []
    for view, where in zip(views, _where(views, weights), strict=True):
        spec = spec_of(view)
        if spec.preprocess.pixels < PIXELS:
            log.info(
                f"{view.name}: new images are decoded as those of the training were "
                f"(preprocess.pixels = {spec.preprocess.pixels}; now {PIXELS})"
            )
        try:
            files, sha256 = find_weights(spec, where, commit=view.weights_commit)
        except UsageError as error:
            raise of_several(error, len(views), view.name, weights) from error
        if sha256 != view.weights_sha256:
            raise StaleError(
                f"the weights of {view.name!r} are not those that the model was trained on: sha256 "
                f"{view.weights_sha256[:12]} -> {sha256[:12]} "
                f"({', '.join(map(str, files.values()))}). Put those of then into "
                f"FOLDER/{view.name}/ and add WEIGHTS=FOLDER, or extract and train again",
                instead={"WEIGHTS": UNKNOWN},
            )
        found.append((spec, files))
    return found


def spec_of(view: ViewRecord) -> ViewSpec:
    """The spec as it was recorded. weights.path is relative to the view's own TOML file; where that
    is not there, to the bundled one of its name."""
    refuse_imported([view])
    return recorded_spec(view.name, view.spec, _source(view))


def refuse_imported(views: Sequence[ViewRecord], of_run: bool = True) -> None:
    """Raise UsageError for a view that no new image can be embedded for. of_run: else the model is
    a folder of its own."""
    then = "without IMAGES its own rows are labelled"
    if not of_run:
        then = "its own rows are labelled by the run that the model is of: make predict RUN=…"
    for view in views:
        if view.spec["backend"] == store.IMPORTED:
            raise UsageError(
                f"the view {view.name!r} was imported, not computed from images: nothing here can "
                "embed new ones. Add them to the file that it came from, import that and train on "
                f"it; {then}",
                instead={"IMAGES": None} if of_run else None,
            )


def _source(view: ViewRecord) -> Path:
    """The place of the TOML file beside which the weights may lie: where it was, there or not, and
    for a view of the project where it is now."""
    own, bundled = Path(view.spec_file or f"{view.name}.toml"), SPECS / f"{view.name}.toml"
    if view.spec_file and (own.is_file() or not store.is_of_project(vars(view), view.name)):
        return own
    return bundled if bundled.is_file() else own


def _where(views: list[ViewRecord], weights: str | None) -> list[str | None]:
    """WEIGHTS= for each view: what lies below it under the view's name, or the thing itself, of a
    single view and of each that was trained on just these weights."""
    if weights is None:
        return [None] * len(views)
    names = [view.name for view in views]
    found = weights_below(weights, names)
    if found == [None]:
        return [weights]
    if not any(found):
        found = [weights if _are_of(view, weights) else None for view in views]
    if not any(found):
        raise none_below(weights, names)
    return found


def _are_of(view: ViewRecord, weights: str) -> bool:
    try:
        return find_weights(spec_of(view), weights)[1] == view.weights_sha256
    except UsageError:
        return False


def embed_images(
    views: list[ViewRecord],
    found: list[Backbone],
    dataset: Dataset,
    items: Items,
    device: str,
    workers: int,
) -> tuple[list[np.ndarray], np.ndarray]:
    """(n, D_v) float16 for each view, NaN in rows of a status, and (n,) uint8 status: the first
    that a view gives."""
    n, emb_V, status_n = len(items), [], np.zeros(len(items), np.uint8)
    for view, (spec, files) in zip(views, found, strict=True):
        plan, emb_nD = batch_rows(0, n, view.batch), np.empty((n, view.width), np.float16)
        backbone = load_backbone(spec, files, device)
        images = Batches(dataset.read, items.sha256, spec.preprocess, plan, view.batch)
        remarks = Remarks()
        loader = load(images, workers_for(images, workers, device), device)
        with Progress(view.name, n) as progress:
            arrived = remarks.watch(arriving(loader), plan)
            said = embedded(arrived, backbone, device, progress.clock)
            for rows, (emb_BD, status_B) in zip(plan, said, strict=True):
                place, count = slice(rows.start, rows.stop), len(rows)
                emb_nD[place] = emb_BD[:count]
                before = status_n[place]
                status_n[place] = np.where(before > 0, before, status_B[:count])
                progress.advance(count)
        remarks.say(view.name, items.keys, dataset.read)
        emb_V.append(emb_nD)
    return emb_V, status_n
