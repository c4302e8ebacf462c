"""The grid of `make sweep`: which settings vary, and how."""

import dataclasses
import itertools
import typing
from dataclasses import dataclass
from typing import Any

from base.errors import UsageError, did_you_mean
from base.phrase import quoted
from train.config import PLACES, TrainConfig

INSIDE = (
    "lr",
    "weight_decay",
    "temperature",
    "pseudo",
)  # may differ between the experiments of one training
OUTSIDE = (
    *PLACES,
    "views",
    "data",
    "labels",
    "seeds",
    "method",
    "device",
    "gpus",
    "grid",
    "at_once",
    "threads",
)  # no axis of a grid
METHODS = (
    "supervised",
    "self-training",
    "co-training",
    "fixmatch",
    "mct-h0",
    "mct",
    "supervised-graph",
    "mct-graph",
)


@dataclass(frozen=True)
class SweepConfig(TrainConfig):
    """Train a grid of settings, all seeds of all combinations at once where they can be, and rank them on validation."""

    grid: str = ""
    """name=value,value … separated by blanks, such as 'lr=1e-4,3e-4 temperature=0.25,0.5,1'; the names are those of the settings below"""
    at_once: int = 64
    """the most experiments (combinations times seeds) in one batched training"""

    def method_list(self) -> list[str]:
        if self.method == "all":
            return [name for name in super().method_list() if name in METHODS]
        return (
            super().method_list()
            if self.method
            else ["mct-graph" if len(self.view_list()) > 1 else "supervised"]
        )

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values. Raises UsageError."""
        example = "GRID='lr=1e-4,3e-4 temperature=0.25,0.5,1'"
        kinds = {
            field.name: type(field.default)
            for field in dataclasses.fields(TrainConfig)
            if field.name not in OUTSIDE
        }
        axes: dict[str, list[Any]] = {}
        for part in self.grid.split():
            name, _, values = part.partition("=")
            name = name.replace("-", "_")
            if name not in kinds or name in axes:
                what = (
                    f"{name!r} stands there twice"
                    if name in axes
                    else f"no setting of a grid is called {name!r}{did_you_mean(name, kinds)}"
                )
                raise UsageError(f"GRID: {what}. Type: {example}")
            try:
                axes[name] = [
                    {"true": True, "false": False}[value.lower()]
                    if kinds[name] is bool
                    else kinds[name](value)
                    for value in values.split(",")
                ]
            except (ValueError, KeyError):
                raise UsageError(
                    f"GRID: {part!r}: {name} takes values such as {getattr(self, name)!r}. Type: {example}"
                ) from None
        if not axes:
            raise UsageError(
                f"GRID is missing. Type: make sweep VIEWS={quoted(self.views or 'clip,dinov2')} DATA={quoted(self.data or 'photos/')} {example}"
            )
        return [
            dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
        ]

    def check(self) -> None:
        """Raise UsageError for what can be seen without reading any data."""
        super().check()
        if self.dry_run:
            raise UsageError(
                f"a sweep has no dry run. This one has {len(self.combinations()):,} combinations; for one of them type: "
                f"make train VIEWS={quoted(self.views)} DATA={quoted(self.data)} ARGS=--dry-run"
            )
        if self.at_once < 1:
            raise UsageError(f"--at-once must be at least 1, found {self.at_once}")
        for method in self.method_list():
            if method not in METHODS:
                raise UsageError(f"METHOD={method} has no grid; a sweep takes {', '.join(METHODS)}")
        choices = {
            name: typing.get_args(kind)
            for name, kind in typing.get_type_hints(TrainConfig).items()
            if typing.get_origin(kind) is typing.Literal
        }
        for combination in self.combinations():
            for name in combination.keys() & choices.keys():
                if combination[name] not in choices[name]:
                    near = did_you_mean(combination[name], choices[name])
                    raise UsageError(
                        f"GRID: {name} takes {', '.join(choices[name])}, found {combination[name]!r}{near}"
                    )
            TrainConfig.check(dataclasses.replace(self, **combination))
