"""Whole commands of this checkout beside those of an earlier one, in turns: seconds, CPU time, peak
memory.

    python bench/bench_memory.py --before ../coview-before --images photos/ --view lite0.toml
    python bench/bench_memory.py --before . --only extract,predict
    python bench/bench_memory.py --only precision --view clip-b16
    python bench/bench_memory.py --before ../coview-before --only forward --view resnet50.toml

`--before .` compares this checkout with itself under COVIEW_KEEP_MEMORY=0, so that only what malloc
does differs. What is told of a command is the wall time, the CPU time in user space and in the
kernel of all its processes, and the largest sum of the resident sets that these had at one moment
(shared pages count in each), looked at every 0.1 s. The first round fills the page cache and is not
counted. `precision` is a model alone (random weights, batches of 2) in bfloat16 and in float32,
in turns, on a processor that is kept from its instructions beyond AVX2. `forward` is a model alone
(random weights, batches of 16) as each checkout loads it for extraction, `folding` one with its
BatchNorms folded and as it was, in turns. Writes bench/results/memory.json, a section a command.
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
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench_cache import machine, spread

from base import native
from cache_specs.spec import load_spec

ROOT = Path(__file__).parent.parent
OUT = Path(__file__).parent / "results" / "memory.json"
FORWARD = """
import sys, time, torch
from pathlib import Path
from cache_specs.spec import load_spec
from extract.models.backbones import load_backbone
spec, file = load_spec(sys.argv[1]), Path(sys.argv[2])
backbone = load_backbone(spec, {spec.weights.files[0]: file}, "cpu")
pixels = torch.randint(256, (16, 3, spec.preprocess.crop, spec.preprocess.crop), dtype=torch.uint8)
with torch.inference_mode():
    backbone(pixels)
    begun = time.perf_counter()
    for _ in range(4):
        backbone(pixels)
    print(4 * 16 / (time.perf_counter() - begun))
"""
TRAIN = ("--views", "tiny-clip,tiny-dinov2", "--data", "digits", "--labels", "3")


def children(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for one in found:
        try:
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except OSError:  # it has just ended
            continue
    return found


def resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
    except (OSError, IndexError):
        return 0.0


def run(checkout: Path, words: list[str], folder: Path) -> dict[str, float]:
    """A command of this checkout's, in this folder; what it took."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "coview.cli", *words]
    begun, before, peak = time.perf_counter(), os.times(), 0.0
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None:
        peak = max(peak, sum(map(resident, children(process.pid))))
        time.sleep(0.1)
    after = os.times()
    said = process.stderr.read().decode() if process.stderr else ""
    assert process.returncode == 0, said[-2000:]
    return {
        "wall_s": time.perf_counter() - begun,
        "user_s": after.children_user - before.children_user,
        "kernel_s": after.children_system - before.children_system,
        "peak_MB": peak,
    }


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """By name; each begins in a folder in which `ready` is done."""
    extract = ["extract", "--view", args.view, "--data", args.images, "--max-bad", "100%"]
    train = [*TRAIN, "--seeds", args.seeds, "--run", "timed", "--method", args.method]
    predict = ["--run", "ready", "--images", args.images, "--to", "labels.csv"]
    found = {"extract": extract, "train": ["train", *train], "predict": ["predict", *predict]}
    return {name: words for name, words in found.items() if name in args.only.split(",")}


def ready(folder: Path, checkout: Path) -> None:
    """The caches of the digits and a run of a moment, of a checkout's own."""
    for view in ("tiny-clip", "tiny-dinov2"):
        run(checkout, ["extract", "--view", view, "--data", "digits"], folder)
    short = ["--seeds", "0", "--warmup", "20", "--cotrain", "20", "--method", "mct-graph"]
    run(checkout, ["train", *TRAIN, *short, "--run", "ready"], folder)


def precision(args: argparse.Namespace) -> dict[str, Any]:
    os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    native.keep_memory()
    import torch
    from bench_models import random_backbone

    torch.manual_seed(0)
    spec = load_spec(args.view)
    backbone, side = random_backbone(spec), spec.preprocess.crop
    pixels = torch.randint(256, (2, 3, side, side), dtype=torch.uint8)
    rates: dict[str, list[float]] = {"bfloat16": [], "float32": []}
    with torch.inference_mode():
        for number in range(args.rounds + 1):
            for name, found in rates.items():
                backbone.precision = name
                begun = time.process_time()
                backbone(pixels)
                if number:
                    found.append((time.process_time() - begun) / len(pixels))
    seconds = {name: spread(found) for name, found in rates.items()}
    what = {"view": args.view, "threads": torch.get_num_threads()}
    return {**head(), **what, "cpu_seconds_an_image": seconds}


