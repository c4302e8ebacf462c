"""The frame of a run in one process: device, checked views and splits, the run's folder and its lock, peers, listeners, stop signals.

with session(config) as s:      s.cache, s.splits, s.folder, s.peers, …; whatever ends it, those who watch the ranks learn the exit code
"""

import dataclasses
import faulthandler
import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from base.commands import amend
from base.errors import CoviewError, DataQualityError, PreemptedError, StoppedError, UsageError
from train.algorithm.ranks import BOARD, my_rank, refuse_ranks, under_torchrun
from train.config import UNLABELLED, TrainConfig

HEAVY = ("label-propagation", "supervised-graph", "mct-graph")
MOST_BYTES, MOST_LABELLED = 4e9, 50_000  # beyond them these would take hours or all memory

if TYPE_CHECKING:
    import torch

    from train.algorithm.peers import Peers
    from train.data.reader import Cache
    from train.data.splits import Split
    from train.run.log import Listeners


@dataclass(frozen=True)
class Session:
    """What a run works with. finished: the run has its summary already; then `peers` are this process alone, and nobody listens."""

    cache: "Cache"
    splits: "list[Split]"
    methods: list[str]
    folder: Path
    device: "torch.device"
    peers: "Peers"
    listener: "Listeners"
    stop: threading.Event
    finished: bool


def begin() -> None:
    """What holds for every process that trains."""
    faulthandler.enable(
        sys.__stderr__
    )  # a mapped file that is cut short kills: then with its place
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle torch threads give way, not spin


def start(
    config: TrainConfig,
    run: Callable[[Any], Any],
    found: dict[str, Any],
    outcome: str = "summary.json",
) -> Path | None:
    """Run a command: in this process, or in as many as GPUS says. Returns the run's folder; None in
    all but one of several processes. Without a name the run is called by date and time. outcome:
    the file it ends with, which `found` gets too."""
    made_up = not config.run
    if made_up:
        now = datetime.now().strftime("%Y%m%d-%H%M%S")
        config = dataclasses.replace(config, run=f"{now}-{os.getpid()}")
        amend("RUN", config.run)  # every rank writes into one folder
    folder = Path(config.runs) / config.run
    found["run"] = str(folder)
    try:
        _start(config, run)
    except KeyboardInterrupt:
        raise StoppedError(
            "stopped at once; finished methods and the last checkpoint are kept"
        ) from None
    except CoviewError:
        if made_up and not (folder / "config.json").is_file():
            amend("RUN", None)  # nothing goes by that name yet: again as it was typed
        raise
    if BOARD in os.environ or my_rank():
        return None
    found["result"] = json.loads((folder / outcome).read_text(encoding="utf-8"))
    return folder


def _start(config: TrainConfig, run: Callable[[Any], Any]) -> None:
    if under_torchrun():  # of `launch`, or somebody's own torchrun, which need not say --gpus
        ranks = int(os.environ["WORLD_SIZE"])
        if config.gpus not in (1, ranks):
            raise UsageError(
                f"--gpus {config.gpus}, but torchrun started {ranks} processes; leave --gpus out"
            )
        refuse_ranks(ranks, len(config.view_list()))
        run(dataclasses.replace(config, gpus=ranks))
        return
    print(f"run {Path(config.runs) / config.run}", file=sys.stderr, flush=True)
    if config.gpus > 1:
        from train.run.launch import launch

        read(config)  # what is wrong with the data is said once, before any rank starts
        launch(config.gpus, config.view_list())
    else:
        run(config)


@contextmanager
def session(config: TrainConfig) -> Iterator[Session]:
    """Open all that a run needs. Raises CoviewError."""
    import torch

    from base import durable, locks
    from base.commands import typed
    from base.interrupt import heeded
    from cache_specs.alike import alike
    from train.algorithm.peers import LocalPeers, choose_device, make_peers
    from train.run.checkpoint import mend, metrics_bytes
    from train.run.launch import FAILED, Board
    from train.run.log import Console, Ignore, Jsonl, Listeners, Trackers
    from train.run.rundir import is_finished, open_run, write_splits

    rank, stop, pressed = my_rank(), threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if under_torchrun():
        signal.signal(
            signal.SIGINT, lambda *_: stop.set()
        )  # it hands Ctrl-C on, so that one press may come twice
    board = Board(os.environ[BOARD], rank) if BOARD in os.environ else Ignore()
    code, cleanup = FAILED, ExitStack()

    def press() -> None:
        pressed.set()
        stop.set()

    try:
        if not under_torchrun():
            cleanup.enter_context(
                heeded(
                    press,
                    "stopping after this step, and saving (Ctrl-C again stops at once)",
                    f"stopped at once; finished methods and the last checkpoint are kept\nTo go on, type: {typed()}",
                )
            )
        if config.threads:
            torch.set_num_threads(config.threads)
        device = choose_device(config.device, config.gpus)
        cache, splits, methods = read(config, sys.stderr if rank == 0 else None)
        config = dataclasses.replace(
            config, method=",".join(methods)
        )  # what a default was is recorded
        if rank == 0:
            cache.warn_of_drift()
            warn_of_copies(cache, splits[0])
            warn_of_classes(cache, splits[0])
            for (one, other), why in alike(cache.names).items():
                print(
                    f"warning: the views {one} and {other} are too alike to teach each other much: {why}",
                    file=sys.stderr,
                    flush=True,
                )
            cleanup.enter_context(locks.lock(durable.make_folder(Path(config.runs) / config.run)))
        folder = open_run(config, cache.fingerprints, device.type, leader=rank == 0)
        if is_finished(folder):
            yield Session(
                cache,
                splits,
                methods,
                folder,
                device,
                LocalPeers(len(cache.names)),
                Listeners(),
                stop,
                True,
            )
        else:
            if rank == 0:
                mend(folder)  # before the others, who wait for this one to join them, look
            peers = make_peers(len(cache.names), device, config.timeout_s)
            listeners = [board]
            if rank == 0:
                write_splits(folder, cache.items, splits, config.seed_list())
                listeners += [
                    Jsonl(folder / "metrics.jsonl", metrics_bytes(folder / "checkpoints")),
                    Console(config.log_every_s),
                ]
                listeners += [Trackers(folder, trackers(config))]
            listener = Listeners(*listeners)
            cleanup.callback(listener.close)
            yield Session(cache, splits, methods, folder, device, peers, listener, stop, False)
        code = 0
    except CoviewError as error:
        code = error.exit_code
        if pressed.is_set() and isinstance(error, PreemptedError):
            raise StoppedError(*error.args) from None
        raise
    finally:
        cleanup.close()
        board.ended(code)


