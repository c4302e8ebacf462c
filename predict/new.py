"""New images, embedded here, and what the model says of them."""

import functools
import logging

from base.console import counted
from base.errors import DataQualityError
from base.progress import Progress
from extract import bad_images
from extract.data.datasets import Dataset, build_items
from extract.images import why_not
from predict.images import backbones, embed_images
from predict.label import Labelled
from predict.model import Model

log = logging.getLogger(f"coview.{__name__}")


def new_images(
    model: Model, dataset: Dataset, weights: str | None, device: str, workers: int, images: str
) -> Labelled:
    """Those of `dataset`, embedded here. images: how the user named them, for messages."""
    found = backbones(model.views, weights)
    with Progress(f"hashing {dataset.name}", len(dataset.keys)) as progress:
        items = build_items(dataset, progress.advance)
    emb_V, status_n = embed_images(model.views, found, dataset, items, device, workers)
    good = status_n == 0
    if not good.all():
        bad, prep = int((~good).sum()), found[0][0].preprocess
        why = functools.partial(why_not, dataset.read, prep)
        log.info(
            f"{bad:,} of {counted(len(items), 'image')} could not be read "
            f"({bad_images.counts(status_n)}); they get no label:\n"
            f"{bad_images.listed(status_n, items, why)}"
        )
    if not good.any():
        raise DataQualityError(
            f"not one of the {len(items):,} images in {images} could be embedded; are they images? "
            "Nothing is written"
        )
    good_V = [emb_nD[good] for emb_nD in emb_V]
    said, familiar_n = model(good_V), model.familiar(good_V)
    return Labelled(list(items.keys), status_n, said, familiar_n, None, list(items.sha256))
