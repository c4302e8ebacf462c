"""make status [CACHE=…]

Every view of the cache: rows, bytes, since when, verified when, bad rows; of an extraction that
runs now the rate, the time left, and which step its time goes into. Reads descriptions only, no
embeddings (that is `make verify`).
"""

import json
import logging
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from base import locks
from base.console import counted, rate_text
from base.errors import CoviewError, UsageError
from cache_specs import integrity, store
from cache_specs.items import read_items
from cache_specs.sources import read_source
from cache_specs.spec import PIXELS, pixels_of
from cache_specs.versions import is_older, version_of
from cache_specs.view import STATUS, View, computed_in
from upkeep.config import StatusConfig

log = logging.getLogger(f"coview.{__name__}")
REMOVE = "make gc ARGS=--unfinished"


def command(config: StatusConfig, found: dict[str, Any]) -> None:
    """make status."""
    if config.json:
        found |= {"cache": config.cache, "datasets": dataset_records(Path(config.cache))}
    else:
        log.info(status_text(Path(config.cache)))


def dataset_records(cache: Path) -> list[dict[str, Any]]:
    """One record a data set: what it is, and one record for each of its views. Raises UsageError
    when there is no such cache."""
    if not cache.is_dir():
        raise UsageError(
            f"there is no cache {cache}; name it with CACHE=…, or fill it: make extract VIEW=clip "
            "DATA=photos/"
        )
    found = []
    for folder in sorted(path for path in cache.iterdir() if path.is_dir()):
        if (folder / "dataset.json").is_file() or store.view_folders(folder):
            found.append(_dataset_record(folder))
    return found


def _dataset_record(dataset: Path) -> dict[str, Any]:
    older = is_older(dataset)
    record: dict[str, Any] = {
        "dataset": dataset.name,
        "items": None,
        "source": None,
        "error": None,
        "version": max(version_of(dataset), 0),
        "older": older,
    }
    try:
        record |= {"items": len(read_items(dataset)), "source": read_source(dataset)}
    except CoviewError as error:
        record["error"] = str(error)
    views = [_view_record(folder, older) for folder in store.view_folders(dataset)]
    for folder in store.lost_folders(dataset):
        views.append({"folder": folder.name, "state": "lost", "next": "make verify"})
    return {**record, "views": views}


def _view_record(folder: Path, older: bool) -> dict[str, Any]:
    """state: finished, unfinished, running (an extraction writes to it now), damaged."""
    record: dict[str, Any] = {"folder": folder.name, "view": folder.name.rpartition("-")[0]}
    try:
        view = store.open_view(folder)
        record |= {
            "rows": view.n,
            "width": view.width,
            "bytes": view.shards * (view.embeddings_bytes + view.status_bytes),
            "shards": view.shards,
            "shards_done": view.shards - len(view.pending()),
            "precision": computed_in(view),
            "compute_dtype": view.attributes["spec"].get("compute_dtype", ""),
        }
        return record | _state(view, older)
    except CoviewError as error:
        return record | {"state": "damaged", "error": str(error)}


def _state(view: View, older: bool) -> dict[str, Any]:
    holder = locks.lock_holder(view.folder)
    if holder is not None:
        return {"state": "running", "process": holder, "progress": _running(view)}
    if not view.is_complete:
        go_on = REMOVE if older else store.command(view.folder, "extract")
        return {"state": "unfinished", "next": go_on}
    sealed_at = (view.folder / "complete.json").stat().st_mtime
    return {
        "state": "finished",
        "finished": time.strftime("%Y-%m-%d %H:%M", time.localtime(sealed_at)),
        "verified": integrity.verified_when(view),
        "bad": _bad_rows(view),
        "pixels": pixels_of(view.attributes["spec"]),
    }


def _bad_rows(view: View) -> dict[str, int]:
    """By status, how many rows of a finished view have no embedding."""
    counts: Counter[str] = Counter()
    for shard in integrity.read_seal(view)["shards"]:
        counts.update(shard["status"])
    counts.pop(STATUS[0], None)
    return dict(counts)