def trackers(config: TrainConfig) -> dict[str, str]:
    """Who follows the run, {name: mode}. TensorBoard does wherever it is installed; it is not imported to see that."""
    found = (
        {"tensorboard": ""}
        if config.tensorboard == "auto" and importlib.util.find_spec("tensorboard")
        else {}
    )
    return found | ({"wandb": config.wandb} if config.wandb != "off" else {})


def read(
    config: TrainConfig, told: TextIO | None = None, remember: bool = True
) -> tuple["Cache", list["Split"], list[str]]:
    """The views, a split for each seed, and the methods: those asked for, or, of the default and of `all`, those that the data allow; what is left out
    is `told`. Raises CoviewError."""
    from train.data.reader import open_cache
    from train.data.splits import make_split

    cache = open_cache(
        Path(config.cache), os.path.expanduser(config.data), config.view_list(), remember
    )
    if len(cache.items.classes) < 2:
        raise DataQualityError(
            f"{cache.items.name!r} has {len(cache.items.classes)} class(es); training needs at least two. Put the images into class "
            "folders, or give a table with the columns path,label,split"
        )
    splits = [make_split(cache.items, cache.ok, config.labels, seed) for seed in config.seed_list()]
    methods, chosen = config.method_list(), config.method not in ("", "all")
    full = not all(len(split.unlabelled) for split in splits)
    scores = (
        8
        * len(splits)
        * len(cache.items.classes)
        * max(len(splits[0].val), len(splits[0].test))
        * (2 * len(cache.names) + 1)
    )
    large = scores > MOST_BYTES or max(len(split.labelled) for split in splits) > MOST_LABELLED
    for which, names, why, instead in (
        (
            full,
            UNLABELLED,
            f"LABELS={config.labels} leaves no unlabelled image for",
            "Give fewer (LABELS=4, LABELS=10%), add images without a label, or type METHOD=supervised",
        ),
        (
            large,
            HEAVY,
            f"the scores of all validation and test images (here some {scores / 1e9:,.1f} GB) and a graph of all labelled images (at most "
            f"{MOST_LABELLED:,}) would not fit into memory, for",
            f"Use fewer seeds (SEEDS=0), smaller splits, or METHOD=supervised{',mct' * (not full)}",
        ),
    ):
        if hit := [method for method in methods if which and method in names]:
            methods = [method for method in methods if method not in hit]
            if chosen or not methods:
                raise UsageError(f"{why} {', '.join(hit)}. {instead}")
            if told:
                print(f"{why} {', '.join(hit)}: left out", file=told, flush=True)
    return cache, splits, methods


def warn_of_classes(cache: "Cache", split: "Split") -> None:
    """Say which classes have no validation or test image: no score and no choice says anything of them."""
    for name, rows in (("validation", split.val), ("test", split.test)):
        there = {*cache.items.label[rows].tolist()}
        if lacking := [
            repr(label) for number, label in enumerate(cache.items.classes) if number not in there
        ]:
            print(
                f"warning: of {len(cache.items.classes):,} classes {len(lacking):,} ha{'ve' if len(lacking) > 1 else 's'} no {name} image: "
                f"{', '.join(lacking[:10])}{' …' if len(lacking) > 10 else ''}. The {name} scores say nothing of them",
                file=sys.stderr,
                flush=True,
            )


def warn_of_copies(cache: "Cache", split: "Split") -> None:
    """Say how many validation and test images are byte for byte among the training images."""
    sha256 = cache.items.sha256
    train = {sha256[row] for rows in (split.labelled, split.unlabelled) for row in rows}
    for name, rows in (("validation", split.val), ("test", split.test)):
        if copies := sum(sha256[row] in train for row in rows):
            print(
                f"warning: {copies} of {len(rows)} {name} images are byte for byte also training images; their scores are too good",
                file=sys.stderr,
                flush=True,
            )
