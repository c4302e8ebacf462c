"""Killed at any moment, refused by the disk at any step, or one of many writers: the next run ends
with the bytes of a run that nothing disturbed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faults
import numpy as np
import pytest
from conftest import ROOT
from faults import ROWS, SHARDS, computed, contents, run, trial

from base import durable
from base.errors import IntegrityError, RankDiedError, StorageError
from cache_specs import integrity, store

STRIDE = 3  # make test takes every STRIDE-th fault point, make test-all every one
PARTS, PART_SHARDS = 4, 8
Contents = dict[str, bytes]


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of all the fault points that one whole run passes, in order; but whether it
    remembers its check depends on how fast it was."""
    folder = tmp_path_factory.mktemp("points")
    assert run([trial(folder / "run", fault=f"log:{folder / 'points'}")])[0][0][0] == 0
    return [
        point
        for point in (folder / "points").read_text().split()
        if not point.startswith("verified.")
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run([trial(folder)])[0][0][0] == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(finished: Path) -> Contents:
    return contents(finished)


@pytest.fixture(scope="module")
def undisturbed_parts(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run([trial(folder, shards=PART_SHARDS)])[0][0][0] == 0
    return contents(folder)


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    faults.close()


def codes(steps: faults.Steps) -> list[int]:
    results = run(steps)
    assert not [message for step in results for code, message, *_ in step if code in (98, 99)]
    return [step[0][0] for step in results]


def ends_with_the_same_bytes(
    folder: Path, undisturbed: Contents, what: str, again: int = 1, shards: int = SHARDS
) -> None:
    after = contents(folder)
    assert after.keys() == undisturbed.keys(), (
        f"other files after {what}: {after.keys() ^ undisturbed.keys()}"
    )
    different = [name for name in after if after[name] != undisturbed[name]]
    assert not different, f"other bytes after {what}: {different}"
    done = computed(folder)
    assert set(done) == set(range(shards)) and len(done) <= shards + again, (
        f"more than {again} shards computed again after {what}: {done}"
    )


def test_two_runs_that_nothing_disturbs_give_the_same_bytes(undisturbed, tmp_path):
    assert codes(
        [trial(tmp_path / "run"), trial(tmp_path / "run"), trial(tmp_path / "run", "refused")]
    ) == [0, 0, 0]
    ends_with_the_same_bytes(tmp_path / "run", undisturbed, "nothing", again=0)


def test_every_step_of_every_file_is_a_fault_point(points, undisturbed):
    steps = ["open", "half", "fsync", "rename", "folder", "done"]
    assert len([point for point in points if point.endswith(".rename")]) == len(undisturbed)
    assert all(
        sum(point.endswith(f".{step}") for point in points) >= len(undisturbed) for step in steps
    )
    assert (
        points.index("embeddings.done")
        < points.index("status.open")
        < points.index("status.done")
        < points.index("commit.open")
    )
    assert max(i for i, point in enumerate(points) if point == "commit.done") < points.index(
        "complete.open"
    )


# --- killed


def kill_at(places: range, points: list[str], undisturbed: Contents, tmp_path: Path) -> None:
    folders = {place: tmp_path / str(place) for place in places}
    statuses = codes(
        [
            step
            for place, folder in folders.items()
            for step in (trial(folder, fault=f"kill:{place}"), trial(folder))
        ]
    )
    assert statuses == [-9, 0] * len(folders)
    for place, folder in folders.items():
        ends_with_the_same_bytes(folder, undisturbed, f"a kill at {place} ({points[place - 1]})")


def test_killed_at_any_fault_point_a_resumed_run_ends_with_the_same_bytes(
    points, undisturbed, tmp_path
):
    kill_at(range(1, len(points) + 1, STRIDE), points, undisturbed, tmp_path)


@pytest.mark.many
def test_killed_at_every_fault_point_it_does(points, undisturbed, tmp_path):
    kill_at(range(1, len(points) + 1), points, undisturbed, tmp_path)


@pytest.mark.many
@pytest.mark.parametrize("second", [1, 8])
def test_killed_twice_it_still_does(points, undisturbed, tmp_path, second):
    folders = {place: tmp_path / str(place) for place in range(1, len(points) + 1)}
    faults_of = {place: (f"kill:{place}", f"kill:{second}", "") for place in folders}
    assert set(
        codes(
            [
                trial(folder, fault=fault)
                for place, folder in folders.items()
                for fault in faults_of[place]
            ]
        )[2::3]
    ) == {0}
    for place, folder in folders.items():
        ends_with_the_same_bytes(folder, undisturbed, f"kills at {place} and {second}", again=2)


def kill_at_random_times(number: int, seed: int, undisturbed: Contents, tmp_path: Path) -> None:
    chance = random.Random(seed)
    seconds = sorted(
        run([trial(tmp_path / f"time{i}") for i in range(5)]), key=lambda step: step[0][3]
    )[2][0][3]
    folders = {tmp_path / str(i): chance.uniform(0.002, 1.1 * seconds) for i in range(number)}
    statuses = codes(
        [
            step
            for folder, after in folders.items()
            for step in (trial(folder, kill_after=after), trial(folder))
        ]
    )
    assert (
        set(statuses[0::2]) <= {-9, 0}
        and statuses[0::2].count(-9) > number / 2
        and set(statuses[1::2]) == {0}
    )
    for folder, after in folders.items():
        ends_with_the_same_bytes(
            folder, undisturbed, f"a kill after {after:.4f} of {seconds:.4f} s"
        )


def test_killed_at_a_random_time_it_does(undisturbed, tmp_path):
    kill_at_random_times(15, 1, undisturbed, tmp_path)


@pytest.mark.many
def test_killed_at_three_hundred_random_times_it_does(undisturbed, tmp_path):
    kill_at_random_times(300, 2, undisturbed, tmp_path)


# --- refused by the disk


def refused_at(
    error: str, places: range, points: list[str], undisturbed: Contents, tmp_path: Path
) -> None:
    folders = {place: tmp_path / error / str(place) for place in places}
    (tmp_path / error).mkdir()
    statuses = codes(
        [
            step
            for place, folder in folders.items()
            for step in (trial(folder, fault=f"{error}:{place}"), trial(folder))
        ]
    )
    for place, folder in folders.items():
        first, second, *statuses = statuses
        point = points[place - 1] if place <= len(points) else "(after the end)"
        assert first == (0 if place > len(points) else StorageError.exit_code) and second == 0, (
            error,
            place,
            point,
            first,
            second,
        )
        ends_with_the_same_bytes(folder, undisturbed, f"{error} at {place} ({point})")


@pytest.mark.parametrize(("error", "offset"), [("ENOSPC", 1), ("EIO", 2), ("EACCES", 3)])
def test_refused_at_any_fault_point_it_says_so_and_resumes(
    points, undisturbed, tmp_path, error, offset
):
    refused_at(
        error, range(offset, len(points) + 3 * STRIDE, 3 * STRIDE), points, undisturbed, tmp_path
    )


@pytest.mark.many
@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EACCES", "EROFS", "EDQUOT"])
def test_refused_at_every_fault_point_by_each_error(points, undisturbed, tmp_path, error):
    refused_at(error, range(1, len(points) + 2), points, undisturbed, tmp_path)


def test_a_refused_write_names_the_file_and_the_cause_and_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    durable.write_json(file, {"a": 1}, "x")
    old = file.read_bytes()
    for step in ("open", "half", "fsync", "rename"):
        monkeypatch.setenv("COVIEW_FAULT", f"ENOSPC:1:x.{step}")
        monkeypatch.setattr(durable, "_passed", 0)
        with pytest.raises(
            StorageError,
            match=(
                rf"cannot write {file}: injected ENOSPC at x\.{step}\. "
                r".*run the same command again"
            ),
        ):
            durable.write_json(file, {"a": 2}, "x")
        assert file.read_bytes() == old and os.listdir(tmp_path) == ["x.json"]


PRIVATE = (
    "unshare",
    "-rm",
)  # a namespace of our own: what is mounted in it, only we and our children see


@pytest.fixture(scope="module")
def private() -> tuple[str, ...]:
    """The prefix of a command that may mount; skips where the kernel does not let us."""
    if (
        not shutil.which("unshare")
        or subprocess.run(
            [*PRIVATE, "sh", "-c", "mount -t tmpfs tmpfs /mnt"], capture_output=True
        ).returncode
    ):
        pytest.skip("no user namespaces here, so no disk of our own can be mounted")
    return PRIVATE


def on_a_full_disk(
    sizes: list[list[int]], private: tuple[str, ...], undisturbed: Contents, tmp_path: Path
) -> int:
    """Runs on a disk of so many KiB, resumed as it grows, and last with room enough. Returns the
    number of runs that found it full."""
    steps: faults.Steps = []
    for number, growing in enumerate(sizes):
        disk = tmp_path / f"disk{number}"
        disk.mkdir()
        steps += [{"sh": f"mount -t tmpfs -o size={growing[0]}k tmpfs {disk} && mkdir {disk}/run"}]
        for size in (*growing, 4096):
            steps += [
                {"sh": f"mount -o remount,size={size}k {disk}"},
                trial(disk / "run", log=None) | {"options": {"log": f"{tmp_path}/{number}.log"}},
            ]
        steps += [
            trial(disk / "run", "refused"),
            {"sh": f"cp -a {disk}/run {tmp_path}/{number} && umount {disk}"},
        ]
    results, full = run(steps, private), 0
    for step, (result, *_) in zip(steps, results, strict=True):
        code, message = result[:2]
        if "sh" in step:
            assert code == 0, message
        elif step["do"] == "refused":
            assert (code, message) == (0, '""')
        elif code:
            full += 1
            assert (
                code == StorageError.exit_code
                and "cannot write " in message
                and "No space left on device" in message
            ), (code, message)
            assert "run the same command again" in message
    for number, growing in enumerate(sizes):
        ends_with_the_same_bytes(
            tmp_path / str(number), undisturbed, f"full disks of {growing} KiB", again=len(growing)
        )
    return full


def test_on_a_full_disk_it_says_so_and_goes_on_where_there_is_room_again(
    private, undisturbed, tmp_path
):
    growing = list(range(8, 96, 8))
    assert (
        on_a_full_disk([growing, [32], [60]], private, undisturbed, tmp_path) >= len(growing) // 2
    )


@pytest.mark.many
def test_on_a_full_disk_of_every_size_it_does(private, undisturbed, tmp_path):
    sizes = [[size] for size in range(4, 128, 4)] + [
        [*range(4, 128, 4)],
        [*range(4, 128, 8)],
        [12, 12, 40, 40, 40, 60, 60],
    ]
    assert on_a_full_disk(sizes, private, undisturbed, tmp_path) >= 40


def test_on_a_read_only_disk_it_says_so_and_a_finished_view_is_checked(
    private, finished, undisturbed, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    whole, harmed, part, none = (disk / name for name in ("whole", "harmed", "part", "none"))
    (here,) = (finished / "cache").glob("d-*/v-*")
    inside = here.relative_to(finished)
    steps: faults.Steps = [
        {
            "sh": (
                f"mount -t tmpfs tmpfs {disk} && mkdir {none} && "
                f"for copy in {whole} {harmed} {part}; do cp -a {finished} $copy; done"
            )
        },
        {
            "sh": (
                f"printf x | dd of={harmed / inside}/embeddings/c/1/0 conv=notrunc && "
                f"rm {part / inside}/complete.json {part / inside}/commits/00001.json"
            )
        },
        {"sh": f"find {disk} -name verified.json -delete; mount -o remount,ro {disk}"},
        trial(whole, "refused"),
        trial(harmed, "refused"),
        trial(part, "refused"),
        trial(harmed, "mend"),
        *(
            trial(folder) | {"options": {"log": f"{tmp_path}/{folder.name}.log"}}
            for folder in (part, none)
        ),
        {"sh": f"mount -o remount,rw {disk}"},
        trial(part),
        {"sh": f"cp -a {part} {tmp_path}/part"},
    ]
    results = [step[0][:2] for step in run(steps, private)]
    assert all(results[i][0] == 0 for i in (0, 1, 2, -3, -2, -1)), results
    assert (
        results[3] == [0, '""']
        and "embeddings/c/1/0 has changed" in results[4][1]
        and "is not finished (2 of 3" in results[5][1]
    )
    for code, message in results[6:9]:
        assert (
            code == StorageError.exit_code
            and "cannot write " in message
            and "Read-only file system" in message
        )
    assert contents(tmp_path / "part") == undisturbed


# --- several writers


def writers_at_once(number: int, seed: int, undisturbed: Contents, tmp_path: Path) -> list[int]:
    """Four starts of the same command at once, in two of three trials with the first one killed.
    Returns who was refused, how often."""
    chance, folders, steps = random.Random(seed), [tmp_path / str(i) for i in range(number)], []
    for i, folder in enumerate(folders):
        slow = chance.choice((0.0, 0.04, 0.06))
        kill_after = chance.uniform(0.01, 0.2) if i % 3 else 0.0
        steps += [
            [trial(folder, slow=slow, kill_after=kill_after if j == 0 else 0.0) for j in range(4)],
            trial(folder),
        ]
    results = run(steps)
    refusals = []
    for i, folder in enumerate(folders):
        together, (last,) = results[2 * i : 2 * i + 2]
        pids = [pid for _, _, pid, _ in together]
        killed = together[0][0] == -9
        for code, message, pid, _ in together[killed:]:
            assert code in (0, StorageError.exit_code), (code, message)
            if code:
                assert faults.holder(message) in {*pids} - {pid}, message
        refusals.append(sum(code == StorageError.exit_code for code, *_ in together))
        assert last[0] == 0, last
        assert any(code == 0 for code, *_ in together) or killed
        ends_with_the_same_bytes(
            folder, undisturbed, f"four writers at once ({together})", again=int(killed)
        )
    return refusals


def test_of_several_writers_one_writes_and_the_others_name_it(undisturbed, tmp_path):
    assert sum(writers_at_once(6, 1, undisturbed, tmp_path)) >= 3


@pytest.mark.many
def test_of_several_writers_one_writes_in_a_hundred_trials(undisturbed, tmp_path):
    refusals = writers_at_once(100, 2, undisturbed, tmp_path)
    assert sum(refusals) >= 50 and 3 in refusals


def parts_at_once(number: int, seed: int, undisturbed: Contents, tmp_path: Path) -> list[int]:
    """One writer of four processes: undisturbed, itself killed, or one of its processes killed or
    refused by the disk. Then resumed."""
    chance, folders, steps = random.Random(seed), [tmp_path / str(i) for i in range(number)], []
    for i, folder in enumerate(folders):
        part_faults = (
            {chance.choice("0123"): f"{('kill', 'ENOSPC')[i % 2]}:{chance.randrange(1, 60)}"}
            if i % 3 == 2
            else {}
        )
        options = {"shards": PART_SHARDS, "parts": PARTS, "slow": chance.choice((0, 0.002, 0.01))}
        steps += [
            trial(
                folder,
                kill_after=chance.uniform(0.01, 0.12) if i % 3 == 1 else 0.0,
                part_faults=part_faults,
                **options,
            ),
            trial(folder, **options),
        ]
    results = run(steps)
    ends = [step[0][0] for step in results]
    for i, folder in enumerate(folders):
        first, second = ends[2 * i : 2 * i + 2]
        assert second == 0 and first in ((0,), (-9, 0), (RankDiedError.exit_code, 0))[i % 3], (
            i,
            results[2 * i : 2 * i + 2],
        )
        ends_with_the_same_bytes(
            folder,
            undisturbed,
            f"four processes of one writer, trial {i}: {first}",
            again=PARTS,
            shards=PART_SHARDS,
        )
        assert first or len(computed(folder)) == PART_SHARDS
    return ends[0::2]


def test_four_processes_of_one_writer_lose_nothing(undisturbed_parts, tmp_path):
    parts_at_once(6, 1, undisturbed_parts, tmp_path)


@pytest.mark.many
def test_four_processes_of_one_writer_lose_nothing_in_a_hundred_trials(undisturbed_parts, tmp_path):
    ends = parts_at_once(100, 2, undisturbed_parts, tmp_path)
    assert {0, -9, RankDiedError.exit_code} == set(ends)


CHILD = """
import os, sys, time
from pathlib import Path
from base import locks
from cache_specs import store
with locks.shared_lock(Path(sys.argv[1]), store.PARTS):
    print(os.getpid(), flush=True)
    time.sleep(60)
"""
PARENT = f"""
import subprocess, sys
from pathlib import Path
from cache_specs import store
with store.writer_lock(Path(sys.argv[1])):
    subprocess.run([sys.executable, "-c", {CHILD!r}, sys.argv[1]])
"""
NEXT = """
import sys
from pathlib import Path
from cache_specs import store
with store.writer_lock(Path(sys.argv[1])):
    print("mine", flush=True)
"""


def test_a_new_writer_waits_for_the_last_child_of_a_killed_one(tmp_path):
    (tmp_path / "embeddings").mkdir()
    leftover = tmp_path / "embeddings" / ".0.tmp"
    leftover.write_bytes(b"half")
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        child = int(parent.stdout.readline())
        leftover.write_bytes(b"what the child is writing")
        parent.kill()
    with subprocess.Popen(
        [sys.executable, "-c", NEXT, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as waiting:
        try:
            time.sleep(1)
            assert waiting.poll() is None and leftover.exists(), "the next writer has not waited"
        finally:
            os.kill(child, signal.SIGKILL)
        assert (
            waiting.stdout.readline() == "mine\n" and waiting.wait() == 0 and not leftover.exists()
        )


# --- repair


def _flip(view: Path, *names: str) -> None:
    for name in names:
        data = bytearray((view / name).read_bytes())
        data[len(data) // 2] ^= 1
        (view / name).write_bytes(data)


def _a_bit_of_everything(view: Path) -> None:
    _flip(view, "embeddings/c/1/0", "commits/00000.json", "zarr.json")
    (view / "embeddings/c/7").mkdir()
    (view / "embeddings/c/7/0").write_bytes(b"0")


def _the_seal_and_a_commit(view: Path) -> None:
    _flip(view, "complete.json", "commits/00002.json")


def _the_seal(view: Path) -> None:
    _flip(view, "complete.json", "embeddings/zarr.json")


def _the_commits(view: Path) -> None:
    (view / "commits/00001.json").unlink()
    _flip(view, "commits/00000.json", "commits/00002.json")


def _two_shards(view: Path) -> None:
    one, two = (view / f"embeddings/c/{shard}/0" for shard in (1, 2))
    one.rename(view / "x")
    two.rename(one)
    (view / "x").rename(two)


def _an_unfinished_view(view: Path) -> None:
    (view / "complete.json").unlink()
    (view / "commits/00002.json").unlink()
    _flip(view, "status/c/0", "commits/00001.json")


LOST: dict[Callable[[Path], None], list[int]] = {
    _a_bit_of_everything: [1],
    _the_seal_and_a_commit: [2],
    _the_seal: [],
    _the_commits: [],
    _two_shards: [1, 2],
    _an_unfinished_view: [0, 1],
}


def repairs_cut_short(
    harm: Callable[[Path], None],
    stride: int,
    offset: int,
    finished: Path,
    undisturbed: Contents,
    tmp_path: Path,
) -> int:
    """Kill the repair, or refuse it the disk, at every stride-th fault point; then repair and
    extract again. Returns the number of trials."""

    def copy(name: str) -> Path:
        folder = shutil.copytree(finished, tmp_path / name)
        harm(next((folder / "cache").glob("d-*/v-*")))
        return folder

    log = tmp_path / "points"
    whole = copy("whole")
    lost = run([trial(whole, "mend", f"log:{log}")])[0][0]
    assert lost[:2] == [0, str(LOST[harm])]
    points, absent = log.read_text().split(), [2] if harm is _an_unfinished_view else []
    folders = {
        (action, place): copy(f"{action}{place}")
        for action in ("kill", "ENOSPC")
        for place in range(1 + offset % stride, len(points) + 1, stride)
    }
    steps = [
        step
        for (action, place), folder in folders.items()
        for step in (
            trial(folder, "mend", f"{action}:{place}"),
            trial(folder, "refused"),
            trial(folder, "mend"),
            trial(folder, "refused"),
            trial(folder),
        )
    ]
    results = [step[0][:2] for step in run(steps)]
    for (action, place), folder in folders.items():
        (cut, _), (checked, said), (mended, _), (checked_again, _), (extracted, _), *results = (
            results
        )
        where = f"{action} at {place} ({points[place - 1]}) of {len(points)}"
        assert cut == (-9 if action == "kill" else StorageError.exit_code), where
        assert checked == 0 and checked_again == 0, (
            f"{where}: {said}"
        )  # refused, or every row is right
        assert mended == 0 and extracted == 0, where
        ends_with_the_same_bytes_after_repair(folder, undisturbed, {*LOST[harm], *absent}, where)
    return len(folders)


def ends_with_the_same_bytes_after_repair(
    folder: Path, undisturbed: Contents, allowed: set[int], where: str
) -> None:
    after = contents(folder)
    assert (
        after.keys() == undisturbed.keys()
        and [name for name in after if after[name] != undisturbed[name]] == []
    ), where
    assert set(computed(folder)) <= allowed, f"{where}: computed {computed(folder)}, lost {allowed}"


@pytest.mark.parametrize("harm", LOST)
def test_a_repair_that_is_cut_short_is_repeated_and_nothing_wrong_is_trusted_meanwhile(
    harm, finished, undisturbed, tmp_path
):
    assert repairs_cut_short(harm, 7, len(harm.__name__), finished, undisturbed, tmp_path) >= 2


@pytest.mark.many
@pytest.mark.parametrize("harm", LOST)
def test_a_repair_that_is_cut_short_anywhere_is_repeated(harm, finished, undisturbed, tmp_path):
    assert repairs_cut_short(harm, 1, 0, finished, undisturbed, tmp_path) >= 10


# --- the order of writing


def test_what_a_power_cut_could_lose_is_on_the_disk_before_the_commit_is_begun(
    tmp_path, monkeypatch
):
    """The order of the calls: data, its name, then the proof of it. test_power
    shows what it is good for."""
    view = faults.create(tmp_path)
    calls = []

    def fsync(handle: int, real: Callable[[int], None] = os.fsync) -> None:
        calls.append(
            (
                "fsync",
                Path(os.readlink(f"/proc/self/fd/{handle}")).relative_to(view.folder).as_posix(),
            )
        )
        real(handle)

    def rename(old: Path, new: Path, real: Callable[[Path, Path], None] = os.rename) -> None:
        calls.append(("rename", new.relative_to(view.folder).as_posix()))
        real(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    store.write_shard(view, 0, np.zeros((ROWS, view.width), np.float16), np.zeros(ROWS, np.uint8))
    with pytest.raises(IntegrityError, match="shard 1 "):
        integrity.seal(view)
    written = [
        ("embeddings/c/0/.0.tmp", "embeddings/c/0/0"),
        ("status/c/.0.tmp", "status/c/0"),
        ("commits/.00000.json.tmp", "commits/00000.json"),
    ]
    expected = [
        call
        for temp, name in written
        for call in (("fsync", temp), ("rename", name), ("fsync", Path(name).parent.as_posix()))
    ]
    made = [
        ("fsync", "embeddings"),
        ("fsync", "embeddings/c"),
        ("fsync", "status"),
    ]  # the folders c, c/0 and c, new here
    assert [call for call in calls if call not in made] == expected
