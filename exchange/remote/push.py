"""make push VIEW=clip DATA=photos/ TO=s3://bucket/views

A finished view goes to an object store, as it lies in the cache: any Zarr reader opens it there,
and `make pull` brings it to another machine, to the same bytes.

    TO/<dataset>-<fp8>/items.parquet, dataset.json    the list of images, without their labels
    TO/<dataset>-<fp8>/<view>-<key12>/ …              the view's files
                                      README.md       what it is, its model and that one's licence
                                      complete.json   put last: only then there is a view

Every object is read back and compared with the digest that was taken when it was computed. What is
there already, whole, is not sent again, so a push that was ended goes on; the last object is put
only if there is none, so that of two who push one view no half of each can stand there.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base.errors import UNKNOWN, IntegrityError, StaleError, UsageError
from base.phrase import quoted
from base.progress import Progress
from cache_specs import integrity, store
from cache_specs.items import Items, items_of, parquet, read_items, record_of
from cache_specs.lookup import one_view
from cache_specs.tuned import FILE as SEEN
from cache_specs.tuned import seen_of
from cache_specs.view import DOCUMENTS, View
from exchange.config import PushConfig
from exchange.remote.card import card
from exchange.remote.objects import EXAMPLES, Place

log = logging.getLogger(f"coview.{__name__}")
THREADS = 8  # objects under way at once
TRIES = 3  # that an object is sent, if what is read back is another one
BESIDE = ("canary.json",)  # by which `make extract` sees that it would embed alike
SEAL, ITEMS, DATASET, CARD = "complete.json", "items.parquet", "dataset.json", "README.md"


@dataclass(frozen=True)
class File:
    """One of a view's files. sha256: as it was when it was written."""

    path: Path
    name: str
    size: int
    sha256: str


def push(config: PushConfig) -> str:
    """Send one view; return its address. Raises CoviewError."""
    if not config.view or not config.to:
        raise UsageError(
            f"{'TO' if config.view else 'VIEW'} is missing. Type: make push "
            f"VIEW={quoted(config.view or 'clip')} DATA={UNKNOWN} TO={UNKNOWN}\n{EXAMPLES}"
        )
    place = Place(config.to)
    rest = f" TO={quoted(config.to)}"
    folder = one_view(Path(config.cache), config.view, config.data, "push", rest)
    view, items = store.open_view(folder), read_items(folder.parent)
    store.refuse_other_images(view, items.fingerprint, len(items))
    integrity.check(view)
    seen_of(view)
    at, seal = f"{folder.parent.name}/{folder.name}", (folder / SEAL).read_bytes()
    _refuse_other(place, at, seal)
    _put_items(place, folder.parent.name, items, config.labels)
    sent = _put_files(place, at, view)
    place.put(f"{at}/{CARD}", card(view, items, config.to).encode())
    if not place.put(f"{at}/{SEAL}", seal, once=True):
        _refuse_other(place, at, seal)
    if place.get(f"{at}/{SEAL}") != seal:
        raise _not_kept(place, f"{at}/{SEAL}")
    log.info(
        f"{view.name}: {view.n:,} rows x {view.width} in {place.address}/{at}, {sent / 1e6:,.1f} "
        "MB sent, all of it read back and compared. Elsewhere, type: make pull "
        f"FROM={quoted(config.to)}"
    )
    _say_what_keys_tell(items)
    return f"{place.address}/{at}"


def _refuse_other(place: Place, at: str, seal: bytes) -> None:
    """Raise StaleError where another view is finished there: of the same name, images, spec and
    weights, but other bytes, such as of another kind of GPU."""
    there = place.get(f"{at}/{SEAL}")
    if there not in (None, seal):
        raise StaleError(
            f"{place.address}/{at} holds the same view with other bytes: it was embedded on "
            "another machine, say. Keep that one, or put this one to another place",
            instead={"TO": UNKNOWN},
        )


def _put_items(place: Place, dataset: str, items: Items, labels: bool) -> None:
    """The list of images, unless it is there; with labels it replaces one without."""
    if not labels:
        nobody = np.full(len(items), -1, np.int32)
        items = dataclasses.replace(items, label=nobody, classes=[], as_class=())
    there = place.get(f"{dataset}/{DATASET}")
    if there is not None:
        before = items_of(there, place.get(f"{dataset}/{ITEMS}") or b"")
        same = before.labels_fingerprint == items.labels_fingerprint
        if same or not labels:
            return
    table = parquet(items)
    place.put(f"{dataset}/{ITEMS}", table)
    place.put(f"{dataset}/{DATASET}", record_of(items, "", 0, table))


def _put_files(place: Place, at: str, view: View) -> int:
    """All but the seal; returns the bytes that were sent."""
    files, there = list(_files(view)), place.sizes(at)
    with (
        Progress(f"pushing {view.name}", len(files), unit="files") as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):

        def one(file: File) -> int:
            return _deliver(place, file, f"{at}/{file.name}", there)

        sent = 0
        for size in pool.map(one, files):
            sent += size
            progress.advance(1)
    return sent


def _files(view: View) -> Iterator[File]:
    """Shards first, what describes them last."""
    for shard, record in enumerate(integrity.read_seal(view)["shards"]):
        for name, file in record["files"].items():
            yield File(view.folder / name, name, file["bytes"], file["sha256"])
        yield _small(view, str(view.commit_file(shard).relative_to(view.folder)))
    for name in (*BESIDE, SEEN, *DOCUMENTS):
        if (view.folder / name).is_file():
            yield _small(view, name)


def _small(view: View, name: str) -> File:
    data = (view.folder / name).read_bytes()
    return File(view.folder / name, name, len(data), hashlib.sha256(data).hexdigest())


def _deliver(place: Place, file: File, name: str, there: dict[str, int]) -> int:
    """See to it that the object is the file; returns the bytes that were sent."""
    sent, sure = 0, there.get(name) == file.size
    for _ in range(TRIES + 1):
        if sure and _digest(place.get(name)) == file.sha256:
            return sent
        data = file.path.read_bytes()
        if _digest(data) != file.sha256:
            raise IntegrityError(
                f"{file.path} has changed since it was checked. Type: make verify, which says what "
                "mends it"
            )
        place.put(name, data)
        sent, sure = sent + len(data), True
    raise _not_kept(place, name)


def _digest(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


def _not_kept(place: Place, name: str) -> IntegrityError:
    return IntegrityError(
        f"{place.address}/{name}: what is read there is not what was written, {TRIES} times. "
        "Nothing is sealed there; look at what stands between (a proxy, the store itself), then "
        "type the same command"
    )


def _say_what_keys_tell(items: Items) -> None:
    """Labels that stand in the paths of images go with them."""
    told = 0
    for key, label in zip(items.keys, items.label.tolist(), strict=True):
        told += label >= 0 and items.classes[label] in key.split("/")[:-1]
    if told:
        log.warning(
            f"the labels of {told:,} images stand in their keys, such as {items.keys[0]!r}: who "
            "reads the list of images knows these"
        )
