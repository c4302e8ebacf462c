"""A small step of the algorithm in float64, and its gradient by finite differences."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from train.algorithm import probe
from train.algorithm.cotrain import Batch, StepRule
from train.algorithm.optimise import Adam, State, fresh
from train.algorithm.probe import Params

E, U, L, C, D, H = 2, 7, 6, 4, 5, 8


RATE = 0.05


def descend(view: State, g_EP: Tensor) -> State:
    return dataclasses.replace(view, flat_EP=view.flat_EP - RATE * g_EP, steps=view.steps + 1)


PLAIN = StepRule(Adam(update=descend))


def setup(
    views: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    members: int = 1,
    rows: tuple[int, int] = (U, L),
) -> tuple[list[State], list[Batch], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    y = torch.randint(C, (E, rows[1]), generator=generator)
    shape = probe.Shape(H, 2, members)
    states = [fresh(probe.init(range(E), v, D + v, C, shape, dtype)) for v in range(views)]
    first = (E,) if members == 1 else (E, members)

    def keep(n: int) -> list[Tensor]:
        """Of two layers."""
        kept = [torch.rand(*first, n, H, generator=generator) > 0.2 for _ in range(2)]
        return [(one / 0.8).to(dtype) for one in kept]

    batches = []
    for v in range(views):
        keep_U, keep_L = keep(rows[0]), keep(rows[1])
        emb_EUD, emb_ELD = 3 * normal(E, rows[0], D + v), 3 * normal(E, rows[1], D + v)
        batches.append(Batch(emb_EUD, emb_ELD, y, keep_U, keep_L))
    return states, batches, torch.rand(views, E, rows[0], generator=generator, dtype=torch.float64)


def flat(params: Params) -> Tensor:
    return torch.cat([p.detach().flatten(1) for p in params.values()], 1)


def unflat(vector: Tensor, like: Params) -> Params:
    parts = vector.split([p[0].numel() for p in like.values()], 1)
    return {
        name: part.reshape(p.shape) for (name, p), part in zip(like.items(), parts, strict=True)
    }


def numeric_gradient(loss: Callable[[Params], Tensor], params: Params, eps: float = 1e-6) -> Tensor:
    """(E, P) central differences of an (E,) loss; experiments do not mix, so one probe serves all
    of them."""
    at, columns = flat(params), []
    for i in range(at.shape[1]):
        step = torch.zeros_like(at)
        step[:, i] = eps
        columns.append(
            (loss(unflat(at + step, params)) - loss(unflat(at - step, params))) / (2 * eps)
        )
    return torch.stack(columns, 1)
