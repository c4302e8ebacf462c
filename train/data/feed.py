"""What a step sees: rows(seed, step) -> standardised embeddings, labels, dropout factors, uniforms;
a pure function of the step.

Position is arithmetic: every rank, view and restart computes the same rows and draws without asking
anybody.
"""

import functools
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from train.algorithm import probe
from train.algorithm.batches import LABELLED, UNLABELLED, Passes, uniforms
from train.algorithm.evaluate import shares_of_graphs, usual_pool
from train.algorithm.optimise import per_experiment, total
from train.algorithm.peers import Peers, part_of
from train.algorithm.rivals import Offer
from train.config import ProbeSettings, TrainingSettings
from train.data.folds import seeds_of
from train.data.graph import Graph, statistics
from train.data.jury import Jury, jury_of
from train.data.names import Names
from train.data.reader import gather
from train.data.splits import Split

# Streams of draws a view: dropout on L, dropout on U, sampled labels, initial weights, noise.
PURPOSES = 8
KEEP_L, KEEP_U, DRAW, INIT, NOISE = range(5)
RESIDENT = 0.4  # of the GPU's free memory, that a view's embeddings may take


@dataclass(frozen=True)
class Input:
    """Cached embeddings of one view, or of several side by side, standardised per dimension with
    the statistics of the training images (labels play no part). resident: the same embeddings in
    the GPU's memory, where they fit."""

    emb: Sequence[np.ndarray]
    mean_D: Tensor
    std_D: Tensor
    resident: Sequence[Tensor] = field(default=(), repr=False)

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Row numbers of any shape -> (..., D) on the device, in the dtype of the statistics."""
        device = self.mean_D.device
        parts = []
        if self.resident:
            where = torch.from_numpy(rows).to(device, non_blocking=True)
            for emb_ND in self.resident:
                found = emb_ND.index_select(0, where.flatten())
                parts.append(found.view(*rows.shape, emb_ND.shape[1]))
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
    means, deviations = zip(*[statistics(emb_ND, train_rows) for emb_ND in emb], strict=True)
    mean_D = torch.tensor(np.concatenate(means), dtype=dtype, device=device)
    std_D = torch.tensor(np.concatenate(deviations), dtype=dtype, device=device)
    resident = []
    if fits(emb, device):
        resident = [torch.from_numpy(emb_ND).to(device) for emb_ND in emb]
    return Input(emb, mean_D, std_D, resident)


def fits(emb: Sequence[np.ndarray], device: torch.device) -> bool:
    """Is there room for them in the memory of the device, if that is a GPU?"""
    if device.type != "cuda":
        return False
    wanted = sum(emb_ND.nbytes for emb_ND in emb)
    return wanted < RESIDENT * torch.cuda.mem_get_info(device)[0]


def shape_of(config: ProbeSettings) -> probe.Shape:
    """That of a run's probes."""
    return probe.Shape(config.hidden, config.layers, config.members, config.dropout)


@dataclass(frozen=True)
class Experiment:
    """One of the E trainings of a run: what may differ between them, besides the split.
    temperature 0: the teacher's first choice."""

    seed: int
    lr: float
    weight_decay: float
    temperature: float


