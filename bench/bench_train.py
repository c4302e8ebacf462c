"""How fast a training step is, beside its own matrix products, the original's way of doing it, and
live backbones: make bench-train (about 8 minutes).

    python bench/bench_train.py [--quick] [--device cpu] [--threads 1]
                                [--out bench/results/train.json]

Everything takes turns for several rounds, so that all meet the same load of the machine; a figure
is the median over the rounds with [lowest to highest], and a ratio is made round by round. A step
is what the training loop calls, on batches of its own Feeder, with the settings of `make train`
(64 + 128 rows, hidden 256) or of the paper (4,096 + 4,096 rows, hidden 1,024, 1,000 classes); the
widths are 1,024 and 768.

    the limit       the matrix products of the step's forward and backward passes, same shapes and
                    dtype, into memory that is there, nothing else
    the original    the step as the paper's code takes it, restated here: two processes, labels
                    drawn row by row from a softmax of the whole batch, six forward passes, view 0's
                    rows sent to all, gathers between barriers, the garbage collector before each
                    third of a step
    live            frozen backbones in the loop, on decoded images in memory, in place of the cache

One OpenMP thread a process, but where threads are compared. The clock of what one process does is
its CPU time (with --threads 2 the wall's), of ranks, threads and of whole runs the wall's; on a GPU
it is CUDA's events, the whole schedule of the paper runs, and ranks need as many GPUs. With --quick
the figures mean nothing.
"""

import argparse
import contextlib
import datetime
import functools
import gc
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench_cache import machine, spread

from base import native
from train import loop, phases
from train.algorithm import probe
from train.algorithm.cotrain import mct_step, supervised_step
from train.algorithm.optimise import Adam, State, fresh
from train.algorithm.peers import GroupPeers, LocalPeers, Peers
from train.algorithm.rivals import Rival
from train.algorithm.threads import threads, threads_of
from train.config import TrainConfig
from train.data.feed import (
    INIT,
    PURPOSES,
    Experiment,
    Feeder,
    Input,
    Task,
    make_input,
    shape_of,
)
from train.data.splits import Split
from train.phases import Job, after_warmup
from train.run.log import Console, Ignore, Jsonl

WIDTHS, IMAGENET, LABELLED = (1024, 768), 1_281_167, 128_117  # and 10 % of them
SMALL = {"classes": 10, "rows": 20_000, "labelled": 2_000}
PAPER = {
    "classes": 1000,
    "rows": IMAGENET,
    "labelled": LABELLED,
    "config": {
        "hidden": 1024,
        "batch_labelled": 4096,
        "batch_unlabelled": 4096,
        "lr": 1e-4,
        "temperature": 1.0,
        "warmup": 16_900,
        "cotrain": 11_300,
    },
}
SIDE_BY_SIDE = {
    "config": {"batch_labelled": 64, "batch_unlabelled": 64}
}  # the batch at which the original was measured
TWICE = {"config": {"batch_labelled": 128, "batch_unlabelled": 256}}
MIDDLE = {
    "classes": 1000,
    "config": {"hidden": 1024, "batch_labelled": 512, "batch_unlabelled": 512},
}
MIDDLE_TWICE = {
    "classes": 1000,
    "config": {"hidden": 1024, "batch_labelled": 1024, "batch_unlabelled": 1024},
}
FULL = {
    "rounds": 11,
    "steps": 8,
    "paper_rounds": 5,
    "paper": {},
    "stored": 50_000,
    "experiments": [1, 2, 4, 8, 16],
    "drawn_rows": 4,
    "images": 1797,
    "backbones": ["tiny-clip", "tiny-dinov2"],
    "middle": MIDDLE,
    "middle_twice": MIDDLE_TWICE,
    "ranks_rounds": 9,
    "whole_s": 25.0,
    "runs": 3,
    "run": {"warmup": 50, "cotrain": 250},
}
QUICK_SIZE = {"hidden": 16, "batch_labelled": 8, "batch_unlabelled": 8}
QUICK = {
    "rounds": 2,
    "steps": 1,
    "paper_rounds": 2,
    "paper": {
        "classes": 20,
        "config": {**PAPER["config"], **QUICK_SIZE, "warmup": 3, "cotrain": 2},
    },
    "stored": 500,
    "experiments": [1, 2],
    "drawn_rows": 1,
    "images": 200,
    "backbones": ["tiny-clip", "tiny-clip"],
    "middle": {"config": QUICK_SIZE},
    "middle_twice": {"config": QUICK_SIZE},
    "ranks_rounds": 1,
    "whole_s": 5.0,
    "runs": 1,
    "run": {"warmup": 2, "cotrain": 4, "eval_every": 2},
}
WARMUP, COTRAIN = "warm-up", "co-training"
ORIGINAL, UNCOLLECTED = "the original, 64 + 64 rows", "without its garbage collector"


# --- a step, as the loop takes it


@dataclass(frozen=True)
class Tiled(Input):
    """As many rows as the data set has, of which only the first are stored: a row number counts
    modulo these."""

    def __call__(self, rows: np.ndarray) -> Tensor:
        return super().__call__(rows % len(self.emb[0]))


