"""What is tuned, on what, and how much of it fits into memory."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from base import native
from base.console import counted
from base.devices import devices
from base.errors import UNKNOWN, CoviewError, UsageError
from base.limits import available_memory
from cache_specs import store
from cache_specs.items import Items
from cache_specs.spec import view_names
from extract.data.datasets import Dataset
from extract.models.backbones import load_backbone, precision_of
from extract.models.weights import none_below, weights_below
from extract.originals import Originals, find_originals
from train.algorithm.batches import LABELLED, UNLABELLED, Passes
from train.algorithm.peers import LocalPeers, OneOfSeveral, Peers, choose_device
from train.algorithm.ranks import under_torchrun
from train.data.graph import standardise, statistics
from train.data.reader import Cache, open_cache
from train.data.splits import Split, make_split
from train.finetune.config import FinetuneConfig
from train.finetune.live import ALONE, TOGETHER, Live, Needs, fit_head, needs_of
from train.finetune.pictures import Pictures
from train.finetune.shards import can_be_dealt_out, deal_out, put_together
from train.finetune.together import Together
from train.finetune.tune import Tuning, Work

MEASURED = 2  # images whose memory is measured
SHARE = 0.8  # of the memory that is free
LIBRARIES = 1 << 29  # bytes a view that those of matrix products keep for themselves
HOLES = 1.6  # malloc's: memory that it takes for what images leave behind, as a multiple


@dataclass(frozen=True)
class Ground:
    """What views are tuned on. folder: of the run; originals: of each view; dealt: whether the
    view was dealt out to its processes when the run was begun, None where it is not begun."""

    config: FinetuneConfig
    cache: Cache
    originals: list[Originals]
    split: Split
    folder: Path
    device: torch.device
    dealt: bool | None = None

    @property
    def classes(self) -> int:
        return len(self.cache.items.classes)

    @property
    def seen(self) -> frozenset[str]:
        """The contents of the images whose labels teach: those of the run, and what any of its
        views has seen before, since a view that is taught by another one learns that, too."""
        own = [self.cache.items.sha256[row] for row in self.split.labelled]
        return frozenset(own).union(*self.cache.seen.values())

    @property
    def tomls(self) -> list[Path]:
        """Of the views that are written. One has the run's own name; several have theirs
        besides."""
        name = self.folder.name
        if len(self.originals) == 1:
            return [self.folder / f"{name}.toml"]
        return [self.folder / f"{name}-{view}.toml" for view in self.cache.names]


def read(config: FinetuneConfig) -> Ground:
    """Raises CoviewError for what is wrong with words and data."""
    asked = config.view_list()
    cache = _open(config)
    if len(cache.items.classes) < 2:
        raise UsageError(
            f"{cache.items.name!r} has fewer than two classes: there is nothing to tell apart. Put "
            "images into class folders, and type make extract once more"
        )
    originals = []
    weights = _weights(config, cache.names)
    for name, folder, where in zip(asked, cache.folders, weights, strict=True):
        originals.append(_originals(config, name, folder, where))
    split = make_split(cache.items, cache.ok, config.labels, config.seed(), config.apart())
    if len(asked) > 1 and not len(split.unlabelled):
        raise UsageError(
            f"LABELS={config.labels} leaves no unlabelled image, by which views teach each other. "
            "Give fewer (LABELS=4, LABELS=10%), or tune one by one: VIEW",
        )
    config = config.settled(len(split.labelled), len(cache.items.classes))
    several = "together" if len(asked) > 1 else cache.names[0]
    folder = Path(config.runs) / (config.run or f"{several}-ft")
    ground = Ground(config, cache, originals, split, folder, _device(config))
    for toml in ground.tomls:
        _refuse_name(ground, toml)
    return ground


def _device(config: FinetuneConfig) -> torch.device:
    """This process's; of one that only watches others the first."""
    if config.gpus > 1 and not under_torchrun():
        return torch.device(devices(config.device, config.gpus)[0])
    return choose_device(config.device, config.gpus)


def _open(config: FinetuneConfig) -> Cache:
    """Raises as `open_cache` does; an error that would have other VIEWS means VIEW, where that is
    what was given."""
    try:
        return open_cache(Path(config.cache), os.path.expanduser(config.data), config.view_list())
    except CoviewError as error:
        if config.view and "VIEWS" in error.instead:
            error.instead["VIEW"] = error.instead.pop("VIEWS")
        raise


