"""What a method is stands once, and is read there; settings are flat, and shown in groups."""

import dataclasses
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Made
from training import config

from base.errors import UsageError
from base.option_groups import parse
from train.classic import CLASSIC, GRAPH
from train.command import run
from train.config import PLACES, WORDS, TrainConfig, names_of
from train.data.texts import TEXT
from train.grid import SweepConfig
from train.methods import METHODS, Method, defaults
from train.phases import SCHEDULES, phases_of
from train.run.summary import summary_table
from train.sweep import sweep

MADE_UP = Method(
    "made-up",
    "of a test",
    "its joint",
    told="which is made up",
    schedule="mct",
    views=2,
    unlabelled=True,
    default=2,
)
PROGRAM = f"""
import train.methods
from train.methods import Method
train.methods.METHODS["made-up"] = {MADE_UP!r}
from base.commands import main
main("coview.cli:COMMANDS", ["train", "--help"])
"""


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, MADE_UP.name, MADE_UP)


def test_help_tells_of_a_method_of_the_table() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    said = " ".join(done.stdout.replace("│", " ").split())
    assert "made-up (which is made up); default: supervised," in said
    assert "supervised-graph,mct-graph,made-up" in said.replace(", ", ",")


def test_the_check_knows_a_method_of_the_table(made: Made, tmp_path: Path, made_up: None) -> None:
    config(made, tmp_path, method="made-up").check()
    assert "made-up" in dataclasses.replace(config(made, tmp_path), method="all").method_list()
    assert "made-up" in defaults(2) and "made-up" not in defaults(1)
    with pytest.raises(UsageError, match="METHOD=made-up needs at least two views, found"):
        config(made, tmp_path, "pixels", method="made-up").check()
    with pytest.raises(UsageError, match="no method 'madeup'; did you mean 'made-up'"):
        config(made, tmp_path, method="madeup").check()


def test_a_method_of_the_table_is_trained_told_and_swept(
    made: Made, tmp_path: Path, made_up: None
) -> None:
    summary = run(config(made, tmp_path, method="supervised,made-up,mct"))
    assert summary["methods"]["made-up"]["joint"] == summary["methods"]["mct"]["joint"]
    assert "\nof a test: its joint " in summary_table(summary)
    settings = dataclasses.asdict(config(made, tmp_path, method="made-up", run="b"))
    found = sweep(SweepConfig(**settings, grid="lr=1e-3,5e-3"))
    assert {record["method"] for record in found} == {"made-up"} and len(found) == 2
    with pytest.raises(UsageError, match="LABELS=all leaves no unlabelled image for made-up"):
        run(config(made, tmp_path, method="made-up", run="c", labels="all"))


def test_the_table_is_whole() -> None:
    for name, method in METHODS.items():
        assert method.name == name and method.schedule in SCHEDULES
        assert method.classic == (name in (*CLASSIC, GRAPH, TEXT))
        assert not method.graphs or not METHODS[method.without_graphs].graphs
        phases = phases_of(method, TrainConfig(warmup=7, cotrain=23))
        assert phases[0].first == 0
        for one, other in itertools.pairwise(phases):
            assert one.end == other.first
        assert phases[-1].end == 30 * (2 if name == "self-training" else 1)
    assert defaults(1) == ["supervised", "label-propagation"]
    assert defaults(2) == ["supervised", "label-propagation", "supervised-graph", "mct-graph"]


def test_settings_are_flat_and_shown_in_groups(capsys: pytest.CaptureFixture) -> None:
    every = names_of(TrainConfig)
    assert len(every) == len(set(every)) and {*WORDS, *PLACES} < {*every}
    given = parse(TrainConfig, "coview train", ["--lr", "0.5", "--views", "a,b", "--no-report"])
    assert given == TrainConfig(lr=0.5, views="a,b", report=False)
    swept = parse(SweepConfig, "coview sweep", ["--grid", "lr=1", "--hidden", "7"])
    assert swept == SweepConfig(grid="lr=1", hidden=7)
    with pytest.raises(SystemExit):
        parse(TrainConfig, "coview train", ["--help"])
    titles = re.findall(r"^\W+((?:\w+ )?options)\W+$", capsys.readouterr().out, re.MULTILINE)
    kinds = ["probe", "step", "schedule", "rivals", "run"]
    assert titles == ["options", *(f"{kind} options" for kind in kinds)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "--lr must be positive, found 0.0"),
        ({"dropout": 1.0}, r"--dropout must be in \[0, 1\), found 1.0"),
        ({"ema": -0.1}, r"--ema must be in \[0, 1\), found -0.1"),
        ({"timeout_s": float("inf")}, "--timeout-s must be a finite number, found inf"),
        ({"checkpoint_every": 0}, "--checkpoint-every must be at least 1, found 0"),
        ({"warmup": 0, "cotrain": 0}, "--warmup plus --cotrain must be positive"),
    ],
)
def test_a_number_beyond_its_limit_is_named(
    made: Made, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        config(made, tmp_path, **changes).check()
