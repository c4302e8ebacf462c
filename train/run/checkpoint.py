"""Checkpoints: everything that a run needs to go on, byte for byte, in one folder that appears by
one rename.

    runs/<id>/checkpoints/mct-00000400/state.json
            method, step, length of metrics.jsonl, results that were there, sha256 of each file and
            its own
    runs/<id>/checkpoints/mct-00000400/rank0.safetensors
            parameters, Adam moments, best copies and best scores of rank 0's views
    runs/<id>/checkpoints/LATEST
            the folder's name, replaced atomically

The newest two are kept. When the newest is damaged, `mend` takes the run back to the one before it,
as if it had been killed just then. Row order and random draws are functions of (seed, step), so the
step is all that is needed of them. No pickle anywhere.
"""

import hashlib
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from base import durable
from base.errors import UNKNOWN, IntegrityError, StaleError
from train.algorithm.optimise import State, fresh
from train.algorithm.peers import Peers
from train.algorithm.probe import Params

log = logging.getLogger(f"coview.{__name__}")

# of state.json
STATE = ("method", "step", "ranks", "adam_steps", "metrics_bytes", "outputs", "files")
GOES_BACK = "; type the same command again: it goes back to the checkpoint before"
# tensors of a standing, of which the last two are there at some steps only, and those of each view
WHOLE = ("best_score", "best_nll", "best_step", "temperature", "pool", "fused_pool", "teach")
MAYBE = ("given", "marks")
KINDS = ("params", "mean", "square", "average", "memory", "best", "fused")


@dataclass
class Standing:
    """Where a method's training stands. Per view of this process: its state, and two copies of its
    parameters: `best`, taken where the method's score for this view was best on validation, and
    `fused`, taken where the joint score was.

    best_score, best_nll: (V + 1, E) the validation scores at which the copies were taken, what
    --select names and the loss, the joint's in the last row; best_step likewise.
    temperature: (V, E), fitted to each student's teacher.
    pool: (V + G, E), the weights of the views and graphs in the joint, fused_pool those at the best
    joint score, teach: (V, V + G, E) those in each student's teacher.
    given: labels from a table, (W, E, N) or (V, 1, E, N).
    marks: what was counted of the labels handed out since the last look.
    threads: of the CPU, that its steps take (see train/algorithm/threads.py).
    """

    method: str
    step: int
    states: list[State]
    best: list[Params]
    fused: list[Params]
    best_score: Tensor
    best_nll: Tensor
    best_step: Tensor
    metrics_bytes: int
    temperature: Tensor
    pool: Tensor
    fused_pool: Tensor
    teach: Tensor
    given: Tensor | None = None
    marks: Tensor | None = None
    threads: int = 0


def save_checkpoint(folder: Path, standing: Standing, peers: Peers) -> None:
    """Write down where a method's training stands, all ranks together."""
    record = {
        "method": standing.method,
        "step": standing.step,
        "adam_steps": standing.states[0].steps,
        "metrics_bytes": standing.metrics_bytes,
    }
    tensors = {key: value.detach().clone() for key, value in _tensors(standing).items()}
    write_checkpoint(folder, record, tensors, peers)


def write_checkpoint(
    folder: Path, record: dict[str, Any], tensors: dict[str, Tensor], peers: Peers
) -> None:
    """Every rank writes its file; rank 0 publishes when all are there. A kill at any point leaves
    the previous checkpoint in force. record: the first keys of STATE."""
    name = f"{record['method']}-{record['step']:08d}"
    temp = folder / f".{name}.tmp"
    durable.make_folder(temp)
    durable.write(temp / f"rank{peers.rank}.safetensors", save(tensors), "checkpoint.tensors")
    peers.any(False)  # all files are there
    if peers.rank == 0:
        whole = {
            **record,
            "ranks": peers.ranks,
            "files": _digests(temp),
            "outputs": [str(path.relative_to(folder.parent)) for path in _outputs(folder.parent)],
        }
        durable.write(temp / "state.json", durable.sealed(whole), "checkpoint.state")
        _publish(folder, temp, name)
    peers.any(False)  # published, before anybody goes on


def _tensors(standing: Standing) -> dict[str, Tensor]:
    """What one rank's file holds."""
    found = {"threads": torch.tensor(standing.threads)}
    each = zip(standing.states, standing.best, standing.fused, strict=True)
    for view, (state, best, fused) in enumerate(each):
        named = state.layout.named
        average = {} if state.average_EP is None else named(state.average_EP)
        moments = named(state.mean_EP), named(state.square_EP)
        kinds = (state.params, *moments, average, state.memory, best, fused)
        for kind, params in zip(KINDS, kinds, strict=True):
            for key, value in params.items():
                found[f"{kind}.{view}.{key}"] = value.contiguous().cpu()
    for key in (*WHOLE, *MAYBE):
        value = getattr(standing, key)
        if value is not None:
            found[key] = value.cpu()
    return found


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.glob("rank*.safetensors")):
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _publish(folder: Path, temp: Path, name: str) -> None:
    """Make the temp folder the newest checkpoint, and keep the one before it."""
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


