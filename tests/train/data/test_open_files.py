"""A view of many shards needs no open file for each."""

import os
import resource
from pathlib import Path

import numpy as np
from conftest import VIEW_TOML, write_view

from train.data.reader import map_view


def test_many_small_shards_are_read_with_few_open_files(tmp_path: Path) -> None:
    """Sixty shards of one row, and twenty files more than are open already."""
    (tmp_path / "v.toml").write_text(VIEW_TOML.format(width=8))
    emb_ND = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float16)
    view = write_view(tmp_path / "d", tmp_path / "v.toml", emb_ND, "0" * 64, rows=1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = len(os.listdir("/proc/self/fd")) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        found_ND = map_view(view)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert view.shards == 60 and np.array_equal(found_ND, emb_ND)
