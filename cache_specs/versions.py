"""The versions of a data set: its images are moved, renamed and added to, and what was trained
before must stay readable.

Each state of the images has its own folder <name>-<fp8>. `"version": k` in its dataset.json
(absent: 0) says in which order they came; the largest is the current one, which DATA=name and
DATA=photos/ mean. An older one is named by its folder: DATA=photos-1a2b3c4d.
"""

import json
import sys
from pathlib import Path

from base import durable
from cache_specs.sources import is_gone, read_source

KEYS = {  # of dataset.json
    "format",
    "name",
    "adapter",
    "rows",
    "classes",
    "fingerprint",
    "items_sha256",
    "source",
    "sha256",
}
# the adapter of a data set, and the backend of a view, that a file of embeddings made
IMPORTED = "imported"


def every_dataset(cache: Path) -> list[Path]:
    """The folders of a cache that hold an item list."""
    return [path.parent for path in sorted(cache.glob("*/dataset.json"))]


def dataset_folders(cache: Path, name: str) -> list[Path]:
    """The item lists of the dataset called `name`: its versions, and what somebody copied there."""
    return [folder for folder in every_dataset(cache) if name_of(folder) == name]


def name_of(folder: Path) -> str:
    """The name of the data set that the folder is a version of."""
    return folder.name.rpartition("-")[0]


def version_of(folder: Path) -> int:
    """The number in dataset.json; -1 where it cannot be read."""
    try:
        version = durable.read_sealed(folder / "dataset.json").get("version", 0)
    except (OSError, ValueError):
        return -1
    return version if isinstance(version, int) else -1


def _said_to_be(folder: Path) -> int:
    """The number of a version whose dataset.json is damaged, but still a whole record; one that is
    larger than any where it is not."""
    try:
        record = json.loads((folder / "dataset.json").read_bytes())
        if KEYS <= record.keys() <= KEYS | {"version", "as_class"}:
            return int(record.get("version", 0))
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    return sys.maxsize


def current(folders: list[Path]) -> Path | None:
    """The current one of the versions of a data set; None where nothing says which: equal numbers,
    or made of several places that are there. One that cannot be read may have been the current
    one, unless its number is a smaller one."""
    numbers = {folder: version_of(folder) for folder in folders}
    largest = max(numbers.values(), default=-1)
    for folder, number in numbers.items():
        if number < 0 and _said_to_be(folder) >= largest:
            return None
    top = [folder for folder in folders if numbers[folder] == largest]
    return top[0] if len(top) == 1 and len(_places(folders)) <= 1 else None


def _places(folders: list[Path]) -> set[str]:
    """Where the images of these versions are, as far as they are there."""
    return {source for source in map(read_source, folders) if source and not is_gone(source)}


def is_older(folder: Path) -> bool:
    """Is another version of this data set the current one?"""
    versions = dataset_folders(folder.parent, name_of(folder))
    return current(versions) not in (folder, None)


def latest(cache: Path, name: str, but: Path) -> tuple[int, list[Path]]:
    """The largest version number of a data set's other folders than `but`, and the folders that
    have it; -1 and none where there is no other."""
    others = [folder for folder in dataset_folders(cache, name) if folder != but]
    top = max(map(version_of, others), default=-1)
    return top, [folder for folder in others if version_of(folder) == top]


def tops(cache: Path) -> dict[str, int]:
    """The largest version number of each data set of a cache, by name."""
    found: dict[str, int] = {}
    for folder in every_dataset(cache):
        name = name_of(folder)
        found[name] = max(found.get(name, -1), version_of(folder))
    return found
