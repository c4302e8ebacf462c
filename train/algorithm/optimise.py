"""One optimiser step for E experiments at once: Adam on the gradient that was clipped per
experiment, a pure function.

State, gradient, Adam and the moving average of the weights, as train/algorithm/cotrain.py and
train/algorithm/rivals.py use them.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from train.algorithm.probe import Params


@dataclass(frozen=True)
class State:
    """One view: parameters and Adam's moments (dicts of (E, ...) tensors), the number of Adam steps
    taken, the moving average of the parameters (empty without one), and what else a method
    remembers from step to step ((E, ...) tensors)."""

    params: Params
    mean: Params
    square: Params
    steps: int
    average: Params = field(default_factory=dict)
    memory: Params = field(default_factory=dict)


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
    update: Callable[[State, Params], State] | None = None


def optimise(view: State, gradient: Params, adam: Adam) -> State:
    """The state after one step on the gradient."""
    if adam.update is not None:
        return adam.update(view, gradient)
    # two sums: a sum over a whole tensor is dealt out to threads, and then E = 1 would not add up
    # in the order of E = 2
    norm_E = total([g.square().sum(-1).flatten(1).sum(1) for g in gradient.values()]).sqrt()
    scale_E = (adam.clip / (norm_E + 1e-6)).clamp_max(1.0)
    steps = view.steps + 1
    new, mean, square = {}, {}, {}
    for name, g in gradient.items():
        old = view.params[name].detach()
        rate, decay = per_experiment(adam.lr, g), per_experiment(adam.decay, g)
        # from here on g is ours, and written over: memory is what this loop waits for
        g = g * per_experiment(scale_E, g)
        mean[name] = torch.lerp(view.mean[name], g, 0.1)
        square[name] = torch.lerp(view.square[name], g.mul_(g), 0.001)
        denominator = torch.div(square[name], 1 - 0.999**steps, out=g).sqrt_().add_(1e-8)
        if isinstance(adam.decay, Tensor) or adam.decay:
            old = old * (1 - rate * decay)
        change = (rate / (1 - 0.9**steps) * mean[name]).div_(denominator)
        new[name] = torch.sub(old, change, out=change).requires_grad_()
    return replace(view, params=new, mean=mean, square=square, steps=steps)


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
    weight = 1 - min(decay, (1 + view.steps) / (10 + view.steps))
    averages = {}
    for name, p in view.params.items():
        now = p.detach()
        averages[name] = torch.lerp(view.average.get(name, now), now, weight)
    return replace(view, average=averages)


def ce(logits_EBC: Tensor, y_EB: Tensor, weight_EB: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats, the mean over the rows of weight * CE: (E,)."""
    logits = logits_EBC if logits_EBC.dtype == torch.float64 else logits_EBC.float()
    loss_EB = -log_softmax(logits, -1).gather(-1, y_EB.unsqueeze(-1)).squeeze(-1)
    return (loss_EB if weight_EB is None else weight_EB * loss_EB).mean(1)


def grad(loss_E: Tensor, params: Params, keep_graph: bool = False) -> Params:
    """The gradient of each experiment's loss for its own parameters. The experiments do not mix:
    their sum's gradient is theirs."""
    found = torch.autograd.grad(loss_E.sum(), list(params.values()), retain_graph=keep_graph)
    return dict(zip(params, found, strict=True))


def live(view: State) -> State:
    """The same state with parameters that autograd follows."""
    followed = {name: p.detach().requires_grad_() for name, p in view.params.items()}
    return replace(view, params=followed)


def fresh(params: Params) -> State:
    """A state before its first step."""
    mean = {name: torch.zeros_like(p) for name, p in params.items()}
    square = {name: torch.zeros_like(p) for name, p in params.items()}
    return State(params, mean, square, 0)
