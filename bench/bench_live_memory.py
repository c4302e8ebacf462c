"""Is the memory that tuning is said to need what it takes? python bench/bench_live_memory.py

Backbones of real size with random weights, on the CPU, in a process of its own for each line: the
memory that `make finetune` reckons before it begins, and by how much the process had grown at most
in two steps since before the models were made. Writes bench/results/live-memory.json.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench_cache import machine

CASES = (  # views, mode, images in memory at a time (of 8), does it forget what is inside?
    ("clip-b16", "lora", 8, False, 1),  # and to how many processes is it dealt out?
    ("clip-b16", "lora", 8, True, 1),
    ("clip-b16", "norms", 8, False, 1),
    ("clip-b16", "full", 8, False, 1),
    ("clip-b16", "full", 2, False, 1),
    ("clip-b16", "full", 2, False, 2),
    ("clip-b16,dinov2-b14", "lora", 8, False, 1),
    ("clip-b16,dinov2-b14", "lora", 2, False, 1),
    ("clip-b16,dinov2-b14", "full", 2, False, 1),
)
QUICK = (("swav-rn50", "norms", 2, False, 1),)
BATCH, CLASSES = 8, 10


def measured(views: str, mode: str, chunk: int, forgets: bool, processes: int) -> dict[str, float]:
    """GB that were reckoned, and by which this process grew."""
    import torch
    from bench_models import random_backbone
    from torch import nn

    from base import native
    from cache_specs.spec import load_spec
    from train.algorithm.batches import LABELLED, UNLABELLED, Passes
    from train.algorithm.peers import make_peers
    from train.finetune.config import FinetuneConfig
    from train.finetune.ground import wanted
    from train.finetune.live import Live, needs_of
    from train.finetune.shards import deal_out
    from train.finetune.together import Together
    from train.finetune.tune import Tuning

    native.keep_memory()
    for name in views.split(","):  # what libraries need is there before
        random_backbone(load_spec(name))
    trim()
    config = FinetuneConfig(
        views=views,
        mode=mode,
        chunk=chunk,
        batch=BATCH,
        checkpointing=forgets,
        steps=10,
        gpus=processes,
    ).settled(40, CLASSES)
    cpu = torch.device("cpu")
    peers = make_peers(len(views.split(",")), cpu)
    before, lives, needs, pictures = bytes_of("VmRSS"), [], [], []
    for name in views.split(","):
        spec = load_spec(name)
        backbone = random_backbone(spec)
        head = nn.Linear(backbone.width, CLASSES)
        live = Live(backbone, head, (np.zeros(backbone.width), np.ones(backbone.width)))
        live.thaw(config)
        backbone.precision = "float32"
        lives.append(live)
        pictures.append(Noise(spec.preprocess.crop))
        needs.append(needs_of(live, pictures[-1](np.arange(2), np.arange(2), 0, 0)))
        if processes > 1:
            deal_out(live, cpu, processes)
            needs[-1] = needs[-1].dealt_out(processes)
    trim()  # what making the models has left
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    rows, label_N = np.arange(64), np.arange(64) % CLASSES
    own = Passes(rows, 0, LABELLED)
    if len(lives) == 1:
        work = Tuning(lives, pictures, label_N, own, config, cpu, peers, processes > 1)
    else:
        others = Passes(rows, 0, UNLABELLED)
        work = Together(lives, pictures, label_N, own, others, config, cpu, peers)
    if chunk < config.part():
        native.keep_no_memory()
    work.learn(work.batch(0))
    begun = time.monotonic()
    work.learn(work.batch(1))
    seconds = time.monotonic() - begun
    grew = bytes_of("VmHWM") - before
    reckoned = wanted(config, needs, chunk, cpu)
    return {"reckoned_GB": reckoned / 1e9, "grew_by_GB": grew / 1e9, "step_seconds": seconds}


class Noise:
    """Pictures that are none."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, rows: np.ndarray, places: np.ndarray, seed: int, step: int) -> Any:
        import torch

        draws = torch.Generator().manual_seed(step)
        shape = len(rows), 3, self.side, self.side
        return torch.randint(256, shape, dtype=torch.uint8, generator=draws)


def trim() -> None:
    """Give back what malloc keeps."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def bytes_of(what: str) -> int:
    """VmRSS: the resident set now; VmHWM: its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(what)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small try of the script itself")
    parser.add_argument("--one", help="a case as JSON, in this process")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "live-memory.json"
    )
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(*json.loads(args.one))))
        return
    found: dict[str, Any] = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rows": []}
    for case in QUICK if args.quick else CASES:
        views, mode, chunk, forgets, processes = case
        command = [sys.executable, __file__, "--one", json.dumps(case)]
        if processes > 1:
            start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            command[1:1] = [*start, str(processes)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        told = json.loads(done.stdout.splitlines()[-1])
        kind = {"views": views, "mode": mode, "chunk": chunk, "forgets": forgets}
        found["rows"].append({**kind, "processes": processes, **told})
        how = f"{chunk} of {BATCH} images at a time{', forgetful' if forgets else ''}"
        how += f", {processes} processes" if processes > 1 else ""
        print(
            f"{views:22}{mode:7}{how:45}reckoned {told['reckoned_GB']:.2f} GB, "
            f"grew by {told['grew_by_GB']:.2f}",
            flush=True,
        )
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
