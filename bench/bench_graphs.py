"""How long graphs take, and how many of the nearest neighbours they know:
python bench/bench_graphs.py [--rows 20000,200000] [--before CHECKOUT]
                             [--out bench/results/graphs.json]

The embeddings are made: 100 classes, two views of 512 dimensions, each a smooth random map of the
same 15 hidden dimensions, with noise; 10 labels a class, a fifth of the rows each for validation
and test. For each number of rows: `coview train` as it is by default, in a process of its own
(wall, CPU and peak memory), with --before also by another checkout; then each graph alone: finding
the neighbours, the recall on a sample by comparing with all, spreading the labels.

Runs of 20,000 rows take turns --rounds times, larger ones --large times; a run of the other
checkout that takes longer than --limit seconds is ended.
"""

import argparse
import dataclasses
import datetime
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench_cache import machine

from exchange.config import ImportConfig
from exchange.importer import import_view
from train.data.graph import Features, Graph, groups_of, nodes_of
from train.data.splits import Split

CLASSES, HIDDEN, WIDTH, WAVES, LABELS = 100, 15, 512, 256, 10
LARGE = 50_000  # rows
ASKED = 500  # rows on which the recall is measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="20000,200000", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=1)
    parser.add_argument("--whole", action="store_true", help="whole runs only, no graphs alone")
    parser.add_argument("--before", type=Path, help="another checkout, to compare whole runs with")
    parser.add_argument("--limit", type=float, help="seconds of a run of that checkout")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/graphs.json")
    args = parser.parse_args()
    trees = {"after": Path(__file__).parent.parent.resolve()}
    if args.before:
        trees = {"before": args.before.resolve(), **trees}
    date = datetime.date.today().isoformat()
    found: dict[str, Any] = {"machine": machine(), "date": date, "runs": [], "graphs": []}
    for rows in map(int, args.rows.split(",")):
        emb_V, label_N, split = made(rows)
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder), emb_V, label_N, split)
            for number in range(args.large if rows > LARGE else args.rounds):
                for name, tree in trees.items():
                    limit = args.limit if name == "before" else None
                    told = whole_run(Path(folder), tree, f"{name}{number}", limit)
                    found["runs"].append({"rows": rows, "tree": name, **told})
                    say(found["runs"][-1], args.out, found)
        for group in [] if args.whole else groups_of(2):
            told = graph_alone([emb_V[view] for view in group], label_N, split)
            found["graphs"].append({"rows": rows, "views": len(group), **told})
            say(found["graphs"][-1], args.out, found)


