"""How the next state of a data set's images is written beside the last one: what follows what, what is refused, and what is said of it.

Other images under a known name become a new version, in a folder of its own; new labels or splits of the same images replace the old ones, which are
kept. See versions.py for which of the versions is the current one.
"""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from base import durable, locks
from base.commands import typed
from base.errors import IntegrityError, StaleError
from base.phrase import quoted
from cache_specs.items import FORMAT, Items, parquet, read_items, read_parquet, said
from cache_specs.sources import dataset_name, is_gone, read_source, where
from cache_specs.versions import IMPORTED, dataset_folders, latest, version_of


def write_items(
    cache: Path,
    items: Items,
    source: str = "",
    changed: bool = False,
    seen: dict[str, int] | None = None,
) -> Path:
    """Write the item list under `cache` and return the dataset's folder. Byte-identical input gives byte-identical files.

    Other images under the same name become the current version, in a folder of its own, if all that was embedded is still there or they were
    `changed` on purpose; otherwise they are refused (StaleError): see `_succession`. New labels or splits for the same images replace the old ones.
    `source` is what DATA named (see `source_path`): recorded, no part of the fingerprint.
    Where the same images are known from a folder that is gone, that folder was renamed: its embeddings are kept, under their old name.
    """
    durable.make_folder(cache)
    table = parquet(items)  # beforehand: others wait for the lock
    with locks.lock(
        cache, wait=True
    ):  # two extractions of one new data set, or of two states of one, may be started at once
        items = _moved(cache, items, source)
        folder = cache / items.folder_name
        if seen is not None:  # before the images were read
            refuse_overtaken(cache, items, seen)
        number, before, lines = next_version(cache, items, source, changed)
        was, source = read_source(before), _first_source(folder, items) or source
        durable.make_folder(folder)
        if not _is_file(folder / "items.parquet", table):
            _relabel(folder, items, source)  # a run that was trained on the old labels stays usable
        record = _record(items, source, number, table)
        if not (
            _is_file(folder / "dataset.json", record) and _is_file(folder / "items.parquet", table)
        ):
            durable.write(folder / "items.parquet", table, "items")
            durable.write(folder / "dataset.json", record, "dataset")
        follow(cache, folder, items, was, source)
    for line in lines:
        print(
            f"{line}. {folder.name} is the current version now, {before.name} stays for what was trained on it",
            flush=True,
        )
    return folder


def next_version(
    cache: Path, items: Items, source: str, changed: bool = False
) -> tuple[int, Path, list[str]]:
    """The version number that `items` get, the folder of the version before (or their own), and what changes. Raises StaleError where they are refused."""
    folder = cache / items.folder_name
    number, (top, others) = version_of(folder), latest(cache, items.name, but=folder)
    if not others or number > top:
        return max(number, 0), folder, []
    return top + 1, others[-1], [_succession(other, items, source, changed) for other in others]


def _record(items: Items, source: str, version: int, table: bytes) -> bytes:
    return durable.sealed(
        {
            "format": FORMAT,
            "name": items.name,
            "adapter": items.adapter,
            "rows": len(items),
            "classes": items.classes,
            "fingerprint": items.fingerprint,
            "items_sha256": hashlib.sha256(table).hexdigest(),
            "source": source,
            **({"version": version} if version else {}),
        }
    )


def _succession(other: Path, items: Items, source: str, changed: bool) -> str:
    try:
        return succession(read_items(other), items, other, source, changed)
    except IntegrityError:
        if old := killed_relabelling(other):
            return succession(old, items, other, source, changed)
        if changed:
            return f"{items.name}: the images have changed; the item list in {other} is damaged, so nothing says how"
        raise


def _first_source(folder: Path, items: Items) -> str:
    """The file that made an imported data set stays its source when another file with the same rows and labels adds a view; otherwise ''."""
    if items.adapter != IMPORTED:
        return ""
    try:
        old = read_items(folder)
    except IntegrityError:
        return ""
    same = old.adapter == items.adapter == IMPORTED and (
        old.fingerprint,
        old.labels_fingerprint,
    ) == (items.fingerprint, items.labels_fingerprint)
    return read_source(folder) if same else ""


