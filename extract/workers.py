"""Processes that decode images beside the model: how many, and the one that they are forked from.

Light: the process that all are forked from is begun before this one imports torch.
"""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver, queues
from pathlib import Path

from base import native
from base.children import safe_path

MOST_WORKERS = 32  # of one device, where no number is asked for
WORTH_S = 30.0  # of decoding by one process, from which on it pays to begin others on a CPU


def begin_workers() -> None:
    """Begin the process that decode workers are forked from, which imports what they need, once. It
    takes seconds, so call it early; again, it does nothing."""
    multiprocessing.set_forkserver_preload(["coview", "extract.units"])
    with safe_path():
        forkserver.ensure_running()


def begin_work(worker: int) -> None:
    """In a process that decodes, first of all. Ctrl-C in a terminal goes to all processes; this
    one's parent decides. It dies with that parent, however that dies, and the process that all are
    forked from with the last of them. And where a batch cannot be sent it dies too: Python alone
    would drop the batch, for which the parent would wait for ever."""
    native.keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    queues.Queue._on_queue_feeder_error = staticmethod(_cannot_send)


def _end_with_parent() -> None:
    """A pipe that only the parent holds the other end of is closed when that is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cannot_send(error: Exception, what: object) -> None:
    said = f"{type(error).__name__}: {error}"
    print(f"decoded images cannot be handed on: {said}", file=sys.stderr, flush=True)
    os._exit(1)


def begin_early(workers: int, device: str) -> None:
    """`begin_workers`, where by the settings alone there will be some."""
    gpu = device != "cpu" and Path("/dev/nvidia0").exists()
    if workers > 0 or (workers < 0 and gpu):
        begin_workers()


def workers_of(workers: int, todo: int, device: str, devices: int = 1, seconds: float = 0.0) -> int:
    """Decode processes for `todo` images on one of so many devices; as many as asked for, where
    that is not -1. seconds: in which one process decodes an image, where that is known."""
    if not todo:
        return 0
    if workers >= 0:
        return workers
    if device == "cpu" and todo * seconds < WORTH_S:
        return 0
    return min(MOST_WORKERS, max(1, native.cores() // devices))
