"""The versions of a data set: its images are moved, renamed and added to, and what was trained before must stay readable.

Each state of the images has its own folder <name>-<fp8>. `"version": k` in its dataset.json (absent: 0) says in which order they came; the
largest is the current one, which DATA=name and DATA=photos/ mean. An older one is named by its folder: DATA=photos-1a2b3c4d.
"""

import hashlib
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base import durable
from base.commands import quoted, typed
from base.errors import IntegrityError, StaleError
from cache_specs.sources import is_gone, read_source

if TYPE_CHECKING:
    from cache_specs.items import Items

KEYS = {"format", "name", "adapter", "rows", "classes", "fingerprint", "items_sha256", "source", "sha256"}         # of dataset.json
IMPORTED = "imported"       # the adapter of a data set, and the backend of a view, that a file of embeddings made


def dataset_folders(cache: Path, name: str) -> list[Path]:
    """The item lists of the dataset called `name`: its versions, and what somebody copied there."""
    return sorted(path.parent for path in cache.glob("*/dataset.json") if path.parent.name.rpartition("-")[0] == name)


def version_of(folder: Path) -> int:
    """The number in dataset.json; -1 where it cannot be read."""
    try:
        version = durable.read_sealed(folder / "dataset.json").get("version", 0)
    except (OSError, ValueError):
        return -1
    return version if isinstance(version, int) else -1


def _said_to_be(folder: Path) -> int:
    """The number of a version whose dataset.json is damaged, but still a whole record; one that is larger than any where it is not."""
    try:
        record = json.loads((folder / "dataset.json").read_bytes())
        return int(record.get("version", 0)) if KEYS <= record.keys() <= KEYS | {"version"} else sys.maxsize
    except (OSError, ValueError, TypeError, AttributeError):
        return sys.maxsize


def current(folders: list[Path]) -> Path | None:
    """The current one of the versions of a data set; None where nothing says which: equal numbers, or made of several places that are there.
    One that cannot be read may have been the current one, unless its number is a smaller one."""
    numbers = [version_of(folder) for folder in folders]
    doubtful = [folder for folder, number in zip(folders, numbers, strict=True) if number < 0 and _said_to_be(folder) >= max(numbers)]
    places = {source for folder in folders if (source := read_source(folder)) and not is_gone(source)}
    top = [folder for folder, number in zip(folders, numbers, strict=True) if number == max(numbers)]
    return top[0] if len(top) == 1 and len(places) <= 1 and not doubtful else None


def is_older(folder: Path) -> bool:
    """Is another version of this data set the current one?"""
    return current(dataset_folders(folder.parent, folder.name.rpartition("-")[0])) not in (folder, None)


def latest(cache: Path, name: str, but: Path) -> tuple[int, list[Path]]:
    """The largest version number of a data set's other folders than `but`, and the folders that have it; -1 and none where there is no other."""
    others = [folder for folder in dataset_folders(cache, name) if folder != but]
    top = max(map(version_of, others), default=-1)
    return top, [folder for folder in others if version_of(folder) == top]


def refuse_overtaken(cache: Path, items: "Items", seen: dict[str, int]) -> None:
    """Raise StaleError where another version became the current one after `seen` (see `tops`), which was looked at before the images were: the state that
    was seen first must not follow the one that was seen later."""
    folder = cache / items.folder_name
    top, others = latest(cache, items.name, but=folder)
    if top > max(seen.get(items.name, -1), version_of(folder)):
        raise StaleError(f"while the images of {items.name!r} were read, {others[-1].name} became the current version of them. Type the same command again: "
                         "it reads them as they are now")


def tops(cache: Path) -> dict[str, int]:
    """The largest version number of each data set of a cache, by name."""
    found: dict[str, int] = {}
    for path in cache.glob("*/dataset.json"):
        name = path.parent.name.rpartition("-")[0]
        found[name] = max(found.get(name, -1), version_of(path.parent))
    return found


