"""Processes that decode beside the model: they end with their parent; one that dies, is stuck or
cannot hand on what it has decoded is an error with a name."""

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import queues
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import server
import torch
from training import is_alive, wait_until_gone

from base.errors import RankDiedError
from extract import stream, workers

BEGIN = """
if __name__ == "__main__":
    import sys
    sys.path[:] = filter(None, sys.path)
    import multiprocessing, os, time
    import numpy as np
    from base.commands import run_cli
    from cache_specs.spec import load_spec
    from extract import stream
    from extract.data.readers import ReadArrays
    from extract.images import Batches

    read = ReadArrays(np.arange(8 * 64, dtype=np.uint8).reshape(8, 8, 8))
    sha256 = [read.digest(i)[1] for i in range(8)]
    rows = [[i] for i in range(8)]
    stream.LOOK_S = 1
    images = Batches(read, sha256, load_spec("tiny-clip").preprocess, rows, 1)
    batches = stream.arriving(stream.load(images, 2, "cpu"))
    next(batches)
    forked = [child.pid for child in multiprocessing.active_children()]
"""


def begin(code: str, folder: Path) -> subprocess.Popen:
    """A process with two that decode eight images, of which one is here, and then `code`; in a
    folder whose files are not meant."""
    for name in ("coview", "extract", "base", "torch", "random"):
        (folder / f"{name}.py").write_text(f"print({name!r}, 'of the user'); raise SystemExit")
    return server.Popen(
        [sys.executable, "-c", f"{BEGIN}\n    {code}"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_they_end_with_their_parent_even_if_that_is_killed(tmp_path: Path) -> None:
    """Also the process that they are forked from."""
    process = begin("print(*forked, flush=True); time.sleep(99)", tmp_path)
    own = [int(word) for word in process.stdout.readline().split()]
    assert len(own) == 2, process.communicate()
    own += [parent_of(own[0])]
    assert own[2] != process.pid and all(map(is_alive, own))
    process.kill()
    process.wait()
    try:
        for pid in own:
            wait_until_gone(pid, 10)
    finally:
        for pid in own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def test_one_that_is_killed_is_an_error_that_names_the_signal(tmp_path: Path) -> None:
    process = begin("os.kill(forked[0], 9); sys.exit(run_cli(lambda: list(batches)))", tmp_path)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 7 and "Traceback" not in said, said
    assert "a process that decodes images died (killed, as by the kernel where memory is" in said
    assert "take fewer of them (ARGS='--workers 2')" in said


PIXELS, STATUS = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4), torch.zeros(1).byte()
PROFILES = torch.zeros(1, dtype=torch.bool)
BATCH = (PIXELS, STATUS, PROFILES)


@pytest.mark.parametrize(
    ("room", "shared"), [(4 * 2 * 48, True), (4 * 2 * 48 - 1, False), (0, False)]
)
def test_a_batch_goes_through_the_pipe_where_shared_memory_might_run_full(
    room: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times what two processes write at once, 48 bytes each, must be free."""
    monkeypatch.setattr(stream, "get_worker_info", lambda: SimpleNamespace(num_workers=2))
    monkeypatch.setattr(stream, "_room", lambda: room)
    pixels, *rest = stream.hand_on((PIXELS.clone(), STATUS, PROFILES))
    assert isinstance(pixels, torch.Tensor) == shared
    assert all(isinstance(one, np.ndarray) for one in rest)
    assert np.array_equal(np.asarray(pixels), PIXELS.numpy())
    assert [one.tolist() for one in rest] == [[0], [False]]
    if shared:
        assert pixels.is_shared()


def test_shared_memory_that_fails_all_the_same_is_not_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(stream, "get_worker_info", lambda: SimpleNamespace(num_workers=1))
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    assert stream.hand_on(BATCH)[0].tolist() == PIXELS.tolist()
    monkeypatch.setattr(stream, "SHARED", str(tmp_path / "gone"))
    assert stream._room() == 0


class Loader:
    """What DataLoader's iterator does, by a script: batches, and errors that it raises."""

    num_workers = 8

    def __init__(self, *script: object) -> None:
        self.script, self._workers = iter(script), []

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> object:
        step = next(self.script)
        if isinstance(step, Exception):
            raise step
        return step


LATE = RuntimeError("DataLoader timed out after 10.0 seconds")


def test_what_comes_late_comes_and_pipes_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coview")
    arrays = tuple(one.numpy() for one in BATCH)
    found = list(stream.arriving(Loader(LATE, arrays, LATE, LATE, arrays)))
    assert [pixels.tolist() for pixels, _, _ in found] == 2 * [PIXELS.tolist()]
    assert all(isinstance(one, torch.Tensor) for batch in found for one in batch)
    (said,) = caplog.messages
    assert "through pipes, since /dev/shm has" in said and "too little for 8 decode workers" in said


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n…"), RuntimeError, "…"),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited"),
            RankDiedError,
            "7. exited",
        ),
        (RuntimeError("Too many open files. Communication"), RankDiedError, "Too many open files"),
        (ConnectionResetError(104, "reset by peer"), RankDiedError, "reset by peer"),
        (EOFError("end"), RankDiedError, "died .*end"),
    ],
)
def test_what_ends_the_loader_has_a_name(error: Exception, raised: type, said: str) -> None:
    with pytest.raises(raised, match=said) as caught:
        list(stream.arriving(Loader(error)))
    assert (type(caught.value) is RankDiedError) == (raised is RankDiedError)


