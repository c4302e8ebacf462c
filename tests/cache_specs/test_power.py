"""The power fails between any two calls of the operating system: nothing that was proved is lost,
nothing wrong is trusted, and the next run ends with the same bytes.

A run is recorded as a list of what it asked of the file system. After a cut, what was synced
before it is there. Of the rest anything may be: of a file's bytes all, a beginning, or
zeros; of a folder's names each one old or new, by itself (of two changes of one name, not
the later without the earlier).
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faults
import pytest
from faults import contents

from base import durable
from base.errors import CoviewError
from cache_specs import integrity, store

# ("data", file, bytes), ("name", folder, name, file or None), ("sync", file or folder),
# ("mark", text)
Operation = tuple[Any, ...]
Contents = dict[str, bytes]


class Recorder:
    """Passes the calls of `os` that change files below `root` on, and keeps them as operations on
    numbered files and folders. The root is 0."""

    def __init__(self, root: Path) -> None:
        self.root, self.operations, self.numbers = root, list[Operation](), 1
        self.names: dict[int, dict[str, int]] = {0: {}}  # of every folder
        self.data: dict[int, bytes] = {}
        self.handles: dict[int, int] = {}
        self.syncs = lambda path: True  # a broken writer leaves some out

    def mark(self, text: str) -> None:
        self.operations.append(("mark", text))

    def find(self, path: Any) -> tuple[int, str, int | None] | None:
        """(folder, name, what is there) of a path below the root."""
        path = Path(path)
        if path == self.root:
            return 0, "", 0
        if self.root not in path.parents:
            return None
        folder, (*parts, name) = 0, path.relative_to(self.root).parts
        for part in parts:
            folder = self.names[folder][part]
        return folder, name, self.names[folder].get(name)

    def name(self, folder: int, name: str, target: int | None) -> None:
        self.operations.append(("name", folder, name, target))
        self.names[folder].pop(name, None)
        if target is not None:
            self.names[folder][name] = target

    def write(self, file: int, data: bytes) -> None:
        self.operations.append(("data", file, data))
        self.data[file] = data

    def new(self, folder: int, name: str, file: bool) -> int:
        self.numbers += 1
        if file:
            self.write(self.numbers, b"")
        else:
            self.names[self.numbers] = {}
        self.name(folder, name, self.numbers)
        return self.numbers

    @contextmanager
    def recording(self) -> Iterator[None]:
        calls = {
            "open": self.os_open,
            "close": self.os_close,
            "write": self.os_write,
            "pwrite": self.os_pwrite,
            "truncate": self.os_truncate,
            "fsync": self.os_fsync,
            "rename": self.os_rename,
            "mkdir": self.os_mkdir,
            "unlink": self.os_unlink,
            "rmdir": self.os_rmdir,
        }
        self.real = {name: getattr(os, name) for name in calls}
        with pytest.MonkeyPatch.context() as patch:
            for name, call in calls.items():
                patch.setattr(os, name, call)
            yield

    def os_open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        handle = self.real["open"](path, flags, *args, **kwargs)
        if isinstance(path, str | Path) and (found := self.find(path)):
            folder, name, file = found
            if file is None:
                file = self.new(folder, name, file=True)
            elif flags & os.O_TRUNC:
                self.write(file, b"")
            self.handles[handle] = file
        return handle

    def os_close(self, handle: int) -> None:
        self.real["close"](handle)
        self.handles.pop(handle, None)

    def os_write(self, handle: int, data: Any) -> int:
        count = self.real["write"](handle, data)
        if file := self.handles.get(handle):
            self.write(file, self.data[file] + bytes(data)[:count])
        return count

    def os_pwrite(self, handle: int, data: bytes, offset: int) -> int:
        assert offset == 0
        if file := self.handles.get(handle):
            self.write(file, data + self.data[file][len(data) :])
        return self.real["pwrite"](handle, data, offset)

    def os_truncate(self, handle: int, length: int) -> None:
        self.write(self.handles[handle], self.data[self.handles[handle]][:length])
        self.real["truncate"](handle, length)

    def os_fsync(self, handle: int) -> None:
        if handle in self.handles and self.syncs(handle):
            self.operations.append(("sync", self.handles[handle]))

    def os_rename(self, old: Any, new: Any) -> None:
        self.real["rename"](old, new)
        if (source := self.find(old)) and (target := self.find(new)):
            self.name(target[0], target[1], source[2])
            self.name(source[0], source[1], None)

    def os_mkdir(self, path: Any, *args: Any, **kwargs: Any) -> None:
        self.real["mkdir"](path, *args, **kwargs)
        if found := self.find(path):
            self.new(found[0], found[1], file=False)

    def os_unlink(self, path: Any, **kwargs: Any) -> None:
        self.real["unlink"](path, **kwargs)
        self.gone(path)

    def os_rmdir(self, path: Any, **kwargs: Any) -> None:
        self.real["rmdir"](path, **kwargs)
        self.gone(path)

    def gone(self, path: Any) -> None:
        if found := self.find(path):
            self.name(found[0], found[1], None)


def after_a_cut(
    operations: list[Operation], chance: random.Random | None
) -> tuple[dict[tuple[int, str], int | None], dict[int, bytes]]:
    """One legal state of the disk after these operations: the target of every name, the bytes of
    every file. Without chance, only what was synced."""
    names: dict[
        tuple[int, str], list[int | None]
    ] = {}  # the durable state first, then what may have come after it
    data: dict[int, list[bytes]] = {}
    for operation in operations:
        match operation:
            case ("data", file, after):
                data.setdefault(file, [b""]).append(after)
            case ("name", folder, name, target):
                names.setdefault((folder, name), [None]).append(target)
            case ("sync", number):
                if number in data:
                    data[number] = data[number][-1:]
                for key in names:
                    if key[0] == number:
                        names[key] = names[key][-1:]
    if chance is None:
        return {key: states[0] for key, states in names.items()}, {
            file: states[0] for file, states in data.items()
        }
    survival = chance.choice((0.0, 0.2, 0.5, 0.8, 1.0))
    return (
        {
            key: states[-1] if chance.random() < survival else chance.choice(states)
            for key, states in names.items()
        },
        {file: _some_bytes(states, survival, chance) for file, states in data.items()},
    )


def _some_bytes(states: list[bytes], survival: float, chance: random.Random) -> bytes:
    if len(states) == 1:
        return states[0]
    whole = states[-1]
    if chance.random() < survival:
        return whole
    cut = chance.randrange(len(whole) + 1)
    return chance.choice(
        (
            states[0],
            chance.choice(states),
            whole[:cut],
            bytes(len(whole)),
            whole[:cut] + bytes(len(whole) - cut),
            bytes(cut) + whole[cut:],
        )
    )


def lay_down(
    folder: Path, names: dict[tuple[int, str], int | None], data: dict[int, bytes], number: int = 0
) -> None:
    """Make the state a real folder."""
    folder.mkdir()
    for (parent, name), target in names.items():
        if parent == number and target is not None:
            if target in data:
                (folder / name).write_bytes(data[target])
            else:
                lay_down(folder / name, names, data, target)


# --- what is recorded


def recorded(
    folder: Path, broken: Callable[[Recorder, pytest.MonkeyPatch], None] | None = None
) -> list[Operation]:
    """A whole run: item list, view, shards, seal and check."""
    recorder = Recorder(folder)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if broken:
            broken(recorder, patch)
        with recorder.recording():
            faults.extract(folder)
    return recorder.operations


def recorded_with_repair(folder: Path) -> list[Operation]:
    """The same, then two shards are harmed, a commit and the description; repaired and computed
    again. Marks: harmed, mended."""
    recorder = Recorder(folder)
    folder.mkdir()
    with recorder.recording():
        view = faults.extract(folder).folder
        recorder.mark("harmed")
        for name in ("embeddings/c/1/0", "status/c/2", "commits/00000.json", "zarr.json"):
            before = (view / name).read_bytes()
            handle = os.open(view / name, os.O_WRONLY | os.O_TRUNC)
            os.write(handle, before[:-9] + bytes(9))
            os.fsync(handle)
            os.close(handle)
        recorder.mark("mending")
        assert faults.mend(folder) == [1, 2]
        recorder.mark("mended")
        faults.extract(folder)
    return recorder.operations


def recorded_with_a_kill(folder: Path, place: int) -> list[Operation]:
    """A run that is killed at a fault point, then resumed: what the first left in the kernel's
    memory is not yet on the disk."""

    class Killed(BaseException):
        pass

    def fault(point: str) -> None:
        nonlocal place
        place -= 1
        if not place:
            raise Killed

    recorder = Recorder(folder)
    folder.mkdir()
    with recorder.recording():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "fault", fault)
            with pytest.raises(Killed):
                faults.extract(folder)
        recorder.mark("resumed")
        faults.extract(folder)
    return recorder.operations


# --- what must hold


def committed_and_lost(folder: Path) -> list[str]:
    """Shards with an intact commit and no intact files: what was proved and is not so."""
    lost = []
    for path in (folder / "cache").glob("d-*/v-*"):
        try:
            view = store.open_view(path)
        except CoviewError:
            if any((path / "commits").glob("*.json")):
                lost.append("commits without a description")
            continue
        for shard in range(view.shards):
            try:
                files = integrity.read_commit(view, shard)["files"]
            except CoviewError:
                if view.commit_file(shard).exists():
                    lost.append(f"commit {shard} is there, and damaged")
                continue
            lost += [
                name
                for name, file in files.items()
                if not (path / name).is_file() or integrity.sha256_of(path / name) != file["sha256"]
            ]
    return lost


def wrong(folder: Path, undisturbed: Contents, repair: bool = False) -> str:
    """What is wrong with a state after a cut: something proved is lost, something wrong is trusted,
    or the next run ends with other bytes."""
    if not repair and (lost := committed_and_lost(folder)):
        return f"committed, but lost: {lost}"
    try:
        faults.refused(folder)
        if repair and list((folder / "cache").glob("d-*/v-*")):
            faults.mend(folder)
            faults.refused(folder)
        faults.extract(folder)
    except (CoviewError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    after = {
        name: data for name, data in contents(folder).items() if not name.endswith(".tmp")
    }  # the next writer sweeps it
    return (
        ""
        if after == undisturbed
        else "other bytes: "
        f"{[name for name in {*after, *undisturbed} if after.get(name) != undisturbed.get(name)]}"
    )


def try_states(
    operations: list[Operation],
    number: int,
    seed: int,
    tmp_path: Path,
    undisturbed: Contents,
    start: int = 0,
    repair_from: int | None = None,
    until_first: bool = False,
) -> list[str]:
    """Cut the power at random places after `start`; the states that are wrong, and why."""
    chance, failures = random.Random(seed), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)  # this disk lives only for the test
        for trial in range(number):
            place = chance.randint(start, len(operations))
            names, data = after_a_cut(operations[:place], chance)
            folder = tmp_path / "state"
            lay_down(folder, names, data)
            if why := wrong(folder, undisturbed, repair_from is not None and place >= repair_from):
                failures.append(
                    f"state {trial}, cut after {place} of {len(operations)}, "
                    f"{operations[place - 1][:4]}: {why}"
                )
                if until_first:
                    break
            shutil.rmtree(folder)
    return failures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Operation], Contents]:
    folder = tmp_path_factory.mktemp("recorded") / "run"
    return recorded(folder), contents(folder)


def test_the_record_is_the_whole_run(run, tmp_path):
    """With everything on the disk the state is the folder itself."""
    operations, undisturbed = run
    last = [*operations, *(("sync", number) for number in range(1000))]
    names, data = after_a_cut(last, random.Random(0))
    lay_down(tmp_path / "run", names, data)
    assert contents(tmp_path / "run") == undisturbed and not faults.refused(tmp_path / "run")
    kinds = [operation[0] for operation in operations]
    assert (
        kinds.count("sync") > 2 * len(undisturbed)
        and kinds.count("name") > 3 * len(undisturbed)
        and kinds.count("data") >= 3 * len(undisturbed)
    )


@pytest.mark.parametrize("number", [60, pytest.param(1200, marks=pytest.mark.many)])
def test_after_a_power_cut_nothing_proved_is_lost_and_the_next_run_ends_with_the_same_bytes(
    run, tmp_path, number
):
    assert try_states(run[0], number, number, tmp_path, run[1]) == []


@pytest.mark.parametrize("number", [25, pytest.param(600, marks=pytest.mark.many)])
def test_after_a_power_cut_in_a_repair_nothing_wrong_is_trusted_and_another_gives_the_same_bytes(
    run, tmp_path, number
):
    operations = recorded_with_repair(tmp_path / "recorded")
    assert contents(tmp_path / "recorded") == run[1]
    harmed = operations.index(("mark", "harmed"))
    assert (
        try_states(operations, number, number, tmp_path, run[1], start=harmed, repair_from=harmed)
        == []
    )


@pytest.mark.parametrize("number", [20, pytest.param(400, marks=pytest.mark.many)])
def test_after_a_kill_and_then_a_power_cut_it_does(run, tmp_path, number):
    chance = random.Random(number)
    for trial in range(number // 5):
        operations = recorded_with_a_kill(tmp_path / f"recorded{trial}", chance.randrange(1, 110))
        resumed = operations.index(("mark", "resumed"))
        assert try_states(operations, 5, trial, tmp_path, run[1], start=resumed) == [], (
            f"killed after {operations[resumed - 1]}"
        )


def test_what_a_killed_run_left_in_memory_is_on_the_disk_before_the_next_one_builds_on_it(
    run, tmp_path, monkeypatch
):
    """Killed before each sync of a folder, resumed to the end; then all that
    was never synced is gone."""
    points: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(durable, "fault", points.append)
        (tmp_path / "points").mkdir()
        faults.extract(tmp_path / "points")
    places = [
        place
        for place, point in enumerate(points, 1)
        if point.endswith((".folder", "folder.parent"))
        and point not in ("settle.folder", "verified.folder")
    ]
    assert len(places) > 20
    for place in places:
        operations = recorded_with_a_kill(tmp_path / "recorded", place)
        lay_down(tmp_path / "state", *after_a_cut(operations, None))
        assert not wrong(tmp_path / "state", run[1]), f"killed at {points[place - 1]}"
        shutil.rmtree(tmp_path / "recorded")
        shutil.rmtree(tmp_path / "state")


# --- the model bites


def _no_sync_of_files(recorder: Recorder, patch: pytest.MonkeyPatch) -> None:
    recorder.syncs = lambda handle: os.path.isdir(f"/proc/self/fd/{handle}")


def _no_sync_of_shards(recorder: Recorder, patch: pytest.MonkeyPatch) -> None:
    recorder.syncs = lambda handle: (
        "embeddings/c" not in os.readlink(f"/proc/self/fd/{handle}")
        or os.path.isdir(f"/proc/self/fd/{handle}")
    )


def _no_sync_of_folders(recorder: Recorder, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(durable, "fsync_folder", lambda folder: None)


def _commit_before_the_shard(recorder: Recorder, patch: pytest.MonkeyPatch) -> None:
    held: list[tuple[Any, ...]] = []

    def write(
        path: Path, data: bytes, point: str, real: Callable[..., None] = durable.write
    ) -> None:
        if point in ("embeddings", "status"):
            held.append((path, data, point))
            return
        real(path, data, point)
        while point == "commit" and held:
            real(*held.pop(0))

    patch.setattr(durable, "write", write)


def _commit_in_place(recorder: Recorder, patch: pytest.MonkeyPatch) -> None:
    """Not beside and renamed: one that was cut short stays."""

    def write(
        path: Path, data: bytes, point: str, real: Callable[..., None] = durable.write
    ) -> None:
        if point != "commit":
            return real(path, data, point)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(handle, data)
        os.fsync(handle)
        os.close(handle)
        durable.fsync_folder(path.parent)

    patch.setattr(durable, "write", write)


@pytest.mark.parametrize(
    "broken",
    [
        _no_sync_of_files,
        _no_sync_of_shards,
        _no_sync_of_folders,
        _commit_before_the_shard,
        _commit_in_place,
    ],
)
def test_a_writer_that_leaves_a_step_out_is_caught(run, tmp_path, broken):
    operations = recorded(tmp_path / "broken", broken)
    assert contents(tmp_path / "broken") == run[1], "without a power cut nobody sees it"
    failures = try_states(operations, 1000, 3, tmp_path, run[1], until_first=True)
    assert failures