def _refuse_name(ground: Ground, toml: Path) -> None:
    """Raise UsageError where another view has the name."""
    dataset = ground.cache.folders[0].parent
    others = []
    for folder in store.called(store.view_folders(dataset), toml.stem):
        made_of = store.open_view(folder).attributes["provenance"].get("spec_file", "")
        if Path(made_of) != toml.resolve():
            others.append(folder)
    if others or toml.stem in view_names():
        raise UsageError(
            f"RUN={ground.folder.name}: the tuned view would be called {toml.stem!r}, and another "
            "view is; give the run another name",
            instead={"RUN": f"{ground.cache.names[0]}-tuned"},
        )


def _weights(config: FinetuneConfig, names: Sequence[str]) -> list[str | None]:
    """WEIGHTS= for each view, as extract has it. Raises UsageError."""
    if config.weights is None or len(names) == 1:
        return [config.weights] * len(names)
    found = weights_below(config.weights, names)
    if not any(found):
        raise none_below(config.weights, names)
    return found


def _originals(config: FinetuneConfig, name: str, folder: Path, weights: str | None) -> Originals:
    view = store.open_view(folder)
    if view.attributes["spec"]["backend"] == store.IMPORTED:
        raise UsageError(
            f"the view {name!r} was imported, not computed from images: there is no backbone to "
            "tune. Take one that extract has embedded (make views lists them)",
            instead={"VIEW": UNKNOWN},
        )
    return find_originals(view, name, weights, Path(config.root))


def made(ground: Ground, peers: Peers | None = None) -> tuple[Work, list[Needs]]:
    """What is tuned by this process, on the device, and the memory that each of its views needs.
    peers: those of all processes; None: this one alone. Raises CoviewError."""
    peers = peers or LocalPeers(len(ground.originals))
    config, rows, label_N = ground.config, ground.split.labelled, ground.cache.items.label
    config = dataclasses.replace(config, threads=config.threads or torch.get_num_threads())
    torch.set_num_threads(config.threads)
    lives, pictures, needs = [], [], []
    for view in peers.mine:
        live, shown = _live(ground, view)
        lives.append(live)
        pictures.append(shown)
        needs.append(needs_of(live, shown.as_extracted(rows[:MEASURED].tolist())))
    dealt, needs = _dealt(ground, lives, needs, peers)
    chunk = chunk_of(config, needs, ground.device, peers)
    config = dataclasses.replace(config, chunk=chunk)
    if chunk < config.part() and ground.device.type == "cpu":
        native.keep_no_memory()
    for view, live in zip(peers.mine, lives, strict=True):
        _place(live, ground.device, peers, dealt)
        live.backbone.precision = precision_of(ground.originals[view].spec, ground.device.type)
    passes = Passes(rows, config.seed(), LABELLED)
    if peers.count == 1:
        work = Tuning(lives, pictures, label_N, passes, config, ground.device, peers, dealt)
        return work, needs
    others = Passes(ground.split.unlabelled, config.seed(), UNLABELLED)
    work = Together(lives, pictures, label_N, passes, others, config, ground.device, peers)
    return work, needs


def _live(ground: Ground, view: int) -> tuple[Live, Pictures]:
    original = ground.originals[view]
    items, rows, emb_ND = ground.cache.items, ground.split.labelled, ground.cache.emb[view]
    known = known_of(ground, view)
    head = fit_head(standardise(emb_ND, rows, *known), items.label[rows], ground.classes)
    backbone = load_backbone(original.spec, original.files, "cpu", folded=False)
    live = Live(backbone, head, known)
    live.thaw(ground.config)
    read_row = by_key(original.dataset, items)
    return live, Pictures(read_row, items, original.spec.preprocess, ground.config)


def _place(live: Live, device: torch.device, peers: Peers, dealt: bool) -> None:
    """On the device, or the process's part of it; there are no parts where the others are not."""
    if not dealt:
        live.to(device)
    elif not isinstance(peers, OneOfSeveral):
        deal_out(live, device, peers.replicas)


