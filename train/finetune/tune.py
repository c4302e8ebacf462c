"""The loop: rows(seed, step) -> pictures -> a step of AdamW -> now and then a checkpoint.

A step is a pure function of what learns, its moments, and the step's number: a run that was killed
goes on to the same bytes.
"""

import math
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from base.errors import UNKNOWN, DataQualityError, PreemptedError
from base.progress import Progress
from train.algorithm.batches import Passes
from train.algorithm.optimise import newest
from train.algorithm.peers import Peers, lost_in_between, part_of
from train.algorithm.streams import Purpose, stream
from train.finetune.config import FinetuneConfig
from train.finetune.live import Live
from train.finetune.pictures import MIX, Pictures
from train.finetune.shards import own_part, with_part
from train.run.checkpoint import read_checkpoint, write_checkpoint
from train.run.log import Listener

JOB = "finetune"  # in the names of checkpoints
Batch = tuple[Tensor, Tensor]  # (B, 3, S, S) uint8 and (B, C) float32, of each image the shares


@dataclass
class Tuning:
    """What is tuned, one view alone, on what. peers: other processes with the same view, each with
    its part of a batch. dealt: and with its part of the view (train/finetune/shards.py). average:
    the moving average of what learns, where there is one."""

    lives: list[Live]
    pictures: list[Pictures]
    label_N: np.ndarray
    rows: Passes
    config: FinetuneConfig
    device: torch.device
    peers: Peers
    dealt: bool = False
    step: int = 0
    average: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.live,) = self.lives
        self.adam = torch.optim.AdamW(self.live.groups(self.config))
        self.rates = [group["lr"] for group in self.adam.param_groups]

    def batch(self, step: int) -> Batch:
        """What one step learns from."""
        config, seed = self.config, self.config.seed()
        places_B = part_of(np.arange(config.batch), self.peers)
        rows_B = self.rows(step, config.batch)[places_B]
        pixels = self.pictures[0](rows_B, places_B, seed, step)
        y_B = torch.from_numpy(self.label_N[rows_B]).long()
        share_BC = one_hot(y_B, self.live.head.out_features).float()
        if config.mixup:
            drawn = stream(seed, Purpose.TUNING, MIX, (0, 0, step))
            part = float(drawn.beta(config.mixup, config.mixup))
            other = torch.from_numpy(drawn.permutation(len(rows_B)))
            mixed = part * pixels.float() + (1 - part) * pixels[other].float()
            pixels = mixed.round().to(torch.uint8)
            share_BC = part * share_BC + (1 - part) * share_BC[other]
        return pixels, share_BC

    def learn(self, batch: Batch) -> float:
        """One step on a batch, so many images at a time; returns the loss of this process's part,
        the mean in nats."""
        with lost_in_between() if self.dealt else nullcontext():
            return self._learn(*batch)

    def _learn(self, pixels_BCHW: Tensor, share_BC: Tensor) -> float:
        factor = warm_and_cool(self.step, self.config)
        for group, lr in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = lr * factor
        self.adam.zero_grad()
        total = torch.zeros((), device=self.device)
        size = self.config.chunk or len(pixels_BCHW)
        for pixels, share in zip(pixels_BCHW.split(size), share_BC.split(size), strict=True):
            logits = self.live(pixels.to(self.device, non_blocking=True))
            loss = cross_entropy(logits, share.to(self.device), reduction="sum")
            loss = loss / len(pixels_BCHW)
            loss.backward()
            total += loss.detach()
        learning = self.live.named()
        for parameter in learning.values():
            if parameter.grad is not None and not self.dealt:  # then it is the mean already
                parameter.grad = self.peers.average(parameter.grad)
        torch.nn.utils.clip_grad_norm_(learning.values(), self.config.clip)
        self.adam.step()
        self.step += 1
        if self.config.ema:
            weight = newest(self.config.ema, self.step)
            for name, parameter in learning.items():
                before = self.average.setdefault(name, parameter.detach().clone())
                before.lerp_(parameter.detach(), weight)
        return float(total)

    def show(self) -> None:
        """What is kept in the end stands in the model: the moving average, where there is one."""
        with torch.no_grad():
            for name, parameter in self.live.named().items():
                if name in self.average:
                    parameter.copy_(self.average[name])

    def tensors(self) -> dict[str, Tensor]:
        """All that a step needs besides its number, of this process."""
        found = {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.live.named().items():
            found[f"value.{name}"] = parameter.detach()
            for moment, value in self.adam.state.get(parameter, {}).items():
                found[f"{moment}.{name}"] = value
        return {name: own_part(value).cpu().contiguous().clone() for name, value in found.items()}

    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Go on after so many steps."""
        self.step = step
        with torch.no_grad():
            for name, parameter in self.live.named().items():
                own_part(parameter).copy_(tensors[f"value.{name}"])
                if f"step.{name}" in tensors:  # else it has had no gradient, as a mask token
                    state = self.adam.state[parameter]
                    state["step"] = tensors[f"step.{name}"].clone()
                    for moment in ("exp_avg", "exp_avg_sq"):
                        state[moment] = with_part(parameter, tensors[f"{moment}.{name}"])
                if self.config.ema:
                    self.average[name] = with_part(parameter, tensors[f"average.{name}"])


def warm_and_cool(step: int, config: FinetuneConfig) -> float:
    """The factor of the learning rates at a step: a rise to 1, then a half cosine down to 0."""
    rise = math.ceil(config.warmup * config.steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / (config.steps - rise))


class Work(Protocol):
    """What is tuned, one view or several together. A step takes `config.chunk` images at a time."""

    lives: list[Live]
    pictures: list[Pictures]
    config: FinetuneConfig
    peers: Peers
    dealt: bool
    step: int

    def batch(self, step: int) -> Any: ...
    def learn(self, batch: Any) -> float: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def restore(self, step: int, tensors: dict[str, Tensor]) -> None: ...
    def show(self) -> None: ...


def tune(work: Work, folder: Path, title: str, stop: threading.Event, listener: Listener) -> None:
    """Take the steps that are left, from the last checkpoint of the run in `folder`; all processes
    together. listener: who is told of each. Raises PreemptedError after a stop signal (everything
    saved), DataQualityError where the loss is not finite."""
    checkpoints, peers = folder / "checkpoints", work.peers
    found = read_checkpoint(checkpoints, peers.rank, peers.ranks)
    if found is not None:
        record, tensors = found
        work.restore(record["step"], tensors)
    config = work.config
    with (
        Progress(title, config.steps, work.step, "steps", shown=peers.rank == 0) as progress,
        _ahead(work) as batches,
    ):
        while work.step < config.steps:
            with progress.clock("decode"):
                batch = next(batches)
            with progress.clock("model"):
                loss = work.learn(batch)
            if peers.any(not math.isfinite(loss)):
                raise _not_finite(title, work)
            progress.advance(1)
            listener.step(work.step)
            last, stopping = work.step == config.steps, peers.any(stop.is_set())
            if stopping or last or work.step % config.checkpoint_every == 0:
                _save(checkpoints, work)
            if stopping and not last:
                raise PreemptedError(
                    f"stopped at step {work.step:,} of {config.steps:,}, everything is saved; the "
                    "same command goes on from here"
                )


@contextmanager
def _ahead(work: Work) -> Generator[Iterator[Any]]:
    """The batches from now on; a thread makes the next one while one is learnt from."""
    thread = ThreadPoolExecutor(1, "pictures")

    def each() -> Iterator[Any]:
        following: Future[Any] = thread.submit(work.batch, work.step)
        for step in range(work.step + 1, work.config.steps + 1):
            batch = following.result()
            if step < work.config.steps:
                following = thread.submit(work.batch, step)
            yield batch

    try:
        yield each()
    finally:
        thread.shutdown(cancel_futures=True)


def _save(folder: Path, work: Work) -> None:
    record = {"method": JOB, "step": work.step, "adam_steps": work.step, "metrics_bytes": work.step}
    write_checkpoint(folder, record, work.tensors(), work.peers)


def _not_finite(title: str, work: Work) -> DataQualityError:
    error = DataQualityError(
        f"{title}: the loss is not finite at step {work.step:,}. Take a smaller learning rate, in "
        "a run of its own",
        {"--lr": f"{work.config.lr / 10:g}", "RUN": UNKNOWN},
    )
    error.of_all = True
    return error
