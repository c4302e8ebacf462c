"""How views that may live in other processes speak to each other. This file alone knows ranks; the algorithm sees `Peers`.

Views exchange predictions and single numbers, never inputs or weights. View v lives on rank v mod W.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

import torch
from torch import Tensor

from cache_specs.errors import UsageError


class Peers(Protocol):
    """count: V, the views of all processes; mine: the numbers of this process's views, ascending; rank, ranks: its place."""

    count: int
    mine: list[int]
    rank: int
    ranks: int

    def exchange(self, mine: Sequence[Tensor]) -> list[Tensor]:
        """This process's tensors, one a view and of one shape -> those of all V views, in order, the same on every rank."""

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""

    def close(self) -> None: ...


class LocalPeers:
    """All views in one process."""

    rank, ranks = 0, 1

    def __init__(self, count: int) -> None:
        self.count, self.mine = count, list(range(count))

    def exchange(self, mine: Sequence[Tensor]) -> list[Tensor]:
        return list(mine)

    def any(self, flag: bool) -> bool:
        return flag

    def close(self) -> None:
        pass


class GroupPeers:
    """View v on rank v mod W of a torch.distributed group (NCCL on CUDA, gloo on the CPU), as torchrun describes it in the environment."""

    def __init__(self, count: int, device: torch.device, timeout_s: float = 120) -> None:
        import torch.distributed as dist

        self.dist, self.device = dist, device
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s),
                                device_id=device if device.type == "cuda" else None)
        self.rank, self.ranks, self.count = dist.get_rank(), dist.get_world_size(), count
        self.mine = list(range(self.rank, count, self.ranks))
        self.slots = -(-count // self.ranks)                # the most views that any rank has; lesser ranks send padding

    def exchange(self, mine: Sequence[Tensor]) -> list[Tensor]:
        sent = torch.stack([mine[min(slot, len(mine) - 1)] for slot in range(self.slots)]).contiguous()
        received = [torch.empty_like(sent) for _ in range(self.ranks)]
        self.dist.all_gather(received, sent)
        return [received[v % self.ranks][v // self.ranks] for v in range(self.count)]

    def any(self, flag: bool) -> bool:
        value = torch.tensor(int(flag), device=self.device)
        self.dist.all_reduce(value, self.dist.ReduceOp.MAX)
        return bool(value.item())

    def close(self) -> None:
        self.dist.destroy_process_group()


def make_peers(count: int, device: torch.device) -> LocalPeers | GroupPeers:
    """GroupPeers under torchrun, otherwise LocalPeers."""
    return GroupPeers(count, device) if under_torchrun() else LocalPeers(count)


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def my_rank() -> int:
    """This process's rank, known from the environment before any group is made."""
    return int(os.environ["RANK"]) if under_torchrun() else 0


def choose_device(device: str, gpus: int) -> torch.device:
    """auto, cpu, cuda or cuda:N -> this process's device. Raises UsageError when there is no such GPU."""
    count = torch.cuda.device_count()
    if device.startswith("cuda") and not count:
        raise UsageError(f"DEVICE={device}, but torch sees no CUDA GPU here; use DEVICE=cpu or leave it out")
    if device == "cpu" or not count:
        return torch.device("cpu")
    if gpus > (1 if ":" in device else count):
        raise UsageError(f"GPUS={gpus} with DEVICE={device}, but this machine has {count}; use GPUS={count} without a DEVICE, or DEVICE=cpu")
    chosen = torch.device(device if ":" in device else f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}")
    torch.cuda.set_device(chosen)
    return chosen
