"""The images to label: by a finished run, or, where there is none yet, by the embeddings alone."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.errors import UsageError
from base.phrase import quoted
from cache_specs.lookup import find_dataset
from predict.from_run import of_run
from report.asked import Next, ask, first_to_label, known_rows, to_label, unseen
from report.config import SuggestConfig
from report.run import shown_method
from report.suggest.table import listed, require_model
from train.data.reader import Cache, open_cache
from train.run.rundir import finished, run_folder
from train.run.summary import read_summary


@dataclass(frozen=True, eq=False)
class Suggestion:
    """head: what chose, in a line; images: what --json says of each; run and method: None where
    there is no run."""

    head: str
    chosen: Next
    images: list[dict[str, Any]]
    cache: Cache
    views: str
    run: str | None = None
    method: str | None = None


def without_run(config: SuggestConfig) -> Suggestion:
    """The first images to label. Raises CoviewError where the views are not to be used, or no image
    is without a label."""
    views = _listed(config.views)
    cache = open_cache(Path(config.cache), os.path.expanduser(config.data), views)
    cache.warn_of_drift()  # whoever moved the first ones is not to be told the same again
    chosen = first_to_label(cache, config.n)
    if not len(chosen.rows):
        raise UsageError(
            f"every image of {cache.items.name} that could be embedded has a label, or is of a "
            "validation or test split. Train on them: make train "
            f"VIEWS={quoted(','.join(views))} DATA={quoted(config.data)}"
        )
    images = [{"key": cache.items.keys[row]} for row in chosen.rows]
    head = f"{cache.items.name}, {', '.join(cache.names)}"
    return Suggestion(head, chosen, images, cache, ",".join(views))


def by_run(config: SuggestConfig, device: str) -> Suggestion:
    """The next images to label. Raises CoviewError where the run cannot be asked, or no image is
    left."""
    run = run_folder(config.runs, config.run)
    settings, summary = finished(run)["settings"], read_summary(run)
    require_model(run, settings, summary)
    method = shown_method(summary)
    model, cache, splits = of_run(run, method, device, Path(config.cache))
    _refuse_others(config, cache, settings["views"])
    asked = ask(model, cache, unseen(splits))
    chosen = to_label(asked, cache, known_rows(splits), config.n)
    if not len(chosen.rows):
        raise UsageError(
            f"every image of {cache.items.name} has a label, and the run saw those of all training "
            "images: nothing is left to be labelled. Add images without a label to them, and type "
            f"make extract VIEW=… DATA={quoted(cache.source or settings['data'])}"
        )
    head = f"run {run}: {method} on {', '.join(cache.names)}"
    images = listed(chosen, asked, cache)
    return Suggestion(head, chosen, images, cache, settings["views"], str(run), method)


def _refuse_others(config: SuggestConfig, cache: Cache, views: str) -> None:
    """A run knows its views and its data set: others are not asked."""
    if config.views and _listed(config.views) != _listed(views):
        raise UsageError(
            f"VIEWS={config.views}: RUN={config.run} was trained on {views}; leave VIEWS out, or "
            "leave RUN out for the first images to label",
            {"VIEWS": None},
        )
    if not config.data:
        return
    data = os.path.expanduser(config.data)
    folder = find_dataset(Path(config.cache), data, _listed(views))
    if folder.name != cache.items.folder_name:
        raise UsageError(
            f"DATA={config.data} is {folder.name}, and RUN={config.run} was trained on "
            f"{cache.items.folder_name}. Train on it first, or leave DATA out",
            {"DATA": None},
        )


def _listed(views: str) -> list[str]:
    return [name.strip() for name in views.split(",") if name.strip()]
