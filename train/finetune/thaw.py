"""What learns of a frozen backbone, and at which rate.

    lora    W + (alpha / rank) B A for the weights W of all queries, keys and values, B at first
            zero (Hu et al. 2022; where one matrix holds all three, an A and a B for each)
    norms   the gains and shifts of all norms
    full    all parameters, each block at `layer_decay` times the rate of the next (Bao et al.
            2022)

The model stays in eval mode: the statistics of BatchNorm are those that were published, dropout and
drop-path do nothing, and what is learnt is what is extracted afterwards.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from base.errors import UsageError
from train.finetune.config import FinetuneConfig

JOINT = re.compile(r"(?:^|\.)(?:in_proj_weight|qkv\.weight)$")  # queries, keys and values in one
SINGLE = re.compile(r"(?:^|\.)(?:q|k|v|query|key|value|q_proj|k_proj|v_proj)\.weight$")
BLOCK = re.compile(r"^(.*?\d+(?:\.blocks\.\d+)?)\.")  # of the names of a block's parameters
LORA = "lora"


@dataclass(frozen=True)
class Learnt:
    """A parameter that learns. scale: of the mode's learning rate; decays: by weight decay."""

    name: str
    parameter: nn.Parameter
    scale: float = 1.0
    decays: bool = True


class LowRank(nn.Module):
    """W -> W + scale * (B_1 A_1 above B_2 A_2 …), for each of the `parts` of W's rows."""

    def __init__(
        self, weight_OI: Tensor, parts: int, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        rows, width = weight_OI.shape
        if rank > min(rows // parts, width):
            raise UsageError(
                f"--rank {rank} must be at most {min(rows // parts, width)}: the weights are "
                f"{rows // parts} x {width}"
            )
        bound = 1 / math.sqrt(width)
        a = torch.empty(parts, rank, width).uniform_(-bound, bound, generator=generator)
        self.a_PRI = nn.Parameter(a.to(weight_OI))
        self.b_POR = nn.Parameter(torch.zeros(parts, rows // parts, rank).to(weight_OI))
        self.scale = alpha / rank

    def forward(self, weight_OI: Tensor) -> Tensor:
        return weight_OI + self.scale * (self.b_POR @ self.a_PRI).flatten(0, 1)


def thaw(model: nn.Module, config: FinetuneConfig) -> list[Learnt]:
    """What learns from now on. Raises UsageError where the mode finds nothing to tune."""
    found = MODES[config.mode](model, config)
    if not found:
        raise UsageError(
            f"MODE={config.mode}: this model has no {WANTED[config.mode]}; take another mode",
            instead={"MODE": "norms" if config.mode == LORA else "full"},
        )
    for learnt in found:
        learnt.parameter.requires_grad_(True)
    return found


def _lora(model: nn.Module, config: FinetuneConfig) -> list[Learnt]:
    generator, found = torch.Generator().manual_seed(config.seed()), []
    for name, weight_OI in list(model.named_parameters()):
        parts = 3 if JOINT.search(name) else int(bool(SINGLE.search(name)))
        if not parts or weight_OI.dim() != 2:
            continue
        owner, _, kind = name.rpartition(".")
        low = LowRank(weight_OI, parts, config.rank, config.alpha, generator)
        parametrize.register_parametrization(model.get_submodule(owner), kind, low, unsafe=True)
        found += [Learnt(f"{name}.a", low.a_PRI), Learnt(f"{name}.b", low.b_POR)]
    return found


def _norms(model: nn.Module, config: FinetuneConfig) -> list[Learnt]:
    found = []
    for prefix, module in model.named_modules():
        if _is_norm(module):
            for name, parameter in module.named_parameters(prefix, recurse=False):
                found.append(Learnt(name, parameter, decays=False))
    return found


def _is_norm(module: nn.Module) -> bool:
    return any("norm" in kind.__name__.lower() for kind in type(module).__mro__)


def _full(model: nn.Module, config: FinetuneConfig) -> list[Learnt]:
    """What stands before the first block in the model's own order is below it, what stands behind
    the last one above."""
    depths, blocks = [], []
    for name, _ in model.named_parameters():
        block = BLOCK.match(name)
        if block and block[1] not in blocks:
            blocks.append(block[1])
        depths.append(blocks.index(block[1]) + 1 if block else None)
    found, begun = [], False
    for depth, (name, parameter) in zip(depths, model.named_parameters(), strict=True):
        begun |= depth is not None
        level = depth if depth is not None else (len(blocks) + 1) * begun
        scale = config.layer_decay ** (len(blocks) + 1 - level)
        found.append(Learnt(name, parameter, scale, decays=parameter.dim() > 1))
    return found


MODES: dict[str, Callable[[nn.Module, FinetuneConfig], list[Learnt]]] = {
    LORA: _lora,
    "norms": _norms,
    "full": _full,
}
WANTED = {
    LORA: "projections of queries, keys and values",
    "norms": "norms that learn",
    "full": "parameters",
}


def merge(model: nn.Module) -> None:
    """Write what was added to weights into them; from now on the model is one as it was."""
    for module in list(model.modules()):
        added = getattr(module, "parametrizations", None)
        if isinstance(added, nn.ModuleDict):
            for name in list(added):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def forget_inside(model: nn.Module) -> int:
    """From now on the blocks' inner values are computed again for the gradient (Chen et al. 2016).
    Returns the number of blocks."""
    blocks = blocks_of(model)
    for block in blocks:
        block.forward = _forgetful(block.forward)
    return len(blocks)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, or of each stage, in the model's order."""
    blocks = [block for chain in _chains(model) for block in chain]
    return list(dict.fromkeys(blocks))  # one may have two places


def _chains(model: nn.Module) -> list[Sequence[nn.Module]]:
    """Modules of one kind, one after the other, that hold no such chain themselves."""
    found: list[Sequence[nn.Module]] = []
    for module in model.modules():
        parts = list(module) if isinstance(module, nn.ModuleList | nn.Sequential) else []
        alike = len(parts) > 1 and len({type(part) for part in parts}) == 1
        if alike and not any(_chains(part) for part in parts):
            found.append(parts)
    return found


def _forgetful(forward: Callable[..., Any]) -> Callable[..., Any]:
    def again(*inputs: Any, **named: Any) -> Any:
        # nothing inside is drawn, and another thread draws pictures from the one generator
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **named)

    return again
