"""A live view: the backbone that extract has frozen, with a linear head, both of which learn.

    pixels (B, 3, S, S) uint8 -> backbone -> (B, D) -> standardised as for probes -> logits (B, C)

Before its first step it gives what the cache holds, up to the rounding of float16.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from extract.models.backbones import Backbone
from train.algorithm.optimise import Forward
from train.algorithm.probe import Params, forward, in_chunks
from train.finetune.config import FinetuneConfig
from train.finetune.thaw import Learnt, blocks_of, forget_inside, thaw

BODY = "body."  # before the names of a body's parameters
PENALTY = 10.0  # of the head's first weights: ||W||^2 / 2 times this on the summed loss
ITERATIONS = 200
# bytes a number that learns, float32: alone its gradient, AdamW's two moments and the average; in a
# state of the step of co-training also itself, rate and decay, two gradients, and the next state
ALONE, TOGETHER = 16, 60


class Body(nn.Module):
    """A backbone, and the statistics by which probes standardise what it gives."""

    def __init__(self, backbone: Backbone, statistics: tuple[np.ndarray, np.ndarray]) -> None:
        super().__init__()
        self.backbone = backbone
        for name, values_D in zip(("mean_D", "std_D"), statistics, strict=True):
            self.register_buffer(name, torch.from_numpy(values_D.astype(np.float32)))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, D), in the dtype of the statistics."""
        return (self.backbone(pixels_BCHW) - self.mean_D) / self.std_D


class Live(nn.Module):
    """What is tuned. learnt: of the backbone, in the order of its parameters."""

    def __init__(
        self, backbone: Backbone, head: nn.Linear, statistics: tuple[np.ndarray, np.ndarray]
    ) -> None:
        super().__init__()
        self.body, self.head = Body(backbone, statistics), head
        self.learnt: list[Learnt] = []

    @property
    def backbone(self) -> Backbone:
        return self.body.backbone

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, C) logits, float32."""
        return self.head(self.body(pixels_BCHW))

    def thaw(self, config: FinetuneConfig) -> None:
        """From now on the backbone learns, as the mode says. Raises UsageError."""
        self.learnt = thaw(self.backbone.model, config)
        if config.checkpointing:
            forget_inside(self.backbone.model)

    def named(self) -> dict[str, nn.Parameter]:
        """All that learns, by name."""
        found = {learnt.name: learnt.parameter for learnt in self.learnt}
        return {**found, **dict(self.head.named_parameters("head"))}

    def groups(self, config: FinetuneConfig) -> list[dict]:
        """AdamW's: the backbone at the mode's rate, the head at its own."""
        decay, found = config.weight_decay, []
        for learnt in self.learnt:
            kept = decay if learnt.decays else 0.0
            lr = config.lr * learnt.scale
            found.append({"params": [learnt.parameter], "lr": lr, "weight_decay": kept})
        head = [(self.head.weight, decay), (self.head.bias, 0.0)]
        for parameter, kept in head:
            found.append({"params": [parameter], "lr": config.head_lr, "weight_decay": kept})
        return found


def fit_head(x_LD: np.ndarray, y_L: np.ndarray, classes: int) -> nn.Linear:
    """The logistic regression on standardised embeddings that the head begins as (LP-FT, Kumar et
    al. 2022): else the body would be bent towards a random one. L2 penalty, so strong that the
    labels are not yet known by heart. float64 inside; a class without a label has a column, too."""
    x, y = torch.from_numpy(x_LD.astype(np.float64)), torch.from_numpy(y_L.astype(np.int64))
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        fit = cross_entropy(x @ weight.T + bias, y, reduction="sum")
        whole = (fit + PENALTY / 2 * weight.square().sum()) / len(y)
        whole.backward()
        return whole

    solver.step(loss)
    head = nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def forward_of(body: Body) -> Forward:
    """The forward of a live view as the step of co-training takes it (train/algorithm/cotrain.py):
    of one experiment (E = 1), parameters of the probe and, with BODY before their names, of the
    body; inputs (1, B, 3, S, S) uint8."""

    def whole(params: Params, pixels_1BCHW: Tensor, keep: Sequence[Tensor]) -> Tensor:
        own = {name.removeprefix(BODY): p[0] for name, p in params.items() if BODY in name}
        probe = {name: p for name, p in params.items() if BODY not in name}
        emb_BD = functional_call(body, own, (pixels_1BCHW[0],))
        return forward(probe, emb_BD.unsqueeze(0).to(probe["b0"]), keep)

    def live(
        params: Params, pixels_1BCHW: Tensor, keep: Sequence[Tensor] = (), chunk: int = 0
    ) -> Tensor:
        """chunk: see `probe.forward`."""
        if 0 < chunk < pixels_1BCHW.shape[1]:
            return in_chunks(whole, params, pixels_1BCHW, keep, chunk)
        return whole(params, pixels_1BCHW, keep)

    return live


def params_of(body: Body, probe: Params) -> Params:
    """Of a live view whose body learns as it was thawed: what `forward_of` takes."""
    learning = {n: p for n, p in body.named_parameters() if p.requires_grad}
    return {**probe, **{f"{BODY}{n}": p.detach()[None] for n, p in learning.items()}}


@dataclass(frozen=True)
class Needs:
    """Bytes of the weights, and of what one image leaves behind for the gradient; how many numbers
    learn. once: bytes that are left behind whatever the number of images, such as weights with what
    is added to them; at_once: that are put together for a moment, where the rest is dealt out."""

    weights: int
    learnt: int
    image: int
    once: int = 0
    at_once: int = 0

    def dealt_out(self, processes: int) -> "Needs":
        """Of each of so many processes that have a part of it all (train/finetune/shards.py)."""
        weights = -(-self.weights // processes) + self.at_once
        return replace(self, weights=weights, learnt=-(-self.learnt // processes))


def needs_of(live: Live, pixels_BCHW: Tensor) -> Needs:
    """Measured, by what the backward pass of one image and of all of these would keep; on the CPU,
    so that nothing runs out of memory by it."""
    one, every = kept_by(live, pixels_BCHW[:1]), kept_by(live, pixels_BCHW)
    image = max(1, -(-(every - one) // max(1, len(pixels_BCHW) - 1)))
    weights = sum(parameter.nbytes for parameter in live.parameters())
    learnt = sum(parameter.numel() for parameter in live.named().values())
    return Needs(weights, learnt, image, max(0, one - image), _at_once(live))


def _at_once(live: Live) -> int:
    """Two blocks, since the next one is fetched ahead, what belongs to no block, and the gradients
    of all these; twice, since they go through a buffer."""
    sizes = [_with_gradients(block) for block in blocks_of(live.backbone.model)]
    outside = _with_gradients(live) - sum(sizes)
    return 2 * (outside + sum(sorted(sizes)[-2:]))


def _with_gradients(module: nn.Module) -> int:
    """Bytes."""
    return sum(p.nbytes * (1 + p.requires_grad) for p in module.parameters())


def kept_by(live: Live, pixels_BCHW: Tensor) -> int:
    """Bytes that these images leave behind for the gradient, besides the parameters."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = live(pixels_BCHW).sum()
    for parameter in live.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del loss
    return sum(kept.values())
