"""Killed, or refused by the disk, at every single step of I/O: the next run ends with the very bytes of a run that nothing disturbed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, VIEW_TOML

from cache_specs import durable, integrity, store
from cache_specs.errors import StorageError

SHARDS, ROWS, WIDTH = 3, 16, 8
STRIDE = 3          # make test takes every STRIDE-th fault point, make test-all every one

# Imports once, then forks a child for each run: `JSON list of [folder, fault]` -> one exit status a line, -9 for a killed child.
RUNNER = f"""
import json, os, sys, time
from pathlib import Path
import numpy as np
import google_crc32c, numpy.ma, numpy.random, pyarrow.parquet, xxhash, zarr.codecs, zarr.storage
from cache_specs import integrity, store
from cache_specs.errors import CoviewError
from cache_specs.items import Items, write_items
from cache_specs.spec import load_spec

SHARDS, ROWS, WIDTH = {SHARDS}, {ROWS}, {WIDTH}
N = SHARDS * ROWS - 5

def job(folder):
    emb = np.random.Generator(np.random.Philox(key=1)).normal(size=(N, WIDTH)).astype(np.float16)
    keys = [f"{{i:03d}}.png" for i in range(N)]
    items = Items("d", "folder", keys, np.arange(N, dtype=np.int32) % 2, [""] * N, np.ones(N, np.int64), [key * 9 for key in keys], ["a", "b"])
    spec = load_spec(str(folder.parent / "v.toml"))
    dataset = write_items(folder / "cache", items)
    view = store.create_view(dataset, "v", spec.declared(), "0" * 64, items.fingerprint, N, ROWS, {{"batch": 1}})
    if not view.is_complete:
        with store.writer_lock(view.folder):
            for shard in view.pending():
                with open(folder / "computed", "a") as log:
                    log.write(f"{{shard}}\\n")
                first, last = view.bounds(shard)
                emb_RD, status_R = np.full((ROWS, WIDTH), np.nan, np.float16), np.zeros(ROWS, np.uint8)
                emb_RD[:last - first] = emb[first:last]
                store.write_shard(view, shard, emb_RD, status_R, time.monotonic())
            integrity.seal(view)
    assert not integrity.check(view).any()

for folder, fault in json.load(sys.stdin):
    child = os.fork()
    if not child:
        code = 99
        try:
            os.environ.pop("COVIEW_FAULT", None)
            if fault:
                os.environ["COVIEW_FAULT"] = fault
            Path(folder).mkdir(exist_ok=True)
            job(Path(folder))
            code = 0
        except CoviewError as error:
            code = error.exit_code
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

Run = Callable[[list[tuple[Path, str]]], list[int]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    def run(trials: list[tuple[Path, str]]) -> list[int]:
        for folder, _ in trials:
            (folder.parent / "v.toml").write_text(VIEW_TOML.format(width=WIDTH))
        done = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", RUNNER], cwd=ROOT, text=True, capture_output=True,
                              input=json.dumps([(str(folder), fault) for folder, fault in trials]))
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [int(line) for line in done.stdout.split()]

    return run


