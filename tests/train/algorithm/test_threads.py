"""How many threads a step takes: by its size, by what was asked for, and no longer than it runs."""

import pytest
import torch
from torch import Tensor

from train.algorithm import probe
from train.algorithm.optimise import State, fresh
from train.algorithm.threads import SHARE, threads, threads_of


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has eight, and nobody asked for a number."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)


def states(experiments: int, hidden: int, classes: int, device: str = "cpu") -> list[State]:
    shape = probe.Shape(hidden, 2)

    def empty(width: int) -> State:
        flat_EP = torch.empty(experiments, width * hidden + hidden * (hidden + classes))
        where = fresh(probe.init([0], 0, 4, 2, shape, torch.float32)).layout
        on: Tensor = flat_EP.to(device)
        return State(where, on, on, on)

    return [empty(1024), empty(768)]


def test_a_small_step_takes_one_thread_and_the_papers_all() -> None:
    assert threads_of(0, states(1, 256, 10), 64, 128) == 1
    assert threads_of(0, states(1, 1024, 1000), 4096, 4096) == 8


def test_the_number_grows_with_the_rows_and_the_experiments() -> None:
    weights = sum(state.flat_EP.numel() for state in states(1, 512, 100))
    rows = round(3 * SHARE / (2 * weights * 8)) + 1
    assert threads_of(0, states(1, 512, 100), rows, rows) == 3
    assert threads_of(0, states(2, 512, 100), rows, rows) == 6
    assert threads_of(0, states(1, 512, 100), 0, rows) == 1


def test_what_was_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of(5, states(1, 256, 10), 64, 128) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert threads_of(0, states(1, 256, 10), 64, 128) == 8
    assert threads_of(5, states(1, 256, 10), 64, 128) == 5
    # torchrun says what a rank may have, not what it shall take
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "0")
    assert threads_of(0, states(1, 256, 10), 64, 128) == 1


def test_a_gpu_leaves_torchs_own() -> None:
    assert threads_of(0, states(1, 256, 10, "meta"), 64, 128) == 0


def test_the_number_is_that_of_before_after_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    with pytest.raises(ZeroDivisionError), threads(3):
        assert told == [3]
        1 / 0  # noqa: B018
    with threads(0):
        pass
    assert told == [3, 8, 8, 8]
