"""make train GPUS=2: one process a GPU by torchrun. When one dies, all end within seconds, with one message and exit code 7.

torchrun starts the processes and joins them; this parent watches them through `ranks.bin`, a file in which each rank keeps its
process id, step and exit code, so that it can say who died, where, and can end a torchrun that hangs.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from base.commands import started
from base.errors import CoviewError, PreemptedError, RankDiedError, StoppedError
from train.algorithm.ranks import BOARD, views_of
from train.run.log import Ignore

PID, STEP, CODE = range(
    3
)  # columns of the board; a code of RUNNING means that the rank has not ended by itself
RUNNING, FAILED = -1, 1
GRACE_S = 5.0
DEAD, STOPPED = "ZX", "Tt"  # states of a process: a zombie is one that torchrun has not reaped yet


class Board(Ignore):
    """A small shared table, (ranks, 3) int64 in a mapped file: what a killed process wrote stays readable."""

    def __init__(self, path: str, rank: int | None = None) -> None:
        self.rows, self.rank = np.memmap(path, np.int64, "r+").reshape(-1, 3), rank
        if rank is not None:
            self.rows[rank] = (os.getpid(), 0, RUNNING)

    def step(self, step: int) -> None:
        self.rows[self.rank, STEP] = step

    def ended(self, code: int) -> None:
        self.rows[self.rank, CODE] = code


def launch(gpus: int, views: list[str]) -> None:
    """Run this same command in `gpus` processes. Raises CoviewError: RankDiedError, or one with the exit code that a rank chose."""
    with tempfile.TemporaryDirectory(prefix="coview-") as folder:
        path = Path(folder) / "ranks.bin"
        path.write_bytes(np.array([[0, 0, RUNNING]] * gpus, np.int64).tobytes())
        board = Board(str(path))
        threads = max(1, (os.cpu_count() or 1) // gpus)
        asked, pressed = threading.Event(), []
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
        signal.signal(
            signal.SIGINT, lambda *_: _press(asked, pressed)
        )  # the ranks, in sessions of their own, do not hear it
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "LOGLEVEL": "CRITICAL",
            **os.environ,
            "PYTHONSAFEPATH": "1",  # a train.py in the folder that one stands in is not ours
            BOARD: str(path),
        }
        torchrun = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "train.run.launch",
                "--standalone",
                "--nproc-per-node",
                str(gpus),
                "-m",
                "--",
                *started(),
            ],
            env=environment,
            start_new_session=True,
        )
        try:
            (culprits, how), seconds = _watch(torchrun, board, asked)
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _kill(torchrun, board)
        if not culprits and torchrun.returncode == 0:
            return
        culprits = culprits or [0]  # none: torchrun itself failed
        rank = culprits[0]
        code, step = int(board.rows[rank, CODE]), int(board.rows[rank, STEP])
        if code == PreemptedError.exit_code and pressed:
            raise StoppedError("stopped, everything is saved")
        if code > FAILED:
            error = CoviewError(
                f"rank {rank} ended the run with exit code {code}; its message stands above"
            )
            error.exit_code = code
            raise error
        named = " and ".join(
            f"rank {one} ({', '.join(views_of(one, gpus, views))})" for one in culprits
        )
        raise RankDiedError(
            f"{named} {how} at step {step}; all ranks were ended within {seconds:.0f} s. "
            "The same command goes on from the last checkpoint"
        )


def _press(asked: threading.Event, pressed: list[int]) -> None:
    """Ctrl-C: the first is handed to the ranks, who save; the second ends everything."""
    pressed.append(1)
    if len(pressed) > 1:
        raise KeyboardInterrupt
    print(
        "stopping at the next look at the validation images, and saving (Ctrl-C again stops at once)",
        file=sys.stderr,
        flush=True,
    )
    asked.set()


def _watch(
    torchrun: subprocess.Popen, board: Board, asked: threading.Event
) -> tuple[tuple[list[int], str], float]:
    """Wait for the end. -> (the ranks that failed first and how, seconds from then to the end), or ([], "died"), 0 if none did."""
    culprit, since = None, 0.0
    while torchrun.poll() is None:
        time.sleep(0.1)
        if asked.is_set():
            _signal_ranks(
                board, signal.SIGTERM
            )  # again and again: a rank may not have been there yet
        if culprit is None:
            culprit, since = _first_failed(board), time.monotonic()
        elif time.monotonic() - since > GRACE_S:
            _kill(torchrun, board)
    culprit = _first_failed(board) if culprit is None else culprit
    return culprit or (
        [],
        "died",
    ), time.monotonic() - since if culprit is not None and since else 0.0


def _first_failed(board: Board) -> tuple[list[int], str] | None:
    """The ranks that failed first: several where they had vanished between two looks, so that nobody knows which drew the others along.

    Codes are read before life signs: a survivor that fails does so after the one that it waits for has vanished. A frozen one is known by those that gave up
    waiting for it."""
    codes = board.rows[:, CODE].copy()
    states = [_life(int(pid)) for pid in board.rows[:, PID]]
    running = (
        (codes == RUNNING) & (board.rows[:, PID] > 0) & (board.rows[:, CODE] == RUNNING)
    )  # it may have ended well between the two looks
    vanished = running & np.array([state in DEAD for state in states])
    frozen = running & np.array([state in STOPPED for state in states]) & (codes == FAILED).any()
    for found, how in (
        (codes > FAILED, ""),
        (vanished, "died"),
        (frozen, "is frozen (stopped by a signal)"),
        (codes == FAILED, "raised an error (above)"),
    ):
        if found.any():
            return np.flatnonzero(found).tolist()[: None if found is vanished else 1], how
    return None


def _life(pid: int) -> str:
    """The kernel's letter for the state of a process; X if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _signal_ranks(board: Board, number: int) -> None:
    for pid in board.rows[:, PID]:
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


def _torchrun() -> int:
    """torchrun's own main, without its traceback: the parent says what happened in one line."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main(sys.argv[1:])
    except ChildFailedError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_torchrun())