@pytest.mark.parametrize(
    ("code", "said"),
    [(-9, "memory is short"), (-7, "/dev/shm is full"), (-11, "SIGSEGV"), (1, "exit code 1")],
)
def test_how_a_process_ended_is_said(code: int, said: str) -> None:
    assert said in stream._end(code)


def test_a_slow_disk_is_waited_for_and_a_stuck_process_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten hours in which now and then some bytes are read; then none."""
    now, read = [0.0], [0]
    monkeypatch.setattr(stream.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stream, "_sign", lambda pid: (0, read[0]))
    monkeypatch.setattr(stream.multiprocessing, "active_children", lambda: [SimpleNamespace(pid=7)])
    silence = stream.Silence()
    for now[0] in range(10, 36_000, 10):
        read[0] += now[0] % 1790 == 0
        silence.look()
    assert 5 < len(caplog.messages) < 12, "said at 1, 2, 4, … minutes"
    assert caplog.messages[0].startswith("no image has come for 0:01:00; of 1 decode worker")
    assert caplog.messages[0].endswith("Is the disk slow?")
    with pytest.raises(RankDiedError, match=r"\(7\) neither computed nor read anything for 0:30:"):
        for now[0] in range(36_000, 40_000, 10):
            silence.look()
    assert now[0] < 36_000 + stream.STUCK_S


def test_signs_of_life_are_those_of_the_kernel() -> None:
    before = stream._sign(os.getpid())
    Path(__file__).read_bytes()
    end = time.process_time() + 0.15
    while time.process_time() < end:
        pass
    after = stream._sign(os.getpid())
    assert after[0] > before[0] and after[1] > before[1] + 1000
    assert stream._sign(2**30) == (0, 0)


def test_what_cannot_be_sent_ends_the_process_instead_of_being_dropped(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Python's queue prints a traceback and forgets what it cannot pickle; who waits for it does so
    for ever."""
    ended: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(queues.Queue, "_on_queue_feeder_error", None)
    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)
    monkeypatch.setattr(workers.os, "_exit", ended.put)
    workers.begin_work(0)
    sender = multiprocessing.Queue()
    sender.put(threading.Lock())
    assert ended.get(timeout=10) == 1
    assert "decoded images cannot be handed on: TypeError: cannot pickle" in capfd.readouterr().err
    sender.close()
    sender.join_thread()
