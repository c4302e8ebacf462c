"""Checks of `make doctor` that run in processes of their own: a broken driver or library raises, dies or hangs there, and is reported."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0  # the longest that a process may take
OK, NOTE, WRONG = "ok", "note", "WRONG"

TORCH = """
import json, torch
found = {"torch": torch.__version__, "built_for": torch.version.cuda, "cuda": torch.cuda.is_available(), "threads": torch.get_num_threads(), "gpus": []}
for i in range(torch.cuda.device_count() if found["cuda"] else 0):
    free, total = torch.cuda.mem_get_info(i)
    (torch.ones(64, 64, device=f"cuda:{i}") @ torch.ones(64, 64, device=f"cuda:{i}")).sum().item()
    found["gpus"].append({"name": torch.cuda.get_device_name(i), "bytes": total, "free": free, "capability": "%d.%d" % torch.cuda.get_device_capability(i)})
try:
    import torchvision
    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    found |= {"torchvision": torchvision.__version__, "mismatch": ""}
except Exception as error:
    found |= {"torchvision": "", "mismatch": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
print(json.dumps(found), flush=True)
"""

# torch is imported once; CUDA is not begun before the fork.
TOGETHER = """
import datetime, os, sys, torch, torch.distributed as dist
backend, ranks, address = sys.argv[1], int(sys.argv[2]), sys.argv[3]
children = []
for rank in range(ranks):
    if child := os.fork():
        children.append(child)
        continue
    code = 1
    try:
        device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=20))
        x = torch.full((1000,), rank + 1.0, device=device)
        dist.all_reduce(x)
        code = int(x.sum().item() != 1000 * ranks * (ranks + 1) / 2)
        dist.destroy_process_group()
    except BaseException as error:
        print(f"rank {rank}: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr, flush=True)
    finally:
        os._exit(code)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


@dataclass(frozen=True)
class Finding:
    """state: ok, note (worth knowing) or WRONG; mend: what to do about it, ending with a command."""

    name: str
    state: str
    text: str
    mend: str = ""


class Asked:
    """A Python program in a process of its own, begun now, asked later: `said, error = Asked(code)()`."""

    def __init__(self, code: str, *arguments: object, seconds: float = SECONDS) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],  # a torch.py where one stands is not ours
            start_new_session=True,
        )

    def __call__(self) -> tuple[str, str]:
        """What it printed, or why it failed: its last line on stderr."""
        try:
            said, error = self.process.communicate(timeout=max(0.1, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # one that waits for a dead disk cannot even be killed
                self.process.communicate(timeout=1)
            return "", f"it hangs: no answer in {self.seconds:.0f} s"
        if self.process.returncode:
            return "", (
                error.strip().splitlines() or [f"it died with code {self.process.returncode}"]
            )[-1][:300]
        return said.strip(), ""


def together(backend: str, ranks: int, seconds: float = SECONDS) -> Asked:
    """So many processes that add up a tensor; with NCCL each on a GPU of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return Asked(TOGETHER, backend, ranks, f"tcp://127.0.0.1:{port}", seconds=seconds)


def spoke(backend: str, on: str, error: str) -> Finding:
    if not error:
        return Finding(backend, OK, f"{on} added up a tensor")
    return Finding(
        backend,
        WRONG,
        f"{on} could not add up a tensor: {error}",
        "say over which interface they may speak: GLOO_SOCKET_IFNAME=lo make doctor"
        if backend == "gloo"
        else "look closer: NCCL_DEBUG=INFO make doctor",
    )


def devices(found: str, error: str) -> list[Finding]:
    """What TORCH found: the GPUs, and whether torchvision's own code fits torch."""
    if error:
        return [
            Finding(
                "torch",
                WRONG,
                f"it cannot be imported or used: {error}",
                "make clean && make setup",
            )
        ]
    about, driver = json.loads(found), _driver()
    gpus = "; ".join(
        f"{gpu['name']}, {gpu['bytes'] / 1e9:.0f} GB ({gpu['free'] / 1e9:.0f} free), compute {gpu['capability']}"
        for gpu in about["gpus"]
    )
    vision = (
        Finding("torchvision", OK, f"{about['torchvision']} works with this torch")
        if not about["mismatch"]
        else Finding(
            "torchvision",
            WRONG,
            f"it does not fit torch: {about['mismatch']}",
            f"{sys.executable} -m pip install --upgrade torch torchvision",
        )
    )
    if gpus:
        return [
            Finding(
                "devices",
                OK,
                f"{gpus}; driver {driver or '?'}, torch {about['torch']} for CUDA {about['built_for']}",
            ),
            vision,
        ]
    if driver:
        why = f"for CUDA {about['built_for']}" if about["built_for"] else "for CPUs only"
        return [
            Finding(
                "devices",
                WRONG,
                f"nvidia-smi shows a GPU (driver {driver}), but torch {about['torch']}, {why}, sees none",
                "renew the driver, or install a torch that fits it (https://pytorch.org/get-started); then make doctor",
            ),
            vision,
        ]
    return [
        Finding(
            "devices",
            NOTE,
            f"no GPU; CPU with {os.cpu_count()} cores, torch takes {about['threads']} threads",
        ),
        vision,
    ]


def _driver() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return said.stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return ""
