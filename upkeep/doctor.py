"""make doctor [CACHE=…]

Looks at this machine in a few seconds: versions against what is needed, GPUs, whether processes can
speak to each other, the disk of the cache, memory, the hub's cache, limits. Ends with what is wrong
and the command that mends each; exits with 1 if anything is. Changes nothing.
"""

import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import IO, Any

from packaging.requirements import Requirement

from base import native
from base.errors import CoviewError
from extract.models.convert import weights_folder
from upkeep.config import DoctorConfig
from upkeep.machine import (
    FINE,
    HOUSE,
    NOTED,
    OURS,
    WRONG,
    Finding,
    OwnProcess,
    TorchChecks,
    check_devices,
    check_torchvision,
    spoke,
)

SHOWN = (
    *("torch", "torchvision", "transformers", "timm", "open_clip_torch"),
    *("pillow", "simplejpeg", "zarr"),
)
OPTIONAL = {
    "tensorboard": "TensorBoard files of a run",
    "wandb": "Weights & Biases",
    "onnx": "make export-model with ONNX",
    "onnxruntime": "checking the ONNX file",
    "umap-learn": "UMAP maps in reports",
    "cleanlab": "its rule for wrong labels",
    "pillow-heif": "HEIC images",
    "pillow-jxl-plugin": "JPEG XL images",
}
ANOTHER = "name another disk: make doctor CACHE=/another/disk"
MEBIBYTE = 1 << 20
SHARED = "/dev/shm"
DISK = f"""
{OURS}
import dataclasses, json, pathlib
from upkeep.doctor import check_disk

findings = check_disk(pathlib.Path(sys.argv[1]))
print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
"""


def command(config: DoctorConfig, found: dict[str, Any]) -> None:
    """make doctor."""
    doctor(config, found)


def doctor(config: DoctorConfig, told: dict[str, Any]) -> None:
    """Print the findings, then what is wrong. Raises CoviewError with exit code 1 if anything
    is."""
    begun = time.monotonic()
    findings = examine(Path(config.cache))
    told |= {"findings": [asdict(finding) for finding in findings]}
    for finding in findings:
        print(f"{finding.state:6}{finding.name:16}{finding.text}")
    wrong = [finding for finding in findings if finding.state == WRONG]
    head = f"what is wrong, and what mends it ({len(wrong)}):" if wrong else "nothing is wrong"
    print(f"\n{head}   ({time.monotonic() - begun:.1f} s)")
    for finding in wrong:
        print(f"  {finding.name}: {finding.text}\n    {finding.mend}")
    if wrong:
        things = "1 thing" if len(wrong) == 1 else f"{len(wrong)} things"
        raise CoviewError(
            f"{things} to mend: {', '.join(finding.name for finding in wrong)}; the commands stand "
            "above. When they are done, type: make doctor"
        )


def examine(cache: Path) -> list[Finding]:
    """Every check, in the order in which they are shown."""
    torch = TorchChecks("gloo", "torchvision", "devices")
    of_disk = OwnProcess(DISK, cache.absolute())
    versions, *others = check_packages(floors())
    if _version("coview") is None:
        mend = f"{sys.executable} -m pip install --editable {HOUSE}"
        others.append(Finding("coview", WRONG, f"it runs from {HOUSE}, not installed", mend))
    others += [*_disk(*of_disk(), cache), *check_memory(), *check_limits(), *check_hub()]
    about, error = torch("devices")
    findings = [versions, check_devices(about, error)]
    if about is not None:
        findings.append(check_torchvision(*torch("torchvision")))
    findings.append(spoke("gloo", "2 processes", torch("gloo")[1]))
    gpus = len(about["gpus"]) if about else 0
    if gpus:
        on = "1 GPU" if gpus == 1 else "2 GPUs"
        findings.append(spoke("nccl", on, TorchChecks("nccl")("nccl")[1]))
    return findings + others


def floors() -> list[Requirement]:
    """What this installation needs, as its metadata say; without the extras."""
    try:
        needed = [Requirement(line) for line in requires("coview") or ()]
    except PackageNotFoundError:  # our files alone, found by PYTHONPATH
        return []
    return [need for need in needed if not need.marker or need.marker.evaluate({"extra": ""})]


