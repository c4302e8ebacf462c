"""make sweep VIEWS=a,b DATA=photos/ LABELS=4 SEEDS=0..4 GRID='lr=1e-4,3e-4 temperature=0.25,0.5,1'     (python -m train.sweep …)

Trains every combination of the grid for every seed and ranks them by the joint's validation accuracy. Learning rate, weight decay, temperature
and the rule of the labels vary inside one batched training; other settings are trained one after the other. The test split is never read: the
last line is the `make train` that reads it, once, with the best combination. The same command with the same RUN goes on where it was stopped.
"""

import dataclasses
import faulthandler
import itertools
import os
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from base.commands import quoted, run_cli
from base.errors import IntegrityError, UsageError, did_you_mean
from train.config import PLACES, TrainConfig, make_command

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


def main() -> None:
    import tyro

    faulthandler.enable()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    config = tyro.cli(SweepConfig, prog="python -m train.sweep", description=SweepConfig.__doc__)
    config.check()

    from train.rehearse import rehearse
    from train.run.session import start

    start(config, "train.sweep", sweep, rehearse, "sweep.json")


def batches_of(
    config: SweepConfig, methods: list[str]
) -> Iterator[tuple[str, str, TrainConfig, list[dict[str, Any]]]]:
    """(name, method, settings, combinations) of each batched training: what cannot differ inside one is alike in it."""
    seeds, number = len(config.seed_list()), 0
    for method in methods:
        groups: dict[tuple, list[dict[str, Any]]] = {}
        for combination in config.combinations():
            groups.setdefault(
                tuple((name, value) for name, value in combination.items() if name not in INSIDE),
                [],
            ).append(combination)
        for shared, members in groups.items():
            size = max(1, config.at_once // seeds)
            for first in range(0, len(members), size):
                yield (
                    f"{method}-{number:03d}",
                    method,
                    dataclasses.replace(config, **dict(shared)),
                    members[first : first + size],
                )
                number += 1


def sweep(config: SweepConfig) -> list[dict[str, Any]]:
    """Train what is not trained yet; return (on rank 0) one record a combination and method, best first. Raises CoviewError."""
    from base import durable
    from train.jobs import autocast, experiments, make_jobs
    from train.loop import fit
    from train.run.session import session

    seeds, found = config.seed_list(), []
    with session(config) as s:
        if s.peers.rank == 0:
            durable.make_folder(s.folder / "sweep")
        s.peers.any(False)
        for name, method, settings, members in batches_of(config, s.methods):
            path = s.folder / "sweep" / f"{name}.json"
            if not path.is_file():
                tries = [
                    one
                    for member in members
                    for one in experiments(dataclasses.replace(settings, **member))
                ]
                dtype, precision = autocast(settings, s.device)
                for job in make_jobs(
                    method, s.cache, s.splits * len(members), tries, s.peers, s.device, dtype
                ):
                    job = dataclasses.replace(job, name=name)
                    done = fit(
                        job,
                        settings,
                        s.listener,
                        s.folder / "checkpoints",
                        s.folder / "metrics.jsonl",
                        precision,
                        s.stop,
                    )
                    if s.peers.rank == 0:
                        durable.write(
                            path,
                            durable.sealed(
                                {
                                    "name": name,
                                    "records": [
                                        {
                                            "method": method,
                                            "settings": member,
                                            "val_top1": done.best_top1[
                                                -1, at : at + len(seeds)
                                            ].tolist(),
                                            "val_nll": done.best_nll[
                                                -1, at : at + len(seeds)
                                            ].tolist(),
                                            "step": done.best_step[
                                                -1, at : at + len(seeds)
                                            ].tolist(),
                                        }
                                        for at, member in zip(
                                            range(0, len(tries), len(seeds)), members, strict=True
                                        )
                                    ],
                                }
                            ),
                            "sweep",
                        )
            s.peers.any(False)  # the record is there, for everybody
            try:
                found += durable.read_sealed(path)["records"]
            except (OSError, ValueError, KeyError) as error:
                raise IntegrityError(
                    f"{path} is damaged ({error}); delete it and type the same command: this part is trained again"
                ) from error
        s.cache.refuse_changed()
        found.sort(key=lambda record: (-sum(record["val_top1"]), sum(record["val_nll"])))
        if s.peers.rank == 0:
            durable.write_json(
                s.folder / "sweep.json",
                {
                    "seeds": seeds,
                    "ranked": found,
                    "best": command_of(dataclasses.asdict(config), found[0]),
                },
                "sweep",
            )
            print(f"\n{ranking(config, found)}\n{s.folder / 'sweep.json'}", flush=True)
        s.peers.close()
    return found


def ranking(config: SweepConfig, found: list[dict[str, Any]], most: int = 30) -> str:
    """The table, best first, and the command that trains and tests the best."""
    import numpy as np

    lines = [
        f"{len(found)} combinations, {len(config.seed_list())} seeds each; the joint's validation top-1 in %, mean ± std over seeds; "
        "the test split is unread"
    ]
    for record in found[:most]:
        top1 = 100 * np.array(record["val_top1"])
        spread = f" ± {top1.std(ddof=1):.1f}" if len(top1) > 1 else ""
        words = " ".join(f"{name}={value}" for name, value in record["settings"].items())
        lines.append(
            f"{top1.mean():6.1f}{spread:7}  NLL {np.mean(record['val_nll']):.3f}  step {np.mean(record['step']):5.0f}  {record['method']}  {words}"
        )
    lines += [f"… and {len(found) - most} more"] if len(found) > most else []
    return "\n".join(
        [
            *lines,
            f"to train and test the best, type: {command_of(dataclasses.asdict(config), found[0])}",
        ]
    )


def command_of(settings: dict[str, Any], record: dict[str, Any]) -> str:
    """What trains and tests one record of a sweep."""
    left = ("run", "device", "gpus", "grid", "at_once", "json", "dry_run")
    return make_command(
        {
            name: value
            for name, value in {
                **settings,
                **record["settings"],
                "method": record["method"],
            }.items()
            if name not in left
        }
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
