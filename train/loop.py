"""The loop: rows(seed, step) -> batches -> a pure step -> now and then a look at the validation split, a checkpoint.

The loop knows neither ranks nor trackers: `peers` and `listener` do. All experiments train at once along the first axis (E).
"""

import functools
import math
import threading
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from base.errors import PreemptedError
from train.algorithm import probe
from train.algorithm.cotrain import Told, supervised_step
from train.algorithm.evaluate import choices, fit_pool
from train.algorithm.optimise import Adam, average, fresh
from train.algorithm.rivals import Rival, pseudo_step
from train.config import TrainConfig
from train.data.feed import INIT, PURPOSES, Feeder, Task, shape_of
from train.methods import PLANS, ROUNDS, Job, Plan
from train.run.checkpoint import Progress, load_checkpoint, save_checkpoint
from train.run.log import Listener
from train.selection import not_finite, select, shown


def fit(
    job: Job,
    config: TrainConfig,
    listener: Listener,
    folder: Path,
    metrics: Path,
    precision: AbstractContextManager,
    stop: threading.Event,
) -> Progress:
    """Train one job to its end, from the last checkpoint in `folder` if it is this job's. Returns the best copies.

    Selection is on validation alone. A joint prediction always comes from the step with the best joint score; a single view's from that
    step too where the views teach each other, and from the view's own best where they know nothing of each other.
    Raises PreemptedError after a stop signal (everything saved), DataQualityError when a loss is not finite.
    """
    with closing(Feeder(config, job.task, job.peers)) as feed:
        return _train(job, config, listener, folder, metrics, precision, stop, feed)


def _train(
    job: Job,
    config: TrainConfig,
    listener: Listener,
    folder: Path,
    metrics: Path,
    precision: AbstractContextManager,
    stop: threading.Event,
    feed: Feeder,
) -> Progress:
    plan, task, peers, device = (
        PLANS[job.method],
        job.task,
        job.peers,
        job.task.inputs[0].mean_D.device,
    )
    period = config.warmup + config.cotrain
    progress = load_checkpoint(folder, peers.rank, peers.ranks, device)
    if progress is None or progress.method != job.name:
        progress = _begin(job, config, metrics.stat().st_size if metrics.exists() else 0)
    y_val = torch.from_numpy(task.label[task.splits[0].val]).long().to(device)
    settings = _settings(config, plan, task)
    lr, temperature, watch, marks = (
        settings.adam.lr,
        settings.temperature,
        Watch(job),
        Marks(job, progress.marks),
    )
    graphs_val = [graph(task.splits[0].val) for graph in task.graphs]
    while progress.step < plan.phases * period:
        phase, at = divmod(progress.step, period)
        alone = plan.step is None or (
            not plan.graphs and phase == 0 and (plan.phases > 1 or at < config.warmup)
        )
        if phase and not at:
            progress = replace(
                _begin(job, config, progress.metrics_bytes),
                step=progress.step,
                given=_first_choices(progress, job),
            )
            progress.best_step += progress.step  # the second phase's patience begins here
        elif (
            plan.step is pseudo_step
            and plan.phases == 1
            and not alone
            and (turn := turn_at(at, config)) > turn_at(at - 1, config)
        ):
            progress.given = _most_confident(progress, job, turn)
        now = replace(
            settings,
            adam=replace(settings.adam, lr=lr * schedule(config.schedule, at, period)),
            temperature=temperature * progress.temperature if config.calibrate else temperature,
            trust=progress.teach[:, : peers.count] if plan.graphs else None,
        )
        with precision:
            if alone:
                progress.states, told = supervised_step(progress.states, feed(at)[0], peers, now)
            else:
                views, draws_VEU = feed(
                    at, True, plan.strong, progress.given, progress.teach if plan.graphs else None
                )
                progress.states, told = plan.step(progress.states, views, draws_VEU, peers, now)
        progress.states = [average(state, config.ema) for state in progress.states]
        progress.step += 1
        watch(told, progress.step)
        marks(told, feed.hidden_EU)
        listener.step(progress.step)
        look = progress.step % config.eval_every == 0 or at + 1 == period
        if look:
            record = select(progress, job, config, y_val, graphs_val)
            record |= {
                "method": job.name,
                "step": progress.step,
                "steps": plan.phases * period,
                "phase": "supervised" if alone else job.method,
            }
            record |= {
                name: dict(zip(task.names, torch.stack(values).mean(1).tolist(), strict=True))
                for name, values in told.items()
                if name == "feedback"
            }
            record |= marks.take()
            listener.waited(feed.waited)
            listener.tell(record)
            if config.patience and (progress.step - progress.best_step > config.patience).all():
                progress.step = (
                    phase + 1
                ) * period  # no experiment and no view gets better any more
        stopping = (look or peers.ranks == 1) and peers.any(
            stop.is_set()
        )  # several processes agree at the looks only
        if stopping or (
            look
            and (
                progress.step % config.checkpoint_every < config.eval_every
                or progress.step == plan.phases * period
            )
        ):
            progress.metrics_bytes, progress.marks = (
                metrics.stat().st_size if metrics.exists() else 0,
                marks.sums,
            )
            save_checkpoint(folder, progress, peers)
        if stopping:
            raise PreemptedError(
                f"stopped at step {progress.step} of {job.name}, everything is saved; the same command goes on from here"
            )
    return progress


