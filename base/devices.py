"""Which device a name means: one answer for all commands, and for Python.

devices("auto")        ["cuda:0"], or ["cpu"] without a GPU
devices("cuda", 2)     ["cuda:0", "cuda:1"]
devices("cuda:5")      ["cuda:5"], or a UsageError that says which there are
"""

import ctypes
import os
import re
import sys

from base.errors import UsageError, nearest

NAMES = ("auto", "cpu", "cuda", "mps", "xpu")
ALSO = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "hip": "cuda", "metal": "mps"}
FORM = re.compile(r"(auto|cpu|cuda|mps|xpu)(?::(\d+))?")


def devices(device: str, gpus: int = 1) -> list[str]:
    """The torch device of each of `gpus` processes on this machine. Raises UsageError where it is
    no device, not here, or there are fewer."""
    kind, number = _parsed(device)
    if kind == "cpu":
        return ["cpu"] * gpus
    there = _count("cuda" if kind == "auto" else kind)
    if not there:
        if kind == "auto":
            return ["cpu"] * gpus
        raise UsageError(
            f"DEVICE={device}, but torch sees no {_called(kind)} here; use DEVICE=cpu or leave it "
            "out",
            instead={"DEVICE": None},
        )
    if number is not None:
        return _numbered(device, kind, number, there, gpus)
    if gpus > (there if kind in ("auto", "cuda") else 1):
        raise UsageError(
            f"GPUS={gpus}, but this machine has {there}; use GPUS={there}",
            instead={"GPUS": str(there)},
        )
    if kind in ("auto", "cuda"):
        return [f"cuda:{i}" for i in range(gpus)]
    return [kind]


def _parsed(device: str) -> tuple[str, int | None]:
    """Kind and number. Raises UsageError."""
    found = FORM.fullmatch(device)
    if found and not (found[2] and found[1] in ("auto", "cpu")):
        return found[1], int(found[2]) if found[2] else None
    kind = device.lower().partition(":")[0]
    near, missing = ALSO.get(kind) or nearest(kind, NAMES), ""
    if near in ("cuda", "mps", "xpu") and not _count(near):
        near, missing = "auto", f". Torch sees no {_called(near)} here"
    raise UsageError(
        f"DEVICE={device}: it is one of auto, cpu, cuda and cuda:N (N counts from 0); mps and xpu "
        f"where torch has them{missing}",
        instead={"DEVICE": near} if near else None,
    )


def _numbered(device: str, kind: str, number: int, there: int, gpus: int) -> list[str]:
    """One GPU by its number, for one process."""
    if number >= there:
        named = ", ".join(f"{kind}:{i}" for i in range(there))
        raise UsageError(
            f"DEVICE={device}, but this machine has {there}: {named} (they count from 0); use one",
            instead={"DEVICE": f"{kind}:{there - 1}"},
        )
    if gpus > 1:
        raise UsageError(
            f"GPUS={gpus} with DEVICE={device}, which is one; leave DEVICE out, or name GPUS=1",
            instead={"DEVICE": None},
        )
    return [f"{kind}:{number}"]


def described(device: str) -> str:
    """The name of a CUDA GPU, which is what is recorded; of another device its kind."""
    if not device.startswith("cuda"):
        return device
    import torch  # noqa: PLC0415  see `_count`

    return torch.cuda.get_device_name(device)


def _count(kind: str) -> int:
    """How many of a kind there are."""
    if kind == "cuda" and not _may_have_cuda():
        return 0
    import torch  # noqa: PLC0415  takes seconds, and most of this room has no use for it

    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return torch.cuda.device_count() if kind == "cuda" else torch.xpu.device_count()


def _may_have_cuda() -> bool:
    """False where torch, which would take seconds to be asked, can see none: it has to load the
    driver's library, or for AMD's GPUs to open the kernel's device."""
    if "torch" in sys.modules or os.path.exists("/dev/kfd"):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _called(kind: str) -> str:
    return {"cuda": "CUDA GPU", "mps": "GPU of Apple", "xpu": "GPU of Intel"}[kind]
