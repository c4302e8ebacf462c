"""A run's folder: what was asked, what was read, what came out. A second run never deletes a first.

runs/<id>/config.json environment.json       the resolved settings, the fingerprints of every view read (sealed); versions and device
          splits/seed-0.labelled.txt         the keys of the labelled images; usable as LABELS=
          metrics.jsonl  checkpoints/        while it trains
          probes/METHOD/VIEW.safetensors     the selected copies
          predictions.parquet  summary.json  at the end; the summary is sealed and holds the sha256 of every other file that a reader trusts
"""

import dataclasses
import itertools
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from base import durable
from base.errors import IntegrityError, StaleError, UsageError, did_you_mean, nearest
from cache_specs.items import Items
from cache_specs.spec import differences
from train.config import PLACES, TrainConfig, make_command
from train.data.splits import NUMBER, Split, read_keys


def open_run(config: TrainConfig, fingerprints: dict[str, str], device: str, leader: bool) -> Path:
    """Create the run's folder, or go on in it. Raises StaleError, naming field: old -> new, if it was made with other settings or data."""
    folder = Path(config.runs) / config.run
    wanted = {"settings": _settings(config), "fingerprints": fingerprints, "device_type": device}
    path = folder / "config.json"
    if path.is_file():
        found = read_config(folder)
        if (
            found["fingerprints"] == fingerprints
        ):  # the same images, whatever DATA calls them: photos/, or photos-1f2e3d4c once it has a newer version
            wanted["settings"]["data"] = found["settings"].get("data")
        if changed := differences(found, wanted):
            free = next(
                name
                for number in itertools.count(2)
                if not folder.with_name(name := f"{config.run}-{number}").exists()
            )
            for known in sorted(
                Path(config.cache).glob(f"*-{found['fingerprints']['items'][:8]}/dataset.json")
            ):
                if found["fingerprints"]["items"] != fingerprints["items"]:
                    changed.append(f"The images that it was made of are DATA={known.parent.name}")
            raise StaleError(
                f"the run {folder} was made with other settings or data:\n  "
                + "\n  ".join(changed)
                + f"\nGive this one another name (RUN={free}), or repeat the old settings to resume it",
                instead={"RUN": free},
            )
    elif leader:
        durable.make_folder(folder / "splits")
        durable.write_json(folder / "environment.json", _environment(device), "run.environment")
        durable.write(path, durable.sealed(wanted), "run.config")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """settings, fingerprints and device_type of a run that was begun. Raises IntegrityError."""
    try:
        found = durable.read_sealed(folder / "config.json")
        return {name: found[name] for name in ("settings", "fingerprints", "device_type")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{folder / 'config.json'} is damaged ({error}); use another RUN"
        ) from error


def run_folder(runs: str, run: str) -> Path:
    """RUN=demo lies below `runs`; RUN=runs/demo is a path. Raises UsageError or IntegrityError where no finished run is there."""
    folder = Path(run).expanduser() if "/" in run.rstrip("/") else Path(runs) / run
    finished(folder, typed=run)
    return folder


def finished(folder: Path, typed: str = "") -> dict[str, Any]:
    """What config.json of the finished run in `folder`, which was `typed` as RUN, holds. Raises UsageError (no such run, not finished) or IntegrityError."""
    typed = typed or folder.name
    if not (folder / "config.json").is_file():
        there = [path.parent.name for path in folder.parent.glob("*/config.json")]
        near = nearest(folder.name, there)
        raise UsageError(
            f"RUN={typed}: there is no run {folder}{did_you_mean(folder.name, there)}"
            + ("" if near else f". Make one: make train VIEWS=… DATA=… RUN={folder.name}"),
            instead={"RUN": str(folder.with_name(near)) if "/" in typed.rstrip("/") else near}
            if near
            else None,
        )
    config = read_config(folder)
    settings = config["settings"]
    labels = settings["labels"] if isinstance(settings["labels"], str) else "…"
    if (folder / "sweep.json").is_file():
        best = json.loads((folder / "sweep.json").read_text(encoding="utf-8")).get(
            "best", "make train …, with the settings at the top of sweep.json"
        )
        raise UsageError(
            f"RUN={typed}: {folder} is a sweep, which keeps scores, but no model. To train and test its best, type: "
            f"{best}"
        )
    if not is_finished(folder):
        raise UsageError(
            f"RUN={typed}: {folder} is not finished, it has no summary.json. Type the command that began it once more: "
            f"{make_command({**settings, 'labels': labels, 'run': folder.name})}"
        )
    return config


def write_splits(folder: Path, items: Items, splits: Sequence[Split], seeds: Sequence[int]) -> None:
    """The labelled keys of each experiment, one a line."""
    for seed, split in zip(seeds, splits, strict=True):
        path, keys = (
            folder / "splits" / f"seed-{seed}.labelled.txt",
            "".join(f"{items.keys[row]}\n" for row in split.labelled).encode(),
        )
        if not path.is_file() or path.read_bytes() != keys:
            durable.write(path, keys, "run.split")


def is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file()


def _settings(config: TrainConfig) -> dict[str, Any]:
    values = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in PLACES
    }
    labels = Path(config.labels)
    if not NUMBER.fullmatch(config.labels) and labels.is_file():
        values["labels"] = [line for line in read_keys(labels) if line]
    return values


def _environment(device: str) -> dict[str, Any]:
    def git(*command: str) -> str | None:
        try:
            return subprocess.run(
                ["git", *command],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
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
    return {
        "git": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpu": gpu,
    }
