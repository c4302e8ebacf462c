"""How the next state of a data set's images is written beside the last one: what follows what, what
is refused, and what is said of it.

Other images under a known name become a new version, in a folder of its own; new labels or splits
of the same images replace the old ones, which are kept. See versions.py for which of the versions
is the current one.

A list is two files, and dataset.json, written last, holds the sha256 of items.parquet: killed
between the two, a relabelling leaves a list that cannot be read, and says so; the same command
writes both again.
"""

import dataclasses
import logging
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from base import durable, locks
from base.commands import typed
from base.errors import IntegrityError, StaleError
from base.phrase import quoted
from cache_specs.items import Items, parquet, read_items, record_of, said
from cache_specs.sources import dataset_name, is_gone, read_source, where
from cache_specs.versions import IMPORTED, dataset_folders, every_dataset, latest, version_of

log = logging.getLogger(f"coview.{__name__}")


def write_items(
    cache: Path,
    items: Items,
    source: str = "",
    changed: bool = False,
    seen: dict[str, int] | None = None,
) -> Path:
    """Write the item list under `cache` and return the dataset's folder. Byte-identical input gives
    byte-identical files.

    Other images under the same name become the current version, in a folder of its own, if all that
    was embedded is still there or they were `changed` on purpose; otherwise they are refused
    (StaleError): see `succession`. New labels or splits for the same images replace the old ones.
    `source` is what DATA named (see `source_path`): recorded, no part of the fingerprint.
    `seen`: see `refuse_overtaken`.
    Where the same images are known from a folder that is gone, that folder was renamed: its
    embeddings are kept, under their old name.
    """
    durable.make_folder(cache)
    table = parquet(items)  # beforehand: others wait for the lock
    # two extractions of one new data set, or of two states of one, may be started at once
    with locks.lock(cache, wait=True):
        if source:  # else nobody here knows where the images are
            items = _moved(cache, items, source)
        folder = cache / items.folder_name
        if seen is not None:  # before the images were read
            refuse_overtaken(cache, items, seen)
        number, before, lines = next_version(cache, items, source, changed)
        was, source = read_source(before), _first_source(folder, items) or source
        durable.make_folder(folder)
        for name in ("items.parquet", "dataset.json"):  # of a run that was killed at it
            (folder / f".{name}.tmp").unlink(missing_ok=True)
        same_table = _is_file(folder / "items.parquet", table)
        if not same_table:
            _relabel(folder, items, source)  # a run that was trained on the old labels stays usable
        record = record_of(items, source, number, table)
        if not same_table or not _is_file(folder / "dataset.json", record):
            durable.write(folder / "items.parquet", table, "items")
            durable.write(folder / "dataset.json", record, "dataset")
        if source:
            follow(cache, folder, items, was, source)
    for line in lines:
        log.info(
            f"{line}. {folder.name} is the current version now, {before.name} stays for what was "
            "trained on it"
        )
    return folder


def folder_of(cache: Path, items: Items, source: str, changed: bool = True) -> Path:
    """The folder that `write_items` is about to write into. Raises StaleError where it would refuse
    what has not `changed` on purpose."""
    items = _moved(cache, items, source)
    if not changed:
        next_version(cache, items, source)
    return cache / items.folder_name


def would_relabel(folder: Path, items: Items) -> bool:
    """Whether `items` give images of the data set in `folder` other labels or splits."""
    try:
        return said(read_items(folder)) != said(items)
    except IntegrityError:  # lost or not there yet
        return False


def next_version(
    cache: Path, items: Items, source: str, changed: bool = False
) -> tuple[int, Path, list[str]]:
    """The version number that `items` get, the folder of the version before (or their own), and
    what changes. Raises StaleError where they are refused."""
    folder = cache / items.folder_name
    number = version_of(folder)
    top, others = latest(cache, items.name, but=folder)
    if not others or number > top:
        return max(number, 0), folder, []
    lines = [_succession(other, items, source, changed) for other in others]
    return top + 1, others[-1], lines


def _succession(other: Path, items: Items, source: str, changed: bool) -> str:
    try:
        old = read_items(other)
    except IntegrityError as error:
        if changed:
            return (
                f"{items.name}: the images have changed; the item list in {other} is damaged, so "
                "nothing says how"
            )
        raise IntegrityError(
            f"{error}\nIf the images were changed on purpose, make a new version of them, which "
            f"leaves that list as it is:\n  {_on_purpose(source)}"
        ) from error
    return succession(old, items, other, source, changed)


