"""The loop: rows(seed, step) -> batches -> a pure step -> now and then a look at the validation
split, a checkpoint.

The loop knows neither ranks nor trackers: `peers` and `listener` do. All experiments train at once
along the first axis (E).
"""

import math
import threading
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base import native
from base.errors import PreemptedError
from train.algorithm.cotrain import Told
from train.algorithm.optimise import Adam, average
from train.algorithm.rivals import Rival
from train.algorithm.threads import threads
from train.config import TrainingSettings
from train.data.feed import Feeder, Task
from train.methods import METHODS
from train.phases import Job, Phase, begin, phases_of
from train.run.checkpoint import Standing, load_checkpoint, save_checkpoint
from train.run.log import Listener
from train.selection import Fusion, fusion_of, not_finite, select


def fit(
    job: Job, settings: TrainingSettings, listener: Listener, folder: Path, stop: threading.Event
) -> Standing:
    """Train one job to its end, from the last checkpoint of the run in `folder` if it is this
    job's. Returns the best copies.

    Selection is on validation alone. A joint prediction always comes from the step with the best
    joint score; a single view's from that step too where the views teach each other, and from the
    view's own best where they know nothing of each other. Raises PreemptedError after a stop signal
    (everything saved), DataQualityError when a loss is not finite.
    """
    native.keep_memory()
    task, peers = job.task, job.peers
    device = task.inputs[0].mean_D.device
    phases = phases_of(METHODS[job.method], settings)
    keeper = Keeper(job, settings, folder, stop, phases[-1].end)
    standing = keeper.begun(device)
    fusion = fusion_of(job, settings)
    rule = _rule(job, settings)
    watch = Watch(job)
    with threads(standing.threads), closing(Feeder(settings, task, peers)) as feed:
        for phase in phases:
            over = phase.origin + settings.warmup + settings.cotrain
            while standing.step < phase.end:
                if standing.step == phase.first:
                    standing = phase.opening(standing, job, settings)
                now = _now(rule, job, standing, fusion, phase, settings)
                at = standing.step - phase.origin
                known = standing.given, fusion.experts(standing)
                with autocast(settings.precision, device):
                    batches, draws_VEU = feed(at, phase.unlabelled, phase.strong, *known)
                    states, told = phase.step(standing.states, batches, draws_VEU, peers, now)
                standing.states = [average(state, settings.ema) for state in states]
                standing.step += 1
                standing.marks = tally(standing.marks, told, feed.hidden_EU)
                watch(told, standing.step)
                listener.step(standing.step)
                look = standing.step == over or standing.step % settings.eval_every == 0
                if look:
                    scores = select(standing, job, fusion, settings.patience)
                    listener.waited(feed.waited)
                    listener.tell(_record(job, standing, phase, phases[-1].end, scores, told))
                    standing.marks = None
                    if not task.jury.silent and _given_up(standing, settings.patience):
                        standing.step = over
                keeper(standing, look)
    return standing


def _given_up(standing: Standing, patience: int) -> bool:
    """Does no experiment and no view get better any more?"""
    return patience > 0 and bool((standing.step - standing.best_step > patience).all())


def _record(
    job: Job, standing: Standing, phase: Phase, steps: int, scores: dict, told: Told
) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    record = {
        "val": scores,
        "method": job.name,
        "step": standing.step,
        "steps": steps,
        "phase": job.method if phase.unlabelled else "supervised",
    }
    if "feedback" in told:
        means = torch.stack(told["feedback"]).mean(1).tolist()
        record["feedback"] = dict(zip(job.task.names, means, strict=True))
    return record | pseudo_labels(standing.marks, job)


