"""Model selection: the validation scores of every view and of the joint, and *copies* of the
parameters where they were best.

How the views are joined, and how their teachers are weighted, is one object for a job: a
LateFusion, or, with graphs (see train/data/graph.py), a Pool of all experts, whose weights, and
those of each student's teachers, are fitted here on the same validation labels: a handful of
numbers, so that the joint's validation score is slightly too good. The test split is not looked at.
Who judges, and which trainings follow, a jury knows (train/data/folds.py): S seeds choose for E
trainings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from base.errors import DataQualityError
from train.algorithm.cotrain import teacher
from train.algorithm.evaluate import calibrate, fit_pool, joint, judged, pooled, predict
from train.algorithm.probe import Params
from train.config import TrainingSettings
from train.data.jury import Jury
from train.methods import METHODS
from train.phases import Job
from train.run.checkpoint import Standing

Score = dict[str, Tensor]  # (S,) each: top1, nll, and what is chosen by


@dataclass(frozen=True)
class LateFusion:
    """The views alone. by: what is chosen by, one of MEASURES. calibrated: each student's teacher
    gets a temperature of its own."""

    by: str
    rule: str
    calibrated: bool

    def score(self, standing: Standing, logits_V: Sequence[Tensor], y_val: Tensor) -> Score:
        """Of the joint."""
        if self.calibrated and len(logits_V) > 1:
            fitted = [calibrate(teacher(logits_V, v), y_val) for v in range(len(logits_V))]
            standing.temperature = torch.stack(fitted)
        return judged(joint(logits_V, self.rule), y_val, self.by)

    def trust(self, standing: Standing) -> Tensor | None:
        """What each view's word counts in each student's teacher; None: all alike."""
        return None

    def experts(self, standing: Standing) -> Tensor | None:
        """The same of the fixed experts, too."""
        return None

    def unjudged(self, standing: Standing) -> None:
        """How they are joined where nobody judges."""


@dataclass(frozen=True)
class Pool:
    """The views, and the fixed experts, whose log-probabilities for the validation rows are known:
    class names and graphs. The pool's weights are the experts' temperatures, held near usual_MS.
    teaching: there are students.
    """

    by: str
    known: Sequence[Tensor]
    usual_MS: Tensor
    teaching: bool
    jury: Jury

    def score(self, standing: Standing, logits_V: Sequence[Tensor], y_val: Tensor) -> Score:
        experts = torch.stack([*logits_V, *self.known])
        standing.pool = fit_pool(experts, y_val, standing.pool, self.usual_MS)
        if self.teaching:
            teach = []
            for v, weight_ME in enumerate(standing.teach):
                teach.append(without(v, experts, y_val, weight_ME, self.usual_MS))
            standing.teach = torch.stack(teach)
        return judged(pooled(experts, standing.pool), y_val, self.by)

    def trust(self, standing: Standing) -> Tensor | None:
        return self.jury.of_each(standing.teach[:, : len(standing.teach)])

    def experts(self, standing: Standing) -> Tensor | None:
        return self.jury.of_each(standing.teach)

    def unjudged(self, standing: Standing) -> None:
        """The joint is then as sure as its experts are on average: weights of sum 1."""
        views = len(standing.teach)
        standing.pool = self.usual_MS.to(standing.pool)
        if self.teaching:
            standing.teach = standing.pool.expand(views, -1, -1).clone()
            for v in range(views):
                standing.teach[v, v] = 0  # nobody is his own teacher
        standing.fused_pool = standing.pool / standing.pool.sum(0)


Fusion = LateFusion | Pool


def fusion_of(job: Job, settings: TrainingSettings) -> Fusion:
    """How the views of this job are joined."""
    fixed, jury = job.task.fixed, job.task.jury
    if not fixed:
        return LateFusion(settings.select, settings.joint, settings.calibrate)
    known = [jury.opinions(expert(jury.rows)) for expert in fixed]
    teaching = METHODS[job.method].unlabelled
    return Pool(settings.select, known, job.task.usual_MS, teaching, jury)


def select(
    standing: Standing, job: Job, fusion: Fusion, patience: int
) -> dict[str, dict[str, float]]:
    """Score every view and the joint on validation; where the score is a new best, keep *copies* of
    the parameters. Returns the means over the experiments: {name: {top1, nll}}, and what is chosen
    by."""
    task, peers, jury = job.task, job.peers, job.task.jury
    mine = []
    for state, source in zip(standing.states, task.inputs, strict=True):
        mine.append(jury.opinions(predict(state.shown, source, jury.rows)))
    if jury.silent:
        fusion.unjudged(standing)
        return _last(standing)
    logits_V, y_val = peers.exchange(mine), jury.y_Sn
    scores = [judged(logits, y_val, fusion.by) for logits in logits_V]
    for name, score in zip(task.names, scores, strict=True):
        if not torch.isfinite(score["nll"]).all():
            raise not_finite("validation loss", name, standing.step, job)
    whole = fusion.score(standing, logits_V, y_val)
    for view, own in enumerate(scores):
        score = own if METHODS[job.method].per_view else whole
        better = _improved(standing, view, (score[fusion.by], score["nll"]), patience)
        if view in peers.mine:
            _keep(standing.best, standing, peers.mine.index(view), jury.of_each(better))
    better = _improved(standing, peers.count, (whole[fusion.by], whole["nll"]), patience)
    for here in range(len(peers.mine)):
        _keep(standing.fused, standing, here, jury.of_each(better))
    better = better.to(standing.pool.device)
    standing.fused_pool = torch.where(better, standing.pool, standing.fused_pool)
    return _means([*task.names, "joint"], [*scores, whole])


def _means(names: Sequence[str], scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Over the experiments."""
    means = {}
    for name, score in zip(names, scores, strict=True):
        means[name] = {key: float(value.mean()) for key, value in score.items()}
    return means


