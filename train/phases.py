"""Which step a job takes when: a method's schedule as a list of phases.

for phase in phases_of(method, settings):       supervised, and then what the method is about
    steps phase.first to phase.end, each by phase.step; before the first one phase.opening
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from train.algorithm import probe
from train.algorithm.cotrain import Told, mct_step, supervised_step
from train.algorithm.evaluate import choices, fit_pool
from train.algorithm.optimise import State, fresh
from train.algorithm.peers import Peers
from train.algorithm.rivals import Offer, Rival, fixmatch_step, mpl_step, pseudo_step
from train.algorithm.threads import threads_of
from train.config import ScheduleSettings, TrainingSettings
from train.data.feed import INIT, PURPOSES, Task, shape_of
from train.methods import Method
from train.run.checkpoint import Standing

ROUNDS = 10  # of co-training

Step = Callable[[Sequence[State], Sequence[Offer], Tensor, Peers, Rival], tuple[list[State], Told]]


@dataclass(frozen=True)
class Job:
    """One training of one method: its name in checkpoints and logs, what it trains on, with whom it
    speaks, and the names of the probes that it leaves, of this process's first views."""

    name: str
    method: str
    task: Task
    peers: Peers
    probes: list[str]


Opening = Callable[[Standing, Job, TrainingSettings], Standing]


def _as_it_is(standing: Standing, job: Job, settings: TrainingSettings) -> Standing:
    return standing


@dataclass(frozen=True)
class Phase:
    """The steps from `first` to before `end` of a job. unlabelled: they see rows without labels;
    strong: with noise, too. opening: what is done before the first one. origin: the step at which
    the schedule that the phase belongs to began."""

    first: int
    end: int
    step: Step
    unlabelled: bool = True
    strong: bool = False
    opening: Opening = _as_it_is
    origin: int = 0


def phases_of(method: Method, settings: ScheduleSettings) -> list[Phase]:
    """The phases of one of its jobs. Graphs know something from the first step on: no warm-up."""
    period = settings.warmup + settings.cotrain
    warmup = 0 if method.graphs else settings.warmup
    phases = SCHEDULES[method.schedule](warmup, period)
    return [phase for phase in phases if phase.first < phase.end]


def alone(
    views: Sequence[State], batches: Sequence[Offer], draws_VEU: Tensor, peers: Peers, method: Rival
) -> tuple[list[State], Told]:
    """The supervised step as one of those that might see unlabelled rows."""
    return supervised_step(views, batches, peers, method)


def _supervised(warmup: int, period: int) -> list[Phase]:
    return [Phase(0, period, alone, unlabelled=False)]


def after_warmup(step: Step, strong: bool = False) -> Callable[[int, int], list[Phase]]:
    def schedule(warmup: int, period: int) -> list[Phase]:
        first = Phase(0, warmup, alone, unlabelled=False)
        return [first, Phase(warmup, period, step, strong=strong)]

    return schedule


def _self_training(warmup: int, period: int) -> list[Phase]:
    """The whole schedule twice, the second time from fresh probes."""
    again = Phase(period, 2 * period, pseudo_step, opening=_first_choices, origin=period)
    return [*_supervised(warmup, period), again]


