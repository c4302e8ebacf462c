"""Which runs are compared, and which one is proposed besides."""

import os
from pathlib import Path

import pytest

from base.errors import UsageError
from report import compare
from report.config import CompareConfig


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        ("u1", "u1,u3"),
        ("u1,u1", "u1,u3"),
        ("x12", None),
        ("u1 u1", "u1,u3"),
        ("u1,u4,u1", "u1,u4"),
        ("", "x12,x11"),
    ],
)
def test_the_newest_other_run_of_the_same_data_set_is_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, advice: str | None
) -> None:
    runs = ("u4", "u1", "u3", "x11", "x12") if not names else ("u4", "u1", "u3", "x12")
    for age, name in enumerate(runs):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").touch()
        os.utime(tmp_path / name / "summary.json", (age, age))
    monkeypatch.setattr(compare, "run_folder", lambda runs, name, beside: Path(runs) / name)
    monkeypatch.setattr(compare, "read_summary", lambda folder: {"dataset": folder.name[0]})
    with pytest.raises(UsageError, match="at least two different runs") as caught:
        compare.command(CompareConfig(names=names, runs=str(tmp_path)), {})
    assert caught.value.instead == ({"RUNS": advice} if advice else {})


def test_runs_stand_between_commas_or_blanks() -> None:
    assert compare._names(CompareConfig(names="u1 u3, u4,")) == ["u1", "u3", "u4"]
    assert compare._names(CompareConfig(names="my runs/a,b")) == ["my runs/a", "b"]


def test_a_run_that_is_named_already_is_not_proposed(tmp_path: Path) -> None:
    for name in ("first", "first-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    with pytest.raises(UsageError, match="did you mean 'first-2'") as caught:
        compare._folder(str(tmp_path), "frist", ["first", "frist"])
    assert caught.value.instead == {"RUNS": "first,first-2"}