@dataclass
class Probes:
    """The views of one process in the middle of their training: what `fit` keeps from step to
    step."""

    feed: Feeder
    peers: Peers
    method: Rival
    states: list[State]
    at: int = 0

    def batches(self, alone: bool, count: int) -> list[Any]:
        """As many draws end in here as batches are returned: no clock runs while one that it does
        not mean is under way."""
        self.at += count
        made = [self.feed(step, not alone) for step in range(self.at - count, self.at)]
        futures.wait([self.feed.ahead[1]])
        return made

    def run(self, alone: bool, batches: list[Any]) -> None:
        with precision(self.feed.device):
            for views, draws_VEU in batches:
                if alone:
                    self.states, _ = supervised_step(self.states, views, self.peers, self.method)
                else:
                    self.states, _ = mct_step(
                        self.states, views, draws_VEU, self.peers, self.method
                    )


def precision(device: torch.device) -> contextlib.AbstractContextManager:
    return (
        torch.autocast("cuda", torch.bfloat16)
        if device.type == "cuda"
        else contextlib.nullcontext()
    )


def made_task(
    size: dict[str, Any],
    stored: int,
    experiments: int,
    views: Sequence[int],
    device: torch.device,
    widths: Sequence[int] = WIDTHS,
) -> Task:
    """Normal embeddings and random labels: a step's time depends on neither. stored: rows that are
    in memory, if fewer."""
    n = size.get("rows", SMALL["rows"])
    classes, labelled, stored = (
        size.get("classes", SMALL["classes"]),
        size.get("labelled", SMALL["labelled"]),
        min(n, stored),
    )
    inputs = []
    for view in views:
        draws, emb_ND = np.random.default_rng(view), np.empty((stored, widths[view]), np.float16)
        for first in range(0, stored, 4096):
            emb_ND[first : first + 4096] = draws.standard_normal(
                emb_ND[first : first + 4096].shape, dtype=np.float32
            )
        made = make_input([emb_ND], np.arange(stored), device, torch.float32)
        inputs.append(Tiled(made.emb, made.mean_D, made.std_D, made.resident))
    split = Split(
        np.arange(labelled), np.arange(labelled, n), np.arange(min(n, 100)), np.arange(min(n, 100))
    )
    label = np.random.default_rng(9).integers(0, classes, n)
    splits = [split] * experiments
    tries = [Experiment(seed, 3e-4, 0.0, 0.5) for seed in range(experiments)]
    return Task(["a", "b"], inputs, label, classes, splits, tries)


def probes(config: TrainConfig, task: Task, peers: Peers) -> Probes:
    device, states = task.inputs[0].mean_D.device, []
    for view, source in zip(peers.mine, task.inputs, strict=True):
        params = probe.init(
            task.seeds,
            view * PURPOSES + INIT,
            source.width,
            task.classes,
            shape_of(config),
            torch.float32,
        )
        states.append(fresh({name: value.to(device) for name, value in params.items()}))
    lr = torch.full((len(task.seeds),), config.lr, device=device)
    temperature = torch.full(
        (len(task.seeds),), config.temperature, dtype=torch.float64, device=device
    )
    return Probes(
        Feeder(config, task, peers),
        peers,
        Rival(Adam(lr, config.clip), config.feedback, temperature),
        states,
    )


def products(
    experiments: int, rows: int, sizes: Sequence[int], backwards: int, device: torch.device
) -> list[Callable[[], Any]]:
    """The matrix products of one forward and `backwards` backward passes of one view; the inputs
    need no gradient."""
    dtype, calls = torch.bfloat16 if device.type == "cuda" else torch.float32, []
    make = functools.partial(torch.randn, dtype=dtype, device=device)
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        x, w, b, gy = (
            make(experiments, *shape)
            for shape in ((rows, fan_in), (fan_in, fan_out), (1, fan_out), (rows, fan_out))
        )
        y, gw, gx = torch.empty_like(gy), torch.empty_like(w), torch.empty_like(x)
        calls.append(functools.partial(torch.baddbmm, b, x, w, out=y))
        for _ in range(backwards):
            calls.append(functools.partial(torch.bmm, x.transpose(1, 2), gy, out=gw))
            if layer:
                calls.append(functools.partial(torch.bmm, gy, w.transpose(1, 2), out=gx))
    return calls


def limit(
    config: TrainConfig, classes: int, alone: bool, device: torch.device, experiments: int = 1
) -> list[Callable[[], Any]]:
    calls = []
    for width in WIDTHS:
        sizes = [width, *[config.hidden] * config.layers, classes]
        calls += products(experiments, config.batch_labelled, sizes, 1, device)
        calls += [] if alone else products(experiments, config.batch_unlabelled, sizes, 2, device)
    return calls


# --- clocks and turns


def clocked(device: torch.device, work: Callable[[], Any], waits: bool = False) -> float:
    """Seconds: on a GPU between two events of its own stream; on one CPU thread those of the CPU,
    which other programs hardly disturb."""
    if device.type != "cuda":
        clock = (
            time.process_time if torch.get_num_threads() == 1 and not waits else time.perf_counter
        )
        begun = clock()
        work()
        return clock() - begun
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begun.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(ended) / 1e3