def _co_training(warmup: int, period: int) -> list[Phase]:
    """In ROUNDS, as equal as they can be, each of which begins with a hand-over."""
    phases = [Phase(0, warmup, alone, unlabelled=False)]
    for turn in range(1, ROUNDS + 1):
        end = warmup + -(-(period - warmup) * turn // ROUNDS)
        hand_over = functools.partial(_most_confident, turn=turn)
        phases.append(Phase(phases[-1].end, end, pseudo_step, opening=hand_over))
    return phases


SCHEDULES = {
    "supervised": _supervised,
    "self-training": _self_training,
    "co-training": _co_training,
    "fixmatch": after_warmup(fixmatch_step, strong=True),
    "mpl": after_warmup(mpl_step),
    "mct": after_warmup(mct_step),
}


def begin(job: Job, settings: TrainingSettings, metrics_bytes: int) -> Standing:
    """Fresh probes, which nobody trusts yet."""
    states, task, peers = [], job.task, job.peers
    device = task.inputs[0].mean_D.device
    for view, source in zip(peers.mine, task.inputs, strict=True):
        params = probe.init(
            task.seeds,
            view * PURPOSES + INIT,
            source.width,
            task.classes,
            shape_of(settings),
            source.mean_D.dtype,
        )
        states.append(fresh({name: value.to(device) for name, value in params.items()}))
    jury, fixed = task.jury, len(task.fixed)
    seeds = len(jury.own_S)
    shape = (peers.count + 1, seeds)
    pool = torch.zeros(peers.count + fixed, seeds, dtype=torch.float64, device=device)
    if fixed:
        known = torch.stack([jury.opinions(expert(jury.rows)) for expert in task.fixed])
        usual_FS = task.usual_MS[peers.count :].to(pool)
        pool[peers.count :] = fit_pool(known, jury.y_Sn, usual_FS, usual_FS)
    rows_L = min(settings.batch_labelled, *[len(split.labelled) for split in task.splits])
    return Standing(
        method=job.name,
        step=0,
        threads=threads_of(settings.threads, states, rows_L, settings.batch_unlabelled),
        states=states,
        best=[state.shown for state in states],
        fused=[state.shown for state in states],
        best_score=torch.full(shape, -1.0, dtype=torch.float64),
        best_nll=torch.full(shape, torch.inf, dtype=torch.float64),
        best_step=torch.zeros(shape, dtype=torch.int64),
        metrics_bytes=metrics_bytes,
        temperature=torch.ones(peers.count, seeds, dtype=torch.float64, device=device),
        pool=pool,
        fused_pool=pool,
        teach=pool.expand(peers.count, -1, -1),
    )


def _first_choices(standing: Standing, job: Job, settings: TrainingSettings) -> Standing:
    """Fresh probes, which are given, (V, E, N) int32, the first choice of every view's best probe
    for every unlabelled row, -1 elsewhere."""
    rows = _all_unlabelled(job.task)
    mine = []
    for best, source in zip(standing.best, job.task.inputs, strict=True):
        mine.append(choices(best, source, rows)[0].int())
    given = torch.stack([_table(job.task, rows, y) for y in job.peers.exchange(mine)])
    new = begin(job, settings, standing.metrics_bytes)
    new.best_step += standing.step  # patience begins here
    return replace(new, step=standing.step, given=given)


def _most_confident(
    standing: Standing, job: Job, settings: TrainingSettings, turn: int
) -> Standing:
    """They are given, (V, 1, E, N) int32, for each view the labels of the others for the
    turn/ROUNDS part of the rows of which they are surest, -1 elsewhere."""
    rows, splits, peers = _all_unlabelled(job.task), job.task.splits, job.peers
    # not what another experiment hides alone
    mine_En = torch.from_numpy(np.stack([np.isin(rows, split.unlabelled) for split in splits]))
    most_E1 = torch.tensor([[max(1, len(split.unlabelled) * turn // ROUNDS)] for split in splits])
    labels, confidences = [], []
    for state, source in zip(standing.states, job.task.inputs, strict=True):
        y, confidence = choices(state.shown, source, rows)
        labels.append(y.int())
        confidences.append(confidence)
    y_V, sure_V = peers.exchange(labels), peers.exchange(confidences)
    tables = []
    for v in range(peers.count):
        others = [w for w in range(peers.count) if w != v]
        sure, who = torch.stack([sure_V[w] for w in others]).max(0)
        y = torch.stack([y_V[w] for w in others]).gather(0, who.unsqueeze(0))[0]
        sure = torch.where(mine_En.to(sure.device), sure, -1)
        rank = sure.argsort(dim=1, descending=True, stable=True).argsort(1)
        chosen = torch.where(rank < most_E1.to(rank.device), y, -1)
        tables.append(_table(job.task, rows, chosen))
    standing.given = torch.stack(tables).unsqueeze(1)
    return standing


def _all_unlabelled(task: Task) -> np.ndarray:
    """The rows that are unlabelled in one experiment or another."""
    return functools.reduce(np.union1d, [split.unlabelled for split in task.splits])


def _table(task: Task, rows: np.ndarray, y_En: Tensor) -> Tensor:
    """(E, N): the labels of these rows, -1 for the others."""
    table = torch.full((len(y_En), len(task.label)), -1, dtype=torch.int32, device=y_En.device)
    table[:, torch.from_numpy(rows).to(y_En.device)] = y_En
    return table
