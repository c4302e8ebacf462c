"""A short training, in this process or in another one, and what it leaves."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from conftest import ROOT, Made

from train.config import TrainConfig
from train.data.graph import links_of, nearest_rows, solve

QUICK = {
    "labels": "3",
    "lr": 5e-3,
    "hidden": 16,
    "batch_unlabelled": 16,
    "warmup": 20,
    "cotrain": 20,
    "eval_every": 10,
    "checkpoint_every": 10,
    "threads": 1,
    "tensorboard": "off",
}


def config(made: Made, folder: Path, *views: str, **changes: object) -> TrainConfig:
    return TrainConfig(
        views=made.views(*(views or ("pixels", "edges"))),
        data="digits",
        cache=str(made.cache),
        runs=str(folder),
        report=False,
        **{
            "run": "a",
            "seeds": "0..1",
            "method": "supervised,mct" if len(views) != 1 else "supervised",
            **QUICK,
            **changes,
        },
    )


def flags(settings: TrainConfig) -> list[str]:
    values = dataclasses.asdict(settings)
    words = []
    for name, value in values.items():
        name = name.replace("_", "-")
        words += (
            [f"--{name}" if value else f"--no-{name}"]
            if isinstance(value, bool)
            else [f"--{name}", str(value)]
        )
    return words


def outcome(folder: Path) -> dict[str, object]:
    """Everything a run leaves that must not depend on how often it was interrupted."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in ("probes/*/*", "splits/*", "metrics.jsonl", "predictions.parquet")
        for path in sorted(folder.glob(pattern))
    }
    summary = json.loads((folder / "summary.json").read_text())
    del summary["seconds"], summary["sha256"]  # the one is in the other
    summary["files"] = {name: sha256 for name, sha256 in summary["files"].items() if name in files}
    return {**files, "summary": summary}


def start(settings: TrainConfig) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "coview.cli", "train", *flags(settings)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not (path.is_file() and path.stat().st_size):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


def _is_rank(environ: Path, rank: int, folder: Path) -> bool:
    try:
        return (
            f"\0RANK={rank}\0".encode() in b"\0" + environ.read_bytes()
            and str(folder).encode() in (environ.parent / "cmdline").read_bytes()
        )
    except OSError:
        return False


def spread(
    x: np.ndarray, y: np.ndarray, classes: int, neighbours: int, alphas: tuple[float, ...]
) -> dict[float, np.ndarray]:
    links = links_of(nearest_rows(x, None, neighbours)[1])
    return {alpha: solve(links, y, classes, alpha) for alpha in alphas}
