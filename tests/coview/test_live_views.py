"""LIVE of make train: backbones learn first; what trains then is what the three commands one after
the other give."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import config as extraction

from base.errors import StaleError, UsageError
from coview.chain import train, with_tuned
from coview.live import TrainingConfig
from extract.run import run as extract
from train.command import run as train_alone
from train.config import TrainConfig
from train.finetune import config as tuning
from train.finetune.config import FinetuneConfig
from train.finetune.run import run as finetune
from train.run.summary import read_summary

VIEWS = "tiny-clip,tiny-dinov2"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "LEAST", 2)
    monkeypatch.setattr(tuning, "STEPS", 1)


@pytest.fixture
def cache(digits: Path, tmp_path: Path) -> Path:
    """A copy of what all tests share."""
    return Path(shutil.copytree(digits, tmp_path / "cache"))


def asked(cache: Path, **changes: object) -> TrainingConfig:
    base = TrainingConfig(
        views=VIEWS,
        data="digits",
        labels="2",
        method="supervised",
        cache=str(cache),
        runs=str(cache.parent / "runs"),
        run="a",
        warmup=4,
        cotrain=4,
        eval_every=4,
        tensorboard="off",
        report=False,
        device="cpu",
        live="all",
    )
    return dataclasses.replace(base, **changes)


def test_it_is_the_three_commands(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = asked(cache)
    other = Path(shutil.copytree(cache, cache.parent / "other"))
    train(settings, {})
    summary = read_summary(cache.parent / "runs" / "a")
    assert summary["views"] == ["a-tiny-clip", "a-tiny-dinov2"]
    assert set(summary["tuned"]) == {"a-tiny-clip", "a-tiny-dinov2"}

    runs = str(cache.parent / "by hand")
    for view in VIEWS.split(","):
        one = FinetuneConfig(view=view, data="digits", labels="2", cache=str(other), runs=runs)
        finetune(dataclasses.replace(one, run=f"a-{view}", device="cpu"), {})
        toml = f"{runs}/a-{view}/a-{view}.toml"
        extract(extraction(Path("digits"), other, view=toml, batch=64, shard_rows=512), {})
    plain = dataclasses.replace(settings.frozen(), views="a-tiny-clip,a-tiny-dinov2", runs=runs)
    plain = dataclasses.replace(plain, cache=str(other))
    again = train_alone(plain)
    assert again["methods"] == summary["methods"]

    def never(*given: object, **more: object) -> None:
        raise AssertionError("it is finished")

    monkeypatch.setattr("train.finetune.run.tune", never)
    train(settings, {})  # what is finished is not done again


def test_a_dry_run_writes_nothing(cache: Path, capsys: pytest.CaptureFixture) -> None:
    train(asked(cache, dry_run=True), {})
    assert not (cache.parent / "runs").exists()
    assert not list(cache.glob("*/a-*"))
    assert capsys.readouterr().out.count("it would take about") == 2


def test_one_of_two(cache: Path) -> None:
    plain = with_tuned(asked(cache, live="tiny-dinov2", mode="norms"))
    assert plain.views == "tiny-clip,a-tiny-dinov2" and type(plain) is TrainConfig
    assert plain.val == "auto"  # the digits name a validation split, which nobody learnt from


def test_a_run_of_other_views_is_refused_before_anything_is_tuned(cache: Path) -> None:
    plain = asked(cache).frozen()
    train_alone(plain)
    with pytest.raises(StaleError, match="is one of the views tiny-clip,tiny-dinov2") as told:
        train(asked(cache), {})
    assert told.value.instead == {"RUN": "a-2"}
    assert not list((cache.parent / "runs").glob("a-*"))


def test_other_labels_need_another_name_of_the_run_itself(cache: Path) -> None:
    with_tuned(asked(cache, live="tiny-clip"))
    with pytest.raises(StaleError, match=r"settings\.labels") as told:
        with_tuned(asked(cache, live="tiny-clip", labels="1"))
    assert told.value.instead == {"RUN": "a-2"}


def test_where_nobody_else_judges_nobody_does(cache: Path) -> None:
    """Of a data set that names no validation split."""
    plain = with_tuned(asked(cache, val="none", live="tiny-clip", run="b"))
    assert plain.val == "none"


def test_without_a_validation_split_nothing_is_chosen(photos: Path, tmp_path: Path) -> None:
    extract(extraction(photos, tmp_path / "cache"), {})
    words = {"views": "tiny-clip", "data": str(photos), "labels": "all", "live": "tiny-clip"}
    plain = with_tuned(asked(tmp_path / "cache", **words))
    assert plain.views == "a-tiny-clip" and plain.val == "none"
    train_alone(plain)


def test_without_live_nothing_changes(cache: Path) -> None:
    settings = asked(cache, live="", run="")
    settings.check()
    assert with_tuned(settings) == settings.frozen()


@pytest.mark.parametrize(
    ("changes", "told", "instead"),
    [
        ({"live": "tiny-clop"}, "'tiny-clop' is none of VIEWS", {"LIVE": "tiny-clip"}),
        ({"live": "swav"}, "'swav' is none of VIEWS", {"LIVE": "all"}),
        ({"run": ""}, "LIVE needs RUN", {"RUN": "live"}),
        ({"seeds": "0..2"}, "learns the labels of one seed", {"SEEDS": "0"}),
        ({"val": "cross"}, "VAL=cross with LIVE: the labels that would judge", {"VAL": None}),
    ],
)
def test_what_is_wrong_is_told_at_once(
    changes: dict, told: str, instead: dict, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told) as error:
        asked(tmp_path / "none", **changes).check()
    assert error.value.instead == instead


def test_the_words_of_make(command: Callable, tmp_path: Path) -> None:
    words = ("--views", VIEWS, "--data", "digits", "--cache", tmp_path, "--live", "tiny-clop")
    done = command("train", *words)
    assert done.returncode == 2 and "LIVE=tiny-clip" in done.stderr


def test_torchrun_of_ones_own_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    with pytest.raises(UsageError, match=r"LIVE is not for torchrun.*with GPUS for"):
        with_tuned(asked(cache))


@pytest.mark.many
def test_on_two_processes_all_three_steps_are(cache: Path, command: Callable) -> None:
    """Tuned with shared batches, embedded, trained with a view each; the command goes on from what
    is finished."""
    words = ("--views", VIEWS, "--data", "digits", "--cache", cache, "--labels", 1, "--gpus", 2)
    short = ("--warmup", 4, "--cotrain", 4, "--method", "mct", "--device", "cpu")
    runs = ("--runs", cache.parent / "runs", "--run", "a", "--live", "all", "--threads", 1)
    done = command("train", *words, *short, *runs)
    assert done.returncode == 0, done.stderr
    folder = cache.parent / "runs" / "a"
    assert read_summary(folder)["views"] == ["a-tiny-clip", "a-tiny-dinov2"]
    assert (folder.parent / "a-tiny-clip" / "a-tiny-clip.toml").is_file()
    again = command("train", *words, *short, *runs)
    assert again.returncode == 0 and "is finished" in again.stderr + again.stdout
