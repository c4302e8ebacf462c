"""A view too large for one process: each holds a part of every parameter, and of all that AdamW
keeps of it (FSDP2: torch.distributed.fsdp.fully_shard; Zhao et al. 2023).

make finetune VIEW=dinov2-g14 DATA=photos/ MODE=full GPUS=4

A block of the backbone is put together when it is its turn, and its gradients are averaged and
dealt out again: what `Peers.average` does for processes that hold all of it.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from train.algorithm.peers import lost
from train.finetune.live import Live
from train.finetune.thaw import blocks_of


def deal_out(live: Live, device: torch.device, processes: int) -> None:
    """From now on this process has its part of the live view, on the device; each of them calls
    this. What learns is another tensor than before."""
    names = {parameter: name for name, parameter in live.named_parameters()}
    with torch.no_grad():
        for parameter in names:
            parameter.data = parameter.data.contiguous()  # else FSDP cannot cut it
    mesh = init_device_mesh(device.type, (processes,))
    for block in blocks_of(live.backbone.model):
        fully_shard(block, mesh=mesh)
    fully_shard(live, mesh=mesh)
    dealt = dict(live.named_parameters())
    live.learnt = [replace(one, parameter=dealt[names[one.parameter]]) for one in live.learnt]


def own_part(value: Tensor) -> Tensor:
    """What this process has of a tensor: all, where it was not dealt out. Its memory is shared."""
    return value.to_local() if isinstance(value, DTensor) else value


def with_part(like: Tensor, part: Tensor) -> Tensor:
    """A tensor that is dealt out as another one is, of which this process's part is given."""
    found = torch.empty_like(like)
    own_part(found).copy_(part)
    return found


def put_together(live: Live) -> dict[str, Tensor]:
    """All of what learns, by name, on the CPU; every process calls this."""
    found = {}
    assert isinstance(live, FSDPModule)
    live.reshard()  # what belongs to no block stays together after a forward pass alone
    with lost():
        for name, parameter in live.named().items():
            value = parameter.detach()
            assert isinstance(value, DTensor), name
            found[name] = value.full_tensor().cpu()
    return found
