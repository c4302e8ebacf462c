"""One method of a run: from the settings to its jobs (see train/methods.py), from these to the
files in runs/<id>/probes/METHOD/."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from base.console import NOTE
from base.errors import PreemptedError
from train.algorithm.evaluate import predict
from train.algorithm.peers import LocalPeers, Peers
from train.algorithm.probe import Params
from train.classic import GRAPH, Scores, classify, propagate, zero_shot
from train.config import TrainConfig, TrainingSettings
from train.data.feed import Experiment, Task, make_input
from train.data.folds import trainings
from train.data.graph import EXACT, POWER, Graph, groups_of, shares_beside
from train.data.jury import Jury
from train.data.names import Names
from train.data.reader import Cache
from train.data.splits import Split
from train.data.texts import TEXT
from train.data.towers import towers_of
from train.loop import fit
from train.methods import METHODS, Method
from train.phases import Job
from train.run.checkpoint import Standing
from train.run.probe_files import is_trained, write_probe, write_tensors
from train.run.session import Session

log = logging.getLogger(f"coview.{__name__}")
TOLD_BYTES = 2**31  # of what the nodes of a method's graphs know, in the run's folder
POOR = 0.98  # share of the nearest neighbours below which a graph is told to be poor


def train_method(name: str, config: TrainConfig, s: Session) -> None:
    """Leave the method's files in probes/METHOD/, unless they are there. Raises CoviewError."""
    method = METHODS[name]
    if is_trained(s.folder, name, method.files(s.cache.names)):
        return  # before any graph is made for nothing
    if method.classic:
        _classify(name, s, config.select)
        return
    config = config.settled(len(s.splits[0].labelled))
    tries = experiments(config)
    for job in make_jobs(name, s.cache, s.splits, tries, s.peers, s.device, config):
        # a process that has some of the views goes on until all are there
        names = job.probes if isinstance(job.peers, LocalPeers) else s.cache.names
        if not is_trained(s.folder, name, method.files(names)):
            done = fit(job, config, s.listener, s.folder, s.stop)
            _write_probes(s.folder, method, job, done)
            if job.task.graphs and s.peers.rank == 0:
                _write_pool(s.folder, job, done)


def _write_probes(folder: Path, method: Method, job: Job, done: Standing) -> None:
    """Of this process's views; the replicas of a view have the same."""
    if job.peers.replica:
        return
    # the joint of a job of pairs is that of a student and its teacher, which nobody is asked for
    fused = done.best if method.jobs == "pairs" else done.fused
    jury = job.task.jury
    each = zip(job.probes, done.best, fused, job.task.inputs, strict=False)
    for probe, best, both, source in each:
        said = {}
        if job.task.splits[0].folds:  # else they can be asked again
            said["said"] = jury.opinions(predict(best, source, jury.rows))
            said["joint_said"] = jury.opinions(predict(both, source, jury.rows))
        write_probe(folder, job.method, probe, kept(best, jury), kept(both, jury), source, said)


def kept(params: Params, jury: Jury) -> Params:
    """Of the trainings that are kept, one a seed."""
    return {name: value[torch.from_numpy(jury.own_S)] for name, value in params.items()}


def _write_pool(folder: Path, job: Job, done: Standing) -> None:
    """pool: what class names and graphs say of validation and test rows, and all that they were
    weighted by; and of the graph of all views how much of the labels reaches the nodes
    (reach.EXPERIMENT) and the rows that judge (reached), and how near the nodes are to one another
    (apart.EXPERIMENT)."""
    task, jury = job.task, job.task.jury
    graphs, own_S = task.graphs, jury.own_S.tolist()
    tensors = {"weight": done.fused_pool, **told(graphs, own_S), "power": torch.tensor(POWER)}
    if task.told:
        tensors |= task.told.tensors(own_S)
    test = task.splits[0].test
    tensors["val"] = torch.stack([jury.opinions(one(jury.rows)) for one in task.fixed]).half()
    tensors["test"] = torch.stack([one(test)[own_S] for one in task.fixed]).half()
    if len(graphs) > 1:
        tensors["shares"] = torch.tensor([graphs[-1].share_E[e] for e in own_S])
    reach = torch.from_numpy(graphs[-1].reach(jury.rows)).to(jury.y_Sn.device)
    tensors["reached"] = jury.opinions(reach.unsqueeze(-1)).squeeze(-1)
    for number, e in enumerate(own_S):
        tensors[f"reach.{number}"] = torch.from_numpy(graphs[-1].solve(e).reach_n)
        tensors[f"apart.{number}"] = torch.from_numpy(graphs[-1].apart(e))
    for key in graphs[0].chosen:
        tensors[f"chosen.{key}"] = torch.stack([graph.chosen[key][own_S] for graph in graphs])
    write_tensors(folder, job.method, "pool", tensors)


def _classify(method: str, s: Session, by: str) -> None:
    """By scikit-learn, which needs no job, one experiment after the other. by: of MEASURES."""
    found: list[Scores] = []
    for number, split in enumerate(s.splits, 1):
        if s.stop.is_set():
            raise PreemptedError(
                f"stopped before experiment {number} of {method}; the same command begins {method} "
                "again, and keeps what came before it"
            )
        found.append(_scores(method, s, split, by))
        log.log(NOTE, f"{method}: {number} of {len(s.splits)} experiments")
    tensors = _tensors(found)
    if method == TEXT:
        tensors["views"] = torch.tensor([s.cache.names.index(name) for name in s.cache.texts])
    write_tensors(s.folder, method, "scores", tensors)