def mend(run: Path) -> None:
    """Called by rank 0 before the others look: see to it that LATEST names the newest checkpoint
    that is intact in the files of all ranks.

    If that means going back, everything that came later is undone: damaged checkpoints and the
    results that were not there yet are removed, and metrics.jsonl is cut by who opens it. Raises
    IntegrityError when there are checkpoints and none is intact.
    """
    folder = run / "checkpoints"
    latest, names = _latest(folder), _names(folder)
    if latest is None and not names:
        return
    intact, damage = _looked_at(folder, names)
    lost = _lost(folder, latest, names)
    if lost:
        damage[""] = lost
    if not intact:
        raise IntegrityError(
            f"no checkpoint is left to go on from: {'; '.join(damage.values())}. Delete {run} to "
            "train this run from the start"
        )

    def age(name: str) -> tuple[int, str]:
        return intact[name]["metrics_bytes"], name  # metrics.jsonl grows before every checkpoint

    newest = max(intact, key=age)
    record = intact[newest]
    if damage:
        log.warning(
            f"{'; '.join(damage.values())}. The run GOES BACK to step {record['step']} of "
            f"{record['method']} ({folder / newest}) and takes the steps since then again"
        )
        for path in _outputs(run):
            if str(path.relative_to(run)) not in record["outputs"]:
                durable.remove(path, "checkpoint.undo")
    if newest != latest:
        durable.write(folder / "LATEST", f"{newest}\n".encode(), "checkpoint.mend")
    for name in damage.keys() & names:
        _remove(folder, name)
    _sweep(folder)


def _lost(folder: Path, latest: str | None, names: set[str]) -> str:
    """What is wrong with LATEST; one checkpoint alone and no LATEST is a kill between the two."""
    if latest is None:
        return f"{folder / 'LATEST'} is missing" if len(names) > 1 else ""
    if latest in names:
        return ""
    return f"{folder / 'LATEST'} names {latest[:40]!r}, which is not there"


def _looked_at(folder: Path, names: set[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Of the checkpoints of these names what state.json says, or else what is wrong with them."""
    intact, damage = {}, {}
    for name in sorted(names):
        try:
            record = _state(folder / name)
            for file in record["files"]:
                _read(folder / name, file, record)
            intact[name] = record
        except IntegrityError as error:
            damage[name] = str(error).removesuffix(GOES_BACK)
    return intact, damage


def load_checkpoint(folder: Path, rank: int, ranks: int, device: torch.device) -> Standing | None:
    """The checkpoint that LATEST names, or None if there is none or it is of a job for another
    number of this run's processes. Raises as `read_checkpoint` does; StaleError for one of another
    version."""
    found = read_checkpoint(folder, rank, ranks)
    if found is None:
        return None
    record, loaded = found
    if "teach" not in loaded:
        raise StaleError(
            f"a checkpoint in {folder} was written by another version of this program; give this "
            "run another name (RUN=)",
            instead={"RUN": UNKNOWN},
        )
    if "best_top1" in loaded:  # as it was called when nothing else could be chosen by
        loaded["best_score"] = loaded.pop("best_top1")
    return _standing(record, {key: value.to(device) for key, value in loaded.items()})


def read_checkpoint(
    folder: Path, rank: int, ranks: int
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Record and tensors of the checkpoint that LATEST names, or None as above. Raises
    IntegrityError, naming the file, when it was damaged since `mend` looked."""
    name = _latest(folder)
    if name is None:
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
    # clone: what safetensors loads is not aligned as torch aligns its own memory, and alignment can
    # change the last bit of a sum
    return record, {key: value.clone() for key, value in loaded.items()}


def _standing(record: dict[str, Any], tensors: dict[str, Tensor]) -> Standing:
    views = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("params."))
    states, best, fused = [], [], []
    for view in range(views):
        of = {kind: _picked(tensors, f"{kind}.{view}.") for kind in KINDS}
        state = fresh(of["params"])
        flat = state.layout.flat
        states.append(
            replace(
                state,
                mean_EP=flat(of["mean"]),
                square_EP=flat(of["square"]),
                steps=record["adam_steps"],
                average_EP=flat(of["average"]) if of["average"] else None,
                memory=of["memory"],
            )
        )
        best.append(of["best"])
        fused.append(of["fused"])
    return Standing(
        method=record["method"],
        step=record["step"],
        states=states,
        best=best,
        fused=fused,
        best_score=tensors["best_score"].cpu(),
        best_nll=tensors["best_nll"].cpu(),
        best_step=tensors["best_step"].cpu(),
        metrics_bytes=record["metrics_bytes"],
        temperature=tensors["temperature"],
        pool=tensors["pool"],
        fused_pool=tensors["fused_pool"],
        teach=tensors["teach"],
        given=tensors.get("given"),
        marks=tensors.get("marks"),
        # of a version that had no rule: all that torch has, as then
        threads=int(tensors.get("threads", 0)),
    )


def _picked(tensors: dict[str, Tensor], head: str) -> Params:
    """Those whose names begin so, in the order of names, as probe.init gives them."""
    return {key[len(head) :]: tensors[key] for key in sorted(tensors) if key.startswith(head)}


def metrics_bytes(folder: Path) -> int:
    """How much of metrics.jsonl the newest checkpoint knows; what stands behind it was written by
    steps that will be taken again."""
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
        return {key: record[key] for key in STATE}
    except (OSError, ValueError, KeyError) as error:
        durable.reraise_unless_gone(path, error)
        raise _damaged(path, error) from error


def _read(where: Path, name: str, record: dict[str, Any]) -> bytes:
    """The bytes of one rank's file. Raises IntegrityError unless they are those that were
    written."""
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
    return IntegrityError(f"the checkpoint's file {path} is damaged ({why}){GOES_BACK}")


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
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
