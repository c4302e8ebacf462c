"""The grid of `make sweep`: which settings vary, and how."""

import dataclasses
import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from base.console import counted
from base.errors import UsageError, did_you_mean
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
    """the most experiments (combinations times seeds) in one batched training"""


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
        for part in self.grid.split():
            name, _, values = part.partition("=")
            name = name.replace("-", "_")
            if name in axes:
                raise _wrong(f"{name!r} stands there twice")
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

    def _values(self, name: str, part: str, values: str) -> list[Any]:
        """The values of one axis, of the kind that the setting is."""
        axes = [axis for axis in names_of(TrainingSettings) if axis not in ("threads", "select")]
        if name not in axes:
            near = _meant(name, axes)
            told = f"; did you mean {near!r}" if near else f"; there is: {', '.join(axes)}"
            grid = self.grid.replace(part, f"{near}={values}") if near else GRID
            raise _wrong(f"no setting of a grid is called {name!r}{told}", grid)
        usual = getattr(self, name)
        kind = type(usual)
        found = []
        for value in values.split(","):
            try:
                found.append(BOOLS[value.lower()] if kind is bool else kind(value))
            except (ValueError, KeyError):
                told = f"{name} takes values such as {usual!r}"
                raise _wrong(f"{part!r}: {told}") from None
            choices = choices_of(name)
            if choices and value not in choices:
                told = did_you_mean(value, choices)
                raise _wrong(f"{name} takes {', '.join(choices)}, found {value!r}{told}")
        return found


def _meant(name: str, axes: Sequence[str]) -> str:
    """The setting that a name may mean which there is not, a slip or another program's word; ''
    where none is near."""
    known = {axis: axis for axis in axes} | ALSO
    found = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)
    return known[found[0]] if found else ""


def _wrong(what: str, grid: str = GRID) -> UsageError:
    return UsageError(f"GRID: {what}; such as {EXAMPLE}", {"GRID": grid})


def swept() -> list[str]:
    """The methods that a sweep takes."""
    return [method.name for method in METHODS.values() if not method.solo]