def say(line: dict[str, Any], out: Path, found: dict[str, Any]) -> None:
    """Print one line, and keep what there is."""
    print(json.dumps(line), flush=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def made(rows: int) -> tuple[list[np.ndarray], np.ndarray, Split]:
    """Embeddings (N, WIDTH) float16 of two views, labels, and who is labelled."""
    maps, chance = np.random.default_rng(7), np.random.default_rng(rows)
    label_N = chance.integers(CLASSES, size=rows)
    centre = maps.normal(size=(CLASSES, HIDDEN))
    hidden = (centre[label_N] + 0.8 * chance.normal(size=(rows, HIDDEN))).astype(np.float32)
    emb_V = []
    for _ in range(2):
        wave = (0.15 * maps.normal(size=(HIDDEN, WAVES))).astype(np.float32)
        phase = maps.uniform(0, 2 * np.pi, WAVES).astype(np.float32)
        last = (maps.normal(size=(WAVES, WIDTH)) / WAVES**0.5).astype(np.float32)
        emb_ND = np.empty((rows, WIDTH), np.float16)
        for first in range(0, rows, ASKED * 100):
            here = slice(first, first + ASKED * 100)
            x = np.sin(hidden[here] @ wave + phase) @ last
            emb_ND[here] = x + 0.02 * chance.standard_normal(x.shape, np.float32)
        emb_V.append(emb_ND)
    fifths = np.array_split(chance.permutation(rows), 5)
    train = np.sort(np.concatenate(fifths[2:]))
    labelled = []
    for number in range(CLASSES):
        labelled.append(train[label_N[train] == number][:LABELS])
    known = np.sort(np.concatenate(labelled))
    val, test = np.sort(fifths[0]), np.sort(fifths[1])
    return emb_V, label_N, Split(known, np.setdiff1d(train, known), val, test)


def fill(folder: Path, emb_V: list[np.ndarray], label_N: np.ndarray, split: Split) -> None:
    """A cache in the folder, of which the training labels are all known."""
    part_N = np.full(len(label_N), "train", "<U5")
    part_N[split.val], part_N[split.test] = "val", "test"
    keys = np.array([f"{row:07d}" for row in range(len(label_N))])
    for name, emb_ND in zip("ab", emb_V, strict=True):
        path = folder / f"{name}.npz"
        np.savez(path, embeddings=emb_ND, keys=keys, y=label_N, split=part_N)
        asked = ImportConfig(view=name, source=str(path), cache=str(folder / "cache"))
        # the first one makes the data set, the other one joins it
        more = {"name": "made"} if name == "a" else {"data": "made"}
        import_view(dataclasses.replace(asked, **more))
        path.unlink()


def whole_run(folder: Path, tree: Path, run: str, limit: float | None = None) -> dict[str, float]:
    """`coview train` with its default methods; ended after `limit` seconds."""
    words = ["--views", "a,b", "--data", "made", "--labels", str(LABELS), "--run", run]
    places = ["--cache", str(folder / "cache"), "--runs", str(folder / "runs"), "--no-report"]
    return coview(tree, ["train", *words, *places], folder, limit)


def coview(
    tree: Path, words: list[str], folder: Path, limit: float | None = None
) -> dict[str, float]:
    """A command in a process of its own: seconds, CPU seconds, peak memory in GB; what it had taken
    until the limit, where it was ended."""
    begun = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        actions = [(os.POSIX_SPAWN_DUP2, log.fileno(), number) for number in (1, 2)]
        # -P: what stands in the folder that one is in is not the tree that is meant
        argv = [sys.executable, "-P", "-m", "coview.cli", *words]
        environ = {**os.environ, "PYTHONPATH": str(tree)}
        child = os.posix_spawn(sys.executable, argv, environ, file_actions=actions)
        alarm = threading.Timer(limit or 0, os.kill, (child, signal.SIGKILL))
        if limit is not None:
            alarm.start()
        _, status, used = os.wait4(child, 0)
        alarm.cancel()
    if status and os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise SystemExit((folder / "log.txt").read_text()[-2000:])
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(used.ru_maxrss / 1e6, 2),
        **({"ended": True} if status else {}),
    }


def graph_alone(emb_V: list[np.ndarray], label_N: np.ndarray, split: Split) -> dict[str, float]:
    """Seconds (CPU seconds) of both stages, and the recall."""
    began, cpu = time.monotonic(), time.process_time()
    graph = Graph(emb_V, label_N, [split], CLASSES, torch.device("cpu"))
    found, found_cpu = time.monotonic(), time.process_time()
    graph.solve(0)
    spread, spread_cpu = time.monotonic(), time.process_time()
    nodes = nodes_of(split)
    asked = np.random.default_rng(1).choice(len(nodes), ASKED, replace=False)
    features = Features(emb_V, nodes)
    likeness = torch.from_numpy(features(nodes[asked])) @ torch.from_numpy(features(nodes)).T
    likeness[torch.arange(ASKED), torch.from_numpy(asked)] = -torch.inf
    (nearest,) = graph.nearest.values()
    truth = likeness.topk(nearest.own_nK.row.shape[1]).indices.numpy()
    same = 0
    for one, other in zip(truth, nearest.own_nK.row[asked], strict=True):
        same += len(np.intersect1d(one, other))
    return {
        "nodes": len(nodes),
        "neighbours_seconds": round(found - began, 1),
        "neighbours_cpu_seconds": round(found_cpu - cpu, 1),
        "recall": round(same / truth.size, 4),
        "spreading_seconds": round(spread - found, 1),
        "spreading_cpu_seconds": round(spread_cpu - found_cpu, 1),
    }


if __name__ == "__main__":
    main()
