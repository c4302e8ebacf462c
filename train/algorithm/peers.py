"""How views that may live in other processes speak to each other. In a step, this file alone
knows ranks; the algorithm sees `Peers`.

Views exchange predictions and single numbers, never inputs or weights. With W <= V ranks view v
lives on rank v mod W, so a rank may have several views. With W = R * V ranks each view has R
replicas: rank r has view r mod V and the r // V-th part of each batch's rows; the replicas of a
view average their gradients, and the first replicas speak to the first, the second to the second.
"""

import contextlib
import os
import re
from collections.abc import Generator, Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from base.devices import devices
from base.limits import is_out_of_memory
from train.algorithm.ranks import refuse_ranks, under_torchrun

OF_CONNECTIONS = re.compile(r"gloo|NCCL|[Cc]onnection|[Ss]ocket|[Tt]imed out")
Rows = TypeVar("Rows", Tensor, np.ndarray)


class Peers(Protocol):
    """count: V, the views of all processes; mine: the numbers of this process's views, ascending;
    rank, ranks: its place; replica, replicas: which part of the rows of a batch it has."""

    count: int
    mine: list[int]
    rank: int
    ranks: int
    replica: int
    replicas: int

    def exchange(self, mine: Sequence[Tensor]) -> list[Tensor]:
        """This process's tensors, one a view and of one shape -> those of all V views, in order,
        the same on every rank."""

    def average(self, value: Tensor) -> Tensor:
        """The mean over the replicas of a view, whose parts of a batch are equally large."""

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""

    def close(self) -> None: ...


class LostError(RuntimeError):
    """What was to be exchanged was not: another process is gone, or waits no longer."""


class LocalPeers:
    """All views in one process."""

    rank, ranks, replica, replicas = 0, 1, 0, 1

    def __init__(self, count: int) -> None:
        self.count, self.mine = count, list(range(count))

    def exchange(self, mine: Sequence[Tensor]) -> list[Tensor]:
        return list(mine)

    def average(self, value: Tensor) -> Tensor:
        return value

    def any(self, flag: bool) -> bool:
        return flag

    def close(self) -> None:
        pass


class OneOfSeveral(LocalPeers):
    """One process of several that are not there: the others would say what it says. To see what it
    takes."""

    def __init__(self, count: int, ranks: int, rank: int) -> None:
        self.count, self.ranks, self.rank = count, ranks, rank
        across = min(ranks, count)
        self.mine = list(range(rank % across, count, across))
        self.replica, self.replicas = rank // count, max(1, ranks // count)

    def exchange(self, mine: Sequence[Tensor]) -> list[Tensor]:
        return [mine[view % len(mine)] for view in range(self.count)]


class GroupPeers:
    """The views on the ranks of a torch.distributed group (NCCL on CUDA, gloo on the CPU), as
    torchrun describes it in the environment."""

    def __init__(self, count: int, device: torch.device, timeout_s: float = 120) -> None:
        self.count, self.device = count, device
        timeout = timedelta(seconds=timeout_s)
        _join(device, timeout)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        refuse_ranks(self.ranks, count)
        self.replica, self.replicas = 0, 1
        if self.ranks > count:
            self.replica, self.replicas = self.rank // count, self.ranks // count
        self.across = min(self.ranks, count)  # ranks that have all views among them
        self.mine = list(range(self.rank % self.across, count, self.across))
        # the most views that any rank has; lesser ranks send padding
        self.slots = -(-count // self.across)
        # the group of all views of one replica; of all replicas of one view
        self.views: dist.ProcessGroup | None = None
        self.twins: dist.ProcessGroup | None = None
        if self.replicas > 1:
            self.views, self.twins = self._groups(timeout)

    def _groups(self, timeout: timedelta) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
        """Every rank must make every group, in one order."""
        count, replicas = self.count, range(self.replicas)
        views = [[part * count + v for v in range(count)] for part in replicas]
        twins = [[part * count + v for part in replicas] for v in range(count)]
        made = [dist.new_group(ranks, timeout=timeout) for ranks in views + twins]
        mine, own = made[self.replica], made[self.replicas + self.rank % count]
        assert isinstance(mine, dist.ProcessGroup) and isinstance(own, dist.ProcessGroup)
        return mine, own

    def exchange(self, mine: Sequence[Tensor]) -> list[Tensor]:
        padded = [mine[min(slot, len(mine) - 1)] for slot in range(self.slots)]
        sent = torch.stack(padded).contiguous()
        received = [torch.empty_like(sent) for _ in range(self.across)]
        with lost():
            dist.all_gather(received, sent, self.views)
        return [received[v % self.across][v // self.across] for v in range(self.count)]

    def average(self, value: Tensor) -> Tensor:
        if self.replicas == 1:
            return value
        summed = value.contiguous().clone()
        with lost():
            dist.all_reduce(summed, group=self.twins)
        return summed / self.replicas

    def any(self, flag: bool) -> bool:
        value = torch.tensor(int(flag), device=self.device)
        with lost():
            dist.all_reduce(value, dist.ReduceOp.MAX)
            return bool(value.item())

    def close(self) -> None:
        dist.destroy_process_group()


@contextlib.contextmanager
def lost() -> Generator[None]:
    """Raise LostError for what NCCL and gloo say of a connection."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise LostError(str(error)) from error


@contextlib.contextmanager
def lost_in_between() -> Generator[None]:
    """The same for what computes and exchanges at once: only what is said of a connection."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or OF_CONNECTIONS.search(str(error))):
            raise
        raise LostError(str(error)) from error


def _join(device: torch.device, timeout: timedelta) -> None:
    """Become a member of the group that the environment describes."""
    store, rank, ranks = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # a restarted torchrun keeps its store, and with it the addresses of the dead
        store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timeout,
        device_id=device if gpu else None,
    )


def part_of(rows: Rows, peers: Peers, axis: int = 0) -> Rows:
    """This replica's part of the rows of a whole batch."""
    size, left = divmod(rows.shape[axis], peers.replicas)
    assert not left, (rows.shape, axis, peers.replicas)
    here = [slice(None)] * axis
    here.append(slice(peers.replica * size, (peers.replica + 1) * size))
    return rows[tuple(here)]


def make_peers(count: int, device: torch.device, timeout_s: float = 120) -> LocalPeers | GroupPeers:
    """GroupPeers under torchrun, otherwise LocalPeers."""
    return GroupPeers(count, device, timeout_s) if under_torchrun() else LocalPeers(count)


def choose_device(device: str, gpus: int) -> torch.device:
    """This process's device (see base/devices.py): of the ranks on this machine each has its own.
    Raises UsageError when there is no such one."""
    # torchrun may have others on other machines
    there = devices(device, int(os.environ.get("LOCAL_WORLD_SIZE", gpus)))
    chosen = torch.device(there[int(os.environ.get("LOCAL_RANK", "0"))])
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen
