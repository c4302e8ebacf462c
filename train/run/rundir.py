"""A run's folder: what was asked, what was read, what came out. A second run never deletes a first.

runs/<id>/config.json                        the resolved settings, the fingerprints of every view
                                             read (sealed)
          environment.json                   versions and device
          splits/seed-0.labelled.txt         the keys of the labelled images; usable as LABELS=
          metrics.jsonl  checkpoints/        while it trains
          probes/METHOD/VIEW.safetensors     the selected copies
          predictions.parquet  summary.json  at the end; the summary is sealed and holds the sha256
                                             of every other file that a reader trusts
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

from base import durable
from base.devices import described
from base.errors import (
    UNKNOWN,
    CoviewError,
    IntegrityError,
    StaleError,
    UsageError,
    did_you_mean,
    nearest,
)
from base.phrase import line_of
from cache_specs.items import Items, read_items
from cache_specs.spec import differences
from train.config import PLACES, TrainConfig, command_of, make_command
from train.data.splits import DRAWS, NUMBER, Split, read_keys
from train.run.names import free_name

AS_BEFORE = {"val": "split", "test": "20%"}  # of a run that knew neither, what it did


def open_run(config: TrainConfig, fingerprints: dict[str, str], device: str, leader: bool) -> Path:
    """Create the run's folder, or go on in it. Raises StaleError, naming field: old -> new, if it
    was made with other settings or data."""
    folder = Path(config.runs) / config.run
    wanted = {
        "settings": _settings(config),
        "fingerprints": fingerprints,
        "device_type": device,
        "draws": DRAWS,
    }
    path = folder / "config.json"
    if path.is_file():
        found = read_config(folder)
        refuse_backbone(folder, found, config.run)
        wanted["draws"] = found["draws"]  # what an earlier version drew is kept to
        if found["fingerprints"] == fingerprints:
            # the same images, whatever DATA calls them: photos/, or photos-1f2e3d4c once it has a
            # newer version
            wanted["settings"]["data"] = found["settings"].get("data")
        usual = _settings(type(config)())  # of settings that are younger than the run
        found["settings"] = {**usual, **found["settings"]}
        changed = differences(found, wanted)
        if changed:
            changed += _images_of_then(Path(config.cache), found, fingerprints)
            free = free_name(folder)
            raise StaleError(
                f"the run {folder} was made with other settings or data:\n  "
                + "\n  ".join(changed)
                + f"\nGive this one another name (RUN={free}), or repeat the old settings to "
                f"resume it: {_began(config, found['settings'])}",
                instead={"RUN": free},
            )
    elif leader:
        durable.make_folder(folder / "splits")
        durable.write_json(folder / "environment.json", _environment(device), "run.environment")
        durable.write(path, durable.sealed(wanted), "run.config")
    return folder


def _began(config: TrainConfig, settings: dict[str, Any]) -> str:
    """The command of a run with these settings."""
    places = {name: getattr(config, name) for name in ("run", "runs", "cache")}
    labels = settings["labels"]
    told = {**settings, **places, "labels": labels if isinstance(labels, str) else "…"}
    return make_command(told)


def _images_of_then(cache: Path, found: dict, fingerprints: dict[str, str]) -> list[str]:
    """How the images that a run was made of can be asked for, where they are others than now."""
    then = found["fingerprints"]["items"]
    if then == fingerprints["items"]:
        return []
    known = sorted(path.parent for path in cache.glob(f"*-{then[:8]}/dataset.json"))
    whole = [folder for folder in known if _labels_of(folder) == found["fingerprints"]["labels"]]
    return [f"The images that it was made of are DATA={folder.name}" for folder in whole or known]


def _labels_of(folder: Path) -> str:
    """The fingerprint of a data set's labels; '' where they cannot be read."""
    try:
        return read_items(folder).labels_fingerprint
    except CoviewError:
        return ""


def read_config(folder: Path) -> dict[str, Any]:
    """settings, fingerprints, device_type, and how labelled images were drawn ("" before that was
    noted), of a run that was begun. Raises IntegrityError."""
    try:
        found = durable.read_sealed(folder / "config.json")
        whole = {name: found[name] for name in ("settings", "fingerprints", "device_type")}
        whole["settings"] = {**AS_BEFORE, **whole["settings"]}
        return {**whole, "draws": found.get("draws", "")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{folder / 'config.json'} is damaged ({error}); use another RUN",
            instead={"RUN": UNKNOWN},
        ) from error


def run_folder(runs: str, run: str, beside: Sequence[str] = ()) -> Path:
    """RUN=demo lies below `runs`; RUN=runs/demo is a path. Raises UsageError or IntegrityError
    where no finished run is there, which proposes none of those `beside` it."""
    folder = Path(run).expanduser() if "/" in run.rstrip("/") else Path(runs) / run
    if not (folder / "config.json").is_file():
        raise _no_such_run(folder, run, [Path(name).name for name in beside])
    finished(folder, typed=run)
    return folder


def newest_runs(runs: str) -> list[Path]:
    """The folders of the finished runs, the newest first."""
    done = Path(runs).glob("*/summary.json")
    latest = sorted(done, key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in latest]


def no_run(runs: str) -> UsageError:
    """Without RUN: that of the newest run that is finished, which is probably meant."""
    names = [folder.name for folder in newest_runs(runs)]
    if not names:
        return UsageError(
            f"RUN is missing, and no run in {Path(runs)}/ is finished. Make one: make train "
            "VIEWS=… DATA=…"
        )
    listed = f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
    return UsageError(f"RUN is missing; there is: {listed}", instead={"RUN": names[0]})


def _best_of(path: Path) -> dict[str, Any]:
    """What a sweep ranks first: method and settings. Raises IntegrityError."""
    try:
        best = json.loads(path.read_text(encoding="utf-8"))["ranked"][0]
        return {"method": str(best["method"]), "settings": {**best["settings"]}}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise IntegrityError(
            f"{path} is damaged ({error}); use another RUN", instead={"RUN": UNKNOWN}
        ) from error


def finished(folder: Path, typed: str = "") -> dict[str, Any]:
    """What config.json of the finished run in `folder`, which was `typed` as RUN, holds. Raises
    UsageError (no such run, not finished) or IntegrityError."""
    typed = typed or folder.name
    if not (folder / "config.json").is_file():
        raise _no_such_run(folder, typed, ())
    config = read_config(folder)
    if (folder / "sweep.json").is_file():
        labels = config["settings"]["labels"]
        plain = {**config["settings"], "labels": labels if isinstance(labels, str) else "…"}
        best = command_of(plain, _best_of(folder / "sweep.json"))
        raise UsageError(
            f"RUN={typed}: {folder} is a sweep, which keeps scores, but no model. To train and "
            f"test its best, type: {best}"
        )
    refuse_backbone(folder, config, typed)
    if not is_finished(folder):
        labels = config["settings"]["labels"]
        plain = {"labels": labels if isinstance(labels, str) else "…", "run": folder.name}
        raise UsageError(
            f"RUN={typed}: {folder} is not finished, it has no summary.json. Type the command that "
            f"began it once more: {make_command({**config['settings'], **plain})}"
        )
    return config


def refuse_backbone(folder: Path, config: dict[str, Any], typed: str) -> None:
    """Raise UsageError where the run is one of `make finetune`."""
    if "mode" not in config["settings"]:
        return
    toml = next(iter(sorted(folder.glob("*.toml"))), folder / f"{folder.name}.toml")
    of_then = {"VIEW": str(toml), "DATA": config["settings"]["data"]}
    raise UsageError(
        f"RUN={typed}: {folder} is a tuned backbone, which keeps no probes. It is a view: to train "
        f"on it, under another RUN, embed with it first: {line_of('extract', of_then)}"
    )


def _no_such_run(folder: Path, typed: str, named: Sequence[str]) -> UsageError:
    """named: the runs that stand there already."""
    every = {path.parent.name for path in folder.parent.glob("*/config.json")}
    there = every - {*named}
    near, told = nearest(folder.name, there), did_you_mean(folder.name, there)
    if every and not there:
        told = ", and none but those that are named already"
    message = f"RUN={typed}: there is no run {folder}{told}"
    if not near:
        return UsageError(f"{message}. Make one: make train VIEWS=… DATA=… RUN={folder.name}")
    as_a_path = "/" in typed.rstrip("/")
    return UsageError(message, instead={"RUN": str(folder.with_name(near)) if as_a_path else near})


def write_splits(folder: Path, items: Items, splits: Sequence[Split], seeds: Sequence[int]) -> None:
    """The labelled keys of each experiment, one a line."""
    for seed, split in zip(seeds, splits, strict=True):
        path, keys = split_file(folder, seed), keys_of(items, split)
        if not path.is_file() or path.read_bytes() != keys:
            durable.write(path, keys, "run.split")


def split_file(folder: Path, seed: int) -> Path:
    return folder / "splits" / f"seed-{seed}.labelled.txt"


def keys_of(items: Items, split: Split) -> bytes:
    """What a split's file holds."""
    return "".join(f"{items.keys[row]}\n" for row in split.labelled).encode()


def drew_otherwise(folder: Path, fingerprints: dict[str, str]) -> bool:
    """Whether a run of these very data was begun by a version that draws labelled images in another
    way: it goes on with those that it wrote down. Raises IntegrityError."""
    if not (folder / "config.json").is_file():
        return False
    found = read_config(folder)
    return found["draws"] != DRAWS and found["fingerprints"] == fingerprints


def is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file()


def _settings(config: TrainConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    for name in PLACES:
        del values[name]
    labels = Path(config.labels)
    if not NUMBER.fullmatch(config.labels) and labels.is_file():
        values["labels"] = [line for line in read_keys(labels) if line]
    return values


def _environment(device: str) -> dict[str, Any]:
    """What a run was made with."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    names = ("torch", "numpy", "zarr", "safetensors", "pyarrow")
    return {
        "git": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "versions": {name: _version(name) for name in names},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpu": described(device) if device == "cuda" else None,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *command],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
