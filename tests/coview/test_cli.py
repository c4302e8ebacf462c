"""The command line as a person, a script and a log file meet it: dry runs, errors,
Ctrl-C, --json, plain output."""

import ast
import dataclasses
import json
import os
import pty
import re
import runpy
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import server
from conftest import ROOT, Made, config

from base import commands, errors
from base.commands import run_cli
from base.phrase import field_of
from coview.cli import COMMANDS
from extract.plan import plan
from extract.run import run as extract

MANY = pytest.mark.many
ESCAPES = re.compile(r"\r|\x1b")
SHORT = ("--labels", "3", "--warmup", "20", "--cotrain", "40", "--hidden", "16", "--threads", "1")


def files(folder: Path) -> dict[str, tuple]:
    """Every file and folder below, with bytes and times."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.stat().st_ino,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


def start(*words: object, **more: object) -> subprocess.Popen:
    """`coview …` in the background, in a process group of its own."""
    environment = {
        **os.environ,
        **server.FIXED,
        "PYTHONUNBUFFERED": "1",
        "COVIEW_MAKE": "",
    }
    return server.Popen(
        [sys.executable, "-m", "coview.cli", *map(str, words)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **more,
    )


def when(process: subprocess.Popen, ready: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


# ---------------------------------------------------------------- --json


def answer(done: subprocess.CompletedProcess, command: str, code: int = 0) -> dict:
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    assert (found["schema"], found["command"], found["ok"], found["exit_code"]) == (
        1,
        command,
        code == 0,
        code,
    ) and (found["error"] is None) == (code == 0)
    return found


def test_one_json_document_from_each_command(
    interrupted: SimpleNamespace, tmp_path: Path, command: Callable
) -> None:
    found, folder = answer(interrupted.again, "extract"), interrupted.cache
    assert (
        (found["view"], found["rows"], found["bad"]) == ("tiny-clip", 1797, {})
        and found["embedded"] + found["hits"] == 1797
        and found["seconds"] > 0
    )
    cache = ("--cache", shutil.copytree(folder, tmp_path / "cache"))
    view = answer(command("status", *cache, "--json"), "status")["datasets"][0]["views"][0]
    assert (view["view"], view["state"], view["rows"], view["bad"], view["shards_done"]) == (
        "tiny-clip",
        "finished",
        1797,
        {},
        29,
    )
    listed = {
        view["view"]: view for view in answer(command("views", *cache, "--json"), "views")["views"]
    }
    assert (
        listed["tiny-clip"]["cached"] == 1
        and listed["clip"]["cached"] == 0
        and listed["clip"]["width"] == 1024
    )
    assert [
        view["ok"] for view in answer(command("verify", *cache, "--json"), "verify")["views"]
    ] == [True]
    next((tmp_path / "cache").glob("*/tiny-clip-*/embeddings/c/0/0")).write_bytes(bytes(100))
    broken = answer(command("verify", *cache, "--json"), "verify", 5)
    assert [view["ok"] for view in broken["views"]] == [
        False
    ] and "make repair VIEW=tiny-clip" in broken["views"][0]["error"]


@pytest.mark.parametrize("gpus", [1, pytest.param(2, marks=MANY)])
def test_train_answers_in_json_alone_and_on_two_processes(
    made: Made, tmp_path: Path, command: Callable, gpus: int
) -> None:
    settings = (
        "--views",
        made.views("pixels", "edges"),
        "--data",
        "digits",
        *SHORT,
        "--cache",
        made.cache,
        "--runs",
        tmp_path,
        "--method",
        "mct",
        "--json",
        "--run",
        "a",
        "--gpus",
        gpus,
    )
    found = answer(command("train", *settings), "train")
    assert found["run"] == str(tmp_path / "a") and found["result"] == json.loads(
        (tmp_path / "a" / "summary.json").read_text()
    )
    said = command("train", *settings, "--lr", 1)
    assert (
        "lr: 0.0003 -> 1" in said.stderr
        and ("lr: 0.0003 -> 1" if gpus == 1 else "exit code 6") in answer(said, "train", 6)["error"]
    )


# ---------------------------------------------------------------- --dry-run


def test_a_dry_run_of_extract_says_what_would_be_done_and_writes_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings, found, again = config(photos, tmp_path / "cache", dry_run=True), {}, {}
    before = files(photos)
    plan(settings, found)
    assert files(photos) == before and not list(tmp_path.iterdir())
    assert (found["rows"], found["hits"], found["to_embed"], found["weights_here"]) == (
        45,
        0,
        45,
        True,
    ) and found["seconds"] > 0
    view = extract(config(photos, tmp_path / "cache"))
    written = sum(
        path.stat().st_size
        for name in ("embeddings/c", "status/c", "commits")
        for path in (view.folder / name).rglob("*")
        if path.is_file()
    )
    assert written <= found["bytes"] <= written + 3 * 2048
    (view.folder / "complete.json").unlink()
    view.commit_file(1).unlink()
    before = files(tmp_path)
    capsys.readouterr()
    plan(settings, again)
    said = capsys.readouterr().out
    assert (
        files(tmp_path) == before
        and again["hits"] == 29
        and "45 images of 'photos', 29 of them in the cache already, 16 to embed" in said
    )
    assert (
        re.search(
            r"time: (about 0:00:\d\d|less than a second) on cpu, [\d.,]+ images/s by \d", said
        )
        and "Nothing is written" in said.splitlines()[-1]
    )
    with pytest.raises(errors.UsageError, match="there is no such folder"):
        plan(config(tmp_path / "nowhere", tmp_path / "cache"), {})


def test_a_dry_run_without_the_weights_gives_a_bound_and_fetches_nothing(
    tmp_path: Path, command: Callable
) -> None:
    said = command(
        "extract",
        "--view",
        "dinov2",
        "--data",
        "digits",
        "--cache",
        tmp_path / "cache",
        "--dry-run",
        env={"HF_HOME": str(tmp_path / "hub")},
    )
    assert said.returncode == 0, said.stderr
    assert (
        "weights: not on this machine; the run fetches them from" in said.stdout
        and "time: at least " in said.stdout
        and not list(tmp_path.iterdir())
    )


def test_a_dry_run_of_train_times_steps_and_writes_nothing(
    made: Made, tmp_path: Path, command: Callable
) -> None:
    for noted in made.cache.rglob("verified.json"):
        noted.unlink()
    before = files(made.cache)
    said = command(
        "train",
        "--views",
        made.views("pixels", "edges"),
        "--data",
        "digits",
        *SHORT,
        "--seeds",
        "0..1",
        "--cache",
        made.cache,
        "--runs",
        tmp_path / "runs",
        "--method",
        "supervised,mct,logreg,self-training,mpl",
        "--dry-run",
        "--json",
        env={"TMPDIR": str(tmp_path)},
    )
    found = answer(said, "train")
    assert files(made.cache) == before and not list(tmp_path.iterdir())
    assert (
        found["rows"] == {"labelled": 30, "unlabelled": 1057, "val": 355, "test": 355}
        and found["experiments"] == 2
    )
    assert [(view["view"], view["rows"], view["width"]) for view in found["views"]] == [
        ("pixels", 1797, 64),
        ("edges", 1797, 128),
    ]
    steps = {one["method"]: (one["steps"], one["seconds"]) for one in found["methods"]}
    assert [steps[name][0] for name in ("supervised", "mct", "logreg", "self-training", "mpl")] == [
        60,
        60,
        None,
        120,
        60,
    ]
    assert (
        steps["logreg"][1] is None
        and 0 < steps["mct"][1] < 60
        and found["memory_bytes"] > 0
        and "To begin, type: make train VIEWS=" in said.stderr
    )


def test_the_memory_of_the_parameters_is_that_of_real_probes(made: Made) -> None:
    import numpy as np
    import torch

    from train.algorithm import probe
    from train.config import TrainConfig
    from train.rehearse import memory_of

    split, none = (
        SimpleNamespace(labelled=np.arange(1), val=np.arange(0)),
        {"batch_labelled": 1, "batch_unlabelled": 1},
    )
    emb = [np.zeros((5, 64), np.float16)]
    cache = SimpleNamespace(items=SimpleNamespace(classes=["a"] * 10), emb=emb)
    settings = TrainConfig(hidden=32, members=3, **none)
    real = sum(
        tensor.numel()
        for tensor in probe.init([0, 1], 0, 64, 10, probe.Shape(32, 2, 3), torch.float32).values()
    )
    values = (
        memory_of(settings, cache, split, 2)
        - 2 * 4 * 2 * (2 * 64 + 3 * (5 * 2 * 32 + 3 * 10))
        + 2 * 4 * 2 * 64
    )
    assert abs(values - 6 * 4 * real) <= 2 * 4 * 2 * 64


# ---------------------------------------------------------------- Ctrl-C


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, command: Callable) -> SimpleNamespace:
    """An extraction in 29 shards: Ctrl-C after the third, then the same
    command, with --json, to its end."""
    cache = tmp_path_factory.mktemp("interrupted")
    words = (
        "extract",
        "--view",
        "tiny-clip",
        "--data",
        "digits",
        "--cache",
        cache,
        "--shard-rows",
        64,
    )
    process = start(*words)
    when(process, lambda: any(cache.glob("*/*/commits/00002.json")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody
    said = process.communicate(timeout=60)[1]
    kept = {path.name: path.stat().st_ino for path in cache.glob("*/*/commits/*.json")}
    left = [
        path.name
        for path in cache.rglob("*")
        if path.name.endswith(".tmp") or path.name.startswith("progress-")
    ]
    return SimpleNamespace(
        cache=cache,
        code=process.returncode,
        said=said,
        kept=kept,
        left=left,
        again=command(*words, "--json"),
    )


def test_ctrl_c_finishes_the_shard_and_the_named_command_goes_on(
    interrupted: SimpleNamespace,
) -> None:
    said, kept = interrupted.said, interrupted.kept
    assert (
        interrupted.code == 130
        and "stopping: this shard is finished first (Ctrl-C again drops it)" in said
    ), said
    assert (
        f"{len(kept)} of 29 shards are finished and kept" in said
        and 3 <= len(kept) < 29
        and "Traceback" not in said
        and not interrupted.left
    )
    assert said.splitlines()[-1] == (
        "To go on, type: make extract VIEW=tiny-clip DATA=digits "
        f"CACHE={interrupted.cache} ARGS='--shard-rows 64'"
    )
    after = {path.name: path.stat().st_ino for path in interrupted.cache.glob("*/*/commits/*.json")}
    assert (
        interrupted.again.returncode == 0
        and f"({len(kept)} done)" in interrupted.again.stderr
        and len(after) == 29
        and kept.items() <= after.items()
    )


@MANY
@pytest.mark.parametrize("more", [("--gpus", 2), ("--workers", 2)], ids=["processes", "workers"])
def test_ctrl_c_in_a_terminal_goes_to_all_processes_and_one_decides(
    tmp_path: Path, command: Callable, more: tuple
) -> None:
    words = (
        "extract",
        "--view",
        "tiny-clip",
        "--data",
        "digits",
        "--cache",
        tmp_path,
        "--shard-rows",
        64,
        *more,
    )
    process = start(*words)
    when(process, lambda: any(tmp_path.glob("*/*/commits/00003.json")))
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    kept = len(list(tmp_path.glob("*/*/commits/*.json")))
    assert (
        process.returncode == 130
        and f"{kept} of 29 shards are finished and kept" in said
        and "Traceback" not in said
    ), said
    assert command(*words).returncode == 0


def test_ctrl_c_twice_stops_an_extraction_at_once(tmp_path: Path) -> None:
    process = start(
        "extract",
        "--view",
        "tiny-dinov2",
        "--data",
        "digits",
        "--cache",
        tmp_path,
        "--shard-rows",
        1797,
        "--batch",
        1,
    )
    when(process, lambda: any(tmp_path.glob("*/*/progress-0.json")))
    process.send_signal(signal.SIGINT)
    line = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert "this shard is finished first" in line and process.returncode == 130, said
    assert (
        said.startswith("stopped at once; finished shards are kept in ")
        and f"CACHE={tmp_path}" in said
        and not list(tmp_path.glob("*/*/commits/*.json"))
    )


def test_ctrl_c_before_anything_is_written_says_the_command(tmp_path: Path) -> None:
    words = ("extract", "--view", "tiny-clip", "--data", "digits", "--cache", tmp_path / "c")
    process = start(*words, fresh=True)
    maps = Path(f"/proc/{process.pid}/maps")
    when(process, lambda: "libtorch" in maps.read_text())  # the libraries are still loading
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert (
        process.returncode == 130
        and "make extract VIEW=tiny-clip DATA=digits" in said
        and "Traceback" not in said
    ), said


def test_ctrl_c_that_an_import_swallows_is_remembered() -> None:
    script = """if True:
        import os, signal, sys
        from base.commands import run_cli
        from base.interrupt import heeded

        def main():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                signal.pause()
            except BaseException:
                pass                                # as a library may
            with heeded(print, "", ""):
                print("began")

        sys.exit(run_cli(main))"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130 and "began" not in done.stdout and "interrupted" in done.stderr


