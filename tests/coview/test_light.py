"""What a command does not use it does not import. Counted are modules, no seconds: torch, its
compiler and what models are built of are nearly all that a command without them would wait for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, config, importing
from PIL import Image

from extract.run import run as extract
from train.command import run as train
from train.config import TrainConfig

MODELS = ("timm", "transformers", "open_clip", "torchvision", "torch._dynamo", "simplejpeg")
HEAVY = (*MODELS, "torch", "sklearn", "zarr")
PROGRAM = """
import contextlib, io, json, os, sys
from base.commands import main

commands, watched = json.loads(sys.argv[1])
for words in commands:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main("coview.cli:COMMANDS", words)
    loaded = [name for name in watched if name in sys.modules]
    print(json.dumps([words[0], code, loaded, said.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos, one finished view of them, and a run on that."""
    folder = tmp_path_factory.mktemp("light")
    for number in range(12):
        split = "train" if number < 8 else "test"
        path = folder / "photos" / split / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (20 * number, 9, 99 * (number % 2))).save(path)
    (folder / "photos" / "unlabelled").mkdir()
    Image.new("RGB", (20, 20), (5, 5, 5)).save(folder / "photos" / "unlabelled" / "x.png")
    cache = str(folder / "cache")
    extract(config(folder / "photos", folder / "cache"))
    settings = TrainConfig(
        "tiny-clip",
        str(folder / "photos"),
        cache=cache,
        runs=str(folder / "runs"),
        run="a",
        method="supervised",
        warmup=3,
        hidden=8,
        tensorboard="off",
        device="cpu",
    )
    train(settings)
    return folder


def test_each_command_imports_what_it_uses(world: Path) -> None:
    at = ["--cache", "cache"]
    light = [
        ["status", *at],
        ["views", *at],
        ["weights", "--view", "swav", "--source", "nowhere"],
        ["verify", *at],
        ["inspect", "--views", "tiny-clip", "--data", "photos", *at],
        ["extract", "--view", "tiny-clip", "--data", "photos", *at],
    ]
    commands = [*light, ["predict", "--run", "a", *at]]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([commands, HEAVY])],
        env=importing(ROOT, OMP_NUM_THREADS="1"),
        cwd=world,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one[0] for one in found] == [words[0] for words in commands]
    for name, code, loaded, said in found[:-1]:
        assert loaded == [], f"{name} imports {loaded}"
        assert code == (2 if name == "weights" else 0), said
    assert "already in the cache, nothing to do" in found[-2][3]
    _, code, loaded, said = found[-1]
    assert code == 0 and "1 row in " in said, said
    assert "torch" in loaded and not {*MODELS} & {*loaded}, f"predict imports {loaded}"


def test_the_doctor_asks_other_processes() -> None:
    program = "import sys, upkeep.doctor; print([n for n in sys.argv[1:] if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program, *HEAVY, "numpy"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
