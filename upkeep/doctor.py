"""make doctor [CACHE=…]     (python -m upkeep.doctor)

Looks at this machine in a few seconds: versions against what is needed, GPUs, whether processes can speak to each other, the disk of the cache,
memory, the hub's cache, limits. Ends with what is wrong and the command that mends each; exits with 1 if anything is. Changes nothing.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from base.errors import CoviewError
from upkeep.config import DoctorConfig
from upkeep.machine import NOTE, OK, TORCH, WRONG, Asked, Finding, devices, spoke, together

ROOT = Path(__file__).parent.parent
OPTIONAL = {
    "tensorboard": "TensorBoard files of a run",
    "wandb": "Weights & Biases",
    "onnx": "make export-model with ONNX",
    "onnxruntime": "checking the ONNX file",
    "umap-learn": "UMAP maps in reports",
    "cleanlab": "its rule for wrong labels",
}
ANOTHER = "name another disk: make doctor CACHE=/another/disk"
DISK = """
import dataclasses, json, pathlib, sys
from upkeep.doctor import disk
print(json.dumps([dataclasses.asdict(finding) for finding in disk(pathlib.Path(sys.argv[1]))]))
"""


def examine(cache: Path, root: Path = ROOT) -> list[Finding]:
    """Every check, in the order in which they are shown."""
    torch, gloo, of_disk = Asked(TORCH), together("gloo", 2), Asked(DISK, cache.absolute())
    versions, *others = packages(root / "pyproject.toml")
    others += [*_disk(*of_disk(), cache), *memory(), *limits(), *hub()]
    about, error = torch()
    findings = [versions, *devices(about, error), spoke("gloo", "2 processes", gloo()[1])]
    if about and (gpus := len(json.loads(about)["gpus"])):
        ranks = min(2, gpus)
        findings.append(
            spoke("nccl", f"{ranks} GPU{'s' * (ranks > 1)}", together("nccl", ranks)()[1])
        )
    return findings + others


def packages(pyproject: Path) -> list[Finding]:
    """Python and the packages against the floors of pyproject.toml, each that is missing or too old by name."""
    import platform
    import tomllib
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    if pyproject.is_file():
        asked = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:  # an installed wheel has none
        asked = [line for line in requires("coview") or [] if "extra ==" not in line]
    floors = [Requirement(line) for line in asked]
    lost, pip = [], f"{sys.executable} -m pip install"
    have = {}
    for need in floors:
        try:
            have[need.name] = version(need.name)
        except PackageNotFoundError:
            have[need.name] = None
        if have[need.name] is None or not need.specifier.contains(
            have[need.name], prereleases=True
        ):
            lost.append(
                Finding(
                    need.name,
                    WRONG,
                    f"{have[need.name] or 'not installed'}, needed {need.specifier}",
                    f"{pip} '{need}'",
                )
            )
    fine = Finding(
        "versions",
        OK,
        f"Python {platform.python_version()}, "
        + ", ".join(
            f"{name} {have[name]}"
            for name in (
                "torch",
                "torchvision",
                "transformers",
                "timm",
                "open_clip_torch",
                "pillow",
                "zarr",
            )
            if have.get(name)
        ),
    )
    extras = []
    for name in OPTIONAL:
        try:
            extras.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            extras.append(f"no {name} ({OPTIONAL[name]})")
    return [fine, *lost, Finding("optional", NOTE, ", ".join(extras))]


def _disk(said: str, error: str, cache: Path) -> list[Finding]:
    """What the process DISK found."""
    return (
        [Finding("disk", WRONG, f"{cache}: {error}", ANOTHER)]
        if error
        else [Finding(**one) for one in json.loads(said)]
    )


def disk(cache: Path, size: int = 1 << 26) -> list[Finding]:
    """Write, read and hash a file of 64 MB beside the cache; free space; whether locks work."""
    import fcntl
    import shutil
    import tempfile

    from cache_specs.integrity import xxh3

    folder = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.is_dir())
    free, block = shutil.disk_usage(folder).free, os.urandom(1 << 20)
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", suffix=".tmp", dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write = _timed(
                lambda: (
                    [file.write(block) for _ in range(size >> 20)],
                    file.flush(),
                    os.fsync(file.fileno()),
                )
            )
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            read = _timed(
                lambda: [os.pread(file.fileno(), 1 << 20, at) for at in range(0, size, 1 << 20)]
            )
            hashed = _timed(lambda: xxh3(Path(file.name)))
    except OSError as error:
        return [
            Finding(
                "disk",
                WRONG,
                f"{folder} cannot be written to, or not locked: {error.strerror or error}",
                ANOTHER,
            )
        ]
    text = f"{folder}: writes {size / write / 1e9:.2f} GB/s to the disk, reads {size / read / 1e9:.2f} GB/s, hashes {size / hashed / 1e9:.1f} GB/s"
    room = Finding(
        "space",
        OK if free > 5e9 else WRONG,
        f"{free / 1e9:,.1f} GB free (a view of 1.3 million images takes 2 to 21 GB)",
        "" if free > 5e9 else "make gc, or name a larger disk: make doctor CACHE=/another/disk",
    )
    return [Finding("disk", OK, text), room]


def _timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return max(time.monotonic() - begun, 1e-9)


def memory() -> list[Finding]:
    """RAM, and the shared memory through which decode processes hand on their images."""
    import shutil

    said = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(said[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    found = [
        Finding(
            "memory",
            OK if free > 2e9 else WRONG,
            f"{free / 1e9:,.1f} of {total / 1e9:,.1f} GB available",
            "" if free > 2e9 else "end what takes it: top -o %MEM; then make doctor",
        )
    ]
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).free) < 5e8:
        found.append(
            Finding(
                "shared memory",
                WRONG,
                f"{size / 1e6:,.0f} MB free in /dev/shm, decode processes need more",
                "docker run --shm-size 8g …, or go without: make extract … ARGS='--workers 0'",
            )
        )
    return found


def limits() -> list[Finding]:
    """Open files, and mapped ones: each shard of a view is one."""
    import resource

    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    maps = int(Path("/proc/sys/vm/max_map_count").read_text())
    text = f"{files:,} open files (up to {hard:,}), {maps:,} maps"
    if files < 1024:
        return [Finding("limits", WRONG, text, "ulimit -n 4096 && make doctor")]
    return [
        Finding("limits", OK, text)
        if maps >= 65_530
        else Finding("limits", WRONG, text, "sudo sysctl vm.max_map_count=1000000 && make doctor")
    ]


def hub() -> list[Finding]:
    """Where weights come from: the hub's cache, whether it may be asked, and what `make weights` made."""
    from extract.models.convert import weights_folder

    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    found = [
        Finding(
            "hub",
            NOTE if offline else OK,
            f"{models} models in {cache}; HF_HUB_OFFLINE is {'set: nothing is fetched' if offline else 'not set'}",
        )
    ]
    parent = next(path for path in (cache, *cache.parents) if path.is_dir())
    if not offline and not os.access(parent, os.W_OK):
        found.append(
            Finding(
                "hub",
                WRONG,
                f"{parent} cannot be written to, so no weights can be fetched",
                "HF_HUB_CACHE=/another/disk make doctor",
            )
        )
    made = sorted(path.name for path in weights_folder().glob("*.safetensors"))
    return [
        *found,
        Finding(
            "weights", OK, f"{', '.join(made) or 'none'} of make weights in {weights_folder()}"
        ),
    ]


def doctor(config: DoctorConfig, told: dict[str, Any]) -> None:
    """Print the findings, then what is wrong. Raises CoviewError with exit code 1 if anything is."""
    begun = time.monotonic()
    findings = examine(Path(config.cache))
    told |= {"findings": [asdict(finding) for finding in findings]}
    for finding in findings:
        print(f"{finding.state:6}{finding.name:16}{finding.text}")
    wrong = [finding for finding in findings if finding.state == WRONG]
    print(
        f"\n{'nothing is wrong' if not wrong else f'what is wrong, and what mends it ({len(wrong)}):'}   ({time.monotonic() - begun:.1f} s)"
    )
    for finding in wrong:
        print(f"  {finding.name}: {finding.text}\n    {finding.mend}")
    if wrong:
        raise CoviewError(
            f"{len(wrong)} thing{'s' * (len(wrong) > 1)} to mend: {', '.join(finding.name for finding in wrong)}; the commands stand above. "
            "When they are done, type: make doctor"
        )


def command(config: DoctorConfig, found: dict[str, Any]) -> None:
    """make doctor."""
    doctor(config, found)
