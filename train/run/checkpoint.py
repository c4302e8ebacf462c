"""Checkpoints: everything that a run needs to go on, byte for byte, in one folder that appears by one rename.

    runs/<id>/checkpoints/mct-00000400/state.json      method, step, length of metrics.jsonl, results that were there, sha256 of each file and its own
                                       rank0.safetensors  parameters, Adam moments, best copies and best scores of rank 0's views
    runs/<id>/checkpoints/LATEST                        the folder's name, replaced atomically

The newest two are kept. When the newest is damaged, `mend` takes the run back to the one before it, as if it had been killed just then.
Row order and random draws are functions of (seed, step), so the step is all that is needed of them. No pickle anywhere.
"""

import hashlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from base import durable
from base.errors import IntegrityError, StaleError
from train.algorithm.optimise import State
from train.algorithm.peers import Peers
from train.algorithm.probe import Params

KEYS = (
    "method",
    "step",
    "ranks",
    "adam_steps",
    "metrics_bytes",
    "outputs",
    "files",
)  # of state.json
AGAIN = "; type the same command again: it goes back to the checkpoint before"

MAYBE = ("given", "marks")  # tensors that a checkpoint has only at some steps


@dataclass
class Progress:
    """Where a method's training stands. Per view of this process: its state, and two copies of its parameters: `best`, taken where
    the method's score for this view was best on validation, and `fused`, taken where the joint score was.

    best_top1, best_nll: (V + 1, E) the validation scores at which the copies were taken, the joint's in the last row; best_step likewise.
    temperature: (V, E), fitted to each student's teacher; pool: (V + G, E), the weights of the views and graphs in the joint, fused_pool those at the
    best joint score, teach: (V, V + G, E) those in each student's teacher; given: labels from a table, (W, E, N) or (V, 1, E, N);
    marks: what was counted of the labels handed out since the last look.
    """

    method: str
    step: int
    states: list[State]
    best: list[Params]
    fused: list[Params]
    best_top1: Tensor
    best_nll: Tensor
    best_step: Tensor
    metrics_bytes: int
    temperature: Tensor
    pool: Tensor
    fused_pool: Tensor
    teach: Tensor
    given: Tensor | None = None
    marks: Tensor | None = None


def save_checkpoint(folder: Path, progress: Progress, peers: Peers) -> None:
    """Every rank writes its file; rank 0 publishes when all are there. A kill at any point leaves the previous checkpoint in force."""
    name = f"{progress.method}-{progress.step:08d}"
    temp = folder / f".{name}.tmp"
    durable.make_folder(temp)
    tensors = {
        f"{kind}.{view}.{key}": value.contiguous().cpu()
        for view, (state, best, fused) in enumerate(
            zip(progress.states, progress.best, progress.fused, strict=True)
        )
        for kind, params in (
            ("params", state.params),
            ("mean", state.mean),
            ("square", state.square),
            ("average", state.average),
            ("memory", state.memory),
            ("best", best),
            ("fused", fused),
        )
        for key, value in params.items()
    }
    whole = {
        "best_top1": progress.best_top1,
        "best_nll": progress.best_nll,
        "best_step": progress.best_step,
        "temperature": progress.temperature,
        "pool": progress.pool,
        "fused_pool": progress.fused_pool,
        "teach": progress.teach,
    }
    tensors |= {
        key: value.cpu()
        for key, value in (
            whole
            | {
                name: getattr(progress, name)
                for name in MAYBE
                if getattr(progress, name) is not None
            }
        ).items()
    }
    data = save({key: value.detach().clone() for key, value in tensors.items()})
    durable.write(temp / f"rank{peers.rank}.safetensors", data, "checkpoint.tensors")
    peers.any(False)  # all files are there
    if peers.rank == 0:
        digests = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(temp.glob("rank*.safetensors"))
        }
        record = {
            "method": progress.method,
            "step": progress.step,
            "ranks": peers.ranks,
            "adam_steps": progress.states[0].steps,
            "metrics_bytes": progress.metrics_bytes,
            "files": digests,
            "outputs": [str(path.relative_to(folder.parent)) for path in _outputs(folder.parent)],
        }
        durable.write(temp / "state.json", durable.sealed(record), "checkpoint.state")
        if name in _names(folder):
            _remove(folder, name)
        durable.fault("checkpoint.rename")
        temp.rename(folder / name)
        durable.fsync_folder(folder)
        before = _latest(folder)
        durable.write(folder / "LATEST", f"{name}\n".encode(), "checkpoint.latest")
        for old in _names(folder) - {before, name}:
            _remove(folder, old)
        _sweep(folder)
    peers.any(False)  # published, before anybody goes on


