"""The grid of `make sweep`: which settings vary, and how."""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from base.console import counted
from base.errors import UNKNOWN, UsageError, did_you_mean, nearest
from base.phrase import quoted
from train.config import TrainConfig, TrainingSettings, choices_of, limited, names_of
from train.methods import METHODS

INSIDE = ("lr", "weight_decay", "temperature", "pseudo")  # may differ in one batched training
GRID = "lr=1e-4,3e-4 temperature=0.25,0.5,1"  # an example
EXAMPLE = f"GRID={quoted(GRID)}"
ALSO = {  # what other programs call a setting
    "learningrate": "lr",
    "learning_rate": "lr",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "width": "hidden",
    "hidden_size": "hidden",
    "depth": "layers",
    "num_layers": "layers",
    "temp": "temperature",
    "tau": "temperature",
}
BOOLS = {"true": True, "false": False}


@dataclass(frozen=True)
class GridSettings:
    grid: str = ""
    """name=value,value … separated by blanks, such as 'lr=1e-4,3e-4 temperature=0.25,0.5,1';
    the names are those of the settings below"""
    at_once: int = limited(64, least=1)
    """the most trainings (combinations times seeds, times folds) in one batch"""


@dataclass(frozen=True)
class SweepConfig(TrainConfig, GridSettings):
    """Train a grid of settings, as many at once as can be, and rank them on validation."""

    def method_list(self) -> list[str]:
        if not self.method:
            return ["mct-graph" if len(self.view_list()) > 1 else "supervised"]
        every = super().method_list()
        return every if self.method != "all" else [name for name in every if name in swept()]

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values. Raises UsageError."""
        axes: dict[str, list[Any]] = {}
        self._refuse_marks()
        for part in self.grid.split():
            name, _, values = part.partition("=")
            name = name.replace("-", "_")
            if name in axes:
                raise _wrong(f"{name!r} stands there twice", _merged(self.grid))
            axes[name] = self._values(name, part, values)
        if not axes:
            views, data = quoted(self.views or "clip,dinov2"), quoted(self.data or "photos/")
            raise UsageError(
                f"GRID is missing. Type: make sweep VIEWS={views} DATA={data} {EXAMPLE}"
            )
        rows = itertools.product(*axes.values())
        return [dict(zip(axes, row, strict=True)) for row in rows]

    def check(self) -> None:
        """Raise UsageError for what can be seen without reading any data."""
        super().check()
        if self.dry_run:
            count = counted(len(self.combinations()), "combination")
            raise UsageError(
                f"a sweep has no dry run. This one has {count}; "
                f"for one of them type: make train VIEWS={quoted(self.views)} "
                f"DATA={quoted(self.data)} ARGS=--dry-run"
            )
        for method in self.method_list():
            if method not in swept():
                every = ", ".join(swept())
                raise UsageError(
                    f"METHOD={method} has no grid; a sweep takes {every}", {"METHOD": None}
                )
        for combination in self.combinations():
            TrainConfig.check(dataclasses.replace(self, **combination))

    def _refuse_marks(self) -> None:
        """Raise UsageError where other marks than `=`, one comma and a blank stand between names
        and values."""
        text = re.sub(r"\s*=\s*(?![^\s,;]*=)", "=", self.grid)
        known = {*names_of(TrainingSettings), *ALSO}
        parts: list[str] = []
        for word in filter(None, re.split(r"[\s,;]+", text)):
            if "=" in word or not parts or word.replace("-", "_") in known:
                parts.append(word)
            else:
                name, _, values = parts[-1].partition("=")
                parts[-1] = f"{name}={values},{word}" if values else f"{name}={word}"
        meant = " ".join(parts)
        if meant != " ".join(self.grid.split()):
            raise _wrong(
                "a `=` stands between a setting and its values, one comma between its values, a "
                "blank between settings",
                meant,
            )

    def _values(self, name: str, part: str, values: str) -> list[Any]:
        """The values of one axis, of the kind that the setting is."""
        axes = [axis for axis in names_of(TrainingSettings) if axis not in ("threads", "select")]
        if name not in axes:
            raise self._unknown(name, part, values, axes)
        usual = getattr(self, name)
        kind = type(usual)
        found = []
        for value in values.split(","):
            try:
                found.append(BOOLS[value.lower()] if kind is bool else kind(value))
            except (ValueError, KeyError):
                told = f"{name} takes values such as {usual!r}"
                grid = self._with(part, f"{name}={_instead(values, value, UNKNOWN)}")
                raise _wrong(f"{part!r}: {told}", grid) from None
            choices = choices_of(name)
            if choices and value not in choices:
                told = did_you_mean(value, choices)
                better = _instead(values, value, nearest(value, choices) or UNKNOWN)
                raise _wrong(
                    f"{name} takes {', '.join(choices)}, found {value!r}{told}",
                    self._with(part, f"{name}={better}"),
                )
        return found

    def _unknown(self, name: str, part: str, values: str, axes: Sequence[str]) -> UsageError:
        near = _meant(name, axes)
        told = f"; did you mean {near!r}" if near else f"; there is: {', '.join(axes)}"
        grid = self._with(part, f"{near or UNKNOWN}={values or UNKNOWN}")
        return _wrong(f"no setting of a grid is called {name!r}{told}", grid)

    def _with(self, part: str, better: str) -> str:
        """The grid with another axis in the place of one."""
        return " ".join(better if one == part else one for one in self.grid.split())


def _instead(values: str, wrong: str, better: str) -> str:
    """The values of an axis with another in the place of one; that is left out where it is there
    already."""
    given = [better if value == wrong else value for value in values.split(",")]
    return ",".join(dict.fromkeys(given))


def _merged(grid: str) -> str:
    """With one axis a setting, which has all of its values."""
    axes: dict[str, str] = {}
    for part in grid.split():
        name, _, values = part.partition("=")
        name = name.replace("-", "_")
        axes[name] = f"{axes[name]},{values}" if name in axes else values
    return " ".join(f"{name}={values}" for name, values in axes.items())


def _meant(name: str, axes: Sequence[str]) -> str:
    """The setting that a name may mean which there is not, a slip or another program's word; ''
    where none is near."""
    known = {axis: axis for axis in axes} | ALSO
    found = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)
    return known[found[0]] if found else ""


def _wrong(what: str, grid: str) -> UsageError:
    """grid: what was typed, mended, or with the sign for what is not known."""
    return UsageError(f"GRID: {what}; such as {EXAMPLE}", {"GRID": grid})


def swept() -> list[str]:
    """The methods that a sweep takes."""
    return [method.name for method in METHODS.values() if not method.solo]
