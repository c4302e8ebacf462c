"""Does a tuned backbone beat a frozen one? python bench/bench_finetune.py [--quick]

The two bundled models on the demo's digits and on the 60 letters of bench/tasks.py, tested on type
faces that no training image has. For each number of labels a class and each draw: frozen probes and
frozen co-training on the cache; and for each mode both backbones tuned on these very labels, `make
extract` of what comes out, and probes and co-training on that. Nobody judges (VAL=none): the
settings are the defaults, no validation label is used, and the test split is read once. Frozen
views may be cross-fitted besides, which those that know the labels may not.

Prints a line a task, budget and way: joint test top-1, mean ± std over the draws; what it gains
over frozen co-training as it is by default (cross-fitted), paired, ± its standard error over draws
and images; seconds a draw (both views: tuning and embedding), and the memory that tuning needs; and
what a step through both backbones costs beside one on cached rows. Writes
bench/results/finetune.json.

chars needs the fonts of matplotlib and Hershey-Fonts (pip install -e .[tools]).
"""

import argparse
import json
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import bench_methods
import tasks
from bench_cache import machine

from extract.config import ExtractConfig
from extract.run import run as extract
from train.algorithm.cotrain import Batch, StepRule, mct_step
from train.algorithm.optimise import Adam, fresh
from train.algorithm.paired import Difference, difference
from train.algorithm.peers import LocalPeers
from train.command import run as train
from train.config import TrainConfig
from train.data.graph import standardise
from train.finetune.config import FinetuneConfig
from train.finetune.ground import known_of, made, read, wanted
from train.finetune.run import run as finetune

VIEWS = ("tiny-clip", "tiny-dinov2")
MODES = ("lora", "norms", "full")
METHODS = {"supervised": "probes", "mct-graph": "co-training"}
RIVAL = "frozen and cross-fitted, co-training"  # what `make train` does by itself


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/bench-finetune"))
    parser.add_argument("--tasks", default="digits,chars")
    parser.add_argument("--labels", default="1,4,16", help="a class, comma-separated")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--seeds", type=int, default=5, help="draws")
    parser.add_argument("--steps", type=int, default=-1, help="of tuning; -1: the default")
    parser.add_argument("--quick", action="store_true", help="a small try of the script itself")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "finetune.json"
    )
    args = parser.parse_args()
    if args.quick:
        args.tasks, args.labels, args.modes, args.seeds, args.steps = "digits", "1", "lora", 2, 2
    logging.getLogger("coview").setLevel(logging.ERROR)
    found: dict[str, Any] = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rows": []}
    for task in args.tasks.split(","):
        data = data_of(task, args.work)
        for name in VIEWS:
            embed(args.work, data, name)
        if task == "digits":
            found["step, ms"] = cost(args.work, 3 if args.quick else 31)
        for labels in args.labels.split(","):
            for told in rows_of(args, task, data, labels):
                found["rows"].append(told)
                print(line_of(told), flush=True)
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(found, indent=1) + "\n")


def cost(work: Path, rounds: int) -> dict[str, Any]:
    """A step of meta co-training through both backbones, and the same on cached rows with the same
    heads, in turns: median milliseconds."""
    settings = FinetuneConfig(
        views=",".join(VIEWS), data="digits", labels="4", cache=str(work / "cache"), threads=1
    )
    ground = read(settings)
    live, _ = made(ground)
    states = []
    for one in live.lives:
        states.append(
            fresh({"w0": one.head.weight.detach().T[None], "b0": one.head.bias[None, None]})
        )
    rule, took = StepRule(Adam(1e-3), temperature=0.5), {"live": [], "cached": []}
    for step in range(rounds + 1):
        batches, draws = live.batch(step)
        rows_U, rows_L = (passes(step, settings.batch) for passes in (live.rows_U, live.rows_L))
        cached = []
        for view, batch in enumerate(batches):
            known = known_of(ground, view)
            parts = [standardise(ground.cache.emb[view], rows, *known) for rows in (rows_U, rows_L)]
            cached.append(Batch(*[torch.from_numpy(part)[None] for part in parts], batch.y_EL))
        for name in took:
            begun = time.perf_counter()
            if name == "live":
                live.learn((batches, draws))
            else:
                states, _ = mct_step(states, cached, draws, LocalPeers(2), rule)
            took[name].append(1000 * (time.perf_counter() - begun))
    found = {name: float(np.median(times[1:])) for name, times in took.items()}
    return {**found, "times": found["live"] / found["cached"], "n": rounds}


