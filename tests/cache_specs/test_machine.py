"""A random walk through everything that can happen to a cache, against a small
model of what may be believed.

The model knows the right rows of each spec (from a run that nothing disturbed), and whether
somebody has harmed the files. Whatever the walk does: what opens for training has exactly the right
rows, verify is right, and what was finished and not harmed still opens.
"""

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import VIEW_TOML
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from killing import Killed, killing
from PIL import Image

from base.errors import CoviewError, IntegrityError, StaleError, UsageError
from cache_specs import store
from extract.config import ExtractConfig
from extract.models import backbones
from extract.run import run
from train.data.reader import open_cache
from upkeep import gc
from upkeep.config import RepairConfig, VerifyConfig
from upkeep.repair import mend_view
from upkeep.verify import verify

N, ROWS, WIDTH = 18, 4, 8  # 5 shards, the last one half full
SPECS = ("antialias = true", "antialias = false")


class Projection(torch.nn.Module):
    """A backbone that costs nothing: a fixed projection of the pixels."""

    def forward(self, pixels: torch.Tensor, exact: bool = False) -> torch.Tensor:
        flat = pixels.float().flatten(1) / 255
        return flat @ torch.linspace(-1, 1, flat.shape[1] * WIDTH).sin().view(-1, WIDTH)


def make_world(folder: Path) -> None:
    for i in range(N):
        path = folder / "photos" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 12 + i, 3), np.uint8)).save(
            path
        )
    (folder / "photos" / "b" / "03.png").write_bytes(b"no image")
    (folder / "none").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "none" / name).write_text("{}")
    write_spec(folder, 0)


def write_spec(folder: Path, spec: int) -> None:
    (folder / "v.toml").write_text(VIEW_TOML.format(width=WIDTH).replace(SPECS[0], SPECS[spec]))


def settings_of(folder: Path) -> ExtractConfig:
    photos = next(
        path for path in (folder / "photos", folder / "moved" / "photos") if path.exists()
    )
    return ExtractConfig(
        view=str(folder / "v.toml"),
        data=str(photos),
        cache=str(folder / "cache"),
        device="cpu",
        batch=3,
        shard_rows=ROWS,
        workers=0,
    )


def rows_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    found = open_cache(folder / "cache", "photos", [str(folder / "v.toml")])
    return np.array(found.emb[0]), found.ok