def forward(args: argparse.Namespace) -> dict[str, Any]:
    """Images a second."""
    from bench_extract import weights_for

    rates: dict[str, list[float]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as place:
        folder = Path(str(weights_for(args.view, None, Path(place))))
        (file,) = folder.glob("*.safetensors")
        for _ in range(args.rounds):
            for side, found in rates.items():
                checkout = args.before if side == "before" else ROOT
                done = subprocess.run(
                    [sys.executable, "-P", "-c", FORWARD, str(Path(args.view).resolve()), file],
                    env={**os.environ, "PYTHONPATH": str(checkout)},
                    stdout=subprocess.PIPE,
                    check=True,
                    text=True,
                )
                found.append(float(done.stdout))
    told = {side: spread(found) for side, found in rates.items()}
    return {**head(), "view": Path(args.view).stem, "images_a_second": told}


def folding(args: argparse.Namespace) -> dict[str, Any]:
    """Images a second, in this process; and how far the embeddings are off."""
    import torch
    from bench_extract import weights_for

    from extract.models.backbones import load_backbone

    spec = load_spec(args.view)
    shape = 16, 3, spec.preprocess.crop, spec.preprocess.crop
    pixels = torch.randint(256, shape, dtype=torch.uint8)
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as place, torch.inference_mode():
        folder = Path(str(weights_for(args.view, None, Path(place))))
        files = {name: folder / name for name in spec.weights.files}
        kinds = {"as it was": False, "folded": True}
        backbones = {kind: load_backbone(spec, files, "cpu", fold) for kind, fold in kinds.items()}
        emb_BD, folded_BD = (backbone(pixels) for backbone in backbones.values())
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(args.rounds):
            for kind, backbone in backbones.items():
                begun = time.perf_counter()
                backbone(pixels)
                rates[kind].append(len(pixels) / (time.perf_counter() - begun))
    off = ((folded_BD - emb_BD).norm(dim=1) / emb_BD.norm(dim=1)).max()
    told = {kind: spread(found) for kind, found in rates.items()}
    return {**head(), "view": spec.name, "images_a_second": told, "largest_difference": float(off)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, default=ROOT, help="an earlier checkout, or this")
    parser.add_argument("--images", default="digits")
    parser.add_argument("--view", default="tiny-clip")
    parser.add_argument(
        "--only", default="extract,train,predict", help="or precision, forward, folding"
    )
    parser.add_argument("--name", default="", help="of the section, beside the command's")
    parser.add_argument("--seeds", default="0..4")
    parser.add_argument("--method", default="mct-graph")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.before = args.before.resolve()
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    if args.only == "precision":
        results["precision"] = precision(args)
        print(json.dumps(results["precision"], indent=1))
    for name, measure in (("forward", forward), ("folding", folding)):
        if args.only == name:
            section = f"{name} {Path(args.view).stem}"
            results[section] = measure(args)
            print(section, json.dumps(results[section]["images_a_second"], indent=1), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as place:
        folder = Path(place)
        todo = commands(args)
        for side, checkout in (("before", args.before), ("now", ROOT)):
            (folder / side).mkdir()
            if set(todo) - {"extract"}:
                ready(folder / side, checkout)
        for name, words in todo.items():
            section = f"{name} {args.name}".strip()
            results[section] = turns(args, words, folder)
            print(section, json.dumps(results[section]["median"], indent=1), flush=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


def head() -> dict[str, Any]:
    return {"date": datetime.date.today().isoformat(), "machine": machine()}


def turns(args: argparse.Namespace, words: list[str], folder: Path) -> dict[str, Any]:
    sides: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    for number in range(args.rounds + 1):
        for side, taken in sides.items():
            own = folder / side
            for old in ("runs/timed", "labels.csv", *(["cache"] if "extract" in words else [])):
                shutil.rmtree(own / old, ignore_errors=True)
                (own / old).unlink(missing_ok=True)
            if side == "before" and args.before == ROOT:
                os.environ["COVIEW_KEEP_MEMORY"] = "0"
            checkout = args.before if side == "before" else ROOT
            took = run(checkout, words, own)
            os.environ.pop("COVIEW_KEEP_MEMORY", None)
            if number:
                taken.append(took)
    measured, middle = {}, {}
    for side, taken in sides.items():
        measured[side] = {what: spread([one[what] for one in taken]) for what in taken[0]}
        middle[side] = {what: round(found["median"], 2) for what, found in measured[side].items()}
    same = args.before == ROOT
    return {
        **head(),
        "command": [Path(word).name if "/" in word else word for word in words],
        "compared_with": "COVIEW_KEEP_MEMORY=0" if same else "the version before",
        "median": middle,
        **measured,
    }


if __name__ == "__main__":
    main()