def killed_relabelling(folder: Path) -> "Items | None":
    """The item list of a folder where a killed extraction has written the new labels to items.parquet, but not yet dataset.json; else None."""
    import pyarrow as pa

    from cache_specs.items import Items, read_parquet

    try:
        record = durable.read_sealed(folder / "dataset.json")
        table = read_parquet((folder / "items.parquet").read_bytes())
        names, label = table["label_name"].to_pylist(), table["label"].to_numpy()
        classes = {**dict(enumerate(record["classes"])), **{int(number): name for number, name in zip(label, names, strict=True) if number >= 0}}
        classes = {number: classes[number] for number in range(int(label.max(initial=-1)) + 1)}
        items = Items(record["name"], record["adapter"], table["key"].to_pylist(), label, table["split"].to_pylist(), table["bytes"].to_numpy(),
                      table["sha256"].to_pylist(), list(classes.values()))
        same = names == [classes[number] if number >= 0 else "" for number in label.tolist()]
        return items if same and (items.fingerprint, items.folder_name) == (record["fingerprint"], folder.name) else None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def follow(cache: Path, folder: Path, items: "Items", was: str, source: str) -> None:
    """The older versions' images, too, were where `source` is now, if all their contents are there: the place was moved. And what a killed relabelling
    left of one is finished."""
    from cache_specs.items import read_items

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
        if known not in ("", source) and (known == was or is_gone(known)) and now.issuperset(old.sha256):
            _amend(other, source=source)


def _amend(folder: Path, **changes: Any) -> None:
    durable.write(folder / "dataset.json", durable.sealed({**durable.read_sealed(folder / "dataset.json"), **changes}), "dataset")


def succession(old: "Items", new: "Items", folder: Path, source: str, changed: bool) -> str:
    """What is to be said when `new` follows `old`, of `folder`, as the current version. Raises StaleError where it may not.

    Every content that was embedded must still be there, unless the images are `changed` on purpose: else what is not mounted, or was deleted by
    mistake, would make a smaller data set without a word.
    """
    known, other_name = read_source(folder), f"give this one a name, ARGS='--name {new.name}-2', and train on DATA={new.name}-2"
    head = f"the images of {new.name!r} are not those that were embedded under this name ({len(old)} -> {len(new)} items)"
    if IMPORTED in (old.adapter, new.adapter):
        raise StaleError(f"{head}, in {folder}. To keep both, {other_name}. To forget the old ones, delete {folder}")
    if known and known != source and not is_gone(known):
        raise StaleError(f"{head}: those in {folder} are of {known}, these of {source}. To keep both, {other_name}; "
                         "known images are not embedded again there, either")
    here, now = dict(zip(new.keys, new.sha256, strict=True)), set(new.sha256)
    for row, (key, sha) in enumerate(zip(old.keys, old.sha256, strict=True)):
        if sha and here.get(key) == "":
            raise StaleError(f"the image {key} of {new.name!r} (row {row}) was embedded, but cannot be read now. Make it readable, then type the same command")
    gone = [row for row, sha in enumerate(old.sha256) if sha and sha not in now]
    if gone and not changed:
        raise StaleError(f"{head}: the contents of {len(gone):,} are gone or have changed, first {old.keys[gone[0]]} (row {gone[0]}). If something is not "
                         f"mounted or was lost, put it back, and type the same command. If this is another data set, {other_name}. If the images were "
                         f"changed on purpose, this makes a new version; known images are not embedded again, and {folder.name} stays for what was "
                         f"trained on it:\n  {_on_purpose(source)}")
    return f"{new.name}: the images have changed: {_difference(old, new, len(gone))}"


def _difference(old: "Items", new: "Items", gone: int) -> str:
    """By content: what was moved, is new, is gone, or has another label or split."""
    keys, told, count, now = defaultdict(set), defaultdict(set), Counter(old.sha256), Counter(new.sha256)
    for key, sha, what in zip(old.keys, old.sha256, said(old), strict=True):
        keys[sha].add(key)
        told[sha].add(what)
    known = [(key, sha, what) for key, sha, what in zip(new.keys, new.sha256, said(new), strict=True) if sha and sha in keys]
    fewer = sum(max(0, number - now[sha]) for sha, number in count.items() if sha and sha in now)
    more = sum(max(0, now[sha] - number) for sha, number in count.items() if sha)
    numbers = {"moved or renamed": sum(key not in keys[sha] for key, sha, _ in known) - more, "copies more": more,
               "new": sum(map(bool, new.sha256)) - len(known), "gone": gone,
               "copies fewer": fewer, "with another label or split": sum(what not in told[sha] for _, sha, what in known)}
    return f"{', '.join(f'{number:,} {what}' for what, number in numbers.items() if number)}; {len(known):,} of {len(new):,} are known by their content"


def said(items: "Items") -> list[tuple[str, str]]:
    """Each image's label and split."""
    return [(items.classes[label] if label >= 0 else "", split) for label, split in zip(items.label.tolist(), items.split, strict=True)]


def _on_purpose(source: str) -> str:
    """This very command of make with --changed."""
    command = typed(instead={"--changed": ""})
    return command if command.startswith("make extract ") else f"make extract VIEW=… DATA={quoted(source) if source else '…'} ARGS=--changed"
