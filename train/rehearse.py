"""make train … ARGS=--dry-run: what would be trained, in how much memory, and, after a few timed
steps, about how long. Writes nothing to stay.

The steps are those of the loop itself, on the real rows, in a temp folder that is gone at the end.
What has no loop (scikit-learn's methods, and the graphs of supervised-graph and mct-graph) is not
timed.
"""

import dataclasses
import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from base.commands import typed
from base.console import about_text, counted
from train.algorithm import probe
from train.algorithm.peers import LocalPeers, choose_device
from train.config import TrainConfig
from train.data.feed import shape_of
from train.data.folds import trainings
from train.data.reader import Cache
from train.data.splits import Split
from train.jobs import dtype_of, experiments, make_jobs
from train.loop import fit
from train.methods import METHODS, Method
from train.phases import Phase, phases_of
from train.run.log import Ignore
from train.run.reading import Ground, warn

log = logging.getLogger(f"coview.{__name__}")

WARM, STEPS = 6, 8  # timed steps of each kind; the fastest counts
NEVER = 2**30
PARTS = ("labelled", "unlabelled", "val", "test")


class Stamps(Ignore):
    """When each step ended, and when the look at validation after the last one did."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def step(self, step: int) -> None:
        self.steps.append(time.monotonic())

    def tell(self, record: dict[str, Any]) -> None:
        self.looked = time.monotonic()


def rehearse(config: TrainConfig, ground: Ground) -> dict[str, Any]:
    """Print and return the plan of a run on what was read. Raises CoviewError where the run itself
    would refuse to begin."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device, 1)
    cache, splits, methods = ground
    config = config.settled(len(splits[0].labelled))
    warn(cache, splits[0], config.labels, config.apart())
    found = _of_data(config, cache, splits, device)
    found["methods"], known = [], {}
    for name in methods:
        method = METHODS[name]
        steps, seconds, told = None, None, "no steps, not timed (scikit-learn's)"
        if not method.classic:
            plain = method.without_graphs or name  # timed once, also where both are asked for
            if plain not in known:
                known[plain] = _timed(plain, config, cache, splits, device)
            steps, seconds = how_long(method, config, known[plain])
            graphs = ", and its graphs, not timed" if method.graphs else ""
            told = f"{steps:,} steps, {about_text(seconds)}{graphs}"
        found["methods"].append({"method": name, "steps": steps, "seconds": seconds})
        log.info(f"{name:18} {told}")
    found["seconds"] = sum(one["seconds"] or 0 for one in found["methods"])
    others = f", in one process; on {config.gpus} it is less" if config.gpus > 1 else ""
    log.info(
        f"{about_text(found['seconds'])} in all for what is timed{others}, by the fastest of "
        f"{STEPS} steps timed now. Nothing is written. To begin, type: {typed(without='--dry-run')}"
    )
    return found


def _of_data(
    config: TrainConfig, cache: Cache, splits: list[Split], device: torch.device
) -> dict[str, Any]:
    """What there is to train on, printed too."""
    split, classes, views, lines = splits[0], len(cache.items.classes), [], []
    for name, emb_ND in zip(cache.names, cache.emb, strict=True):
        rows, width = emb_ND.shape
        views.append({"view": name, "rows": rows, "width": width, "bytes": emb_ND.nbytes})
        lines.append(f"{rows:,} x {width} of {name}")
    rows = {part: len(getattr(split, part)) for part in PARTS}
    counts = ", ".join(f"{count:,} {part}" for part, count in rows.items())
    experiments = len(trainings(splits))
    memory = memory_of(config, cache, split, experiments)
    mapped = sum(view["bytes"] for view in views)
    log.info(
        f"{cache.items.name}: {', '.join(lines)}\n"
        f"rows: {counts} (of seed {config.seed_list()[0]}), {classes} classes\n"
        f"{counted(experiments, 'experiment')} at once on {device}, about {memory / 1e6:,.0f} MB "
        "for probes, optimiser, a batch and the validation scores; embeddings are mapped: "
        f"{mapped / 1e6:,.1f} MB"
    )
    return {
        "dry_run": True,
        "dataset": cache.items.name,
        "views": views,
        "rows": rows,
        "classes": classes,
        "experiments": experiments,
        "device": str(device),
        "memory_bytes": memory,
    }


def memory_of(config: TrainConfig, cache: Cache, split: Split, experiments: int) -> int:
    """Bytes, roughly: parameters, their two moments, gradients and two best copies; values that a
    backward pass needs; scores of the validation rows."""
    classes, total = len(cache.items.classes), 0
    batch = min(config.batch_labelled, len(split.labelled)) + config.batch_unlabelled
    layer = 5 * config.layers * config.hidden + 3 * classes
    kept = min(batch, config.chunk or batch) * config.members * layer
    for emb_ND in cache.emb:
        width = emb_ND.shape[1]
        params = probe.init([0], 0, width, classes, shape_of(config), torch.float32)
        copies = 7 if config.ema else 6
        total += copies * sum(tensor.numel() for tensor in params.values())
        total += 2 * batch * width + kept
    total += len(split.val) * classes * (len(cache.emb) + 1)
    return experiments * dtype_of(config.precision).itemsize * total


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of a supervised step, of one of the method's own, and of a look at validation; of all jobs
    together."""

    alone: float
    taught: float
    look: float


def how_long(method: Method, config: TrainConfig, each: Seconds) -> tuple[int, float]:
    """How many steps a method takes, and how many seconds."""
    total, seconds = 0, 0.0
    for phase in phases_of(method, config):
        steps = phase.end - phase.first
        seconds += steps * (each.taught if phase.unlabelled else each.alone)
        total = phase.end
    return total, seconds + -(-total // config.eval_every) * each.look


def _timed(
    name: str, config: TrainConfig, cache: Cache, splits: list[Split], device: torch.device
) -> Seconds:
    """By a few steps of each kind, and one look."""
    short = dataclasses.replace(
        config,
        warmup=min(WARM, config.warmup),
        cotrain=min(STEPS, config.cotrain),
        eval_every=NEVER,
        checkpoint_every=NEVER,
        patience=0,
    )
    phases, peers = phases_of(METHODS[name], short), LocalPeers(len(cache.names))
    alone = taught = look = 0.0
    for job in make_jobs(name, cache, splits, experiments(config), peers, device, config):
        stamps = Stamps()
        with tempfile.TemporaryDirectory(prefix="coview-dry-run-") as folder:
            fit(job, short, stamps, Path(folder), threading.Event())
        first, other = (_fastest(stamps.steps, phases, kind) for kind in (False, True))
        alone += first or other
        taught += other or first
        look += stamps.looked - stamps.steps[-1]
    return Seconds(alone, taught, look)


def _fastest(ended: list[float], phases: list[Phase], unlabelled: bool) -> float:
    """Seconds of the fastest step of a kind; 0.0 where there is none but the first of all."""
    spent = []
    for phase in phases:
        if phase.unlabelled == unlabelled:
            for step in range(max(1, phase.first), phase.end):
                spent.append(ended[step] - ended[step - 1])
    return min(spent, default=0.0)
