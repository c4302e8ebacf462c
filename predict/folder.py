"""A model as a folder that needs nothing else: written by `make export-model`, read by `open_model`.

    model.json                  method, joint rule, classes, seeds, temperature, the views' specs and the hashes of their weights; sha256 of every file below
    probes/VIEW.safetensors     the run's own files
    graphs/0.safetensors …      nodes and what they know, where the method has graphs
    joint.onnx  README.md       for other programs, and for people

model.json knows its own digest. Whatever is missing, short, added to or changed in one bit is named before anything is used.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache_specs import durable
from cache_specs.errors import IntegrityError, StaleError, UsageError
from predict.network import Expert, Model, View
from train.probe import Params

FORMAT, RECORD = 1, "model.json"


def write_tensors(model: Model, folder: Path) -> None:
    """The probes and graphs. The folder is there."""
    names = ["concat"] if model.method == "concat" else model.names
    found = {f"probes/{name}.safetensors": probe for name, probe in zip(names, model.probes, strict=True)}
    found |= {f"graphs/{number}.safetensors": {"nodes": expert.nodes_MD, "member": expert.member_EM, "told": expert.told_EMC}
              for number, expert in enumerate(model.experts)}
    for name, tensors in found.items():
        durable.make_folder((folder / name).parent)
        durable.write(folder / name, save({key: value.detach().contiguous().cpu().clone() for key, value in tensors.items()}), "model.tensors")


def write_record(model: Model, folder: Path) -> None:
    """model.json, last of all: the digests are of the files that lie there."""
    files = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    record = {"format": FORMAT, "method": model.method, "joint": model.rule, "classes": model.classes, "seeds": model.seeds, "temperature": model.temperature,
              "views": [dataclasses.asdict(dataclasses.replace(view, spec_file="")) for view in model.views], "about": model.about, "files": files,
              "graphs": [{"views": expert.views, "neighbours": expert.neighbours_E} for expert in model.experts],
              "weight": None if model.weight_ME is None else model.weight_ME.tolist()}
    durable.write(folder / RECORD, durable.sealed(record), "model.record")


def read_model(folder: Path, device: torch.device) -> Model:
    """Raises UsageError (no folder of ours), StaleError (of another version) or IntegrityError naming the damaged file."""
    if not (folder / RECORD).is_file():
        raise UsageError(f"MODEL={folder}: there is no {RECORD} in this folder. Make one: make export-model RUN=… TO={folder}" if folder.is_dir() else
                         f"MODEL={folder}: there is no such folder. Make one: make export-model RUN=… TO={folder}")
    try:
        record = durable.read_sealed(folder / RECORD)
        if record["format"] != FORMAT:
            raise StaleError(f"{folder} has format {record['format']}, this version reads {FORMAT}; export it again: make export-model RUN=… TO=…")
        for name, digest in record["files"].items():
            _check(folder, name, digest)
        views = [View(**view) for view in record["views"]]
        names = ["concat"] if record["method"] == "concat" else [view.name for view in views]
        probes = [_read(folder / "probes" / f"{name}.safetensors", device) for name in names]
        experts = []
        for number, graph in enumerate(record["graphs"]):
            tensors = _read(folder / "graphs" / f"{number}.safetensors", device)
            experts.append(Expert(graph["views"], tensors["nodes"], tensors["member"], tensors["told"], graph["neighbours"]))
        weight: Tensor | None = None if record["weight"] is None else torch.tensor(record["weight"], dtype=torch.float64, device=device)
        return Model(views, record["classes"], record["method"], record["seeds"], record["joint"], probes, experts, weight, record["temperature"],
                     record["about"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        durable.reraise_unless_gone(folder / RECORD, error)
        raise IntegrityError(f"the model in {folder} is damaged: {error}. Copy it again, or export it again: make export-model RUN=… TO=…") from error


def _check(folder: Path, name: str, expected: dict[str, Any]) -> None:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{RECORD} names the file {name!r}, which lies outside")
    if not (folder / name).is_file():
        raise ValueError(f"{name} is missing")
    if (found := _digest(folder / name)) != expected:
        raise ValueError(f"{name} has changed since it was written: {found['bytes']:,} bytes with sha256 {found['sha256'][:12]}, expected "
                         f"{expected['bytes']:,} with {expected['sha256'][:12]}")


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read(path: Path, device: torch.device) -> Params:
    return {key: value.to(device) for key, value in load(path.read_bytes()).items()}
