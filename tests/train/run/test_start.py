"""A training that needs more memory than there is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from base.errors import UsageError
from train.config import TrainConfig
from train.run.start import start


def too_large(config: TrainConfig) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("changes", "instead"),
    [
        ({"run": "demo"}, {"RUN": "demo-2", "--chunk": "64"}),
        ({}, {"RUN": None, "--chunk": "64"}),
        ({"batch_unlabelled": 4096, "chunk": 512}, {"RUN": None, "--chunk": "256"}),
        ({"chunk": 16}, {}),
    ],
)
def test_too_little_memory_says_what_changes_no_gradient(
    changes: dict[str, Any], instead: dict[str, str | None], tmp_path: Path
) -> None:
    """The run that was begun has the settings of then, so that this is another one."""
    (tmp_path / "demo").mkdir()
    config = TrainConfig(views="a,b", data="d", runs=str(tmp_path), **changes)
    with pytest.raises(UsageError, match=r"not suffice for this training \(CUDA") as told:
        start("train", config, too_large, {})
    assert told.value.instead == instead and "fewer SEEDS" in str(told.value)