@pytest.mark.parametrize("gpus", [1, pytest.param(2, marks=MANY)])
def test_ctrl_c_saves_a_training_which_ends_with_the_same_bytes(
    made: Made, tmp_path: Path, command: Callable, gpus: int
) -> None:
    words = (
        "train",
        "--views",
        made.views("pixels", "edges"),
        "--data",
        "digits",
        "--labels",
        3,
        "--method",
        "mct,self-training",
        "--warmup",
        40,
        "--cotrain",
        300,
        "--hidden",
        16,
        "--checkpoint-every",
        100_000,
        "--threads",
        1,
        "--cache",
        made.cache,
        "--runs",
        tmp_path,
        "--gpus",
        gpus,
    )
    process = start(*words, "--run", "a")
    lines = tmp_path / "a" / "metrics.jsonl"
    when(process, lambda: lines.is_file() and lines.read_bytes().count(b"\n") > 8)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert (
        process.returncode == 130 and "everything is saved" in said and "Traceback" not in said
    ), said
    assert (
        said.splitlines()[-1].startswith("To go on, type: make train VIEWS=")
        and "RUN=a" in said.splitlines()[-1]
    )
    assert (tmp_path / "a" / "checkpoints" / "LATEST").is_file() and not (
        tmp_path / "a" / "summary.json"
    ).exists()
    assert command(*words, "--run", "a").returncode == command(*words, "--run", "b").returncode == 0
    one, two = (
        {
            str(path.relative_to(tmp_path / run)): path.read_bytes()
            for path in (tmp_path / run).rglob("*")
            if path.is_file()
            and path.suffix in (".safetensors", ".jsonl", ".parquet")
            and "checkpoints" not in path.parts
        }
        for run in "ab"
    )
    assert one == two and len(one) == 6


