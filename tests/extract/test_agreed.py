"""A finished view whose canary was compared under the very conditions of now is a hit without a
model; whatever differs makes the canary be computed."""

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import config
from PIL import Image

from base import durable
from base.errors import IntegrityError, StaleError
from cache_specs.view import View
from extract import agreed
from extract.models import backbones
from extract.run import run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ and a cache with one view of them."""
    folder = tmp_path_factory.mktemp("agreed")
    (folder / "photos" / "a").mkdir(parents=True)
    for number in range(5):
        image = Image.new("RGB", (20, 20), (50 * number, 9, 9))
        image.save(folder / "photos" / "a" / f"{number}.png")
    run(config(folder / "photos", folder / "cache"))
    return folder


class Again:
    """The same command again: how often the canary was computed, and the view."""

    def __init__(self, world: Path, patched: pytest.MonkeyPatch) -> None:
        self.world, self.computed, self.view = world, 0, view_of(world)
        real = backbones.load_backbone

        def load(*given: object) -> backbones.Backbone:
            self.computed += 1
            return real(*given)

        patched.setattr(backbones, "load_backbone", load)

    def __call__(self) -> int:
        self.computed = 0
        self.view = run(config(self.world / "photos", self.world / "cache"))
        return self.computed


def view_of(world: Path) -> View:
    from cache_specs import store

    return store.open_view(next((world / "cache").glob("*/*/complete.json")).parent)


@pytest.fixture
def again(world: Path, monkeypatch: pytest.MonkeyPatch) -> Again:
    found = Again(world, monkeypatch)
    found()
    return found


@pytest.fixture
def view(world: Path) -> Iterator[View]:
    """The view, compared."""
    found = view_of(world)
    canary = (found.folder / "canary.json").read_bytes()
    agreed.remember(found, "cpu")
    yield found
    (found.folder / "canary.json").write_bytes(canary)


def test_what_was_compared_under_the_same_conditions_needs_no_model(again: Again) -> None:
    assert again() == 0
    note = durable.read_sealed(again.view.folder / "agreed.json")
    assert note["conditions"]["device"] == "cpu" and note["view"] == again.view.identity
    assert note["conditions"]["python"] == platform.python_version()
    versions = note["conditions"]["versions"]
    assert {"torch", "torchvision", "pillow", "simplejpeg", "timm"} <= versions.keys()


def _package(patched: pytest.MonkeyPatch) -> None:
    real = agreed.versions_now()
    patched.setattr(agreed, "versions_now", lambda: {**real, "pillow": "99.0"})


def _codec(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(agreed, "OPTIONAL", (*agreed.OPTIONAL, "pytest"))


def _another_gpu(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(agreed, "described", lambda device: "NVIDIA H200")


def _text(path: str, text: str) -> Callable[[pytest.MonkeyPatch], None]:
    def change(patched: pytest.MonkeyPatch) -> None:
        real = agreed._text
        patched.setattr(agreed, "_text", lambda name: text if name == path else real(name))

    return change


def _instructions(patched: pytest.MonkeyPatch) -> None:
    """As another machine of the same name, without one of the instructions, has them."""
    real = agreed._text
    patched.setattr(
        agreed, "_text", lambda name: real(name).replace(" sse2", "").replace(" fp", "")
    )


CONDITIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "package": _package,
    "codec": _codec,
    "python": lambda patched: patched.setattr("platform.python_version", lambda: "3.99.0"),
    "device": _another_gpu,
    "processor": _text("/proc/cpuinfo", "processor: 0\nmodel name: Another\n\n"),
    "instructions": _instructions,
    "driver": _text("/proc/driver/nvidia/version", "NVRM version: 999.0\n"),
    "environment": lambda patched: patched.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
    "code": lambda patched: patched.setattr(agreed, "_code", lambda: "0" * 64),
}


@pytest.mark.parametrize("changed", CONDITIONS)
def test_under_any_other_condition_it_has_not_been_compared(
    view: View, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert agreed.has_agreed(view, "cpu")
    CONDITIONS[changed](monkeypatch)
    assert not agreed.has_agreed(view, "cpu")
    agreed.remember(view, "cpu")
    assert agreed.has_agreed(view, "cpu")


def test_then_the_canary_is_computed_once(again: Again, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        _package(patched)
        assert again() == 1
        assert again() == 0  # that is remembered now
    assert again() == 1


def test_every_condition_is_tried() -> None:
    kept = {"package", "codec", "instructions"}  # several of one kind
    assert set(agreed.conditions("cpu")) == set(CONDITIONS) - kept | {"versions"}


def test_the_code_is_that_of_the_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(agreed.OURS, tmp_path / "extract")
    monkeypatch.setattr(agreed, "OURS", tmp_path / "extract")
    plain = agreed._code.__wrapped__
    before = plain()
    assert before == agreed._code()
    (tmp_path / "extract" / "data" / "readers.py").write_text("")
    assert plain() != before


def _gone(view: View) -> None:
    (view.folder / "agreed.json").unlink()


def _flipped(view: View) -> None:
    path = view.folder / "agreed.json"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _of_another_view(view: View) -> None:
    path = view.folder / "agreed.json"
    path.write_bytes(durable.sealed({**durable.read_sealed(path), "view": "0" * 64}))


def _no_object(view: View) -> None:
    (view.folder / "agreed.json").write_text("[]")


def _a_folder(view: View) -> None:
    _gone(view)
    (view.folder / "agreed.json").mkdir()


def _copied_canary(view: View) -> None:
    """The same file elsewhere on the disk: of a copy of the cache, say."""
    path = view.folder / "canary.json"
    shutil.copy(path, view.folder / "copy")
    os.replace(view.folder / "copy", path)


def _lost_canary(view: View) -> None:
    (view.folder / "canary.json").unlink()


@pytest.mark.parametrize(
    "harm",
    [_gone, _flipped, _of_another_view, _no_object, _copied_canary, _lost_canary, _a_folder],
    ids=lambda harm: harm.__name__[1:],
)
def test_damaged_or_of_something_else_it_counts_for_nothing(
    view: View, harm: Callable[[View], None]
) -> None:
    harm(view)
    assert not agreed.has_agreed(view, "cpu")
    if harm is _a_folder:  # nothing can be remembered there
        agreed.remember(view, "cpu")
        assert not agreed.has_agreed(view, "cpu")
        (view.folder / "agreed.json").rmdir()


def test_a_canary_that_was_lost_or_damaged_is_looked_at(again: Again) -> None:
    _lost_canary(again.view)
    assert again() == 1 and again() == 0
    (again.view.folder / "canary.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"canary.json is damaged"):
        again()
    _lost_canary(again.view)


def test_what_does_not_agree_is_not_remembered(
    again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backbones.Backbone.forward
    _gone(again.view)
    with monkeypatch.context() as patched:
        patched.setattr(
            backbones.Backbone,
            "forward",
            lambda self, pixels, exact=False: 1.01 * real(self, pixels, exact),
        )
        for _ in range(2):
            with pytest.raises(StaleError, match="the model's outputs changed"):
                again()
    assert not (again.view.folder / "agreed.json").exists() and again() == 1


def test_in_a_read_only_cache_it_is_compared_at_every_start(
    again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gone(again.view)
    for _ in range(2):
        monkeypatch.setattr("base.durable._passed", 0)
        monkeypatch.setenv("COVIEW_FAULT", "EROFS:1:agreed.open")
        assert again() == 1
    monkeypatch.delenv("COVIEW_FAULT")
    assert again() == 1 and again() == 0


def test_a_view_that_was_only_copied_has_not_been_computed_here(
    again: Again, tmp_path: Path
) -> None:
    """Its canary is its donor's; the next start computes it."""
    shutil.copytree(again.world / "photos", tmp_path / "same")
    settings = config(tmp_path / "same", again.world / "cache")
    again.computed = 0
    view = run(settings)
    assert again.computed == 0 and not (view.folder / "agreed.json").exists()
    run(settings)
    assert again.computed == 1 and (view.folder / "agreed.json").is_file()
    shutil.rmtree(view.folder.parent)


def test_images_of_known_stamps_are_not_hashed_unless_that_is_asked_for(
    again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extract.data.readers import ReadFiles

    monkeypatch.setattr("cache_specs.stamps.RACY_NS", 0)
    hashed: list[int] = []
    real = ReadFiles.digest
    monkeypatch.setattr(ReadFiles, "digest", lambda self, i: hashed.append(i) or real(self, i))
    again()
    hashed.clear()
    assert again() == 0 and hashed == []
    run(config(again.world / "photos", again.world / "cache", rehash=True))
    assert sorted(hashed) == [0, 1, 2, 3, 4]


def test_the_note_says_nothing_of_this_machine_but_what_computes(again: Again) -> None:
    note = json.loads((again.view.folder / "agreed.json").read_bytes())
    assert set(note) == {"view", "canary", "conditions", "sha256"}