Turn = Callable[[], float]  # takes its turn in a round; seconds of one step


def take_turns(turns: dict[str, Turn], rounds: int) -> dict[str, list[float]]:
    """name -> ms a step, one a round; the first round warms up and is not counted."""
    samples: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            seconds = turn()
            if number:
                samples[name].append(seconds * 1e3)
    return samples


def step_turn(which: Probes, alone: bool, steps: int, device: torch.device) -> float:
    batches = which.batches(alone, steps)
    return clocked(device, lambda: which.run(alone, batches)) / steps


def feed_turn(which: Probes, alone: bool, steps: int, device: torch.device) -> float:
    return clocked(device, lambda: which.batches(alone, steps)) / steps


def fed_turn(which: Probes, steps: int, device: torch.device) -> float:
    def work() -> None:
        for _ in range(steps):
            which.run(False, which.batches(False, 1))

    return clocked(device, work) / steps


def limit_turn(calls: list[Callable[[], Any]], steps: int, device: torch.device) -> float:
    def work() -> None:
        for _ in range(steps):
            for call in calls:
                call()

    return clocked(device, work) / steps


def of_a_step(
    config: TrainConfig, which: Probes, steps: int, device: torch.device
) -> dict[str, Turn]:
    """The step, its limit and its feed, in both phases."""
    turns: dict[str, Turn] = {}
    for name, alone in ((WARMUP, True), (COTRAIN, False)):
        turns[f"{name}, limit"] = functools.partial(
            limit_turn, limit(config, which.feed.task.classes, alone, device), steps, device
        )
        turns[name] = functools.partial(step_turn, which, alone, steps, device)
        turns[f"{name}, feed"] = functools.partial(feed_turn, which, alone, steps, device)
    return turns


# --- live backbones


@dataclass
class Live:
    """Stands where the cache's embeddings stand: images -> a frozen backbone, at every step
    anew."""

    backbone: Any
    pixels_NCHW: Tensor
    mean_D: Tensor
    std_D: Tensor

    @torch.no_grad()
    def __call__(self, rows: np.ndarray) -> Tensor:
        emb_BD = (
            self.backbone(self.pixels_NCHW[torch.from_numpy(rows.ravel())].to(self.mean_D.device))
            if rows.size
            else self.mean_D.new_empty(0, self.width)
        )
        return (emb_BD.view(*rows.shape, self.width) - self.mean_D) / self.std_D

    @property
    def width(self) -> int:
        return len(self.mean_D)


def _embed_rest(
    backbone: Any, pixels_NCHW: torch.Tensor, made_of: list[torch.Tensor], device: torch.device
) -> None:
    """All but the first 64, which did not count."""
    made_of.extend(backbone(part.to(device)) for part in pixels_NCHW[64:].split(64))


def digits(images: int, names: Sequence[str], device: torch.device) -> tuple[Task, Task, float]:
    """The bundled digits as both bundled backbones see them: a task on the cache, one on live
    backbones, and the seconds of embedding a view once."""
    from sklearn.datasets import load_digits

    from cache_specs.spec import load_spec
    from extract.models.backbones import load_backbone
    from extract.models.weights import find_weights

    bunch = load_digits()
    grey_NHW = torch.from_numpy(bunch.images[:images]).float()[:, None] * (255 / 16)
    pixels_NCHW = (
        torch.nn.functional.interpolate(grey_NHW, (28, 28), mode="bilinear")
        .round()
        .byte()
        .expand(-1, 3, -1, -1)
        .contiguous()
    )
    label, rows = bunch.target[:images].astype(np.int64), np.arange(images)
    train, val, test = rows[rows % 5 > 1], rows[rows % 5 == 0], rows[rows % 5 == 1]
    few = np.concatenate([train[label[train] == digit][:3] for digit in range(10)])
    cached, live, seconds = [], [], 0.0
    for name in names:
        spec = load_spec(name)
        backbone = load_backbone(spec, find_weights(spec, None)[0], str(device))
        with torch.no_grad():
            made_of = [backbone(pixels_NCHW[:64].to(device))]
            rest = functools.partial(_embed_rest, backbone, pixels_NCHW, made_of, device)
            seconds += clocked(device, rest)
        emb_ND = torch.cat(made_of).half().cpu().numpy()
        made = make_input([emb_ND], train, device, torch.float32)
        cached.append(made)
        live.append(Live(backbone, pixels_NCHW, made.mean_D, made.std_D))
        assert torch.allclose(cached[-1](train[:50]), live[-1](train[:50]), atol=0.05), (
            name
        )  # the cache rounds to float16
    splits = [Split(np.sort(few), np.setdiff1d(train, few), val, test)]
    tries = [Experiment(0, 3e-4, 0.0, 0.5)]
    task = Task(["a", "b"], cached, label, 10, splits, tries)
    return task, replace(task, inputs=live), seconds


# --- the original's way of taking the same step


