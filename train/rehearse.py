"""make train … ARGS=--dry-run: what would be trained, in how much memory, and, after a few timed steps, about how long. Writes nothing to stay.

The steps are those of the loop itself, on the real rows, in a temp folder that is gone at the end. What has no loop (scikit-learn's methods, and
the graphs of supervised-graph and mct-graph) is not timed.
"""

import dataclasses
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.commands import typed
from base.console import clock_text
from train.config import TrainConfig
from train.run.log import Ignore

if TYPE_CHECKING:
    from train.data.reader import Cache
    from train.data.splits import Split

WARM, STEPS = 6, 8  # timed steps of each kind; the fastest counts
WITHOUT_GRAPH = {"supervised-graph": "supervised", "mct-graph": "mct"}


class Stamps(Ignore):
    """When each step ended, and when the look at validation after the last one did."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def step(self, step: int) -> None:
        self.steps.append(time.monotonic())

    def tell(self, record: dict[str, Any]) -> None:
        self.looked = time.monotonic()


def rehearse(config: TrainConfig) -> dict[str, Any]:
    """Print and return the plan of a run. Raises CoviewError where the run itself would refuse to begin."""
    import torch

    from train.algorithm.peers import choose_device
    from train.methods import PLANS
    from train.run.session import read

    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device, 1)
    cache, splits, methods = read(config, sys.stderr, remember=False)
    split, period = splits[0], config.warmup + config.cotrain
    rows = {
        "labelled": len(split.labelled),
        "unlabelled": len(split.unlabelled),
        "val": len(split.val),
        "test": len(split.test),
    }
    views = [
        {"view": name, "rows": len(emb_ND), "width": emb_ND.shape[1], "bytes": emb_ND.nbytes}
        for name, emb_ND in zip(cache.names, cache.emb, strict=True)
    ]
    memory, found, known = memory_of(config, cache, split, len(splits)), [], {}
    print(
        f"{cache.items.name}: {', '.join('{rows:,} x {width} of {view}'.format(**view) for view in views)}\n"
        f"rows: {', '.join(f'{count:,} {name}' for name, count in rows.items())} (of seed {config.seed_list()[0]}), {len(cache.items.classes)} classes\n"
        f"{len(splits)} experiment{'s' * (len(splits) > 1)} at once on {device}, about {memory / 1e6:,.0f} MB for probes, optimiser, a batch and the "
        f"validation scores; embeddings are mapped: {sum(view['bytes'] for view in views) / 1e6:,.1f} MB",
        flush=True,
    )
    for method in methods:
        steps = PLANS[method].phases * period if method in PLANS else None
        plain = WITHOUT_GRAPH.get(method, method)
        if steps and plain not in known:
            known[plain] = _seconds(plain, config, cache, splits, device)
        seconds = known[plain] if steps else None
        found.append({"method": method, "steps": steps, "seconds": seconds})
        print(
            f"{method:18} "
            + (
                f"{steps:,} steps, about {clock_text(seconds)}"
                + ", and its graphs, not timed" * (method in WITHOUT_GRAPH)
                if steps
                else "no steps, not timed (scikit-learn's)"
            ),
            flush=True,
        )
    timed = sum(one["seconds"] or 0 for one in found)
    print(
        f"about {clock_text(timed)} in all for what is timed"
        + f", in one process; on {config.gpus} it is less" * (config.gpus > 1)
        + f", by the fastest of {STEPS} steps timed now. Nothing is written. To begin, type: {typed(without='--dry-run')}"
    )
    return {
        "dry_run": True,
        "dataset": cache.items.name,
        "views": views,
        "rows": rows,
        "classes": len(cache.items.classes),
        "experiments": len(splits),
        "device": str(device),
        "memory_bytes": memory,
        "methods": found,
        "seconds": timed,
    }


def memory_of(config: TrainConfig, cache: "Cache", split: "Split", experiments: int) -> int:
    """Bytes, roughly: parameters, their two moments, gradients and two best copies; values that a backward pass needs; scores of the validation rows."""
    import torch

    from train.algorithm import probe
    from train.data.feed import shape_of

    value, total, classes = 8 if config.precision == "float64" else 4, 0, len(cache.items.classes)
    batch = min(config.batch_labelled, len(split.labelled)) + config.batch_unlabelled
    for emb_ND in cache.emb:
        width = emb_ND.shape[1]
        params = probe.init([0], 0, width, classes, shape_of(config), torch.float32)
        total += (
            experiments
            * value
            * (6 + (config.ema > 0))
            * sum(tensor.numel() for tensor in params.values())
        )
        kept = min(batch, config.chunk or batch)
        total += (
            experiments
            * value
            * (
                2 * batch * emb_ND.shape[1]
                + kept * config.members * (5 * config.layers * config.hidden + 3 * classes)
            )
        )
    return total + experiments * value * len(split.val) * classes * (len(cache.emb) + 1)


def _seconds(
    method: str, config: TrainConfig, cache: "Cache", splits: "list[Split]", device: Any
) -> float:
    """Steps of both kinds and a look at validation, timed, times how many there will be."""
    from train.algorithm.peers import LocalPeers
    from train.jobs import autocast, experiments, make_jobs
    from train.loop import fit
    from train.methods import PLANS

    short = dataclasses.replace(
        config,
        warmup=min(WARM, config.warmup),
        cotrain=min(STEPS, config.cotrain),
        eval_every=2**30,
        checkpoint_every=2**30,
        patience=0,
    )
    looks = -(-(config.warmup + config.cotrain) // config.eval_every)
    total, (dtype, precision), phases = 0.0, autocast(config, device), PLANS[method].phases
    for job in make_jobs(
        method, cache, splits, experiments(config), LocalPeers(len(cache.names)), device, dtype
    ):
        stamps = Stamps()
        with tempfile.TemporaryDirectory(prefix="coview-dry-run-") as folder:
            fit(
                job,
                short,
                stamps,
                Path(folder) / "checkpoints",
                Path(folder) / "metrics.jsonl",
                precision,
                threading.Event(),
            )
        spent = [
            after - before for before, after in zip(stamps.steps, stamps.steps[1:], strict=False)
        ]
        period = short.warmup + short.cotrain
        first, last = (
            spent[: max(1, short.warmup - 1)],
            spent[(phases - 1) * period + short.warmup :] or spent[-1:],
        )
        total += phases * (
            config.warmup * min(first or [0])
            + config.cotrain * min(last or [0])
            + looks * (stamps.looked - stamps.steps[-1])
        )
    return total