@dataclass(frozen=True)
class Task:
    """What is trained on: inputs of this process's views, all labels (N,), the experiments and a
    split for each, those of folds among them; where the method has them, the graphs, and what the
    class names say."""

    names: list[str]
    inputs: list[Input]
    label: np.ndarray
    classes: int
    splits: list[Split]
    experiments: list[Experiment]
    graphs: list[Graph] = field(default_factory=list)
    told: Names | None = None

    @property
    def fixed(self) -> list[Names | Graph]:
        """The experts of the pool that do not learn, in its order: class names, graphs."""
        return [*([self.told] if self.told else []), *self.graphs]

    @functools.cached_property
    def jury(self) -> Jury:
        """Who judges."""
        return jury_of(seeds_of(self.splits), self.label, self.inputs[0].mean_D.device)

    @functools.cached_property
    def usual_MS(self) -> Tensor:
        """What each expert weighs in each seed's pool where nobody judges."""
        shares, labels, names = [], [], []
        for own in self.jury.own_S.tolist():
            alone = self.graphs[: len(self.names)]
            shares.append(shares_of_graphs([graph.solve(own).sure for graph in alone]))
            labels.append(len(self.splits[own].labelled) / self.classes)
            names.append([self.told.usual(own)] if self.told else [])
        names_NS = torch.tensor(names, dtype=torch.float64).T
        mean = float(np.mean(labels))
        return usual_pool(len(self.names), mean, names_NS, torch.stack(shares, 1))

    @property
    def seeds(self) -> list[int]:
        return [experiment.seed for experiment in self.experiments]


@dataclass(frozen=True)
class Drawn:
    """What a step's seed and number decide: batches, uniforms (V, E, U), and the unlabelled rows'
    numbers and hidden labels (E, U)."""

    batches: list[Offer]
    draws_VEU: Tensor
    rows_EU: np.ndarray
    hidden_EU: Tensor


