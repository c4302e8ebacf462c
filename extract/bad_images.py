"""How many images may be bad (--max-bad), and the list of those that are."""

import logging
import math
from collections.abc import Callable

import numpy as np

from base.console import counted
from base.errors import DataQualityError, UsageError
from base.phrase import shown
from cache_specs.integrity import read_commit
from cache_specs.items import Items
from cache_specs.view import STATUS, View, status_counts
from extract.data.readers import Reader

log = logging.getLogger(f"coview.{__name__}")
SHOWN = 20
EXPLAINED = (STATUS.index("undecodable"), STATUS.index("too large"))
Why = Callable[[int], str]  # why a row's image could not be read; '' where that is not known


def unknown(row: int) -> str:
    return ""


def allowed(text: str, n: int) -> int:
    """`0.1%` of n images, but never less than 1; `5` (and `0%`) is just that number. Raises
    UsageError."""
    share, percent = math.nan, text.endswith("%")
    try:
        share = float(text.removesuffix("%"))
    except ValueError:
        pass
    known = 0 <= share <= (100 if percent else n)
    if not known or not (percent or share == int(share)):
        raise UsageError(
            f"--max-bad {text}: neither a share (--max-bad 0.1%) nor a number of images up to {n} "
            "(--max-bad 5)"
        )
    if not percent:
        return int(share)
    least = 1 if share else 0
    return max(least, int(n * share / 100))


def enforce(view: View, items: Items, max_bad: str, why: Why = unknown) -> None:
    """Raise DataQualityError, with the list, when the committed shards hold more bad rows than are
    allowed."""
    status = np.zeros(view.n, np.uint8)
    for shard in range(view.shards):
        if not view.commit_file(shard).is_file():
            continue
        if set(read_commit(view, shard)["status"]) != {STATUS[0]}:
            first, last = view.bounds(shard)
            status[first:last] = np.fromfile(view.status_file(shard), np.uint8, last - first)
    refuse(status, items, max_bad, why)
    if (status > 0).all():
        report(status, items, view, why)  # raises: a view without one good row is never sealed


def refuse(status: np.ndarray, items: Items, max_bad: str, why: Why = unknown) -> None:
    """Raise DataQualityError when `status`, (N,), names more bad images than are allowed."""
    bad, most = int((status > 0).sum()), allowed(max_bad, len(items))
    if bad <= most:
        return
    told = f"({counts(status)})"
    mend = "Mend the files (a changed file makes another data set)"
    if bad == len(items):
        raise DataQualityError(
            f"not one of the {bad:,} images could be embedded {told}:\n"
            f"{listed(status, items, why)}\n"
            f"{mend}"
        )
    raise DataQualityError(
        f"{counted(bad, 'image')} so far could not be embedded {told}; of {len(items):,} images "
        f"--max-bad {max_bad} allows {most}:\n{listed(status, items, why)}\n"
        f"{mend}, or allow them: ARGS='--max-bad {bad}'. "
        "What is committed is kept, and the same command goes on from there",
        instead={"--max-bad": str(bad)},
    )


def refuse_unreadable(items: Items, read: Reader, max_bad: str) -> None:
    """`refuse` before anything is embedded: images that could not even be hashed. One too large is
    found again by the run, under its own name."""
    if not any(items.sha256):
        hint = "Mend the files, or name others"
        if items.adapter == "table":
            hint = "The paths of a table are relative to its folder, or absolute; mend them"
        try:
            read(0)
        except OSError as error:
            raise DataQualityError(
                f"not one of the {counted(len(items), 'image')} of {items.name!r} can be read; the "
                f"first, {items.keys[0]!r}: {error}. {hint}"
            ) from error
    refuse(np.where(np.array(items.sha256) == "", STATUS.index("missing"), 0), items, max_bad)


def report(status: np.ndarray, items: Items, view: View, why: Why = unknown) -> None:
    """Say which images are left out. Raises DataQualityError when not one is left."""
    bad = int((status > 0).sum())
    if bad:
        log.info(
            f"{view.name}: {bad} of {view.n:,} images could not be embedded ({counts(status)}); "
            f"they are left out of training:\n{listed(status, items, why)}"
        )
    if bad > SHOWN:
        log.info(f"  all of them: the array `status` of {view.folder}")
    if bad == view.n:
        raise DataQualityError(
            f"not one of the {view.n:,} images could be embedded; are they images? Mend them, "
            f"delete {view.folder} and try again"
        )


def counts(status: np.ndarray) -> str:
    """`3 missing, 1 truncated`."""
    kinds = status_counts(status[status > 0])
    return ", ".join(f"{number:,} {name}" for name, number in kinds.items())


def listed(status: np.ndarray, items: Items, why: Why = unknown) -> str:
    """The first bad images, a line each."""
    bad, lines = np.flatnonzero(status), []
    for row in bad[:SHOWN]:
        key = shown(items.keys[row])
        told = why(int(row)) if status[row] in EXPLAINED else ""
        reason = f" ({told})" if told else ""
        lines.append(f"  row {row}: {key}: {STATUS[status[row]]}{reason}")
    if len(bad) > SHOWN:
        lines.append(f"  … and {len(bad) - SHOWN:,} more")
    return "\n".join(lines)
