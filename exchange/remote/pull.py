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
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from base import durable, locks
from base.errors import (
    UNKNOWN,
    CoviewError,
    IntegrityError,
    StaleError,
    UsageError,
    did_you_mean,
)
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
from exchange.remote.push import BESIDE, CLAIM, DATASET, ITEMS, SEAL, THREADS, TRIES, root_of

log = logging.getLogger(f"coview.{__name__}")
# what may be a folder's name here: it comes from elsewhere
VIEW = re.compile(r"\w[\w.+@ -]*-[0-9a-f]{12}")
SET = re.compile(r"\w[\w.+@ -]*-[0-9a-f]{8}")
Found = list[tuple[str, str]]  # views: the folder of the data set, and of the view in it


def pull(config: PullConfig) -> list[View]:
    """Bring the views; return them. One that cannot be had keeps no other one back. Raises
    CoviewError."""
    if not config.source:
        raise UsageError(f"FROM is missing. Type: make pull FROM={UNKNOWN}\n{EXAMPLES}")
    cache = Path(config.cache)
    place, chosen = _chosen(Place(config.source), config)
    views, failed = list[View](), list[CoviewError]()
    with locks.shared_lock(durable.make_folder(cache), locks.USERS):
        for dataset, folder in chosen:
            try:
                items = _put_items(place, dataset, cache)
                view, how = _bring(place, f"{dataset}/{folder}", cache / dataset / folder, items)
            except (IntegrityError, StaleError) as error:
                failed.append(error)
                continue
            log.info(f"{view.name}: {how}: {view.n:,} rows x {view.width} in {view.folder}")
            views.append(view)
    for error in failed[1:]:
        log.warning(str(error))
    if failed:
        raise failed[0]
    return views


# --- what is there


def _chosen(place: Place, config: PullConfig) -> tuple[Place, Found]:
    """The place that holds data sets, above FROM where that is one or a view, and of the views that
    are there those that are meant. Raises UsageError."""
    place, found = _there(place)
    name = dataset_name(config.data) if config.data else ""
    chosen = []
    for dataset, folder in found:
        fits = config.view in ("", folder, view_name(Path(folder)))
        if fits and name in ("", dataset, name_of(Path(dataset))):
            chosen.append((dataset, folder))
    if not chosen:
        raise _nothing(place, config, found)
    _refuse_namesakes(place, chosen)
    return place, chosen


def _there(place: Place) -> tuple[Place, Found]:
    """All finished views, wherever FROM points to."""
    folders, objects = place.inside()
    above, _, own = place.address.rpartition("/")
    root, _, dataset = above.rpartition("/")
    if SEAL in objects and VIEW.fullmatch(own) and _holds(root, dataset):
        return Place(root), [(dataset, own)]
    if DATASET in objects and _holds(above, own):
        place, folders = Place(above), [own]
    found = Found()
    for dataset in filter(SET.fullmatch, folders):
        found += _finished(place, dataset)
    return place, found


def _holds(above: str, dataset: str) -> bool:
    """Whether these are a place and a data set below it, by their names."""
    return bool(above.rstrip("/:")) and SET.fullmatch(dataset) is not None


def _finished(place: Place, dataset: str) -> Found:
    found = []
    for folder in filter(VIEW.fullmatch, place.inside(dataset)[0]):
        if SEAL in place.inside(f"{dataset}/{folder}")[1]:
            found.append((dataset, folder))
    return found


def _nothing(place: Place, config: PullConfig, found: Found) -> UsageError:
    if not found:
        return UsageError(
            f"no finished view lies in {place.address}. FROM is where one was put to: make push "
            f"VIEW=clip DATA=photos/ TO={quoted(place.address)}"
        )
    names = sorted({view_name(Path(folder)) for _, folder in found})
    known = {*names, *(folder for _, folder in found)}
    sets = sorted({name_of(Path(dataset)) for dataset, _ in found})
    if config.view and config.view not in known:
        return UsageError(
            f"no view {config.view!r} in {place.address}{did_you_mean(config.view, names)}",
            instead={"VIEW": names[0] if len(names) == 1 else UNKNOWN},
        )
    return UsageError(
        f"{place.address} has views of {', '.join(sets)}, but none of DATA={config.data} that is "
        "meant; name another one, or leave it out",
        instead={"DATA": sets[0] if len(sets) == 1 else UNKNOWN},
    )