def mend(run: Path) -> None:
    """Called by rank 0 before the others look: see to it that LATEST names the newest checkpoint that is intact in the files of all ranks.

    If that means going back, everything that came later is undone: damaged checkpoints and the results that were not there yet are
    removed, and metrics.jsonl is cut by who opens it. Raises IntegrityError when there are checkpoints and none is intact.
    """
    folder = run / "checkpoints"
    latest, names = _latest(folder), _names(folder)
    intact, damage = {}, {}
    for name in sorted(names):
        try:
            record = intact[name] = _state(folder / name)
            for file in record["files"]:
                _read(folder / name, file, record)
        except IntegrityError as error:
            intact.pop(name, None)
            damage[name] = str(error).removesuffix(AGAIN)
    if latest is None and not names:
        return
    if latest not in names and (
        latest is not None or len(names) > 1
    ):  # one alone and no LATEST: killed between the two
        damage[""] = f"{folder / 'LATEST'} " + (
            "is missing" if latest is None else f"names {latest[:40]!r}, which is not there"
        )
    if not intact:
        raise IntegrityError(
            f"no checkpoint is left to go on from: {'; '.join(damage.values())}. Delete {run} to train this run from the start"
        )
    newest = max(
        intact, key=lambda name: (intact[name]["metrics_bytes"], name)
    )  # metrics.jsonl grows before every checkpoint
    if damage:
        print(
            f"warning: {'; '.join(damage.values())}. The run GOES BACK to step {intact[newest]['step']} of {intact[newest]['method']} "
            f"({folder / newest}) and takes the steps since then again",
            file=sys.stderr,
            flush=True,
        )
        for path in _outputs(run):
            if str(path.relative_to(run)) not in intact[newest]["outputs"]:
                durable.remove(path, "checkpoint.undo")
    if newest != latest:
        durable.write(folder / "LATEST", f"{newest}\n".encode(), "checkpoint.mend")
    for name in damage.keys() & names:
        _remove(folder, name)
    _sweep(folder)


def load_checkpoint(folder: Path, rank: int, ranks: int, device: torch.device) -> Progress | None:
    """The checkpoint that LATEST names, or None if there is none or it is of a job for another number of this run's processes.

    Raises IntegrityError, naming the file, when it was damaged since `mend` looked; StaleError for one of another version.
    """
    if (name := _latest(folder)) is None:
        return None
    where = folder / name
    record = _state(where)
    if record["ranks"] != ranks:
        return None
    file = f"rank{rank}.safetensors"
    try:
        loaded = load(_read(where, file, record))
    except SafetensorError as error:
        raise _damaged(where / file, error) from error
    # clone: what safetensors loads is not aligned as torch aligns its own memory, and alignment can change the last bit of a sum
    tensors = {key: value.clone().to(device) for key, value in loaded.items()}
    views = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("params."))
    if "teach" not in tensors:
        raise StaleError(
            f"the checkpoint {where} was written by another version of this program; give this run another name (RUN=)"
        )
    states, best, fused = [], [], []
    for view in range(views):
        # in the order of names, as probe.init gives them: the sum over parameters in the gradient's norm depends on it in the last bit
        pick = {
            kind: {
                key.split(".", 2)[2]: tensors[key]
                for key in sorted(tensors)
                if key.startswith(f"{kind}.{view}.")
            }
            for kind in ("params", "mean", "square", "average", "memory", "best", "fused")
        }
        states.append(
            State(
                pick["params"],
                pick["mean"],
                pick["square"],
                record["adam_steps"],
                pick["average"],
                pick["memory"],
            )
        )
        best.append(pick["best"])
        fused.append(pick["fused"])
    return Progress(
        record["method"],
        record["step"],
        states,
        best,
        fused,
        tensors["best_top1"].cpu(),
        tensors["best_nll"].cpu(),
        tensors["best_step"].cpu(),
        record["metrics_bytes"],
        tensors["temperature"],
        tensors["pool"],
        tensors["fused_pool"],
        tensors["teach"],
        *(tensors.get(name) for name in MAYBE),
    )


def metrics_bytes(folder: Path) -> int:
    """How much of metrics.jsonl the newest checkpoint knows; what stands behind it was written by steps that will be taken again."""
    name = _latest(folder)
    return 0 if name is None else int(_state(folder / name)["metrics_bytes"])


def _latest(folder: Path) -> str | None:
    try:
        return (folder / "LATEST").read_bytes().decode(errors="replace").strip()
    except OSError as error:
        durable.reraise_unless_gone(folder / "LATEST", error)
        return None


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("[!.]*") if path.is_dir()}


def _outputs(run: Path) -> list[Path]:
    """What finished jobs have left; a job that has is not trained again."""
    return sorted([*run.glob("probes/*/*.safetensors"), *run.glob("sweep/*.json")])


def _state(where: Path) -> dict[str, Any]:
    """What state.json says. Raises IntegrityError unless every byte of it is as it was written."""
    path = where / "state.json"
    try:
        record = durable.read_sealed(path)
        return {key: record[key] for key in KEYS}
    except (OSError, ValueError, KeyError) as error:
        durable.reraise_unless_gone(path, error)
        raise _damaged(path, error) from error


def _read(where: Path, name: str, record: dict[str, Any]) -> bytes:
    """The bytes of one rank's file. Raises IntegrityError unless they are those that were written."""
    path = where / name
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != record["files"][name]:
            raise ValueError(f"{len(data)} bytes whose sha256 is not the recorded one")
        return data
    except (OSError, ValueError, KeyError) as error:
        durable.reraise_unless_gone(path, error)
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> IntegrityError:
    why = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
    return IntegrityError(f"the checkpoint's file {path} is damaged ({why}){AGAIN}")


def _remove(folder: Path, name: str) -> None:
    """In one step, so that no kill leaves a half that looks like damage."""
    gone = folder / f".{name}.old.tmp"
    shutil.rmtree(gone, ignore_errors=True)
    durable.fault("checkpoint.forget")
    (folder / name).rename(gone)
    durable.fault("checkpoint.forgotten")
    shutil.rmtree(gone, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """What killed runs left."""
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
