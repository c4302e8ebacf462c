"""One mathematics in any layout: views and their replicas on gloo ranks against the same run in one
process, in float64."""

import dataclasses
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import VIEW_TOML, Made, write_view
from safetensors.torch import load_file
from training import config, outcome, train_on_ranks

from base.errors import UsageError
from train.algorithm.ranks import refuse_ranks
from train.command import run
from train.run.launch import FAILED, RUNNING, Board, _first_failed, _state

EXACT = {"precision": "float64", "warmup": 8, "cotrain": 12, "eval_every": 10, "seeds": "0..1"}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Made, with a fourth view: the images upside down, through a square root."""
    made = Made(tmp_path_factory.mktemp("four"))
    toml = tmp_path_factory.mktemp("fourth") / "roots.toml"
    emb = np.sqrt(made.emb["pixels"][:, ::-1])
    toml.write_text(VIEW_TOML.format(width=emb.shape[1]))
    write_view(made.dataset, toml, emb, made.items.fingerprint)
    made.tomls["roots"] = toml
    return made


def test_four_views_on_four_and_on_two_ranks_equal_one_process_to_the_last_bit(
    four: Made, tmp_path: Path
) -> None:
    one = config(
        four, tmp_path, "pixels", "edges", "thirds", "roots", **EXACT, method="mct,fixmatch"
    )
    run(one)
    whole = outcome(tmp_path / "a")
    for ranks in (4, 2):
        train_on_ranks(dataclasses.replace(one, run=f"on{ranks}"), ranks)
        found = outcome(tmp_path / f"on{ranks}")
        assert (
            found.keys() == whole.keys()
            and [name for name in whole if found[name] != whole[name]] == []
        ), ranks


@pytest.mark.parametrize("method", ["mct", "supervised-graph", "mct-graph"])
def test_two_replicas_a_view_differ_by_rounding_alone(
    made: Made, tmp_path: Path, method: str
) -> None:
    """Each rank sees another half of every batch, and the halves' gradients are averaged: 1e-9
    after 20 steps, where a single other row gives 1e-3."""
    one = config(made, tmp_path, **EXACT, method=method, batch_labelled=16)
    run(one)
    train_on_ranks(dataclasses.replace(one, run="four"), 4)
    for view in ("pixels", "edges"):
        a, b = (
            load_file(tmp_path / name / "probes" / method / f"{view}.safetensors")
            for name in ("a", "four")
        )
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=1e-8, atol=1e-9)
        assert any(
            not torch.equal(b[key], value) for key, value in a.items()
        )  # or the replicas did not share the rows
    run(dataclasses.replace(one, run="other", batch_labelled=15))
    other = load_file(tmp_path / "other" / "probes" / method / "pixels.safetensors")
    assert (
        max(
            (other[key] - value).abs().max()
            for key, value in load_file(
                tmp_path / "a" / "probes" / method / "pixels.safetensors"
            ).items()
        )
        > 1e-4
    )


@pytest.mark.parametrize(
    ("ranks", "views", "fine"),
    [
        (1, 3, True),
        (2, 3, True),
        (3, 3, True),
        (6, 3, True),
        (4, 3, False),
        (0, 1, False),
        (2, 1, True),
    ],
)
def test_ranks_must_share_the_views_or_the_rows_evenly(ranks: int, views: int, fine: bool) -> None:
    if fine:
        refuse_ranks(ranks, views)
    else:
        with pytest.raises(UsageError, match=r"GPUS=\d, but .*use GPUS="):
            refuse_ranks(ranks, views)


@pytest.mark.parametrize(
    ("stat", "expected"),
    [
        ("7 (python) S 1 7 7 0 -1 4194304 101 0", "S"),
        ("7 (a (b) Z 1) R 1 7 7 0 -1 4194304 101 0", "R"),
        ("7 (python) T 1 7 7 0 -1 1077936384 101 0", "T"),
        ("7 (python) R 1 7 7 0 -1 4228108 101 0", "X"),  # killed, no zombie yet
        ("7 (python) Z 1 7 7 0 -1 4228108 101 0", "X"),
    ],
)
def test_a_rank_that_is_ending_counts_as_dead(stat: str, expected: str) -> None:
    """Else the survivor, whose connection it has closed already, would be named."""
    assert _state(stat) == expected


def test_ranks_that_vanish_between_two_looks_are_all_named(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pids, codes, expected in (
        ([gone.pid, gone.pid], [RUNNING, RUNNING], ([0, 1], "died")),
        ([os.getpid(), gone.pid], [RUNNING, RUNNING], ([1], "died")),
        ([gone.pid, gone.pid], [RUNNING, FAILED], ([0], "died")),
        ([gone.pid, gone.pid], [FAILED, FAILED], ([0], "raised an error (above)")),
    ):
        (tmp_path / "ranks.bin").write_bytes(
            np.array(
                [[pid, 7, code] for pid, code in zip(pids, codes, strict=True)], np.int64
            ).tobytes()
        )
        assert _first_failed(Board(str(tmp_path / "ranks.bin"))) == expected