class Feeder:
    """Makes the batches of one process: its views, and its part of the rows where a view has
    replicas.

    A thread draws and gathers the next step's rows while this step is computed. Close it at the
    end. hidden_EU: the labels, -1 where unknown, of the unlabelled rows that were handed out last,
    which no step is shown.
    """

    def __init__(self, config: TrainingSettings, task: Task, peers: Peers) -> None:
        self.task, self.peers = task, peers
        self.shape, self.noise = shape_of(config), config.noise
        self.device, self.dtype = task.inputs[0].mean_D.device, task.inputs[0].mean_D.dtype
        # the replicas' parts are equally large
        labelled = min(len(split.labelled) for split in task.splits)
        part_L = min(config.batch_labelled, labelled) // peers.replicas
        self.size_L = max(1, part_L) * peers.replicas
        self.size_U = max(1, config.batch_unlabelled // peers.replicas) * peers.replicas
        each = list(zip(task.splits, task.seeds, strict=True))
        # the members of a sweep have one for each seed
        labelled = {(split, seed): Passes(split.labelled, seed, LABELLED) for split, seed in each}
        hidden = {(split, seed): Passes(split.unlabelled, seed, UNLABELLED) for split, seed in each}
        self.labelled = [labelled[one] for one in each]
        self.unlabelled = [hidden[one] for one in each]
        self.thread = ThreadPoolExecutor(1, "feed", self._start)
        self.ahead: tuple[tuple[int, bool, bool], Future[Drawn]] | None = None
        self.waited = 0.0  # seconds, so far, that steps waited for rows

    def __call__(
        self,
        step: int,
        unlabelled: bool = False,
        strong: bool = False,
        given: Tensor | None = None,
        pool: Tensor | None = None,
    ) -> tuple[list[Offer], Tensor]:
        """This process's batches, and the uniforms (V, E, U) that decide the sampled labels of all
        views. `given`: (W, E, N) or, for each view its own, (V, 1, E, N) labels from which those of
        the unlabelled rows are taken. `pool`: (V, V + F, E) weights of the experts in each
        teacher."""
        drawn = self._next(step, unlabelled, strong)
        made, self.hidden_EU = list(drawn.batches), drawn.hidden_EU
        if pool is not None and unlabelled:
            anchor = self._anchor(drawn.rows_EU, pool[:, self.peers.count :])
            made = [replace(batch, anchor_VEUC=anchor) for batch in made]
        if given is not None:
            at_EU = torch.from_numpy(drawn.rows_EU).to(given.device)
            for number, view in enumerate(self.peers.mine):
                y_WEN = given[view] if given.dim() == 4 else given
                y_WEU = torch.stack([y_EN.gather(1, at_EU) for y_EN in y_WEN]).long()
                made[number] = replace(made[number], given_WEU=y_WEU)
        return made, drawn.draws_VEU

    def close(self) -> None:
        self.thread.shutdown()

    def _start(self) -> None:
        """In the thread: the current GPU is a thread's own."""
        if self.device.index is not None:
            torch.cuda.set_device(self.device)

    def _next(self, step: int, unlabelled: bool, strong: bool) -> Drawn:
        """What is asked for, and a start on what is probably asked for next."""
        begun, since = self.ahead, time.monotonic()
        self.ahead = None
        if begun is not None and begun[0] == (step, unlabelled, strong):
            drawn = begun[1].result()
        else:
            if begun is not None:
                wait([begun[1]])
            drawn = self._draw(step, unlabelled, strong)
        self.waited += time.monotonic() - since
        following = (step + 1, unlabelled, strong)
        self.ahead = following, self.thread.submit(self._draw, *following)
        return drawn

    def _draw(self, step: int, unlabelled: bool, strong: bool) -> Drawn:
        task, peers = self.task, self.peers
        rows_EL = self._rows(self.labelled, step, self.size_L)
        rows_EU, size_U = rows_EL[:, :0], 0
        if unlabelled:
            size_U = self.size_U
            rows_EU = self._rows(self.unlabelled, step, size_U)
        y_EL = self._labels(rows_EL)
        made = []
        for view, source in zip(peers.mine, task.inputs, strict=True):
            keep_U = self._keep(step, view, KEEP_U, size_U) if unlabelled else ()
            keep_L = self._keep(step, view, KEEP_L, self.size_L)
            batch = Offer(source(rows_EU), source(rows_EL), y_EL, keep_U, keep_L)
            if strong:
                noise_EUD = self.noise * self._noise(step, view, source.width)
                batch = replace(batch, strong_EUD=batch.emb_EUD + noise_EUD)
            made.append(batch)
        draws_VEU = np.empty((peers.count, len(task.seeds), size_U))
        if unlabelled:
            for view in range(peers.count):
                stream = view * PURPOSES + DRAW
                for e, seed in enumerate(task.seeds):
                    draws_VEU[view, e] = uniforms(seed, step, stream, size_U)
        own = torch.from_numpy(np.ascontiguousarray(part_of(draws_VEU, peers, 2)))
        own = own.to(self.device, non_blocking=True)
        return Drawn(made, own, rows_EU, self._labels(rows_EU))

    def _anchor(self, rows_EU: np.ndarray, weight_VFE: Tensor) -> list[Tensor]:
        """(E, U, C) for each student: what the F fixed experts know of these rows, weighted."""
        scores = [expert(rows_EU).to(self.dtype) for expert in self.task.fixed]
        anchor_V = []
        for weight_FE in weight_VFE:
            words = []
            for weight_E, log_p in zip(weight_FE, scores, strict=True):
                words.append(per_experiment(weight_E, log_p) * log_p)
            anchor_V.append(total(words))
        return anchor_V

    def _rows(self, pools: Sequence[Passes], step: int, size: int) -> np.ndarray:
        """This replica's, (E, n): each experiment draws from its own pool."""
        return part_of(np.stack([rows(step, size) for rows in pools]), self.peers, 1)

    def _labels(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.task.label[rows]).long().to(self.device, non_blocking=True)

    def _keep(self, step: int, view: int, purpose: int, size: int) -> list[Tensor]:
        seeds, stream = self.task.seeds, view * PURPOSES + purpose
        whole = probe.dropout(seeds, step, stream, size, self.shape, self.device, self.dtype)
        return [part_of(factor, self.peers, factor.dim() - 2) for factor in whole]

    def _noise(self, step: int, view: int, width: int) -> Tensor:
        seeds, stream = self.task.seeds, view * PURPOSES + NOISE
        whole = probe.noise(seeds, step, stream, self.size_U, width, self.device, self.dtype)
        return part_of(whole, self.peers, 1)
