"""What a graph of nearest neighbours says of an image, in training and in a trained model alike: of
one that is a node, what that node knows; of any other, the mean of what its nearest nodes know.

Who finds the nearest nodes differs: train/data/graph.py knows the rows of a cache by their numbers,
predict/model.py compares embeddings that it has never seen with those of the nodes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST = 1e-6  # the probability of a class that no neighbour knows


def said(told_nC: Tensor, near_Bk: Tensor, others_R: Tensor) -> Tensor:
    """(B, C) distributions. told_nC: what the nodes know; near_Bk: the places of the nearest nodes
    of each image, nearest first, of a node its own; others_R: which images are no nodes."""
    p_BC = told_nC.index_select(0, near_Bk[:, 0])
    if len(others_R):
        near_Rk = near_Bk.index_select(0, others_R)
        told_RkC = told_nC.index_select(0, near_Rk.flatten()).view(*near_Rk.shape, -1)
        p_BC[others_R] = told_RkC.mean(1)
    return p_BC


def log_said(p_E: Sequence[Tensor]) -> Tensor:
    """(B, C) distributions of each experiment -> (E, B, C) log-probabilities."""
    return torch.stack(list(p_E)).clamp_min(LEAST).log()
