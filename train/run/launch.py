"""make train GPUS=2: one process a GPU by torchrun. When one dies, all end within seconds, with one
message and exit code 7.

torchrun starts the processes and joins them; this parent watches them through `ranks.bin`, a file
in which each rank keeps its process id, step and exit code, so that it can say who died, where, and
can end a torchrun that hangs.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from base.commands import started
from base.console import NOTE
from base.errors import CoviewError, PreemptedError, RankDiedError, StoppedError
from train.algorithm.ranks import BOARD, views_of
from train.run.log import Ignore

log = logging.getLogger(f"coview.{__name__}")

# columns of the board; a code of RUNNING means that the rank has not ended by itself
PID, STEP, CODE = range(3)
RUNNING, FAILED = -1, 1
# `coview` first: whatever is called train elsewhere, ours is meant
TORCHRUN = "import sys, coview; from train.run import launch; sys.exit(launch.torchrun())"
GRACE_S = 5.0  # for torchrun to end by itself, once a rank has failed
DEAD, STOPPED = "ZX", "Tt"  # states of a process: a zombie is one that torchrun has not reaped yet
EXITING = 0x4  # the kernel's PF_EXITING, among the flags of a process


class Board(Ignore):
    """A small shared table, (ranks, 3) int64 in a mapped file: what a killed process wrote stays
    readable."""

    def __init__(self, path: str, rank: int | None = None) -> None:
        self.rows, self.rank = np.memmap(path, np.int64, "r+").reshape(-1, 3), rank
        if rank is not None:
            self.rows[rank] = (os.getpid(), 0, RUNNING)

    def step(self, step: int) -> None:
        self.rows[self.rank, STEP] = step

    def ended(self, code: int) -> None:
        self.rows[self.rank, CODE] = code


class Failure(NamedTuple):
    """The ranks that failed first: several where they had vanished between two looks, so that
    nobody knows which drew the others along."""

    ranks: list[int]
    how: str


class Asked(threading.Event):
    """Set when the ranks are to stop. Ctrl-C: the first is handed to them, who save; the second
    ends everything."""

    def __init__(self, stops: str) -> None:
        super().__init__()
        self.pressed, self.stops = False, stops

    def press(self) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
        log.log(NOTE, f"stopping {self.stops}, and saving (Ctrl-C again stops at once)")
        self.set()


def launch(command: str, settings: Any, views: list[str], stops: str) -> None:
    """Run a command in `settings.gpus` processes. stops: when they do, once they are asked to.
    Raises CoviewError: RankDiedError, or one with the exit code that a rank chose."""
    gpus = settings.gpus
    with tempfile.TemporaryDirectory(prefix="coview-") as folder:
        path = Path(folder) / "ranks.bin"
        path.write_bytes(np.array([[0, 0, RUNNING]] * gpus, np.int64).tobytes())
        board, asked = Board(str(path)), Asked(stops)
        before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: asked.set()),
            # the ranks, in sessions of their own, do not hear it
            signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: asked.press()),
        }
        torchrun = _start(gpus, path, started(command, settings))
        try:
            failure, seconds = _watch(torchrun, board, asked)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
            _kill(torchrun, board)
        if failure is None and (torchrun.returncode == 0 or (board.rows[:, CODE] == 0).all()):
            return
        raise _told(failure or Failure([0], "died"), seconds, board, asked, views)


def _start(gpus: int, board: Path, words: list[str]) -> subprocess.Popen:
    """torchrun, in a session of its own, silent."""
    threads = max(1, (os.cpu_count() or 1) // gpus)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "PYTHONSAFEPATH": "1",  # a train.py in the folder that one stands in is not ours
        BOARD: str(board),
    }
    flags = ["--standalone", "--nproc-per-node", str(gpus), "-m", "--"]
    command = [sys.executable, "-c", TORCHRUN, *flags, *words]
    return subprocess.Popen(command, env=environment, start_new_session=True, stdin=subprocess.PIPE)


def stop_with_parent() -> None:
    """In a rank: stop and save as soon as the process that watches the ranks is gone, which alone
    holds the other end of what they read. All of them see it at once."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _told(
    failure: Failure, seconds: float, board: Board, asked: Asked, views: list[str]
) -> CoviewError:
    """What the user is told of it. Without a rank that failed torchrun itself did."""
    rank = failure.ranks[0]
    code, step = int(board.rows[rank, CODE]), int(board.rows[rank, STEP])
    if code == PreemptedError.exit_code:
        told = f"stopped at step {step:,}, everything is saved; the same command goes on from here"
        return StoppedError(told) if asked.pressed else PreemptedError(told)
    if code > FAILED:
        told = f"rank {rank} ended the run with exit code {code}; its message stands above"
        error = CoviewError(told)
        error.exit_code, error.told = code, True
        return error
    named = []
    for one in failure.ranks:
        named.append(f"rank {one} ({', '.join(views_of(one, len(board.rows), views))})")
    return RankDiedError(
        f"{' and '.join(named)} {failure.how} at step {step}; all ranks were ended within "
        f"{seconds:.0f} s. The same command goes on from the last checkpoint"
    )


