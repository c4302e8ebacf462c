"""make train VIEWS=clip,dinov2 DATA=photos/     (python -m train --views clip,dinov2 --data photos/)

Trains the probes on the cache, prints a table with spreads, writes runs/<id>/. The same command with the same RUN resumes or shows it.
"""

import dataclasses
import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_specs.errors import CoviewError, UsageError, run_cli
from train.config import TrainConfig

if TYPE_CHECKING:
    from train.reader import Cache
    from train.splits import Split


def main() -> None:
    import tyro

    faulthandler.enable()                                   # a mapped file that is cut short kills the process: then at least with its place
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")     # idle torch threads give way instead of spinning on a shared machine
    config = tyro.cli(TrainConfig, prog="python -m train", description=TrainConfig.__doc__)
    config.check()
    if not config.run:
        config = dataclasses.replace(config, run=datetime.now().strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}")
        sys.argv += ["--run", config.run]                   # every rank writes into one folder
    try:
        _start(config)
    except KeyboardInterrupt:
        error = CoviewError(f"interrupted; add RUN={config.run} to the same command to go on from the last checkpoint")
        error.exit_code = 130
        raise error from None


def _start(config: TrainConfig) -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        run(config)
        return
    print(f"run {Path(config.runs) / config.run}", file=sys.stderr, flush=True)
    if config.gpus > 1:
        from train.launch import launch

        read(config)                                        # what is wrong with the data is said once, before any rank starts
        launch(config.gpus, config.view_list())
    else:
        run(config)


def read(config: TrainConfig) -> tuple["Cache", list["Split"]]:
    """The views and a split for each seed, checked. Raises CoviewError."""
    from train.reader import open_cache
    from train.splits import make_split

    cache = open_cache(Path(config.cache), os.path.expanduser(config.data), config.view_list())
    if len(cache.items.classes) < 2:
        raise UsageError(f"{cache.items.name!r} has {len(cache.items.classes)} class(es); training needs at least two. Put the images into class "
                         "folders, or give a table with the columns path,label,split")
    splits = [make_split(cache.items, cache.ok, config.labels, seed) for seed in config.seed_list()]
    if "mct" in config.method_list() and not all(len(split.unlabelled) for split in splits):
        raise UsageError(f"LABELS={config.labels} leaves no unlabelled image to co-train on; give fewer (LABELS=4, LABELS=10%), add images without a "
                         "label, or type METHOD=supervised")
    return cache, splits


def warn_of_copies(cache: "Cache", split: "Split") -> None:
    """Say how many validation and test images are byte for byte among the training images."""
    sha256 = cache.items.sha256
    train = {sha256[row] for rows in (split.labelled, split.unlabelled) for row in rows}
    for name, rows in (("validation", split.val), ("test", split.test)):
        if copies := sum(sha256[row] in train for row in rows):
            print(f"warning: {copies} of {len(rows)} {name} images are byte for byte also training images; their scores are too good",
                  file=sys.stderr, flush=True)


def run(config: TrainConfig) -> dict[str, Any]:
    """Train, evaluate, print the table; return the summary (on rank 0). Raises CoviewError."""
    import torch

    from cache_specs import durable, locks
    from train.checkpoint import metrics_bytes
    from train.launch import BOARD, FAILED, Board
    from train.log import Console, Ignore, Jsonl, Listeners, Wandb
    from train.loop import fit, make_task
    from train.peers import choose_device, make_peers, my_rank
    from train.report import describe, read_summary, summarise, table, write_probe
    from train.rundir import is_finished, open_run, write_splits

    begun, rank = time.monotonic(), my_rank()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    board = Board(os.environ[BOARD], rank) if BOARD in os.environ else Ignore()
    code, cleanup = FAILED, ExitStack()
    try:
        if config.threads:
            torch.set_num_threads(config.threads)
        device = choose_device(config.device, config.gpus)
        cache, splits = read(config)
        if rank == 0:
            cache.warn_of_drift()
            warn_of_copies(cache, splits[0])
            cleanup.enter_context(locks.lock(durable.make_folder(Path(config.runs) / config.run)))
        folder = open_run(config, cache.fingerprints, device.type, leader=rank == 0)
        if is_finished(folder):
            code, summary = 0, read_summary(folder)
            if rank == 0:
                print(f"the run {folder} is finished; another RUN= makes a new one\n\n{table(summary)}")
            return summary
        peers = make_peers(len(cache.names), device)
        listeners = [board]
        if rank == 0:
            write_splits(folder, cache.items, splits, config.seed_list())
            listeners += [Jsonl(folder / "metrics.jsonl", metrics_bytes(folder / "checkpoints")), Console(config.log_every_s)]
            listeners += [Wandb(config.wandb, folder, dataclasses.asdict(config))] if config.wandb != "off" else []
        listener = Listeners(*listeners)
        cleanup.callback(listener.close)
        dtype = torch.float64 if config.precision == "float64" else torch.float32
        precision = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" and config.precision == "auto" else nullcontext()
        task = make_task(cache.names, cache.emb, cache.items.label, len(cache.items.classes), splits, config.seed_list(), peers.mine, device, dtype)
        for method in config.method_list():
            if not all((folder / "probes" / method / f"{name}.safetensors").is_file() for name in cache.names):
                done = fit(method, config, task, peers, listener, folder / "checkpoints", folder / "metrics.jsonl", device, precision, stop)
                for view, best, fused, source in zip(peers.mine, done.best, done.fused, task.inputs, strict=True):
                    write_probe(folder, method, cache.names[view], best, fused, source)
            peers.any(False)                                # every rank has looked, and every probe is on the disk
        summary = {}
        if rank == 0:
            head = describe(config, cache.items, cache.names, splits, cache.fingerprints)
            cache.refuse_changed()
            rows = {"val": splits[0].val, "test": splits[0].test}
            summary = summarise(folder, head, config.method_list(), cache.names, cache.emb, cache.items.label, cache.items.keys, rows, device,
                                time.monotonic() - begun)
            print(f"\n{table(summary)}\n{folder / 'summary.json'}", flush=True)
        peers.close()
        code = 0
        return summary
    except CoviewError as error:
        code = error.exit_code
        raise
    finally:
        cleanup.close()
        board.ended(code)


if __name__ == "__main__":
    sys.exit(run_cli(main))
