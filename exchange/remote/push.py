"""make push VIEW=clip DATA=photos/ TO=s3://bucket/views

A finished view goes to an object store, as it lies in the cache: any Zarr reader opens it there,
and `make pull` brings it to another machine, to the same bytes.

    TO/<dataset>-<fp8>/items.parquet, dataset.json    the list of images, without their labels
    TO/<dataset>-<fp8>/<view>-<key12>/zarr.json       put first, if there is none: who does that
                                                      has the folder
                                      …               the view's other files
                                      README.md       what it is, its model and that one's licence
                                      complete.json   put last: only then there is a view

Every object is read back and compared with the digest that was taken when it was written here. What
is there already, whole, is not sent again, so a push that was ended goes on.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base import durable, locks
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
CLAIM, SEAL, ITEMS, DATASET, CARD = (
    "zarr.json",
    "complete.json",
    "items.parquet",
    "dataset.json",
    "README.md",
)


@dataclass(frozen=True)
class Piece:
    """What becomes one object. sha256: as it was when it was written."""

    name: str
    size: int
    sha256: str
    read: Callable[[], bytes]


def push(config: PushConfig) -> str:
    """Send one view; return its address. Raises CoviewError."""
    if not config.view or not config.to:
        raise UsageError(
            f"{'TO' if config.view else 'VIEW'} is missing. Type: make push "
            f"VIEW={quoted(config.view or 'clip')} DATA={UNKNOWN} TO={UNKNOWN}\n{EXAMPLES}"
        )
    place = Place(config.to, make=True)
    _refuse_cache(place)
    rest = f" TO={quoted(config.to)}"
    folder = one_view(Path(config.cache), config.view, config.data, "push", rest)
    view, items = store.open_view(folder), read_items(folder.parent)
    store.refuse_other_images(view, items.fingerprint, len(items))
    integrity.check(view)
    seen_of(view)
    at, seal = f"{folder.parent.name}/{folder.name}", (folder / SEAL).read_bytes()
    if not _is_there(place, at, view):
        if not config.labels:
            _say_what_keys_tell(items)
        _claim(place, at, view)
        _put_items(place, folder.parent.name, items, config.labels)
        sent = _put_files(place, at, view)
        _deliver(place, _piece(f"{at}/{CARD}", card(view, items, config.to).encode()), {})
        place.put(f"{at}/{SEAL}", seal, once=True)
        if place.get(f"{at}/{SEAL}") != seal:
            raise _not_kept(place, f"{at}/{SEAL}")
        how = f"{sent / 1e6:,.1f} MB sent, all of it read back and compared"
    else:
        _put_items(place, folder.parent.name, items, config.labels)
        how = "there already, nothing to do"
    log.info(
        f"{view.name}: {view.n:,} rows x {view.width} in {place.address}/{at}: {how}. Elsewhere, "
        f"type: make pull FROM={quoted(config.to)}"
    )
    return f"{place.address}/{at}"


def _refuse_cache(place: Place) -> None:
    if place.folder is not None and (place.folder / locks.USERS).exists():
        raise UsageError(
            f"TO={place.address} is a cache, which its own commands write to; name another folder",
            instead={"TO": UNKNOWN},
        )


def _is_there(place: Place, at: str, view: View) -> bool:
    """Whether these embeddings are finished there. Raises StaleError where others are: of the same
    name, images, spec and weights, but computed on another machine, say."""
    seal = place.get(f"{at}/{SEAL}")
    if seal is None:
        return False
    if root_of(seal, f"{place.address}/{at}") != integrity.root(view):
        raise StaleError(
            f"{place.address}/{at} holds the same view with other bytes: it was embedded on "
            "another machine, say. Keep that one, or put this one to another place",
            instead={"TO": UNKNOWN},
        )
    return True


def root_of(seal: bytes, where: str) -> str:
    """The digest of all embeddings that a complete.json seals. Raises IntegrityError."""
    try:
        return durable.unsealed(seal, SEAL)["root"]
    except (ValueError, KeyError) as error:
        raise IntegrityError(
            f"{where}: {error}. Delete that folder there, and push the view again"
        ) from error


def _claim(place: Place, at: str, view: View) -> None:
    """Have the folder, before anything goes there. Raises StaleError where somebody else has."""
    own = (view.folder / CLAIM).read_bytes()
    if not place.put(f"{at}/{CLAIM}", own, once=True) and place.get(f"{at}/{CLAIM}") != own:
        raise StaleError(
            f"{place.address}/{at} has been begun from another cache and is not finished. Wait "
            "for that, or, if it was given up, delete that folder there; or put this view to "
            "another place",
            instead={"TO": UNKNOWN},
        )


def _put_items(place: Place, dataset: str, items: Items, labels: bool) -> None:
    """The list of images, unless it is there; with labels in the place of one without any. Raises
    StaleError where others are there."""
    if not labels:
        nobody = np.full(len(items), -1, np.int32)
        items = dataclasses.replace(items, label=nobody, classes=[], as_class=())
    before = _listed(place, dataset)
    if before is not None:
        if not labels or before.labels_fingerprint == items.labels_fingerprint:
            return
        if (before.label >= 0).any():
            raise StaleError(
                f"the list of images in {place.address}/{dataset} has other labels, which stay. "
                "Put the view there without yours (leave out --labels), or to another place",
                instead={"TO": UNKNOWN},
            )
    table = parquet(items)
    for name, data in ((ITEMS, table), (DATASET, record_of(items, "", 0, table))):
        _deliver(place, _piece(f"{dataset}/{name}", data), {})


def _listed(place: Place, dataset: str) -> Items | None:
    """The list that is there; None where there is none, or one that was cut short."""
    record, table = place.get(f"{dataset}/{DATASET}"), place.get(f"{dataset}/{ITEMS}")
    if record is None or table is None:
        return None
    try:
        return items_of(record, table)
    except ValueError:
        return None


def _put_files(place: Place, at: str, view: View) -> int:
    """All but the seal; returns the bytes that were sent."""
    pieces, there = list(_pieces(view, at)), place.sizes(at)
    with (
        Progress(f"pushing {view.name}", len(pieces), unit="files") as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        sent = 0
        for size in pool.map(lambda piece: _deliver(place, piece, there), pieces):
            sent += size
            progress.advance(1)
    return sent


def _pieces(view: View, at: str) -> Iterator[Piece]:
    for shard, record in enumerate(integrity.read_seal(view)["shards"]):
        for name, file in record["files"].items():
            read = (view.folder / name).read_bytes
            yield Piece(f"{at}/{name}", file["bytes"], file["sha256"], read)
        name = integrity.commit_name(shard)
        yield _piece(f"{at}/{name}", (view.folder / name).read_bytes())
    for name in (*BESIDE, SEEN, *DOCUMENTS):
        if (view.folder / name).is_file():
            yield _piece(f"{at}/{name}", (view.folder / name).read_bytes())


def _piece(name: str, data: bytes) -> Piece:
    return Piece(name, len(data), hashlib.sha256(data).hexdigest(), lambda: data)


def _deliver(place: Place, piece: Piece, there: dict[str, int]) -> int:
    """See to it that the object is this; returns the bytes that were sent. there: the sizes of
    those that may be."""
    sent, sure = 0, there.get(piece.name) == piece.size
    for _ in range(TRIES + 1):
        if sure and _digest(place.get(piece.name, piece.size)) == piece.sha256:
            return sent
        data = piece.read()
        if _digest(data) != piece.sha256:
            raise IntegrityError(
                f"{piece.name} has changed here since it was checked. Type: make verify, which "
                "says what mends it"
            )
        place.put(piece.name, data)
        sent, sure = sent + len(data), True
    raise _not_kept(place, piece.name)


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
    telling = []
    for key, label in zip(items.keys, items.label.tolist(), strict=True):
        if label >= 0 and items.classes[label] in key.split("/")[:-1]:
            telling.append(key)
    if telling:
        log.warning(
            f"the labels of {len(telling):,} images stand in their keys, such as {telling[0]!r}: "
            "who reads the list of images knows these"
        )
