"""Checkpoints: everything that a run needs to go on, byte for byte, in one folder that appears by one rename.

    runs/<id>/checkpoints/mct-00000400/state.json      method, step, best scores, length of metrics.jsonl, sha256 of each file
                                       rank0.safetensors  parameters, Adam moments and best copies of rank 0's views
    runs/<id>/checkpoints/LATEST                        the folder's name, replaced atomically

Row order and random draws are functions of (seed, step), so the step is all that is needed of them. No pickle anywhere.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from cache_specs import durable
from cache_specs.errors import IntegrityError, StaleError
from train.cotrain import State
from train.peers import Peers
from train.probe import Params

KEEP = 2


@dataclass
class Progress:
    """Where a method's training stands. Per view of this process: its state, and two copies of its parameters: `best`, taken where
    the method's score for this view was best on validation, and `fused`, taken where the joint score was.

    best_top1, best_nll: (V + 1, E) the validation scores at which the copies were taken, the joint's in the last row; best_step likewise.
    """

    method: str
    step: int
    states: list[State]
    best: list[Params]
    fused: list[Params]
    best_top1: Tensor
    best_nll: Tensor
    best_step: Tensor
    metrics_bytes: int = 0


def save_checkpoint(folder: Path, progress: Progress, peers: Peers) -> None:
    """Every rank writes its file; rank 0 publishes when all are there. A kill at any point leaves the previous checkpoint in force."""
    name = f"{progress.method}-{progress.step:08d}"
    temp = folder / f".{name}.tmp"
    durable.make_folder(temp)
    tensors = {f"{kind}.{view}.{key}": value.contiguous().cpu()
               for view, (state, best, fused) in enumerate(zip(progress.states, progress.best, progress.fused, strict=True))
               for kind, params in (("params", state.params), ("mean", state.mean), ("square", state.square), ("best", best), ("fused", fused))
               for key, value in params.items()}
    tensors |= {"best_top1": progress.best_top1.cpu(), "best_nll": progress.best_nll.cpu(), "best_step": progress.best_step.cpu()}
    data = save({key: value.detach().clone() for key, value in tensors.items()})
    durable.write(temp / f"rank{peers.rank}.safetensors", data, "checkpoint.tensors")
    peers.any(False)                                        # all files are there
    if peers.rank == 0:
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(temp.glob("rank*.safetensors"))}
        record = {"method": progress.method, "step": progress.step, "ranks": peers.ranks, "adam_steps": progress.states[0].steps,
                  "metrics_bytes": progress.metrics_bytes, "files": digests}
        durable.write_json(temp / "state.json", record, "checkpoint.state")
        shutil.rmtree(folder / name, ignore_errors=True)    # left by a run that was killed before LATEST named it
        durable.fault("checkpoint.rename")
        temp.rename(folder / name)
        durable.fsync_folder(folder)
        durable.write(folder / "LATEST", f"{name}\n".encode(), "checkpoint.latest")
        _forget_old(folder, name)
    peers.any(False)                                        # published, before anybody goes on


def load_checkpoint(folder: Path, rank: int, ranks: int, device: torch.device) -> Progress | None:
    """The checkpoint that LATEST names, or None. Raises IntegrityError, naming the file, when it is damaged."""
    try:
        name = (folder / "LATEST").read_text().strip()
    except FileNotFoundError:
        return None
    where = folder / name
    record = _read_state(where)
    if record["ranks"] != ranks:
        raise StaleError(f"the checkpoint {where} was written with GPUS={record['ranks']}; resume it so, or give this run another name")
    try:
        path = where / f"rank{rank}.safetensors"
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != record["files"][path.name]:
            raise ValueError("its sha256 is not the recorded one")
    except (OSError, ValueError, KeyError) as error:
        raise IntegrityError(f"the checkpoint {where} is damaged ({error}); delete {folder} to train this run from the start") from error
    # clone: what safetensors loads is not aligned as torch aligns its own memory, and alignment can change the last bit of a sum
    tensors = {key: value.clone().to(device) for key, value in load(data).items()}
    views = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("params."))
    states, best, fused = [], [], []
    for view in range(views):
        # in the order of names, as probe.init gives them: the sum over parameters in the gradient's norm depends on it in the last bit
        pick = {kind: {key.split(".", 2)[2]: tensors[key] for key in sorted(tensors) if key.startswith(f"{kind}.{view}.")}
                for kind in ("params", "mean", "square", "best", "fused")}
        states.append(State(pick["params"], pick["mean"], pick["square"], record["adam_steps"]))
        best.append(pick["best"])
        fused.append(pick["fused"])
    return Progress(record["method"], record["step"], states, best, fused, tensors["best_top1"], tensors["best_nll"], tensors["best_step"],
                    record["metrics_bytes"])


def metrics_bytes(folder: Path) -> int:
    """How much of metrics.jsonl the newest checkpoint knows; what stands behind it was written by steps that will be taken again."""
    try:
        name = (folder / "LATEST").read_text().strip()
    except FileNotFoundError:
        return 0
    return int(_read_state(folder / name)["metrics_bytes"])


def _read_state(where: Path) -> dict[str, Any]:
    try:
        record = json.loads((where / "state.json").read_text())
        return {key: record[key] for key in ("method", "step", "ranks", "adam_steps", "metrics_bytes", "files")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(where, error) from error


def _damaged(where: Path, error: object) -> IntegrityError:
    return IntegrityError(f"the checkpoint {where} is damaged ({error}); delete {where.parent.parent} to train this run from the start")


def _forget_old(folder: Path, latest: str) -> None:
    """Keep the newest few; sweep what killed runs left."""
    complete = sorted((path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")), key=lambda p: p.stat().st_mtime_ns)
    for path in [*(p for p in complete[:-KEEP] if p.name != latest), *folder.glob(".*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)