def _last(standing: Standing) -> dict[str, dict[str, float]]:
    """Nobody judges: the last parameters are kept, and nothing is told."""
    standing.best = [dict(state.shown) for state in standing.states]
    standing.fused = [dict(state.shown) for state in standing.states]
    return {}


def _improved(standing: Standing, row: int, found: tuple[Tensor, Tensor], patience: int) -> Tensor:
    """(E,): is this a new best? Then it is noted. found: what is chosen by, and the NLL."""
    score, nll = (value.cpu() for value in found)
    best_score, best_nll = standing.best_score[row], standing.best_nll[row]
    better = (score > best_score) | ((score == best_score) & (nll < best_nll))
    if patience:  # an experiment that was given up stays so
        better &= (standing.step - standing.best_step[row] <= patience) | (best_score < 0)
    standing.best_score[row] = torch.where(better, score, best_score)
    standing.best_nll[row] = torch.where(better, nll, best_nll)
    standing.best_step[row] = torch.where(better, standing.step, standing.best_step[row])
    return better


def without(
    v: int, experts_MEnC: Tensor, y_En: Tensor, start_ME: Tensor, usual_ME: Tensor
) -> Tensor:
    """The weights (M, E) of the pool of all experts but v: nobody is his own teacher."""
    rest = [m for m in range(len(experts_MEnC)) if m != v]
    weight_ME = torch.zeros_like(start_ME)
    weight_ME[rest] = fit_pool(experts_MEnC[rest], y_En, start_ME[rest], usual_ME[rest])
    return weight_ME


def _keep(copies: list[Params], standing: Standing, here: int, better_E: Tensor) -> None:
    """Of the experiments that are better, copies of a view's parameters."""
    new, kept = standing.states[here].shown, {}
    for name, old in copies[here].items():
        where = better_E.to(old.device).view(-1, *[1] * (old.dim() - 1))
        kept[name] = torch.where(where, new[name], old)
    copies[here] = kept


def not_finite(what: str, view: str, step: int, job: Job) -> DataQualityError:
    return DataQualityError(
        f"the {what} of view {view!r} is not finite at step {step} of {job.name}; try a smaller "
        "--lr, or look at the view's embeddings"
    )