def _watch(torchrun: subprocess.Popen, board: Board, asked: Asked) -> tuple[Failure | None, float]:
    """Wait for the end. -> the first failure, and the seconds from then to the end."""
    failure, since = None, time.monotonic()
    while torchrun.poll() is None:
        time.sleep(0.1)
        if asked.is_set():
            # again and again: one may not have been there yet
            _signal_ranks(board, signal.SIGTERM, among=board.rows[:, CODE] == RUNNING)
        if failure is None:
            failure, since = _first_failed(board), time.monotonic()
        elif time.monotonic() - since > GRACE_S:
            _kill(torchrun, board)
    return failure or _first_failed(board), time.monotonic() - since


def _first_failed(board: Board) -> Failure | None:
    """Codes are read before life signs: a survivor that fails does so after the one that it waits
    for has vanished. A frozen one is known by those that gave up waiting for it."""
    codes = board.rows[:, CODE].copy()
    states = [_life(int(pid)) for pid in board.rows[:, PID]]
    # it may have ended well between the two looks
    running = (codes == RUNNING) & (board.rows[:, PID] > 0) & (board.rows[:, CODE] == RUNNING)
    gave_up = codes == FAILED
    chose = codes > FAILED
    vanished = running & np.array([state in DEAD for state in states])
    frozen = running & np.array([state in STOPPED for state in states]) & gave_up.any()
    if chose.any():
        return Failure(_first(chose), "")
    if vanished.any():
        return Failure(np.flatnonzero(vanished).tolist(), "died")
    if frozen.any():
        return Failure(_first(frozen), "is frozen (stopped by a signal)")
    return Failure(_first(gave_up), "raised an error (above)") if gave_up.any() else None


def _first(which: np.ndarray) -> list[int]:
    return [int(which.argmax())]


def _life(pid: int) -> str:
    """The kernel's letter for the state of a process; X if there is none."""
    try:
        return _state(Path(f"/proc/{pid}/stat").read_text())
    except OSError:
        return "X"


def _state(stat: str) -> str:
    """X, too, for one that is ending: the others see its connections closed before it is a zombie,
    and on a busy machine some fail in between."""
    state, _, _, _, _, _, flags = stat.rpartition(")")[2].split()[:7]
    return "X" if int(flags) & EXITING else state


def _signal_ranks(board: Board, number: int, among: slice | np.ndarray = slice(None)) -> None:
    for pid in board.rows[among, PID]:
        if pid and _life(int(pid)) not in DEAD:
            os.kill(int(pid), number)


def _kill(torchrun: subprocess.Popen, board: Board) -> None:
    """torchrun leads a session of its own, and each rank another."""
    _signal_ranks(board, signal.SIGKILL)
    try:
        os.killpg(torchrun.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    torchrun.wait()
    if torchrun.stdin:
        torchrun.stdin.close()


def torchrun() -> int:
    """torchrun's own main, without its traceback: the parent says what happened in one line."""
    # torch is for this process alone, not for the parent, which only watches
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.run import main  # noqa: PLC0415

    logging.disable()  # LOGLEVEL does not reach all of its loggers
    try:
        main(sys.argv[1:])
    except ChildFailedError:
        return 1
    return 0
