"""The probe: standardised embedding -> hidden layers (Linear, LayerNorm, ReLU, Dropout) -> logits,
for E experiments at once.

    layers = 0      a linear probe
    layers = 2      the MLP of the paper (no activation on the logits)
    members = 10    an ensemble: M such probes of different initial weights and dropout, trained
                    through their common logits

Parameters are a plain dict of tensors whose first axis is the experiment (and the second, in an
ensemble, the member), so that E seeds or settings train as one batched matrix product. Pure
functions: nothing here holds state.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm
from torch.utils.checkpoint import checkpoint

from train.algorithm.batches import uniforms

Params = dict[str, Tensor]
# of a flat tensor: a parameter begins at a multiple of ALIGN values, as torch aligns its memory,
# since alignment can change the last bit of a product; a row has a multiple of ROW values
ALIGN, ROW = 16, 1024


@dataclass(frozen=True)
class Shape:
    """`layers` hidden layers of `hidden` values, in each of `members` probes; the rate of
    dropout."""

    hidden: int
    layers: int
    members: int = 1
    dropout: float = 0.0


def init(
    seeds: Sequence[int], stream: int, width: int, classes: int, shape: Shape, dtype: torch.dtype
) -> Params:
    """Parameters of E = len(seeds) probes, Kaiming-uniform as torch.nn.Linear's default; a function
    of (seed, stream) alone.

    Shapes: w0 (E, D, H), b0 (E, 1, H), gain0 and shift0 (E, 1, H), …; with M > 1 members (E, M, D,
    H) and so on.
    """
    found: dict[str, list[Tensor]] = {}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + stream)
        for _ in range(shape.members):
            for name, value in _one(generator, width, classes, shape).items():
                found.setdefault(name, []).append(value.to(dtype))
    params = {}
    for name in sorted(found):
        stacked = torch.stack(found[name])
        params[name] = stacked if shape.members == 1 else stacked.unflatten(0, (-1, shape.members))
    return params


def _one(generator: torch.Generator, width: int, classes: int, shape: Shape) -> Params:
    """The parameters of one probe, float64."""
    sizes = [width] + [shape.hidden] * shape.layers + [classes]
    params = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        bound = 1 / math.sqrt(fan_in)
        for name, size in ((f"w{i}", (fan_in, fan_out)), (f"b{i}", (1, fan_out))):
            value = torch.empty(size, dtype=torch.float64)
            params[name] = value.uniform_(-bound, bound, generator=generator)
        if i < shape.layers:
            params[f"gain{i}"] = torch.ones(1, fan_out, dtype=torch.float64)
            params[f"shift{i}"] = torch.zeros(1, fan_out, dtype=torch.float64)
    return params


@dataclass(frozen=True)
class Layout:
    """Where the parameters of a probe lie in one flat tensor (E, P): in the order of their names,
    with zeros between and behind them.

    shapes: of each parameter, without the axis of the experiments. sizes: values of each, and of
    the zeros behind it, in turns.
    """

    shapes: dict[str, tuple[int, ...]]
    sizes: list[int]

    def flat(self, params: Params) -> Tensor:
        """Parameters (E, ...) -> a new (E, P)."""
        parts = []
        for name, pad in zip(self.shapes, self.sizes[1::2], strict=True):
            parts.append(params[name].flatten(1))
            if pad:
                parts.append(parts[-1].new_zeros(len(parts[-1]), pad))
        return torch.cat(parts, 1)

    def named(self, flat_EP: Tensor) -> Params:
        """(E, P) -> the parameters (E, ...), which lie in it."""
        params = {}
        parts = flat_EP.split(self.sizes, 1)[::2]
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            params[name] = part.view(-1, *shape)
        return params


def layout(params: Mapping[str, Tensor]) -> Layout:
    """That of these parameters (E, ...)."""
    shapes = {name: tuple(params[name].shape[1:]) for name in sorted(params)}
    sizes = []
    for shape in shapes.values():
        size = math.prod(shape)
        sizes += [size, -size % ALIGN]
    sizes[-1] += -sum(sizes) % ROW
    return Layout(shapes, sizes)


def forward(params: Params, x_EBD: Tensor, keep: Sequence[Tensor] = (), chunk: int = 0) -> Tensor:
    """(E, B, D) inputs -> (E, B, C) logits. keep: one (E, B, H) dropout factor per hidden layer
    ((E, M, B, H) in an ensemble), none in eval mode.

    chunk: compute so many rows at a time and forget the hidden values, which the backward pass then
    computes again: the memory of a batch of `chunk` rows, the gradient of the whole (gradient
    accumulation; Chen et al. 2016).
    """
    if 0 < chunk < x_EBD.shape[1]:
        return in_chunks(forward, params, x_EBD, keep, chunk)
    if params["b0"].dim() == 3:
        return _layers(params, x_EBD, keep)
    members = params["b0"].shape[1]
    apart = {name: p.flatten(0, 1) for name, p in params.items()}
    kept = [k.flatten(0, 1) for k in keep]
    z = _layers(apart, x_EBD.repeat_interleave(members, 0), kept)
    return combine(z.unflatten(0, (-1, members)))


def in_chunks(
    whole: Callable[..., Tensor], params: Params, x_EBD: Tensor, keep: Sequence[Tensor], chunk: int
) -> Tensor:
    """whole(params, x, keep) of so many rows at a time, see `forward`."""
    parts = []
    for first in range(0, x_EBD.shape[1], chunk):
        here = slice(first, first + chunk)
        given = params, x_EBD[:, here], [k[..., here, :] for k in keep]
        parts.append(checkpoint(whole, *given, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts, 1)


def _layers(params: Params, h: Tensor, keep: Sequence[Tensor]) -> Tensor:
    """`forward` of E probes, where all members of ensembles are probes of their own."""
    layers = sum(name.startswith("gain") for name in params)
    for i in range(layers):
        h = torch.baddbmm(params[f"b{i}"], h, params[f"w{i}"])
        h = layer_norm(h, h.shape[-1:])
        h = torch.relu(torch.addcmul(params[f"shift{i}"], h, params[f"gain{i}"]))
        if keep:
            h = h * keep[i]
    return torch.baddbmm(params[f"b{layers}"], h, params[f"w{layers}"])


def combine(z_EMBC: Tensor) -> Tensor:
    """The logits of an ensemble: the members' mean, the smaller the less they agree:
    mean / sqrt(1 + pi/8 variance) (MacKay 1992)."""
    return z_EMBC.mean(1) / torch.sqrt(1 + math.pi / 8 * z_EMBC.var(1, correction=0))


def dropout(
    seeds: Sequence[int],
    step: int,
    stream: int,
    batch: int,
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The dropout factors (0 or 1 / (1 - rate)) of one forward, per hidden layer as `forward` takes
    them, keyed by (seed, step, stream)."""
    rate, members = shape.dropout, shape.members
    if rate == 0 or shape.layers == 0:
        return []
    sizes = len(seeds), shape.layers, members, batch, shape.hidden
    draws_ELMBH = torch.empty(*sizes, device=device)
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
    draws = []
    for seed in seeds:
        generator = keyed(seed, step, stream, device)
        draws.append(torch.randn(batch, width, generator=generator, device=device))
    return torch.stack(draws).to(dtype)


def keyed(seed: int, step: int, stream: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(uniforms(seed, step, stream, 1)[0] * 2**53))
