"""A short training, in this process or in another one, and what it leaves."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import server
from conftest import ROOT, Made

from base.commands import argv_of
from coview.live import TrainingConfig
from train.algorithm.neighbours import CPU
from train.config import TrainConfig
from train.data.graph import links_of, nearest_on, solve

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


def typed(settings: TrainConfig) -> TrainingConfig:
    """As `make train` has it."""
    return TrainingConfig(**dataclasses.asdict(settings))


def flags(settings: TrainConfig) -> list[str]:
    return argv_of(settings)


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
    return server.Popen(
        [sys.executable, "-m", "coview.cli", "train", *flags(settings)],
        cwd=ROOT,
        env={**os.environ, **server.FIXED},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


HARMED = """
import os, sys
from coview.cli import run
from train.run.log import Listeners

at_step, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
plain, taken = Listeners.step, []

def harmed(self, step):
    taken.append(step)
    if len(taken) == at_step:
        os.kill(os.getpid(), number)
    plain(self, step)

Listeners.step = harmed
run()
"""


def on_ranks(
    words: list[str],
    ranks: int,
    log: Path,
    harm: dict[int, tuple[list[str], dict[str, str]]] | None = None,
    torchrun: bool = True,
    patience: float = 90,
) -> list[int]:
    """`coview WORDS` on each of so many ranks, as torchrun would start them: their exit statuses.

    What they say is in `log`. harm, of a rank: what it runs instead of `-m coview.cli`, and more of
    its environment. When one has failed the others get 5 s, as from `train.run.launch`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in range(ranks):
        program, environment = (harm or {}).get(rank, (["-m", "coview.cli"], {}))
        told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        told |= {**address, "TORCHELASTIC_RUN_ID": "trial"}
        with log.open("ab") as said:
            processes.append(
                server.Popen(
                    [sys.executable, *program, *words],
                    cwd=ROOT,
                    env={
                        **os.environ,
                        **server.FIXED,
                        "COVIEW_MAKE": "",
                        **(told if torchrun else {}),
                        **environment,
                    },
                    stdout=said,
                    stderr=said,
                )
            )
    end = time.monotonic() + patience
    while None in [process.poll() for process in processes]:
        if any(process.returncode for process in processes):
            end = min(end, time.monotonic() + 5)
        if time.monotonic() > end:
            for process in processes:
                process.kill()
        time.sleep(0.005)
    return [process.returncode for process in processes]


def train_on_ranks(settings: TrainConfig, ranks: int) -> None:
    """A training that ends well on so many ranks."""
    log = Path(settings.runs) / f"{settings.run}.txt"
    codes = on_ranks(["train", *flags(dataclasses.replace(settings, gpus=ranks))], ranks, log)
    assert codes == [0] * ranks, log.read_text()


def wait_for(path: Path, process: subprocess.Popen | None, seconds: float = 120) -> None:
    """Until a file has bytes. process: who writes it and must be alive; None: one that is not
    ours."""
    end = time.monotonic() + seconds
    while not (path.is_file() and path.stat().st_size):
        if process is not None:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} is not written"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while is_alive(pid):
        assert time.monotonic() < until, f"process {pid} is still there"
        time.sleep(0.05)


def _is_rank(environ: Path, rank: int, folder: Path) -> bool:
    try:
        return (
            f"\0RANK={rank}\0".encode() in b"\0" + environ.read_bytes()
            and str(folder).encode() in (environ.parent / "cmdline").read_bytes()
        )
    except OSError:
        return False


def rank_of(folder: Path, rank: int, seconds: float = 60) -> int:
    """The process id of a rank whose command line names this folder."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(StopIteration):
            return next(
                int(path.parent.name)
                for path in Path("/proc").glob("[0-9]*/environ")
                if _is_rank(path, rank, folder)
            )
    raise AssertionError(f"there is no rank {rank}")


def spread(
    x: np.ndarray, y: np.ndarray, classes: int, neighbours: int, alphas: tuple[float, ...]
) -> dict[float, np.ndarray]:
    links = links_of(nearest_on(CPU, x, None, neighbours))
    found = [spread.told_nC for spread in solve(links, y, classes, alphas)]
    return dict(zip(alphas, found, strict=True))
