"""One extraction from its settings to a sealed view: hash the images, embed what the cache lacks, say what could not be read."""

import contextlib
import functools
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.commands import run_cli
from base.errors import CoviewError, RankDiedError, StoppedError, StorageError
from cache_specs.view import STATUS
from extract.config import ExtractConfig

RESERVE = 2**20  # bytes for descriptions, canary, seal

if TYPE_CHECKING:
    import numpy as np

    from cache_specs.items import Items
    from cache_specs.spec import ViewSpec
    from cache_specs.store import View
    from extract.data.datasets import Dataset
    from extract.models.backbones import Backbone
    from extract.prepare import Ready
    from extract.reuse import Known


def run(config: ExtractConfig, told: dict[str, Any] | None = None) -> "View":
    """Extract one view; return it, finished; what --json says of it is put into `told`. Raises CoviewError."""
    from base import durable, locks
    from extract.prepare import prepare

    ready = prepare(config)
    with locks.shared_lock(durable.make_folder(Path(config.cache)), locks.USERS):
        view, status, embedded, seconds = _run(config, ready)
    if told is not None:
        bad = {
            STATUS[code]: int((status == code).sum())
            for code in range(1, len(STATUS))
            if (status == code).any()
        }
        told |= {
            "view": view.name,
            "folder": str(view.folder),
            "rows": view.n,
            "width": view.width,
            "embedded": embedded,
            "hits": view.n - embedded,
            "seconds": round(seconds, 3),
            "bad": bad,
        }
    return view


def _run(config: ExtractConfig, ready: "Ready") -> "tuple[View, np.ndarray, int, float]":
    """The finished view, its rows' status, how many rows were embedded now, and in how many seconds."""
    from base.console import counted, rate_text
    from cache_specs import integrity, store
    from cache_specs.sources import source_path
    from cache_specs.succession import write_items
    from cache_specs.view import default_rows
    from extract import bad_images, canary, recheck, reuse
    from extract.models.backbones import load_backbone
    from extract.prepare import begin_workers, workers_of

    spec, files, weights_sha256, where, dataset, items, seen = ready
    folder = write_items(Path(config.cache), items, source_path(config.data), config.changed, seen)
    if folder.name != items.folder_name:
        print(
            f"{items.name}: these are the images of {folder.name}, whose name they keep in the cache",
            flush=True,
        )
    for other in store.view_folders(folder, spec.name):  # told before a model is loaded
        store.refuse_changed(store.open_view(other), spec.declared(), weights_sha256)
    place = store.view_folder(folder, spec.name, spec.declared(), weights_sha256)
    known = None if store.is_created(place) else reuse.find(place, spec.declared(), items)

    @functools.cache
    def backbone() -> "Backbone":
        loaded = load_backbone(spec, files, where[0])
        canary.refuse_unusable(spec, loaded, where[0])
        return loaded

    def make(rows: list[int]) -> canary.Canary:
        return canary.take(items, dataset.read, spec.preprocess, backbone(), where[0], rows)

    def held(known: "Known") -> "Known":
        """Only the donors whose rows may stand beside those of now. Without the model, where one has all and its canary is taken over."""
        if (
            len(known.donors) == 1
            and not known.missing(0, len(items))
            and canary.adoptable(len(items), known.donors[0], known.place(0))
        ):
            return known
        backbone()  # weights that do not fit leave no empty view behind
        return reuse.agreeing(known, functools.partial(canary.differs, make=make))

    known = held(known) if known else None
    provenance = provenance_of(config, spec, where[0]) | (
        {"reused": known.record()} if known and known.donors else {}
    )
    rows = min(config.shard_rows, len(items)) or default_rows(len(items))
    _announce(config, spec, place, len(items), rows)
    view = store.create_view(
        folder,
        spec.name,
        spec.declared(),
        weights_sha256,
        (items.fingerprint, len(items)),
        rows,
        provenance,
    )
    if view.is_complete:
        status = integrity.check(view)
        with (
            contextlib.nullcontext()
            if (view.folder / "canary.json").exists()
            else store.writer_lock(view.folder)
        ):
            canary.keep_or_compare(view, make, items, provenance)
        print(
            f"{spec.name}: already in the cache, nothing to do: {view.n:,} rows x {view.width} in {view.folder}"
        )
        bad_images.report(status, items, view)
        return view, status, 0, 0.0
    with store.writer_lock(view.folder):
        integrity.check_commits(view)
        here, begun = (view.folder / "canary.json").exists(), time.monotonic()
        if known is None or view.attributes["provenance"].get("reused", []) != provenance.get(
            "reused", []
        ):  # it goes on, or another run began it
            known = reuse.recorded(view, items, doubt=True)
            if known.donors and not here:
                view, known = recheck.begin_again(view, known, held(known))
        todo, pending = (
            known.lacks(view, view.pending()),
            sum(last - first for first, last in map(view.bounds, view.pending())),
        )
        if known.donors and pending:
            print(
                f"{spec.name}: {pending - todo:,} rows are copied, of the same images in finished views ({known}); {todo:,} to embed",
                flush=True,
            )
        if len(where) == 1 and workers_of(config.workers, todo, where[0]):
            begin_workers()
        if (
            todo
            or not known.donors
            or not (here or canary.adopt(view, known.donors[0], known.place(0)))
        ):  # what is only copied needs no model
            canary.keep_or_compare(view, make, items, provenance)
        embed_all(
            where, config, spec, files, dataset, items, view, known, backbone() if todo else None
        )
        bad_images.enforce(view, items, config.max_bad)
        refuse_pending(view)
        recheck.recheck(view, known)
        integrity.seal(view)
    status = integrity.check(view)
    seconds = time.monotonic() - begun
    print(
        f"{spec.name}: finished, {counted(todo, 'image')} in {seconds:.1f} s{f' ({rate_text(todo / seconds)} images/s)' if todo else ''}"
        f"{f', {pending - todo:,} copied' if pending > todo else ''}, sealed in {view.folder}"
    )
    bad_images.report(status, items, view)
    return view, status, todo, seconds


