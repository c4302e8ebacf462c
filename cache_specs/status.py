"""make status [CACHE=…]     (python -m cache_specs.status)

Every view of the cache: rows, bytes, since when, verified when, bad rows; of an extraction that runs now the rate, the time left, and
which step its time goes into. Reads descriptions only, no embeddings (that is `make verify`).
"""

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache_specs.errors import CoviewError, UsageError, run_cli

if TYPE_CHECKING:
    from cache_specs.view import View


@dataclass(frozen=True)
class StatusConfig:
    """Show every view of the cache, and how far running extractions are."""

    cache: str = "cache"
    """where the embeddings are"""


def status(cache: Path) -> str:
    """The table as text. Raises UsageError when there is no such cache."""
    from cache_specs.items import read_items
    from cache_specs.sources import read_source
    from cache_specs.store import lost_folders, view_folders

    if not cache.is_dir():
        raise UsageError(f"there is no cache {cache}; name it with CACHE=…, or fill it: make extract VIEW=clip DATA=photos/")
    lines = []
    for dataset in sorted(path for path in cache.iterdir() if path.is_dir() and ((path / "dataset.json").is_file() or view_folders(path))):
        try:
            lines.append(f"{dataset.name}: {len(read_items(dataset)):,} items of {read_source(dataset)}")
        except CoviewError as error:
            lines.append(f"{dataset.name}: {error}")
        lines += [f"  {folder.name:28} {_view(folder)}" for folder in view_folders(dataset)] or ["  no view yet"]
        lines += [f"  {folder.name:28} shards without a description: make verify" for folder in lost_folders(dataset)]
    return "\n".join(lines or [f"{cache} is empty. Fill it: make extract VIEW=clip DATA=photos/"])


def _view(folder: Path) -> str:
    from cache_specs import integrity, locks, store

    try:
        view = store.open_view(folder)
        size = view.shards * (view.embeddings_bytes + view.status_bytes)
        head = f"{view.n:,} x {view.width}, {size / 1e6:,.1f} MB"
        if (holder := locks.lock_holder(folder)) is not None:
            return f"{head}: being written by process {holder}{_running(view)}"
        if not view.is_complete:
            return f"{head}: unfinished, {view.shards - len(view.pending())} of {view.shards} shards; to go on: {store.command(folder, 'extract')}"
        bad: Counter[str] = Counter()
        for record in integrity.read_seal(view)["shards"]:
            bad.update({name: count for name, count in record["status"].items() if name != store.STATUS[0]})
        when = integrity.verified_when(view)
        return (f"{head}: finished {_when(folder / 'complete.json')}, {f'verified {when}' if when else 'not verified since'}, {bad.total()} bad rows"
                + (f" ({', '.join(f'{count} {name}' for name, count in bad.items())})" if bad else ""))
    except CoviewError as error:
        return f"NOT OK: {error}"


def _running(view: "View") -> str:
    """What the processes of a running extraction say of themselves, added up."""
    parts = []
    for path in view.folder.glob("progress-*.json"):
        try:
            part = json.loads(path.read_text())
            parts.append({"done": int(part["done"]), "total": int(part["total"]), "rate": float(part["rate"]), "seconds": dict(part["seconds"])})
        except (OSError, ValueError, KeyError, TypeError):
            continue                                        # it is just ending
    if not parts:
        return ""
    done, total, rate = (sum(part[key] for part in parts) for key in ("done", "total", "rate"))
    seconds = Counter()
    for part in parts:
        seconds.update(part["seconds"])
    left = max((part["total"] - part["done"]) / part["rate"] if part["rate"] > 0 else float("inf") for part in parts)
    shares = ", ".join(f"{step} {100 * used / max(seconds.total(), 1e-9):.0f} %" for step, used in seconds.most_common())
    bottleneck, ahead = seconds.most_common(1)[0][0] if seconds else "?", f"{left / 3600:.2f} h" if left < float("inf") else "?"
    return f"\n{'':31}{done:,} of {total:,} images, {rate:,.0f} images/s, {ahead} left; bottleneck: {bottleneck} ({shares})"


def _when(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def main() -> None:
    import tyro

    print(status(Path(tyro.cli(StatusConfig, prog="python -m cache_specs.status", description=StatusConfig.__doc__).cache)))


if __name__ == "__main__":
    sys.exit(run_cli(main))