def _refuse_namesakes(place: Place, chosen: Found) -> None:
    """Raise UsageError where two of them cannot stand in one cache."""
    sets = Counter(name_of(Path(dataset)) for dataset in {dataset for dataset, _ in chosen})
    for dataset, _ in chosen:
        if sets[name_of(Path(dataset))] > 1:
            raise UsageError(
                f"{place.address} has several data sets called {name_of(Path(dataset))!r}, such as "
                f"{dataset}: name one of them, and take a cache of its own for each",
                instead={"DATA": dataset},
            )
    views = Counter((dataset, view_name(Path(folder))) for dataset, folder in chosen)
    for dataset, folder in chosen:
        if views[dataset, view_name(Path(folder))] > 1:
            raise UsageError(
                f"{place.address}/{dataset} has several views called {view_name(Path(folder))!r}, "
                f"such as {folder}: name one of them",
                instead={"VIEW": folder},
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
    except ValueError as error:
        raise IntegrityError(
            f"the list of images in {place.address}/{dataset} is damaged ({error}). Push it again "
            "from where it is whole"
        ) from error
    folder = write_items(cache, items)
    assert folder == cache / dataset, (folder, dataset)
    return items


# --- a view


def _bring(place: Place, at: str, folder: Path, items: Items) -> tuple[View, str]:
    """The view in its folder, and how it came there."""
    seal, where = place.get(f"{at}/{SEAL}") or b"", f"{place.address}/{at}"
    if store.is_created(folder):
        return _own(place, at, folder, seal)
    _refuse_twin(folder, where)
    staging = durable.make_folder(folder.parent / store.ARRIVING / folder.name)
    with locks.lock(staging):
        if store.is_created(folder):  # by another pull, meanwhile
            return _own(place, at, folder, seal)
        _stage(place, at, staging, items, seal)
        with locks.lock(folder.parent, wait=True):
            durable.rename(staging, folder, "pull")
    with contextlib.suppress(OSError):  # others are under way
        staging.parent.rmdir()
    return store.open_view(folder), "finished"


def _stage(place: Place, at: str, staging: Path, items: Items, seal: bytes) -> None:
    """The whole view, in the staging folder. Raises IntegrityError."""
    where = f"{place.address}/{at}"
    durable.sweep(staging)
    _describe(place, at, staging)
    try:
        view = _described(staging, items)
        records = integrity.seal_of(view, seal)
    except (ValueError, IntegrityError, StaleError) as error:
        why = "" if isinstance(error, CoviewError) else f" ({error})"
        told = f"what describes it is missing, damaged or another view's{why}"
        raise _damaged(where, told) from error
    _fetch(place, at, view, records)
    durable.write(staging / SEAL, seal, "pull")
    try:
        integrity.check(view, remember=False)
        seen_of(view)
    except IntegrityError as error:
        raise _damaged(where, "it lacks a file, or has one too many") from error


def _refuse_twin(folder: Path, where: str) -> None:
    """Raise StaleError where the cache has another view of that name."""
    others = store.view_folders(folder.parent, view_name(folder))
    if others:
        cache = folder.parent.parent
        raise StaleError(
            f"{folder.parent} has a view {view_name(folder)!r} of another spec or other weights "
            f"({others[0].name}) than {where}: put that one into a cache of its own",
            instead={"CACHE": f"{cache}-2"},
        )


def _own(place: Place, at: str, folder: Path, seal: bytes) -> tuple[View, str]:
    """What the cache has already, mended from there where it is damaged. Raises StaleError unless
    it is the same, and finished."""
    where = f"{place.address}/{at}"
    try:
        view = store.open_view(folder)
    except IntegrityError as error:
        raise IntegrityError(f"{error}\nOr delete {folder}: this brings that of {where}") from error
    if not view.is_complete:
        raise StaleError(
            f"{folder} has been begun here and is not finished. Finish it "
            f"({store.command(folder, 'extract')}), or delete {folder} to bring that of {where}"
        )
    if integrity.root(view) != root_of(seal, where):
        raise StaleError(
            f"{folder} holds the same view as {where} with other bytes: it was embedded on another "
            f"machine, say. Keep it, or delete {folder} to bring that one"
        )
    try:
        integrity.check(view)
        return view, "in the cache already, nothing to do"
    except IntegrityError:
        if (folder / SEAL).read_bytes() != seal:
            raise
    with store.writer_lock(folder):
        _fetch(place, at, view, integrity.seal_of(view, seal))
    integrity.check(view)
    return view, "was damaged, and is mended from there"


def _describe(place: Place, at: str, staging: Path) -> None:
    """What describes the view, into the staging folder; what another one has left there goes."""
    names = (*BESIDE, SEEN, *DOCUMENTS)
    fetched = {name: place.get(f"{at}/{name}") for name in names}
    claim = staging / CLAIM
    if claim.is_file() and claim.read_bytes() != fetched[CLAIM]:
        for path in staging.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, data in fetched.items():
        if data is None:
            (staging / name).unlink(missing_ok=True)
            continue
        durable.make_folder((staging / name).parent)
        durable.write(staging / name, data, "pull")


def _described(staging: Path, items: Items) -> View:
    """Raises IntegrityError, StaleError or ValueError unless it is a view of these images that its
    folder's name says: name, and the fingerprint of spec and weights."""
    try:
        view = store.open_view(staging)
        for name in BESIDE:
            if (staging / name).is_file():
                durable.read_sealed(staging / name)
        told = view.attributes
        own = (told["view"], told["items_fingerprint"], view.n, view.rows > 0, view.width > 0)
    except (TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    expected = (view_name(staging), items.fingerprint, len(items), True, True)
    if own != expected:
        raise ValueError(f"found {own}, expected {expected}")
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
    for _ in range(TRIES):
        data = place.get(name, file["bytes"])
        if data is not None and hashlib.sha256(data).hexdigest() == file["sha256"]:
            durable.write(path, data, "pull")
            return
    raise _damaged(
        f"{place.address}/{name}",
        f"it is not there, or not the {file['bytes']:,} bytes of sha256 {file['sha256'][:12]} that "
        "are recorded",
    )


def _damaged(where: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"{where}: {what}. Delete that folder there, push the view again from where it is whole, "
        "then type this again"
    )
