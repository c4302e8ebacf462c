"""Trackers show what metrics.jsonl holds, once; missing, offline, hanging or raising they change no
byte of a run and cost it less than a second."""

import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Made
from training import config, flags, is_alive, outcome, start, wait_for, wait_until_gone

from train.command import run
from train.run import log, tracker

FAKES = {  # a module `wandb` that fails in a way of its own
    "at import": "raise RuntimeError('broken at import')",
    "missing": "raise ModuleNotFoundError(\"No module named 'wandb'\")",
    "in init": "def init(**_): raise RuntimeError('broken in init')",
    "in log": (
        "class R:\n    def define_metric(self, *_, **__): pass\n"
        "    def log(self, *_, **__): raise RuntimeError('broken in log')\n"
        "def init(**_): return R()"
    ),
    "in finish": (
        "class R:\n    summary = {}\n    def define_metric(self, *_, **__): pass\n"
        "    def log(self, *_, **__): pass\n"
        "    def finish(self, **_): raise RuntimeError('broken in finish')\n"
        "def init(**_): return R()"
    ),
    "sys.exit": (
        "import sys\nprint('to standard output')\n"
        "print('to standard error', file=sys.stderr)\nsys.exit('it left')"
    ),
    "os._exit": "import os\nos._exit(0 + 9)",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
}
HANGS = (
    "import os, socket\n"
    "server = socket.create_connection(('127.0.0.1', int(os.environ['TEST_PORT'])))\n"
    "server.recv(1)\n"
)
SLEEPS = {
    "at import": "import time\ntime.sleep(99)",
    "at exit": (
        "import atexit, time\natexit.register(time.sleep, 99)\nraise RuntimeError('then it hangs')"
    ),
    "with all threads": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "while True: pass"
    ),
}


@pytest.fixture(scope="module")
def plain(made: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("plain")
    run(config(made, folder))
    return outcome(folder / "a")


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str = "wandb") -> None:
    (tmp_path / "fakes").mkdir(exist_ok=True)
    (tmp_path / "fakes" / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'fakes'}:{os.environ.get('PYTHONPATH', '')}")