class Keeper:
    """Where a job's training begins, and what is kept of it: a checkpoint now and then, and one at
    a stop signal, which ends it. metrics.jsonl is as long as its checkpoint says, or longer."""

    def __init__(
        self, job: Job, settings: TrainingSettings, folder: Path, stop: threading.Event, end: int
    ) -> None:
        self.job, self.settings, self.stop, self.end = job, settings, stop, end
        self.folder, self.metrics = folder / "checkpoints", folder / "metrics.jsonl"

    def begun(self, device: torch.device) -> Standing:
        """As the last checkpoint of this job has it, or fresh."""
        peers = self.job.peers
        found = load_checkpoint(self.folder, peers.rank, peers.ranks, device)
        if found is not None and found.method == self.job.name:
            return found
        return begin(self.job, self.settings, self._told())

    def __call__(self, standing: Standing, look: bool) -> None:
        """After every step. Several processes agree at the looks only."""
        peers, settings = self.job.peers, self.settings
        stopping = (look or peers.ranks == 1) and peers.any(self.stop.is_set())
        due = standing.step % settings.checkpoint_every < settings.eval_every
        if stopping or (look and (due or standing.step == self.end)):
            standing.metrics_bytes = self._told()
            save_checkpoint(self.folder, standing, peers)
        if stopping:
            raise PreemptedError(
                f"stopped at step {standing.step} of {self.job.name}, everything is saved; the "
                "same command goes on from here"
            )

    def _told(self) -> int:
        return self.metrics.stat().st_size if self.metrics.exists() else 0


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which products are computed."""
    if device.type == "cuda" and precision == "auto":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def _rule(job: Job, settings: TrainingSettings) -> Rival:
    """What all steps of a job have in common."""
    task, dtype = job.task, job.task.inputs[0].mean_D.dtype
    decays = any(experiment.weight_decay for experiment in task.experiments)
    decay = _each(task, "weight_decay", dtype) if decays else 0.0
    return Rival(
        Adam(_each(task, "lr", dtype), settings.clip, decay),
        settings.feedback if METHODS[job.method].feedback else "none",
        _each(task, "temperature", torch.float64),
        supervised=settings.supervised_weight,
        chunk=settings.chunk,
        rule=settings.fixmatch,
        threshold=settings.threshold,
    )


def _each(task: Task, name: str, dtype: torch.dtype) -> Tensor:
    """(E,): what the experiments have of this name."""
    values = [getattr(experiment, name) for experiment in task.experiments]
    return torch.tensor(values, dtype=dtype, device=task.inputs[0].mean_D.device)


def _now(
    rule: Rival,
    job: Job,
    standing: Standing,
    fusion: Fusion,
    phase: Phase,
    settings: TrainingSettings,
) -> Rival:
    """The settings of the next step."""
    at, period = standing.step - phase.origin, settings.warmup + settings.cotrain
    lr = rule.adam.lr * schedule(settings.schedule, at, period)
    return replace(
        rule,
        adam=replace(rule.adam, lr=lr),
        temperature=rule.temperature * job.task.jury.of_each(standing.temperature),
        trust=fusion.trust(standing),
    )


def schedule(kind: str, at: int, period: int) -> float:
    """The factor of the learning rate at step `at` of `period`: constant, or falling to zero as a
    cosine or a line."""
    if kind == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * at / period)
    return 1 - at / period if kind == "linear" else 1.0


def tally(sums: Tensor | None, told: Told, hidden_EU: Tensor) -> Tensor | None:
    """(views, 4, E) sums over the labels that were handed out since the last record: right ones,
    those whose truth is known though hidden from training, those given (weighted, where a method
    weighs them), and all rows. For the eye alone: nothing is chosen by it."""
    if "given" not in told:
        return sums
    now = []
    for view, y in enumerate(told["given"]):
        weight = told["weight"][view] if "weight" in told else (y >= 0).double()
        known = weight * (hidden_EU >= 0)
        parts = []
        for part in (known * (y == hidden_EU), known, weight, torch.ones_like(weight)):
            parts.append(part.sum(-1).view(-1, len(hidden_EU)).sum(0))
        now.append(torch.stack(parts))
    new = torch.stack(now)
    return new if sums is None else sums + new


def pseudo_labels(sums: Tensor | None, job: Job) -> dict[str, Any]:
    """{pseudo: {view: precision, coverage}}, means over the experiments; precision is None where no
    truth is known."""
    if sums is None:
        return {}
    peers, found = job.peers, {}
    mine = [peers.average(of_view) for of_view in sums]
    for name, of_view in zip(job.task.names, peers.exchange(mine), strict=True):
        right, known, given, count = of_view
        some = known > 0
        found[name] = {
            "precision": float((right / known)[some].mean()) if some.any() else None,
            "coverage": float((given / count).mean()),
        }
    return {"pseudo": found}


class Watch:
    """Stops a run whose loss is not finite, naming the view. On a GPU a step's losses are looked at
    after the next step was begun, so that nobody waits for the GPU."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.pending: tuple[Tensor, int, torch.cuda.Event] | None = None

    def __call__(self, told: Told, step: int) -> None:
        kinds = [name for name in ("labelled", "unlabelled") if name in told]
        losses = torch.stack([torch.stack(told[name]).sum(1) for name in kinds]).sum(0)
        if not losses.is_cuda:
            self._look(losses, step)
            return
        earlier, copied = self.pending, torch.cuda.Event()
        self.pending = losses.to("cpu", non_blocking=True), step, copied
        copied.record()
        if earlier is not None:
            earlier[2].synchronize()
            self._look(earlier[0], earlier[1])

    def _look(self, losses: Tensor, step: int) -> None:
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            view = self.job.peers.mine[int(bad[0])]
            raise not_finite("loss", self.job.task.names[view], step, self.job)