def test_ctrl_c_twice_stops_a_training_at_once(made: Made, tmp_path: Path) -> None:
    """In the middle of scikit-learn's work, which looks at nothing. Where an experiment happens to
    end between the two, the first was enough: then once more."""
    words = ("--views", made.views("pixels", "edges"), "--data", "digits", "--labels", 3)
    work = ("--method", "label-propagation,knn", "--seeds", "0..300", "--threads", 1)
    place = ("--cache", made.cache, "--runs", tmp_path, "--run", "a")
    for _ in range(6):
        process = start("train", *words, *work, *place)
        when(process, lambda: (tmp_path / "a" / "metrics.jsonl").exists())
        time.sleep(0.5)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130 and "RUN=a" in said, said
        if "stopped at once; finished methods" in said:
            break
    assert "stopped at once; finished methods" in said, said


# ---------------------------------------------------------------- with and without a terminal


def in_terminal(*words: object, env: dict[str, str] | None = None) -> str:
    """All that a command prints into a terminal of 80 columns."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, **server.FIXED, "TERM": "xterm-256color", **(env or {})}
    process = server.Popen(
        [sys.executable, "-m", "coview.cli", *map(str, words)],
        cwd=ROOT,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            said += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(60) == 0, said
    return said.decode()


def test_plain_output_without_a_terminal_and_a_line_in_place_with_one(
    made: Made, tmp_path: Path, command: Callable
) -> None:
    train = (
        "train",
        "--views",
        made.views("pixels", "edges"),
        "--data",
        "digits",
        *SHORT,
        "--cache",
        made.cache,
        "--runs",
        tmp_path,
        "--method",
        "mct",
        "--log-every-s",
        0.01,
    )
    done = command(*train, "--run", "a", env={"FORCE_COLOR": "", "COLUMNS": "80"})
    assert done.returncode == 0 and not ESCAPES.search(done.stdout + done.stderr)
    assert re.search(
        (
            r"mct 40/60 \(mct\), \d+ steps/s, \d:\d\d:\d\d left, "
            r"\d+ % waiting for rows; validation top-1: pixels"
        ),
        done.stderr,
    ), done.stderr
    shown = in_terminal(*train, "--run", "b", env={"NO_COLOR": "1"})
    lines = [line for line in shown.split("\r\x1b[K") if "steps/s" in line]
    assert (
        len(lines) == 3
        and all(len(line.split("\r\n")[0]) < 80 for line in lines[:-1])
        and not re.search(r"\x1b\[[\d;]*m", shown)
    )
    assert "\r" not in in_terminal(*train, "--run", "c", env={"TERM": "dumb"}).replace("\r\n", "\n")


@MANY
def test_a_bar_of_extract_has_no_colours_with_no_color(tmp_path: Path, command: Callable) -> None:
    words = ("extract", "--view", "tiny-clip", "--data", "digits", "--cache")
    done = command(*words, tmp_path / "a")
    assert done.returncode == 0 and not ESCAPES.search(done.stdout + done.stderr)
    coloured, plain = (
        in_terminal(*words, tmp_path / "b"),
        in_terminal(*words, tmp_path / "c", env={"NO_COLOR": "1"}),
    )
    colours = re.compile(r"\x1b\[(?:[\d;]*;)?(?:3[0-9]|9[0-7])[\d;]*m")
    assert (
        colours.search(coloured)
        and not colours.search(plain)
        and "1797/1797 images," in plain.replace(" ", "").replace("images", " images") + coloured
    )
    assert "waiting for images" in plain


# ---------------------------------------------------------------- errors


@pytest.fixture
def as_command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def pretend(name: str, *argv: str, form: str = "make") -> None:
        found = next((one for one in COMMANDS if one.name == name), None)
        typed = commands.split(found, argv) if found else commands.Typed()
        monkeypatch.setattr(commands.CURRENT, "typed", dataclasses.replace(typed, form=form))
        monkeypatch.setattr(commands.CURRENT, "place", "coview.cli:COMMANDS")

    return pretend


KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, errors.CoviewError)
    and kind is not errors.CoviewError
]


@pytest.mark.parametrize("name", ["extract", "train", "predict", "report"])
def test_a_room_that_is_run_is_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(name, run_name="__main__")
    assert not caught.value.code and f"usage: coview {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind", [*KINDS, OSError, KeyboardInterrupt], ids=lambda kind: kind.__name__
)
def test_every_error_ends_with_the_command_to_type(
    as_command: Callable, capsys: pytest.CaptureFixture, kind: type[BaseException]
) -> None:
    as_command("extract", "--view", "clip", "--data", "my photos/", "--batch", "8")

    def fail() -> None:
        raise (
            OSError(28, "No space left on device", "/x")
            if kind is OSError
            else kind("the moon is in the way")
        )

    code = run_cli(fail)
    said = capsys.readouterr().err
    assert code == {OSError: 4, KeyboardInterrupt: 130}.get(kind) or code == kind.exit_code
    assert said.splitlines()[-1].endswith(
        ": make extract VIEW=clip DATA='my photos/' ARGS='--batch 8'"
    ), said


def test_a_message_with_a_command_of_its_own_keeps_it_as_the_last_word(
    as_command: Callable, capsys: pytest.CaptureFixture
) -> None:
    as_command("train", "--views", "a,b")

    def fail() -> None:
        raise errors.IntegrityError("shard 3 is damaged. Type: make repair VIEW=a")

    assert (
        run_cli(fail) == 5
        and capsys.readouterr().err == "error: shard 3 is damaged. Type: make repair VIEW=a\n"
    )


@pytest.mark.parametrize(
    ("instead", "last"),
    [
        ({"RUN": "a-2"}, "Type: make predict RUN=a-2 TO=x.csv ARGS='--workers 0'"),
        ({"TO": None}, "Type: make predict RUN=a ARGS='--workers 0'"),
        (
            {"METHOD": "my own"},
            "Type: make predict RUN=a TO=x.csv METHOD='my own' ARGS='--workers 0'",
        ),
        ({"--force": ""}, "TO=x.csv ARGS='--workers 0 --force'"),
        ({"--workers": "2"}, "Type: make predict RUN=a TO=x.csv ARGS='--workers 2'"),
    ],
)
def test_a_change_that_a_message_asks_for_is_made_in_the_command_below_it(
    as_command: Callable, capsys: pytest.CaptureFixture, instead: dict, last: str
) -> None:
    """Also where the message speaks of another command."""
    as_command("predict", "--run", "a", "--to=x.csv", "--workers", "0")

    def fail() -> None:
        raise errors.UsageError("that will not do; make train made it", instead=instead)

    assert run_cli(fail) == 2 and capsys.readouterr().err.splitlines()[-1].endswith(last)


def program() -> str:
    """coview, as it is typed where make is."""
    return os.path.relpath(Path(sys.executable).with_name("coview"), ROOT)


def test_an_unknown_flag_is_followed_by_the_commands_to_type(
    tmp_path: Path, command: Callable
) -> None:
    said = command("predict", "--run", "a", "--nonsense")
    assert said.returncode == 2 and "--nonsense" in said.stderr and "Traceback" not in said.stderr
    assert said.stderr.splitlines()[-2:] == [
        f"all settings: {program()} predict --help",
        "Type: make predict RUN=a",
    ]
    helped = command("predict", "--help")
    assert helped.returncode == 0 and helped.stderr == ""


@pytest.mark.parametrize(
    ("module", "argv", "typed"),
    [
        (
            "extract",
            ["--view=clip", "--data", "it's; here", "--dry-run"],
            "make extract VIEW=clip DATA='it'\"'\"'s; here' ARGS=--dry-run",
        ),
        (
            "import",
            ["--view", "mine", "--source", "x.npz", "--by-row-order"],
            "make import VIEW=mine FROM=x.npz ARGS=--by-row-order",
        ),
        (
            "sweep",
            ["--views", "a,b", "--grid", "lr=1,2", "--lr", "3"],
            "make sweep VIEWS=a,b GRID=lr=1,2 ARGS='--lr 3'",
        ),
        ("status", [], "make status"),
        ("pytest", ["-q"], ""),
    ],
)
def test_the_command_that_a_process_is(
    as_command: Callable, module: str, argv: list[str], typed: str
) -> None:
    as_command(module, *argv)
    assert commands.typed() == typed
    assert commands.typed(without="--dry-run") == typed.replace(" ARGS=--dry-run", "")


def test_the_makefile_and_the_table_of_commands_say_the_same() -> None:
    """Each command is a target, which takes the names that its help line shows, and no others."""
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^COMMANDS := (.*)$", makefile, re.M)[1].split()
    names = set(re.search(r"^NAMES := (.*)$", makefile, re.M)[1].split())
    for one in COMMANDS:
        assert one.name in targets
        line = re.search(
            rf"^{one.name}: \$\(STAMP\)  ## (.*)\n\t@\$\(COVIEW\) \$@ ", makefile, re.M
        )
        shown = set(re.findall(r"\b([A-Z]+)=", line[1]))
        assert shown <= {*one.words, "ARGS"} <= names, (one.name, shown)
        fields = {field.name for field in dataclasses.fields(commands.load(one.config))}
        assert {field_of(word) for word in one.words} <= fields
        assert callable(commands.load(one.run))


VERBS = (
    "add|allow|choose|copy|cut|delete|divide|download|extract|fetch|fill|get|give|go|goes|"
    "import|keep|leave|let|look|make|match|mend|merge|move|multiply|name|open|press|push|put|read|"
    "remove|rename|repeat|replace|run|runs|save|saved|set|split|stop|take|train|try|turn|type|"
    "unpack|use|wait|write|begins|kept"
)
DO = re.compile(
    r"(?:^|[.;:,(?}]\s*|\n\s*|\b(?:or|and|to|then|either|first|once|it,|is|are|command|shards)\s+)"
    rf"(?:{VERBS})\b",
    re.I,
)
RIGHT = re.compile(
    r"\b(?:expected|must|may be|may end in|needs?|takes?|neither|one of|relative|have all|"
    r"did you mean|ends? in|this is|reads|without)\b"
)
SAID_BY = re.compile(
    r"did_you_mean|command\(|ADVICE|advice|AGAIN|_again|hint|example|EXAMPLE|_to_download|"
    r"_what_to_do|instead|\bthen\b|listing|complaint|NO_PICKLES|make import|nearest|\{error\}\{"
)


def raised() -> Iterator[tuple[str, str, str]]:
    """(place, literal text, source) of the message of every error that the packages make; the parts
    of a message that have a name are looked up where they are named."""
    kinds = {kind.__name__ for kind in KINDS}
    rooms = ("base", "cache_specs", "extract", "exchange", "upkeep", "train", "predict", "report")
    for path in sorted(path for room in rooms for path in (ROOT / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        constants = named(tree.body)
        for scope in ast.walk(tree):
            if not isinstance(scope, ast.FunctionDef):
                continue
            names = constants | named(ast.walk(scope))
            for node in ast.walk(scope):
                if not isinstance(node, ast.Call) or ast.unparse(node.func) not in kinds:
                    continue
                if node.args and not isinstance(node.args[0], ast.Starred):
                    parts = [node.args[0], *looked_up(node.args[0], names)]
                    text = " ".join(literal(part) for part in parts)
                    source = " ".join(ast.unparse(part) for part in parts)
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text, source


def named(nodes: Iterable[ast.AST]) -> dict[str, list[ast.expr]]:
    """What is assigned to each name by these statements."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for one in ast.walk(target):
                    if isinstance(one, ast.Name):
                        found.setdefault(one.id, []).append(node.value)
    return found


