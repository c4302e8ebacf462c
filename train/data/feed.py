"""What a step sees: rows(seed, step) -> standardised embeddings, labels, dropout factors, uniforms; a pure function of the step.

Position is arithmetic: every rank, view and restart computes the same rows and draws without asking anybody.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.algorithm import batches, probe
from train.algorithm.cotrain import Batch
from train.algorithm.optimise import per_experiment
from train.algorithm.peers import Peers
from train.algorithm.rivals import Offer
from train.config import TrainConfig
from train.data.graph import Graph, statistics
from train.data.reader import gather
from train.data.splits import Split

PURPOSES = (
    8  # streams of draws a view: dropout on L, dropout on U, sampled labels, initial weights, noise
)
KEEP_L, KEEP_U, DRAW, INIT, NOISE = range(5)
RESIDENT = 0.4  # of the GPU's free memory, that a view's embeddings may take


@dataclass(frozen=True)
class Input:
    """Cached embeddings of one view, or of several side by side, standardised per dimension with the statistics of the training images
    (labels play no part). resident: the same embeddings in the GPU's memory, where they fit."""

    emb: Sequence[np.ndarray]
    mean_D: Tensor
    std_D: Tensor
    resident: Sequence[Tensor] = field(default=(), repr=False)

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Row numbers of any shape -> (..., D) on the device, in the dtype of the statistics."""
        device = self.mean_D.device
        if self.resident:
            where = torch.from_numpy(rows).to(device, non_blocking=True)
            parts = [
                emb_ND.index_select(0, where.flatten()).view(*rows.shape, emb_ND.shape[1])
                for emb_ND in self.resident
            ]
        else:
            parts = [torch.from_numpy(gather(emb_ND, rows)) for emb_ND in self.emb]
        raw = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        if device.type == "cuda" and not self.resident:
            raw = raw.pin_memory().to(device, non_blocking=True)
        return raw.to(self.mean_D.dtype, copy=True).sub_(self.mean_D).div_(self.std_D)

    @property
    def width(self) -> int:
        return len(self.mean_D)


def make_input(
    emb: Sequence[np.ndarray], train_rows: np.ndarray, device: torch.device, dtype: torch.dtype
) -> Input:
    """The input of one view, or of several side by side, standardised by `statistics` of each."""
    found = [statistics(emb_ND, train_rows) for emb_ND in emb]
    mean_D, std_D = (
        torch.tensor(np.concatenate(parts), dtype=dtype, device=device)
        for parts in zip(*found, strict=True)
    )
    return Input(
        emb,
        mean_D,
        std_D,
        [torch.from_numpy(emb_ND).to(device) for emb_ND in emb] if fits(emb, device) else (),
    )


def fits(emb: Sequence[np.ndarray], device: torch.device) -> bool:
    """Is there room for them in the memory of the device, if that is a GPU?"""
    return (
        device.type == "cuda"
        and sum(emb_ND.nbytes for emb_ND in emb) < RESIDENT * torch.cuda.mem_get_info(device)[0]
    )


@dataclass(frozen=True)
class Experiment:
    """One of the E trainings of a run: what may differ between them, besides the split. temperature 0: the teacher's first choice."""

    seed: int
    lr: float
    weight_decay: float
    temperature: float


@dataclass(frozen=True)
class Task:
    """What is trained on: inputs of this process's views, all labels (N,), the experiments and a split for each; the graphs, where the method has any."""

    names: list[str]
    inputs: list[Input]
    label: np.ndarray
    classes: int
    splits: list[Split]
    experiments: list[Experiment]
    graphs: list[Graph] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        return [experiment.seed for experiment in self.experiments]


@dataclass(frozen=True)
class Drawn:
    """What a step's seed and number decide: batches, uniforms (V, E, U), and the unlabelled rows' numbers and hidden labels (E, U)."""

    batches: list[Offer]
    draws_VEU: Tensor
    rows_EU: np.ndarray
    hidden_EU: Tensor


