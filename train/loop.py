"""The loop: rows(seed, step) -> batches -> a pure step -> now and then a look at the validation split, a checkpoint.

The loop knows neither ranks nor trackers: `peers` and `listener` do. All seeds train at once along the first axis (E).
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache_specs.errors import DataQualityError, PreemptedError
from train import batches, probe
from train.checkpoint import Progress, load_checkpoint, save_checkpoint
from train.config import TrainConfig
from train.cotrain import Batch, Method, fresh, mct_step, supervised_step
from train.evaluate import joint, predict, top1_nll
from train.log import Listener
from train.peers import Peers
from train.probe import Params
from train.reader import gather
from train.splits import Split

PURPOSES = 4        # streams of draws a view: dropout on L, dropout on U, sampled labels, initial weights
KEEP_L, KEEP_U, DRAW, INIT = range(PURPOSES)


@dataclass(frozen=True)
class Input:
    """One view's cached embeddings, standardised per dimension with the statistics of the training images (labels play no part)."""

    emb_ND: np.ndarray
    mean_D: Tensor
    std_D: Tensor

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Row numbers of any shape -> (..., D) on the device, in the dtype of the statistics."""
        raw = torch.from_numpy(gather(self.emb_ND, rows))
        return (raw.to(self.mean_D.device, non_blocking=True).to(self.mean_D.dtype) - self.mean_D) / self.std_D


def make_input(emb_ND: np.ndarray, train_rows: np.ndarray, device: torch.device, dtype: torch.dtype, most: int = 65_536) -> Input:
    """Statistics over at most `most` evenly spaced training rows. A dimension that hardly varies is not blown up."""
    sample = gather(emb_ND, train_rows[:: -(-len(train_rows) // most)]).astype(np.float64)
    mean, std = sample.mean(0), sample.std(0)
    std = np.maximum(std, 1e-3 * std.max(initial=0) + 1e-12)
    return Input(emb_ND, torch.tensor(mean, dtype=dtype, device=device), torch.tensor(std, dtype=dtype, device=device))


@dataclass(frozen=True)
class Task:
    """What is trained on: inputs of this process's views, all labels (N,), a split per experiment and the seeds."""

    names: list[str]
    inputs: list[Input]
    label: np.ndarray
    classes: int
    splits: list[Split]
    seeds: list[int]


def make_task(names: list[str], emb_V: Sequence[np.ndarray], label: np.ndarray, classes: int, splits: list[Split], seeds: list[int],
              mine: Sequence[int], device: torch.device, dtype: torch.dtype) -> Task:
    """The task as the process that owns the views `mine` sees it."""
    train_rows = np.union1d(splits[0].labelled, splits[0].unlabelled)
    return Task(names, [make_input(emb_V[view], train_rows, device, dtype) for view in mine], label, classes, splits, seeds)


def fit(method: str, config: TrainConfig, task: Task, peers: Peers, listener: Listener, folder: Path, metrics: Path, device: torch.device,
        precision: AbstractContextManager, stop: threading.Event) -> Progress:
    """Train one method to its end, from the last checkpoint in `folder` if it is this method's. Returns the best copies.

    Selection is on validation alone. A joint prediction always comes from the step with the best joint score; a single view's from that
    step too for `mct`, and from the view's own best for `supervised`, whose views know nothing of each other.
    Raises PreemptedError after a stop signal (everything saved), DataQualityError when a loss is not finite.
    """
    settings = Method(config.lr, config.clip, config.feedback, config.pseudo, config.temperature)
    warmup = config.warmup + (config.cotrain if method == "supervised" else 0)
    steps = config.warmup + config.cotrain
    progress = load_checkpoint(folder, peers.rank, peers.ranks, device)
    if progress is None or progress.method != method:
        progress = _begin(method, config, task, peers, metrics)
    y_val = torch.from_numpy(task.label[task.splits[0].val]).long().to(device)
    make = _batch_maker(config, task, peers, device)
    feedback = None
    for step in range(progress.step, steps):
        with precision:
            if step < warmup:
                progress.states = supervised_step(progress.states, make(step, unlabelled=False)[0], settings)
            else:
                views, draws_VEU = make(step, unlabelled=True)
                progress.states, feedback = mct_step(progress.states, views, draws_VEU, peers, settings)
        progress.step = step + 1
        listener.step(progress.step)
        if progress.step % config.eval_every == 0 or progress.step == steps:
            with precision:
                record = _select(progress, task, y_val, peers, per_view=method == "supervised")
            record |= {"method": method, "step": progress.step, "steps": steps, "phase": "supervised" if step < warmup else "co-training"}
            if feedback is not None:
                record["feedback"] = dict(zip(task.names, feedback.mean(1).tolist(), strict=True))
            listener.tell(record)
            stopping = peers.any(stop.is_set())
            if stopping or progress.step % config.checkpoint_every < config.eval_every or progress.step == steps:
                progress.metrics_bytes = metrics.stat().st_size if metrics.exists() else 0
                save_checkpoint(folder, progress, peers)
            if stopping:
                raise PreemptedError(f"stopped at step {progress.step} of {method}, everything is saved; the same command goes on from here")
    return progress


