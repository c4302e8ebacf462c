"""make sweep VIEWS=a,b DATA=photos/ LABELS=4 SEEDS=0..4 GRID='lr=1e-4,3e-4 temperature=0.25,0.5,1'

Trains every combination of the grid for every seed and ranks them by the joint's validation
score. Learning rate, weight decay, temperature and the rule of the labels vary inside one
batched training; other settings are trained one after the other. The test split is never read: the
last line is the `make train` that reads it, once, with the best combination. The same command with
the same RUN goes on where it was stopped. A sweep has no dry run.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from base import durable
from base.console import counted
from base.errors import DataQualityError, IntegrityError
from train.config import TrainConfig, command_of
from train.data.folds import trainings
from train.grid import INSIDE, SweepConfig
from train.jobs import experiments, make_jobs
from train.loop import fit
from train.methods import MEASURES
from train.run.checkpoint import Standing
from train.run.reading import Ground
from train.run.session import Session, session, together

log = logging.getLogger(f"coview.{__name__}")


# settings of a sweep that the training of its best does not repeat
@dataclasses.dataclass(frozen=True)
class Batched:
    """One batched training: its name, and the combinations that are alike in what cannot differ
    inside one, which `settings` have."""

    name: str
    method: str
    settings: TrainConfig
    members: list[dict[str, Any]]


def batches_of(config: SweepConfig, methods: list[str], each: int) -> Iterator[Batched]:
    """each: how many trainings a combination is."""
    number, size = 0, max(1, config.at_once // each)
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for combination in config.combinations():
        shared = tuple(pair for pair in combination.items() if pair[0] not in INSIDE)
        groups.setdefault(shared, []).append(combination)
    for method in methods:
        for shared, members in groups.items():
            settings = dataclasses.replace(config, **dict(shared))
            for first in range(0, len(members), size):
                few = members[first : first + size]
                yield Batched(f"{method}-{number:03d}", method, settings, few)
                number += 1


def sweep(config: SweepConfig, ground: Ground | None = None) -> list[dict[str, Any]]:
    """Train what is not trained yet; return (on rank 0) one record a combination and method, best
    first. ground: what was read already. Raises CoviewError."""
    found = []
    with session(config, ground) as s:
        folder = s.folder / "sweep"
        if not len(s.splits[0].val):
            raise DataQualityError(
                "a sweep ranks by labels that a training did not know, and there are none: give at "
                "least two labels a class (class names judge nothing), or leave VAL=none out"
            )
        with together(s.peers):
            if s.leads:
                durable.make_folder(folder)
            s.peers.any(False)
            for one in batches_of(config, s.methods, len(trainings(s.splits))):
                path = folder / f"{one.name}.json"
                if not path.is_file():
                    _train(one, s, path)
                s.peers.any(False)  # the record is there, for everybody
                found += _records(path)
        s.cache.refuse_changed()
        found.sort(key=functools.partial(_rank, by=config.select))
        if s.leads:
            record = {"seeds": config.seed_list(), "ranked": found}
            durable.write_json(s.folder / "sweep.json", record, "sweep")
            log.info(f"\n{s.folder / 'sweep.json'}\n{ranking(config, found)}")
    return found


def _train(one: Batched, s: Session, path: Path) -> None:
    """All members for all seeds, in one training; rank 0 writes down how good they were."""
    tries, settings = [], one.settings.settled(len(s.splits[0].labelled))
    for member in one.members:
        tries += experiments(dataclasses.replace(settings, **member))
    splits = s.splits * len(one.members)
    (job,) = make_jobs(one.method, s.cache, splits, tries, s.peers, s.device, settings)
    job = dataclasses.replace(job, name=one.name)
    done = fit(job, settings, s.listener, s.folder, s.stop)
    if s.leads:
        records = _scores(one, done, len(s.splits))
        record = durable.sealed({"name": one.name, "records": records})
        durable.write(path, record, "sweep")


def _scores(one: Batched, done: Standing, seeds: int) -> list[dict[str, Any]]:
    """The joint's scores of each member, one number a seed."""
    found = []
    for number, member in enumerate(one.members):
        mine = slice(number * seeds, (number + 1) * seeds)
        found.append(
            {
                "method": one.method,
                "settings": member,
                f"val_{one.settings.select}": done.best_score[-1, mine].tolist(),
                "val_nll": done.best_nll[-1, mine].tolist(),
                "step": done.best_step[-1, mine].tolist(),
            }
        )
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        return durable.read_sealed(path)["records"]
    except (OSError, ValueError, KeyError) as error:
        raise IntegrityError(
            f"{path} is damaged ({error}); delete it and type the same command: this part is "
            "trained again"
        ) from error


def _rank(record: dict[str, Any], by: str) -> tuple[float, float]:
    return -sum(record[f"val_{by}"]), sum(record["val_nll"])


def ranking(config: SweepConfig, found: list[dict[str, Any]], most: int = 30) -> str:
    """The table, best first, and the command that trains and tests the best."""
    seeds = counted(len(config.seed_list()), "seed")
    lines = [
        f"{counted(len(found), 'combination')}, {seeds} each; the joint's validation "
        f"{MEASURES[config.select]} in %, mean ± std over seeds; the test split is unread",
    ]
    for record in found[:most]:
        score = 100 * np.array(record[f"val_{config.select}"])
        spread = f" ± {score.std(ddof=1):.1f}" if len(score) > 1 else ""
        words = " ".join(f"{name}={value}" for name, value in record["settings"].items())
        nll, step = np.mean(record["val_nll"]), np.mean(record["step"])
        scores = f"{score.mean():6.1f}{spread:7}  NLL {nll:.3f}  step {step:5.0f}"
        lines.append(f"{scores}  {record['method']}  {words}")
    if len(found) > most:
        lines.append(f"… and {len(found) - most} more")
    best = command_of(dataclasses.asdict(config), found[0])
    return "\n".join([*lines, f"to train and test the best, type: {best}"])