def _settings(config: TrainConfig, plan: Plan, task: Task) -> Rival:
    def each(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor(
            [getattr(experiment, name) for experiment in task.experiments],
            dtype=dtype,
            device=task.inputs[0].mean_D.device,
        )

    dtype = task.inputs[0].mean_D.dtype
    decay = (
        each("weight_decay", dtype)
        if any(experiment.weight_decay for experiment in task.experiments)
        else 0.0
    )
    return Rival(
        Adam(each("lr", dtype), config.clip, decay),
        config.feedback if plan.feedback else "none",
        each("temperature", torch.float64),
        supervised=config.supervised_weight,
        chunk=config.chunk,
        rule=config.fixmatch,
        threshold=config.threshold,
    )


def schedule(kind: str, at: int, period: int) -> float:
    """The factor of the learning rate at step `at` of `period`: constant, or falling to zero as a cosine or a line."""
    return {
        "constant": 1.0,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * at / period),
        "linear": 1 - at / period,
    }[kind]


def turn_at(at: int, config: TrainConfig) -> int:
    """Which of its ROUNDS co-training is in at step `at`, from 1 on; 0 before it begins."""
    return max(0, (at - config.warmup) * ROUNDS // config.cotrain + 1)


def _begin(job: Job, config: TrainConfig, metrics_bytes: int) -> Progress:
    states, task, peers = [], job.task, job.peers
    for view, source in zip(peers.mine, task.inputs, strict=True):
        dtype, device = source.mean_D.dtype, source.mean_D.device
        params = probe.init(
            task.seeds,
            view * PURPOSES + INIT,
            source.width,
            task.classes,
            shape_of(config),
            dtype,
        )
        states.append(fresh({name: value.to(device) for name, value in params.items()}))
    shape = (peers.count + 1, len(task.seeds))
    best, fused = ([dict(state.params) for state in states] for _ in range(2))
    pool = torch.zeros(
        peers.count + len(task.graphs), len(task.seeds), dtype=torch.float64, device=device
    )  # nobody trusts a fresh probe
    if task.graphs:
        y_val = torch.from_numpy(task.label[task.splits[0].val]).long().to(device)
        known = torch.stack([graph(task.splits[0].val) for graph in task.graphs])
        pool[peers.count :] = fit_pool(
            known, y_val, torch.full_like(pool[peers.count :], 1 / len(task.graphs))
        )
    return Progress(
        job.name,
        0,
        states,
        best,
        fused,
        torch.full(shape, -1.0, dtype=torch.float64),
        torch.full(shape, torch.inf, dtype=torch.float64),
        torch.zeros(shape, dtype=torch.int64),
        metrics_bytes,
        torch.ones(peers.count, len(task.seeds), dtype=torch.float64, device=device),
        pool,
        pool,
        pool.expand(peers.count, -1, -1),
    )


def _first_choices(progress: Progress, job: Job) -> Tensor:
    """(V, E, N) int32: the first choice of every view's best probe for every unlabelled row, -1 elsewhere."""
    rows = _pool(job.task)
    y_V = job.peers.exchange(
        [
            choices(best, source, rows)[0].int()
            for best, source in zip(progress.best, job.task.inputs, strict=True)
        ]
    )
    return torch.stack([_table(job.task, rows, y) for y in y_V])


def _most_confident(progress: Progress, job: Job, turn: int) -> Tensor:
    """(V, 1, E, N) int32: for each view the labels of the others for the turn/ROUNDS part of the rows of which they are surest, -1 elsewhere."""
    rows, splits = _pool(job.task), job.task.splits
    mine_En = torch.from_numpy(
        np.stack([np.isin(rows, split.unlabelled) for split in splits])
    )  # not what another experiment hides alone
    most_E1 = torch.tensor([[max(1, len(split.unlabelled) * turn // ROUNDS)] for split in splits])
    found = [
        choices(shown(state), source, rows)
        for state, source in zip(progress.states, job.task.inputs, strict=True)
    ]
    y_V = job.peers.exchange([y.int() for y, _ in found])
    sure_V = job.peers.exchange([confidence for _, confidence in found])
    tables = []
    for v in range(job.peers.count):
        sure, who = torch.stack([sure_V[w] for w in range(job.peers.count) if w != v]).max(0)
        y = torch.stack([y_V[w] for w in range(job.peers.count) if w != v]).gather(
            0, who.unsqueeze(0)
        )[0]
        rank = (
            torch.where(mine_En.to(sure.device), sure, -1)
            .argsort(dim=1, descending=True, stable=True)
            .argsort(1)
        )
        tables.append(_table(job.task, rows, torch.where(rank < most_E1.to(rank.device), y, -1)))
    return torch.stack(tables).unsqueeze(1)


def _pool(task: Task) -> np.ndarray:
    return functools.reduce(np.union1d, [split.unlabelled for split in task.splits])


def _table(task: Task, rows: np.ndarray, y_En: Tensor) -> Tensor:
    table = torch.full((len(y_En), len(task.label)), -1, dtype=torch.int32, device=y_En.device)
    table[:, torch.from_numpy(rows).to(y_En.device)] = y_En
    return table


class Marks:
    """Of the labels that were handed out since the last record, per view: what share of those whose truth is known, though hidden from training, was
    right, and what share of the rows got one (weighted, where a method weighs them). For the eye alone: nothing is chosen by it."""

    def __init__(self, job: Job, sums: Tensor | None = None) -> None:
        self.job, self.sums = job, sums

    def __call__(self, told: Told, hidden_EU: Tensor) -> None:
        if "given" not in told:
            return
        now = []
        for y, weight in zip(
            told["given"],
            told.get("weight", [(y >= 0).double() for y in told["given"]]),
            strict=True,
        ):
            known = weight * (hidden_EU >= 0)
            parts = [
                part.sum(-1).view(-1, len(hidden_EU)).sum(0)
                for part in (known * (y == hidden_EU), known, weight, torch.ones_like(weight))
            ]
            now.append(torch.stack(parts))
        now = torch.stack(now)
        self.sums = now if self.sums is None else self.sums + now

    def take(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """{pseudo: {view: precision, coverage}}, means over the experiments; precision is None where no truth is known. Begins anew."""
        if self.sums is None:
            return {}
        peers, names = self.job.peers, self.job.task.names
        sums_V, self.sums = (
            peers.exchange([peers.average({"sums": sums})["sums"] for sums in self.sums]),
            None,
        )
        found = {}
        for name, (right, known, given, count) in zip(names, sums_V, strict=True):
            some = known > 0
            found[name] = {
                "precision": float((right / known)[some].mean()) if some.any() else None,
                "coverage": float((given / count).mean()),
            }
        return {"pseudo": found}


class Watch:
    """Stops a run whose loss is not finite, naming the view. On a GPU a step's losses are looked at after the next step was begun, so that
    nobody waits for the GPU."""

    def __init__(self, job: Job) -> None:
        self.job, self.pending = job, None

    def __call__(self, told: Told, step: int) -> None:
        losses = torch.stack(
            [torch.stack(told[name]).sum(1) for name in ("labelled", "unlabelled") if name in told]
        ).sum(0)
        earlier, self.pending = (
            self.pending,
            (
                losses.to("cpu", non_blocking=True),
                step,
                torch.cuda.Event() if losses.is_cuda else None,
            ),
        )
        if losses.is_cuda:
            self.pending[2].record()
        else:
            earlier = self.pending
        if earlier is not None:
            losses, step, event = earlier
            if event is not None:
                event.synchronize()
            bad = (~torch.isfinite(losses)).nonzero()
            if len(bad):
                raise not_finite(
                    "loss", self.job.task.names[self.job.peers.mine[int(bad[0])]], step, self.job
                )