def check_packages(needed: Sequence[Requirement]) -> list[Finding]:
    """Python and the packages, each that is missing or too old by name."""
    lost = []
    for need in needed:
        have = _version(need.name)
        if have is None or not need.specifier.contains(have, prereleases=True):
            text = f"{have or 'not installed'}, needed {need.specifier}"
            pip = f"{sys.executable} -m pip install '{need.name}{need.specifier}'"
            lost.append(Finding(need.name, WRONG, text, pip))
    shown = [f"Python {platform.python_version()}"]
    for name in SHOWN:
        have = _version(name)
        if have is not None:
            shown.append(f"{name} {have}")
    optional = []
    for name, what in OPTIONAL.items():
        have = _version(name)
        optional.append(f"no {name} ({what})" if have is None else f"{name} {have}")
    return [
        Finding("versions", FINE, ", ".join(shown)),
        *lost,
        Finding("optional", NOTED, ", ".join(optional)),
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _disk(said: str, error: str, cache: Path) -> list[Finding]:
    """What the process DISK found."""
    if error:
        return [Finding("disk", WRONG, f"{cache}: {error}", ANOTHER)]
    return [Finding(**one) for one in json.loads(said)]


def check_disk(cache: Path, size: int = 64 * MEBIBYTE) -> list[Finding]:
    """Write, read and hash a file of 64 MB beside the cache; free space; whether locks work."""
    folder = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", suffix=".tmp", dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write = _timed(lambda: _write(file.file, size))
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            read = _timed(lambda: _read(file.file, size))
            hashed = _timed(lambda: _hash(Path(file.name)))
    except OSError as error:
        why = f"cannot be written to, or not locked: {error.strerror or error}"
        return [Finding("disk", WRONG, f"{folder} {why}", ANOTHER)]
    text = (
        f"{folder}: writes {size / write / 1e9:.2f} GB/s to the disk, "
        f"reads {size / read / 1e9:.2f} GB/s, hashes {size / hashed / 1e9:.1f} GB/s"
    )
    room = f"{free / 1e9:,.1f} GB free (a view of 1.3 million images takes 2 to 21 GB)"
    larger = "make gc, or name a larger disk: make doctor CACHE=/another/disk"
    space = Finding("space", FINE, room) if free > 5e9 else Finding("space", WRONG, room, larger)
    return [Finding("disk", FINE, text), space]


def _write(file: IO[bytes], size: int) -> None:
    block = os.urandom(MEBIBYTE)
    for _ in range(0, size, MEBIBYTE):
        file.write(block)
    file.flush()
    os.fsync(file.fileno())


def _read(file: IO[bytes], size: int) -> None:
    for at in range(0, size, MEBIBYTE):
        os.pread(file.fileno(), MEBIBYTE, at)


def _hash(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def _timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return max(time.monotonic() - begun, 1e-9)


def check_memory() -> list[Finding]:
    """RAM, and the shared memory through which decode processes hand on their images."""
    said = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(said[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    text = f"{free / 1e9:,.1f} of {total / 1e9:,.1f} GB available"
    end = "end what takes it: top -o %MEM; then make doctor"
    found = [Finding("memory", FINE, text) if free > 2e9 else Finding("memory", WRONG, text, end)]
    found.append(check_malloc())
    shared = Path(SHARED)
    size = shutil.disk_usage(shared).free if shared.is_dir() else None
    if size is not None and size < 5e8:
        text = f"{size / 1e6:,.0f} MB free in {SHARED}: images go to a GPU through pipes instead"
        found.append(Finding("shared memory", NOTED, f"{text}; docker run --shm-size 8g is faster"))
    return found


def check_malloc() -> Finding:
    """Is the memory kept that a model frees?"""
    if native.keep_memory():
        text = f"models keep the memory that they free ({native.KEEP}=0 gives it back)"
        return Finding("malloc", FINE, text)
    text = f"freed memory is given back ({native.why_not_kept() or 'no glibc'})"
    return Finding("malloc", NOTED, f"{text}: convolutional nets on a CPU are slower so")


def check_limits() -> list[Finding]:
    """Open files, and mapped ones: each shard of a view is one."""
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    maps = int(Path("/proc/sys/vm/max_map_count").read_text())
    text = f"{files:,} open files (up to {hard:,}), {maps:,} maps"
    if files < 1024:
        return [Finding("limits", WRONG, text, "ulimit -n 4096 && make doctor")]
    if maps < 65_530:
        more = "sudo sysctl vm.max_map_count=1000000 && make doctor"
        return [Finding("limits", WRONG, text, more)]
    return [Finding("limits", FINE, text)]


def check_hub() -> list[Finding]:
    """Where weights come from: the hub's cache, whether it may be asked, and what `make weights`
    made."""
    cache = _hub_folder()
    models = f"{len(list(cache.glob('models--*')))} models in {cache}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        offline = "HF_HUB_OFFLINE is set: nothing is fetched"
        found = [Finding("hub", NOTED, f"{models}; {offline}")]
    else:
        found = [Finding("hub", FINE, f"{models}; HF_HUB_OFFLINE is not set")]
        parent = next(path for path in (cache, *cache.parents) if path.is_dir())
        if not os.access(parent, os.W_OK):
            text = f"{parent} cannot be written to, so no weights can be fetched"
            found.append(Finding("hub", WRONG, text, "HF_HUB_CACHE=/another/disk make doctor"))
    made = sorted(path.name for path in weights_folder().glob("*.safetensors"))
    text = f"{', '.join(made) or 'none'} of make weights in {weights_folder()}"
    return [*found, Finding("weights", FINE, text)]


def _hub_folder() -> Path:
    """Where huggingface_hub looks; asking it would take its import."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
