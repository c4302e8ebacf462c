"""Checks of `make doctor` that run in processes of their own: a broken driver or library raises,
dies or hangs there, and is reported."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base import native

PATIENCE_S = 60.0  # the longest that a process may take
FINE, NOTED, WRONG = "ok", "note", "WRONG"

HOUSE = Path(__file__).parent.parent  # the folder of our packages: a checkout's, or site-packages
OURS = f"import sys; sys.path.append({str(HOUSE)!r}); import coview"
CHECKS = f"{OURS}; from upkeep.torch_checks import main; main(sys.argv[1:])"


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

    def __call__(self, partly: bool = False) -> tuple[str, str]:
        """What it printed, or why it failed: its last line on stderr. partly: then, too, what it
        had printed."""
        try:
            said, error = self.process.communicate(timeout=max(0.1, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            said = ""
            # one that waits for a dead disk cannot even be killed
            with contextlib.suppress(subprocess.TimeoutExpired):
                said, _ = self.process.communicate(timeout=1)
            return said if partly else "", f"it hangs: no answer in {self.seconds:.0f} s"
        if self.process.returncode == 0:
            return said.strip(), ""
        lines = error.strip().splitlines() or [f"it died with code {self.process.returncode}"]
        return said if partly else "", lines[-1][:300]


class TorchChecks:
    """Checks of upkeep/torch_checks.py, begun now in one process that imports torch once, asked
    later by name: `found, error = checks("gloo")`."""

    def __init__(self, *names: str, seconds: float = PATIENCE_S) -> None:
        self.process, self.told = OwnProcess(CHECKS, *names, seconds=seconds), {}
        self.error: str | None = None

    def __call__(self, name: str) -> tuple[Any, str]:
        """What the check found, or why there is nothing: its own error, that it hangs, or what
        befell the process of all."""
        if self.error is None:
            said, self.error = self.process(partly=True)
            for line in said.splitlines():
                one, found, error = json.loads(line)
                self.told[one] = found, error
        return self.told.get(name, (None, self.error or "it said nothing"))


def spoke(backend: str, on: str, error: str) -> Finding:
    if not error:
        return Finding(backend, FINE, f"{on} added up a tensor")
    mend = "look closer: NCCL_DEBUG=INFO make doctor"
    if backend == "gloo":
        mend = "say over which interface they may speak: GLOO_SOCKET_IFNAME=lo make doctor"
    return Finding(backend, WRONG, f"{on} could not add up a tensor: {error}", mend)


def check_devices(about: dict[str, Any], error: str) -> Finding:
    """What torch says of the GPUs."""
    if not error:
        return _gpus(about)
    text = f"it cannot be imported or used: {error}"
    return Finding("torch", WRONG, text, "make clean && make setup")


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


def check_torchvision(version: str, error: str) -> Finding:
    """Whether torchvision's own code fits torch."""
    if not error:
        return Finding("torchvision", FINE, f"{version} works with this torch")
    return Finding(
        "torchvision",
        WRONG,
        f"it does not fit torch: {error}",
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
