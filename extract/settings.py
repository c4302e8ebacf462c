"""Do the settings of an extraction make sense? Asked before anything is imported or looked at."""

import re
import sys
from pathlib import Path

from base.errors import UsageError
from base.phrase import quoted
from cache_specs.lookup import spec_named
from cache_specs.spec import ViewSpec, view_names
from cache_specs.words import read_as_class
from extract.bad_images import allowed
from extract.config import ExtractConfig


def check(config: ExtractConfig, say: bool = True) -> ViewSpec:
    """The view's spec. say: see `spec_named`. Raises UsageError for a setting that is missing or
    makes no sense."""
    _refuse_missing(config.view, config.data)
    least = (("--batch", config.batch, 0), ("--gpus", config.gpus, 1))
    for flag, found, lowest in (*least, ("--shard-rows", config.shard_rows, 0)):
        if found < lowest:
            raise UsageError(f"{flag} must be at least {lowest}, found {found}")
    allowed(config.max_bad, sys.maxsize)
    read_as_class(config.as_class or "")
    if config.name is not None:
        _refuse_name(config.name)
    return spec_named(Path(config.cache), config.view, config.data, config.name or "", say)


def _refuse_missing(view: str, data: str) -> None:
    """Raise UsageError without VIEW or DATA, or with several views."""
    if not view or not data:
        what = "DATA" if view else "VIEW"
        example = f"VIEW={view or 'clip'} DATA={quoted(data or 'photos/')}"
        raise UsageError(
            f"{what} is missing. Type: make extract {example}   (views: {', '.join(view_names())})"
        )
    if "," in view:
        lines = [f"VIEW={view}: make extract takes one view at a time. Type one after the other:"]
        for one in filter(None, map(str.strip, view.split(","))):
            lines.append(f"  make extract VIEW={quoted(one)} DATA={quoted(data)}")
        raise UsageError("\n".join(lines))


def _refuse_name(name: str) -> None:
    """Raise UsageError for what cannot be the name of a data set's folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(
            f"--name {name!r}: a data set's name is made of letters, digits, '-', '_' and '.', "
            "and begins with a letter or digit"
        )
    if re.search(r"-[0-9a-f]{8}$", name):
        raise UsageError(
            f"--name {name!r} looks like the folder of a version of {name[:-9]!r} (eight "
            "hexadecimal digits at the end): choose another name"
        )