def put_back(ground: Ground, work: Work) -> None:
    """What was dealt out stands in one model again, on the CPU, of the first process; all call
    this."""
    named = put_together(work.lives[0], keeps=not work.peers.replica)
    if work.peers.replica:
        return
    whole, _ = _live(ground, 0)
    with torch.no_grad():
        for name, parameter in whole.named().items():
            parameter.copy_(named[name])
    work.lives = [whole]


def known_of(ground: Ground, view: int) -> tuple[np.ndarray, np.ndarray]:
    """The statistics by which probes standardise a view."""
    rows = np.union1d(ground.split.labelled, ground.split.unlabelled)
    return statistics(ground.cache.emb[view], rows)


def by_key(dataset: Dataset, items: Items) -> Callable[[int], bytes]:
    """What reads the image of a row of the item list: the folder may hold others besides by now."""
    place_of = {key: place for place, key in enumerate(dataset.keys)}

    def read_row(row: int) -> bytes:
        place = place_of.get(items.keys[row])
        if place is None:
            raise FileNotFoundError(items.keys[row])
        return dataset.read(place)

    return read_row


def free_bytes(device: torch.device, processes: int) -> int:
    """Of memory, on the device; of the machine's for each of so many processes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # torchrun may have others on other machines
    return available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", processes))


def wanted(config: FinetuneConfig, needs: Sequence[Needs], size: int, device: torch.device) -> int:
    """Bytes, where so many images are in memory at a time. Views that learn together keep labelled
    and unlabelled ones of all that this process has, unless they are in parts."""
    together, whole = len(config.view_list()) > 1, size == config.part()
    each = TOGETHER if together else ALONE
    fixed = sum(LIBRARIES + one.weights + one.once + each * one.learnt for one in needs)
    images = size * max(one.image for one in needs)
    if together and whole:
        images = 2 * size * sum(one.image for one in needs)
    if whole and device.type == "cpu":  # in parts no memory is kept
        images = round(HOLES * images)
    return fixed + images


def _dealt(
    ground: Ground, lives: Sequence[Live], needs: list[Needs], peers: Peers
) -> tuple[bool, list[Needs]]:
    """Whether a view whose batches several processes share is dealt out to them, too: where it does
    not fit in each with even one image. And what each of them needs then."""
    dealt = ground.dealt
    if dealt is None:
        shared = peers.count == 1 and peers.replicas > 1 and all(map(can_be_dealt_out, lives))
        dealt = shared and too_large(ground, needs, peers)
    if dealt:
        needs = [one.dealt_out(peers.replicas) for one in needs]
    return dealt, needs


def too_large(ground: Ground, needs: Sequence[Needs], peers: Peers) -> bool:
    """Whether one image is too much for any of the processes."""
    room = SHARE * free_bytes(ground.device, ground.config.gpus)
    return peers.any(wanted(ground.config, needs, 1, ground.device) > room)


def chunk_of(
    config: FinetuneConfig, needs: Sequence[Needs], device: torch.device, peers: Peers
) -> int:
    """Images at a time: as asked, else a process's part of the batch, halved until it fits in every
    process. Raises UsageError where not even that fits."""
    part, room = config.part(), SHARE * free_bytes(device, config.gpus)

    def fits(size: int) -> bool:
        return wanted(config, needs, size, device) <= room

    size = part
    while size > 1 and peers.any(not fits(size)):
        size = -(-size // 2)
    asked = min(config.chunk, part) or size
    if not peers.any(not fits(asked)):
        return asked
    fitting = size if fits(size) else 0
    raise _too_much(config, asked, wanted(config, needs, asked, device), room, fitting)


def _too_much(config: FinetuneConfig, asked: int, need: int, room: float, size: int) -> CoviewError:
    """size: images at a time that would fit; 0: none."""
    told = (
        f"{counted(asked, 'image')} at a time need {need / 1e9:.1f} GB, and {room / 1e9:.1f} GB of "
        "what is free are for that"
    )
    if size:
        return UsageError(
            f"{told}; {counted(size, 'image')} at a time would fit, with the gradient of the same "
            f"batch of {config.batch}",
            instead={"--chunk": str(size)},
        )
    forget = ""
    if len(config.view_list()) == 1:
        forget = "forget what is inside of the blocks (ARGS=--checkpointing), "
    return UsageError(f"{told}. Tune less (MODE=lora), {forget}or take a smaller view")