def _tensors(found: Sequence[Scores]) -> dict[str, torch.Tensor]:
    """Of one method's experiments: (V + 1, E, n, C) scores, and what was chosen."""
    tensors = {}
    for part in ("val", "test"):
        of_each = [torch.from_numpy(np.stack(getattr(scores, part))) for scores in found]
        tensors[part] = torch.stack(of_each, 1)
    for key, value in found[0].chosen[0].items():
        dtype = torch.float64 if isinstance(value, float) else torch.int64
        of_each = [[chosen[key] for chosen in scores.chosen] for scores in found]
        tensors[f"chosen.{key}"] = torch.tensor(of_each, dtype=dtype).T
    return tensors


def _scores(method: str, s: Session, split: Split, by: str) -> Scores:
    items = s.cache.items
    if method == GRAPH:
        return propagate(graphs_of(s.cache, tuple(trainings(s.splits)), s.device, by), split)
    if method == TEXT:
        text_V = [s.cache.texts.get(view) for view in s.cache.names]
        return zero_shot(s.cache.emb, text_V, items.classes, split)
    return classify(method, s.cache.emb, items.label, len(items.classes), split, by)


def dtype_of(precision: str) -> torch.dtype:
    """Of parameters and inputs."""
    return torch.float64 if precision == "float64" else torch.float32


def experiments(config: TrainConfig) -> list[Experiment]:
    """One for each seed."""
    temperature = 0.0 if config.pseudo == "argmax" else config.temperature
    step = config.lr, config.weight_decay, temperature
    return [Experiment(seed, *step) for seed in config.seed_list()]


@functools.lru_cache(1)
def graphs_of(
    cache: Cache, splits: tuple[Split, ...], device: torch.device, by: str = "top1"
) -> list[Graph]:
    """On each view, and on all side by side where there are several; the methods of a run that have
    graphs have the same. by: what is chosen by, one of MEASURES."""
    items, found = cache.items, []
    for group in groups_of(len(cache.names)):
        emb_V, name = [cache.emb[view] for view in group], _graph_name(cache, group)
        if len(items) > EXACT:
            log.log(NOTE, f"graph of {name}:")
        shares = shares_beside(found) if len(group) > 1 else ()
        graph = Graph(emb_V, items.label, splits, len(items.classes), device, by, shares)
        found.append(graph)
        if graph.recall < POOR:
            log.warning(
                f"the graph of {name} knows {100 * graph.recall:.0f} % of the nearest neighbours "
                f"of its {len(graph.nodes):,} images: near and far ones hardly differ, as in "
                "noise. What it says is worth less; make inspect shows what the views are worth"
            )
    return found


@functools.lru_cache(1)
def names_of(cache: Cache, splits: tuple[Split, ...], device: torch.device) -> Names:
    """What the class names say, which some view has; the same for all methods of a run."""
    towers = towers_of([cache.texts.get(view) for view in cache.names])
    return Names(cache.emb, towers, cache.items.classes, cache.items.label, splits, device)


def _graph_name(cache: Cache, group: Sequence[int]) -> str:
    return " and ".join(cache.names[view] for view in group)


def told(graphs: Sequence[Graph], own_S: Sequence[int]) -> dict[str, torch.Tensor]:
    """told.GRAPH.EXPERIMENT: what the nodes know, so that who predicts need not solve the graphs
    again; nothing where that is too much to keep."""
    found = {}
    for g, graph in enumerate(graphs):
        for number, e in enumerate(own_S):
            found[f"told.{g}.{number}"] = graph.solve(e).told_nC
    size = sum(told_nC.nbytes for told_nC in found.values())
    return found if size <= TOLD_BYTES else {}


@dataclass(frozen=True)
class Ground:
    """What the jobs of a method train on, whatever their inputs are."""

    cache: Cache
    splits: Sequence[Split]
    tries: Sequence[Experiment]
    device: torch.device
    dtype: torch.dtype

    def task(self, names: list[str], inputs: Sequence[Sequence[int]]) -> Task:
        """inputs: of each probe the views that it reads."""
        train_rows = np.union1d(self.splits[0].labelled, self.splits[0].unlabelled)
        made = []
        for views in inputs:
            emb_V = [self.cache.emb[view] for view in views]
            made.append(make_input(emb_V, train_rows, self.device, self.dtype))
        items = self.cache.items
        tries = []
        for split, one in zip(self.splits, self.tries, strict=True):
            tries += [one] * (1 + len(split.folds))
        splits = trainings(self.splits)
        return Task(names, made, items.label, len(items.classes), splits, tries)


def make_jobs(
    method: str,
    cache: Cache,
    splits: Sequence[Split],
    tries: Sequence[Experiment],
    peers: Peers,
    device: torch.device,
    settings: TrainingSettings,
) -> list[Job]:
    """The jobs of one method for this process. Those whose views do not speak across processes are
    all rank 0's; the others have none."""
    kind = METHODS[method].jobs
    ground = Ground(cache, splits, tries, device, dtype_of(settings.precision))
    if kind != "views" and peers.rank:
        return []
    if kind == "together":
        task = ground.task([method], [range(len(cache.names))])
        return [Job(method, method, task, LocalPeers(1), [method])]
    if kind == "pairs":
        return [_pair(method, view, name, ground) for view, name in enumerate(cache.names)]
    task = ground.task(cache.names, [[view] for view in peers.mine])
    if METHODS[method].graphs:
        # every process has all of them: they are small, and nobody need send them
        every = tuple(task.splits)
        graphs = graphs_of(cache, every, device, settings.select)
        told = names_of(cache, every, device) if cache.texts else None
        task = replace(task, graphs=graphs, told=told)
    return [Job(method, method, task, peers, [cache.names[view] for view in peers.mine])]


def _pair(method: str, view: int, name: str, ground: Ground) -> Job:
    task = ground.task([name, f"{name} (teacher)"], [[view], [view]])
    return Job(f"{method}-{name}", method, task, LocalPeers(2), [name])
