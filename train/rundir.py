"""A run's folder: what was asked, what was read, what came out. A second run never deletes a first.

    runs/<id>/config.json environment.json       the resolved settings, the fingerprints of every view read; versions and device
              splits/seed-0.labelled.txt         the keys of the labelled images; usable as LABELS=
              metrics.jsonl  checkpoints/        while it trains
              probes/METHOD/VIEW.safetensors     the selected copies
              predictions.parquet  summary.json  at the end
"""

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cache_specs import durable
from cache_specs.errors import IntegrityError, StaleError
from cache_specs.items import Items
from cache_specs.spec import differences
from train.config import PLACES, TrainConfig
from train.splits import NUMBER, Split, read_keys


def open_run(config: TrainConfig, fingerprints: dict[str, str], device: str, leader: bool) -> Path:
    """Create the run's folder, or go on in it. Raises StaleError, naming field: old -> new, if it was made with other settings or data."""
    folder = Path(config.runs) / config.run
    wanted = {"settings": _settings(config), "fingerprints": fingerprints, "device_type": device}
    path = folder / "config.json"
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise IntegrityError(f"{path} is damaged ({error}); use another RUN") from error
        if changed := differences(found, wanted):
            raise StaleError(f"the run {folder} was made with other settings or data:\n  " + "\n  ".join(changed) +
                             f"\nGive this one another name (RUN={config.run}-2), or repeat the old settings to resume it")
    elif leader:
        durable.make_folder(folder / "splits")
        durable.write_json(folder / "environment.json", _environment(device), "run.environment")
        durable.write_json(path, wanted, "run.config")
    return folder


def write_splits(folder: Path, items: Items, splits: Sequence[Split], seeds: Sequence[int]) -> None:
    """The labelled keys of each experiment, one a line."""
    for seed, split in zip(seeds, splits, strict=True):
        path = folder / "splits" / f"seed-{seed}.labelled.txt"
        if not path.is_file():
            durable.write(path, "".join(f"{items.keys[row]}\n" for row in split.labelled).encode(), "run.split")


def is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file()


def _settings(config: TrainConfig) -> dict[str, Any]:
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in PLACES}
    labels = Path(config.labels)
    if not NUMBER.fullmatch(config.labels) and labels.is_file():
        values["labels"] = [line for line in read_keys(labels) if line]
    return values


def _environment(device: str) -> dict[str, Any]:
    def git(*command: str) -> str | None:
        try:
            return subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    versions = {}
    for name in ("torch", "numpy", "zarr", "safetensors", "pyarrow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    import torch

    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"git": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status), "versions": versions,
            "python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count(), "gpu": gpu}
