"""make sweep: every combination is what it is alone, ranked on validation, resumed where it was
stopped, and nonsense is refused."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Made
from training import QUICK

from base.errors import IntegrityError, UsageError
from train.command import run
from train.config import TrainConfig, command_of
from train.grid import SweepConfig
from train.run.rundir import finished
from train.sweep import batches_of, ranking, sweep

GRID = "lr=1e-3,5e-3 temperature=0.5,1 hidden=8,16"


def settings(made: Made, folder: Path, **changes: object) -> SweepConfig:
    return SweepConfig(
        views=made.views("pixels", "edges"),
        data="digits",
        cache=str(made.cache),
        runs=str(folder),
        **{
            "run": "a",
            "seeds": "0..1",
            "grid": GRID,
            "method": "mct",
            "precision": "float64",
            **QUICK,
            **changes,
        },
    )


def _check_damaged(folder: Path) -> None:
    """What stands in a sweep.json of others is a value of the command that is told, and no more."""
    path = folder / "sweep.json"
    whole = path.read_text()
    bad = {"method": "mct; rm -r ~", "settings": {"lr": "$(rm -r ~)", "view": "x", "batch": [1]}}
    path.write_text(json.dumps({"ranked": [bad]}))
    with pytest.raises(UsageError, match="is a sweep") as caught:
        finished(folder)
    words = shlex.split(str(caught.value).partition(", type: ")[2])
    assert words[:2] == ["make", "train"] and "METHOD=mct; rm -r ~" in words
    flags = next(word for word in words if word.startswith("ARGS=")).removeprefix("ARGS=")
    asked = shlex.split(flags)
    assert asked[asked.index("--lr") + 1] == "$$(rm -r ~)" and "--view" not in asked
    for damaged in ("", "{}", '{"ranked": []}', '{"ranked": [{"method": "mct"}]}'):
        path.write_text(damaged)
        with pytest.raises(IntegrityError, match=r"sweep.json is damaged .*; use another RUN"):
            finished(folder)
    path.write_text(whole)


def test_the_best_is_told_whole_also_where_it_is_the_default() -> None:
    usual = dataclasses.asdict(TrainConfig(views="a,b", data="digits"))
    best = {"lr": usual["lr"], "temperature": 1.0, "calibrate": False}
    told = command_of(usual, {"method": "mct", "settings": best})
    assert told == (
        "make train VIEWS=a,b DATA=digits METHOD=mct "
        "ARGS='--lr 0.0003 --temperature 1.0 --no-calibrate'"
    )


def test_a_combination_of_a_sweep_is_what_it_is_alone_to_the_last_bit(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found = sweep(settings(made, tmp_path))
    assert len(found) == 8 and [sum(record["val_top1"]) for record in found] == sorted(
        (sum(record["val_top1"]) for record in found), reverse=True
    )
    assert json.loads((tmp_path / "a" / "sweep.json").read_text())["ranked"] == found
    out = capsys.readouterr().out
    with pytest.raises(
        UsageError,
        match=(
            r"RUN=a: .*/a is a sweep, which keeps scores, but no model. "
            r"To train and test its best, type: make train "
        ),
    ) as caught:
        finished(tmp_path / "a")
    assert all(
        f"--{name} {value} " in f"{caught.value} ".replace("'", " ")
        for name, value in found[0]["settings"].items()
    )
    lines = out.strip().splitlines()
    assert lines[-1].startswith("to train and test the best, type: ")
    assert (
        "8 combinations, 2 seeds each" in out
        and "to train and test the best, type: make train VIEWS=" in out
        and "--warmup 20" in out
    )
    _check_damaged(tmp_path / "a")
    for record in (found[0], found[-1]):
        alone = {
            field.name: getattr(settings(made, tmp_path), field.name)
            for field in dataclasses.fields(TrainConfig)
        }
        summary = run(
            TrainConfig(
                **{
                    **alone,
                    **record["settings"],
                    "seeds": "1",
                    "run": f"alone{found.index(record)}",
                }
            )
        )
        scores = summary["methods"]["mct"]["joint"]
        assert scores["val_top1"]["values"] == [record["val_top1"][1]]


def test_a_killed_sweep_goes_on_and_ends_with_the_same_ranking(
    made: Made, tmp_path: Path, command: Callable, capsys: pytest.CaptureFixture
) -> None:
    config = settings(made, tmp_path, at_once=4)
    flags = [
        text
        for name, value in dataclasses.asdict(config).items()
        if not isinstance(value, bool)
        for text in (f"--{name.replace('_', '-')}", value)
    ]
    assert command("sweep", *flags, env={"COVIEW_FAULT": "kill:2:sweep.rename"}).returncode == -9
    assert len(list((tmp_path / "a" / "sweep").glob("*.json"))) == 1
    stamp = (tmp_path / "a" / "sweep" / "mct-000.json").stat().st_mtime_ns
    found = sweep(config)
    assert (tmp_path / "a" / "sweep" / "mct-000.json").stat().st_mtime_ns == stamp and len(
        list((tmp_path / "a" / "sweep").glob("*.json"))
    ) == 4
    assert (
        found
        == sweep(dataclasses.replace(config, run="whole"))
        == sweep(dataclasses.replace(config, run="at-once", at_once=64))
    )
    (tmp_path / "a" / "sweep" / "mct-000.json").write_text("{}")
    with pytest.raises(
        IntegrityError, match=r"mct-000.json is damaged .*delete it and type the same command"
    ):
        sweep(config)


@pytest.mark.many
def test_a_sweep_on_two_processes_is_that_of_one(
    made: Made, tmp_path: Path, command: Callable
) -> None:
    config = settings(made, tmp_path, grid="lr=1e-3,5e-3", gpus=2)
    flags = [
        text
        for name, value in dataclasses.asdict(config).items()
        if not isinstance(value, bool)
        for text in (f"--{name.replace('_', '-')}", value)
    ]
    done = command("sweep", *flags, deep=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "a" / "sweep.json").read_text())["ranked"] == sweep(
        dataclasses.replace(config, run="one", gpus=1)
    )


def test_what_cannot_differ_in_one_training_is_trained_apart(made: Made, tmp_path: Path) -> None:
    made_of = list(batches_of(settings(made, tmp_path, at_once=4), ["mct", "fixmatch"], 2))
    assert [one.name for one in made_of] == [
        "mct-000",
        "mct-001",
        "mct-002",
        "mct-003",
        "fixmatch-004",
        "fixmatch-005",
        "fixmatch-006",
        "fixmatch-007",
    ]
    assert [one.settings.hidden for one in made_of] == [8, 8, 16, 16] * 2
    assert all(len(one.members) == 2 for one in made_of)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": ""}, "GRID is missing. Type: make sweep VIEWS="),
        ({"grid": "lrr=1"}, "no setting of a grid is called 'lrr'; did you mean 'lr'"),
        ({"grid": "learningrate=1"}, "called 'learningrate'; did you mean 'lr'"),
        ({"grid": "lerning_rate=1"}, "called 'lerning_rate'; did you mean 'lr'"),
        ({"grid": "wd=1"}, "called 'wd'; did you mean 'weight_decay'"),
        ({"grid": "dropuot=1"}, "called 'dropuot'; did you mean 'dropout'"),
        ({"grid": "epochs=1"}, "called 'epochs'; there is: hidden, layers"),
        ({"grid": "lr=1 lr=2"}, "'lr' stands there twice"),
        ({"grid": "seeds=1"}, "no setting of a grid is called 'seeds'"),
        ({"grid": "lr=x"}, "GRID: 'lr=x': lr takes values such as 0.005"),
        ({"grid": "calibrate=maybe"}, "calibrate takes values such as False"),
        (
            {"grid": "pseudo=sampel"},
            "GRID: pseudo takes sample, argmax, found 'sampel'; did you mean 'sample'",
        ),
        ({"grid": "lr=-1"}, "must be positive"),
        ({"at_once": 0}, "--at-once must be at least 1"),
        ({"method": "knn"}, "METHOD=knn has no grid; a sweep takes supervised"),
    ],
)
def test_nonsense_is_refused_before_anything_is_read(
    made: Made, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        settings(made, tmp_path, **changes).check()


@pytest.mark.parametrize(
    ("grid", "meant"),
    [
        ("lr=1e-4,3e-4, temperature=0.5", "lr=1e-4,3e-4 temperature=0.5"),
        ("lr=1e-4;3e-4", "lr=1e-4,3e-4"),
        ("lr=1e-4, 3e-4", "lr=1e-4,3e-4"),
        ("lr = 1e-4 , 3e-4; wd 0.1", "lr=1e-4,3e-4 wd=0.1"),
        ("lr 1 2 weight-decay 0", "lr=1,2 weight-decay=0"),
        ("lr", "lr=…"),
        ("lr= temperature=1", "lr=… temperature=1"),
        ("lr=1e-4,x temperature=1", "lr=1e-4,… temperature=1"),
        ("lr=1 hidden=8 lr=2", "lr=1,2 hidden=8"),
        ("weight-decay=1 weight_decay=2", "weight_decay=1,2"),
        ("pseudo=sampel,argmax", "pseudo=sample,argmax"),
        ("pseudo=sampel,sample", "pseudo=sample"),
        ("xyzzy=1 lr=2", "…=1 lr=2"),
        ("lrr=1,2 hidden=8", "lr=1,2 hidden=8"),
    ],
)
def test_a_slip_in_a_grid_keeps_all_else_that_was_typed(
    made: Made, tmp_path: Path, grid: str, meant: str
) -> None:
    with pytest.raises(UsageError) as caught:
        settings(made, tmp_path, grid=grid).combinations()
    assert caught.value.instead == {"GRID": meant}


def test_the_command_for_the_best_can_be_typed(made: Made, tmp_path: Path) -> None:
    config = dataclasses.replace(
        settings(made, tmp_path), data="my photos", cache="cache", dropout=0.0
    )
    record = {
        "method": "supervised",
        "settings": {"lr": 0.01, "calibrate": True},
        "val_top1": [0.5, 0.6],
        "val_nll": [1.0, 1.0],
        "step": [1, 2],
    }
    last = ranking(config, [record] * 40).splitlines()[-1]
    assert "DATA='my photos' LABELS=3 SEEDS=0..1 METHOD=supervised ARGS='--" in last
    assert (
        "--lr 0.01" in last
        and " --runs " in last
        and " --calibrate" in last
        and " --dropout 0.0" in last
    )
    assert "CACHE" not in last and "and 10 more" in ranking(config, [record] * 40)
