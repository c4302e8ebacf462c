"""Which rows a step sees: the same from any thread, without a memory that grows."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from train.algorithm import batches
from train.algorithm.batches import LABELLED, UNLABELLED, Passes
from train.algorithm.peers import LocalPeers
from train.config import TrainingSettings
from train.data.feed import Experiment, Feeder, Input, Task
from train.data.jury import jury_of
from train.data.splits import Split


@pytest.mark.parametrize("n", [1, 7, 16, 33])
def test_rows_are_epochs_of_permutations(n: int) -> None:
    pool = np.arange(n) * 10
    rows = Passes(pool, 3, UNLABELLED)
    seen = np.concatenate([rows(step, 16) for step in range(max(n, 6))])
    for epoch in range(16):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(pool)
    assert np.array_equal(Passes(pool, 3, UNLABELLED)(5, 16), seen[80:96])
    if n > 7:
        assert not np.array_equal(Passes(pool, 3, LABELLED)(0, 16), seen[:16])
        assert not np.array_equal(Passes(pool, 4, UNLABELLED)(0, 16), seen[:16])


def test_two_orders_are_kept_whatever_is_asked_for() -> None:
    rows = Passes(np.arange(10), 0, LABELLED)
    for step in (*range(300), 5, 299, 0, 7):
        rows(step, 4)
        assert 1 <= len(rows.kept) <= 2
    own = {name: value for name, value in vars(batches).items() if not name.startswith("__")}
    assert not [name for name, value in own.items() if isinstance(value, dict | list)]


def test_four_threads_see_what_one_sees() -> None:
    """With a stream of their own, and with one that they share, each in another order."""
    pool, steps = np.arange(30), np.arange(400)
    alone = Passes(pool, 1, UNLABELLED)
    wanted = np.stack([alone(step, 16) for step in steps])
    shared = Passes(pool, 1, UNLABELLED)

    def one(thread: int) -> None:
        own = Passes(pool, 1, UNLABELLED)
        for step in np.roll(steps, 97 * thread):
            assert np.array_equal(shared(int(step), 16), wanted[step])
            assert np.array_equal(own(int(step), 16), wanted[step])

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(one, thread) for thread in range(4)]:
            done.result()
    assert len(shared.kept) <= 2


def test_a_feeder_shares_the_streams_of_one_seed_and_takes_them_along() -> None:
    """The members of a sweep are the same splits once more."""
    every = np.arange(40)
    splits = [Split(every[:10], every[10:], every[:2], every[:2]) for _ in range(2)]
    emb_ND = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float16)
    tries = [Experiment(seed, 1e-3, 0.0, 1.0) for seed in (0, 1)]
    source = Input([emb_ND], torch.zeros(4), torch.ones(4))
    jury = jury_of(splits * 3, every % 3, torch.device("cpu"))
    task = Task(["a"], [source], every % 3, 3, splits * 3, tries * 3, jury)
    feeder = Feeder(TrainingSettings(), task, LocalPeers(1))
    try:
        feeder(0, unlabelled=True)
        for streams in (feeder.labelled, feeder.unlabelled):
            assert len(streams) == 6 and len({*streams}) == 2
            assert streams[0] is streams[2] is streams[4] is not streams[1]
    finally:
        feeder.close()
    left = weakref.ref(feeder.unlabelled[0])
    del feeder, streams
    gc.collect()
    assert left() is None
