"""`make finetune … GPUS=2`: what one process would give, or with replicas nearly; ended and begun
again the same bytes. The processes are gloo's, on the CPU."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import server
import torch
from conftest import ROOT, config, shared
from safetensors.torch import load_file
from test_finetune import VIEWS, asked, outcome, run
from test_teaching import both
from training import on_ranks, rank_of, wait_for

from base import durable
from base.commands import argv_of
from base.errors import StaleError, UsageError
from cache_specs.spec import SPECS
from extract.run import run as extract
from train.algorithm.peers import OneOfSeveral
from train.algorithm.ranks import views_of
from train.finetune.config import FinetuneConfig
from train.finetune.ground import SHARE, chunk_of, made, read, wanted
from train.finetune.live import Needs
from train.finetune.together import Together
from train.finetune.tune import Tuning

MANY = pytest.mark.many
HARMED = """
import os, sys, time
from coview.cli import run
from train.finetune import ground
from train.finetune.together import Together
from train.finetune.tune import Tuning

at_step, number, dealt = (int(sys.argv.pop(1)) for _ in range(3))

def harmed(plain):
    def learn(work, batch):
        if work.step == at_step:
            os.kill(os.getpid(), number)
            time.sleep(0.2)
        return plain(work, batch)
    return learn

for kind in (Together, Tuning):
    kind.learn = harmed(kind.learn)
if dealt:
    ground.too_large = lambda *_: True
