"""Coview as it is installed: the console script in a folder that holds whatever a user keeps there,
files called train.py and base.py too."""

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Made
from PIL import Image
from training import config, flags, outcome

from train.command import run

ROOMS = ("base", "cache_specs", "extract", "exchange", "upkeep", "train", "predict", "report")
SCRIPT = Path(sys.executable).with_name("coview")


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A folder with a user's own files and folders. None of them is ever imported: `touched` says
    which was."""
    folder = tmp_path / "user"
    (folder / "data").mkdir(parents=True)
    touched = tmp_path / "touched"
    for name in (*ROOMS, "coview", "torch"):
        text = f"open({str(touched)!r}, 'a').write(__name__ + '\\n')\nraise SystemExit(__file__)\n"
        (folder / f"{name}.py").write_text(text)
    return folder


def type_(script: Path, folder: Path, *words: object, code: int | None = 0) -> str:
    """Type `coview …` in a folder; what it said on stdout. Nothing of the folder is imported. code:
    with which it ends; None: any."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in ("PYTHONPATH", "PYTHONSAFEPATH", "COVIEW_MAKE"):
        environment.pop(name, None)
    done = subprocess.run(
        [script, *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    touched = folder.parent / "touched"
    assert not touched.exists(), f"{touched.read_text()} was imported: {done.stderr}"
    assert code in (None, done.returncode), (done.stdout, done.stderr)
    return done.stdout


@pytest.mark.many
@pytest.mark.skipif(not SCRIPT.is_file(), reason="coview is not installed; type make setup")
def test_two_ranks_in_a_folder_with_a_train_py_of_its_own(
    made: Made, tmp_path: Path, user: Path
) -> None:
    settings = config(made, tmp_path / "two", method="mct", gpus=2, device="cpu", cotrain=10)
    type_(SCRIPT, user, "train", *flags(settings))
    alone = config(made, tmp_path / "one", method="mct", device="cpu", cotrain=10)
    run(alone)
    assert outcome(tmp_path / "two" / "a") == outcome(tmp_path / "one" / "a")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of a wheel that was built of what git tracks, in an environment of its
    own, whose dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "tree" / name)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    subprocess.run(
        [sys.executable, "-c", build], cwd=folder / "tree", check=True, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel],
        check=True,
        capture_output=True,
    )
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    found = subprocess.run(
        [python, "-c", "import base; print(base.__file__)"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(packages), "another coview comes first"
    return folder / "venv" / "bin" / "coview"


@pytest.fixture
def coview(installed: Path, user: Path) -> Callable[..., str]:
    return lambda *words, **more: type_(installed, user, *words, **more)


def photos(folder: Path) -> None:
    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(8):
        image = chance.integers(0, 255, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")


@pytest.mark.many
def test_a_wheel_holds_all_that_the_commands_need(
    coview: Callable[..., str], user: Path, tmp_path: Path
) -> None:
    assert "usage: coview COMMAND" in coview("--help")
    assert "tiny-clip" in coview("views")
    machine = coview("doctor", "--cache", tmp_path, code=None)  # which need not be a good one
    assert "versions" in machine and "scikit-learn" not in machine
    where = ("--cache", tmp_path / "cache")
    for view in ("tiny-clip", "tiny-dinov2"):
        coview("extract", "--view", view, "--data", "digits#top3", *where)
    views = ("--views", "tiny-clip,tiny-dinov2", "--data", "digits#top3")
    few = ("--labels", 3, "--warmup", 5, "--cotrain", 5, "--method", "supervised,mct")
    coview("train", *views, *few, *where, "--run", "one")
    assert (user / "runs" / "one" / "report.html").is_file()
    coview("train", *views, *few, *where, "--run", "two", "--gpus", 2, "--device", "cpu")
    assert coview("report", "--run", "one", *where).strip() == "runs/one/report.html"
    coview("compare", "--names", "one,two")
    coview("inspect", *views, *where)
    photos(user / "photos")
    told = json.loads(coview("predict", "--run", "one", "--images", "photos/", *where, "--json"))
    assert told["rows"] == 8
    coview("export-model", "--run", "one", "--to", "model", *where)
    coview("predict", "--model", "model", "--images", "photos/", "--to", "labels.csv")
    coview("export", "--view", "tiny-clip", "--data", "digits#top3", "--to", "clip.h5", *where)
    coview("verify", *where)
