"""All checks that need a GPU, in one call: make check-gpu   (or python tools/check_gpu.py [--device cpu] [--quick] [--out FILE])

Extracts the bundled views on the GPU and on the CPU and compares them row by row; trains on both and compares the accuracies;
repeats the GPU run, once with embeddings that are not kept on the GPU, and asks for the same bytes; runs two views through torchrun with as many GPUs as there
are (one rank, NCCL, on a machine with one); labels images on both, from the cache and live; writes a report; extracts with --compile; asks doctor (NCCL,
driver). Goes on after a failure. Prints a table, writes it as JSON, and exits with 1 if a line is not as it should be.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
VIEWS = ("tiny-clip", "tiny-dinov2")
METHODS = ("fixmatch", "mct", "supervised-graph", "mct-graph")


def call(module: str, *args: object) -> float:
    """Run `python -m module`; -> seconds. Ends the check when it fails."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", *module.split(), *map(str, args)], cwd=ROOT, check=True)
    return time.monotonic() - begun


def top1(folder: Path, method: str) -> float:
    return json.loads((folder / "summary.json").read_text())["methods"][method]["joint"]["test_top1"]["mean"]


def predicted(work: Path, device: str) -> list[tuple[str, object, bool]]:
    """The labels and confidences of a run on `device`, from the cache and of images embedded again, against those on the CPU."""
    import pyarrow.parquet as pq

    lines, tables = [], {}
    for name, where, images in (("cached", device, ()), ("cpu", "cpu", ()), ("live", device, ("--images", "digits"))):
        to = work / f"{name}.parquet"
        seconds = call("predict", "--run", "first", "--runs", work / "runs", "--cache", work / device, "--device", where, "--to", to, *images)
        lines.append((f"predict, {name}, on {where}, seconds", round(seconds, 1), True))
        rows = pq.read_table(to).to_pydict()
        tables[name] = {key: (label, sure) for key, label, sure in zip(rows["key"], rows["label"], rows["confidence"], strict=True)}
    for name in ("cpu", "live"):
        pairs = [(row, tables[name][key]) for key, row in tables["cached"].items()]
        same, far = float(np.mean([a[0] == b[0] for a, b in pairs])), max(abs(a[1] - b[1]) for a, b in pairs)
        lines.append((f"predict, {name}: share of labels that are those from the cache on {device}", round(same, 4), same > 0.995))
        lines.append((f"predict, {name}: largest difference of a confidence", round(far, 5), far < 0.05))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu checks this script itself")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "check_gpu.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA GPU here; try --device cpu to check the script itself", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    from cache_specs.store import open_view, view_folders
    from train.reader import map_view

    lines: list[tuple[str, object, bool]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for device in dict.fromkeys((options.device, "cpu")):
            for view in VIEWS:
                seconds = call("extract", "--view", view, "--data", "digits", "--device", device, "--cache", work / device, "--workers", 2)
                lines.append((f"extract {view} on {device}, seconds", round(seconds, 1), True))
        for view in VIEWS:
            gpu, cpu = (map_view(open_view(view_folders(next((work / device).glob("digits-*")), view)[0])).astype(np.float32)
                        for device in (options.device, "cpu"))
            cosine = (gpu * cpu).sum(1) / np.linalg.norm(gpu, axis=1) / np.linalg.norm(cpu, axis=1)
            lines.append((f"{view}: smallest cosine to the CPU's row", round(float(cosine.min()), 6), bool(cosine.min() > 0.999)))
        common = ("--views", ",".join(VIEWS), "--data", "digits", "--labels", 3, "--seeds", "0..4", "--cache", work / options.device, "--runs", work / "runs",
                  "--method", f"supervised,{','.join(METHODS)}")
        for run, device in (("first", options.device), ("again", options.device), ("cpu", "cpu")):
            lines.append((f"train on {device}, seconds", round(call("train", *common, "--device", device, "--run", run), 1), True))
        probes = [[path.read_bytes() for path in sorted((work / "runs" / run / "probes").rglob("*.safetensors"))] for run in ("first", "again")]
        lines.append(("the same run again gives the same bytes", probes[0] == probes[1], probes[0] == probes[1]))
        for method in METHODS:
            difference = abs(top1(work / "runs" / "first", method) - top1(work / "runs" / "cpu", method))
            lines.append((f"{method}: joint accuracy, difference to float32 on the CPU", round(difference, 4), difference < 0.05))
        ranks = min(len(VIEWS), torch.cuda.device_count()) if options.device == "cuda" else 2
        call(f"torch.distributed.run --standalone --nproc-per-node {ranks} -m -- train", *common, "--device", options.device, "--gpus", ranks,
             "--run", "ranks")
        for method in METHODS:
            same = abs(top1(work / "runs" / "ranks", method) - top1(work / "runs" / "first", method))
            lines.append((f"{method}: torchrun with {ranks} rank(s), joint accuracy, difference to one process", round(same, 4), same < 0.02))
        lines += predicted(work, options.device)
        call("report", "--run", "first", "--runs", work / "runs", "--cache", work / options.device, "--device", options.device)
        call("extract", "--view", VIEWS[0], "--data", "digits", "--device", options.device, "--cache", work / "compiled", "--compile")
        plain, compiled = (map_view(open_view(view_folders(next((work / cache).glob("digits-*")), VIEWS[0])[0])).astype(np.float32)
                           for cache in (options.device, "compiled"))
        far = float(np.abs(plain - compiled).max() / np.abs(plain).max())
        lines.append(("--compile: largest difference to the plain model's rows, of the largest value", round(far, 6), far < 0.01))
    said = subprocess.run([sys.executable, "-m", "report.doctor"], cwd=ROOT, capture_output=True, text=True)
    lines.append(("doctor: what is wrong", said.stderr.strip() or "nothing", said.returncode == 0))
    good = all(fine for *_, fine in lines)
    for what, value, fine in lines:
        print(f"{what:70} {value!s:>10}  {'ok' if fine else 'NOT OK'}")
    machine = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "good": good,
                                       "figures": {what: value for what, value, _ in lines}}, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