def _announce(config: ExtractConfig, spec: "ViewSpec", folder: Path, n: int, rows: int) -> None:
    """Say how large the view gets, and refuse to begin what the disk cannot hold. Raises StorageError."""
    import shutil

    from base.console import counted
    from cache_specs import store
    from cache_specs.view import shard_bytes

    shards, pending = -(-n // rows), -(-n // rows)
    if (folder / "zarr.json").is_file():
        view = store.open_view(folder)
        rows, shards, pending = (
            view.rows,
            view.shards,
            0 if view.is_complete else len(view.pending()),
        )
    need, free = (
        pending * (shard_bytes(rows, spec.width) + 2048),
        shutil.disk_usage(config.cache).free,
    )
    if not pending:
        return
    print(
        f"{spec.name}: {counted(n, 'image')} -> {n:,} x {spec.width} {spec.storage_dtype} in {counted(shards, 'shard')} ({shards - pending:,} done), "
        f"{need / 1e6:,.1f} MB to write of {free / 1e6:,.1f} MB free, in {folder}",
        flush=True,
    )
    if need + RESERVE > free:
        raise StorageError(
            f"{folder} needs {need / 1e6:,.1f} MB more, but {config.cache} has {free / 1e6:,.1f} MB free. Nothing is lost: make room, "
            "or name a larger disk with CACHE=…, and type the same command"
        )


def refuse_pending(view: "View", then: str = "") -> None:
    """Raise StoppedError when shards are left: Ctrl-C was pressed."""
    if left := len(view.pending()):
        raise StoppedError(
            f"{view.name}: stopped; {view.shards - left} of {view.shards} shards are finished and kept in {view.folder}{then}"
        )


def embed_all(
    devices: list[str],
    config: ExtractConfig,
    spec: "ViewSpec",
    files: dict[str, Path],
    dataset: "Dataset",
    items: "Items",
    view: "View",
    known: "Known",
    backbone: "Backbone | None",
) -> bool:
    """Embed all pending shards; after Ctrl-C those under way, and the others stay pending: then it returns True."""
    import torch

    from base.commands import typed
    from base.interrupt import heeded

    if not known.lacks(view, view.pending()):  # copying needs no devices
        devices = devices[:1]
    asked = (
        threading.Event()
        if len(devices) == 1
        else torch.multiprocessing.get_context("spawn").Event()
    )
    several = "each process finishes its shard" if len(devices) > 1 else "this shard is finished"
    with heeded(
        asked.set,
        f"stopping: {several} first (Ctrl-C again drops it)",
        f"stopped at once; finished shards are kept in {view.folder}\nTo go on, type: {typed()}",
    ):
        if len(devices) == 1:
            embed_part(
                0, devices, config, spec, files, dataset, items, view, known, asked, backbone
            )
        else:  # each process loads its own backbone
            _embed_in_processes(
                torch.multiprocessing,
                (os.getpid(), devices, config, spec, files, dataset, items, view, known, asked),
            )
    return bool(asked.is_set())


def _embed_in_processes(spawn: Any, given: tuple) -> None:
    import signal

    devices = given[1]
    try:  # one process a device; shard i belongs to process i % gpus, so no two ever write the same file
        handler = signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # which they inherit: Ctrl-C in a terminal goes to all, and this one decides
        children = spawn.spawn(_child, given, nprocs=len(devices), join=False)
        signal.signal(signal.SIGINT, handler)
        while not children.join():
            pass
    except spawn.ProcessExitedException as error:
        if error.exit_code > 1:
            failed = CoviewError(
                f"process {error.error_index} on {devices[error.error_index]} ended the extraction; its message stands above"
            )
            failed.exit_code = error.exit_code
            raise failed from error
        raise RankDiedError(
            f"process {error.error_index} on {devices[error.error_index]} died ({error}). What is committed is kept; the same "
            "command goes on from there"
        ) from error
    except spawn.ProcessRaisedException as error:
        raise RankDiedError(
            f"process {error.error_index} on {devices[error.error_index]} failed. What is committed is kept; the same command goes on from "
            f"there, once this is mended:\n{error}"
        ) from error


def _child(
    part: int,
    parent: int,
    devices: list[str],
    config: ExtractConfig,
    spec: "ViewSpec",
    files: dict[str, Path],
    dataset: "Dataset",
    items: "Items",
    view: "View",
    known: "Known",
    asked: Any,
) -> None:
    """embed_part in a process of its own, with the exit codes of a command. It dies with its parent, which holds the view's lock."""
    import ctypes
    import signal

    from base import locks
    from cache_specs import store

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(1)
    with locks.shared_lock(view.folder, store.PARTS):
        if code := run_cli(
            lambda: embed_part(
                part, devices, config, spec, files, dataset, items, view, known, asked
            )
        ):
            sys.exit(code)


def embed_part(
    part: int,
    devices: list[str],
    config: ExtractConfig,
    spec: "ViewSpec",
    files: dict[str, Path],
    dataset: "Dataset",
    items: "Items",
    view: "View",
    known: "Known",
    asked: Any,
    backbone: "Backbone | None" = None,
) -> None:
    """Embed the pending shards that belong to process `part`, on its device, until the event `asked` is set."""
    import torch

    from base.progress import Progress
    from extract import bad_images, canary
    from extract.embed import embed
    from extract.models.backbones import load_backbone
    from extract.prepare import begin_workers, workers_of

    if len(devices) > 1 and devices[part] == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(devices)))
    mine = [shard for shard in view.pending() if shard % len(devices) == part]
    total = sum(
        last - first for first, last in map(view.bounds, range(part, view.shards, len(devices)))
    )
    todo = known.lacks(view, mine)
    workers = workers_of(config.workers, todo, devices[part], len(devices))
    if workers:
        begin_workers()
    backbone = backbone or (load_backbone(spec, files, devices[part]) if todo else None)
    if backbone and view.attributes["provenance"].get(
        "compile"
    ):  # as the view was begun, so that one resumed or repaired gets the same bytes
        canary.compile_model(backbone, view.attributes["provenance"]["batch"], spec, devices[part])
    title = (
        spec.name
        if len(devices) == 1
        else f"{spec.name} on {devices[part]} ({part + 1} of {len(devices)})"
    )
    with Progress(
        title, total, total - todo, live=view.folder / f"progress-{part}.json"
    ) as progress:
        embed(
            view,
            backbone,
            spec.preprocess,
            dataset.read,
            items.sha256,
            mine,
            known,
            view.attributes["provenance"]["batch"],
            workers,
            devices[part],
            progress,
            lambda: bad_images.enforce(view, items, config.max_bad),
            asked.is_set,
        )


def provenance_of(config: ExtractConfig, spec: "ViewSpec", device: str) -> dict[str, Any]:
    """Recorded, not hashed: what made the numbers, in case they must be made again."""
    import platform
    from importlib.metadata import version

    packages = (
        "torch",
        "torchvision",
        "timm",
        "open_clip_torch",
        "transformers",
        "pillow",
        "numpy",
        "zarr",
    )
    if device.startswith("cuda"):
        import torch

        device = torch.cuda.get_device_name(device)
    return {
        "batch": config.batch,
        "compile": config.compile,
        "device": device,
        "python": platform.python_version(),
        "spec_file": str(spec.source),
        "versions": {name: version(name) for name in packages},
    }