def _running(view: View) -> dict[str, Any] | None:
    """What the processes of a running extraction say of themselves, added up. seconds_left is that
    of the slowest; seconds: where its time goes."""
    parts: list[dict[str, Any]] = []
    for path in view.folder.glob("progress-*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # it is just ending
            part = json.loads(path.read_text())
            parts.append(
                {
                    "done": int(part["done"]),
                    "total": int(part["total"]),
                    "rate": float(part["rate"]),
                    "seconds": dict(part["seconds"]),
                }
            )
    if not parts:
        return None
    found: dict[str, Any] = {"done": 0, "total": 0, "rate": 0}
    seconds: Counter[str] = Counter()
    left = []
    for part in parts:
        for key in found:
            found[key] += part[key]
        seconds.update(part["seconds"])
        if part["rate"] > 0:
            left.append((part["total"] - part["done"]) / part["rate"])
    return {
        **found,
        "seconds": dict(seconds.most_common()),
        "seconds_left": max(left) if len(left) == len(parts) else None,
    }


def status_text(cache: Path) -> str:
    """A line a data set, and a line each of its views. Raises UsageError when there is no such
    cache."""
    found = dataset_records(cache)
    if not found:
        return f"{cache} is empty. Fill it: make extract VIEW=clip DATA=photos/"
    several = {_name(dataset) for dataset in found if dataset["older"]}
    lines = []
    for dataset in found:
        lines.append(_dataset_line(dataset, _name(dataset) in several))
        for view in dataset["views"]:
            lines.append(f"  {view['folder']:28} {_view_text(view)}")
        if all(view["state"] == "lost" for view in dataset["views"]):
            lines.append("  no view yet")
    return "\n".join(lines)


def _name(dataset: dict[str, Any]) -> str:
    return dataset["dataset"].rpartition("-")[0]


def _dataset_line(dataset: dict[str, Any], has_older: bool) -> str:
    folder, which = dataset["dataset"], ""
    if dataset["older"]:
        which = f", an older version, DATA={folder} names it"
    elif has_older:
        which = ", the current version"
    if dataset["error"]:
        return f"{folder}: {dataset['error']}{which}"
    source = dataset["source"] or "images that are elsewhere"
    return f"{folder}: {counted(dataset['items'], 'item')} of {source}{which}"


def _view_text(view: dict[str, Any]) -> str:
    if view["state"] == "lost":
        return "shards without a description: make verify"
    if view["state"] == "damaged":
        return f"NOT OK: {view['error']}"
    head = f"{view['rows']:,} x {view['width']}, {view['bytes'] / 1e6:,.1f} MB"
    if view["precision"] != view["compute_dtype"]:
        head += f", computed in {view['precision']}, not {view['compute_dtype']}"
    if view["state"] == "running":
        progress = _progress_text(view["progress"]) if view["progress"] else ""
        return f"{head}: being written by process {view['process']}{progress}"
    if view["state"] == "unfinished":
        how = "to go on: "
        if view["next"] == REMOVE:
            how = "of images as they are no more; to remove it: "
        done = f"{view['shards_done']} of {counted(view['shards'], 'shard')}"
        return f"{head}: unfinished, {done}; {how}{view['next']}"
    verified = f"verified {view['verified']}" if view["verified"] else "not verified since"
    return f"{head}: finished {view['finished']}, {verified}, {_bad_text(view)}"


def _bad_text(view: dict[str, Any]) -> str:
    bad = counted(sum(view["bad"].values()), "bad row")
    if view["bad"]:
        bad += f" ({', '.join(f'{count} {name}' for name, count in view['bad'].items())})"
    if 0 < view["pixels"] < PIXELS:
        bad += f", made with preprocess.pixels {view['pixels']} (now {PIXELS})"
    return bad


def _progress_text(found: dict[str, Any]) -> str:
    whole = max(sum(found["seconds"].values()), 1e-9)
    shares = [f"{step} {100 * used / whole:.0f} %" for step, used in found["seconds"].items()]
    left = "?" if found["seconds_left"] is None else f"{found['seconds_left'] / 3600:.2f} h"
    return (
        f"\n{'':31}{found['done']:,} of {found['total']:,} images, "
        f"{rate_text(found['rate'])} images/s, {left} left; "
        f"bottleneck: {next(iter(found['seconds']), '?')} ({', '.join(shares)})"
    )