class Original:
    """One rank of the original: its view's probe, and a step in three thirds. The numbers are not
    compared, only the work is the same."""

    def __init__(self, config: TrainConfig, task: Task, peers: GroupPeers) -> None:
        sizes, layers = [task.inputs[0].width, *[config.hidden] * config.layers], []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [
                torch.nn.Linear(fan_in, fan_out),
                torch.nn.LayerNorm(fan_out),
                torch.nn.ReLU(),
                torch.nn.Dropout(config.dropout),
            ]
        self.model, self.peers = (
            torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], task.classes)),
            peers,
        )
        self.collect = True
        self.adam, self.loss = (
            torch.optim.Adam(self.model.parameters(), lr=config.lr),
            torch.nn.CrossEntropyLoss(),
        )

    def gather(self, mine: Tensor) -> Tensor:
        self.peers.any(False)  # a barrier
        theirs = self.peers.exchange([mine])[1 - self.peers.rank]
        self.peers.any(False)
        return theirs

    def learn(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adam.step()
        self.adam.zero_grad()

    def gradient(self, loss: Tensor) -> list[Tensor]:
        self.adam.zero_grad()
        loss.backward()
        return [p.grad.detach().clone() for p in self.model.parameters()]

    def step(self, emb_UD: Tensor, emb_LD: Tensor, y_L: Tensor, sent_UD: Tensor) -> None:
        for third in range(3):
            if self.collect:
                gc.collect()
            torch.distributed.broadcast(sent_UD, 0)
            if third == 0:
                self.model.eval()
                with torch.no_grad():
                    z_UC = self.model(emb_UD)
                self.model.train()
                given_U = draw_by_rows(self.gather(z_UC))
                z_UC = self.model(emb_UD)
                taught = self.gradient(self.loss(z_UC, draw_by_rows(z_UC)))
                self.peers.any(False)
                before = self.gather(self.loss(self.model(emb_LD), y_L).detach()[None])
                self.gradient(self.loss(self.model(emb_UD), given_U))
                self.learn()
            elif third == 1:
                with torch.no_grad():
                    after = self.gather(self.loss(self.model(emb_LD), y_L).detach()[None])
                supervised = self.gradient(self.loss(self.model(emb_LD), y_L))
            else:
                for p, s, l in zip(self.model.parameters(), taught, supervised, strict=True):
                    p.grad = (before - after) * s + l
                self.learn()


def draw_by_rows(z_BC: Tensor, rows: int | None = None) -> Tensor:
    """One np.random.choice a row (or for the first `rows`), each after a softmax of the whole
    batch.

    nan_to_num and the clamp are the original's, restated because they are part of its cost; ours
    has neither."""
    return torch.tensor(
        [
            np.random.choice(
                z_BC.shape[1],
                p=torch.softmax(z_BC.float().nan_to_num().clamp(-(2**14), 2**14), -1)
                .detach()
                .cpu()
                .numpy()[row],
            )
            for row in range(len(z_BC) if rows is None else rows)
        ]
    )


# --- ranks: processes that wait for their turn


def rank_main(request: dict[str, Any], device_name: str) -> None:
    """Answer each line `name` on stdin with the seconds of one step of that case; every rank of the
    group gets the same lines."""
    device = torch.device(
        device_name if device_name == "cpu" else f"{device_name}:{os.environ['RANK']}"
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    peers, ready = GroupPeers(2, device), {}
    for line in sys.stdin:
        case = request[line.strip()]
        if line not in ready:
            config = TrainConfig(**case.get("config", {}))
            task = made_task(case, case["stored"], 1, peers.mine, device)
            ready[line] = (config, probes(config, task, peers), Original(config, task, peers))
        config, which, original = ready[line]
        batches = which.batches(False, case["steps"])
        sent_UD = torch.zeros(config.batch_unlabelled, WIDTHS[0])
        work = functools.partial(which.run, False, batches)
        if case.get("original"):
            original.collect = case["collect"]

            def work(
                original: Original = original, batches: list = batches, sent_UD: Tensor = sent_UD
            ) -> None:
                for (batch, *_), _ in batches:
                    original.step(batch.emb_EUD[0], batch.emb_ELD[0], batch.y_EL[0], sent_UD)

        peers.any(False)  # all begin together
        print(json.dumps(clocked(device, work, waits=True) / case["steps"]), flush=True)
    peers.close()


class Ranks:
    """A group of processes, one a rank, each with one thread; they stay until they are closed."""

    def __init__(self, count: int, request: dict[str, Any], device: torch.device) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "bench",
        }
        environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        self.ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "--child", json.dumps(request), "--device", device.type],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(count)
        ]

    def turn(self, name: str) -> float:
        """Seconds of one step, of the slowest rank."""
        for rank in self.ranks:
            rank.stdin.write(name + "\n")
            rank.stdin.flush()
        answers = [rank.stdout.readline() for rank in self.ranks]
        if not all(answers):
            raise SystemExit(f"a rank died while it ran {name!r}")
        return max(map(json.loads, answers))

    def close(self) -> None:
        for rank in self.ranks:
            rank.stdin.close()
        for rank in self.ranks:
            try:
                rank.wait(20)
            except subprocess.TimeoutExpired:
                rank.kill()


