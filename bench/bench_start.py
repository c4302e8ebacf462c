"""What a command costs before it does anything: CPU seconds (user + system, of all its processes)
where all is in the cache already; and of hashing HDF5 pictures.

    python bench/bench_start.py [--before CHECKOUT] [--rounds 5] [--quick]
                                [--only doctor,predict] [--out bench/results/start.json]

All commands, or --only those whose name has one of these words, take turns for several rounds, with
--before also those of another checkout, by the same Python, each on the cache that it has made; a
figure is the median over the rounds with [lowest to highest].
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench_cache import machine, spread

ROOT = Path(__file__).parent.parent
HASH = """
import sys
from pathlib import Path
from extract.data.datasets import build_items, open_dataset
build_items(open_dataset(sys.argv[1], Path()))
"""


def commands(folder: Path, pictures: int) -> dict[str, list[str]]:
    """What is typed, by name."""
    cache, runs = ["--cache", f"{folder}/cache"], ["--runs", f"{folder}/runs"]
    photos, views = ["--data", f"{folder}/photos"], ["--views", "tiny-clip,tiny-dinov2"]
    return {
        "extract, all cached": ["extract", "--view", "tiny-clip", *photos, *cache],
        "predict from the cache": ["predict", "--run", "a", "--force", *cache, *runs],
        "compare": ["compare", "--names", "a,b", "--to", f"{folder}/compare.html", *runs],
        "train, LABELS mistyped": ["train", *views, *photos, *cache, *runs, "--labels", "few"],
        "train, dry run": ["train", *views, *photos, *cache, *runs, "--dry-run"],
        "extract, dry run": ["extract", "--view", "tiny-clip", *photos, *cache, "--dry-run"],
        "inspect": ["inspect", *views, *photos, *cache],
        "doctor": ["doctor", *cache],
        "status": ["status", *cache],
        "weights, there already": ["weights", "--view", "swav"],
        f"hash {pictures:,} HDF5 pictures of 96 x 96": ["-c", HASH, f"{folder}/x.h5"],
    }


def prepare(folder: Path, checkout: Path, photos: int, pictures: int) -> None:
    """Photos, and of a checkout two views of them, a run and its copy; an HDF5 file, and a
    converted checkpoint."""
    chance = np.random.default_rng(0)
    for number in range(photos):
        split = "unlabelled" if number % 5 == 0 else f"{'ab'[number % 2]}"
        path = folder / "photos" / split / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = chance.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 240)).save(path)
    with h5py.File(folder / "x.h5", "w") as file:
        file["images"] = chance.integers(0, 256, (pictures, 96, 96, 3), np.uint8)
    (folder / "weights").mkdir()
    cache, data = ["--cache", f"{folder}/cache"], ["--data", f"{folder}/photos"]
    views, run = ["--views", "tiny-clip,tiny-dinov2"], ["--runs", f"{folder}/runs", "--run", "a"]
    for view in views[1].split(","):  # one by one, as an earlier one did it
        cpu_of(["extract", "--view", view, *data, *cache], checkout, folder)
    train = ["train", *views, *run, *data, *cache, "--labels", "4", "--warmup", "20"]
    cpu_of([*train, "--cotrain", "20", "--method", "supervised", "--no-report"], checkout, folder)
    shutil.copytree(folder / "runs" / "a", folder / "runs" / "b")
    (folder / "weights" / "swav.safetensors").write_bytes(b"")


def cpu_of(words: list[str], checkout: Path, folder: Path) -> float:
    """CPU seconds of one command of a checkout."""
    program = words if words[0] == "-c" else ["-m", "coview.cli", *words]
    env = {**os.environ, "COVIEW_WEIGHTS": f"{folder}/weights"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *program], cwd=checkout, env=env, stdout=said, stderr=said
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        # the doctor may find something wrong here; and a typing error is one
        if process.returncode and words[0] != "doctor" and "few" not in words:
            raise SystemExit(f"{words}: {said.read().decode()}")
    return used.ru_utime + used.ru_stime


def spreads(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, dict]]:
    """Of each command in each checkout."""
    told = {}
    for what, by in found.items():
        told[what] = {which: spread(times) for which, times in by.items()}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="words, comma-separated; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "start.json")
    args = parser.parse_args()
    photos, pictures = (60, 200) if args.quick else (1_000, 20_000)
    checkouts = {"now": ROOT, **({"before": args.before} if args.before else {})}
    head = {"date": datetime.date.today().isoformat(), "machine": machine(), "photos": photos}
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for which, checkout in checkouts.items():
            (Path(name) / which).mkdir()
            prepare(Path(name) / which, checkout, photos, pictures)
        time.sleep(4)  # files that are younger are hashed again
        chosen = []
        for what in commands(Path(name), pictures):
            if any(word in what for word in args.only.split(",")):
                chosen.append(what)
        for turn in range(-1, args.rounds):  # the first one fills caches, and does not count
            for what in chosen:
                for which, checkout in checkouts.items():
                    folder = Path(name) / which
                    seconds = cpu_of(commands(folder, pictures)[what], checkout, folder)
                    if turn >= 0:
                        found.setdefault(what, {}).setdefault(which, []).append(seconds)
            report = {**head, "rounds": max(0, turn + 1), "cpu_seconds": spreads(found)}
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    for what, by in found.items():
        told = [f"{which} {np.median(times):.2f}" for which, times in by.items()]
        print(f"{what:45}{', '.join(told)} s")


if __name__ == "__main__":
    main()
