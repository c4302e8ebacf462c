"""make pull FROM=s3://bucket/views

Brings finished views from where `make push` has put them into the cache: all that lie there, or
those of VIEW and DATA. What arrives is compared with the digests of when it was computed, in a
folder of its own (<dataset>/.pull/<view>-<key12>), which gets its place at the very end: there is a
whole view or none. What has arrived of a pull that was ended is kept.
"""

import contextlib
import hashlib
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from base import durable, locks
from base.errors import UNKNOWN, IntegrityError, StaleError, UsageError, did_you_mean
from base.phrase import quoted
from base.progress import Progress
from cache_specs import integrity, store
from cache_specs.items import Items, items_of, read_items
from cache_specs.sources import dataset_name
from cache_specs.succession import write_items
from cache_specs.tuned import FILE as SEEN
from cache_specs.tuned import seen_of
from cache_specs.versions import dataset_folders, name_of
from cache_specs.view import DOCUMENTS, View, view_name
from exchange.config import PullConfig
from exchange.remote.objects import EXAMPLES, Place
from exchange.remote.push import BESIDE, DATASET, ITEMS, SEAL, THREADS, TRIES

log = logging.getLogger(f"coview.{__name__}")
# what may be a folder's name here: it comes from elsewhere
VIEW = re.compile(r"[^./\x00][^/\x00]*-[0-9a-f]{12}")
SET = re.compile(r"[^./\x00][^/\x00]*-[0-9a-f]{8}")


def pull(config: PullConfig) -> list[View]:
    """Bring the views; return them. Raises CoviewError."""
    if not config.source:
        raise UsageError(f"FROM is missing. Type: make pull FROM={UNKNOWN}\n{EXAMPLES}")
    cache, place = Path(config.cache), Place(config.source)
    place, chosen = _chosen(place, config)
    views = []
    with locks.shared_lock(durable.make_folder(cache), locks.USERS):
        for dataset, folder in chosen:
            items = _put_items(place, dataset, cache)
            view, how = _bring(place, f"{dataset}/{folder}", cache / dataset / folder, items)
            log.info(f"{view.name}: {how}: {view.n:,} rows x {view.width} in {view.folder}")
            views.append(view)
    return views


# --- what is there


def _chosen(place: Place, config: PullConfig) -> tuple[Place, list[tuple[str, str]]]:
    """The place that holds data sets, above FROM where that is one or a view, and of which views
    there are (data set, folder) those that are meant. Raises UsageError."""
    place, found = _there(place)
    name = dataset_name(config.data) if config.data else ""
    chosen = []
    for dataset, folder in found:
        fits = config.view in ("", folder, view_name(Path(folder)))
        if fits and name in ("", dataset, name_of(Path(dataset))):
            chosen.append((dataset, folder))
    if not chosen:
        raise _nothing(place, config, found)
    return place, chosen


def _there(place: Place) -> tuple[Place, list[tuple[str, str]]]:
    """All finished views, wherever FROM points to."""
    folders, objects = place.inside()
    if SEAL in objects and "/" in place.address:
        above, _, folder = place.address.rpartition("/")
        above, _, dataset = above.rpartition("/")
        return Place(above), [(dataset, folder)]
    if DATASET in objects and "/" in place.address:
        above, _, dataset = place.address.rpartition("/")
        place, folders = Place(above), [dataset]
    found = []
    for dataset in filter(SET.fullmatch, folders):
        for folder in filter(VIEW.fullmatch, place.inside(dataset)[0]):
            if SEAL in place.inside(f"{dataset}/{folder}")[1]:
                found.append((dataset, folder))
    return place, found


def _nothing(place: Place, config: PullConfig, found: list[tuple[str, str]]) -> UsageError:
    if not found:
        return UsageError(
            f"no finished view lies in {place.address}. FROM is where one was put to: make push "
            f"VIEW=clip DATA=photos/ TO={quoted(place.address)}"
        )
    names = sorted({view_name(Path(folder)) for _, folder in found})
    sets = sorted({name_of(Path(dataset)) for dataset, _ in found})
    if config.view and config.view not in names:
        return UsageError(
            f"no view {config.view!r} in {place.address}{did_you_mean(config.view, names)}",
            instead={"VIEW": names[0] if len(names) == 1 else UNKNOWN},
        )
    return UsageError(
        f"{place.address} has views of {', '.join(sets)}, none as VIEW={config.view} "
        f"DATA={config.data} name it; leave one of them out",
        instead={"DATA": sets[0] if len(sets) == 1 else UNKNOWN},
    )


# --- the list of images


