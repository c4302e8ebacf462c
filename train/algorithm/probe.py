"""The probe: standardised embedding -> hidden layers (Linear, LayerNorm, ReLU, Dropout) -> logits, for E experiments at once.

    layers = 0      a linear probe
    layers = 2      the MLP of the paper (no activation on the logits)
    members = 10    an ensemble: M such probes of different initial weights and dropout, trained through their common logits

Parameters are a plain dict of tensors whose first axis is the experiment (and the second, in an ensemble, the member), so that E seeds or
settings train as one batched matrix product. Pure functions: nothing here holds state.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from train.algorithm.batches import uniforms

Params = dict[str, Tensor]


def init(
    seeds: Sequence[int],
    stream: int,
    width: int,
    hidden: int,
    layers: int,
    classes: int,
    dtype: torch.dtype,
    members: int = 1,
) -> Params:
    """Parameters of E = len(seeds) probes, Kaiming-uniform as torch.nn.Linear's default; a function of (seed, stream) alone.

    Shapes: w0 (E, D, H), b0 (E, 1, H), gain0 and shift0 (E, 1, H), …; with M > 1 members (E, M, D, H) and so on.
    """
    sizes = [width] + [hidden] * layers + [classes]
    params: dict[str, list[Tensor]] = {}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + stream)
        for _ in range(members):
            for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
                bound = 1 / math.sqrt(fan_in)
                for name, shape in ((f"w{i}", (fan_in, fan_out)), (f"b{i}", (1, fan_out))):
                    value = torch.empty(shape, dtype=torch.float64).uniform_(
                        -bound, bound, generator=generator
                    )
                    params.setdefault(name, []).append(value.to(dtype))
                if i < layers:
                    params.setdefault(f"gain{i}", []).append(torch.ones(1, fan_out, dtype=dtype))
                    params.setdefault(f"shift{i}", []).append(torch.zeros(1, fan_out, dtype=dtype))
    stacked = {name: torch.stack(params[name]) for name in sorted(params)}
    return (
        stacked
        if members == 1
        else {name: value.unflatten(0, (-1, members)) for name, value in stacked.items()}
    )


def forward(params: Params, x_EBD: Tensor, keep: Sequence[Tensor] = (), chunk: int = 0) -> Tensor:
    """(E, B, D) inputs -> (E, B, C) logits. keep: one (E, B, H) dropout factor per hidden layer ((E, M, B, H) in an ensemble), none in eval mode.

    chunk: compute so many rows at a time and forget the hidden values, which the backward pass then computes again: the memory of a batch
    of `chunk` rows, the gradient of the whole (gradient accumulation; Chen et al. 2016).
    """
    if 0 < chunk < x_EBD.shape[1]:
        parts = [
            (x_EBD[:, first : first + chunk], [k[..., first : first + chunk, :] for k in keep])
            for first in range(0, x_EBD.shape[1], chunk)
        ]
        return torch.cat(
            [
                checkpoint(forward, params, x, k, use_reentrant=False, preserve_rng_state=False)
                for x, k in parts
            ],
            1,
        )
    members = params["b0"].shape[1] if params["b0"].dim() == 4 else 0
    if members:
        params, keep = (
            {name: p.flatten(0, 1) for name, p in params.items()},
            [k.flatten(0, 1) for k in keep],
        )
        x_EBD = x_EBD.repeat_interleave(members, 0)
    layers = sum(name.startswith("gain") for name in params)
    h = x_EBD
    for i in range(layers):
        h = torch.baddbmm(params[f"b{i}"], h, params[f"w{i}"])
        h = (
            torch.nn.functional.layer_norm(h, h.shape[-1:]) * params[f"gain{i}"]
            + params[f"shift{i}"]
        )
        h = torch.relu(h)
        if keep:
            h = h * keep[i]
    z = torch.baddbmm(params[f"b{layers}"], h, params[f"w{layers}"])
    return combine(z.unflatten(0, (-1, members))) if members else z


def combine(z_EMBC: Tensor) -> Tensor:
    """The logits of an ensemble: the members' mean, the smaller the less they agree: mean / sqrt(1 + pi/8 variance) (MacKay 1992)."""
    return z_EMBC.mean(1) / torch.sqrt(1 + math.pi / 8 * z_EMBC.var(1, correction=0))


def dropout(
    seeds: Sequence[int],
    step: int,
    stream: int,
    batch: int,
    hidden: int,
    layers: int,
    rate: float,
    device: torch.device,
    dtype: torch.dtype,
    members: int = 1,
) -> list[Tensor]:
    """The dropout factors (0 or 1 / (1 - rate)) of one forward, per hidden layer as `forward` takes them, keyed by (seed, step, stream)."""
    if rate == 0 or layers == 0:
        return []
    draws_ELMBH = torch.empty(len(seeds), layers, members, batch, hidden, device=device)
    for draws_LMBH, seed in zip(draws_ELMBH, seeds, strict=True):
        draws_LMBH.uniform_(generator=keyed(seed, step, stream, device))
    factor_LEMBH = draws_ELMBH.ge_(rate).to(dtype).div_(1 - rate).transpose(0, 1)
    return list((factor_LEMBH if members > 1 else factor_LEMBH.squeeze(2)).unbind(0))


def noise(
    seeds: Sequence[int],
    step: int,
    stream: int,
    batch: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """(E, B, D) standard normal draws, keyed by (seed, step, stream)."""
    return torch.stack(
        [
            torch.randn(batch, width, generator=keyed(seed, step, stream, device), device=device)
            for seed in seeds
        ]
    ).to(dtype)


def keyed(seed: int, step: int, stream: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(uniforms(seed, step, stream, 1)[0] * 2**53))