def _moved(cache: Path, items: Items, source: str) -> Items:
    """The items under the name that their embeddings have: that of a folder that is gone, or under which this very folder was taken over."""
    if dataset_folders(cache, items.name):
        return items
    taken_over = set()
    for folder in sorted(path.parent for path in cache.glob("*/dataset.json")):
        try:
            record = durable.read_sealed(folder / "dataset.json")
            known, same = where(record["source"]), record["fingerprint"] == items.fingerprint
            if (
                known is None
                or not known.is_absolute()
                or record["adapter"] == IMPORTED != items.adapter
            ):
                continue
            if (
                record["source"] == source
                and items.name == dataset_name(source)
                and (same or items.adapter != IMPORTED)
            ):
                taken_over.add(record["name"])
            if same and (
                record["name"] in taken_over
                or (
                    is_gone(record["source"])
                    and read_items(folder).labels_fingerprint == items.labels_fingerprint
                )
            ):
                return dataclasses.replace(items, name=record["name"])
        except (OSError, ValueError, KeyError, TypeError, IntegrityError):
            continue
    return dataclasses.replace(items, name=taken_over.pop()) if len(taken_over) == 1 else items


def _relabel(folder: Path, items: Items, source: str) -> None:
    """Say that labels change. Raises StaleError where they are another file's or folder's, and would replace those of the first."""
    try:
        old, known = read_items(folder), read_source(folder)
    except IntegrityError:
        return  # lost or not there yet
    if changed := sum(a != b for a, b in zip(said(old), said(items), strict=True)):
        if known != source:
            raise StaleError(
                f"{folder} has these very images with the labels of {known}; {changed} of {len(items)} labels or splits of {source} are "
                f"others. To keep both, give this one a name: ARGS='--name {items.name}-2'. To replace them, first delete "
                f"{folder / 'dataset.json'}"
            )
        kept = durable.make_folder(folder / "labels" / old.labels_fingerprint[:12])
        for name in ("items.parquet", "dataset.json"):
            durable.write(kept / name, (folder / name).read_bytes(), "labels")
        print(
            f"{items.name}: labels or splits of {changed} of {len(items)} images have changed, and replace the old ones, which are kept in {kept}"
        )