@pytest.fixture(scope="module")
def points(run: Run, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of all the fault points that one whole run passes, in order."""
    folder = tmp_path_factory.mktemp("points")
    assert run([(folder / "run", f"log:{folder / 'points'}")]) == [0]
    return (folder / "points").read_text().split()


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run([(folder, "")]) == [0]
    return contents(folder)


def contents(folder: Path) -> dict[str, object]:
    """Every file below the cache but what may differ: seconds in a commit, inodes in verified.json, the pid in the lock."""
    found: dict[str, object] = {}
    for path in sorted((folder / "cache").rglob("*")):
        name = str(path.relative_to(folder))
        if path.parent.name == "commits":
            found[name] = {**json.loads(path.read_text()), "seconds": None}
        elif path.is_file() and path.name not in ("verified.json", ".lock"):
            found[name] = path.read_bytes()
    return found


def computed(folder: Path) -> list[int]:
    log = folder / "computed"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def resumes_with_the_same_bytes(folder: Path, undisturbed: dict[str, object], point: str) -> None:
    after = contents(folder)
    assert after.keys() == undisturbed.keys(), f"other files after a fault at {point}: {after.keys() ^ undisturbed.keys()}"
    different = [name for name in after if after[name] != undisturbed[name]]
    assert not different, f"other bytes after a fault at {point}: {different}"
    assert not [name for name in after if name.endswith(".tmp")]
    shards = computed(folder)
    assert set(shards) == set(range(SHARDS)) and len(shards) <= SHARDS + 1, f"more than one shard computed again after a fault at {point}: {shards}"


def kill_at(run: Run, places: range, points: list[str], undisturbed: dict[str, object], tmp_path: Path) -> None:
    folders = {place: tmp_path / str(place) for place in places}
    statuses = run([trial for place, folder in folders.items() for trial in ((folder, f"kill:{place}"), (folder, ""))])
    assert statuses == [-9, 0] * len(folders)
    for place, folder in folders.items():
        resumes_with_the_same_bytes(folder, undisturbed, f"{place} ({points[place - 1]})")


def test_every_step_of_every_file_is_a_fault_point(points, undisturbed):
    files = [name for name in undisturbed if not name.endswith(".tmp")]
    steps = ["open", "half", "fsync", "rename", "folder", "done"]
    assert len([point for point in points if point.endswith(".rename")]) == len(files) + 1          # and verified.json
    assert all(sum(point.endswith(f".{step}") for point in points) >= len(files) for step in steps)
    assert points.index("embeddings.done") < points.index("status.open") < points.index("status.done") < points.index("commit.open")
    assert max(i for i, point in enumerate(points) if point == "commit.done") < points.index("complete.open")


def test_killed_at_any_fault_point_a_resumed_run_ends_with_the_same_bytes(run, points, undisturbed, tmp_path):
    kill_at(run, range(1, len(points) + 1, STRIDE), points, undisturbed, tmp_path)


@pytest.mark.many
def test_killed_at_every_fault_point_it_does(run, points, undisturbed, tmp_path):
    kill_at(run, range(1, len(points) + 1), points, undisturbed, tmp_path)


@pytest.mark.many
@pytest.mark.parametrize("second", [1, 8])
def test_killed_twice_it_still_does(run, points, undisturbed, tmp_path, second):
    folders = [tmp_path / str(place) for place in range(1, len(points) + 1)]
    trials = [(folder, fault) for place, folder in enumerate(folders, 1) for fault in (f"kill:{place}", f"kill:{second}", "")]
    assert set(run(trials)[2::3]) == {0}
    for folder in folders:
        after = contents(folder)
        assert after == undisturbed and len(computed(folder)) <= SHARDS + 2


def refused_at(run: Run, error: str, places: range, points: list[str], undisturbed: dict[str, object], tmp_path: Path) -> None:
    folders = {place: tmp_path / error / str(place) for place in places}
    (tmp_path / error).mkdir()
    statuses = run([trial for place, folder in folders.items() for trial in ((folder, f"{error}:{place}"), (folder, ""))])
    for place, folder in folders.items():
        first, second, *statuses = statuses
        point = points[place - 1] if place <= len(points) else "(after the end)"
        success = place > len(points) or point.startswith("verified.")          # a cache that cannot remember its check is still whole
        assert first == (0 if success else StorageError.exit_code) and second == 0, (error, place, point, first, second)
        resumes_with_the_same_bytes(folder, undisturbed, f"{error} at {place} ({point})")


@pytest.mark.parametrize(("error", "offset"), [("ENOSPC", 1), ("EIO", 2), ("EACCES", 3)])
def test_refused_at_any_fault_point_it_says_so_and_resumes(run, points, undisturbed, tmp_path, error, offset):
    refused_at(run, error, range(offset, len(points) + 3 * STRIDE, 3 * STRIDE), points, undisturbed, tmp_path)


@pytest.mark.many
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EACCES", "EROFS", "EDQUOT"])
def test_refused_at_every_fault_point_by_each_error(run, points, undisturbed, tmp_path, error):
    refused_at(run, error, range(1, len(points) + 2), points, undisturbed, tmp_path)


def test_a_refused_write_names_the_file_and_the_cause_and_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    durable.write_json(file, {"a": 1}, "x")
    old = file.read_bytes()
    for step in ("open", "half", "fsync", "rename"):
        monkeypatch.setenv("COVIEW_FAULT", f"ENOSPC:1:x.{step}")
        monkeypatch.setattr(durable, "_passed", 0)
        with pytest.raises(StorageError, match=rf"cannot write {file}: injected ENOSPC at x\.{step}\. .*run the same command again"):
            durable.write_json(file, {"a": 2}, "x")
        assert file.read_bytes() == old and os.listdir(tmp_path) == ["x.json"]


def test_what_a_power_cut_could_lose_is_on_the_disk_before_the_commit_is_begun(tmp_path, monkeypatch):
    """A kill cannot show a missing fsync, so the order of the calls is what is tested: data, its name, then the proof of it."""
    (tmp_path / "v.toml").write_text(VIEW_TOML.format(width=WIDTH))
    from cache_specs.spec import load_spec

    view = store.create_view(tmp_path / "data", "v", load_spec(str(tmp_path / "v.toml")).declared(), "0" * 64, "1" * 64, ROWS, ROWS, {})
    calls = []

    def fsync(handle: int, real: Callable[[int], None] = os.fsync) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}")).relative_to(view.folder).as_posix()))
        real(handle)

    def rename(old: Path, new: Path, real: Callable[[Path, Path], None] = os.rename) -> None:
        calls.append(("rename", new.relative_to(view.folder).as_posix()))
        real(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    store.write_shard(view, 0, np.zeros((ROWS, WIDTH), np.float16), np.zeros(ROWS, np.uint8), 0.0)
    integrity.seal(view)
    written = [("embeddings/c/0/.0.tmp", "embeddings/c/0/0"), ("status/c/.0.tmp", "status/c/0"), ("commits/.00000.json.tmp", "commits/00000.json"),
               (".complete.json.tmp", "complete.json")]
    expected = [call for temp, name in written for call in (("fsync", temp), ("rename", name), ("fsync", Path(name).parent.as_posix()))]
    made = [("fsync", "embeddings"), ("fsync", "embeddings/c"), ("fsync", "status")]         # the folders c, c/0 and c, new here
    assert [call for call in calls if call not in made] == expected
