"""The probe: standardised embedding -> hidden layers (Linear, LayerNorm, ReLU, Dropout) -> logits, for E experiments at once.

Parameters are a plain dict of tensors whose first axis is the experiment, so that E seeds or settings train as one batched
matrix product. Pure functions: nothing here holds state.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from train.batches import uniforms

Params = dict[str, Tensor]


def init(seeds: Sequence[int], stream: int, width: int, hidden: int, layers: int, classes: int, dtype: torch.dtype) -> Params:
    """Parameters of E = len(seeds) probes, Kaiming-uniform as torch.nn.Linear's default; a function of (seed, stream) alone."""
    sizes = [width] + [hidden] * layers + [classes]
    params: dict[str, list[Tensor]] = {}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + stream)
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = 1 / math.sqrt(fan_in)
            for name, shape in ((f"w{i}", (fan_in, fan_out)), (f"b{i}", (1, fan_out))):
                value = torch.empty(shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
                params.setdefault(name, []).append(value.to(dtype))
            if i < layers:
                params.setdefault(f"gain{i}", []).append(torch.ones(1, fan_out, dtype=dtype))
                params.setdefault(f"shift{i}", []).append(torch.zeros(1, fan_out, dtype=dtype))
    return {name: torch.stack(params[name]) for name in sorted(params)}


def forward(params: Params, x_EBD: Tensor, keep: Sequence[Tensor] = ()) -> Tensor:
    """(E, B, D) inputs -> (E, B, C) logits. keep: one (E, B, H) dropout factor per hidden layer, none in eval mode."""
    layers = sum(name.startswith("gain") for name in params)
    h = x_EBD
    for i in range(layers):
        h = torch.baddbmm(params[f"b{i}"], h, params[f"w{i}"])
        h = torch.nn.functional.layer_norm(h, h.shape[-1:]) * params[f"gain{i}"] + params[f"shift{i}"]
        h = torch.relu(h)
        if keep:
            h = h * keep[i]
    return torch.baddbmm(params[f"b{layers}"], h, params[f"w{layers}"])


def dropout(seeds: Sequence[int], step: int, stream: int, batch: int, hidden: int, layers: int, rate: float, device: torch.device,
            dtype: torch.dtype) -> list[Tensor]:
    """The dropout factors (0 or 1 / (1 - rate)) of one forward: per hidden layer (E, B, H), keyed by (seed, step, stream)."""
    if rate == 0:
        return []
    draws = []
    for seed in seeds:
        key = int(uniforms(seed, step, stream, 1)[0] * 2**62)
        generator = torch.Generator(device).manual_seed(key)
        draws.append(torch.rand(batch, layers, hidden, generator=generator, device=device))
    factor_EBLH = (torch.stack(draws) >= rate).to(dtype) / (1 - rate)
    return list(factor_EBLH.unbind(2))
