"""make sweep VIEWS=a,b DATA=photos/ LABELS=4 SEEDS=0..4 GRID='lr=1e-4,3e-4 temperature=0.25,0.5,1'     (python -m train.sweep …)

Trains every combination of the grid for every seed and ranks them by the joint's validation accuracy. Learning rate, weight decay, temperature
and the rule of the labels vary inside one batched training; other settings are trained one after the other. The test split is never read: the
last line is the `make train` that reads it, once, with the best combination. The same command with the same RUN goes on where it was stopped.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from base.errors import IntegrityError
from train.config import TrainConfig, make_command
from train.grid import INSIDE, SweepConfig
from train.run.session import begin, start


def command(config: SweepConfig, found: dict[str, Any]) -> None:
    """make sweep."""
    config.check()
    begin()
    start(config, sweep, found, "sweep.json")


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