def tracker_pid(folder: Path, name: str = "wandb") -> int:
    """The process that holds the tracker's lock writes its number there."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if (path := folder / f".tracker-{name}").is_file() and (text := path.read_text().split()):
            return int(text[0])
        time.sleep(0.05)
    raise AssertionError("no tracker has begun")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """How long the training would wait for each of its trackers; None: for ever."""
    asked = []

    class Watched(subprocess.Popen):
        def wait(self, timeout: float | None = None) -> int:
            if (
                "train.run.tracker" in self.args
                and threading.current_thread() is threading.main_thread()
            ):
                asked.append(timeout)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    return asked


def are_short(waits: list[float | None]) -> bool:
    return len(waits) == 1 and waits[0] is not None and waits[0] <= log.WAIT_S < 1


# ---------------------------------------------------------------- what is shown


def events(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of every scalar in the event files, in the order
    in which they were written."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    found = []
    for path in sorted(
        folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns
    ):
        for raw in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(raw)
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def expected(folder: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [
        (f"{line['method']}/{view}/{key}", line["step"], value)
        for line in lines
        for view, scores in line["val"].items()
        for key, value in scores.items()
    ]
    found += [
        (f"{line['method']}/{view}/feedback", line["step"], value)
        for line in lines
        for view, value in line.get("feedback", {}).items()
    ]
    methods = json.loads((folder / "summary.json").read_text())["methods"]
    found += [
        (f"{method}/{view}/{key}", 0, scores[key]["mean"])
        for method, result in methods.items()
        for view, scores in [*result["views"].items(), ("joint", result["joint"])]
        for key in ("test_top1", "test_balanced", "test_f1", "test_nll", "test_ece")
    ]
    return sorted(
        (tag, step, struct.unpack("f", struct.pack("f", value))[0]) for tag, step, value in found
    )


def test_tensorboard_has_every_number_once_also_after_a_kill(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: dict
) -> None:
    """The kill comes when lines that no checkpoint knows were already shown: resuming writes
    them to metrics.jsonl again."""
    pytest.importorskip("tensorboard")
    settings = config(made, tmp_path, tensorboard="auto", checkpoint_every=1000)
    training, metrics, memory = (
        start(settings),
        tmp_path / "a" / "metrics.jsonl",
        tmp_path / "a" / "tracker-tensorboard.json",
    )
    wait_for(metrics, training)
    training.send_signal(signal.SIGSTOP)  # until what it has written is shown
    written, until = metrics.read_bytes().count(b"\n"), time.monotonic() + 60
    while not (memory.is_file() and json.loads(memory.read_text())["lines"] == written):
        assert time.monotonic() < until
        time.sleep(0.02)
    training.kill()
    training.communicate()
    assert 0 < written < plain["metrics.jsonl"].count(b"\n")
    monkeypatch.setattr(log, "WAIT_S", 60)
    run(settings)
    found = events(tmp_path / "a" / "tensorboard")
    assert len(list((tmp_path / "a" / "tensorboard").iterdir())) == 2 and sorted(found) == expected(
        tmp_path / "a"
    )
    assert outcome(tmp_path / "a") == plain


def test_a_tracker_that_is_started_twice_shows_what_is_new(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, ended = [], threading.Event()

    class Recorder:
        def __init__(self, _: Path, ident: str, mode: str) -> None:
            shown.append((ident, mode))

        def show(self, line: int, record: dict) -> None:
            shown.append((line, record["step"]))

        def flush(self) -> None: ...

        def close(self, tested: dict) -> None:
            shown.append(tested)

    monkeypatch.setitem(tracker.TRACKERS, "wandb", Recorder)
    lines = [json.dumps({"method": "mct", "step": step, "val": {}}) + "\n" for step in range(1, 5)]
    ended.set()
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:9])
    tracker.follow(tmp_path, "wandb", "offline", ended)
    ident = shown[0][0]
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:2]))  # the checkpoint was earlier
    tracker.follow(tmp_path, "wandb", "offline", ended)
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    tracker.follow(tmp_path, "wandb", "offline", ended)
    start = (ident, "offline")
    assert shown == [start, (0, 1), (1, 2), (2, 3), {}, start, {}, start, (3, 4), {}]


def test_wandb_offline_has_the_run_under_one_name(
    made: Made, tmp_path: Path, plain: dict, waits: list, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("wandb")
    run(config(made, tmp_path, wandb="offline"))
    assert outcome(tmp_path / "a") == plain and are_short(waits)
    wait_until_gone(tracker_pid(tmp_path / "a"))
    ident = json.loads((tmp_path / "a" / "tracker-wandb.json").read_text())
    (folder,) = (tmp_path / "a" / "wandb").glob("offline-run-*")
    assert folder.name.endswith(ident["id"]) and ident["lines"] == len(
        (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    )
    assert (
        b"mct/joint/top1" in (folder / f"run-{ident['id']}.wandb").read_bytes()
        and "wandb sync" in (tmp_path / "a" / "tracker-wandb.log").read_text()
    )
    assert "wandb: failed" not in capsys.readouterr().err


# ---------------------------------------------------------------- what it cannot do


@pytest.mark.parametrize("how", FAKES)
def test_a_tracker_that_fails_changes_no_byte(
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    plain: dict,
    how: str,
) -> None:
    fake(tmp_path, monkeypatch, FAKES[how])
    monkeypatch.setattr(log, "WAIT_S", 60)  # it ends by itself, but on a busy machine not at once
    run(config(made, tmp_path, wandb="online"))
    printed = capfd.readouterr()
    assert outcome(tmp_path / "a") == plain
    said = [line for line in printed.err.splitlines() if "wandb" in line]
    assert (
        len(said) == 1
        and said[0].startswith("wandb: failed (")
        and "to standard" not in printed.out + printed.err
    )
    why = {
        "missing": "No module named 'wandb'",
        "sys.exit": "it left",
        "os._exit": "exit code 9",
        "killed": "exit code -9",
    }.get(how, f"broken {how}")
    assert why in said[0] and "tracker-wandb.log" in said[0]


@pytest.mark.parametrize("how", SLEEPS)
def test_a_tracker_that_hangs_changes_no_byte(
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    plain: dict,
    waits: list,
    how: str,
) -> None:
    fake(tmp_path, monkeypatch, SLEEPS[how])
    run(config(made, tmp_path, wandb="online"))
    pid = tracker_pid(tmp_path / "a")
    assert outcome(tmp_path / "a") == plain and are_short(waits) and is_alive(pid)
    assert capfd.readouterr().err.count("wandb: still at work, for 10 minutes at most") == 1
    group = Path(
        f"/proc/{pid}/autogroup"
    )  # without this its nice 19 counts for nothing, since it has a session of its own
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19 and (
        not group.exists() or group.read_text().split()[-1] == "19"
    )
    os.kill(pid, signal.SIGKILL)


def test_a_broken_tensorboard_is_no_different(
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    plain: dict,
) -> None:
    fake(tmp_path, monkeypatch, "raise RuntimeError('broken')", "tensorboard")
    monkeypatch.setattr("train.run.session.trackers", lambda config: {"tensorboard": ""})
    monkeypatch.setattr(log, "WAIT_S", 60)
    run(config(made, tmp_path))
    assert (
        outcome(tmp_path / "a") == plain
        and capfd.readouterr().err.count("tensorboard: failed (RuntimeError: broken)") == 1
    )


def test_a_tracker_that_cannot_be_started_is_done_without(
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    plain: dict,
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "no python"))
    run(config(made, tmp_path, wandb="offline"))
    assert (
        outcome(tmp_path / "a") == plain
        and "wandb: not started ([Errno 2]" in capfd.readouterr().err
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """It accepts connections, keeps them and never answers."""
    listening, held = socket.create_server(("127.0.0.1", 0)), []
    monkeypatch.setenv("TEST_PORT", str(listening.getsockname()[1]))

    def accept() -> None:
        while True:
            try:
                held.append(listening.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept)
    thread.start()
    yield held
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()
    for connection in held:
        connection.close()


def is_open(connection: socket.socket) -> bool:
    """Has the other side not hung up?"""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def wait_at_the_first_look(monkeypatch: pytest.MonkeyPatch, server: list) -> None:
    """So that the tracker hangs while the run is at work, also where the machine is busy
    and the tracker gives way."""

    def tell(*_: object) -> None:
        until = time.monotonic() + 60
        while not server and time.monotonic() < until:
            time.sleep(0.02)

    monkeypatch.setattr(log.Trackers, "tell", tell)


def test_a_run_ends_while_a_server_still_holds_its_tracker(
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plain: dict,
    server: list,
    waits: list,
) -> None:
    fake(tmp_path, monkeypatch, HANGS)
    wait_at_the_first_look(monkeypatch, server)
    run(config(made, tmp_path, wandb="online"))
    pid = tracker_pid(tmp_path / "a")
    assert len(server) == 1 and is_open(server[0]) and is_alive(pid)
    assert outcome(tmp_path / "a") == plain and are_short(waits)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.many
def test_a_run_ends_while_a_server_still_holds_the_real_wandb(
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plain: dict,
    server: list,
    waits: list,
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{os.environ['TEST_PORT']}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wait_at_the_first_look(monkeypatch, server)
    run(config(made, tmp_path, wandb="online"))
    pid = tracker_pid(tmp_path / "a")
    assert server and is_alive(pid)  # it hangs up now and then, and calls again
    assert outcome(tmp_path / "a") == plain and are_short(waits)
    os.kill(pid, signal.SIGKILL)


def test_a_killed_run_takes_a_hanging_tracker_with_it(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: list
) -> None:
    fake(tmp_path, monkeypatch, HANGS)
    training = start(config(made, tmp_path, wandb="online", warmup=100_000))
    pid = tracker_pid(tmp_path / "a")
    training.kill()
    training.communicate()
    wait_until_gone(pid)


@pytest.mark.many
def test_one_process_of_several_has_trackers(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable
) -> None:
    fake(
        tmp_path,
        monkeypatch,
        f"import os\nopen({str(tmp_path / 'started')!r}, 'a').write('x')\nos._exit(0)",
    )
    done = command(
        "train",
        *flags(config(made, tmp_path, wandb="online", gpus=2)),
        env={"PYTHONPATH": os.environ["PYTHONPATH"]},
    )
    assert done.returncode == 0, done.stderr
    wait_for(tmp_path / "started", None)  # on a busy machine it begins late
    assert (tmp_path / "started").read_text() == "x"


def test_the_exit_code_and_the_output_are_those_of_the_training(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable
) -> None:
    fake(tmp_path, monkeypatch, FAKES["sys.exit"])
    done = command(
        "train",
        *flags(config(made, tmp_path, wandb="online")),
        env={"PYTHONPATH": os.environ["PYTHONPATH"]},
        first="from train.run import log\nlog.WAIT_S = 60",  # on a busy machine it leaves late
    )
    assert done.returncode == 0 and "wandb" not in done.stdout
    assert done.stderr.count("wandb: failed (it left)") == 1, done.stderr
