"""What a graph says of an image, from what its nodes know."""

import torch

from train.algorithm.propagation import LEAST, log_said, said

TOLD = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])


def test_a_node_speaks_for_itself_and_the_nearest_nodes_for_another() -> None:
    near = torch.tensor([[2, 0], [2, 1], [0, 1]])
    found = said(TOLD, near, torch.tensor([1]))
    assert torch.equal(found, torch.tensor([[0.0, 1.0], [0.25, 0.75], [1.0, 0.0]]))
    assert torch.equal(said(TOLD, near, torch.tensor([], dtype=torch.int64)), TOLD[near[:, 0]])


def test_a_class_that_nobody_knows_is_improbable_not_impossible() -> None:
    found = log_said([TOLD[:1], TOLD[2:]])
    assert found.shape == (2, 1, 2)
    torch.testing.assert_close(found.exp(), torch.tensor([[[1.0, LEAST]], [[LEAST, 1.0]]]))
