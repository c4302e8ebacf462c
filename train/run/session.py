"""The frame of a run in one process: device, checked views and splits, the run's folder and its
lock, peers, listeners, stop signals.

    with session(config) as s:
        with together(s.peers):     what all ranks do; then they part
            s.cache, s.splits, s.folder, …

Whatever ends it, those who watch the ranks learn the exit code.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from base import durable, locks
from base.commands import typed
from base.console import is_heard
from base.errors import CoviewError, PreemptedError, StoppedError, UsageError
from base.interrupt import heeded
from base.limits import is_out_of_memory
from train.algorithm.peers import LocalPeers, LostError, Peers, choose_device, make_peers
from train.algorithm.ranks import BOARD, my_rank, under_torchrun
from train.config import RunSettings, TrainConfig
from train.data.reader import Cache
from train.data.splits import Split
from train.run.checkpoint import mend, metrics_bytes
from train.run.launch import FAILED, Board, stop_with_parent
from train.run.log import Console, Ignore, Jsonl, Listener, Listeners, Trackers
from train.run.reading import Ground, read, warn
from train.run.rundir import is_finished, open_run, write_splits
from train.run.start import KEPT

log = logging.getLogger(f"coview.{__name__}")


@dataclass(frozen=True)
class Session:
    """What a run works with. leads: one of several ranks does what is done once. finished: the run
    has its summary already; then `peers` are this process alone, and nobody listens."""

    cache: Cache
    splits: list[Split]
    methods: list[str]
    folder: Path
    device: torch.device
    peers: Peers
    listener: Listener
    stop: threading.Event
    leads: bool = True
    finished: bool = False


@contextmanager
def session(config: TrainConfig, ground: Ground | None = None) -> Generator[Session, None, None]:
    """Open all that a run needs. ground: what was read already. Raises CoviewError."""
    rank = my_rank()
    leads = rank == 0
    with watched(rank) as board, stop_signals() as stop:
        if config.threads:
            torch.set_num_threads(config.threads)
        device = choose_device(config.device, config.gpus)
        cache, splits, methods = ground or read(config, aloud=leads)
        if leads:
            warn(cache, splits[0], config.labels, config.apart())
        config = dataclasses.replace(config, method=",".join(methods))  # recorded, also a default
        with own_folder(config, cache.fingerprints, device, leads) as folder:
            work = cache, splits, methods, folder, device
            if is_finished(folder):
                alone = LocalPeers(len(cache.names))
                yield Session(*work, alone, Listeners(), stop, leads, finished=True)
                return
            if leads:
                mend(folder)  # before the others, who wait for this one to join them, look
            peers = make_peers(len(cache.names), device, config.timeout_s)
            if leads:
                write_splits(folder, cache.items, splits, config.seed_list())
            with listeners(folder, board, config, leads) as listener:
                yield Session(*work, peers, listener, stop, leads)


@contextmanager
def watched(rank: int) -> Generator[Ignore, None, None]:
    """Who started the ranks learns how far this one is, and in the end its exit code."""
    board: Ignore = Ignore()
    if BOARD in os.environ:
        board = Board(os.environ[BOARD], rank)
        stop_with_parent()
    code = FAILED
    try:
        yield board
        code = 0
    except CoviewError as error:
        code = error.exit_code
        # who watches the ranks says that they stopped
        watches = isinstance(board, Board) and isinstance(error, PreemptedError)
        error.told = watches or (error.of_all and rank > 0)
        raise
    except LostError as error:  # the one that has failed says why, or who watches the ranks
        why = " ".join(str(error).split())[:200]
        log.warning(f"rank {rank} waits for the others no longer: {why}")
        raise SystemExit(FAILED) from None
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            code = UsageError.exit_code  # as `start` will say
        raise
    finally:
        board.ended(code)


@contextmanager
def stop_signals() -> Generator[threading.Event, None, None]:
    """The event that a stop signal sets. Ctrl-C is one, too; the second ends the process at
    once."""
    stop, pressed = threading.Event(), threading.Event()

    def press() -> None:
        pressed.set()
        stop.set()

    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    plan = "stopping after this step, and saving (Ctrl-C again stops at once)"
    heard: AbstractContextManager = heeded(press, plan, f"{KEPT}\nTo go on, type: {typed()}")
    if under_torchrun():  # it hands Ctrl-C on, so that one press may come twice
        signal.signal(signal.SIGINT, lambda *_: stop.set())
        heard = nullcontext()
    try:
        with heard:
            yield stop
    except PreemptedError as error:
        if pressed.is_set():
            raise StoppedError(*error.args) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def own_folder(
    config: TrainConfig, fingerprints: dict[str, str], device: torch.device, leads: bool
) -> Generator[Path, None, None]:
    """The run's folder, which no other run may write to meanwhile."""
    place = Path(config.runs) / config.run
    with locks.lock(durable.make_folder(place)) if leads else nullcontext():
        yield open_run(config, fingerprints, device.type, leader=leads)


@contextmanager
def listeners(
    folder: Path, board: Listener, settings: RunSettings, leads: bool
) -> Generator[Listeners, None, None]:
    """Who is told how the training goes: the board, and of one rank also files, terminal,
    trackers."""
    found = [board]
    if leads:
        found.append(Jsonl(folder / "metrics.jsonl", metrics_bytes(folder / "checkpoints")))
        if is_heard():
            found.append(Console(settings.log_every_s))
        found.append(Trackers(folder, trackers(settings)))
    with contextlib.closing(Listeners(*found)) as listener:
        yield listener


@contextmanager
def together(peers: Peers) -> Generator[None, None, None]:
    """What all ranks do. At the end each waits for the others, and they part. A failure is none of
    this: who has failed does not wait."""
    yield
    peers.any(False)
    peers.close()


def trackers(settings: RunSettings) -> dict[str, str]:
    """Who follows the run, {name: mode}. TensorBoard does wherever it is installed; it is not
    imported to see that."""
    found = {}
    if settings.tensorboard == "auto" and importlib.util.find_spec("tensorboard"):
        found["tensorboard"] = ""
    if settings.wandb != "off":
        found["wandb"] = settings.wandb
    return found