def _first_source(folder: Path, items: Items) -> str:
    """The file that made an imported data set stays its source when another file with the same rows
    and labels adds a view; otherwise ''."""
    if items.adapter != IMPORTED:
        return ""
    try:
        old = read_items(folder)
    except IntegrityError:
        return ""
    same_labels = old.labels_fingerprint == items.labels_fingerprint
    if old.adapter == IMPORTED and old.fingerprint == items.fingerprint and same_labels:
        return read_source(folder)
    return ""


def _moved(cache: Path, items: Items, source: str) -> Items:
    """The items under the name that their embeddings have: that of a folder that is gone, or under
    which this very folder was taken over."""
    if dataset_folders(cache, items.name):
        return items
    names = set()  # under which this very folder was taken over
    for folder in every_dataset(cache):
        try:
            record = durable.read_sealed(folder / "dataset.json")
            if not _has_a_place(record, items):
                continue
            if _takes_over(record, items, source):
                names.add(record["name"])
            same = record["fingerprint"] == items.fingerprint
            if same and (record["name"] in names or _is_renamed(folder, record, items)):
                return dataclasses.replace(items, name=record["name"])
        except (OSError, ValueError, KeyError, TypeError, IntegrityError):
            continue
    return dataclasses.replace(items, name=names.pop()) if len(names) == 1 else items


def _has_a_place(record: dict[str, Any], items: Items) -> bool:
    """Only what lies somewhere can be moved; and images are no file of embeddings."""
    known = where(record["source"])
    if known is None or not known.is_absolute():
        return False
    return record["adapter"] != IMPORTED or items.adapter == IMPORTED


def _takes_over(record: dict[str, Any], items: Items, source: str) -> bool:
    if record["source"] != source or items.name != dataset_name(source):
        return False
    return record["fingerprint"] == items.fingerprint or items.adapter != IMPORTED


def _is_renamed(folder: Path, record: dict[str, Any], items: Items) -> bool:
    if not is_gone(record["source"]):
        return False
    return read_items(folder).labels_fingerprint == items.labels_fingerprint


def _relabel(folder: Path, items: Items, source: str) -> None:
    """Keep the old labels, and say that labels change. Raises StaleError where they are another
    file's or folder's, and would replace those of the first; a list that make pull has brought
    without labels has none to replace."""
    try:
        old, known = read_items(folder), read_source(folder)
    except IntegrityError:
        return  # lost or not there yet
    changed = sum(a != b for a, b in zip(said(old), said(items), strict=True))
    if not changed:
        return
    if known != source and (known or (old.label >= 0).any()):
        raise StaleError(
            f"{folder} has these very images with the labels of {known or 'another machine'}; "
            f"{changed} of {len(items)} labels or splits of {source} are others. To keep both, "
            f"give this one a name: ARGS='--name {items.name}-2'. To replace them, first delete "
            f"{folder / 'dataset.json'}",
            instead={"--name": f"{items.name}-2"},
        )
    kept = durable.make_folder(folder / "labels" / old.labels_fingerprint[:12])
    for name in ("items.parquet", "dataset.json"):
        durable.write(kept / name, (folder / name).read_bytes(), "labels")
    log.info(
        f"{items.name}: labels or splits of {changed} of {len(items)} images have changed, and "
        f"replace the old ones, which are kept in {kept}"
    )