def _put_items(place: Place, dataset: str, cache: Path) -> Items:
    """The list of images that the cache has of this data set, where it has one: with its own
    labels; else that of there. Raises StaleError where other images are called so."""
    if (cache / dataset / DATASET).is_file():
        return read_items(cache / dataset)
    others = dataset_folders(cache, name_of(Path(dataset)))
    if others:
        raise StaleError(
            f"{cache} has other images of that name ({others[-1].name}; there it is {dataset}): "
            "put these into a cache of their own",
            instead={"CACHE": f"{cache}-2"},
        )
    record, table = place.get(f"{dataset}/{DATASET}"), place.get(f"{dataset}/{ITEMS}")
    try:
        items = items_of(record or b"", table or b"")
        if items.folder_name != dataset:
            raise ValueError(f"it is that of {items.folder_name}")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise IntegrityError(
            f"the list of images in {place.address}/{dataset} is damaged ({error}). Push it again "
            "from where it is whole"
        ) from error
    write_items(cache, items)
    return items


# --- a view


def _bring(place: Place, at: str, folder: Path, items: Items) -> tuple[View, str]:
    """The view in its folder, and how it came there."""
    seal = place.get(f"{at}/{SEAL}") or b""
    if store.is_created(folder):
        return _own(folder, seal, f"{place.address}/{at}"), "in the cache already, nothing to do"
    staging = durable.make_folder(folder.parent / store.ARRIVING / folder.name)
    with locks.lock(staging):
        durable.sweep(staging)
        view = _described(place, at, staging, items)
        store.refuse_twin(folder, view.attributes["spec"], view.attributes["weights_sha256"])
        _fetch(place, at, view, integrity.seal_of(view, seal))
        durable.write(staging / SEAL, seal, "pull")
        integrity.check(view, remember=False)
        seen_of(view)
        with locks.lock(folder.parent, wait=True):
            durable.rename(staging, folder, "pull")
    with contextlib.suppress(OSError):  # others are under way
        staging.parent.rmdir()
    return store.open_view(folder), "finished"


def _own(folder: Path, seal: bytes, there: str) -> View:
    """What the cache has already. Raises StaleError unless it is the same, and finished."""
    view = store.open_view(folder)
    if not view.is_complete:
        raise StaleError(
            f"{folder} has been begun here and is not finished. Finish it "
            f"({store.command(folder, 'extract')}), or delete {folder} to bring that of {there}"
        )
    integrity.check(view)
    if (folder / SEAL).read_bytes() != seal:
        raise StaleError(
            f"{folder} holds the same view as {there} with other bytes: it was embedded on another "
            f"machine, say. Keep it, or delete {folder} to bring that one"
        )
    return view


def _described(place: Place, at: str, staging: Path, items: Items) -> View:
    """What describes the view, in the staging folder. Raises IntegrityError unless it is what its
    name says (which holds the fingerprint of its spec and weights), of these images."""
    for name in (*BESIDE, SEEN, *DOCUMENTS):
        data = place.get(f"{at}/{name}")
        if data is not None:
            durable.make_folder((staging / name).parent)
            durable.write(staging / name, data, "pull")
    try:
        view = store.open_view(staging)
    except IntegrityError as error:
        raise IntegrityError(
            f"the description of the view in {place.address}/{at} is missing, damaged or another "
            "view's. Push it again from where it is whole"
        ) from error
    a = view.attributes
    if (a["items_fingerprint"], view.n) != (items.fingerprint, len(items)):
        raise IntegrityError(
            f"{place.address}/{at} was made of other images ({a['items_fingerprint'][:8]}) than "
            "those it lies beside. Push it again from where it is whole"
        )
    return view


def _fetch(place: Place, at: str, view: View, records: list[dict[str, Any]]) -> None:
    """All shards, and their commits."""
    with (
        Progress(f"pulling {view.name}", view.n, unit="rows") as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):

        def one(shard: int) -> int:
            for name, file in records[shard]["files"].items():
                _arrive(place, f"{at}/{name}", view.folder / name, file)
            durable.make_folder(view.commit_file(shard).parent)
            durable.write_json(view.commit_file(shard), records[shard], "pull")
            first, last = view.bounds(shard)
            return last - first

        for rows in pool.map(one, range(view.shards)):
            progress.advance(rows)


def _arrive(place: Place, name: str, path: Path, file: dict[str, Any]) -> None:
    """See to it that the file is there, as it was recorded. Raises IntegrityError."""
    if path.is_file() and integrity.sha256_of(path) == file["sha256"]:
        return
    durable.make_folder(path.parent)
    data = None
    for _ in range(TRIES):
        data = place.get(name)
        if data is not None and hashlib.sha256(data).hexdigest() == file["sha256"]:
            durable.write(path, data, "pull")
            return
    found = "is not there" if data is None else f"has {len(data):,} bytes of another content"
    raise IntegrityError(
        f"{place.address}/{name} {found}; {file['bytes']:,} bytes of sha256 {file['sha256'][:12]} "
        "are recorded. Push the view again from where it is whole, then type this again"
    )