def looked_up(
    node: ast.expr, names: dict[str, list[ast.expr]], depth: int = 2
) -> Iterator[ast.expr]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and depth:
            for value in names.get(part.id, ()):
                yield value
                yield from looked_up(value, names, depth - 1)


def literal(node: ast.AST) -> str:
    """The text of a string expression, `{}` where a value stands, both branches of a choice."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            literal(part) if isinstance(part, ast.Constant) else "{" + literal(part) + "}"
            for part in node.values
        )
    return " ".join(
        filter(
            None,
            (
                literal(part)
                for part in ast.iter_child_nodes(node)
                if isinstance(part, ast.expr | ast.FormattedValue)
            ),
        )
    )


def test_every_message_says_what_to_do_or_what_would_be_right() -> None:
    """What is typed next stands below each message (see above); this is about the words before it.
    A message that only states a fact is found here."""
    found = list(raised())
    silent = [
        f"{place}: {text}"
        for place, text, source in found
        if not (DO.search(text) or RIGHT.search(text) or SAID_BY.search(source))
    ]
    assert len(found) > 250 and not silent, "\n".join(silent)
    assert (
        not DO.search("the image {} is damaged")
        and not RIGHT.search("the image {} is damaged")
        and DO.search("the image {} is damaged; fetch it again")
    )
