"""make verify [VIEW=clip] [DATA=photos/] [ARGS='--recompute 4']

Reads every byte of the views (without VIEW, of all): descriptions, item list, sizes, digests,
counts, and that each row is what its status says. `--recompute K` also embeds K random rows of each
shard again, from the images, and compares. Prints a line a view; exits with 5 and the list of what
is wrong, and the command that mends it.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from base.commands import typed
from base.console import counted
from base.errors import CoviewError, IntegrityError
from cache_specs import integrity, mend, store
from cache_specs.integrity import Problem
from cache_specs.items import read_items
from cache_specs.lookup import find_views
from cache_specs.view import View
from extract.originals import find_originals
from upkeep.config import VerifyConfig

log = logging.getLogger(f"coview.{__name__}")


def command(config: VerifyConfig, found: dict[str, Any]) -> None:
    """make verify."""
    found["views"] = []
    verify(config, found["views"])


def verify(config: VerifyConfig, records: list[dict[str, Any]] | None = None) -> None:
    """Print a line for every view; fill `records`. Raises CoviewError (IntegrityError where
    anything is damaged) after the last one."""
    records = [] if records is None else records
    failures: list[tuple[Path, CoviewError]] = []
    folders = find_views(Path(config.cache), config.view, config.data)
    for folder in folders:
        failure = _verify_one(folder, config, records)
        if failure:
            failures.append((folder, failure))
    for dataset in sorted({folder.parent for folder in folders}):
        for folder in store.lost_folders(dataset):
            log.info(f"{folder}: NOT OK")
            lost = IntegrityError(
                f"{folder} holds shards, but its zarr.json, commits and seal are gone: put them "
                "back, or remove the folder"
            )
            failures.append((folder, lost))
    if failures:
        raise _all_of(failures, len(folders))


def _verify_one(
    folder: Path, config: VerifyConfig, records: list[dict[str, Any]]
) -> CoviewError | None:
    """A line, a record, and what is wrong."""
    stored = ""
    try:
        stored = _check_stored(folder)
        stored += _check_computed(folder, config)
    except CoviewError as error:
        harmed = not stored or isinstance(error, IntegrityError)
        log.info(f"{folder}: {'NOT OK' if harmed else f'{stored}, but NOT computed again'}")
        records.append({"folder": str(folder), "ok": False, "text": stored, "error": str(error)})
        return error
    log.info(f"{folder}: {stored}")
    records.append({"folder": str(folder), "ok": True, "text": stored, "error": None})
    return None


def _all_of(failures: Sequence[tuple[Path, CoviewError]], views: int) -> CoviewError:
    """One error; with the exit code of damage where any is damage. What one asks for is done in the
    command; of several each has its own."""
    lines, change = list[str](), failures[0][1].instead if len(failures) == 1 else None
    for folder, error in failures:
        lines.append(str(error))
        if error.instead and len(failures) > 1:
            lines.append(f"Type: {typed(instead={'VIEW': folder.name, **error.instead})}")
    lines.append(f"{len(failures)} failed, of {counted(views, 'view')}")
    failed = CoviewError("\n".join(lines), change)
    codes = {error.exit_code for _, error in failures}
    failed.exit_code = max(codes)
    if IntegrityError.exit_code in codes:
        failed.exit_code = IntegrityError.exit_code
    return failed


def _check_stored(folder: Path) -> str:
    """What was read, in words. Raises CoviewError."""
    items = read_items(folder.parent)
    view = store.open_view(folder)
    store.refuse_other_images(view, items.fingerprint, len(items))
    begun = time.monotonic()
    found = list(mend.problems(view))
    seconds = time.monotonic() - begun
    if found:
        with suppress(OSError):
            (folder / "verified.json").unlink()  # whoever opens it next reads it all
        raise IntegrityError(
            f"{folder} is damaged:\n{_lines(view, found)}\nOnly that is computed again.\n"
            f"Type: {store.command(folder)}"
        )
    done = view.shards - len(view.pending())
    size = done * (view.embeddings_bytes + view.status_bytes)
    speed = f"{size / 1e6:,.1f} MB read in {seconds:.1f} s ({size / 1e9 / seconds:.2f} GB/s)"
    read = f"{view.n:,} rows x {view.width}, {done} of {counted(view.shards, 'shard')}, {speed}"
    if not view.is_complete:
        missing = "only its seal is missing" if done == view.shards else "undamaged"
        return f"unfinished, {missing}: {read}; to go on: {store.command(folder, 'extract')}"
    status = integrity.check(view, verified=time.strftime("%Y-%m-%d %H:%M"))
    return f"ok: {read}, {counted(int((status > 0).sum()), 'bad row')}"


def _lines(view: View, found: Sequence[Problem]) -> str:
    lines = []
    for problem in found:
        where = str(problem.file.relative_to(view.folder))
        if problem.shard is not None:
            first, last = view.bounds(problem.shard)
            where += f" (shard {problem.shard}, rows {first} to {last - 1})"
        lines.append(f"  {where}: {problem.what}")
    return "\n".join(lines)


def _check_computed(folder: Path, config: VerifyConfig) -> str:
    """What `--recompute` adds to the words. Raises CoviewError."""
    view = store.open_view(folder)
    if not config.recompute or len(view.pending()) == view.shards:
        return ""
    if view.attributes["spec"]["backend"] == store.IMPORTED:
        return ", imported, so there is nothing to compute it from"
    from upkeep.recompute import compare_rows  # noqa: PLC0415  torch, only where it is asked for

    originals = find_originals(view, config.view, config.weights, Path(config.root), True)
    return f", {compare_rows(view, originals, config.recompute, config.seed, config.device)}"
