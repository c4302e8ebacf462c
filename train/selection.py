"""Model selection: the validation scores of every view and of the joint, and *copies* of the parameters where they were best.

With graphs (see train/data/graph.py) the joint is a pool of all experts, whose weights, and those of each student's teachers, are fitted here on the
same validation labels: a handful of numbers, so that the joint's validation score is slightly too good. The test split is not looked at.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from base.errors import DataQualityError
from train.algorithm.cotrain import teacher
from train.algorithm.evaluate import calibrate, fit_pool, joint, pooled, predict, top1_nll
from train.algorithm.optimise import State
from train.algorithm.probe import Params
from train.config import TrainConfig
from train.methods import PLANS, Job
from train.run.checkpoint import Progress


def select(
    progress: Progress, job: Job, config: TrainConfig, y_val: Tensor, graphs: Sequence[Tensor]
) -> dict:
    """Score every view and the joint on validation; where the score is a new best, keep *copies* of the parameters. Returns the record."""
    task, peers, plan = job.task, job.peers, PLANS[job.method]
    mine = [
        predict(shown(state), source, task.splits[0].val)
        for state, source in zip(progress.states, task.inputs, strict=True)
    ]
    logits_V = peers.exchange(mine)
    scores = {
        name: top1_nll(logits, y_val) for name, logits in zip(task.names, logits_V, strict=True)
    }
    if graphs:
        experts = torch.stack([*logits_V, *graphs])
        progress.pool = fit_pool(experts, y_val, progress.pool)
        if plan.step is not None:
            progress.teach = torch.stack(
                [without(v, experts, y_val, progress.teach[v]) for v in range(peers.count)]
            )
        whole = top1_nll(pooled(experts, progress.pool), y_val)
    else:
        whole = top1_nll(joint(logits_V, config.joint), y_val)
    for name, (_, nll) in scores.items():
        if not torch.isfinite(nll).all():
            raise not_finite("validation loss", name, progress.step, job)
    if (
        config.calibrate and peers.count > 1 and not graphs
    ):  # the pool's weights are the experts' temperatures
        progress.temperature = torch.stack(
            [calibrate(teacher(logits_V, v), y_val) for v in range(peers.count)]
        )
    for row, score in enumerate(
        [*((scores[name] if plan.per_view else whole) for name in task.names), whole]
    ):
        top1, nll = (value.cpu() for value in score)
        better = (top1 > progress.best_top1[row]) | (
            (top1 == progress.best_top1[row]) & (nll < progress.best_nll[row])
        )
        if config.patience:  # an experiment that was given up stays so
            better &= (progress.step - progress.best_step[row] <= config.patience) | (
                progress.best_top1[row] < 0
            )
        progress.best_top1[row] = torch.where(better, top1, progress.best_top1[row])
        progress.best_nll[row] = torch.where(better, nll, progress.best_nll[row])
        progress.best_step[row] = torch.where(better, progress.step, progress.best_step[row])
        if row == peers.count:
            progress.fused_pool = torch.where(
                better.to(progress.pool.device), progress.pool, progress.fused_pool
            )
        copies = progress.fused if row == peers.count else progress.best
        for here, view in enumerate(peers.mine):
            if row in (view, peers.count):
                copies[here] = _replace(copies[here], shown(progress.states[here]), better)
    return {
        "val": {
            name: {"top1": float(top1.mean()), "nll": float(nll.mean())}
            for name, (top1, nll) in [*scores.items(), ("joint", whole)]
        }
    }


def without(v: int, experts_MEnC: Tensor, y_n: Tensor, start_ME: Tensor) -> Tensor:
    """The weights (M, E) of the pool of all experts but v: nobody is his own teacher."""
    rest, weight_ME = [m for m in range(len(experts_MEnC)) if m != v], torch.zeros_like(start_ME)
    weight_ME[rest] = fit_pool(experts_MEnC[rest], y_n, start_ME[rest])
    return weight_ME


def _replace(old: Params, new: Params, better_E: Tensor) -> Params:
    """A copy of `old` with the experiments in which `better_E` is true taken from `new`."""
    return {
        name: torch.where(
            better_E.to(p.device).view(-1, *[1] * (p.dim() - 1)), new[name].detach(), p
        )
        for name, p in old.items()
    }


def shown(state: State) -> Params:
    """The parameters that are looked at: their moving average, where there is one."""
    return state.average or state.params


def not_finite(what: str, view: str, step: int, job: Job) -> DataQualityError:
    return DataQualityError(
        f"the {what} of view {view!r} is not finite at step {step} of {job.name}; try a smaller --lr, or look at the view's embeddings"
    )
