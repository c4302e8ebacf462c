"""A training that needs more memory than there is; signals after one in several processes."""

import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from base.errors import RankDiedError, UsageError
from train.config import TrainConfig
from train.run import launch as launching
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


@pytest.mark.parametrize("fails", [False, True])
def test_after_the_ranks_signals_mean_what_they_meant(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows in the same process, as after LIVE, can be stopped."""
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    process.wait()
    failure = launching.Failure([1], "died") if fails else None
    monkeypatch.setattr(launching, "_start", lambda *_: process)
    monkeypatch.setattr(launching, "_watch", lambda *_: (failure, 0.0))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(RankDiedError) if fails else nullcontext():
        launching.launch("train", TrainConfig(gpus=2), ["a", "b"], "soon")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
