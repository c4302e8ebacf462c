"""Checks of `make doctor` that run in processes of their own: a broken driver or library raises,
dies or hangs there, and is reported."""

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
from typing import Any

from base import native

PATIENCE_S = 60.0  # the longest that a process may take
FINE, NOTED, WRONG = "ok", "note", "WRONG"

TORCH = """
import json, torch

found = {
    "torch": torch.__version__,
    "built_for": torch.version.cuda,
    "cuda": torch.cuda.is_available(),
    "threads": torch.get_num_threads(),
    "gpus": [],
}
for i in range(torch.cuda.device_count() if found["cuda"] else 0):
    free, total = torch.cuda.mem_get_info(i)
    ones = torch.ones(64, 64, device=f"cuda:{i}")
    (ones @ ones).sum().item()
    found["gpus"].append({
        "name": torch.cuda.get_device_name(i),
        "bytes": total,
        "free": free,
        "capability": "%d.%d" % torch.cuda.get_device_capability(i),
    })
try:
    import torchvision

    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    found |= {"torchvision": torchvision.__version__, "mismatch": ""}
except Exception as error:
    why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    found |= {"torchvision": "", "mismatch": why}
print(json.dumps(found), flush=True)
"""

# torch is imported once; CUDA is not begun before the fork.
TOGETHER = """
import datetime, os, sys, torch, torch.distributed as dist

backend, ranks, address = sys.argv[1], int(sys.argv[2]), sys.argv[3]
wait = datetime.timedelta(seconds=20)
children = []
for rank in range(ranks):
    if child := os.fork():
        children.append(child)
        continue
    code = 1
    try:
        device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
        dist.init_process_group(
            backend, init_method=address, rank=rank, world_size=ranks, timeout=wait
        )
        x = torch.full((1000,), rank + 1.0, device=device)
        dist.all_reduce(x)
        code = int(x.sum().item() != 1000 * ranks * (ranks + 1) / 2)
        dist.destroy_process_group()
    except BaseException as error:
        why = f"rank {rank}: {type(error).__name__}: {error}".splitlines()[0]
        print(why, file=sys.stderr, flush=True)
    finally:
        os._exit(code)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
"""


@dataclass(frozen=True)
class Finding:
    """state: ok, note (worth knowing) or WRONG; mend: what to do about it, ending with a
    command."""

    name: str
    state: str
    text: str
    mend: str = ""


class OwnProcess:
    """A Python program in a process of its own, begun now, asked later:
    `said, error = OwnProcess(code)()`. It imports nothing from the current folder (-P), where
    somebody's own json.py or torch.py may lie."""

    def __init__(self, code: str, *arguments: object, seconds: float = PATIENCE_S) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self) -> tuple[str, str]:
        """What it printed, or why it failed: its last line on stderr."""
        try:
            said, error = self.process.communicate(timeout=max(0.1, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            # one that waits for a dead disk cannot even be killed
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.communicate(timeout=1)
            return "", f"it hangs: no answer in {self.seconds:.0f} s"
        if self.process.returncode == 0:
            return said.strip(), ""
        lines = error.strip().splitlines() or [f"it died with code {self.process.returncode}"]
        return "", lines[-1][:300]


def together(backend: str, ranks: int, seconds: float = PATIENCE_S) -> OwnProcess:
    """So many processes that add up a tensor; with NCCL each on a GPU of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return OwnProcess(TOGETHER, backend, ranks, f"tcp://127.0.0.1:{port}", seconds=seconds)


def spoke(backend: str, on: str, error: str) -> Finding:
    if not error:
        return Finding(backend, FINE, f"{on} added up a tensor")
    mend = "look closer: NCCL_DEBUG=INFO make doctor"
    if backend == "gloo":
        mend = "say over which interface they may speak: GLOO_SOCKET_IFNAME=lo make doctor"
    return Finding(backend, WRONG, f"{on} could not add up a tensor: {error}", mend)


def check_devices(found: str, error: str) -> list[Finding]:
    """What TORCH found: the GPUs, and whether torchvision's own code fits torch."""
    if error:
        text = f"it cannot be imported or used: {error}"
        return [Finding("torch", WRONG, text, "make clean && make setup")]
    about = json.loads(found)
    return [_gpus(about), _torchvision(about)]


def _gpus(about: dict[str, Any]) -> Finding:
    gpus = []
    for gpu in about["gpus"]:
        memory = f"{gpu['bytes'] / 1e9:.0f} GB ({gpu['free'] / 1e9:.0f} free)"
        gpus.append(f"{gpu['name']}, {memory}, compute {gpu['capability']}")
    driver = _driver()
    if gpus:
        torch = f"torch {about['torch']} for CUDA {about['built_for']}"
        return Finding("devices", FINE, f"{'; '.join(gpus)}; driver {driver or '?'}, {torch}")
    if not driver:
        threads = f"torch takes {about['threads']} threads"
        fast = "float32 and bfloat16"
        if not native.has_bfloat16():
            fast = "float32, in which views of bfloat16 are computed: no instructions for that"
        cpu = f"CPU with {native.cores()} cores, fast in {fast}"
        return Finding("devices", NOTED, f"no GPU; {cpu}; {threads}")
    built = f"for CUDA {about['built_for']}" if about["built_for"] else "for CPUs only"
    return Finding(
        "devices",
        WRONG,
        f"nvidia-smi shows a GPU (driver {driver}), but torch {about['torch']}, {built}, sees none",
        "renew the driver, or install a torch that fits it (https://pytorch.org/get-started); "
        "then make doctor",
    )


def _torchvision(about: dict[str, Any]) -> Finding:
    if not about["mismatch"]:
        return Finding("torchvision", FINE, f"{about['torchvision']} works with this torch")
    return Finding(
        "torchvision",
        WRONG,
        f"it does not fit torch: {about['mismatch']}",
        f"{sys.executable} -m pip install --upgrade torch torchvision",
    )


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