def _is_file(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def refuse_overtaken(cache: Path, items: Items, seen: dict[str, int]) -> None:
    """Raise StaleError where another version became the current one after `seen` (see `tops`), which was looked at before the images were: the state that
    was seen first must not follow the one that was seen later."""
    folder = cache / items.folder_name
    top, others = latest(cache, items.name, but=folder)
    if top > max(seen.get(items.name, -1), version_of(folder)):
        raise StaleError(
            f"while the images of {items.name!r} were read, {others[-1].name} became the current version of them. Type the same command again: "
            "it reads them as they are now"
        )


def killed_relabelling(folder: Path) -> Items | None:
    """The item list of a folder where a killed extraction has written the new labels to items.parquet, but not yet dataset.json; else None."""
    import pyarrow as pa

    try:
        record = durable.read_sealed(folder / "dataset.json")
        table = read_parquet((folder / "items.parquet").read_bytes())
        names, label = table["label_name"].to_pylist(), table["label"].to_numpy()
        classes = {
            **dict(enumerate(record["classes"])),
            **{int(number): name for number, name in zip(label, names, strict=True) if number >= 0},
        }
        classes = {number: classes[number] for number in range(int(label.max(initial=-1)) + 1)}
        items = Items(
            record["name"],
            record["adapter"],
            table["key"].to_pylist(),
            label,
            table["split"].to_pylist(),
            table["bytes"].to_numpy(),
            table["sha256"].to_pylist(),
            list(classes.values()),
        )
        same = names == [classes[number] if number >= 0 else "" for number in label.tolist()]
        return (
            items
            if same
            and (items.fingerprint, items.folder_name) == (record["fingerprint"], folder.name)
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def follow(cache: Path, folder: Path, items: Items, was: str, source: str) -> None:
    """The older versions' images, too, were where `source` is now, if all their contents are there: the place was moved. And what a killed relabelling
    left of one is finished."""
    now = set(items.sha256) | {""}
    for other in dataset_folders(cache, items.name):
        if other == folder:
            continue
        try:
            old = read_items(other)
        except IntegrityError:
            if (old := killed_relabelling(other)) is None:
                continue
            table = hashlib.sha256((other / "items.parquet").read_bytes()).hexdigest()
            _amend(other, classes=old.classes, items_sha256=table)
        known = read_source(other)
        if (
            known not in ("", source)
            and (known == was or is_gone(known))
            and now.issuperset(old.sha256)
        ):
            _amend(other, source=source)


def _amend(folder: Path, **changes: Any) -> None:
    durable.write(
        folder / "dataset.json",
        durable.sealed({**durable.read_sealed(folder / "dataset.json"), **changes}),
        "dataset",
    )


def succession(old: Items, new: Items, folder: Path, source: str, changed: bool) -> str:
    """What is to be said when `new` follows `old`, of `folder`, as the current version. Raises StaleError where it may not.

    Every content that was embedded must still be there, unless the images are `changed` on purpose: else what is not mounted, or was deleted by
    mistake, would make a smaller data set without a word.
    """
    known, other_name = (
        read_source(folder),
        f"give this one a name, ARGS='--name {new.name}-2', and train on DATA={new.name}-2",
    )
    head = f"the images of {new.name!r} are not those that were embedded under this name ({len(old)} -> {len(new)} items)"
    if IMPORTED in (old.adapter, new.adapter):
        raise StaleError(
            f"{head}, in {folder}. To keep both, {other_name}. To forget the old ones, delete {folder}"
        )
    if known and known != source and not is_gone(known):
        raise StaleError(
            f"{head}: those in {folder} are of {known}, these of {source}. To keep both, {other_name}; "
            "known images are not embedded again there, either"
        )
    here, now = dict(zip(new.keys, new.sha256, strict=True)), set(new.sha256)
    for row, (key, sha) in enumerate(zip(old.keys, old.sha256, strict=True)):
        if sha and here.get(key) == "":
            raise StaleError(
                f"the image {key} of {new.name!r} (row {row}) was embedded, but cannot be read now. Make it readable, then type the same command"
            )
    gone = [row for row, sha in enumerate(old.sha256) if sha and sha not in now]
    if gone and not changed:
        raise StaleError(
            f"{head}: the contents of {len(gone):,} are gone or have changed, first {old.keys[gone[0]]} (row {gone[0]}). If something is not "
            f"mounted or was lost, put it back, and type the same command. If this is another data set, {other_name}. If the images were "
            f"changed on purpose, this makes a new version; known images are not embedded again, and {folder.name} stays for what was "
            f"trained on it:\n  {_on_purpose(source)}"
        )
    return f"{new.name}: the images have changed: {_difference(old, new, len(gone))}"


def _difference(old: Items, new: Items, gone: int) -> str:
    """By content: what was moved, is new, is gone, or has another label or split."""
    keys, told, count, now = (
        defaultdict(set),
        defaultdict(set),
        Counter(old.sha256),
        Counter(new.sha256),
    )
    for key, sha, what in zip(old.keys, old.sha256, said(old), strict=True):
        keys[sha].add(key)
        told[sha].add(what)
    known = [
        (key, sha, what)
        for key, sha, what in zip(new.keys, new.sha256, said(new), strict=True)
        if sha and sha in keys
    ]
    fewer = sum(max(0, number - now[sha]) for sha, number in count.items() if sha and sha in now)
    more = sum(max(0, now[sha] - number) for sha, number in count.items() if sha)
    numbers = {
        "moved or renamed": sum(key not in keys[sha] for key, sha, _ in known) - more,
        "copies more": more,
        "new": sum(map(bool, new.sha256)) - len(known),
        "gone": gone,
        "copies fewer": fewer,
        "with another label or split": sum(what not in told[sha] for _, sha, what in known),
    }
    return f"{', '.join(f'{number:,} {what}' for what, number in numbers.items() if number)}; {len(known):,} of {len(new):,} are known by their content"


def _on_purpose(source: str) -> str:
    """This very command of make with --changed."""
    command = typed(instead={"--changed": ""})
    return (
        command
        if command.startswith("make extract ")
        else f"make extract VIEW=… DATA={quoted(source) if source else '…'} ARGS=--changed"
    )