def data_of(task: str, work: Path) -> str:
    """DATA of a task: the letters are written as files."""
    if task == "digits":
        return task
    from PIL import Image

    folder = work / "letters"
    if not (folder / "whole").exists():
        images, y, split = tasks.render_chars()
        for number, (image, label, part) in enumerate(zip(images, y, split, strict=True)):
            path = folder / part / f"{label:02d}" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        (folder / "whole").mkdir()
    return str(folder)


def embed(work: Path, data: str, view: str) -> None:
    extract(ExtractConfig(view=view, data=data, cache=str(work / "cache"), device="cpu"), {})


def rows_of(args: argparse.Namespace, task: str, data: str, labels: str) -> list[dict[str, Any]]:
    """What each way gives."""
    right: dict[str, list[np.ndarray]] = {}
    seconds: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for seed in range(args.seeds):
        for way in ("frozen", "frozen and cross-fitted"):
            add(right, way, trained(args.work, task, data, labels, seed, VIEWS, way))
        for mode in args.modes.split(","):
            begun, tuned = time.monotonic(), []
            for view in VIEWS:
                name = f"{task}-{labels}-{mode}-{seed}-{view}"
                settings = FinetuneConfig(
                    view=view,
                    data=data,
                    labels=labels,
                    val="none",
                    seeds=str(seed),
                    mode=mode,
                    device="cpu",
                    cache=str(args.work / "cache"),
                    runs=str(args.work / "runs"),
                    run=name,
                    steps=args.steps,
                    threads=1,
                )
                if view == VIEWS[0] and not seed:
                    work, needs = made(read(settings))
                    memory[mode] = wanted(work.config, needs, work.config.chunk, work.device) / 1e9
                finetune(settings, {})
                embed(args.work, data, str(args.work / "runs" / name / f"{name}.toml"))
                tuned.append(name)
            seconds.setdefault(mode, []).append(time.monotonic() - begun)
            add(right, mode, trained(args.work, task, data, labels, seed, tuned, mode))
    return told_of(task, labels, right, seconds, memory)


def add(right: dict[str, list[np.ndarray]], way: str, of: dict[str, np.ndarray]) -> None:
    for method, right_n in of.items():
        right.setdefault(f"{way}, {METHODS[method]}", []).append(right_n)


def trained(
    work: Path, task: str, data: str, labels: str, seed: int, views: Any, way: str
) -> dict[str, np.ndarray]:
    """{method: (n,) bool}, which test images the joint has right."""
    name = f"{task}-{labels}-{way.replace(' ', '-')}-{seed}"
    settings = TrainConfig(
        views=",".join(views),
        data=data,
        labels=labels,
        val="cross" if "cross" in way else "none",
        seeds=str(seed),
        method=",".join(METHODS),
        cache=str(work / "cache"),
        runs=str(work / "runs"),
        run=name,
        device="cpu",
        tensorboard="off",
        threads=1,
    )
    train(settings)
    folder = work / "runs" / name
    return {method: bench_methods.right(folder, method)[0] for method in METHODS}


def told_of(
    task: str,
    labels: str,
    right: dict[str, list[np.ndarray]],
    seconds: dict[str, list[float]],
    memory: dict[str, float],
) -> list[dict[str, Any]]:
    rows, rival_En = [], np.stack(right[RIVAL])
    for way, draws in right.items():
        right_En, mode = np.stack(draws), way.partition(",")[0]
        row: dict[str, Any] = {"task": task, "labels": int(labels), "way": way}
        row["top1"] = (100 * right_En.mean(1)).round(3).tolist()
        if way != RIVAL:
            row["gain"] = asdict(difference(right_En, rival_En))
        if mode in seconds:
            row["seconds"] = round(float(np.median(seconds[mode])), 1)
            row["GB"] = round(memory[mode], 3)
        rows.append(row)
    return rows


def line_of(row: dict[str, Any]) -> str:
    top1 = np.array(row["top1"])
    gain = str(Difference(**row["gain"])) if "gain" in row else ""
    cells = [f"{row['task']}, {row['labels']}", row["way"]]
    cells += [f"{top1.mean():.1f} ± {top1.std(ddof=1):.1f}", gain]
    cells += [str(row.get("seconds", "")), str(row.get("GB", ""))]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