run()
"""


def words(settings: FinetuneConfig) -> list[str]:
    return ["finetune", *argv_of(settings)]


def on_two(
    settings: FinetuneConfig,
    rank: int = 0,
    step: int = -1,
    number: int = signal.SIGKILL,
    dealt: bool = False,
) -> tuple[list[int], str]:
    """The exit statuses of both processes, and what they said. step: at which a signal hits one;
    dealt: the view is taken for too large for one process."""
    programs = {}
    for each in range(2) if dealt else [rank] * (step >= 0):
        hit = step if each == rank else -1
        program = ["-c", HARMED, str(hit), str(int(number)), str(int(dealt))]
        programs[each] = (program, {})
    log = Path(settings.runs) / "log.txt"
    log.parent.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    codes = on_ranks(words(settings), 2, log, programs)
    return codes, log.read_text()


def alone_with_two(cache: Path, folder: Path) -> FinetuneConfig:
    """One view, whose batches two processes share."""
    return asked(cache, folder, gpus=2, ema=0.5)


@pytest.fixture(scope="module")
def one_process(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = run(both(digits, tmp_path_factory.mktemp("one")))
    with shared(folder):
        yield folder


@pytest.fixture(scope="module")
def replicas(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    settings = alone_with_two(digits, tmp_path_factory.mktemp("replicas"))
    codes, said = on_two(settings)
    assert codes == [0, 0], said
    folder = Path(settings.runs) / "tiny-clip-ft"
    with shared(folder):
        yield folder


# ---------------------------------------------------------------- the same numbers


def test_a_view_a_process_gives_what_one_process_gives(
    digits: Path, one_process: Path, tmp_path: Path
) -> None:
    """To the last byte. Each process says what learns of its own view, one of them the rest."""
    codes, said = on_two(both(digits, tmp_path, gpus=2))
    assert codes == [0, 0], said
    assert outcome(tmp_path / "both") == outcome(one_process)
    for view in VIEWS:
        assert said.count(f"{view}, mode lora: ") == 1
    assert said.count("labelled images and") == said.count("To embed all images") == 1
    told = json.loads((tmp_path / "both" / "tuned.json").read_bytes())["views"]
    assert {*told} == {f"both-{view}" for view in VIEWS}
    assert all(one["val"]["images"] == 355 for one in told.values())


def test_shared_batches_give_nearly_what_one_process_gives(
    replicas: Path, digits: Path, tmp_path: Path
) -> None:
    settings = dataclasses.replace(alone_with_two(digits, tmp_path), gpus=1)
    learnt = [load_file(p / "tiny-clip-ft.learnt.safetensors") for p in (run(settings), replicas)]
    for name, value in learnt[0].items():
        torch.testing.assert_close(learnt[1][name], value, atol=2e-5, rtol=1e-3)
    assert (replicas / "seen.txt").read_bytes() == (tmp_path / "tiny-clip-ft/seen.txt").read_bytes()


class Half:
    """Peers of one of two replicas whose other one is not there."""

    ranks = replicas = 2

    def __init__(self, replica: int, count: int) -> None:
        self.rank = self.replica = replica
        self.count, self.mine = count, list(range(count))

    def any(self, flag: bool) -> bool:
        return flag


@pytest.mark.parametrize("kind", [Tuning, Together])
def test_the_parts_of_a_batch_are_the_batch(kind: type, digits: Path, tmp_path: Path) -> None:
    """Crops and all: they are drawn by the place in the whole batch."""
    several = kind is Together
    settings = (both if several else asked)(digits, tmp_path, batch=8, flip=True)
    ground = read(settings)
    count = len(ground.originals)
    whole, _ = made(ground)
    parts = []
    for replica in range(2):
        part, _ = made(dataclasses.replace(ground), Half(replica, count))  # type: ignore[arg-type]
        parts.append(part.batch(3))
    if not several:
        for place, expected in enumerate(whole.batch(3)):
            assert torch.equal(torch.cat([part[place] for part in parts]), expected)
        return
    batches, draws_VEU = whole.batch(3)
    assert torch.equal(torch.cat([draws for _, draws in parts], 2), draws_VEU)
    for view, batch in enumerate(batches):
        for name in ("emb_EUD", "emb_ELD", "y_EL"):
            found = torch.cat([getattr(part[view], name) for part, _ in parts], 1)
            assert torch.equal(found, getattr(batch, name))


# ---------------------------------------------------------------- ended, and begun again


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_costs_the_steps_since_the_checkpoint(
    rank: int, digits: Path, one_process: Path, tmp_path: Path
) -> None:
    settings = both(digits, tmp_path, gpus=2)
    codes, said = on_two(settings, rank, step=3)
    assert codes[rank] == -signal.SIGKILL and 0 not in codes, said
    assert (tmp_path / "both" / "checkpoints" / "finetune-00000002").is_dir()
    assert not list((tmp_path / "both").glob("*.toml"))
    codes, said = on_two(settings)
    assert codes == [0, 0] and "GOES BACK" not in said, said
    assert outcome(tmp_path / "both") == outcome(one_process)


@pytest.mark.parametrize(
    "place",
    ["2:tuned.rename", *(pytest.param(p, marks=MANY) for p in ("1:tuned.half", "3:tuned.done"))],
)
def test_a_process_that_is_killed_while_it_writes_its_view(
    place: str, digits: Path, one_process: Path, tmp_path: Path
) -> None:
    """All steps were taken: none is taken again, and what is left is written anew."""
    settings = both(digits, tmp_path, gpus=2)
    log = tmp_path / "log.txt"
    harm = {1: (["-m", "coview.cli"], {"COVIEW_FAULT": f"kill:{place}"})}
    codes = on_ranks(words(settings), 2, log, harm)
    assert codes[1] == -signal.SIGKILL and 0 not in codes, log.read_text()
    assert not (tmp_path / "both" / "tuned.json").exists()
    assert (tmp_path / "both" / "checkpoints" / "finetune-00000006").is_dir()
    codes, said = on_two(settings, 0, step=0)  # a step would be the end of it
    assert codes == [0, 0], said
    assert outcome(tmp_path / "both") == outcome(one_process)


@MANY
def test_three_views_on_two_processes_are_those_of_one(digits: Path, tmp_path: Path) -> None:
    """By the command, as a user types it: one of the two has two views."""
    cache, third = shutil.copytree(digits, tmp_path / "cache"), tmp_path / "third.toml"
    text = (SPECS / "tiny-clip.toml").read_text(encoding="utf-8")
    folder = json.dumps(str(SPECS / "weights" / "tiny-clip"))
    third.write_text(text.replace('"weights/tiny-clip"', folder).partition("[text]")[0])
    extract(dataclasses.replace(config(Path("digits"), cache, view=str(third)), batch=64), {})
    views = f"{','.join(VIEWS)},third"
    alone = run(both(cache, tmp_path / "alone", views=views))
    settings = both(cache, tmp_path / "two", views=views, gpus=2)
    process = begun_by_the_command(settings, None)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert outcome(tmp_path / "two" / "both") == outcome(alone)


def test_a_signal_to_one_stops_both_and_they_go_on_to_the_same_bytes(
    digits: Path, replicas: Path, tmp_path: Path
) -> None:
    settings = alone_with_two(digits, tmp_path)
    codes, said = on_two(settings, 1, step=2, number=signal.SIGTERM)
    assert codes == [75, 75], said
    assert said.count("stopped at step 3 of 6, everything is saved") == 1
    assert said.count("To go on, type") == 1
    codes, said = on_two(settings)
    assert codes == [0, 0], said
    assert outcome(tmp_path / "tiny-clip-ft") == outcome(replicas)


def test_another_number_of_processes_is_another_run(
    digits: Path, replicas: Path, tmp_path: Path
) -> None:
    settings = alone_with_two(digits, tmp_path)
    on_two(settings, 0, step=3)
    log = tmp_path / "again.txt"
    codes = on_ranks(words(dataclasses.replace(settings, gpus=1)), 1, log, torchrun=False)
    assert codes == [6] and "was begun with GPUS=2" in log.read_text()
    assert "GPUS=2" in log.read_text().splitlines()[-1]


@pytest.mark.many
def test_the_command_starts_them_and_says_who_died(digits: Path, tmp_path: Path) -> None:
    """By torchrun, as a user does it; a process that dies ends all, with exit code 7."""
    process = begun_by_the_command(both(digits, tmp_path, gpus=2, steps=100_000), tmp_path / "both")
    os.kill(rank_of(tmp_path, 1), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 7, errors
    assert "rank 1 (tiny-dinov2) died at step" in errors
    assert "finetune" in errors.splitlines()[-1] and "Traceback" not in errors


def begun_by_the_command(settings: FinetuneConfig, folder: Path | None) -> subprocess.Popen:
    """`make finetune` as a user types it, once its first checkpoint is there (None: at once)."""
    process = server.Popen(
        [sys.executable, "-m", "coview.cli", *words(settings)],
        cwd=ROOT,
        env={**server.FIXED, "COVIEW_MAKE": "", **os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if folder is not None:
        wait_for(folder / "checkpoints" / "LATEST", process)
    return process


@MANY
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_the_command_is_said_once(
    number: int, code: int, digits: Path, tmp_path: Path
) -> None:
    process = begun_by_the_command(both(digits, tmp_path, gpus=2, steps=100_000), tmp_path / "both")
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert errors.count("everything is saved") == errors.count("To go on, type") == 1, errors
    assert errors.count("stopping after this step") == (code == 130)


def test_what_all_say_is_said_by_one(digits: Path, tmp_path: Path) -> None:
    codes, said = on_two(both(digits, tmp_path, gpus=2, lr=1e30, steps=50))
    assert codes == [3, 3] and said.count("the loss is not finite at step") == 1, said


def test_torchrun_of_ones_own_is_held_to_the_same_rules(digits: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    codes = on_ranks(words(asked(digits, tmp_path, batch=32)), 3, log)
    assert codes == [2, 2, 2] and "in 3 equal parts, and --batch 32 has none" in log.read_text()


def test_a_run_that_another_process_finished_meanwhile_is_left_alone(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look at the folder and the lock."""
    from train.finetune import run as finetune

    settings, read_only = asked(digits, tmp_path), finetune.read
    other = dataclasses.replace(settings, lr=0.01)

    def slowly(config: FinetuneConfig) -> object:
        ground = read_only(config)
        with monkeypatch.context() as patch:
            patch.setattr(finetune, "read", read_only)
            run(settings)
        return ground

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "read", slowly)
        with pytest.raises(StaleError, match=r"settings\.lr: 0\.0002 -> 0\.01"):
            run(other)
    expected = outcome(tmp_path / "tiny-clip-ft")
    assert outcome(run(settings)) == expected