def _is_file(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def refuse_overtaken(cache: Path, items: Items, seen: dict[str, int]) -> None:
    """Raise StaleError where another version became the current one after `seen` (see `tops`),
    which was looked at before the images were: the state that was seen first must not follow the
    one that was seen later."""
    folder = cache / items.folder_name
    top, others = latest(cache, items.name, but=folder)
    if top > max(seen.get(items.name, -1), version_of(folder)):
        raise StaleError(
            f"while the images of {items.name!r} were read, {others[-1].name} became the current "
            "version of them. Type the same command again: it reads them as they are now"
        )


def follow(cache: Path, folder: Path, items: Items, was: str, source: str) -> None:
    """The older versions' images, too, were where `source` is now, if all their contents are there:
    the place was moved."""
    now = {*items.sha256, ""}
    for other in dataset_folders(cache, items.name):
        if other == folder:
            continue
        try:
            old = read_items(other)
        except IntegrityError:
            continue
        known = read_source(other)
        if known in ("", source) or not (known == was or is_gone(known)):
            continue
        if now.issuperset(old.sha256):
            record = durable.read_sealed(other / "dataset.json")
            moved = durable.sealed({**record, "source": source})
            durable.write(other / "dataset.json", moved, "dataset")


def succession(old: Items, new: Items, folder: Path, source: str, changed: bool) -> str:
    """What is to be said when `new` follows `old`, of `folder`, as the current version. Raises
    StaleError where it may not.

    Every content that was embedded must still be there, unless the images are `changed` on purpose:
    else what is not mounted, or was deleted by mistake, would make a smaller data set without a
    word.
    """
    other_name = f"give this one a name, ARGS='--name {new.name}-2', and train on DATA={new.name}-2"
    head = (
        f"the images of {new.name!r} are not those that were embedded under this name "
        f"({len(old)} -> {len(new)} items)"
    )
    if IMPORTED in (old.adapter, new.adapter):
        raise StaleError(
            f"{head}, in {folder}. To keep both, {other_name}. To forget the old ones, delete "
            f"{folder}",
            instead={"--name": f"{new.name}-2"},
        )
    known = read_source(folder)
    if known and known != source and not is_gone(known):
        raise StaleError(
            f"{head}: those in {folder} are of {known}, these of {source}. To keep both, "
            f"{other_name}; known images are not embedded again there, either",
            instead={"--name": f"{new.name}-2"},
        )
    _refuse_unreadable(old, new)
    gone = _gone(old, new)
    if gone and not changed:
        raise StaleError(
            f"{head}: the contents of {len(gone):,} are gone or have changed, first "
            f"{old.keys[gone[0]]} (row {gone[0]}). If something is not mounted or was lost, put it "
            f"back, and type the same command. If this is another data set, {other_name}. If the "
            "images were changed on purpose, this makes a new version; known images are not "
            f"embedded again, and {folder.name} stays for what was trained on it:\n"
            f"  {_on_purpose(source)}"
        )
    return f"{new.name}: the images have changed: {_difference(old, new, len(gone))}"


def _refuse_unreadable(old: Items, new: Items) -> None:
    """Raise StaleError for an image that was embedded, is there, and cannot be read."""
    here = dict(zip(new.keys, new.sha256, strict=True))
    for row, (key, sha) in enumerate(zip(old.keys, old.sha256, strict=True)):
        if sha and here.get(key) == "":
            raise StaleError(
                f"the image {key} of {new.name!r} (row {row}) was embedded, but cannot be read "
                "now. Make it readable, then type the same command"
            )


def _gone(old: Items, new: Items) -> list[int]:
    """The old rows whose contents are nowhere any more."""
    now = {*new.sha256, ""}
    return [row for row, sha in enumerate(old.sha256) if sha not in now]


def _difference(old: Items, new: Items, gone: int) -> str:
    """By content: what was moved, is new, is gone, or has another label or split."""
    keys, told = defaultdict(set), defaultdict(set)
    for key, sha, what in zip(old.keys, old.sha256, said(old), strict=True):
        keys[sha].add(key)
        told[sha].add(what)
    known = elsewhere = relabelled = 0
    for key, sha, what in zip(new.keys, new.sha256, said(new), strict=True):
        if sha and sha in keys:
            known += 1
            elsewhere += key not in keys[sha]
            relabelled += what not in told[sha]
    more = fewer = 0
    now = Counter(new.sha256)
    for sha, number in Counter(old.sha256).items():
        if sha and sha in now:
            more += max(0, now[sha] - number)
            fewer += max(0, number - now[sha])
    numbers = {
        "moved or renamed": elsewhere - more,
        "copies more": more,
        "new": sum(map(bool, new.sha256)) - known,
        "gone": gone,
        "copies fewer": fewer,
        "with another label or split": relabelled,
    }
    lines = [f"{number:,} {what}" for what, number in numbers.items() if number]
    return f"{', '.join(lines)}; {known:,} of {len(new):,} are known by their content"


def _on_purpose(source: str) -> str:
    """This very command with --changed."""
    again = typed(instead={"--changed": ""})
    if again.startswith(("make extract ", "coview extract ")):
        return again
    return f"make extract VIEW=… DATA={quoted(source) if source else '…'} ARGS=--changed"