def _begin(method: str, config: TrainConfig, task: Task, peers: Peers, metrics: Path) -> Progress:
    states = []
    for view, source in zip(peers.mine, task.inputs, strict=True):
        dtype, device = source.mean_D.dtype, source.mean_D.device
        params = probe.init(task.seeds, view * PURPOSES + INIT, source.emb_ND.shape[1], config.hidden, config.layers, task.classes, dtype)
        states.append(fresh({name: value.to(device) for name, value in params.items()}))
    shape = (peers.count + 1, len(task.seeds))
    best, fused = ([dict(state.params) for state in states] for _ in range(2))
    return Progress(method, 0, states, best, fused, torch.full(shape, -1.0, dtype=torch.float64),
                    torch.full(shape, torch.inf, dtype=torch.float64), torch.zeros(shape, dtype=torch.int64),
                    metrics.stat().st_size if metrics.exists() else 0)


def _batch_maker(config: TrainConfig, task: Task, peers: Peers, device: torch.device) -> Callable[..., tuple[list[Batch], Tensor]]:
    """make(step, unlabelled) -> this process's batches, and the uniforms that decide the sampled labels of all V views."""
    size_L = min(config.batch_labelled, min(len(split.labelled) for split in task.splits))
    size_U = config.batch_unlabelled

    def pick(step: int, role: int, size: int, pools: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([batches.rows(pool, seed, step, size, role) for pool, seed in zip(pools, task.seeds, strict=True)])

    def keep(step: int, view: int, purpose: int, size: int, dtype: torch.dtype) -> list[Tensor]:
        return probe.dropout(task.seeds, step, view * PURPOSES + purpose, size, config.hidden, config.layers, config.dropout, device, dtype)

    def make(step: int, unlabelled: bool) -> tuple[list[Batch], Tensor]:
        rows_EL = pick(step, batches.LABELLED, size_L, [split.labelled for split in task.splits])
        rows_EU = pick(step, batches.UNLABELLED, size_U, [split.unlabelled for split in task.splits]) if unlabelled else rows_EL[:, :0]
        y_EL = torch.from_numpy(task.label[rows_EL]).long().to(device, non_blocking=True)
        made = []
        for view, source in zip(peers.mine, task.inputs, strict=True):
            dtype = source.mean_D.dtype
            made.append(Batch(source(rows_EU), source(rows_EL), y_EL, keep(step, view, KEEP_U, size_U, dtype) if unlabelled else (),
                              keep(step, view, KEEP_L, size_L, dtype)))
        draws = np.array([[batches.uniforms(seed, step, view * PURPOSES + DRAW, size_U) for seed in task.seeds]
                          for view in range(peers.count)]) if unlabelled else np.empty(0)
        return made, torch.from_numpy(draws).to(device, non_blocking=True)

    return make


def _select(progress: Progress, task: Task, y_val: Tensor, peers: Peers, per_view: bool) -> dict:
    """Score every view and the joint on validation; where the score is a new best, keep *copies* of the parameters. Returns the record."""
    mine = [predict(state.params, source, task.splits[0].val) for state, source in zip(progress.states, task.inputs, strict=True)]
    logits_V = peers.exchange(mine)
    scores = {name: top1_nll(logits, y_val) for name, logits in zip(task.names, logits_V, strict=True)}
    whole = top1_nll(joint(logits_V), y_val)
    for name, (_, nll) in scores.items():
        if not torch.isfinite(nll).all():
            raise DataQualityError(f"the validation loss of view {name!r} is not finite at step {progress.step} of {progress.method}; "
                                   "try a smaller --lr, or look at the view's embeddings")
    for row, score in enumerate([*((scores[name] if per_view else whole) for name in task.names), whole]):
        top1, nll = (value.cpu() for value in score)
        better = (top1 > progress.best_top1[row]) | ((top1 == progress.best_top1[row]) & (nll < progress.best_nll[row]))
        progress.best_top1[row] = torch.where(better, top1, progress.best_top1[row])
        progress.best_nll[row] = torch.where(better, nll, progress.best_nll[row])
        progress.best_step[row] = torch.where(better, progress.step, progress.best_step[row])
        copies = progress.fused if row == peers.count else progress.best
        for here, view in enumerate(peers.mine):
            if row in (view, peers.count):
                copies[here] = _replace(copies[here], progress.states[here].params, better)
    return {"val": {name: {"top1": float(top1.mean()), "nll": float(nll.mean())} for name, (top1, nll) in [*scores.items(), ("joint", whole)]}}


def _replace(old: Params, new: Params, better_E: Tensor) -> Params:
    """A copy of `old` with the experiments in which `better_E` is true taken from `new`."""
    return {name: torch.where(better_E.to(p.device).view(-1, *[1] * (p.dim() - 1)), new[name].detach(), p) for name, p in old.items()}
