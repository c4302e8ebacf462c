"""From the words of `make finetune` to a tuned view: what is learnt from, what learns, how much of
it fits into memory; then the loop (train/finetune/tune.py), and what it leaves
(train/finetune/keep.py)."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base import durable, locks, native
from base.console import NOTE, clock_text, counted
from base.errors import UNKNOWN, StaleError, UsageError
from base.limits import within_memory
from base.phrase import line_of
from cache_specs import store
from cache_specs.items import Items
from cache_specs.spec import Tuned, differences
from cache_specs.tuned import digest
from extract.data.datasets import Dataset
from extract.models.backbones import load_backbone, precision_of
from extract.originals import Originals, find_originals
from train.algorithm.batches import LABELLED, Passes
from train.algorithm.peers import choose_device
from train.data.graph import standardise, statistics
from train.data.reader import Cache, open_cache
from train.data.scarce import unlearnt
from train.data.splits import Split, make_split, spaced
from train.finetune import keep
from train.finetune.config import COLLAPSES, FinetuneConfig
from train.finetune.live import Live, Needs, fit_head, needs_of
from train.finetune.pictures import Pictures
from train.finetune.tune import Tuning, tune
from train.run.checkpoint import mend
from train.run.names import free_name
from train.run.rundir import keys_of, split_file
from train.run.session import stop_signals

log = logging.getLogger(f"coview.{__name__}")
LOOKED_AT = 2_000  # validation images at most that are embedded to say what was gained
MEASURED = 2  # images whose memory is measured
SHARE = 0.8  # of the memory that is free


@dataclass(frozen=True)
class Ground:
    """What a view is tuned on. folder: of the run."""

    config: FinetuneConfig
    cache: Cache
    originals: Originals
    split: Split
    folder: Path
    device: torch.device

    @property
    def view(self) -> str:
        return self.cache.names[0]

    @property
    def classes(self) -> int:
        return len(self.cache.items.classes)


def run(config: FinetuneConfig, found: dict[str, Any], say: bool = True) -> None:
    """Tune, write the view, and `say` what to type next. Raises CoviewError."""
    native.keep_memory()
    ground = read(config)
    found |= {"run": str(ground.folder), "view": str(_toml(ground.folder))}
    found["judged"] = len(ground.split.val) > 0
    if keep.is_tuned(ground.folder):
        _refuse_other(ground)
        found["result"] = keep.read_done(ground.folder)
        log.info(f"{ground.folder} is finished; another RUN= tunes anew")
        if say:
            _say_next(ground)
        return
    work, needs = made(ground)
    _say_what_learns(ground, work, needs)
    if config.dry_run:
        _rehearse(ground, work, found)
        return
    with stop_signals() as stop, locks.lock(durable.make_folder(ground.folder)):
        work = dataclasses.replace(work, config=_begin(ground, work.config))
        mend(ground.folder)
        with within_memory("this fine-tuning", *_less(work.config)):
            tune(work, ground.folder, ground.view, stop)
        found["result"] = _finish(ground, work)
    if say:
        _say_next(ground)


def read(config: FinetuneConfig) -> Ground:
    """Raises CoviewError for what is wrong with words and data."""
    data = os.path.expanduser(config.data)
    cache = open_cache(Path(config.cache), data, [config.view])
    view = store.open_view(cache.folders[0])
    if view.attributes["spec"]["backend"] == store.IMPORTED:
        raise UsageError(
            f"the view {cache.names[0]!r} was imported, not computed from images: there is no "
            "backbone to tune. Take one that extract has embedded (make views lists them)",
            instead={"VIEW": UNKNOWN},
        )
    if len(cache.items.classes) < 2:
        raise UsageError(
            f"{cache.items.name!r} has fewer than two classes: there is nothing to tell apart. Put "
            "images into class folders, and type make extract once more"
        )
    device = choose_device(config.device, 1)
    originals = find_originals(view, config.view, config.weights, Path(config.root))
    split = make_split(cache.items, cache.ok, config.labels, config.seed(), config.apart())
    config = config.settled(len(split.labelled), len(cache.items.classes))
    folder = Path(config.runs) / (config.run or f"{cache.names[0]}-ft")
    return Ground(config, cache, originals, split, folder, device)


def made(ground: Ground) -> tuple[Tuning, Needs]:
    """What is tuned, on the device, and the memory that it needs."""
    config, items, rows = ground.config, ground.cache.items, ground.split.labelled
    torch.set_num_threads(config.threads or torch.get_num_threads())
    emb_ND = ground.cache.emb[0]
    known = statistics(emb_ND, np.union1d(rows, ground.split.unlabelled))
    head = fit_head(standardise(emb_ND, rows, *known), items.label[rows], ground.classes)
    spec = ground.originals.spec
    backbone = load_backbone(spec, ground.originals.files, "cpu")
    live = Live(backbone, head, known)
    live.thaw(config)
    read_row = by_key(ground.originals.dataset, items)
    pictures = Pictures(read_row, items, spec.preprocess, config)
    needs = needs_of(live, pictures.as_extracted(rows[:MEASURED].tolist()))
    config = dataclasses.replace(config, chunk=_chunk(config, needs, free_bytes(ground.device)))
    passes = Passes(rows, config.seed(), LABELLED)
    live.to(ground.device)
    backbone.precision = precision_of(spec, ground.device.type)
    return Tuning(live, pictures, items.label, passes, config, ground.device), needs


def by_key(dataset: Dataset, items: Items) -> Callable[[int], bytes]:
    """What reads the image of a row of the item list: the folder may hold others besides by now."""
    place_of = {key: place for place, key in enumerate(dataset.keys)}

    def read_row(row: int) -> bytes:
        place = place_of.get(items.keys[row])
        if place is None:
            raise FileNotFoundError(items.keys[row])
        return dataset.read(place)

    return read_row


def free_bytes(device: torch.device) -> int:
    """Of memory, on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _chunk(config: FinetuneConfig, needs: Needs, free: int) -> int:
    """Images at a time: as asked, else the batch, halved until it fits. Raises UsageError where not
    even that fits."""
    most = needs.most(int(SHARE * free))
    size = config.batch
    while size > max(most, 1):
        size = -(-size // 2)
    asked = min(config.chunk, config.batch) or size
    if asked <= most:
        return asked
    told = (
        f"{counted(asked, 'image')} at a time need {(needs.fixed + asked * needs.image) / 1e9:.1f} "
        f"GB, of which {free / 1e9:.1f} GB are free"
    )
    if most:
        raise UsageError(
            f"{told}; {counted(size, 'image')} at a time would fit, with the gradient of the same "
            f"batch of {config.batch}",
            instead={"--chunk": str(size)},
        )
    raise UsageError(
        f"{told}. Tune less (MODE=lora), forget what is inside of the blocks "
        "(ARGS=--checkpointing), or take a smaller view"
    )


def _begin(ground: Ground, config: FinetuneConfig) -> FinetuneConfig:
    """The run's folder, begun now or found; returns the settings, with what was settled when it was
    begun. Raises StaleError where it was begun with others."""
    path = ground.folder / "config.json"
    if path.is_file():
        settled = _refuse_other(ground)
        return dataclasses.replace(config, **settled)
    threads = torch.get_num_threads()
    settled = {"chunk": config.chunk, "threads": threads}
    durable.make_folder(ground.folder / "splits")
    keys = keys_of(ground.cache.items, ground.split)
    durable.write(split_file(ground.folder, config.seed()), keys, "run.split")
    durable.write(path, durable.sealed({**_wanted(ground), "settled": settled}), "run.config")
    return dataclasses.replace(config, **settled)


def _wanted(ground: Ground) -> dict[str, Any]:
    """What a run is known by."""
    return {
        "settings": ground.config.settings(),
        "fingerprints": ground.cache.fingerprints,
        "device_type": ground.device.type,
        "finetune": True,
    }


def _refuse_other(ground: Ground) -> dict[str, Any]:
    """Raise StaleError where the folder holds a run of other settings or data. Returns what was
    settled when it was begun."""
    path = ground.folder / "config.json"
    try:
        begun = durable.read_sealed(path)
    except (OSError, ValueError) as error:
        durable.reraise_unless_gone(path, error)
        begun = {}
    kept = {key: begun.get(key) for key in _wanted(ground)}
    changed = differences(kept, _wanted(ground))
    if changed:
        free = free_name(ground.folder)
        raise StaleError(
            f"{ground.folder} was made with other settings or data:\n  "
            + "\n  ".join(changed)
            + f"\nGive this one another name (RUN={free.rpartition('/')[2]}), or repeat the old "
            "settings to resume it",
            instead={"RUN": free.rpartition("/")[2]},
        )
    return begun["settled"]


def _say_what_learns(ground: Ground, work: Tuning, needs: Needs) -> None:
    config, live, shots = work.config, work.live, len(ground.split.labelled) / ground.classes
    numbers = sum(one.parameter.numel() for one in live.learnt)
    whole = sum(parameter.numel() for parameter in live.backbone.parameters())
    head = live.head.weight.numel() + live.head.bias.numel()
    need = needs.fixed + config.chunk * needs.image
    log.info(
        f"{ground.view}, mode {config.mode}: {counted(len(live.learnt), 'tensor')} of the backbone "
        f"learn, {numbers:,} of {whole:,} numbers, and a head of {head:,}; from "
        f"{counted(len(ground.split.labelled), 'labelled image')} of {ground.classes} classes, "
        f"{config.steps:,} steps of {config.batch} images, {config.chunk} at a time, in some "
        f"{need / 1e9:.2g} GB. Dropout, drop-path and the statistics of BatchNorm stay as they are "
        "when images are embedded"
    )
    if config.mode == "full" and shots < COLLAPSES:
        log.warning(
            f"{shots:.3g} labels a class: all parameters of a backbone are more than so few can "
            "teach, and what it knew is often lost. MODE=lora learns less, and keeps it; and see "
            "what the frozen view gives: make train"
        )
    lacking = unlearnt(ground.cache.items, ground.split).text(ground.classes)
    if lacking:
        log.warning(lacking)


def _rehearse(ground: Ground, work: Tuning, found: dict[str, Any]) -> None:
    """How long it would take, by one step after the first."""
    for step in range(2):
        batch, begun = work.batch(step), time.monotonic()
        work.learn(batch)
    seconds = (time.monotonic() - begun) * work.config.steps
    found["seconds"] = round(seconds, 1)
    log.info(f"it would take about {clock_text(seconds)}; nothing was written")


def _less(config: FinetuneConfig) -> tuple[str, dict[str, str | None]]:
    if config.chunk < 2:
        return "Tune less (MODE=lora), or forget what is inside of the blocks", {
            "--checkpointing": ""
        }
    return "Keep fewer images in memory at a time; it is another run", {
        "--chunk": str(config.chunk // 2),
        "RUN": UNKNOWN,
    }


def _finish(ground: Ground, work: Tuning) -> dict[str, Any]:
    """Write the view; returns what is said of it."""
    work.show_average()
    config, cache, rows = ground.config, ground.cache, ground.split.labelled
    gained = _gained(ground, work)
    parent = cache.folders[0].name
    seen = frozenset(cache.items.sha256[row] for row in rows)
    seen |= cache.seen.get(ground.view, frozenset())
    tuned = Tuned(parent, config.mode, len(seen), digest(seen), config.told())
    spec = keep.tuned_spec(ground.originals.spec, ground.folder, tuned)
    some = work.pictures.as_extracted(rows[:16].tolist())
    files = keep.write_tuned(
        spec, ground.originals.spec, ground.originals.files, work.live, seen, some
    )
    record = {"parent": parent, "labels": len(seen), **gained, "files": files}
    keep.finish(ground.folder, record)
    return record


def _gained(ground: Ground, work: Tuning) -> dict[str, Any]:
    """Top-1 of head and backbone on validation images that the data name, before and after; nothing
    where there are none. Nothing is chosen by it, and the test split is not touched."""
    rows = spaced(ground.split.val, LOOKED_AT)
    if not len(rows):
        return {}
    y_n, emb_ND = ground.cache.items.label[rows], ground.cache.emb[0]
    own = ground.split.labelled
    known = statistics(emb_ND, np.union1d(own, ground.split.unlabelled))
    label_N = ground.cache.items.label
    head = fit_head(standardise(emb_ND, own, *known), label_N[own], ground.classes)
    with torch.inference_mode():
        x_nD = torch.from_numpy(standardise(emb_ND, rows, *known))
        before = float((head(x_nD).argmax(1).numpy() == y_n).mean())
        right = 0
        for part in np.array_split(rows, max(1, len(rows) // work.config.batch)):
            pixels = work.pictures.as_extracted(part.tolist()).to(ground.device)
            right += int((work.live(pixels).argmax(1).cpu().numpy() == label_N[part]).sum())
    return {"val": {"images": len(rows), "frozen": before, "tuned": right / len(rows)}}


def _toml(folder: Path) -> Path:
    return folder / f"{folder.name}.toml"


def _say_next(ground: Ground) -> None:
    done = keep.read_done(ground.folder)
    if val := done.get("val"):
        log.info(
            f"of {counted(val['images'], 'validation image')} the frozen view with its head has "
            f"{100 * val['frozen']:.1f} % right, the tuned one {100 * val['tuned']:.1f} %"
        )
    data = {"DATA": ground.config.data}
    extract = line_of("extract", {"VIEW": str(_toml(ground.folder)), **data})
    words = {"VIEWS": f"{ground.folder.name},{UNKNOWN}", **data}
    words |= {"LABELS": ground.config.labels, "SEEDS": str(ground.config.seed())}
    if not len(ground.split.val):
        words["VAL"] = "none"
    log.log(
        NOTE,
        f"{_toml(ground.folder)} is a view now, which has learnt from the labels of "
        f"{counted(done['labels'], 'image')} and is not judged by them. To embed all images with "
        f"it, and train, type:\n  {extract}\n  {line_of('train', words)}",
    )
