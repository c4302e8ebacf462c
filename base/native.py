"""What the C libraries below torch are told, and what this processor has.

Freed memory is kept where models run, images are decoded or probes are trained. glibc gives large
blocks back to the kernel at once and takes them anew for the next tensor, page by page: half of the
time of a convolutional net on a CPU. And idle threads of OpenMP give way instead of spinning:
others use the machine too. No number depends on either. COVIEW_KEEP_MEMORY=0, or a variable of
malloc's own, leaves malloc as it is.
"""

import ctypes
import math
import os
from collections.abc import Sequence
from pathlib import Path

KEEP = "COVIEW_KEEP_MEMORY"
OF_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
# malloc.h: https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, NEVER = -1, -3, -1
# bytes: blocks below the first are kept (more than a batch of activations); an older glibc takes no
# more than the second
BELOW = (1 << 28, 1 << 25)
USUAL = 1 << 17  # as malloc has it at first
PROCESSOR, QUOTA = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup/cpu.max")
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # of Intel and AMD, of Intel, of ARM


def give_way() -> None:
    """Idle threads of OpenMP do; it reads this once, when torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_memory() -> bool:
    """Tell malloc of this process; again, it does nothing. Is memory kept? (On glibc alone: others
    have no such switch.)"""
    return _told(BELOW, NEVER)


def keep_no_memory() -> bool:
    """From now on large blocks go back to the kernel as soon as they are free: half as much time
    again, but no holes between blocks, which may be as large as these. Is it so?"""
    return _told((USUAL,), USUAL)


def _told(above: Sequence[int], free: int) -> bool:
    """Blocks of the first number of bytes that this glibc takes are the kernel's, and more than
    `free` at the end of the heap is given back."""
    libc = ctypes.CDLL(None)
    if why_not_kept() or not hasattr(libc, "gnu_get_libc_version"):
        return False
    if not any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in above):
        return False
    return bool(libc.mallopt(M_TRIM_THRESHOLD, free))


def give_back() -> None:
    """What is free goes back to the kernel after all: after a picture of gigabytes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def why_not_kept() -> str:
    """The variable that leaves malloc as it is, '' where none does."""
    if os.environ.get(KEEP) == "0":
        return f"{KEEP}=0"
    return next((name for name in OF_MALLOC if name in os.environ), "")


def has_bfloat16() -> bool:
    """Has this processor instructions for bfloat16? Without them it is slower than float32."""
    try:
        lines = PROCESSOR.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    names = ("flags", "Features")  # of x86, of ARM
    said = next((line for line in lines if line.startswith(names)), "")
    return not BFLOAT16.isdisjoint(said.split())


def cores() -> int:
    """How many of its cores this process may use at once: those it is bound to, and no more than
    its container's share (docker run --cpus 4)."""
    bound = len(os.sched_getaffinity(0))
    try:
        quota, period = map(int, QUOTA.read_text(encoding="utf-8").split())
    except (OSError, ValueError):  # "max", or none
        return bound
    return max(1, min(bound, math.ceil(quota / period)))
