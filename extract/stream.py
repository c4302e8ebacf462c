"""Batches of decoded images on their way to the model, from this process or from others beside it.

A batch travels in shared memory where /dev/shm has room for it, else through a pipe, which costs
two copies. Whoever sends is watched: a process that died, and one that shows no sign of life for
half an hour, is an error with a name; a slow disk is waited for, and said so.
"""

import logging
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from base.console import clock_text, counted
from base.errors import RankDiedError
from extract.workers import begin_work, begin_workers, workers_of

log = logging.getLogger(f"coview.{__name__}")
# As Batches has them: (B, 3, S, S) uint8, (B,) uint8 and (B,) uint8; tensors or arrays
Batch = tuple[Any, Any, Any]

SHARED = "/dev/shm"
ROOM = 4  # times what the processes of one loader write at once: others write there too
LOOK_S = 10.0  # between two looks at processes that send nothing
SAID_S = 60.0  # of silence, until it is said first
STUCK_S = 1800.0  # without a sign of life, until the run ends
BUSY = 10  # ticks of the CPU (of 10 ms); less is spent by a process that only waits


def workers_for(batches: Any, workers: int, device: str, devices: int = 1) -> int:
    """`workers_of` these batches (or units of them). Where decoding may not pay a process of its
    own, the first one is decoded, by the clock, and the rest is reckoned by it."""
    todo, seconds = sum(map(len, batches.rows)), 0.0
    if workers < 0 and device == "cpu" and todo:
        begun = time.monotonic()
        _ = batches[0]
        seconds = (time.monotonic() - begun) / len(batches.rows[0])
    return workers_of(workers, todo, device, devices, seconds)


def load(batches: Dataset, workers: int, device: str) -> DataLoader:
    """The batches, decoded ahead by `workers` processes (0: by this one). An element may be a list
    of batches, which stay together."""
    if workers:
        begin_workers()
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        collate_fn=hand_on,
        pin_memory=device.startswith("cuda"),
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=begin_work,
        timeout=LOOK_S if workers else 0,
    )


def hand_on(batch: Any) -> Any:
    """In the process that decoded it: the batch in shared memory, or as arrays, which go through
    the pipe. To write more to a full /dev/shm than it holds would kill the process."""
    senders = get_worker_info()
    if senders is None:
        return batch
    if isinstance(batch, list):
        return [hand_on(one) for one in batch]
    pixels_BCHW, status_B, remarks_B = batch
    if _room() >= ROOM * senders.num_workers * pixels_BCHW.nbytes:
        try:
            return pixels_BCHW.share_memory_(), status_B.numpy(), remarks_B.numpy()
        except RuntimeError:  # others were faster, or there are too many open files
            pass
    return pixels_BCHW.numpy(), status_B.numpy(), remarks_B.numpy()


def _room() -> int:
    """Bytes that are free for shared memory."""
    try:
        now = os.statvfs(SHARED)
    except OSError:
        return 0
    return now.f_bavail * now.f_frsize


def arriving(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader, in order. Raises RankDiedError where a process that decodes is dead
    or stuck."""
    batches, piped = iter(loader), False
    silence = Silence()
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            _raise_unless_late(error, getattr(batches, "_workers", []))
            silence.look()
            continue
        silence = Silence()
        together = batch if isinstance(batch, list) else [batch]
        if isinstance(together[0][0], np.ndarray) and not piped:
            piped = True
            _say_piped(loader.num_workers)
        found = [tuple(map(torch.as_tensor, one)) for one in together]
        yield found if isinstance(batch, list) else found[0]


def _raise_unless_late(error: Exception, workers: list[Any]) -> None:
    """Nothing has come for LOOK_S seconds: no error yet. What a worker raised is raised."""
    told = str(error)
    if "DataLoader timed out" in told:
        return
    if "in DataLoader worker process" in told:
        raise error
    if workers:  # one that dies may not be dead yet
        connection.wait([one.sentinel for one in workers], 2)
    ends = sorted({one.exitcode for one in workers if not one.is_alive()} - {0, None})
    why = ", ".join(map(_end, ends)) or " ".join(told.split())[:200]
    raise RankDiedError(
        f"a process that decodes images died ({why}). What is committed is kept. If it happens "
        "again, take fewer of them (ARGS='--workers 2') or none (ARGS='--workers 0')"
    ) from error


def _end(code: int) -> str:
    """What an exit code says."""
    if code == -signal.SIGKILL:
        return "killed, as by the kernel where memory is short: dmesg says so"
    if code == -signal.SIGBUS:
        return f"bus error: {SHARED} is full"
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}, its message stands above"


def _say_piped(workers: int) -> None:
    log.info(
        f"images go to the model through pipes, since {SHARED} has {_room() / 1e6:,.0f} MB free, "
        f"too little for {counted(workers, 'decode worker')}. Shared memory is faster: in Docker, "
        "docker run --shm-size 8g …"
    )


class Silence:
    """How long no batch has come, and when the processes that decode last showed a sign of life:
    they computed, or read something."""

    def __init__(self) -> None:
        self.since = self.lively = time.monotonic()
        self.signs: list[tuple[int, int]] = []
        self.say = SAID_S

    def look(self) -> None:
        """Say it now and then. Raises RankDiedError once all of them are stuck."""
        now, pids = time.monotonic(), [one.pid for one in multiprocessing.active_children()]
        signs = [_sign(pid) for pid in pids if pid]
        if signs != self.signs:
            self.signs, self.lively = signs, now
        if now - self.lively > STUCK_S:
            raise RankDiedError(
                f"no image has come for {clock_text(now - self.since)}, and the processes that "
                f"decode them ({', '.join(map(str, pids))}) neither computed nor read anything for "
                f"{clock_text(now - self.lively)}: they are stuck, or the disk does not answer. "
                "What is committed is kept"
            )
        if now - self.since >= self.say:
            self.say *= 2
            log.warning(
                f"no image has come for {clock_text(now - self.since)}; of "
                f"{counted(len(pids), 'decode worker')} the last sign of life is "
                f"{clock_text(now - self.lively)} old. Is the disk slow?"
            )


def _sign(pid: int) -> tuple[int, int]:
    """What grows while a process works: CPU time, and the bytes that it has read; (0, 0) where
    nobody knows."""
    try:
        spent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        read = re.search(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text())
        return sum(map(int, spent)) // BUSY, int(read[1]) if read else 0
    except (OSError, ValueError):
        return 0, 0
