"""What a command does not use it does not import. Counted are modules, no seconds: torch, its
compiler and what models are built of are nearly all that a command without them would wait for."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, config, python
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
    shutil.copytree(folder / "runs" / "a", folder / "runs" / "b")
    return folder


def asked(world: Path, commands: list[list[str]]) -> list[tuple[str, int, list[str], str]]:
    """Of commands that one process runs, one after the other: name, exit code, what of HEAVY is
    loaded then, what was said."""
    done = python(PROGRAM, json.dumps([commands, HEAVY]), cwd=world)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one[0] for one in found] == [words[0] for words in commands]
    return found


def test_each_command_imports_what_it_uses(world: Path) -> None:
    """The light ones first: what one has loaded is there for the next."""
    at, photos = ["--cache", "cache"], ["--data", "photos", "--cache", "cache"]
    light = [
        ["status", *at],
        ["views", *at],
        ["weights", "--view", "swav", "--source", "nowhere"],
        ["verify", *at],
        ["inspect", "--views", "tiny-clip", *photos],
        ["compare", "--names", "a,b", "--to", "compare.html"],
        ["extract", "--view", "tiny-clip", *photos],
        ["extract", "--view", "tiny-clip", *photos, "--dry-run"],
    ]
    heavier = [
        ["predict", "--run", "a", *at],
        ["suggest", "--run", "a", *at],
        ["train", "--views", "tiny-clip", *photos, "--dry-run"],
    ]
    found = asked(world, [*light, *heavier])
    for name, code, loaded, said in found[: len(light)]:
        assert loaded == [], f"{name} imports {loaded}"
        assert code == (2 if name == "weights" else 0), said
    for name, code, loaded, said in found[len(light) :]:
        assert code == 0, said
        assert "torch" in loaded and not {*MODELS, "sklearn"} & {*loaded}, f"{name}: {loaded}"
    assert "already in the cache, nothing to do" in found[len(light) - 2][3]
    assert "time: none on cpu, there is nothing to embed" in found[len(light) - 1][3]
    assert "opening supervised of runs/a" in found[len(light)][3]
    assert "1 row in " in found[len(light)][3]


def test_a_typing_error_is_answered_without_torch(world: Path) -> None:
    at = ["--cache", "cache"]
    train = ["--views", "tiny-clip", "--data", "photos", *at]
    mistakes = {
        "LABELS=many": ["train", *train, "--labels", "many"],
        "LABELS=0.1": ["train", *train, "--labels", "0.1", "--dry-run"],
        "METHOD=mtc": ["train", *train, "--method", "mtc"],
        "SEEDS=x": ["train", *train, "--seeds", "x"],
        "RUN=a/b": ["train", *train, "--run", "a/b"],
        "DEVICE=cuda:x": ["train", *train, "--device", "cuda:x"],
        "no view 'tiny-clap'": ["train", "--views", "tiny-clap", "--data", "photos", *at],
        "GRID": ["sweep", *train, "--grid", "lrr=1"],
        "LABELS=few": ["sweep", *train, "--grid", "lr=1e-3", "--labels", "few"],
        "there is no run": ["predict", "--run", "b-1", *at],
        "METHOD=knnn": ["predict", "--run", "a", "--method", "knnn", *at],
        "RUN=c": ["export-model", "--run", "c", "--to", "model", *at],
        "METHOD=mct": ["export-model", "--run", "a", "--to", "model", "--method", "mct", *at],
        "RUN=d": ["suggest", "--run", "d", *at],
        "RUN=e": ["report", "--run", "e", *at],
        "coview train --views tiny-clip --run x --data photos/": [
            *("train", "--views", "tiny-clip", "--run", "x"),
        ],
        "did you mean 'tiny-clip'": ["extract", "--view", "tiny-clap", "--data", "photos", *at],
    }
    found = asked(world, [*mistakes.values()])
    for words, (name, code, loaded, said) in zip(mistakes, found, strict=True):
        flag, _, value = words.partition("=")
        told = f"--{flag.lower()} {value}" if value else words
        assert code == 2 and (told in said or words in said), said
        assert loaded == [], f"{name}: {words} is told after {loaded}"


def test_the_doctor_asks_other_processes() -> None:
    program = "import sys, upkeep.doctor; print([n for n in sys.argv[1:] if n in sys.modules])"
    done = python(program, *HEAVY, "numpy", cwd=ROOT)
    assert done.stdout == "[]\n"
