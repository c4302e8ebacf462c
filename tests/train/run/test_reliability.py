"""Killed, stopped, frozen, damaged: a run that is launched again ends with the bytes of a run that
nothing disturbed, or says why it cannot."""

import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import server
from conftest import ROOT, Made, importing
from training import HARMED, flags, on_ranks, outcome, rank_of, start, wait_for, wait_until_gone
from training import config as plain_config

from train.algorithm.ranks import views_of
from train.config import TrainConfig

KILLED = -signal.SIGKILL
STEPS, EVERY = 80, 10  # of the two methods of a run together; from checkpoint to checkpoint
MANY = pytest.mark.many
CHECKPOINT_POINTS = [
    f"checkpoint.{name}.{step}"
    for name in ("tensors", "state", "latest")
    for step in ("open", "half", "fsync", "rename", "folder", "done")
]
CHECKPOINT_POINTS += ["checkpoint.rename", "checkpoint.forget", "checkpoint.forgotten"]


def config(made: Made, folder: Path, **changes: object) -> TrainConfig:
    """Lines of metrics.jsonl are written between two checkpoints too, so that a killed run has some
    that its checkpoint does not know."""
    return plain_config(made, folder, **{"eval_every": EVERY // 2, **changes})


Launch = Callable[..., tuple[list[int], str]]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """launch(settings, rank=0, step=0, number="SIGKILL", point="") -> the ranks' exit
    statuses, and what they said."""
    log = tmp_path_factory.mktemp("log") / "log.txt"

    def ask(
        settings: TrainConfig,
        ranks: int = 0,
        rank: int = 0,
        step: int = 0,
        number: str = "SIGKILL",
        point: str = "",
    ) -> tuple[list[int], str]:
        log.unlink(missing_ok=True)
        program = ["-m", "coview.cli"]
        if step:
            program = ["-c", HARMED, str(step), str(int(getattr(signal, number)))]
        harm = {rank: (program, {"COVIEW_FAULT": point})}
        torchrun = settings.gpus > 1
        codes = on_ranks(["train", *flags(settings)], ranks or settings.gpus, log, harm, torchrun)
        return codes, log.read_text()

    return ask


# ---------------------------------------------------------------- what is compared


def all_bytes(run: Path) -> dict[str, object]:
    """What `outcome` has, and every byte of the last checkpoint: parameters,
    moments, best copies, step."""
    newest = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text().strip()
    return {
        **outcome(run),
        **{f"{newest.name}/{path.name}": path.read_bytes() for path in sorted(newest.iterdir())},
    }


@pytest.fixture(scope="module")
def whole(
    made: Made, tmp_path_factory: pytest.TempPathFactory, launch: Launch
) -> dict[int, dict[str, object]]:
    """Uninterrupted, by one process and by two."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for ranks in (1, 2):
        codes, said = launch(config(made, folder, run=str(ranks), gpus=ranks))
        assert codes == [0] * ranks, said
    return {ranks: all_bytes(folder / str(ranks)) for ranks in (1, 2)}


def finish(
    launch: Launch, settings: TrainConfig, whole: dict[int, dict[str, object]], why: object = None
) -> str:
    """The same command once more: it must end well, with the bytes of the run that nothing
    disturbed. Returns what it said."""
    codes, said = launch(settings)
    assert codes == [0] * settings.gpus, (why, said)
    found, wanted = all_bytes(Path(settings.runs) / settings.run), whole[settings.gpus]
    assert (
        found.keys() == wanted.keys()
        and [name for name in wanted if found[name] != wanted[name]] == []
    ), (why, said)
    assert not list(Path(settings.runs).rglob("*.tmp"))
    return said


# ---------------------------------------------------------------- kills


@pytest.mark.parametrize(
    "trial", [*range(8), *(pytest.param(n, marks=MANY) for n in range(8, 200))]
)
def test_a_random_rank_killed_at_random_moments_ends_with_the_undisturbed_bytes(
    made: Made, tmp_path: Path, launch: Launch, whole: dict, trial: int
) -> None:
    """Every third trial has two ranks. One or two kills, each at a random step
    or a random point of I/O."""
    chance = random.Random(trial)
    settings = config(made, tmp_path, gpus=1 if trial % 3 else 2)
    plans = []
    for _ in range(chance.randint(1, 2)):
        where = (
            {"point": f"kill:{chance.randint(1, 150)}"}
            if chance.random() < 0.3
            else {"step": chance.randint(1, STEPS)}
        )
        plans.append({"rank": chance.randrange(settings.gpus), **where})
    for number, plan in enumerate(plans):
        codes, said = launch(settings, **plan)
        if not number and "step" in plan:
            assert codes[plan["rank"]] == KILLED and 0 not in codes, (
                plans,
                codes,
                said,
            )  # a later one may find fewer steps left
        assert "GOES BACK" not in said, (plans, said)
    assert "GOES BACK" not in finish(launch, settings, whole, plans)


def test_the_list_of_checkpoint_points_is_complete(
    made: Made, tmp_path: Path, launch: Launch
) -> None:
    launch(config(made, tmp_path), point=f"log:{tmp_path / 'points.txt'}")
    assert {
        point
        for point in (tmp_path / "points.txt").read_text().split()
        if point.startswith("checkpoint.")
    } == set(CHECKPOINT_POINTS)


@pytest.mark.parametrize(
    "names",
    [
        ("checkpoint.tensors", "checkpoint.state", "checkpoint.rename"),
        ("checkpoint.latest", "checkpoint.forg"),
    ],
)
def test_one_run_killed_at_one_checkpoint_point_after_the_other(
    made: Made, tmp_path: Path, launch: Launch, whole: dict, names: tuple[str, ...]
) -> None:
    """The kills of a chain stand on each other's ruins. (The many trials kill once, at each point,
    early and late, in each rank.)"""
    for point in (point for point in CHECKPOINT_POINTS if point.startswith(names)):
        codes, said = launch(config(made, tmp_path), point=f"kill:1:{point}")
        assert codes == [KILLED] and "GOES BACK" not in said, (point, said)  # a kill is no damage
    assert "GOES BACK" not in finish(launch, config(made, tmp_path), whole)


@MANY
@pytest.mark.parametrize("number", [1, 2, 5, 8])
@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("point", CHECKPOINT_POINTS)
def test_killed_at_every_checkpoint_point(
    made: Made, tmp_path: Path, launch: Launch, whole: dict, point: str, gpus: int, number: int
) -> None:
    settings = config(made, tmp_path, gpus=gpus)
    number = min(number, 6) if "forg" in point else number
    rank = gpus - 1 if "tensors" in point else 0
    codes, said = launch(settings, rank=rank, point=f"kill:{number}:{point}")
    assert codes[rank] == KILLED, said
    assert "GOES BACK" not in finish(launch, settings, whole)


# ---------------------------------------------------------------- damage

# how a run was killed, the step of its newest checkpoint, of the one before, of which method;
# "trained": the probes of that method were written since
LEFT = {
    "first": ({"point": "kill:2:checkpoint.latest.done"}, 20, 10, "supervised"),
    "trained": ({"step": 43}, 40, 30, "supervised"),
    "turn": ({"point": "kill:5:checkpoint.latest.done"}, 10, 40, "mct"),
    "second": ({"point": "kill:7:checkpoint.latest.done"}, 30, 20, "mct"),
    "last": ({"point": "kill:1:summary.open"}, 40, 30, "mct"),
}


@pytest.fixture(scope="module")
def left(
    made: Made, tmp_path_factory: pytest.TempPathFactory, launch: Launch
) -> Callable[[Path, str, int], TrainConfig]:
    """left(folder, moment, gpus) -> the settings of a run in `folder` that was killed at that
    moment; its checkpoints are whole."""
    store = tmp_path_factory.mktemp("left")

    def copy(folder: Path, moment: str, gpus: int = 1) -> TrainConfig:
        kept = store / f"{moment}-{gpus}"
        if not kept.exists():
            codes, said = launch(config(made, kept, gpus=gpus), **LEFT[moment][0])
            assert codes[0] == KILLED, said
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        return config(made, folder, gpus=gpus)

    return copy


def newest(folder: Path) -> Path:
    return (
        folder / "a" / "checkpoints" / (folder / "a" / "checkpoints" / "LATEST").read_text().strip()
    )


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[min(int(at * len(data)), len(data) - 1)] ^= 4
    path.write_bytes(data)


def cut(path: Path, at: float) -> None:
    os.truncate(path, int(at * path.stat().st_size))


HARM: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: cut(path, 0),
    "cut": lambda path: cut(path, 0.6),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "flipped": lambda path: flip(path, 0.7),
    "first byte": lambda path: flip(path, 0),
    "last byte": lambda path: flip(path, 1),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "of another": lambda path: shutil.copy(min(path.parent.parent.glob("*-*")) / path.name, path),
    "another step": lambda path: path.write_text(
        re.sub(r'("step": )\d', r"\g<1>7", path.read_text())
    ),
}
SMALL = [
    ("first", "rank0.safetensors", "flipped", 1),
    ("first", "state.json", "cut", 1),
    ("trained", "rank0.safetensors", "cut", 1),
    ("trained", "state.json", "another step", 1),
    ("second", "rank0.safetensors", "missing", 1),
    ("last", "rank0.safetensors", "of another", 1),
    ("trained", "rank1.safetensors", "flipped", 2),
    ("second", "rank1.safetensors", "missing", 2),
]
ALL = [
    (moment, file, harm, 2 if "rank1" in file else 1)
    for moment in LEFT
    if moment != "turn"
    for file in ("rank0.safetensors", "rank1.safetensors", "state.json")
    for harm in HARM
    if harm != ("of another" if file == "state.json" else "another step")
]


@pytest.mark.parametrize(
    ("moment", "file", "harm", "gpus"),
    [*SMALL, *(pytest.param(*case, marks=MANY) for case in ALL if case not in SMALL)],
)
def test_a_damaged_checkpoint_takes_all_ranks_back_to_the_one_before(
    tmp_path: Path,
    launch: Launch,
    left: Callable,
    whole: dict,
    moment: str,
    file: str,
    harm: str,
    gpus: int,
) -> None:
    settings = left(tmp_path, moment, gpus)
    _, now, before, method = LEFT[moment]
    harmed = newest(tmp_path) / file
    assert harmed.parent.name == f"{method}-{now:08d}"
    HARM[harm](harmed)
    said = finish(launch, settings, whole)
    line = next(line for line in said.splitlines() if "GOES BACK" in line)
    assert (
        said.count("GOES BACK") == 1
        and str(harmed) in line
        and f"GOES BACK to step {before} of {method}" in line
    ), said


LATEST = [
    ("turn", ""),
    ("second", None),
    ("second", "mct-00000020\n"),
    *(
        pytest.param("second", name, marks=MANY)
        for name in ("", "nonsense\n", "../../a\n", "\xff\0", "mct-00000099\n", ".")
    ),
]


@pytest.mark.parametrize(("moment", "latest"), LATEST)
def test_a_damaged_latest_costs_nothing(
    tmp_path: Path, launch: Launch, left: Callable, whole: dict, moment: str, latest: str | None
) -> None:
    settings = left(tmp_path, moment)
    path = tmp_path / "a" / "checkpoints" / "LATEST"
    path.unlink() if latest is None else path.write_bytes(latest.encode("latin-1"))
    said = finish(launch, settings, whole)
    said_so = f"GOES BACK to step {LEFT[moment][1]} of mct" in said and f"{path} " in said
    assert said_so == (latest != "mct-00000020\n"), (
        said
    )  # one that is there is older than the newest: no word


def test_a_checkpoint_that_is_gone_is_missed(
    tmp_path: Path, launch: Launch, left: Callable, whole: dict
) -> None:
    settings = left(tmp_path, "trained")
    shutil.rmtree(newest(tmp_path))
    assert "GOES BACK to step 30 of supervised" in finish(launch, settings, whole)


@pytest.mark.parametrize(("harm", "gpus"), [("flipped", 1), pytest.param("missing", 2, marks=MANY)])
def test_no_intact_checkpoint_is_refused_and_nothing_is_touched(
    tmp_path: Path, launch: Launch, left: Callable, harm: str, gpus: int
) -> None:
    settings = left(tmp_path, "trained", gpus)
    for folder in (tmp_path / "a" / "checkpoints").glob("*-*"):
        HARM[harm](folder / f"rank{gpus - 1}.safetensors")
    before = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    codes, said = launch(settings)
    assert (
        codes[0] == 5
        and 0 not in codes
        and "no checkpoint is left to go on from" in said
        and f"Delete {tmp_path / 'a'} to train" in said
    ), said
    assert {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name != ".lock"
    } == before
    shutil.rmtree(newest(tmp_path).parent / "supervised-00000030")
    shutil.rmtree(newest(tmp_path))
    assert launch(settings)[0][0] == 5  # LATEST alone says that there was something


@pytest.mark.parametrize(
    "point",
    [
        "checkpoint.undo.folder",
        "checkpoint.mend.done",
        "checkpoint.tensors.open",
        *(
            pytest.param(name, marks=MANY)
            for name in (
                "checkpoint.undo.unlink",
                "checkpoint.mend.rename",
                "checkpoint.forget",
                "checkpoint.forgotten",
            )
        ),
    ],
)
def test_killed_while_it_goes_back(
    tmp_path: Path, launch: Launch, left: Callable, whole: dict, point: str
) -> None:
    settings = left(tmp_path, "trained")
    flip(newest(tmp_path) / "rank0.safetensors", 0.5)
    assert launch(settings, point=f"kill:1:{point}")[0] == [KILLED]
    assert ("GOES BACK" in finish(launch, settings, whole)) == (
        point not in ("checkpoint.tensors.open", "checkpoint.forgotten")
    )  # said until it is done


# ---------------------------------------------------------------- resume with something else


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seeds": "0..2"}, "settings.seeds: 0..1 -> 0..2"),
        ({"labels": "4"}, "settings.labels: 3 -> 4"),
        ({"cotrain": 30}, "settings.cotrain: 20 -> 30"),
        ({"gpus": 2}, "settings.gpus: 1 -> 2"),
    ],
)
def test_a_killed_run_is_not_resumed_with_another(
    tmp_path: Path, launch: Launch, left: Callable, whole: dict, change: dict, line: str
) -> None:
    settings = left(tmp_path, "second")
    codes, said = launch(dataclasses.replace(settings, **change))
    assert set(codes) == {6} and line in said and "RUN=a-2" in said, said
    finish(launch, settings, whole)  # and nothing was touched


def test_a_killed_run_is_not_resumed_with_another_cache(
    tmp_path: Path, launch: Launch, left: Callable
) -> None:
    (tmp_path / "other").mkdir()
    other = Made(tmp_path / "other", bad=[3])
    settings = dataclasses.replace(left(tmp_path / "runs", "second"), cache=str(other.cache))
    codes, said = launch(settings)
    assert codes == [6] and re.search(r"fingerprints\.edges: \w{12}… -> \w{12}…", said), said


def test_a_killed_run_is_not_resumed_by_fewer_or_more_processes_of_torchrun(
    tmp_path: Path, launch: Launch, left: Callable, whole: dict
) -> None:
    settings = left(tmp_path, "second", 2)
    codes, said = launch(settings, ranks=1)
    assert (
        codes == [2] and "--gpus 2, but torchrun started 1 processes; leave --gpus out" in said
    ), said
    codes, said = launch(dataclasses.replace(settings, gpus=1))
    assert codes == [6] and "settings.gpus: 2 -> 1" in said and "repeat the old settings" in said, (
        said
    )
    finish(launch, settings, whole)


def test_methods_of_one_process_go_with_those_of_all(
    made: Made, tmp_path: Path, launch: Launch
) -> None:
    """The checkpoint of mct is two ranks', that of concat one's: neither
    stands in the other's way."""
    settings = config(made, tmp_path, gpus=2, method="mct,concat")
    assert launch(settings)[0] == [0, 0]
    again = dataclasses.replace(settings, run="b")
    assert launch(again, step=55)[0][0] == KILLED and newest(tmp_path).parent.parent.name == "a"
    assert launch(again)[0] == [0, 0]
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")


# ---------------------------------------------------------------- ends that a rank can come to


def test_a_stop_signal_to_one_rank_stops_both_and_the_run_goes_on(
    made: Made, tmp_path: Path, launch: Launch, whole: dict
) -> None:
    settings = config(made, tmp_path, gpus=2)
    codes, said = launch(settings, rank=1, step=53, number="SIGTERM")
    assert codes == [75, 75] and "stopped at step 15 of mct, everything is saved" in said, said
    finish(launch, settings, whole)


def test_a_loss_that_is_not_finite_in_one_rank_stops_both_and_names_the_view(
    made: Made, tmp_path: Path, launch: Launch
) -> None:
    codes, said = launch(config(made, tmp_path, gpus=2, lr=1e38))
    assert (
        3 in codes
        and 0 not in codes
        and re.search(
            r"the loss of view '(pixels|edges)' is not finite at step [12] of supervised", said
        )
    ), said


HARMFUL = """
import builtins, os, sys
if "RANK" in os.environ:
    with open({folder!r} + "/pids", "a") as file:
        print(os.getpid(), file=file)
if os.environ.get("RANK") == "1":
    plain = builtins.__import__
    def importing(name, *args, **kwargs):
        module = plain(name, *args, **kwargs)
        if name == "train.run.log" and hasattr(sys.modules[name], "Listeners"):
            builtins.__import__ = plain
            def step(self, at):
                if at == 15:
                    {harm}
                for listener in self.listeners:
                    listener.step(at)
            sys.modules[name].Listeners.step = step
        return module
    builtins.__import__ = importing
"""
ENDS = {
    "raising": ("raise RuntimeError('out of luck')", r"raised an error \(above\)|died"),
    "exiting": ("os._exit(0)", "died"),
    "killed": ("os.kill(os.getpid(), 9)", "died"),
    "frozen": ("os.kill(os.getpid(), 19)", r"is frozen \(stopped by a signal\)"),
}


@pytest.mark.parametrize(
    "end", ["exiting", *(pytest.param(end, marks=MANY) for end in ("frozen", "raising", "killed"))]
)  # killed: test_train.py
def test_a_rank_that_ends_badly_ends_the_job_in_time_with_code_7(
    made: Made, tmp_path: Path, end: str
) -> None:
    """In time: long before the ranks would give up waiting for each other. Only of a frozen one
    nobody knows until they do."""
    harm, how = ENDS[end]
    (tmp_path / "sitecustomize.py").write_text(HARMFUL.format(folder=str(tmp_path), harm=harm))
    process = server.Popen(
        [
            sys.executable,
            "-m",
            "coview.cli",
            "train",
            *flags(config(made, tmp_path, gpus=2, timeout_s=3.0 if end == "frozen" else 600.0)),
        ],
        cwd=ROOT,
        env=importing(tmp_path, **server.FIXED),
        deep=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 7, errors
    message = errors[errors.rindex("error: rank") :]
    assert re.search(
        rf"rank 1 \(\S*edges.toml\) ({how}) at step 1[45]; .* goes on from the last checkpoint",
        message,
    ), message
    assert "Traceback" not in errors or end == "raising"  # that of who has failed, if any
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    for pid in pids:
        wait_until_gone(int(pid))


def test_the_message_names_the_views_of_a_replica() -> None:
    assert [views_of(rank, 2, ["a", "b", "c"]) for rank in range(2)] == [["a", "c"], ["b"]]
    assert [views_of(rank, 4, ["a", "b"]) for rank in range(4)] == [["a"], ["b"]] * 2


def rank_1(folder: Path) -> int:
    return rank_of(folder, 1)


@MANY
def test_a_stop_signal_to_the_job_stops_all_ranks_and_the_same_command_goes_on(
    made: Made, tmp_path: Path, launch: Launch
) -> None:
    settings = config(made, tmp_path, gpus=2, cotrain=600)
    process = start(settings)
    wait_for(tmp_path / "a" / "metrics.jsonl", process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert (
        process.returncode == 75
        and "everything is saved; the same command goes on from here" in errors
    )
    undisturbed = dataclasses.replace(settings, run="whole")
    assert launch(settings)[0] == launch(undisturbed)[0] == [0, 0]
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "whole")


@MANY
def test_ranks_whose_job_was_killed_save_and_end_and_the_same_command_goes_on(
    made: Made, tmp_path: Path, launch: Launch
) -> None:
    """Nobody would watch them any more, and nobody could stop them."""
    settings = config(made, tmp_path, gpus=2, cotrain=600)
    process = start(settings)
    wait_for(tmp_path / "a" / "metrics.jsonl", process)
    ranks = [rank_1(tmp_path), rank_of(tmp_path, 0)]
    process.kill()
    process.communicate()
    for pid in ranks:
        wait_until_gone(pid, 30)
    assert (tmp_path / "a" / "checkpoints" / "LATEST").is_file()
    assert not (tmp_path / "a" / "summary.json").exists()
    undisturbed = dataclasses.replace(settings, run="whole")
    assert launch(settings)[0] == launch(undisturbed)[0] == [0, 0]
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "whole")


@pytest.mark.many
def test_torchrun_with_restarts_resumes_by_itself(
    made: Made, tmp_path: Path, launch: Launch
) -> None:
    """torchrun --standalone --nproc-per-node 2 --max-restarts 1 -m coview.cli train --run NAME …,
    rank 1 killed once.

    Rank 0 is late then: rank 1 must not take its old address."""
    late = (
        "import os, time\n"
        'if os.environ.get("RANK") == "0" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "1":\n'
        "    time.sleep(2)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(late)
    settings = config(made, tmp_path, gpus=2, cotrain=60)
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        "-m",
        "--",
        "coview.cli",
        "train",
    ]
    words += flags(dataclasses.replace(settings, gpus=1))
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=importing(tmp_path, OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "a" / "checkpoints" / "LATEST", process)
    os.kill(rank_1(tmp_path), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    undisturbed = dataclasses.replace(settings, run="whole")
    assert launch(undisturbed)[0] == [0, 0]
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "whole")
