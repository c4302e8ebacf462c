"""How many CPU threads a training step takes: as many as its products can keep busy.

A rule on sizes, not a clock: the last digits of a product may depend on the number, and a command
that is typed twice ends with the same bytes.
"""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch

from train.algorithm.optimise import State
from train.algorithm.ranks import under_torchrun

SHARE = 4e9  # floating-point operations of a step for each thread: some tens of milliseconds
PASSES_L, PASSES_U = 3, 5  # products with the weights, for a labelled and an unlabelled row


def threads_of(asked: int, states: Sequence[State], rows_L: int, rows_U: int) -> int:
    """Those that were asked for (--threads, or OMP_NUM_THREADS), or what the step of these views,
    on so many rows of each experiment, can use of what torch has. 0 on a GPU: as torch has it."""
    if states[0].flat_EP.device.type != "cpu":
        return asked
    most = torch.get_num_threads()
    if asked or ("OMP_NUM_THREADS" in os.environ and not under_torchrun()):
        return asked or most
    weights = sum(state.flat_EP.numel() for state in states)
    operations = 2 * weights * (PASSES_L * rows_L + PASSES_U * rows_U)
    return max(1, min(most, int(operations / SHARE)))


@contextmanager
def threads(count: int) -> Generator[None, None, None]:
    """Inside, torch computes with so many; 0: as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
