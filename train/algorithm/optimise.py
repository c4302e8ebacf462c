"""One optimiser step for E experiments at once: Adam on the gradient that was clipped per
experiment, a pure function.

State, gradient, Adam and the moving average of the weights, as train/algorithm/cotrain.py and
train/algorithm/rivals.py use them. All parameters of a view lie in one tensor, (E, P): what is done
to each of them alike is done in one pass.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import log_softmax

from train.algorithm.probe import ROW, Layout, Params, forward, layout

Forward = Callable[[Params, Tensor, Sequence[Tensor], int], Tensor]

# torch.optim.Adam(fused=True) without its bookkeeping: one pass, over memory that is written over
fused_adam = functools.partial(
    torch._fused_adam_,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    amsgrad=False,
    maximize=False,
)


@dataclass(frozen=True)
class State:
    """One view: parameters and Adam's moments, (E, P) each, the number of Adam steps taken, the
    moving average of the parameters (None without one), and what else a method remembers from step
    to step ((E, ...) tensors). layout: which parameter lies where. forward: parameters and inputs
    to logits; a probe's, or that of a whole network (train/finetune/live.py)."""

    layout: Layout
    flat_EP: Tensor
    mean_EP: Tensor
    square_EP: Tensor
    steps: int = 0
    average_EP: Tensor | None = None
    memory: Params = field(default_factory=dict)
    forward: Forward = forward

    @functools.cached_property
    def params(self) -> Params:
        """The parameters by name, as `forward` takes them; autograd follows them."""
        named = self.layout.named(self.flat_EP)
        return {name: p.requires_grad_() for name, p in named.items()}

    def logits(self, x_EBD: Tensor, keep: Sequence[Tensor] = (), chunk: int = 0) -> Tensor:
        """(E, B, C) of these inputs; keep, chunk: see `probe.forward`."""
        return self.forward(self.params, x_EBD, keep, chunk)

    @property
    def shown(self) -> Params:
        """Those that are looked at: their moving average, where there is one."""
        flat_EP = self.flat_EP if self.average_EP is None else self.average_EP
        return self.layout.named(flat_EP)


@dataclass(frozen=True)
class Adam:
    """lr, decay: a number, or one for each experiment as (E,); clip: largest norm of the gradient
    of an experiment.

    Kingma & Ba 2015 with betas 0.9 and 0.999, eps 1e-8; the weight decay is decoupled (Loshchilov &
    Hutter 2019). `update` replaces all of it; the tests use plain gradient descent.
    """

    lr: float | Tensor = 1e-3
    clip: float = 1.0
    decay: float | Tensor = 0.0
    update: Callable[[State, Tensor], State] | None = None


def optimise(view: State, g_EP: Tensor, adam: Adam, own: bool = False) -> State:
    """The state after one step on the gradient. own: nobody else has the state, which is written
    over; memory is what this function waits for."""
    if adam.update is not None:
        return adam.update(view, g_EP)
    scale_E = (adam.clip / (norm(g_EP) + 1e-6)).clamp_max(1.0)
    clipped_EP = g_EP * per_experiment(scale_E, g_EP)
    parts = view.flat_EP, view.mean_EP, view.square_EP
    if not own:
        parts = view.flat_EP.clone(), view.mean_EP.clone(), view.square_EP.clone()
    flat_EP, mean_EP, square_EP = parts
    if isinstance(adam.decay, Tensor) or adam.decay:
        flat_EP *= 1 - per_experiment(adam.lr, g_EP) * per_experiment(adam.decay, g_EP)
    rates = _rates(adam.lr).expand(len(g_EP))
    for lr, t, m, s, g in zip(rates, *parts, clipped_EP, strict=True):
        steps = torch.full((), view.steps + 1.0, device=t.device)
        fused_adam([t], [g], [m], [s], [], [steps], lr=lr)
    return replace(
        view, flat_EP=flat_EP, mean_EP=mean_EP, square_EP=square_EP, steps=view.steps + 1
    )


def _rates(lr: float | Tensor) -> Tensor:
    """As the fused step takes them: of a GPU's memory it reads float32 alone."""
    if isinstance(lr, Tensor):
        return lr.float() if lr.is_cuda else lr
    return torch.tensor(lr, dtype=torch.float64)


def norm(g_EP: Tensor) -> Tensor:
    """(E,), of each row. In two sums: one over a whole row would be dealt out to threads, and then
    E = 1 would not add up in the order of E = 2."""
    return vector_norm(vector_norm(g_EP.unflatten(1, (-1, ROW)), dim=-1), dim=-1)


def inner(one_EP: Tensor, other_EP: Tensor) -> Tensor:
    """(E,), the inner product of each row, likewise."""
    return (one_EP * other_EP).unflatten(1, (-1, ROW)).sum(-1).sum(-1)


@overload
def per_experiment(value: Tensor, like: Tensor) -> Tensor: ...
@overload
def per_experiment(value: float, like: Tensor) -> float: ...
def per_experiment(value: float | Tensor, like: Tensor) -> float | Tensor:
    """(E,) -> (E, 1, …) as `like` has axes; a number stays one."""
    if isinstance(value, Tensor):
        return value.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
    return value


def total(terms: Sequence[Tensor]) -> Tensor:
    """Their sum, added up in their order."""
    return functools.reduce(torch.add, terms)


def detached(values: Sequence[Tensor]) -> list[Tensor]:
    """The same numbers, without the way they came about."""
    return [value.detach() for value in values]


def average(view: State, decay: float) -> State:
    """The moving average of the parameters after a step: a <- decay a + (1 - decay) t, with decay
    small in the first steps."""
    if decay == 0:
        return view
    weight = newest(decay, view.steps)
    before_EP = view.flat_EP if view.average_EP is None else view.average_EP
    return replace(view, average_EP=torch.lerp(before_EP, view.flat_EP, weight))


def newest(decay: float, steps: int) -> float:
    """What the newest parameters weigh in their moving average after so many steps."""
    return 1 - min(decay, (1 + steps) / (10 + steps))


def ce(logits_EBC: Tensor, y_EB: Tensor, weight_EB: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats, the mean over the rows of weight * CE: (E,)."""
    logits = logits_EBC if logits_EBC.dtype == torch.float64 else logits_EBC.float()
    loss_EB = -log_softmax(logits, -1).gather(-1, y_EB.unsqueeze(-1)).squeeze(-1)
    return (loss_EB if weight_EB is None else weight_EB * loss_EB).mean(1)


def grad(loss_E: Tensor, view: State, keep_graph: bool = False) -> Tensor:
    """(E, P), the gradient of each experiment's loss for its own parameters. The experiments do not
    mix: their sum's gradient is theirs. What plays no part, as the mask token of a backbone, has a
    gradient of zero."""
    params = view.params
    found = torch.autograd.grad(
        loss_E.sum(),
        list(params.values()),
        retain_graph=keep_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return view.layout.flat(dict(zip(params, found, strict=True)))


def fresh(params: Params, forward: Forward = forward) -> State:
    """A state before its first step."""
    where = layout(params)
    flat_EP = where.flat(params)
    zeros = torch.zeros_like(flat_EP), torch.zeros_like(flat_EP)
    return State(where, flat_EP, *zeros, forward=forward)