@contextlib.contextmanager
def groups(size: dict[str, Any], device: torch.device) -> Iterator[dict[str, Turn]]:
    """The turns of one and of two ranks. Weak: two ranks have twice the rows."""
    steps = size["steps"]
    sizes = {
        "64 + 128 rows": {"steps": steps},
        "512 + 512 rows": {**size["middle"], "steps": 1},
        "64 + 64 rows": {**SIDE_BY_SIDE, "steps": steps},
    }
    twice = {
        "128 + 256 rows": {**TWICE, "steps": steps},
        "1,024 + 1,024 rows": {**size["middle_twice"], "steps": 1},
    }
    original = {
        name: {**SIDE_BY_SIDE, "steps": 1, "original": True, "collect": name == ORIGINAL}
        for name in (ORIGINAL, UNCOLLECTED)
    }
    original = original if device.type == "cpu" else {}
    with contextlib.ExitStack() as open_groups:
        made: dict[str, Turn] = {}
        for count, cases in ((1, sizes), (2, {**sizes, **twice, **original})):
            if device.type == "cpu" or torch.cuda.device_count() >= count:
                ranks = Ranks(
                    count,
                    {name: {**case, "stored": size["stored"]} for name, case in cases.items()},
                    device,
                )
                open_groups.callback(ranks.close)
                made |= {
                    f"{name}, {count} rank{'s' * (count > 1)}": functools.partial(ranks.turn, name)
                    for name in cases
                }
        yield made


# --- one thread, or more