class Feeder:
    """Makes the batches of one process: its views, and its part of the rows where a view has replicas.

    A thread draws and gathers the next step's rows while this step is computed. Close it at the end. hidden_EU: the labels, -1 where unknown, of
    the unlabelled rows that were handed out last, which no step is shown.
    """

    def __init__(self, config: TrainConfig, task: Task, peers: Peers) -> None:
        self.config, self.task, self.peers = config, task, peers
        self.device, self.dtype = task.inputs[0].mean_D.device, task.inputs[0].mean_D.dtype
        self.size_L = min(config.batch_labelled, min(len(split.labelled) for split in task.splits))
        self.size_L = (
            max(1, self.size_L // peers.replicas) * peers.replicas
        )  # the replicas' parts are equally large
        self.size_U = max(1, config.batch_unlabelled // peers.replicas) * peers.replicas
        on = (
            (torch.cuda.set_device, (self.device,)) if self.device.index is not None else (None, ())
        )
        self.thread = ThreadPoolExecutor(1, "feed", *on)  # the current GPU is a thread's own
        self.ahead: tuple[tuple[int, bool, bool], Future[Drawn]] | None = None
        self.waited = 0.0  # seconds, so far, that steps waited for rows

    def __call__(
        self,
        step: int,
        unlabelled: bool = False,
        strong: bool = False,
        given: Tensor | None = None,
        pool: Tensor | None = None,
    ) -> tuple[list[Batch], Tensor]:
        """This process's batches, and the uniforms (V, E, U) that decide the sampled labels of all views. `given`: (W, E, N) or, for each view
        its own, (V, 1, E, N) labels from which those of the unlabelled rows are taken. `pool`: (V, V + G, E) weights of the experts in each teacher."""
        drawn = self._next(step, unlabelled, strong)
        made, self.hidden_EU = drawn.batches, drawn.hidden_EU
        if pool is not None and unlabelled:
            anchor = self._anchor(drawn.rows_EU, pool[:, self.peers.count :])
            made = [replace(batch, anchor_VEUC=anchor) for batch in made]
        if given is not None:
            at = torch.from_numpy(drawn.rows_EU).to(given.device)
            tables = [given[view] if given.dim() == 4 else given for view in self.peers.mine]
            made = [
                replace(batch, given_WEU=torch.stack([y_EN.gather(1, at) for y_EN in table]).long())
                for batch, table in zip(made, tables, strict=True)
            ]
        return made, drawn.draws_VEU

    def close(self) -> None:
        self.thread.shutdown()

    def _next(self, *what: Any) -> Drawn:
        """What is asked for, and a start on what is probably asked for next. One thread draws at a time: the orders of passes are kept in between."""
        begun, self.ahead, since = self.ahead, None, time.monotonic()
        if begun is not None and begun[0] != what:
            wait([begun[1]])
        drawn = begun[1].result() if begun is not None and begun[0] == what else self._draw(*what)
        self.waited += time.monotonic() - since
        step, unlabelled, strong = what
        following = (step + 1, unlabelled, strong)
        self.ahead = following, self.thread.submit(self._draw, *following)
        return drawn

    def _draw(self, step: int, unlabelled: bool, strong: bool) -> Drawn:
        task, peers = self.task, self.peers
        rows_EL = self._part(
            self._rows(
                step, batches.LABELLED, self.size_L, [split.labelled for split in task.splits]
            )
        )
        y_EL = torch.from_numpy(task.label[rows_EL]).long().to(self.device, non_blocking=True)
        rows_EU = (
            self._part(
                self._rows(
                    step,
                    batches.UNLABELLED,
                    self.size_U,
                    [split.unlabelled for split in task.splits],
                )
            )
            if unlabelled
            else rows_EL[:, :0]
        )
        hidden_EU = torch.from_numpy(task.label[rows_EU]).long().to(self.device, non_blocking=True)
        made = []
        for view, source in zip(peers.mine, task.inputs, strict=True):
            keep_U = self._keep(step, view, KEEP_U, self.size_U) if unlabelled else ()
            batch = Offer(
                source(rows_EU),
                source(rows_EL),
                y_EL,
                keep_U,
                self._keep(step, view, KEEP_L, self.size_L),
            )
            if strong:
                noise = probe.noise(
                    task.seeds,
                    step,
                    view * PURPOSES + NOISE,
                    self.size_U,
                    source.width,
                    self.device,
                    self.dtype,
                )
                batch = replace(
                    batch, strong_EUD=batch.emb_EUD + self.config.noise * self._part(noise)
                )
            made.append(batch)
        draws = (
            np.array(
                [
                    [
                        batches.uniforms(seed, step, view * PURPOSES + DRAW, self.size_U)
                        for seed in task.seeds
                    ]
                    for view in range(peers.count)
                ]
            )
            if unlabelled
            else np.empty((peers.count, len(task.seeds), 0))
        )
        return Drawn(
            made,
            torch.from_numpy(np.ascontiguousarray(self._part(draws, 2))).to(
                self.device, non_blocking=True
            ),
            rows_EU,
            hidden_EU,
        )

    def _anchor(self, rows_EU: np.ndarray, weight_VGE: Tensor) -> list[Tensor]:
        """(E, U, C) for each student: what the graphs know of these rows, weighted."""
        scores = [graph(rows_EU).to(self.dtype) for graph in self.task.graphs]
        return [
            sum(
                per_experiment(weight_E, log_p) * log_p
                for weight_E, log_p in zip(weight_GE, scores, strict=True)
            )
            for weight_GE in weight_VGE
        ]

    def _rows(self, step: int, role: int, size: int, pools: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(
            [
                batches.rows(pool, seed, step, size, role)
                for pool, seed in zip(pools, self.task.seeds, strict=True)
            ]
        )

    def _keep(self, step: int, view: int, purpose: int, size: int) -> list[Tensor]:
        config = self.config
        whole = probe.dropout(
            self.task.seeds,
            step,
            view * PURPOSES + purpose,
            size,
            config.hidden,
            config.layers,
            config.dropout,
            self.device,
            self.dtype,
            config.members,
        )
        return [self._part(factor, factor.dim() - 2) for factor in whole]

    def _part(self, rows: np.ndarray | Tensor, axis: int = 1) -> np.ndarray | Tensor:
        """This replica's part of the rows of a whole batch."""
        size = rows.shape[axis] // self.peers.replicas
        here = [slice(None)] * axis + [
            slice(self.peers.replica * size, (self.peers.replica + 1) * size)
        ]
        return rows[tuple(here)]
