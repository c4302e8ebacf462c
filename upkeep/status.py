"""make status [CACHE=…]     (python -m upkeep.status)

Every view of the cache: rows, bytes, since when, verified when, bad rows; of an extraction that runs now the rate, the time left, and
which step its time goes into. Reads descriptions only, no embeddings (that is `make verify`).
"""

import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.console import rate_text
from base.errors import CoviewError, UsageError
from upkeep.config import StatusConfig

if TYPE_CHECKING:
    from cache_specs.view import View


_TO_GO_ON = {"make gc ARGS=--unfinished": "of images as they are no more; to remove it: "}


def records(cache: Path) -> list[dict[str, Any]]:
    """One record a data set: what it is, and one record for each of its views. Raises UsageError when there is no such cache."""
    from cache_specs.items import read_items
    from cache_specs.sources import read_source
    from cache_specs.store import lost_folders, view_folders
    from cache_specs.versions import is_older, version_of

    if not cache.is_dir():
        raise UsageError(
            f"there is no cache {cache}; name it with CACHE=…, or fill it: make extract VIEW=clip DATA=photos/"
        )
    found = []
    for dataset in sorted(
        path
        for path in cache.iterdir()
        if path.is_dir() and ((path / "dataset.json").is_file() or view_folders(path))
    ):
        record: dict[str, Any] = {
            "dataset": dataset.name,
            "items": None,
            "source": None,
            "error": None,
            "version": max(version_of(dataset), 0),
            "older": is_older(dataset),
        }
        try:
            record |= {"items": len(read_items(dataset)), "source": read_source(dataset)}
        except CoviewError as error:
            record["error"] = str(error)
        lost = [
            {"folder": folder.name, "state": "lost", "next": "make verify"}
            for folder in lost_folders(dataset)
        ]
        found.append(
            {
                **record,
                "views": [_view(folder, record["older"]) for folder in view_folders(dataset)]
                + lost,
            }
        )
    return found


def status(cache: Path) -> str:
    """The table as text. Raises UsageError when there is no such cache."""
    lines, found = [], records(cache)
    several = {dataset["dataset"].rpartition("-")[0] for dataset in found if dataset["older"]}
    for dataset in found:
        name = dataset["dataset"]
        which = (
            f", an older version, DATA={name} names it"
            if dataset["older"]
            else ", the current version"
            if name.rpartition("-")[0] in several
            else ""
        )
        lines.append(
            f"{name}: {dataset['error'] or '{:,} items of {}'.format(dataset['items'], dataset['source'])}{which}"
        )
        lines += [f"  {view['folder']:28} {_text(view)}" for view in dataset["views"]]
        lines += ["  no view yet"] * (
            not [view for view in dataset["views"] if view["state"] != "lost"]
        )
    return "\n".join(lines or [f"{cache} is empty. Fill it: make extract VIEW=clip DATA=photos/"])


def _view(folder: Path, older: bool) -> dict[str, Any]:
    """state: finished, unfinished, running (an extraction writes to it now), damaged."""
    from base import locks
    from cache_specs import integrity, store

    record: dict[str, Any] = {"folder": folder.name, "view": folder.name.rpartition("-")[0]}
    try:
        view = store.open_view(folder)
        done = view.shards - len(view.pending())
        record |= {
            "rows": view.n,
            "width": view.width,
            "bytes": view.shards * (view.embeddings_bytes + view.status_bytes),
            "shards": view.shards,
            "shards_done": done,
        }
        if (holder := locks.lock_holder(folder)) is not None:
            return record | {"state": "running", "process": holder, "progress": _running(view)}
        if not view.is_complete:
            return record | {
                "state": "unfinished",
                "next": "make gc ARGS=--unfinished" if older else store.command(folder, "extract"),
            }
        bad: Counter[str] = Counter()
        for commit in integrity.read_seal(view)["shards"]:
            bad.update(
                {name: count for name, count in commit["status"].items() if name != store.STATUS[0]}
            )
        return record | {
            "state": "finished",
            "finished": _when(folder / "complete.json"),
            "verified": integrity.verified_when(view),
            "bad": dict(bad),
        }
    except CoviewError as error:
        return record | {"state": "damaged", "error": str(error)}


def _text(view: dict[str, Any]) -> str:
    if view["state"] == "lost":
        return "shards without a description: make verify"
    if view["state"] == "damaged":
        return f"NOT OK: {view['error']}"
    head = f"{view['rows']:,} x {view['width']}, {view['bytes'] / 1e6:,.1f} MB"
    if view["state"] == "running":
        return f"{head}: being written by process {view['process']}{_progress(view['progress'])}"
    if view["state"] == "unfinished":
        return f"{head}: unfinished, {view['shards_done']} of {view['shards']} shards; {_TO_GO_ON.get(view['next'], 'to go on: ') + view['next']}"
    bad, when = view["bad"], view["verified"]
    return (
        f"{head}: finished {view['finished']}, {f'verified {when}' if when else 'not verified since'}, {sum(bad.values())} bad rows"
        + (f" ({', '.join(f'{count} {name}' for name, count in bad.items())})" if bad else "")
    )


def _running(view: "View") -> dict[str, Any] | None:
    """What the processes of a running extraction say of themselves, added up. seconds_left is that of the slowest; seconds: where its time goes."""
    parts = []
    for path in view.folder.glob("progress-*.json"):
        try:
            part = json.loads(path.read_text())
            parts.append(
                {
                    "done": int(part["done"]),
                    "total": int(part["total"]),
                    "rate": float(part["rate"]),
                    "seconds": dict(part["seconds"]),
                }
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is just ending
    if not parts:
        return None
    seconds: Counter[str] = Counter()
    for part in parts:
        seconds.update(part["seconds"])
    left = [
        (part["total"] - part["done"]) / part["rate"] if part["rate"] > 0 else None
        for part in parts
    ]
    return {
        **{key: sum(part[key] for part in parts) for key in ("done", "total", "rate")},
        "seconds": dict(seconds.most_common()),
        "seconds_left": None if None in left else max(left),
    }


def _progress(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    seconds, left = found["seconds"], found["seconds_left"]
    shares = ", ".join(
        f"{step} {100 * used / max(sum(seconds.values()), 1e-9):.0f} %"
        for step, used in seconds.items()
    )
    return (
        f"\n{'':31}{found['done']:,} of {found['total']:,} images, {rate_text(found['rate'])} images/s, "
        f"{'?' if left is None else f'{left / 3600:.2f} h'} left; bottleneck: {next(iter(seconds), '?')} ({shares})"
    )


def _when(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def command(config: StatusConfig, found: dict[str, Any]) -> None:
    """make status."""
    if config.json:
        found |= {"cache": config.cache, "datasets": records(Path(config.cache))}
    else:
        print(status(Path(config.cache)))