def of_threads(size: dict[str, Any], device: torch.device) -> tuple[dict[str, Turn], dict]:
    """The turns of a co-training step with 1, 2, 4 … of the cores, by the wall's clock, and what
    `make train` takes."""
    cores, steps = os.cpu_count() or 1, size["steps"]
    counts = sorted({cores, *[2**n for n in range(10) if 2**n < cores]})
    cases = {
        "64 + 128 rows, 1 seed": (SMALL, 1, steps),
        "64 + 128 rows, 5 seeds": (SMALL, 5, max(1, steps // 4)),
        "512 + 512 rows, 1 seed": (size["middle"], 1, 1),
    }
    turns: dict[str, Turn] = {}
    chosen = {}
    for name, (case, experiments, some) in cases.items():
        config = TrainConfig(**case.get("config", {}))
        task = made_task(case, size["stored"], experiments, [0, 1], device)
        which = probes(config, task, LocalPeers(2))
        with threads(cores), mock.patch.dict(os.environ):
            os.environ.pop("OMP_NUM_THREADS", None)
            chosen[name] = threads_of(0, which.states, which.feed.size_L, which.feed.size_U)
        for count in counts:
            turns[f"{name}, threads: {count}"] = functools.partial(
                threads_turn, which, count, some, device
            )
    return turns, chosen


def threads_turn(which: Probes, count: int, steps: int, device: torch.device) -> float:
    batches = which.batches(False, steps)
    with threads(count):
        return clocked(device, lambda: which.run(False, batches), waits=True) / steps


# --- a whole schedule, and the shares of a whole run


def _steps(which: Probes, alone: bool, count: int) -> None:
    for _ in range(count):
        which.run(alone, which.batches(alone, 1))


def whole(config: TrainConfig, which: Probes, most_s: float | None) -> dict[str, Any]:
    """Feed and steps of a whole schedule, without evaluation; of each phase at most `most_s`
    seconds, from which the whole is extrapolated."""
    found: dict[str, Any] = {"seconds": 0.0, "extrapolated": False}
    for name, alone, steps in ((WARMUP, True, config.warmup), (COTRAIN, False, config.cotrain)):
        which.run(alone, which.batches(alone, 1))
        done, seconds, begun = 0, 0.0, time.perf_counter()
        while done < steps and (most_s is None or time.perf_counter() - begun < most_s):
            some = min(steps - done, 100 if most_s is None else 1)
            seconds += clocked(which.feed.device, functools.partial(_steps, which, alone, some))
            done += some
        found[name] = {"steps": steps, "timed": done, "ms": seconds / done * 1e3}
        found["seconds"] += seconds / done * steps
        found["extrapolated"] |= done < steps
    return found


class Clock:
    """Wraps functions, and adds up the seconds inside them by name; it waits for the GPU at both
    ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = (
            device,
            dict.fromkeys(("steps", "feed", "evaluation", "logging", "checkpoints"), 0.0),
        )

    def __call__(self, name: str, work: Callable) -> Callable:
        @functools.wraps(work)
        def timed(*args: Any, **kwargs: Any) -> Any:
            wait(self.device)
            begun = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                wait(self.device)
                self.seconds[name] += time.perf_counter() - begun

        return timed


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Listeners(Ignore):
    """What a run has: metrics.jsonl and a line on the console."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        jsonl, console = Jsonl(folder / "metrics.jsonl", 0), Console(10.0)
        self.tell = clock("logging", lambda record: (jsonl.tell(record), console.tell(record)))
        self.close = jsonl.close


def shares(config: TrainConfig, task: Task, device: torch.device) -> dict[str, float]:
    """Parts of the seconds that `fit` takes for meta co-training from its first to its last
    step."""
    clock, job = Clock(device), Job("mct", "mct", task, LocalPeers(2), task.names)
    schedule = after_warmup(clock("steps", mct_step))
    with (
        tempfile.TemporaryDirectory(prefix="bench-train-") as folder,
        contextlib.ExitStack() as patches,
        open(os.devnull, "w") as nowhere,
    ):
        patches.enter_context(contextlib.redirect_stderr(nowhere))
        patches.enter_context(mock.patch.dict(phases.SCHEDULES, mct=schedule))
        for where, name, what in (
            (phases, "supervised_step", "steps"),
            (loop.Feeder, "__call__", "feed"),
            (loop, "select", "evaluation"),
            (loop.Watch, "__call__", "logging"),
            (loop, "save_checkpoint", "checkpoints"),
        ):
            patches.enter_context(mock.patch.object(where, name, clock(what, getattr(where, name))))
        listener, begun = Listeners(Path(folder), clock), time.perf_counter()
        loop.fit(
            job,
            config,
            listener,
            Path(folder),
            threading.Event(),
        )
        wait(device)
        seconds = time.perf_counter() - begun
        listener.close()
    parts = {name: value / seconds for name, value in clock.seconds.items()}
    small = parts["feed"] + parts["evaluation"] + parts["logging"]
    return {
        **parts,
        "the rest": 1 - sum(parts.values()),
        "feed, evaluation, logging": small,
        "seconds": seconds,
    }


# --- everything, in turns


@dataclass
class Found:
    """ms a step by section and name, one a round; and what is more than a step."""

    ms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)

    def ratio(self, above: tuple[str, str], below: tuple[str, str]) -> dict[str, float]:
        """Of two lines that took turns, round by round; otherwise of their medians, by the spread
        of the first."""
        one, two = self.ms[above[0]][above[1]], self.ms[below[0]][below[1]]
        same = above[0] == below[0]
        return spread(
            [a / b for a, b in zip(one, two, strict=True)]
            if same
            else [a / statistics.median(two) for a in one]
        )


def measure(size: dict[str, Any], device: torch.device) -> Found:
    found, steps, peers = Found(), size["steps"], LocalPeers(2)
    config = TrainConfig()
    with groups(size, device) as ranks:  # which import torch meanwhile
        cached, live, embedding_s = digits(size["images"], size["backbones"], device)
        turns = of_a_step(
            config,
            probes(config, made_task(SMALL, size["stored"], 1, [0, 1], device), peers),
            steps,
            device,
        )
        for count in size["experiments"]:
            many = probes(config, made_task(SMALL, size["stored"], count, [0, 1], device), peers)
            turns[f"E = {count}"] = functools.partial(
                step_turn, many, False, max(1, steps // count), device
            )
        turns["cached"] = functools.partial(fed_turn, probes(config, cached, peers), steps, device)
        turns["live"] = functools.partial(fed_turn, probes(config, live, peers), 1, device)
        found.ms["small"] = take_turns(turns, size["rounds"])
        found.ms["ranks"] = take_turns(ranks, size["ranks_rounds"])
    if device.type == "cpu":
        turns, found.other["threads"] = of_threads(size, device)
        found.ms["threads"] = take_turns(turns, size["ranks_rounds"])
    found.other["embedding_s"] = embedding_s
    paper = {**PAPER, **size["paper"]}
    config = TrainConfig(**paper["config"])
    which = probes(
        config,
        made_task(paper, IMAGENET if device.type == "cuda" else size["stored"], 1, [0, 1], device),
        peers,
    )
    turns = of_a_step(config, which, 1, device)
    z_UC = torch.randn(config.batch_unlabelled, paper["classes"], device=device)
    turns["the original, a row's label"] = lambda: (
        clocked(device, lambda: draw_by_rows(z_UC, size["drawn_rows"])) / size["drawn_rows"]
    )
    found.ms["paper"] = take_turns(turns, size["paper_rounds"])
    found.other["whole"] = whole(config, which, None if device.type == "cuda" else size["whole_s"])
    found.other["rows"] = [config.batch_labelled, config.batch_unlabelled]
    runs = {
        "make train: 1 seed": (cached, TrainConfig(**size["run"])),
        "make demo: 5 seeds": (
            replace(
                cached,
                splits=cached.splits * 5,
                experiments=[Experiment(seed, 3e-4, 0.0, 0.5) for seed in range(5)],
            ),
            TrainConfig(**size["run"]),
        ),
    }
    found.other["steps"] = TrainConfig(**size["run"]).warmup + TrainConfig(**size["run"]).cotrain
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(size["runs"]):
        for name, (task, settings) in runs.items():
            samples[name].append(shares(settings, task, device))
    found.other["shares"] = {
        name: {part: spread([one[part] for one in parts]) for part in parts[0]}
        for name, parts in samples.items()
    }
    return found


# --- the tables


def cell(values: dict[str, float], digits: int = 2) -> str:
    median, low, high = values["median"], values["low"], values["high"]
    return f"{median:9,.{digits}f} [{low:,.{digits}f} to {high:,.{digits}f}]"


def percent(values: dict[str, float]) -> str:
    return (
        f"{100 * values['median']:5.1f} % [{100 * values['low']:.1f} to {100 * values['high']:.1f}]"
    )


def show_threads(found: Found) -> dict[str, Any]:
    """Print and return the table; of a GPU there is none."""
    made: dict[str, Any] = {}
    if "threads" not in found.ms:
        return made
    print(f"\nthreads of this machine's {os.cpu_count()} cores, co-training, by the wall's clock")
    for name, values in found.ms["threads"].items():
        case, _, count = name.rpartition(", threads: ")
        taken = found.other["threads"][case] == int(count)
        made[name] = {"ms": spread(values), "taken": taken}
        print(f"{name:42}{cell(spread(values)):34}{'taken' if taken else ''}")
    return made


def show(
    found: Found, size: dict[str, Any], device: torch.device
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Print the tables; return what they show, and the goals."""
    ratio, made, goals = found.ratio, {}, []
    goal = 0.6 if device.type == "cpu" else 0.5
    for section, title in (
        ("small", "a step with the settings of make train: 64 + 128 rows, hidden 256, 10 classes"),
        (
            "paper",
            f"a step with the paper's: {found.other['rows'][0]:,} + {found.other['rows'][1]:,} "
            "rows, hidden 1,024, 1,000 classes",
        ),
    ):
        print(f"\n{title}, n = {len(found.ms[section][WARMUP])} rounds")
        print(
            f"{'':34}{'ms [lowest to highest]':34}{'its matrix products alone, ms':34}"
            f"{'of the limit':30}{'feed, ms':28}"
        )
        for phase in (WARMUP, COTRAIN):
            line = {
                "ms": spread(found.ms[section][phase]),
                "limit_ms": spread(found.ms[section][f"{phase}, limit"]),
                "of_the_limit": ratio((section, f"{phase}, limit"), (section, phase)),
                "feed_ms": spread(found.ms[section][f"{phase}, feed"]),
            }
            made[f"{section}: {phase}"] = line
            print(
                f"{phase:34}{cell(line['ms']):34}{cell(line['limit_ms']):34}{percent(line['of_the_limit']):30}{cell(line['feed_ms']):28}"
            )
            name = "make train's" if section == "small" else "the paper's"
            goals.append(
                (
                    f"{name} {phase} step, part of the limit",
                    line["of_the_limit"]["median"],
                    goal,
                    True,
                )
            )

    print("\nthe original's way, and live backbones; ms a co-training step")
    if f"{ORIGINAL}, 2 ranks" in found.ms["ranks"]:
        for title, name in (
            (f"{ORIGINAL}, 2 ranks", f"{ORIGINAL}, 2 ranks"),
            (UNCOLLECTED, f"{UNCOLLECTED}, 2 ranks"),
            ("ours, the same ranks", "64 + 64 rows, 2 ranks"),
            ("ours, one process", "64 + 64 rows, 1 rank"),
        ):
            first, second = (
                ratio(("ranks", f"{other}, 2 ranks"), ("ranks", name))
                for other in (ORIGINAL, UNCOLLECTED)
            )
            made[title] = {
                "ms": spread(found.ms["ranks"][name]),
                "times_the_original": first,
                "times_without_its_collector": second,
            }
            print(
                f"{title:42}{cell(made[title]['ms']):34}"
                + (
                    f"{cell(first, 1)} times faster, "
                    f"without its collector {cell(second, 1).strip()}"
                    if title.startswith("ours")
                    else ""
                )
            )
        goals.append(
            (
                "64 + 64 rows in one process, times the original's two",
                made["ours, one process"]["times_the_original"]["median"],
                50.0,
                True,
            )
        )
    row_ms, rows = (
        statistics.median(found.ms["paper"]["the original, a row's label"]),
        found.other["rows"][1],
    )
    times = spread([2 * rows * row_ms / ms for ms in found.ms["paper"][COTRAIN]])
    made["paper: the original"] = {
        "ms_a_label": row_ms,
        "ms_of_labels": 2 * rows * row_ms,
        "times": times,
    }
    print(
        f"{'its labels alone, the paper’s size':34}{2 * rows * row_ms:9,.0f} "
        f"(2 x {rows:,} rows of {row_ms:.2f} ms, extrapolated), "
        f"{cell(times, 1).strip()} times our whole step"
    )
    goals.append(
        (
            "the paper's step, times the original's drawing of labels (extrapolated)",
            times["median"],
            50.0,
            True,
        )
    )
    live = {
        "live_ms": spread(found.ms["small"]["live"]),
        "cached_ms": spread(found.ms["small"]["cached"]),
        "times": ratio(("small", "live"), ("small", "cached")),
        "embedding_s": found.other["embedding_s"],
    }
    live["steps_until_paid"] = (
        live["embedding_s"]
        * 1e3
        / max(live["live_ms"]["median"] - live["cached_ms"]["median"], 1e-9)
    )
    made["live"] = live
    print(f"{'live ' + ' + '.join(size['backbones']):34}{cell(live['live_ms']):34}")
    print(
        f"{'the same images from the cache':34}{cell(live['cached_ms']):34}"
        f"{cell(live['times'], 1)} times faster"
    )
    print(
        f"{'':34}embedding all {size['images']:,} digits once took {live['embedding_s']:.1f} s, "
        f"as much as {live['steps_until_paid']:.0f} steps save"
    )

    print(f"\nE experiments at once, co-training, n = {size['rounds']} rounds")
    print(
        f"{'':34}{'ms a step [lowest to highest]':34}{'ms a step and experiment':34}"
        f"{'times faster than one by one':28}"
    )
    for count in size["experiments"]:
        values = found.ms["small"][f"E = {count}"]
        gain = spread(
            [count * one / ms for one, ms in zip(found.ms["small"]["E = 1"], values, strict=True)]
        )
        made[f"E = {count}"] = {"ms": spread(values), "times": gain}
        print(
            f"{f'E = {count}':34}{cell(spread(values)):34}"
            f"{cell(spread([ms / count for ms in values])):34}{cell(gain):28}"
        )

    made |= show_threads(found)
    print(
        f"\nranks, co-training, {'gloo' if device.type == 'cpu' else 'NCCL'}, one view a rank "
        f"where there are two; n = {size['ranks_rounds']} rounds"
    )
    print(f"{'':34}{'1 rank, ms':34}{'2 ranks, ms':34}{'efficiency':30}")
    for name, twice in (
        ("64 + 128 rows", "128 + 256 rows"),
        ("512 + 512 rows", "1,024 + 1,024 rows"),
    ):
        for kind, other, cost in (("strong", name, 2), ("weak", twice, 1)):
            one, two = f"{name}, 1 rank", f"{other}, 2 ranks"
            if two not in found.ms["ranks"]:
                print(f"{kind}: left out, two ranks need two GPUs")
                continue
            efficiency = ratio(("ranks", one), ("ranks", two))
            efficiency = {
                key: value / cost if key != "n" else value for key, value in efficiency.items()
            }
            title = f"{kind}: {name}" + (f" to {other}" if cost == 1 else "")
            made[title] = {
                "one_ms": spread(found.ms["ranks"][one]),
                "two_ms": spread(found.ms["ranks"][two]),
                "efficiency": efficiency,
            }
            print(
                f"{title:42}{cell(made[title]['one_ms']):34}{cell(made[title]['two_ms']):34}{percent(efficiency):30}"
            )

    schedule = found.other["whole"]
    print(
        f"\nthe paper's ImageNet 10 % schedule, feed and steps: {schedule['seconds'] / 3600:.2f} h"
        + (", extrapolated" if schedule["extrapolated"] else "")
    )
    for phase in (WARMUP, COTRAIN):
        print(
            f"{phase:34}{schedule[phase]['ms']:9,.1f} ms a step, "
            f"{schedule[phase]['timed']:,} of {schedule[phase]['steps']:,} steps timed"
        )

    print(
        f"\nparts of meta co-training of {found.other['steps']} steps on the digits from the "
        f"cache, 3 labels a class, n = {size['runs']} runs each"
    )
    for name, parts in found.other["shares"].items():
        print(
            f"{name}, {parts['seconds']['median']:.1f} s: "
            + ", ".join(
                f"{part} {percent(value).strip()}"
                for part, value in parts.items()
                if part != "seconds"
            )
        )
        goals.append(
            (
                f"feed, evaluation and logging, part of {name}",
                parts["feed, evaluation, logging"]["median"],
                0.05,
                False,
            )
        )
    print("\ngoals")
    verdicts = [
        {
            "goal": what,
            "value": value,
            "asked": f"{'>=' if above else '<='} {asked}",
            "met": value >= asked if above else value <= asked,
        }
        for what, value, asked, above in goals
    ]
    for verdict in verdicts:
        print(
            f"{'met   ' if verdict['met'] else 'MISSED'}  {verdict['goal']}: "
            f"{verdict['value']:.3g}, asked {verdict['asked']}"
        )
    return made, verdicts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, seconds: the figures mean nothing"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--threads", type=int, default=1, help="of this process; a rank has one")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "train.json"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    native.keep_memory()  # as `fit` does
    if args.child:
        rank_main(json.loads(args.child), args.device)
        return
    begun, size, device = time.monotonic(), QUICK if args.quick else FULL, torch.device(args.device)
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy")},
        "threads": args.threads,
        "device": device.type,
        "size": size,
    }
    print(
        f"{about['date']}, {about['machine']}, {about['gpu'] or 'no GPU'}, {about['versions']}, "
        f"{args.threads} thread{'s' if args.threads > 1 else ''}"
    )
    found = measure(size, device)
    lines, goals = show(found, size, device)
    about["seconds"] = round(time.monotonic() - begun)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    ms = {
        section: {name: spread(values) for name, values in turns.items()}
        for section, turns in found.ms.items()
    }
    args.out.write_text(
        json.dumps(
            {
                **about,
                "goals": goals,
                "lines": lines,
                "whole": found.other["whole"],
                "shares": found.other["shares"],
                "ms": ms,
            },
            indent=1,
        )
        + "\n"
    )
    print(f"\n{about['seconds']} s; {args.out}")


if __name__ == "__main__":
    main()
