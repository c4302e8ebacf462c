"""How many images may be bad (--max-bad), and the list of those that are."""

import numpy as np

from base.console import counted
from base.errors import DataQualityError, UsageError
from cache_specs.integrity import read_commit
from cache_specs.items import Items
from cache_specs.view import STATUS, View
from extract.data.readers import Reader

SHOWN = 20


def allowed(text: str, n: int) -> int:
    """`0.1%` of n images, but never less than 1; `5` (and `0%`) is just that number. Raises UsageError."""
    try:
        share = float(text.removesuffix("%"))
        if not 0 <= share <= (100 if text.endswith("%") else n) or (
            not text.endswith("%") and share != int(share)
        ):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"--max-bad {text}: neither a share (--max-bad 0.1%) nor a number of images up to {n} (--max-bad 5)"
        ) from None
    return max(int(share > 0), int(n * share / 100)) if text.endswith("%") else int(share)


def enforce(view: View, items: Items, max_bad: str) -> None:
    """Raise DataQualityError, with the list, when the committed shards hold more bad rows than are allowed."""
    status = np.zeros(view.n, np.uint8)
    for shard in range(view.shards):
        if view.commit_file(shard).is_file() and set(read_commit(view, shard)["status"]) != {
            STATUS[0]
        }:
            first, last = view.bounds(shard)
            status[first:last] = np.fromfile(view.status_file(shard), np.uint8, last - first)
    refuse(status, items, max_bad)
    if (status > 0).all():
        report(status, items, view)  # raises: a view without one good row is never sealed


def refuse(status: np.ndarray, items: Items, max_bad: str) -> None:
    """Raise DataQualityError when `status`, (N,), names more bad images than are allowed."""
    bad, most = int((status > 0).sum()), allowed(max_bad, len(items))
    if bad > most:
        mend = "Mend the files (a changed file makes another data set)"
        if bad == len(items):
            raise DataQualityError(
                f"not one of the {bad:,} images could be embedded ({counts(status)}):\n{listed(status, items)}\n{mend}"
            )
        raise DataQualityError(
            f"{bad} images so far could not be embedded ({counts(status)}); of {len(items):,} images --max-bad {max_bad} allows {most}:\n"
            f"{listed(status, items)}\n{mend}, or allow them: ARGS='--max-bad {bad}'. "
            "What is committed is kept, and the same command goes on from there",
            instead={"--max-bad": str(bad)},
        )


def refuse_unreadable(items: Items, read: Reader, max_bad: str) -> None:
    """`refuse` before anything is embedded: images that could not even be hashed. One too large is found again by the run, under its own name."""
    if not any(items.sha256):
        try:
            read(0)
        except OSError as error:
            hint = (
                "The paths of a table are relative to its folder; mend them"
                if items.adapter == "table"
                else "Mend the files, or name others"
            )
            raise DataQualityError(
                f"not one of the {counted(len(items), 'image')} of {items.name!r} can be read; the first, {items.keys[0]!r}: {error}. "
                f"{hint}"
            ) from error
    refuse(np.where(np.array(items.sha256) == "", STATUS.index("missing"), 0), items, max_bad)


def report(status: np.ndarray, items: Items, view: View) -> None:
    """Print the images that are left out. Raises DataQualityError when not one is left."""
    bad = int((status > 0).sum())
    if bad:
        print(
            f"{view.name}: {bad} of {view.n:,} images could not be embedded ({counts(status)}); they are left out of training:\n{listed(status, items)}"
        )
        if bad > SHOWN:
            print(f"  all of them: the array `status` of {view.folder}")
    if bad == view.n:
        raise DataQualityError(
            f"not one of the {view.n:,} images could be embedded; are they images? Mend them, delete {view.folder} and try again"
        )


def counts(status: np.ndarray) -> str:
    return ", ".join(
        f"{int((status == code).sum())} {STATUS[code]}" for code in np.unique(status[status > 0])
    )


def listed(status: np.ndarray, items: Items) -> str:
    bad = np.flatnonzero(status)
    lines = [
        f"  row {row}: {_shown(items.keys[row])}: {STATUS[status[row]]}" for row in bad[:SHOWN]
    ]
    return "\n".join(lines + ([f"  … and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []))


def _shown(key: str) -> str:
    return key if key.isprintable() else repr(key)
