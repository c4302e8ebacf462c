"""What is ahead of an extraction: the view that it goes on with, how much is to be written, and
whether the disk can hold it. The dry run says the same."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from base.errors import StorageError
from cache_specs import store
from cache_specs.view import View, shard_bytes
from extract.prepare import Ready

COMMIT = 2048  # bytes of a shard's record, at most
RESERVE = 2**20  # bytes for descriptions, canary, seal


@dataclass(frozen=True)
class Ahead:
    """Shards of so many rows, those of them that are not finished, and the bytes that these take
    of those that are free."""

    rows: int
    shards: int
    pending: list[int]
    bytes: int
    free: int


def begun(dataset: Path, ready: Ready) -> View | None:
    """The view that the run goes on with, in the data set's folder. Raises StaleError where it was
    made of another spec, other weights (as far as these are here) or other images."""
    found, declared = None, ready.spec.declared()
    folders = store.view_folders(dataset, ready.spec.name)
    if len(folders) > 1:  # of two of one name that of this spec
        folders = store.of_spec(folders, declared) or folders
        exact = store.view_folder(dataset, ready.spec.name, declared, ready.weights_sha256)
        folders = [exact] if exact in folders else folders
    for folder in folders:
        found = store.open_view(folder)
        store.refuse_changed(found, ready.spec.declared(), ready.weights_sha256 or None)
        store.refuse_other_images(found, ready.items.fingerprint, len(ready.items))
    return found


def look_ahead(dataset: Path, ready: Ready, view: View | None) -> Ahead:
    """What is to be written into the data set's folder; `view`: see `begun`."""
    rows = view.rows if view else ready.flags.shard_rows
    shards = math.ceil(len(ready.items) / rows)
    pending = list(range(shards))
    if view:
        pending = [] if view.is_complete else view.pending()
    size = len(pending) * (shard_bytes(rows, ready.spec.width) + COMMIT)
    return Ahead(rows, shards, pending, size, shutil.disk_usage(_there(dataset)).free)


def refuse_small_disk(ahead: Ahead, folder: Path, cache: Path) -> None:
    """Raise StorageError where the disk cannot hold what is to be written into `folder`."""
    if ahead.pending and ahead.bytes + RESERVE > ahead.free:
        raise StorageError(
            f"{folder} needs {ahead.bytes / 1e6:,.1f} MB more, but {cache} has "
            f"{ahead.free / 1e6:,.1f} MB free. Nothing is lost: make room, or name a larger disk "
            "with CACHE=…, and type the same command"
        )


def _there(folder: Path) -> Path:
    """The nearest folder that is there."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder
