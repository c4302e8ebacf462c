"""The stream: each row once, in an order that only (seed, epoch) decide, in flat memory,
with no thread left behind."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import stream as module
from conftest import ROOT, VIEW_TOML, write_view
from stream import Draw, Reading, stream

from base.errors import IntegrityError, StorageError
from cache_specs.store import View
from train.data.reader import map_view

R = 64
SMALL = Reading(block=16, window=3)  # so small that a few hundred rows have many blocks and windows


def make(folder: Path, n: int, width: int = 32, rows: int = R) -> View:
    """A view whose rows say which row they are; 64 x 32 x 2 bytes is one page,
    so the shards are stitched."""
    toml = folder / f"w{width}.toml"
    toml.write_text(VIEW_TOML.format(width=width))
    emb_ND = np.arange(n)[:, None] + np.arange(width) / 64
    return write_view(
        folder / f"data-{rows}-{n}", toml, emb_ND.astype(np.float16), "1" * 64, rows=rows
    )


def epoch(
    view: View, batch: int = 10, order: str = "shuffled", **options
) -> tuple[np.ndarray, np.ndarray]:
    """One epoch in whole; options: of Draw, and of SMALL other ones."""
    ours = {field.name for field in dataclasses.fields(Reading)} & options.keys()
    reading = dataclasses.replace(SMALL, **{name: options.pop(name) for name in ours})
    parts = list(stream(view, batch, order, Draw(**options), reading))
    assert all(len(rows) == batch for rows, _ in parts[:-1]) and all(
        len(rows) == len(emb) > 0 for rows, emb in parts
    )
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([emb for _, emb in parts])


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stream")]


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
@pytest.mark.parametrize("n", [1, 15, 16, 17, R - 1, R, R + 1, 4 * R - 1, 4 * R, 4 * R + 1])
def test_each_row_once_and_equal_to_the_memory_map(tmp_path, n, order):
    view = make(tmp_path, n)
    rows, emb = epoch(view, order=order)
    assert rows.dtype == np.int64 and emb.dtype == np.float16
    assert np.array_equal(np.sort(rows), np.arange(n)) and (
        order == "shuffled" or np.array_equal(rows, np.arange(n))
    )
    assert np.array_equal(emb, map_view(view)[rows])


def test_the_order_follows_from_seed_and_epoch_alone(tmp_path):
    """Views of another width and of shards that the blocks straddle, other threads, batches
    and buffers: the same rows."""
    views = [
        make(tmp_path, 300),
        make(tmp_path, 300, width=24),
        make(tmp_path, 300, rows=40),
        make(tmp_path, 300, rows=7),
        make(tmp_path, 300, rows=512),
    ]
    rows, _ = epoch(views[0])
    for view in views:
        for options in (
            {},
            {"threads": 1},
            {"threads": 7},
            {"ahead": 5},
            {"batch": 1},
            {"batch": 299},
            {"batch": 1000},
        ):
            again, emb = epoch(view, **options)
            assert np.array_equal(again, rows) and np.array_equal(emb, map_view(view)[rows]), (
                view.rows,
                options,
            )
    others = [
        epoch(views[0], **options)[0].tolist()
        for options in ({"seed": 1}, {"epoch": 1}, {"seed": 1, "epoch": 1})
    ]
    assert len({tuple(other) for other in [*others, rows.tolist()]}) == 4
    assert (
        np.abs(np.diff(rows)).max() > 100 and (np.abs(np.diff(rows)) <= 1).mean() < 0.2
    )  # far blocks meet in a window; neighbours part


def test_windows_are_shuffled_each_in_its_own_way(tmp_path):
    rows, _ = epoch(make(tmp_path, 96))  # two windows of 48
    assert not np.array_equal(np.argsort(rows[:48]), np.argsort(rows[48:]))


def test_the_draws_stay_what_they_were(tmp_path):
    """A restart with a newer version must go on in the same order."""
    rows, _ = epoch(make(tmp_path, 50), seed=3, epoch=2)
    assert rows[:12].tolist() == [33, 24, 32, 13, 2, 22, 44, 20, 27, 1, 5, 41]


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
@pytest.mark.parametrize("batch", [1, 10, 48, 49, 301])
def test_a_restart_equals_the_tail(tmp_path, order, batch):
    view = make(tmp_path, 300)
    whole = list(stream(view, batch, order, Draw(seed=5), SMALL))
    for first in {0, 1, 5, len(whole) // 2, len(whole) - 1, len(whole), len(whole) + 3}:
        tail = list(stream(view, batch, order, Draw(seed=5, first_batch=first), SMALL))
        assert len(tail) == max(len(whole) - first, 0)
        assert all(
            np.array_equal(a, c) and np.array_equal(b, d)
            for (a, b), (c, d) in zip(tail, whole[first:], strict=True)
        )


def test_a_restart_does_not_read_what_comes_before(tmp_path):
    view = make(tmp_path, 300)
    for shard in range(2):
        view.embeddings_file(shard).unlink()
    rows, _ = epoch(
        view, 48, order="sequential", first_batch=3
    )  # where a window begins; the one before needs shard 1
    assert rows.tolist() == list(range(144, 300))


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_a_subset_of_rows(tmp_path, order):
    view = make(tmp_path, 300)
    some = np.flatnonzero(np.random.default_rng(0).random(300) < 0.8)
    some = some[(some < 32) | (some >= 64)]  # two whole blocks are left out
    rows, emb = epoch(view, order=order, rows=some)
    assert np.array_equal(np.sort(rows), some) and np.array_equal(emb, map_view(view)[rows])
    assert np.array_equal(epoch(view, order=order, rows=some, first_batch=7)[0], rows[70:])
    assert np.array_equal(
        epoch(view, order=order, rows=np.arange(300))[0], epoch(view, order=order)[0]
    )
    assert list(stream(view, 10, order, Draw(rows=np.empty(0, np.int64)))) == []
    view.embeddings_file(1).unlink()  # a block without any of the rows is not read
    assert np.array_equal(
        np.sort(epoch(view, order=order, rows=np.arange(128, 300))[0]), np.arange(128, 300)
    )


def test_the_arrays_may_be_kept_and_changed(tmp_path):
    view = make(tmp_path, 300)
    kept = []
    for rows, emb in stream(view, 10, reading=SMALL):
        kept.append((rows.copy(), emb.copy(), rows, emb))
        emb += 0
    assert all(np.array_equal(a, c) and np.array_equal(b, d) for a, b, c, d in kept)


@pytest.mark.parametrize("end", ["read to the end", "close", "forget", "error in the loop"])
def test_no_thread_outlives_the_stream(tmp_path, end):
    view = make(tmp_path, 300)
    files = len(os.listdir("/proc/self/fd"))
    batches = stream(view, 10, reading=SMALL)
    next(batches)
    assert threads()
    if end == "read to the end":
        list(batches)
    elif end == "close":
        batches.close()
    elif end == "forget":
        del batches
    else:
        with pytest.raises(ZeroDivisionError):
            for _ in batches:
                raise ZeroDivisionError
        del batches
    assert not threads() and len(os.listdir("/proc/self/fd")) == files


def test_an_early_close_opens_no_more_files(tmp_path, monkeypatch):
    view, opened = make(tmp_path, 4096), itertools.count()
    real = os.open
    monkeypatch.setattr(
        module.os, "open", lambda *args: (next(opened), time.sleep(0.01), real(*args))[2]
    )
    batches = stream(view, 10, reading=Reading(block=16, window=16, ahead=5, threads=1))
    next(batches)
    batches.close()
    count = next(opened)
    time.sleep(0.1)
    assert (
        next(opened) == count + 1 and count <= 32
    )  # the window that was needed and the one being read; four more were queued


@pytest.mark.parametrize("harm", ["short", "gone"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, harm):
    view = make(tmp_path, 300)
    if harm == "short":
        os.truncate(view.embeddings_file(2), 1000)
    else:
        view.embeddings_file(2).unlink()
    with pytest.raises(IntegrityError, match=r"shard 2 .*embeddings/c/2/0.*make ") as caught:
        epoch(view)
    assert not threads() and caught.value.exit_code == 5


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    view = make(tmp_path, 300)
    view.embeddings_file(2).unlink()
    view.embeddings_file(2).mkdir()
    with pytest.raises(
        StorageError, match=r"cannot read .*embeddings/c/2/0: Is a directory.* again"
    ):
        epoch(view)
    assert not threads()


FLAT = """
import json, os, sys, time
from pathlib import Path
from cache_specs.store import View
sys.path.insert(0, "bench")
from stream import stream

def memory():
    return {
        line.split(":")[0]: int(line.split()[1]) / 1000
        for line in open("/proc/self/status")
        if line[:3] in ("VmR", "VmH", "Rss")
    }

view = View(Path(sys.argv[1]), int(sys.argv[2]), 768, 4096, "", {})
order, most = sys.argv[3], int(sys.argv[4])
seen, half, before, begun = 0, None, memory(), time.perf_counter()
for rows, emb in stream(view, 1024, order):
    seen += len(rows)
    if half is None and seen >= most / 2:
        half = memory()
    if seen >= most:
        break
seconds = time.perf_counter() - begun
told = {"rows": seen, "seconds": seconds, "before": before, "half": half, "after": memory()}
print(json.dumps(told))
"""


def flat(folder: Path, n: int, order: str, most: int) -> dict:
    """Stream a view of n x 768 whose files are all hole, in a process of its own."""
    view = View(folder / "v-000000000000", n, 768, 4096, "", {})
    for shard in range(view.shards):
        view.embeddings_file(shard).parent.mkdir(parents=True)
        view.embeddings_file(shard).touch()
        os.truncate(view.embeddings_file(shard), view.embeddings_bytes)
    result = subprocess.run(
        [sys.executable, "-c", FLAT, str(view.folder), str(n), order, str(most)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


def check_flat(found: dict) -> None:
    assert (
        found["after"]["VmHWM"] < 500 and found["after"]["VmHWM"] - found["before"]["VmHWM"] < 200
    ), found
    assert found["after"]["VmHWM"] - found["half"]["VmHWM"] < 20, (
        found
    )  # the second half adds nothing
    assert found["after"]["RssFile"] - found["before"]["RssFile"] < 20, found  # nothing is mapped


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_memory_is_flat(tmp_path, order):
    """600 MB of embeddings of a view of 1 million rows."""
    found = flat(tmp_path, 1_000_000, order, 400_000)
    check_flat(found)


@pytest.mark.many
@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_memory_is_flat_for_ten_million_rows(tmp_path, order):
    found = flat(tmp_path, 10_000_000, order, 10_000_000)
    assert found["rows"] == 10_000_000
    check_flat(found)
    print(found)