class Walk(RuleBasedStateMachine):
    truth: list[tuple[np.ndarray, np.ndarray]]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        make_world(self.folder)
        self.spec = 0
        self.inside: int | None = None  # the spec of the view in the cache, if there is one
        self.finished = self.harmed = False

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def views(self) -> list[Path]:
        return [
            path
            for dataset in (self.folder / "cache").glob("photos-*")
            for path in store.view_folders(dataset)
        ]

    def believed(self) -> None:
        """What opens for training must be the truth of the current spec."""
        emb, ok = rows_of(self.folder)
        np.testing.assert_array_equal(emb, self.truth[self.spec][0])
        np.testing.assert_array_equal(ok, self.truth[self.spec][1])

    @rule(kill=st.one_of(st.none(), st.integers(1, 130)))
    def extract(self, kill: int | None) -> None:
        stale = self.inside not in (None, self.spec)
        try:
            with killing(kill):
                run(settings_of(self.folder))
        except Killed:
            assert kill is not None
            if self.views() and self.inside is None:
                self.inside = self.spec
        except StaleError:
            assert stale or self.harmed
        except IntegrityError as error:
            assert self.harmed and "make " in str(error)
        else:
            assert not stale
            self.inside, self.finished, self.harmed = self.spec, True, False
            self.believed()
            assert not list((self.folder / "cache").rglob(".*.tmp"))

    @rule(
        which=st.integers(0, 10**6),
        how=st.sampled_from(["flip", "cut", "grow", "zero", "delete", "swap"]),
        place=st.integers(0, 10**6),
    )
    def corrupt(self, which: int, how: str, place: int) -> None:
        files = sorted(
            path
            for folder in self.views()
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith((".lock", "verified", "progress"))
        )  # those two depend on the clock
        if not files:
            return
        path, other = files[which % len(files)], files[place % len(files)]
        data = bytearray(path.read_bytes())
        if how == "delete":
            path.unlink()
        elif how == "swap":
            path.write_bytes(other.read_bytes())
            other.write_bytes(bytes(data))
        else:
            if how == "flip" and data:
                data[place % len(data)] ^= 1 << place % 8
            path.write_bytes(
                {
                    "cut": data[: place % (len(data) + 1)],
                    "grow": data + b"x",
                    "zero": bytes(len(data)),
                }.get(how, data)
            )
        self.harmed = True

    @rule()
    def verify(self) -> None:
        try:
            verify(VerifyConfig(cache=str(self.folder / "cache")))
        except UsageError:
            assert not self.views()
        except CoviewError:
            assert self.harmed
        else:
            if (
                self.views()
                and (self.views()[0] / "complete.json").exists()
                and self.inside == self.spec
            ):
                self.believed()

    @rule(kill=st.one_of(st.none(), st.integers(1, 60)))
    def repair(self, kill: int | None) -> None:
        if not self.views():
            return
        try:
            with killing(kill):
                mend_view(
                    RepairConfig(
                        view=str(self.folder / "v.toml"),
                        cache=str(self.folder / "cache"),
                        workers=0,
                    )
                )
        except Killed:
            self.harmed |= kill is None
        except StaleError:
            assert self.inside != self.spec or self.harmed
        except UsageError as error:
            assert "which is gone. If they were moved" in str(error) and self.harmed
        except IntegrityError as error:
            assert self.harmed and "json" in str(
                error
            )  # all three descriptions are gone: it says to delete the folder
            shutil.rmtree(self.views()[0])
            self.inside, self.finished, self.harmed = None, False, False
        else:
            self.harmed = False
            self.finished = (self.views()[0] / "complete.json").exists()
            verify(VerifyConfig(cache=str(self.folder / "cache")))

    @rule()
    def open_for_training(self) -> None:
        try:
            self.believed()
        except StaleError:
            assert self.inside != self.spec or self.harmed
        except UsageError:
            assert not self.finished or self.harmed
        except IntegrityError as error:
            assert self.harmed and "make " in str(error)

    @rule()
    def collect(self) -> None:
        sealed = [
            folder for folder in self.views() if (folder / "complete.json").exists()
        ]  # those with shards done need --unfinished
        try:
            gc.collect(gc.GcConfig(cache=str(self.folder / "cache"), yes=True, unfinished=True))
        except UsageError:
            assert not (self.folder / "cache").exists()
        assert self.views() == sealed
        if not sealed:
            self.inside, self.finished, self.harmed = None, False, False

    @rule()
    def move(self) -> None:
        here, there = self.folder / "photos", self.folder / "moved" / "photos"
        there.parent.mkdir(exist_ok=True)
        if here.exists():
            here.rename(there)
        else:
            there.rename(here)

    @rule(spec=st.sampled_from([0, 1]))
    def change_the_spec(self, spec: int) -> None:
        self.spec = spec
        write_spec(self.folder, spec)

    @rule()
    def what_is_finished_and_not_harmed_opens(self) -> None:
        if not self.finished or self.harmed or self.inside != self.spec:
            return
        run(settings_of(self.folder))  # a hit, which also notes where the images lie now
        self.believed()


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backbones, "load_backbone", lambda spec, files, device: Projection())
    make_world(tmp_path)
    Walk.truth = []
    for spec in (0, 1):
        write_spec(tmp_path, spec)
        run(settings_of(tmp_path))
        Walk.truth.append(rows_of(tmp_path))
        shutil.rmtree(tmp_path / "cache")
    assert not np.array_equal(Walk.truth[0][0], Walk.truth[1][0], equal_nan=True)


def walk(examples: int, steps: int, derandomize: bool) -> None:
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=derandomize,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_random_walk() -> None:
    walk(40, 15, derandomize=True)


@pytest.mark.many
@pytest.mark.timeout(1800)
def test_many_random_walks() -> None:
    walk(600, 30, derandomize=False)
