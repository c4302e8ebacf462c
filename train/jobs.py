"""One method of a run: from the settings to its jobs (see train/methods.py), from these to the files in runs/<id>/probes/METHOD/."""

import functools
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from base.errors import PreemptedError
from train.algorithm.peers import LocalPeers, Peers
from train.classic import CLASSIC, classify
from train.config import TrainConfig
from train.data.feed import Experiment, Task, make_input
from train.data.graph import Graph
from train.data.reader import Cache
from train.data.splits import Split
from train.loop import fit
from train.methods import PLANS, Job
from train.run.log import Listener
from train.run.probe_files import is_trained, write_probe, write_tensors

TOLD_BYTES = 2**28  # of what the nodes of a method's graphs know, in the run's folder


def train_method(
    method: str,
    config: TrainConfig,
    cache: Cache,
    splits: Sequence[Split],
    peers: Peers,
    listener: Listener,
    folder: Path,
    device: torch.device,
    stop: threading.Event,
) -> None:
    """Leave the method's files in probes/METHOD/, unless they are there. Raises CoviewError."""
    if method in CLASSIC:
        if not is_trained(folder, method, ["scores"]):
            _classic(method, cache, splits, folder, stop)
        return
    if method != "mpl" and is_trained(
        folder,
        method,
        [method] if method == "concat" else [*cache.names, *["pool"] * PLANS[method].graphs],
    ):
        return  # before any graph is made for nothing
    dtype, precision = autocast(config, device)
    for job in make_jobs(method, cache, splits, experiments(config), peers, device, dtype):
        files = [
            *(job.probes if isinstance(job.peers, LocalPeers) else cache.names),
            *["pool"] * PLANS[method].graphs,
        ]
        if not is_trained(folder, method, files):
            done = fit(
                job,
                config,
                listener,
                folder / "checkpoints",
                folder / "metrics.jsonl",
                precision,
                stop,
            )
            fused = (
                done.best if method == "mpl" else done.fused
            )  # an mpl job's joint is that of a student and its teacher
            written = (
                job.probes if job.peers.replica == 0 else []
            )  # replicas of a view have the same
            for name, best, both, source in zip(
                written, done.best, fused, job.task.inputs, strict=False
            ):
                write_probe(folder, method, name, best, both, source)
            if job.task.graphs and peers.rank == 0:
                scores = {
                    part: torch.stack(
                        [graph(getattr(splits[0], part)) for graph in job.task.graphs]
                    ).half()
                    for part in ("val", "test")
                }
                chosen = {
                    f"chosen.{key}": torch.stack([graph.chosen[key] for graph in job.task.graphs])
                    for key in job.task.graphs[0].chosen
                }
                write_tensors(
                    folder,
                    method,
                    "pool",
                    {**scores, **chosen, **told(job.task.graphs), "weight": done.fused_pool},
                )


def _classic(
    method: str, cache: Cache, splits: Sequence[Split], folder: Path, stop: threading.Event
) -> None:
    found = []
    for number, split in enumerate(splits, 1):
        if stop.is_set():
            raise PreemptedError(
                f"stopped before experiment {number} of {method}; the same command begins {method} again, and keeps what came before it"
            )
        found.append(
            classify(method, cache.emb, cache.items.label, len(cache.items.classes), split)
        )
        print(f"{method}: {number} of {len(splits)} experiments", file=sys.stderr, flush=True)
    tensors = {
        part: torch.stack(
            [torch.stack([torch.from_numpy(z) for z in getattr(scores, part)]) for scores in found],
            1,
        )
        for part in ("val", "test")
    }
    chosen = {
        f"chosen.{key}": torch.tensor(
            [
                [scores.chosen[view][key] for scores in found]
                for view in range(len(cache.names) + 1)
            ],
            dtype=torch.float64 if isinstance(found[0].chosen[0][key], float) else torch.int64,
        )
        for key in found[0].chosen[0]
    }
    write_tensors(folder, method, "scores", {**tensors, **chosen})


def autocast(
    config: TrainConfig, device: torch.device
) -> tuple[torch.dtype, AbstractContextManager]:
    """The dtype of parameters and inputs, and the context in which products are computed."""
    return (
        torch.float64 if config.precision == "float64" else torch.float32,
        torch.autocast("cuda", torch.bfloat16)
        if device.type == "cuda" and config.precision == "auto"
        else nullcontext(),
    )


def experiments(config: TrainConfig) -> list[Experiment]:
    """One for each seed."""
    temperature = 0.0 if config.pseudo == "argmax" else config.temperature
    return [
        Experiment(seed, config.lr, config.weight_decay, temperature) for seed in config.seed_list()
    ]


@functools.lru_cache(1)
def graphs_of(cache: Cache, splits: tuple[Split, ...], device: torch.device) -> list[Graph]:
    """On each view, and on all side by side where there are several; the two methods of a run that have graphs have the same."""
    return [
        Graph(
            [cache.emb[view] for view in group],
            cache.items.label,
            splits,
            len(cache.items.classes),
            device,
        )
        for group in groups_of(len(cache.names))
    ]


def told(graphs: Sequence[Graph]) -> dict[str, torch.Tensor]:
    """told.GRAPH.EXPERIMENT: what the nodes know, so that who predicts need not solve the graphs again; nothing where that is too much to keep."""
    found = {
        f"told.{g}.{e}": told_nC
        for g, graph in enumerate(graphs)
        for e, (_, told_nC, *_) in enumerate(graph.solved_E)
    }
    return found if sum(told_nC.nbytes for told_nC in found.values()) <= TOLD_BYTES else {}


def groups_of(views: int) -> list[list[int]]:
    """The views that each graph is made of."""
    return [[view] for view in range(views)] + [list(range(views))] * (views > 1)


def make_jobs(
    method: str,
    cache: Cache,
    splits: Sequence[Split],
    tries: Sequence[Experiment],
    peers: Peers,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Job]:
    """The jobs of one method for this process. Those whose views do not speak across processes are all rank 0's; the others have none."""
    train_rows = np.union1d(splits[0].labelled, splits[0].unlabelled)

    def task(names: list[str], inputs: Sequence[Sequence[int]]) -> Task:
        made = [
            make_input([cache.emb[view] for view in views], train_rows, device, dtype)
            for views in inputs
        ]
        return Task(
            names, made, cache.items.label, len(cache.items.classes), list(splits), list(tries)
        )

    if method == "concat":
        return (
            [
                Job(
                    method,
                    method,
                    task(["concat"], [range(len(cache.names))]),
                    LocalPeers(1),
                    ["concat"],
                )
            ]
            if peers.rank == 0
            else []
        )
    if method == "mpl":
        return (
            [
                Job(
                    f"mpl-{name}",
                    method,
                    task([name, f"{name} (teacher)"], [[view]] * 2),
                    LocalPeers(2),
                    [name],
                )
                for view, name in enumerate(cache.names)
            ]
            if peers.rank == 0
            else []
        )
    made = task(cache.names, [[view] for view in peers.mine])
    if PLANS[
        method
    ].graphs:  # every process has all of them: they are small, and nobody need send them
        made = replace(made, graphs=graphs_of(cache, tuple(splits), device))
    return [Job(method, method, made, peers, [cache.names[view] for view in peers.mine])]
