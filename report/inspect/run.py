"""make inspect from end to end: the cache that is looked at, the findings, the page."""

import logging
import os
from pathlib import Path
from typing import Any

from base import durable
from base.errors import UsageError
from base.phrase import line_of, quoted
from cache_specs.lookup import find_dataset
from report.config import InspectConfig
from report.html.page import page_file
from report.inspect.findings import look
from report.inspect.page import page_of
from train.data.reader import open_cache
from train.data.scarce import rarer_text
from train.data.splits import make_split

log = logging.getLogger(f"coview.{__name__}")


def run(config: InspectConfig) -> dict[str, Any]:
    """Write the page; the findings, with its path. Raises CoviewError."""
    views = [name.strip() for name in config.views.split(",") if name.strip()]
    _refuse_missing(views, config.data)
    example = line_of("inspect", {"VIEWS": config.views, "DATA": config.data, "TO": "inspect.html"})
    to = page_file(config.to, example) if config.to else None
    data = os.path.expanduser(config.data)
    cache = open_cache(Path(config.cache), data, views)
    to = to or page_file(str(Path(config.runs) / f"inspect-{cache.items.name}.html"), example)
    split = make_split(cache.items, cache.ok, config.labels, config.seed)
    fewer = rarer_text(config.labels, cache.items, split)
    if fewer:
        log.warning(fewer)
    found = look(cache, split)
    found["next"] = _training(config, views)
    text = page_of(found, cache, find_dataset(Path(config.cache), data), Path(config.root))
    durable.make_folder(to.parent.absolute())
    durable.write(to, text.encode(), "inspect")
    return {**found, "page": str(to)}


def _refuse_missing(views: list[str], data: str) -> None:
    if not views or not data:
        raise UsageError(
            f"{'DATA' if views else 'VIEWS'} is missing. Type: make inspect "
            f"VIEWS={quoted(','.join(views) or 'clip,dinov2')} DATA={quoted(data or 'photos/')}"
        )


def _training(config: InspectConfig, views: list[str]) -> str:
    """The command that trains on these views."""
    words = {"VIEWS": ",".join(views), "DATA": config.data}
    if config.labels != "all":
        words["LABELS"] = config.labels
    if config.cache != "cache":
        words["CACHE"] = config.cache
    return line_of("train", words)
