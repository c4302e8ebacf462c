"""Do the settings of an extraction make sense? Asked before anything is imported or looked at."""

import contextlib
import re
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

from base.errors import UNKNOWN, CoviewError, UsageError
from base.phrase import quoted
from cache_specs.lookup import spec_named
from cache_specs.spec import ViewSpec, view_names
from cache_specs.words import read_as_class
from extract.bad_images import allowed
from extract.class_names import refuse_without_towers
from extract.config import ExtractConfig


def check(config: ExtractConfig, say: bool = True) -> list[ViewSpec]:
    """The specs of the views. say: see `spec_named`. Raises UsageError for a setting that is
    missing or makes no sense."""
    names = names_of(config)
    least = (("--batch", config.batch, 0), ("--gpus", config.gpus, 1))
    for flag, found, lowest in (*least, ("--shard-rows", config.shard_rows, 0)):
        if found < lowest:
            raise UsageError(f"{flag} must be at least {lowest}, found {found}")
    allowed(config.max_bad, sys.maxsize)
    read_as_class(config.as_class or "")
    if config.name is not None:
        _refuse_name(config.name)
    specs, name = [], config.name or ""
    for view in names:
        with one_of(names, view):
            spec = spec_named(Path(config.cache), view, config.data, name, say)
        if spec.name in {one.name for one in specs}:
            raise _twice(names, view, spec, specs)
        specs.append(spec)
    if config.classes:
        refuse_without_towers(specs)
    return specs


@contextlib.contextmanager
def one_of(names: Sequence[str], view: str) -> Generator[None]:
    """An error that would have another VIEW means this one of several."""
    try:
        yield
    except CoviewError as error:
        meant = error.instead.get("VIEW")
        if meant and len(names) > 1:
            all_of_them = [meant if name == view else name for name in names]
            error.instead |= {"VIEW": None, "VIEWS": ",".join(all_of_them)}
        raise


def names_of(config: ExtractConfig) -> list[str]:
    """The views that VIEW or VIEWS names, one or several each. Raises UsageError without any, or
    without DATA."""
    view, data = config.view or config.views, config.data
    names = [*filter(None, map(str.strip, view.split(",")))]
    if not names or not data:
        what = "DATA" if names else "VIEW"
        named = f"VIEWS={quoted(view)}" if len(names) > 1 else f"VIEW={quoted(view or 'clip')}"
        raise UsageError(
            f"{what} is missing. Type: make extract {named} DATA={quoted(data or 'photos/')}   "
            f"(views: {', '.join(view_names())})"
        )
    if config.view and config.views:
        raise UsageError(
            f"VIEW={view} and VIEWS={config.views}: name all of them in VIEWS",
            {"VIEW": None, "VIEWS": _each_once(f"{view},{config.views}")},
        )
    return names


def _each_once(views: str) -> str:
    return ",".join(dict.fromkeys(filter(None, map(str.strip, views.split(",")))))


def _twice(names: list[str], view: str, spec: ViewSpec, before: list[ViewSpec]) -> UsageError:
    """Of a view that has a name which one before it has too: mine,mine or mine,mine.toml, which are
    the same one, or two files with one name in them."""
    told, word = f"the view {spec.name!r} was named twice; name it once", "VIEWS"
    if spec not in before:
        return UsageError(told, {word: UNKNOWN})
    others = [name for name in dict.fromkeys(names) if name != view or names.count(view) > 1]
    return UsageError(told, {"VIEW": None, word: ",".join(others)})


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
