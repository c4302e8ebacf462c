"""Where a finished view's canary was found to be what is computed, and all that computes is what it
was then, it need not be computed again: `make extract` answers without a model, and without torch.

    <view>-<key12>/agreed.json    view (its description), canary (the file), conditions

Private to this machine, and no part of the view: without it, or where it is damaged, or any of the
conditions is another one, the canary is computed.
"""

import functools
import hashlib
import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from base import durable
from base.devices import described
from base.errors import StorageError
from cache_specs.view import View
from extract.canary import versions_now

OURS = Path(__file__).parent  # what decodes, resizes and computes
OPTIONAL = ("pillow-heif", "pillow-jxl-plugin")
FEATURES = ("model name", "flags", "Features", "CPU implementer", "CPU part")  # of /proc/cpuinfo
# ... which change what a library computes
ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)


def has_agreed(view: View, device: str) -> bool:
    """Was the canary of the view, as it stands there, compared under the conditions of now, on such
    a device?"""
    try:
        found = durable.read_sealed(view.folder / "agreed.json")
        return found == {**_agreement(view, device), "sha256": found["sha256"]}
    except (OSError, ValueError, KeyError):
        return False


def remember(view: View, device: str) -> None:
    """That it was compared, and is what is computed now; where that may be written."""
    with suppress(OSError, StorageError):  # in a read-only cache it is compared at every start
        note = durable.sealed(_agreement(view, device))
        durable.write(view.folder / "agreed.json", note, "agreed")


def _agreement(view: View, device: str) -> dict[str, Any]:
    canary = view.folder / "canary.json"
    digest = hashlib.sha256(canary.read_bytes()).hexdigest()
    return {
        "view": view.identity,  # its spec, weights, images, and what it was begun with
        "canary": [canary.stat().st_ino, digest],
        "conditions": conditions(device),
    }


def conditions(device: str) -> dict[str, Any]:
    """All that decodes, resizes and computes here."""
    return {
        "versions": {**versions_now(), **_optional()},
        "python": platform.python_version(),
        "device": described(device),
        "processor": _processor(),
        "driver": _text("/proc/driver/nvidia/version").partition("\n")[0],
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "code": _code(),
    }


def _optional() -> dict[str, str]:
    found = {}
    for name in OPTIONAL:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _processor() -> str:
    """The sha256 over name and instructions of the first processor."""
    told = []
    for line in _text("/proc/cpuinfo").partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        if name.strip() in FEATURES:
            told.append(value.strip())
    return hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


@functools.cache
def _code() -> str:
    """The sha256 over the files of this room: another checkout may compute otherwise."""
    digest = hashlib.sha256()
    for path in sorted(OURS.rglob("*.py")):
        digest.update(f"{path.relative_to(OURS)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
