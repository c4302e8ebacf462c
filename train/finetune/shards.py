"""A view too large for one process: each holds a part of every parameter, and of all that AdamW
keeps of it (FSDP2: torch.distributed.fsdp.fully_shard; Zhao et al. 2023).

make finetune VIEW=dinov2-g14 DATA=photos/ MODE=full GPUS=4

A block of the backbone is put together when it is its turn, and its gradients are averaged and
dealt out again: what `Peers.average` does for processes that hold all of it.
"""

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from train.algorithm.peers import lost
from train.finetune.live import Live
from train.finetune.thaw import Learnt, blocks_of


def deal_out(live: Live, device: torch.device, processes: int) -> None:
    """From now on this process has its part of the live view, on the device; each of them calls
    this. What learns is another tensor than before."""
    # by number: whoever holds a parameter keeps all of it on the device
    places = {id(parameter): place for place, parameter in live.named_parameters()}
    learnt = [(places[id(one.parameter)], one.name, one.scale, one.decays) for one in live.learnt]
    live.learnt = []
    _straighten(live)
    mesh = init_device_mesh(device.type, (processes,))
    for block in blocks_of(live.backbone.model):
        fully_shard(block, mesh=mesh)
    fully_shard(live, mesh=mesh)
    dealt = dict(live.named_parameters())
    for place, name, scale, decays in learnt:
        live.learnt.append(Learnt(name, dealt[place], scale, decays))


def _straighten(live: Live) -> None:
    """FSDP cuts only what lies in one piece, channels first."""
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.data = parameter.data.contiguous()


def can_be_dealt_out(live: Live) -> bool:
    """FSDP cuts parameters along their first axis, and knows none that has two places."""
    places = list(live.named_parameters(remove_duplicate=False))
    return len(places) == len(dict(live.named_parameters())) and all(p.dim() for _, p in places)


def own_part(value: Tensor) -> Tensor:
    """What this process has of a tensor: all, where it was not dealt out. Its memory is shared."""
    return value.to_local() if isinstance(value, DTensor) else value


def with_part(like: Tensor, part: Tensor) -> Tensor:
    """A tensor that is dealt out as another one is, of which this process's part is given."""
    found = torch.empty_like(like)
    own_part(found).copy_(part)
    return found


def put_together(live: Live, keeps: bool = True) -> dict[str, Tensor]:
    """All of what learns, by name, on the CPU, of a process that keeps it; every one calls this."""
    found = {}
    assert isinstance(live, FSDPModule)
    live.reshard()  # what belongs to no block stays together after a forward pass alone
    with lost():
        for name, parameter in live.named().items():
            value = parameter.detach()
            assert isinstance(value, DTensor), name
            whole = value.full_tensor()
            if keeps:
                found[name] = whole.cpu()
    return found