def test_a_finished_run_is_shown_whatever_gpus_says(replicas: Path, digits: Path) -> None:
    settings = alone_with_two(digits, replicas.parent)
    assert run(dataclasses.replace(settings, gpus=1)) == replicas


def test_a_run_of_before_has_the_settings_that_are_younger(
    digits: Path, one_process: Path, tmp_path: Path
) -> None:
    shutil.copytree(one_process, tmp_path / "both")
    path = tmp_path / "both" / "config.json"
    begun = durable.read_sealed(path)
    del begun["settings"]["ema"], begun["settled"]["processes"], begun["sha256"]
    path.write_bytes(durable.sealed(begun))
    assert run(both(digits, tmp_path)) == tmp_path / "both"


# ---------------------------------------------------------------- dealt out


def too_large(cache: Path, folder: Path, mode: str = "full") -> FinetuneConfig:
    return dataclasses.replace(alone_with_two(cache, folder), mode=mode, chunk=2)


@pytest.fixture(scope="module")
def dealt(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    settings = too_large(digits, tmp_path_factory.mktemp("dealt"))
    codes, said = on_two(settings, dealt=True)
    assert codes == [0, 0], said
    assert said.count("too large for one process: each of 2 has a part of every parameter") == 1
    folder = Path(settings.runs) / "tiny-clip-ft"
    with shared(folder):
        yield folder


def differences_of(folder: Path, other: Path) -> dict[str, float]:
    """The largest of each tensor that learnt."""
    names = [path / "tiny-clip-ft.learnt.safetensors" for path in (folder, other)]
    found, expected = map(load_file, names)
    assert found.keys() == expected.keys()
    return {name: float((found[name] - expected[name]).abs().max()) for name in found}


def test_a_view_that_is_dealt_out_is_nearly_that_of_one_process(
    dealt: Path, digits: Path, tmp_path: Path
) -> None:
    """What is judged before and after is the same, too."""
    alone = run(dataclasses.replace(too_large(digits, tmp_path), gpus=1))
    assert max(differences_of(dealt, alone).values()) < 2e-5
    told = [json.loads((p / "tuned.json").read_bytes())["views"] for p in (dealt, alone)]
    assert told[0] == told[1]


@pytest.mark.parametrize("mode", ["lora", pytest.param("norms", marks=MANY)])
def test_a_part_of_it_may_learn_alone(mode: str, digits: Path, tmp_path: Path) -> None:
    settings = too_large(digits, tmp_path / "dealt", mode)
    codes, said = on_two(settings, dealt=True)
    assert codes == [0, 0], said
    alone = run(dataclasses.replace(settings, runs=str(tmp_path / "alone"), gpus=1))
    assert max(differences_of(tmp_path / "dealt" / "tiny-clip-ft", alone).values()) < 2e-5


def test_what_is_dealt_out_goes_on_to_the_same_bytes(
    dealt: Path, digits: Path, tmp_path: Path
) -> None:
    """Stopped, each has its part of everything; then one is killed. It stays dealt out, even if
    there were room for the whole by now."""
    settings = too_large(digits, tmp_path)
    codes, said = on_two(settings, 1, 2, signal.SIGTERM, dealt=True)
    assert codes == [75, 75], said
    parts = [
        load_file(tmp_path / f"tiny-clip-ft/checkpoints/finetune-00000003/rank{rank}.safetensors")
        for rank in range(2)
    ]
    whole = load_file(dealt / "tiny-clip-ft.learnt.safetensors")
    for kind in ("value", "exp_avg", "exp_avg_sq", "average"):
        for name in whole.keys() - {"mean_D", "std_D"}:
            own = [part[f"{kind}.{name}"] for part in parts]
            assert torch.cat(own).shape == whole[name].shape
            assert len(whole[name]) < 2 or max(map(len, own)) < len(whole[name])
    codes, said = on_two(settings, 1, 5)
    assert codes[1] == -signal.SIGKILL and 0 not in codes, said
    assert "Traceback" not in said
    codes, said = on_two(settings)
    assert codes == [0, 0], said
    assert outcome(tmp_path / "tiny-clip-ft") == outcome(dealt)


def test_what_does_not_fit_into_each_process_is_dealt_out(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By a fake limit: at which one image more is at hand than the whole leaves room for. A dry run
    says so."""
    from train.finetune import run as finetune

    # of three small blocks two, with their buffers, are more than all of them
    monkeypatch.setattr("train.finetune.live._at_once", lambda live: 10**6)
    settings = dataclasses.replace(too_large(digits, tmp_path / "runs"), chunk=1)
    ground, two, cpu = read(settings), OneOfSeveral(1, 2, 0), torch.device("cpu")
    work, needs = made(ground, two)
    assert not work.dealt
    whole = wanted(work.config, needs, 1, cpu)
    part = wanted(work.config, [needs[0].dealt_out(2)], 1, cpu)
    assert part < whole

    def free(room: int) -> None:
        monkeypatch.setattr("train.finetune.ground.free_bytes", lambda *_: room / SHARE + 1)

    free(whole)
    assert not made(ground, two)[0].dealt
    free(part)
    assert made(ground, two)[0].dealt
    assert made(dataclasses.replace(ground, dealt=True), two)[0].dealt
    with pytest.raises(UsageError, match="1 image at a time need"):
        made(dataclasses.replace(ground, dealt=False), two)
    caplog.set_level("INFO")
    found: dict = {}
    finetune.run(dataclasses.replace(settings, dry_run=True), found)
    assert found["seconds"] is None
    assert "too large for one process" in caplog.text
    assert "is seen when all of them run; nothing was written" in caplog.text
    free(part - 2)
    with pytest.raises(UsageError, match="Tune less"):
        made(ground, two)


# ---------------------------------------------------------------- words, memory


@pytest.mark.parametrize(
    ("changes", "told", "instead"),
    [
        ({"gpus": 3}, "GPUS=3, but 2 views are dealt out", {"GPUS": "2"}),
        ({"gpus": 0}, "use GPUS=1", {"GPUS": "1"}),
        ({"gpus": 4, "batch": 7}, "in 2 equal parts, and --batch 7", {"--batch": "8"}),
        ({"views": "", "view": "a", "gpus": 2, "mixup": 0.1}, "of one process for", {"GPUS": "1"}),
    ],
)
def test_what_cannot_be_dealt_out(changes: dict, told: str, instead: dict) -> None:
    settings = FinetuneConfig(views="tiny-clip,tiny-dinov2", data="digits")
    with pytest.raises(UsageError, match=told) as error:
        dataclasses.replace(settings, **changes).check()
    assert error.value.instead == instead


def test_all_processes_take_as_many_images_at_a_time_as_fit_in_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One has room for 16, another one, by its word, for 4 alone."""

    class Full(Half):
        asked = 0

        def any(self, flag: bool) -> bool:
            self.asked += 1
            return flag or self.asked <= 2

    settings, cpu = FinetuneConfig(view="a", batch=32, gpus=2), torch.device("cpu")
    needs = [Needs(weights=1000, learnt=10, image=100)]
    monkeypatch.setattr("train.finetune.ground.free_bytes", lambda *_: 10**9)
    assert chunk_of(settings, needs, cpu, Half(0, 1)) == 16  # type: ignore[arg-type]
    assert chunk_of(settings, needs, cpu, Full(0, 1)) == 4  # type: ignore[arg-type]


def test_a_dry_run_takes_each_process_as_it_is_alone(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from train.finetune import run as finetune

    caplog.set_level("INFO")
    found: dict = {}
    finetune.run(both(digits, tmp_path / "runs", gpus=2, dry_run=True), found)
    assert "besides what processes wait for each other; nothing was written" in caplog.text
    assert found["seconds"] >= 0 and not (tmp_path / "runs").exists()
    for view in VIEWS:
        assert caplog.text.count(f"{view}, mode lora") == 1
    assert "GB a process" in caplog.text


@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_a_process_alone_has_the_views_and_the_part_that_it_would_have(gpus: int) -> None:
    for rank in range(gpus):
        alone = OneOfSeveral(2, gpus, rank)
        assert [str(view) for view in alone.mine] == views_of(rank, gpus, ["0", "1"])
        assert (alone.replica, alone.replicas) == (rank // 2, max(1, gpus // 2))
        said = alone.exchange([torch.tensor(view) for view in alone.mine])
        assert len(said) == 2 and all(int(said[view]) == view for view in alone.mine)
